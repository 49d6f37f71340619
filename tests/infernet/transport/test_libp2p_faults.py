"""The faults of stock py-libp2p 0.8.1 that any stranger can use: shown on the stock library, absent from ours.

Each fault has two tests. The one on the stock library keeps the other honest: the same attack, seen to work. When a
new version of the library no longer has a fault, its stock test fails and both can go.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.security.insecure.transport import make_exchange_message
from structlog.testing import capture_logs

from infernet.transport import multistream
from infernet.transport import yamux_frames as frames
from infernet.transport.addresses import parse, tcp_multiaddr
from infernet.transport.channel import ByteReader, ChannelBroken
from infernet.transport.connections import ConnectionLimits
from infernet.transport.contract import PortTaken, StreamBroken
from infernet.transport.libp2p_host import HostLimits, Libp2pTransport
from infernet.transport.libp2p_library import Identity
from infernet.transport.libp2p_stream import agree
from infernet.transport.multistream import MultistreamError, ProtocolRefused
from infernet.transport.noise_channel import NoiseChannel, secure_inbound
from infernet.transport.yamux import YamuxConnection, YamuxStream
from infernet.transport.yamux_frames import INITIAL_WINDOW_BYTES, header
from infernet.transport.yamux_session import YamuxConfig
from protocol.ids import NodeId, peer_id
from tests.helpers_stock_libp2p import StockHost
from tests.helpers_transport import (
    ECHO,
    FAIL,
    HOLD,
    PATIENCE_S,
    Libp2pWorld,
    RecordingHandler,
    eventually,
    identity,
    libp2p_transport,
    running_world,
    secret,
    shaken,
)

pytestmark = pytest.mark.anyio

# The seed of the stock host's identity: a secp256k1 key with even Y, so that our side can expect it.
STOCK = 50
DEAD_ADDRESS = "/ip4/127.0.0.1/tcp/1"


@pytest.fixture(scope="module")
def shared_stock() -> Iterator[StockHost]:
    """One process for the faults that do not kill it."""
    host = StockHost()
    yield host
    host.close()


@pytest.fixture
def doomed_stock() -> Iterator[StockHost]:
    """A process that the test may kill."""
    host = StockHost()
    yield host
    host.close()


@asynccontextmanager
async def our_node(
    limits: HostLimits | None = None,
) -> AsyncIterator[tuple[Libp2pWorld, Libp2pTransport, RecordingHandler]]:
    """A node of ours that listens; the deadline turns a hang into a failure."""
    with trio.fail_after(PATIENCE_S * 2):
        async with running_world(Libp2pWorld) as world:
            assert isinstance(world, Libp2pWorld)
            handler = RecordingHandler()
            yield world, await world.start(1, handler, limits), handler


async def assert_alive(world: Libp2pWorld, node: Libp2pTransport, seed: int = 99) -> None:
    """A newcomer can connect and be served."""
    newcomer = await world.start(seed, RecordingHandler())
    await newcomer.dial(node.node_id, node.addresses())
    stream = await newcomer.open_stream(node.node_id, ECHO)
    await stream.send(b"alive?")
    assert await stream.receive() == b"alive?"


async def start_stock(stock: StockHost, **limits: int) -> tuple[int, str]:
    """Start a stock host with the identity of node STOCK; returns its number and its address."""
    started = await stock.ask(op="start", seed=STOCK, **limits)
    return started["host"], started["addresses"][0]


# ---------------------------------------------------------------- 1: a stranger's bytes kill the host

# A stream whose first token is not UTF-8.
KILLER = header(frames.DATA, frames.SYN, 1, 4) + b"\x03\xff\xfe\n"


@pytest.mark.slow
async def test_fault_1_four_bytes_kill_a_stock_host(doomed_stock: StockHost) -> None:
    _, address = await start_stock(doomed_stock)
    async with shaken(address, identity(STOCK), 2) as channel:
        await channel.send(KILLER)
        assert "UnicodeDecodeError" in await doomed_stock.died_of()


async def test_fault_1_bad_text_on_a_stream_costs_the_stream() -> None:
    async with our_node() as (world, node, _), shaken(node.addresses()[0], node.node_id, 2) as channel:
        await channel.send(KILLER)
        await receive_until(channel, header(frames.WINDOW_UPDATE, frames.RESET, 1, 0))
        await assert_alive(world, node)
        assert identity(2) in node.peers()


# ---------------------------------------------------------------- 2: a handler's exception kills the host


async def receive_until(channel: NoiseChannel, expected: bytes) -> None:
    """Read until something has come."""
    received = b""
    with trio.fail_after(PATIENCE_S):
        while expected not in received:
            received += await channel.receive()


async def open_raw(channel: NoiseChannel, protocol: str) -> None:
    """Open stream 1 under a protocol, by hand."""
    proposal = multistream.proposal(protocol)
    await channel.send(header(frames.DATA, frames.SYN, 1, len(proposal)) + proposal)


@pytest.mark.slow
async def test_fault_2_an_exception_in_a_handler_kills_a_stock_host(doomed_stock: StockHost) -> None:
    _, address = await start_stock(doomed_stock)
    async with shaken(address, identity(STOCK), 2) as channel:
        await open_raw(channel, FAIL)
        assert "the handler's own mistake" in await doomed_stock.died_of()


async def test_fault_2_an_exception_in_a_handler_costs_the_stream() -> None:
    async with our_node() as (world, node, _):
        with capture_logs() as logged:
            async with shaken(node.addresses()[0], node.node_id, 2) as channel:
                await open_raw(channel, FAIL)
                await receive_until(channel, header(frames.WINDOW_UPDATE, frames.RESET, 1, 0))
        assert [line["protocol"] for line in logged if line["event"] == "stream.failed"] == [FAIL]
        await assert_alive(world, node)


# ---------------------------------------------------------------- 4: anyone can claim to be anyone

VICTIM = 66


@asynccontextmanager
async def impersonating(address: str) -> AsyncIterator[None]:
    """Speak plaintext, which proves nothing, and claim the victim's public key."""
    endpoint = parse(address)
    async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
        reader = ByteReader(stream.receive_some)
        await stream.send_all(multistream.proposal("/plaintext/2.0.0"))
        await multistream.confirm(reader, "/plaintext/2.0.0")
        claim = make_exchange_message(create_new_key_pair(secret(VICTIM)).public_key).SerializeToString()
        await stream.send_all(bytes([len(claim)]) + claim)
        await reader.read((await reader.read(1))[0])
        await stream.send_all(multistream.proposal(frames.PROTOCOL))
        await multistream.confirm(reader, frames.PROTOCOL)
        yield


