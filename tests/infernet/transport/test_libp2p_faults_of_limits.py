"""The faults of stock py-libp2p 0.8.1 in what strangers may cost: shown on the stock library, absent from ours.

As in `test_libp2p_faults.py`, each fault has a test on the stock library that keeps the other one honest. Those that
have to wait for many seconds run with `--nightly`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from infernet.node import Node
from infernet.transport import multistream
from infernet.transport import yamux_frames as frames
from infernet.transport.addresses import parse_tcp
from infernet.transport.channel import ChannelBroken
from infernet.transport.connections import ConnectionLimits
from infernet.transport.dial_guard import DialGuard
from infernet.transport.libp2p_host import HostLimits, Libp2pTransport
from infernet.transport.yamux import KEEPALIVE_S, KEEPALIVE_WATCHED_S, PING_TIMEOUT_S, YamuxConnection, YamuxStream
from infernet.transport.yamux_frames import INITIAL_WINDOW_BYTES, header
from infernet.transport.yamux_session import YamuxConfig
from protocol import constants as c
from protocol.codec import encode_message
from protocol.ids import NodeId, peer_id
from protocol.messages import Digest
from protocol.records import Reachability
from tests.helpers_node import config_of_nobody, key_of
from tests.helpers_relay import node as relay_node
from tests.helpers_relay import relay_world
from tests.helpers_stock_libp2p import GOSSIPSUB, StockHost
from tests.helpers_transport import (
    ECHO,
    HOLD,
    PATIENCE_S,
    PROTOCOLS,
    ROOT,
    Libp2pWorld,
    RecordingHandler,
    eventually,
    identity,
    running_world,
    secret,
    shaken,
)

pytestmark = pytest.mark.anyio

# The seed of the stock host's identity: a secp256k1 key with even Y, so that our side can expect it.
STOCK = 50
VIRTUAL_TIME = [("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})]


@pytest.fixture(scope="module")
def shared_stock() -> Iterator[StockHost]:
    """One process for the faults that do not kill it."""
    host = StockHost()
    yield host
    host.close()


@pytest.fixture
def own_stock() -> Iterator[StockHost]:
    """A process that the test may kill or block."""
    host = StockHost()
    yield host
    host.close()


@asynccontextmanager
async def our_node(
    limits: HostLimits | None = None, *, allow_private: bool = False
) -> AsyncIterator[tuple[Libp2pWorld, Libp2pTransport, RecordingHandler]]:
    """A node of ours that listens; the deadline turns a hang into a failure."""
    with trio.fail_after(PATIENCE_S * 3):
        async with running_world(Libp2pWorld) as world:
            assert isinstance(world, Libp2pWorld)
            handler = RecordingHandler()
            yield world, await world.start(1, handler, limits, allow_private=allow_private), handler


async def assert_alive(world: Libp2pWorld, node: Libp2pTransport) -> float:
    """A newcomer can connect and be served; how many seconds that takes."""
    newcomer = await world.start(99, RecordingHandler())
    start_s = trio.current_time()
    await newcomer.dial(node.node_id, node.addresses())
    stream = await newcomer.open_stream(node.node_id, ECHO)
    await stream.send(b"alive?")
    assert await stream.receive() == b"alive?"
    return trio.current_time() - start_s


async def start_stock(stock: StockHost, **options: object) -> tuple[int, str]:
    """Start a stock host with the identity of node STOCK; returns its number and its address."""
    started = await stock.ask(op="start", seed=STOCK, **options)
    return started["host"], started["addresses"][0]


# ---------------------------------------------------------------- 3: a malformed piece of gossip kills the host

BAD_GOSSIP = {
    "no message at all": b"\xff" * 40,
    "half a frame": (1000).to_bytes(4, "big") + b"half",
    "a frame of four gigabytes": b"\xff\xff\xff\xff",
    "a byte that MessagePack does not have": (1).to_bytes(4, "big") + b"\xc1",
    "a message of another protocol": (3).to_bytes(4, "big") + b"\x92\x02\x01",
    "a range that ends before it begins, unfinished": encode_message(
        Digest(NodeId(b"\xff" * 32), NodeId(bytes(32)), ())
    )[:-1],
    "records that are none": (6).to_bytes(4, "big") + b"\x92\x12\x91\x92\xc4\x00",
}


@pytest.mark.slow
async def test_fault_3_a_malformed_piece_of_gossip_kills_a_stock_host(own_stock: StockHost) -> None:
    host, address = await start_stock(own_stock)
    await own_stock.ask(op="gossip", host=host)
    async with shaken(address, identity(STOCK), 2) as channel:
        proposal = multistream.proposal(GOSSIPSUB)
        await channel.send(header(frames.DATA, frames.SYN, 1, len(proposal)) + proposal)
        await channel.send(header(frames.DATA, 0, 1, 6) + b"\x05\xff\xff\xff\xff\xff")
        assert "DecodeError" in await own_stock.died_of()


@pytest.mark.slow
async def test_fault_3_malformed_gossip_costs_its_stream() -> None:
    key = key_of(1)
    transport = Libp2pTransport(
        key.secret_bytes(),
        agent="x",
        protocols=c.PROTOCOLS,
        randomness=random.Random(1),
        listen_hosts=("127.0.0.1",),
        port=0,
        allow_private=True,
    )
    node = Node(config_of_nobody(), key, transport=transport, engine=None)
    with trio.fail_after(PATIENCE_S * 2):
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            for seed, data in enumerate(BAD_GOSSIP.values(), 2):
                async with shaken(transport.addresses()[0], node.node_id, seed) as channel:
                    proposal = multistream.proposal(c.GOSSIP_PROTOCOL)
                    await channel.send(header(frames.DATA, frames.SYN, 1, len(proposal)) + proposal)
                    await channel.send(header(frames.DATA, frames.FIN, 1, len(data)) + data)
                    before = node.status()["bad_frames"]
                    await eventually(lambda: node.status()["bad_frames"] > before, "the bad frame is counted")  # noqa: B023
            await eventually(lambda: not transport.peers())
            async with shaken(transport.addresses()[0], node.node_id, 99):
                await eventually(lambda: transport.peers() == [identity(99)])
            nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- 10: a stalled reader breaks the writer


async def dial_hold(stock: StockHost, node: Libp2pTransport) -> int:
    """Have a stock host connect to a node of ours, and open a stream that nobody reads; the host's number."""
    host, _ = await start_stock(stock)
    address = node.addresses()[0].partition("/p2p/")[0]
    await stock.ask(op="dial", host=host, peer=peer_id(node.node_id), addresses=[address])
    assert await stock.ask(op="open_stream", host=host, peer=peer_id(node.node_id))
    return host


