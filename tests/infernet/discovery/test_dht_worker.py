"""infernet/discovery/dht_worker.py and dht_host.py: real DHT processes find each other's providers, and survive.

Against the real library, in real processes on loopback.
"""

from __future__ import annotations

import contextlib
import socket
import time

import psutil
import pytest
import trio

from infernet.discovery.dht_frames import Begun, Meet, NotBegun, Ping, Publish, Search
from infernet.discovery.dht_records import KAD_PROTOCOL, heartbeat_key, model_key
from infernet.transport import yamux_frames as frames
from infernet.transport.channel import ChannelBroken
from infernet.transport.contract import StreamBroken
from infernet.transport.noise_channel import NoiseChannel
from infernet.transport.yamux_frames import header
from protocol.ids import NodeId, node_id_from_peer_id
from tests.helpers_dht import PATIENCE_S, Worker, begin, published, run_worker, until, workers
from tests.helpers_records import PROVIDER, signing_key
from tests.helpers_transport import Libp2pWorld, RecordingHandler, running_world, shaken

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

KEY = model_key("tiny-135m")
OTHER = signing_key("other provider")
# A stream whose first token is not UTF-8: a stock host dies of it.
KILLER = header(frames.DATA, frames.SYN, 1, 4) + b"\x03\xff\xfe\n"


def place(worker: Worker) -> tuple[str, NodeId]:
    """Where a worker listens, and who it is."""
    address, _, peer = worker.addresses[0].rpartition("/p2p/")
    return address, node_id_from_peer_id(peer)


async def search(worker: Worker, key: bytes = KEY) -> None:
    """Ask until something is found: a provider tells a few peers, and they have to be found first."""
    with trio.fail_after(PATIENCE_S):
        while not any(found.record for found in worker.found()):
            worker.post(Search(key))
            with trio.move_on_after(2):
                await until(lambda: any(found.record for found in worker.found()))


async def test_five_processes_find_a_provider_of_a_model_and_its_heartbeat() -> None:
    async with workers(5) as (first, second, third, fourth, fifth):
        address, record = published(PROVIDER)
        second.post(Publish(PROVIDER.node, (address,), record, (KEY,)))
        other_address, other_record = published(OTHER)
        third.post(Publish(OTHER.node, (other_address,), other_record, (model_key("other"),)))
        for worker in (first, fourth, fifth):
            await search(worker)
            assert {found.node for found in worker.found()} == {PROVIDER.node}
            assert {found.addresses for found in worker.found()} <= {(address,), ()}
            assert {found.record for found in worker.found()} == {None, record}
        for worker in (first, second, third, fourth, fifth):
            worker.post(Ping(1))
        await until(lambda: all(worker.pongs() for worker in (first, second, third, fourth, fifth)))
        assert all(worker.pongs()[0].peers for worker in (first, second, third, fourth, fifth))
        # A model that nobody serves is found nowhere, and says nothing.
        fourth.reports.clear()
        fourth.post(Search(model_key("nobody's")))
        fourth.post(Ping(2))
        await until(fourth.pongs)
        assert fourth.found() == []