@pytest.mark.slow
async def test_fault_4_a_stock_host_takes_an_impostor_for_the_victim(shared_stock: StockHost) -> None:
    host, address = await start_stock(shared_stock)
    async with impersonating(address):
        assert await shared_stock.ask(op="peers", host=host, wait=True) == [peer_id(identity(VICTIM))]


async def test_fault_4_nothing_but_noise_is_spoken() -> None:
    async with our_node() as (world, node, handler):
        with pytest.raises(ProtocolRefused):
            await impersonating(node.addresses()[0]).__aenter__()
        assert handler.infos == []
        await assert_alive(world, node)


# ---------------------------------------------------------------- 5: past connections count for ever

CONNECTIONS_MAX = 6
STOCK_LIMITS = {
    "max_connections": CONNECTIONS_MAX,
    "high_watermark": CONNECTIONS_MAX,
    "low_watermark": 0,
    "min_connections": 0,
}


async def connect_and_leave(address: str, peer: NodeId, times: int) -> int:
    """How many of so many connections, one after the other, are accepted."""
    accepted = 0
    for _ in range(times):
        with contextlib.suppress(ChannelBroken), trio.move_on_after(PATIENCE_S):
            async with shaken(address, peer, 2):
                accepted += 1
    return accepted


@pytest.mark.slow
async def test_fault_5_a_stock_host_locks_everybody_out_after_a_while(shared_stock: StockHost) -> None:
    _, address = await start_stock(shared_stock, **STOCK_LIMITS)
    assert await connect_and_leave(address, identity(STOCK), 2 * CONNECTIONS_MAX) == CONNECTIONS_MAX


async def test_fault_5_only_connections_that_stand_count() -> None:
    async with our_node(HostLimits(ConnectionLimits(total_max=CONNECTIONS_MAX))) as (world, node, _):
        for _ in range(5):
            accepted = await connect_and_leave(node.addresses()[0], node.node_id, CONNECTIONS_MAX)
            assert accepted == CONNECTIONS_MAX
            await eventually(lambda: not node.peers())
        await assert_alive(world, node)