@pytest.mark.nightly
async def test_fault_10_a_stock_writer_gives_up_after_five_seconds(shared_stock: StockHost) -> None:
    async with our_node(allow_private=True) as (_, node, handler):
        await dial_hold(shared_stock, node)
        written = await shared_stock.ask(op="write", size=2**20)
        assert written["outcome"] not in ("written", "waiting")
        assert 4 < written["seconds"] < 8
        handler.release.set()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[YamuxConnection, YamuxConnection, list[YamuxStream]]]:
    """Two ends of a connection in memory, and the streams that the second one is opened."""
    opened: list[YamuxStream] = []
    ends = []
    for stream, initiator in zip(trio.testing.memory_stream_pair(), (True, False), strict=True):
        take = opened.append if not initiator else lambda _: None
        ends.append(YamuxConnection(_Plain(stream), initiator=initiator, config=YamuxConfig(), opened=take))
    with trio.fail_after(7200):
        async with trio.open_nursery() as nursery:
            for end in ends:
                nursery.start_soon(end.run)
            yield ends[0], ends[1], opened
            nursery.cancel_scope.cancel()


class _Plain:
    """A channel without secrecy that can be made to swallow everything, as a cut cable does."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def send(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive(self) -> bytes:
        return bytes(await self._stream.receive_some(65536))

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


@pytest.mark.parametrize("anyio_backend", VIRTUAL_TIME)
async def test_fault_10_a_writer_waits_for_its_reader_and_holds_no_more_than_the_window(
    anyio_backend: tuple[str, dict[str, object]],
) -> None:
    async with pair() as (writing, reading, opened):
        stream = writing.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, bytes(4 * INITIAL_WINDOW_BYTES))
            await trio.sleep(3600)
            assert reading.session.unread_bytes == INITIAL_WINDOW_BYTES
            received = 0
            while received < 4 * INITIAL_WINDOW_BYTES:
                received += len(await opened[0].receive())
        assert writing.lost is None


# ---------------------------------------------------------------- 11: a dead peer is never noticed

NODE_PROGRAM = (
    "import trio; from tests.helpers_transport import *\n"
    "async def main():\n"
    "    async with running_world(Libp2pWorld) as world:\n"
    "        node = await world.start(2, RecordingHandler())\n"
    "        print(node.addresses()[0], flush=True)\n"
    "        await trio.sleep_forever()\n"
    "trio.run(main)\n"
)


@asynccontextmanager
async def process_of_ours() -> AsyncIterator[tuple[trio.Process, str]]:
    """Node 2 in a process of its own, and its address."""
    async with trio.open_nursery() as nursery:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        start = partial(trio.run_process, stdout=subprocess.PIPE, check=False, cwd=ROOT, env=environment)
        process = await nursery.start(start, [sys.executable, "-c", NODE_PROGRAM])
        address = b""
        while not address.endswith(b"\n"):
            address += await process.stdout.receive_some()
        yield process, address.decode().strip()
        process.kill()


@pytest.mark.nightly
async def test_fault_11_a_stock_host_never_misses_a_peer_that_stands_still(shared_stock: StockHost) -> None:
    with trio.fail_after(120):
        async with process_of_ours() as (process, address):
            host, _ = await start_stock(shared_stock)
            peer = peer_id(identity(2))
            await shared_stock.ask(op="dial", host=host, peer=peer, addresses=[address.partition("/p2p/")[0]])
            process.send_signal(signal.SIGSTOP)
            await trio.sleep(KEEPALIVE_S + PING_TIMEOUT_S + 10)
            assert await shared_stock.ask(op="peers", host=host) == [peer]


@pytest.mark.nightly
@pytest.mark.parametrize("waits_for_a_job", [False, True])
async def test_fault_11_a_peer_that_stands_still_is_lost_within_the_stated_time(waits_for_a_job: bool) -> None:
    """The black hole of a real process, stopped: everything is acknowledged by its kernel, and nothing is answered."""
    with trio.fail_after(120):
        async with running_world(Libp2pWorld) as world, process_of_ours() as (process, address):
            node = Libp2pTransport(
                secret(1),
                agent="x",
                protocols=PROTOCOLS,
                randomness=random.Random(1),
                listen_hosts=(),
                allow_private=True,
                watched=(HOLD,),
            )
            handler = RecordingHandler()
            await world._run(node, handler)
            await node.dial(identity(2), [address])
            if waits_for_a_job:
                await node.open_stream(identity(2), HOLD)
            process.send_signal(signal.SIGSTOP)
            start_s = trio.current_time()
            await_s = (KEEPALIVE_WATCHED_S if waits_for_a_job else KEEPALIVE_S) + PING_TIMEOUT_S
            await eventually(lambda: handler.lost, "it is noticed", await_s + 2)
            assert trio.current_time() - start_s > await_s - 1


@pytest.mark.parametrize("anyio_backend", VIRTUAL_TIME)
@pytest.mark.parametrize(("watched", "within_s"), [(False, 25.0), (True, 15.0)])
async def test_fault_11_a_cut_cable_is_noticed_within_the_stated_time(
    anyio_backend: tuple[str, dict[str, object]], watched: bool, within_s: float
) -> None:
    ours, cut = trio.testing.memory_stream_pair()
    connection = YamuxConnection(_Plain(ours), initiator=True, config=YamuxConfig(), opened=lambda _: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        stream = connection.open_stream()
        if watched:
            stream.watch()
        start_s = trio.current_time()
        with contextlib.suppress(Exception):
            await stream.receive()
        assert trio.current_time() - start_s == pytest.approx(within_s)
        assert connection.lost
    await cut.aclose()


# ---------------------------------------------------------------- 12: idle sockets block everybody

IDLE_SOCKETS = 300


@asynccontextmanager
async def idle_sockets(address: str, count: int) -> AsyncIterator[None]:
    """Connections of one machine that say nothing."""
    endpoint = parse_tcp(address)
    async with AsyncExitStack() as stack:
        for _ in range(count):
            stream = await trio.open_tcp_stream(endpoint.host, endpoint.port, local_address="127.0.7.7")
            await stack.enter_async_context(stream)
        yield


@pytest.mark.slow
async def test_fault_12_idle_sockets_keep_everybody_out_of_a_stock_host(own_stock: StockHost) -> None:
    _, address = await start_stock(own_stock)
    async with idle_sockets(address, IDLE_SOCKETS):
        with trio.fail_after(PATIENCE_S), pytest.raises((ChannelBroken, OSError)):
            await shaken(address, identity(STOCK), 2).__aenter__()


async def test_fault_12_idle_sockets_of_one_machine_keep_nobody_out() -> None:
    async with our_node() as (world, node, _), idle_sockets(node.addresses()[0], IDLE_SOCKETS):
        assert await assert_alive(world, node) < 2


# ---------------------------------------------------------------- 13: every known address is dialled


@pytest.mark.nightly
async def test_fault_13_a_stock_host_dials_whomever_it_has_heard_of(shared_stock: StockHost) -> None:
    async with our_node(allow_private=True) as (_, node, handler):
        host, _ = await start_stock(shared_stock)
        address = node.addresses()[0].partition("/p2p/")[0]
        await shared_stock.ask(op="remember", host=host, peer=peer_id(node.node_id), address=address)
        await eventually(lambda: handler.infos, "it dials")


@pytest.mark.slow
async def test_fault_13_nobody_is_dialled_because_of_what_others_say(shared_stock: StockHost) -> None:
    """Not even the addresses that a peer gives of itself when it identifies itself; to dial is the node's decision."""
    dialled: list[str] = []

    async def connect(host: str, port: int) -> trio.SocketStream:
        dialled.append(f"{host}:{port}")
        raise ConnectionRefusedError

    with trio.fail_after(PATIENCE_S * 2):
        async with running_world(Libp2pWorld) as world:
            node = Libp2pTransport(
                secret(1),
                agent="x",
                protocols=PROTOCOLS,
                randomness=random.Random(1),
                listen_hosts=("127.0.0.1",),
                port=0,
                dial_guard=DialGuard(allow_private=True, connect=connect),
            )
            handler = RecordingHandler()
            await world._run(node, handler)
            host, _ = await start_stock(shared_stock)
            address = node.addresses()[0].partition("/p2p/")[0]
            await shared_stock.ask(op="dial", host=host, peer=peer_id(node.node_id), addresses=[address])
            assert (await shared_stock.ask(op="identify", host=host, peer=peer_id(node.node_id)))["agent"] == "x"
            await node.disconnect(handler.infos[0].peer)
            await eventually(lambda: not node.peers())
            assert dialled == []


