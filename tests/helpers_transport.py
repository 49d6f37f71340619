"""Nodes for transport tests: secrets, a handler that remembers, and two worlds in which the contract must hold."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import coincurve
import trio

from infernet.transport import multistream
from infernet.transport.addresses import parse
from infernet.transport.contract import ConnectionInfo, Handler, Stream, StreamBroken, Transport
from infernet.transport.libp2p_host import HostLimits, Libp2pTransport
from infernet.transport.libp2p_library import Identity
from infernet.transport.memory import PIPE_BYTES, MemoryNetwork, MemoryTransport
from infernet.transport.noise_channel import NoiseChannel, secure_outbound
from infernet.transport.yamux_frames import INITIAL_WINDOW_BYTES
from protocol.ids import NodeId, node_id

ROOT: Final = Path(__file__).resolve().parent.parent

ECHO: Final = "/test/echo/1"
SINK: Final = "/test/sink/1"
FAIL: Final = "/test/fail/1"
HOLD: Final = "/test/hold/1"
PROTOCOLS: Final = (ECHO, SINK, FAIL, HOLD)

# No condition of these tests takes a second; a loaded machine may take many times that.
PATIENCE_S: Final = 20.0

_CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def secret(seed: int) -> bytes:
    """A node's secret, already normalised to even Y."""
    plain = seed.to_bytes(32, "big")
    if coincurve.PrivateKey(plain).public_key.format()[0] == 2:
        return plain
    return (_CURVE_ORDER - seed).to_bytes(32, "big")


def odd_secret(seed: int) -> bytes:
    """The secret of the same x coordinate whose public key has odd Y: no node may have it."""
    return (_CURVE_ORDER - int.from_bytes(secret(seed), "big")).to_bytes(32, "big")


def identity(seed: int) -> NodeId:
    """The node id of `secret(seed)`."""
    return node_id(coincurve.PrivateKey(secret(seed)).public_key.format()[1:])


async def eventually(
    condition: Callable[[], object], what: str = "the condition", within_s: float = PATIENCE_S
) -> None:
    """Wait until something holds; fail when it takes too long."""
    deadline_s = trio.current_time() + within_s
    while not condition():
        assert trio.current_time() < deadline_s, f"{what} did not come about"
        await trio.sleep(0.001)


class RecordingHandler:
    """Remembers what the transport tells, and serves the four test protocols."""

    def __init__(self) -> None:
        self.infos: list[ConnectionInfo] = []
        self.lost: list[NodeId] = []
        # How each stream of SINK or HOLD ended: "end" or why it broke.
        self.endings: list[str] = []
        self.received_bytes = 0
        self.serving = 0
        self.held: list[Stream] = []
        self.release = trio.Event()

    def connected(self, info: ConnectionInfo) -> None:
        self.infos.append(info)

    def disconnected(self, peer: NodeId) -> None:
        self.lost.append(peer)

    async def stream_opened(self, stream: Stream) -> None:
        self.serving += 1
        try:
            if stream.protocol == ECHO:
                while data := await stream.receive():
                    await stream.send(data)
            elif stream.protocol == FAIL:
                raise RuntimeError("the handler's own mistake")
            else:
                self.held.append(stream)
                if stream.protocol == HOLD:
                    await self.release.wait()
                await self._drain(stream)
        finally:
            self.serving -= 1

    async def _drain(self, stream: Stream) -> None:
        try:
            while data := await stream.receive():
                self.received_bytes += len(data)
        except StreamBroken as error:
            self.endings.append(str(error))
            raise
        self.endings.append("end")


class World:
    """Somewhere that nodes can run. `start` returns when the node listens."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: dict[NodeId, trio.CancelScope] = {}

    async def start(self, seed: int, handler: Handler) -> Transport:
        """Run a node with `identity(seed)` and PROTOCOLS."""
        raise NotImplementedError

    def capacity_bytes(self, protocol: str) -> int:
        """How much fits into a stream that nobody reads."""
        raise NotImplementedError

    def kill(self, transport: Transport) -> None:
        """End a node without farewell."""
        self._scopes[transport.node_id].cancel()

    async def _run(self, transport: Transport, handler: Handler) -> None:
        async def run(task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as scope:
                self._scopes[transport.node_id] = scope
                await transport.run(handler, task_status=task_status)

        await self._nursery.start(run)


class MemoryWorld(World):
    """Nodes of one `MemoryNetwork`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__(nursery)
        self._network = MemoryNetwork()

    def capacity_bytes(self, protocol: str) -> int:
        return PIPE_BYTES

    async def start(self, seed: int, handler: Handler) -> MemoryTransport:
        transport = self._network.transport(identity(seed), protocols=PROTOCOLS)
        await self._run(transport, handler)
        return transport


class Libp2pWorld(World):
    """Nodes on loopback TCP, each on a free port."""

    def capacity_bytes(self, protocol: str) -> int:
        return INITIAL_WINDOW_BYTES - len(multistream.proposal(protocol))

    async def start(
        self, seed: int, handler: Handler, limits: HostLimits | None = None, *, allow_private: bool = True
    ) -> Libp2pTransport:
        transport = libp2p_transport(seed, limits=limits, allow_private=allow_private)
        await self._run(transport, handler)
        return transport


def libp2p_transport(
    seed: int, *, port: int = 0, limits: HostLimits | None = None, allow_private: bool = True
) -> Libp2pTransport:
    """A transport that listens on 127.0.0.1 only."""
    return Libp2pTransport(
        secret(seed),
        agent="infernet/test",
        protocols=PROTOCOLS,
        randomness=random.Random(seed),
        listen_hosts=("127.0.0.1",),
        port=port,
        limits=limits,
        allow_private=allow_private,
    )


@asynccontextmanager
async def running_world(kind: type[World]) -> AsyncIterator[World]:
    """A world whose nodes are all ended on leaving."""
    async with trio.open_nursery() as nursery:
        yield kind(nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def shaken(address: str, peer: NodeId, seed: int) -> AsyncIterator[NoiseChannel]:
    """A stranger that has dialled, has proven an identity, and may now say any bytes at all."""
    endpoint = parse(address)
    async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
        yield await secure_outbound(stream, Identity(secret(seed)), peer)


async def read_to_end(stream: Stream) -> bytes:
    """Everything until the peer finishes."""
    received = bytearray()
    while data := await stream.receive():
        received += data
    return bytes(received)