async def test_fault_5_beyond_the_cap_connections_are_refused_until_one_ends() -> None:
    async with our_node(HostLimits(ConnectionLimits(total_max=2))) as (world, node, _):
        address = node.addresses()[0]
        async with shaken(address, node.node_id, 3):
            async with shaken(address, node.node_id, 2):
                with pytest.raises(ChannelBroken):
                    await shaken(address, node.node_id, 4).__aenter__()
                assert node.statistics().connections_refused == 1
            await eventually(lambda: len(node.peers()) == 1)
            await assert_alive(world, node)


# ---------------------------------------------------------------- 6: every dial takes 250 ms


@pytest.mark.slow
async def test_fault_6_a_stock_dial_waits_a_quarter_of_a_second(shared_stock: StockHost) -> None:
    async with our_node() as (_, node, _handler):
        host, _ = await start_stock(shared_stock)
        dialled = await shared_stock.ask(
            op="dial", host=host, peer=peer_id(node.node_id), addresses=bare(node.addresses())
        )
        assert dialled["seconds"] >= 0.25


async def test_fault_6_a_dial_takes_as_long_as_its_handshake() -> None:
    async with our_node() as (world, node, _):
        dialler = await world.start(2, RecordingHandler())
        times_s = []
        for _ in range(5):
            start_s = trio.current_time()
            await dialler.dial(node.node_id, node.addresses())
            times_s.append(trio.current_time() - start_s)
            await dialler.disconnect(node.node_id)
        assert min(times_s) < 0.1


# ---------------------------------------------------------------- 7: one address is tried


def bare(addresses: list[str]) -> list[str]:
    """Without the peer, as the stock library's peer store wants them."""
    return [address.partition("/p2p/")[0] for address in addresses]


@pytest.mark.slow
async def test_fault_7_a_stock_dial_gives_up_after_a_dead_address(shared_stock: StockHost) -> None:
    async with our_node() as (_, node, _handler):
        host, _ = await start_stock(shared_stock)
        (live,) = bare(node.addresses())
        dial = partial(shared_stock.ask, op="dial", host=host, peer=peer_id(node.node_id))
        assert "error" in await dial(addresses=[DEAD_ADDRESS, live])
        # And then the peer is blacklisted, so that the right address alone does not help either.
        assert "error" in await dial(addresses=[live])


async def test_fault_7_a_dead_address_does_not_hide_a_live_one() -> None:
    async with our_node() as (world, node, _):
        dialler = await world.start(2, RecordingHandler())
        await dialler.dial(node.node_id, [DEAD_ADDRESS, *node.addresses()])
        await dialler.disconnect(node.node_id)
        await dialler.dial(node.node_id, [*node.addresses(), DEAD_ADDRESS])
        assert dialler.peers() == [node.node_id]


# ---------------------------------------------------------------- 8: receive windows are not enforced