# ---------------------------------------------------------------- 14: everybody is reached, says a dial-back

NOBODY = "/ip4/127.0.0.1/tcp/1025"


@pytest.mark.slow
async def test_fault_14_a_stock_host_reaches_an_address_where_nobody_listens(own_stock: StockHost) -> None:
    server, address = await start_stock(own_stock)
    client = (await own_stock.ask(op="start", seed=STOCK + 2))["host"]
    bare = address.partition("/p2p/")[0]
    assert "seconds" in await own_stock.ask(op="dial", host=client, peer=peer_id(identity(STOCK)), addresses=[bare])
    assert await own_stock.ask(op="dial_back", server=server, client=client, address=NOBODY) == 0


async def test_fault_14_a_standing_connection_proves_nothing_about_an_address() -> None:
    async with relay_world() as world:
        ours, hidden = relay_node(1), relay_node(2, listens=False)
        handler = await world.run(ours)
        await world.run(hidden)
        await hidden.dial(ours.node_id, ours.addresses())
        await eventually(lambda: handler.infos)
        reachability, _ = await ours.dial_back(hidden.node_id, NOBODY)
        assert reachability is Reachability.NOT_REACHED


# ---------------------------------------------------------------- 16: IPv6 peers come from nowhere


@pytest.mark.slow
async def test_fault_16_a_stock_host_does_not_see_where_ipv6_peers_come_from(shared_stock: StockHost) -> None:
    host, address = await start_stock(shared_stock, ip="/ip6/::1")
    async with shaken(address, identity(STOCK), 2):
        assert await shared_stock.ask(op="remote_addresses", host=host) == [None]