async def test_what_kills_a_stock_host_costs_a_stream() -> None:
    async with workers(2) as (victim, other):
        address, node = place(victim)
        posted, record = published(PROVIDER)
        victim.post(Publish(PROVIDER.node, (posted,), record, (KEY,)))
        async with shaken(address, node, 2) as channel:
            await channel.send(KILLER)
            # It reads and answers everything; the stranger stays to see what becomes of it.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_all, channel)
                await search(other)
                nursery.cancel_scope.cancel()
        for _ in range(3):
            async with shaken(address, node, 3) as channel:
                await channel.send(bytes(64))
        garbage = [b"GET / HTTP/1.1\r\n\r\n", b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\xff\xff", bytes(1000)]
        host, port = address.split("/")[2], int(address.split("/")[4])
        for data in garbage:
            with socket.create_connection((host, port)) as connection:
                connection.sendall(data)
        victim.post(Ping(1))
        await until(victim.pongs)
        assert not victim.is_gone


async def _read_all(channel: NoiseChannel) -> None:
    with contextlib.suppress(ChannelBroken):
        while await channel.receive():
            pass


async def test_idle_connections_do_not_lock_others_out() -> None:
    async with workers(1) as (victim,):
        address, node = place(victim)
        host, port = address.split("/")[2], int(address.split("/")[4])
        with contextlib.ExitStack() as idle:
            for _ in range(100):
                idle.enter_context(socket.create_connection((host, port)))
            await _is_served(address, node, 2)
        # Far more than the library has places for, which it gives back only when it ends.
        for number in range(70):
            async with shaken(address, node, 100 + number):
                pass
        await _is_served(address, node, 3)
        assert not victim.is_gone


async def _is_served(address: str, node: NodeId, seed: int) -> None:
    """A newcomer gets an answer."""
    async with shaken(address, node, seed) as channel:
        await channel.send(header(frames.PING, frames.SYN, 0, 7))
        with trio.fail_after(PATIENCE_S):
            await channel.receive()


async def test_it_keeps_what_is_a_nodes_own_word_and_nothing_else() -> None:
    from infernet.discovery import dht_host

    validator = dht_host._HeartbeatValidator()
    _, record = published(PROVIDER)
    validator.validate(heartbeat_key(PROVIDER.node), record)
    for key, value in ((heartbeat_key(OTHER.node), record), (heartbeat_key(PROVIDER.node), b"x"), ("/pk/x", record)):
        with pytest.raises(dht_host.InvalidRecordType):
            validator.validate(key, value)
    assert validator.select("", [b"x", record, b"y"]) == 1


async def test_strangers_addresses_of_no_internet_host_are_not_dialled() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0)
        async with trio.open_nursery() as nursery:
            worker: Worker = await nursery.start(run_worker, begin(allow_private=False))
            port = bait.getsockname()[1]
            worker.post(Meet((worker.addresses[0].replace(worker.addresses[0].split("/")[4], str(port)),)))
            worker.post(Meet((f"/ip4/127.0.0.1/tcp/{port}/p2p/16Uiu2HAmKdMZQPJYCBmMbmhvVqSqP2wVzNQNdAahSPJkYLHDvAnM",)))
            worker.post(Meet(("nonsense", "/p2p/x", "/ip4/1.2.3.4/p2p/")))
            # Long enough for what came before to be done.
            for number in range(50):
                worker.post(Ping(number))
                await until(lambda number=number: len(worker.pongs()) > number)
            with pytest.raises(BlockingIOError):
                bait.accept()
            nursery.cancel_scope.cancel()


async def test_a_process_that_is_not_to_be_found_opens_no_port() -> None:
    async with trio.open_nursery() as nursery:
        worker: Worker = await nursery.start(run_worker, begin(announced=False))
        assert worker.reports == [Begun(())]
        assert [c for c in psutil.Process(worker.process.pid).net_connections() if c.status == psutil.CONN_LISTEN] == []
        nursery.cancel_scope.cancel()


async def test_a_taken_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with trio.open_nursery() as nursery:
            port = taken.getsockname()[1]
            worker: Worker = await nursery.start(run_worker, begin(port=port))
            await until(lambda: worker.is_gone)
            reason = "address already in use"
            text = f"the DHT cannot listen on 127.0.0.1, port {port} ({reason}): choose another --dht-port"
            assert worker.reports == [NotBegun(text)]
            nursery.cancel_scope.cancel()


async def test_it_ends_with_the_node_and_speaks_a_private_protocol() -> None:
    async with trio.open_nursery() as nursery:
        worker: Worker = await nursery.start(run_worker, begin())
        address, node = place(worker)
        assert await _speaks(address, node, KAD_PROTOCOL)
        assert not await _speaks(address, node, "/ipfs/kad/1.0.0")
        ended_s = time.monotonic()
        stdin = worker.process._process.stdin
        assert stdin is not None
        await stdin.aclose()
        await until(lambda: worker.is_gone)
        assert time.monotonic() - ended_s < 10
        nursery.cancel_scope.cancel()


async def _speaks(address: str, node: NodeId, protocol: str) -> bool:
    """Whether a host takes a stream of this protocol."""
    async with running_world(Libp2pWorld) as world:
        transport = await world.start(1, RecordingHandler())
        await transport.dial(node, [address])
        stream = await transport.open_stream(node, protocol)
        answer = b""
        with contextlib.suppress(StreamBroken):
            # PING, as Kademlia's messages write it; it is answered in pieces.
            await stream.send(b"\x02\x08\x05")
            while len(answer) < 3 and (piece := await stream.receive()):
                answer += piece
        return answer == b"\x02\x08\x05"