async def overrun(channel: NoiseChannel, total_bytes: int) -> None:
    """Push bytes into a stream that nobody reads, whatever has been granted."""
    await open_raw(channel, HOLD)
    piece = bytes(60_000)
    for _ in range(total_bytes // len(piece)):
        await channel.send(header(frames.DATA, 0, 1, len(piece)) + piece)


@pytest.mark.slow
async def test_fault_8_a_stock_host_takes_any_amount_unread(shared_stock: StockHost) -> None:
    host, address = await start_stock(shared_stock)
    before = await shared_stock.ask(op="memory")
    async with shaken(address, identity(STOCK), 2) as channel:
        await overrun(channel, 40_000_000)
        await channel.send(header(frames.PING, frames.SYN, 0, 7))
        await receive_until(channel, header(frames.PING, frames.ACK, 0, 7))
        assert await shared_stock.ask(op="peers", host=host) == [peer_id(identity(2))]
        assert await shared_stock.ask(op="memory") - before > 30_000_000


async def test_fault_8_whoever_overruns_a_window_is_disconnected() -> None:
    async with our_node() as (world, node, handler):
        async with shaken(node.addresses()[0], node.node_id, 2) as channel:
            with pytest.raises(ChannelBroken):
                await overrun(channel, 40_000_000)
        await eventually(lambda: handler.lost == [identity(2)])
        handler.release.set()
        await eventually(lambda: handler.endings)
        assert handler.received_bytes <= INITIAL_WINDOW_BYTES
        await assert_alive(world, node)


# ---------------------------------------------------------------- 9: cancelling a write corrupts the connection


class PausingChannel:
    """A channel whose reader stands still until `flowing`, so that the other end's socket fills up."""

    def __init__(self, channel: NoiseChannel) -> None:
        self._channel = channel
        self.send = channel.send
        self.aclose = channel.aclose
        self.flowing = trio.Event()
        self.flowing.set()

    async def receive(self) -> bytes:
        await self.flowing.wait()
        return await self._channel.receive()


class GenerousServer:
    """Grants a quarter of a gigabyte for each stream; reads nothing while it is paused."""

    def __init__(self) -> None:
        self.address = ""
        self.connections: list[PausingChannel] = []
        self.agreed = 0

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            (listener,) = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
            self.address = tcp_multiaddr(*listener.socket.getsockname()[:2])
            task_status.started()

    async def _serve(self, stream: trio.SocketStream) -> None:
        channel = PausingChannel(await secure_inbound(stream, Identity(secret(GENEROUS))))
        self.connections.append(channel)
        config = YamuxConfig(window_bytes=2**28)
        await YamuxConnection(channel, initiator=False, config=config, opened=self._opened).run()

    def _opened(self, stream: YamuxStream) -> None:
        self._nursery.start_soon(self._agree, stream)

    async def _agree(self, stream: YamuxStream) -> None:
        # A stock host asks for identify first, and then breaks off.
        with contextlib.suppress(StreamBroken, ChannelBroken, MultistreamError):
            await agree(stream, identity(GENEROUS), {HOLD})
            self.agreed += 1


GENEROUS = 77


@asynccontextmanager
async def generous_server() -> AsyncIterator[GenerousServer]:
    """Run one; the deadline turns a hang into a failure."""
    with trio.fail_after(PATIENCE_S * 2):
        async with trio.open_nursery() as nursery:
            server = GenerousServer()
            await nursery.start(server.run)
            yield server
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_fault_9_a_cancelled_write_ruins_a_stock_connection(shared_stock: StockHost) -> None:
    async with generous_server() as server:
        host, _ = await start_stock(shared_stock)
        peer = peer_id(identity(GENEROUS))
        await shared_stock.ask(op="dial", host=host, peer=peer, addresses=[server.address])
        assert await shared_stock.ask(op="open_stream", host=host, peer=peer)
        server.connections[0].flowing = trio.Event()
        assert await shared_stock.ask(op="block_and_cancel")
        server.connections[0].flowing.set()
        assert not await shared_stock.ask(op="open_stream", host=host, peer=peer)


async def test_fault_9_a_cancelled_send_harms_its_stream_only() -> None:
    async with generous_server() as server, our_node() as (_, node, _handler):
        await node.dial(identity(GENEROUS), [server.address])
        stream = await node.open_stream(identity(GENEROUS), HOLD)
        await eventually(lambda: server.agreed == 1)
        server.connections[0].flowing = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, bytes(2**26))
            await eventually(lambda: node.statistics().bytes_out > 2**17)
            await trio.testing.wait_all_tasks_blocked(0.1)
            nursery.cancel_scope.cancel()
        server.connections[0].flowing.set()
        with pytest.raises(StreamBroken):
            await stream.send(b"x")
        await node.open_stream(identity(GENEROUS), HOLD)
        await eventually(lambda: server.agreed == 2)
        assert len(server.connections) == 1


# ---------------------------------------------------------------- 15: a taken port goes unnoticed


@pytest.mark.slow
async def test_fault_15_two_stock_hosts_share_a_port_without_knowing(shared_stock: StockHost) -> None:
    _, address = await start_stock(shared_stock)
    second = await shared_stock.ask(op="start", seed=STOCK + 1, port=parse(address).port)
    assert second["addresses"][0].partition("/p2p/")[0] == address.partition("/p2p/")[0]


async def test_fault_15_a_second_node_on_a_port_does_not_start() -> None:
    async with our_node() as (_, node, _handler):
        second = libp2p_transport(2, port=parse(node.addresses()[0]).port)
        with pytest.raises(PortTaken):
            await second.run(RecordingHandler())