async def test_fault_16_caps_hold_for_ipv6_peers() -> None:
    with trio.fail_after(PATIENCE_S * 2):
        async with running_world(Libp2pWorld) as world, AsyncExitStack() as stack:
            node = Libp2pTransport(
                secret(1),
                agent="x",
                protocols=PROTOCOLS,
                randomness=random.Random(1),
                listen_hosts=("::1",),
                port=0,
                limits=HostLimits(ConnectionLimits(per_host_max=2)),
            )
            handler = RecordingHandler()
            await world._run(node, handler)
            for seed in (2, 3):
                await stack.enter_async_context(shaken(node.addresses()[0], node.node_id, seed))
            await eventually(lambda: len(handler.infos) == 2)
            with pytest.raises(ChannelBroken):
                await shaken(node.addresses()[0], node.node_id, 4).__aenter__()
            assert node.statistics().connections_refused == 1
            assert all(str(info.remote_address).startswith("/ip6/::1/tcp/") for info in handler.infos)


# ---------------------------------------------------------------- 17: closing takes a while for each connection


@pytest.mark.slow
async def test_fault_17_a_stock_host_closes_its_connections_one_after_the_other(own_stock: StockHost) -> None:
    host, address = await start_stock(own_stock)
    async with AsyncExitStack() as stack:
        for seed in range(2, 12):
            await stack.enter_async_context(shaken(address, identity(STOCK), seed))
        assert await own_stock.ask(op="close", host=host) > 1


async def test_fault_17_all_connections_are_closed_at_once() -> None:
    async with our_node(allow_private=True) as (world, node, handler), AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(shaken(node.addresses()[0], node.node_id, n)) for n in range(2, 42)]
        await eventually(lambda: len(handler.infos) == 40)
        start_s = trio.current_time()
        world.kill(node)
        for channel in channels:
            with contextlib.suppress(ChannelBroken):
                while await channel.receive():
                    pass
        assert trio.current_time() - start_s < 1
