"""Nodes for tests: in one process, over the memory transport, on a virtual clock."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from infernet.answers import AskOptions
from infernet.config import Config
from infernet.engines.contract import Engine
from infernet.hardware.watch import Watch
from infernet.node import Node
from infernet.store import Store
from infernet.transport.memory import MemoryNetwork
from protocol.constants import PROTOCOLS
from protocol.effects import JobEvent
from protocol.envelope import SigningKey
from protocol.ids import peer_id
from protocol.records import ChatMessage, Role
from tests.helpers_engine import PacedEngine

EPOCH_MS = 1_700_000_000_000


def virtual_wall_ms() -> int:
    """A wall clock that goes with trio's, so that a virtual second is a second everywhere."""
    return EPOCH_MS + round(trio.current_time() * 1000)


def key_of(number: int) -> SigningKey:
    """The key of a numbered test node."""
    source = random.Random(number)
    return SigningKey(source.randbytes(32), source.randbytes)


def config_of_nobody(**changes: object) -> Config:
    """A configuration whose folders are never touched, unless they are given."""
    nowhere = Path("/nonexistent")
    folders = {"config_dir": nowhere, "state_dir": nowhere, "data_dir": nowhere}
    fields = {"name": "test", "advertise": False, "mdns": False, "free_for": "all", **folders, **changes}
    return Config(**fields)  # type: ignore[arg-type]


class World:
    """A network of nodes in one nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = MemoryNetwork()
        self._nursery = nursery
        self._number = 0

    async def start(
        self,
        engine: Engine | None,
        *knows: Node,
        store: Store | None = None,
        hardware: Watch | None = None,
        until_loaded: bool = True,
        **config: object,
    ) -> Node:
        """Start a node: a provider when it has an engine. It connects to the nodes that it knows.

        Its engine has loaded then, unless the test is about a node that loads.
        """
        self._number += 1
        key = key_of(self._number)
        peers = tuple(f"/memory/1/p2p/{peer_id(node.node_id)}" for node in knows)
        role = Role.PROVIDER if engine is not None else Role.CLIENT
        node = Node(
            config_of_nobody(role=role, peers=peers, **config),
            key,
            transport=self.network.transport(key.node, protocols=PROTOCOLS),
            engine=engine,
            store=store,
            hardware=hardware,
            clock_ms=virtual_wall_ms,
            rng=random.Random(self._number),
        )
        await self._nursery.start(node.run)
        if until_loaded:
            await node.wait_loaded()
        return node

    def kill(self, node: Node) -> None:
        """End a node's network at once, as when its process dies."""
        self.network.kill(node.node_id)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """A world that ends with the test."""
    async with trio.open_nursery() as nursery:
        yield World(nursery)
        nursery.cancel_scope.cancel()


def question(text: str = "why", **options: object) -> AskOptions:
    """A chat of one question."""
    return AskOptions(messages=(ChatMessage("user", text),), **options)  # type: ignore[arg-type]


async def ask(node: Node, options: AskOptions) -> list[JobEvent]:
    """Ask, and collect what happens until the job ends."""
    with trio.fail_after(3600):
        async with node.ask(options) as events:
            return [event async for event in events]


async def settle(node: Node, condition: Callable[[], bool]) -> None:
    """Wait until a condition on a node holds; a virtual minute at most."""
    with trio.fail_after(60):
        await node.driver.wait_for(condition)


async def pair(w: World, **engine: object) -> tuple[Node, PacedEngine, Node]:
    """A provider with a paced engine, and a client that knows it."""
    paced = PacedEngine(**engine)  # type: ignore[arg-type]
    provider = await w.start(paced)
    client = await w.start(None, provider)
    return provider, paced, client


async def assert_idle(*nodes: Node) -> None:
    """Nothing of any job is left: no run, no job, no stream but the gossip between connected nodes."""
    for node in nodes:
        await settle(node, lambda node=node: node.status()["jobs_running"] == 0 and node.status()["jobs_asked"] == 0)
        await settle(node, lambda node=node: node.status()["streams"] <= 2 * node.status()["peers"])
        engine = node.status()["engine"]
        assert engine is None or engine["runs_active"] == 0
