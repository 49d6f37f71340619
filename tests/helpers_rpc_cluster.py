"""For tests of a model on several machines: doubles of llama.cpp's programs, and nodes that lend themselves."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from infernet.assembly import _transport
from infernet.cluster.engine import ClusterConfig, ClusterEngine, ClusterPatience
from infernet.cluster.head import HeadPatience
from infernet.cluster.network import TransportNetwork
from infernet.cluster.worker import Worker, WorkerPatience
from infernet.engines.openai_engine import Patience
from infernet.node import Node
from infernet.transport.contract import ConnectionInfo, Stream
from infernet.transport.memory import MemoryNetwork, MemoryTransport
from protocol.clusters import CLUSTER_PROTOCOL, Build
from protocol.envelope import SigningKey
from protocol.ids import NodeId, peer_id
from protocol.records import Role
from tests.helpers_node import config_of_nobody
from tests.helpers_transport import identity

DOUBLES = Path(__file__).resolve().parent / "infernet" / "cluster"
HEAD, FIRST, SECOND, STRANGER = map(identity, (1, 2, 3, 4))
BUILD = Build(11434, "unknown")
MODEL = "spread-7b"
QUICK_HEAD = HeadPatience(attach_s=20, carry_s=10, again_first_s=0.02, again_max_s=0.1)
QUICK_WORKER = WorkerPatience(first_word_s=5, start_s=20, connect_s=5)
QUICK = ClusterPatience(
    load_s=30,
    look_s=0.02,
    again_first_s=0.02,
    again_max_s=0.1,
    workers=QUICK_HEAD,
    server=Patience(look_interval_s=0.05, again_first_s=0.05),
)


def programs(folder: Path, build: int = 11434, refuses: str = "", *, has_rpc: bool = True) -> str:
    """A folder with doubles of llama.cpp's programs; the path of its llama-server, which may refuse every model."""
    plain = "" if has_rpc else '[ "$1" != --help ] || exit 0\n'
    folder.mkdir(parents=True, exist_ok=True)
    for name, double in (
        ("llama-server", "llama_server_double.py"),
        ("ggml-rpc-server", "rpc_server_double.py"),
    ):
        path = folder / name
        refusal = (
            f'[ "$1" = --version ] || [ "$1" = --help ] || {{ echo "{refuses}" >&2; exit 1; }}\n'
            if refuses and name == "llama-server"
            else ""
        )
        run = f'DOUBLE_BUILD={build} exec "{sys.executable}" -P "{DOUBLES / double}" "$@"\n'
        path.write_text(f"#!/bin/sh\n{plain}{refusal}{run}")
        path.chmod(0o755)
    return str(folder / "llama-server")


class Lent:
    """The transport's handler of a node that is a worker, or nothing."""

    def __init__(self, worker: Worker | None = None) -> None:
        self.worker = worker
        self.ended = 0

    def connected(self, info: ConnectionInfo) -> None:
        """Nobody asks."""

    def disconnected(self, peer: NodeId) -> None:
        """Nobody asks."""

    async def stream_opened(self, stream: Stream) -> None:
        """As the carrier does."""
        assert self.worker is not None
        try:
            await self.worker.serve(stream)
        finally:
            self.ended += 1


class Machines:
    """Nodes in one process: a head, and workers that are let run and ended."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.net = MemoryNetwork()
        self._nursery = nursery
        self._scopes: dict[NodeId, trio.CancelScope] = {}

    async def start(self, node: NodeId, handler: Lent) -> MemoryTransport:
        """Run a node; it speaks the protocol when it has a worker."""
        speaks = (CLUSTER_PROTOCOL,) if handler.worker is not None else ()
        transport = self.net.transport(node, protocols=speaks)

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as scope:
                self._scopes[node] = scope
                await transport.run(handler, task_status=task_status)

        await self._nursery.start(run)
        return transport

    def end(self, node: NodeId) -> None:
        """The machine is switched off."""
        self._scopes[node].cancel()

    async def lend(self, node: NodeId, llama_server: str, head: NodeId = HEAD) -> Worker:
        """Run a node that is a worker of this head."""
        worker = Worker(head, llama_server, patience=QUICK_WORKER)
        await self.start(node, Lent(worker))
        return worker

    async def network(self, node: NodeId = HEAD) -> TransportNetwork:
        """Run a node that knows where everybody is."""
        return TransportNetwork(await self.start(node, Lent()), lambda peer: [f"/memory/1/p2p/{peer_id(peer)}"])


@asynccontextmanager
async def machines() -> AsyncIterator[Machines]:
    """Machines that end with the test."""
    async with trio.open_nursery() as nursery:
        yield Machines(nursery)
        nursery.cancel_scope.cancel()


def engine_on(llama_server: str, *workers: NodeId, patience: ClusterPatience = QUICK) -> ClusterEngine:
    """The head's engine, with the double of llama-server."""
    config = ClusterConfig(workers, MODEL, Path("/nonexistent/spread-7b.gguf"), llama_server, slots=2)
    return ClusterEngine(config, patience)


def children_of(process_id: int) -> list[int]:
    """The processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]


def end_program(keeper: int) -> None:
    """Kill what a keeper runs, as a crash would."""
    for child in children_of(keeper):
        os.kill(child, signal.SIGKILL)


async def start_node(
    nursery: trio.Nursery, key: SigningKey, engine: ClusterEngine | None = None, **config: Any
) -> tuple[Node, trio.CancelScope]:
    """A node on a free port of loopback, as `run_node` makes it; and what ends it at once."""
    settings = config_of_nobody(
        listen_hosts=("127.0.0.1",), p2p_port=0, allow_private=True, **{"role": Role.PROVIDER, **config}
    )
    node = Node(
        settings,
        key,
        transport=_transport(settings, key, listen=True),
        engine=engine,
        rng=random.Random(1),
    )
    scope = trio.CancelScope()

    async def run(task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await node.run(task_status=task_status)

    await nursery.start(run)
    return node, scope
