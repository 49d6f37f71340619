"""Our host on TCP: what strangers may do to it, and what peers of other makes expect of it."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import psutil
import pytest
import trio
import trio.testing

from infernet.transport import libp2p_host, multistream, serving
from infernet.transport import yamux_frames as frames
from infernet.transport.addresses import parse_tcp, tcp_multiaddr
from infernet.transport.channel import ByteReader, ChannelBroken
from infernet.transport.connections import ConnectionLimits
from infernet.transport.contract import DialFailed, NotConnected, StreamBroken, TransportError
from infernet.transport.handshakes import HandshakeLimits
from infernet.transport.libp2p_host import HostLimits, Libp2pTransport
from infernet.transport.libp2p_library import IDENTIFY_PROTOCOL, PING_PROTOCOL, Identity
from infernet.transport.noise_channel import secure_outbound
from infernet.transport.relay.wire import STOP_PROTOCOL
from infernet.transport.yamux_frames import header
from protocol.ids import NodeId, peer_id
from tests.helpers_stock_libp2p import StockHost
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
    odd_secret,
    read_to_end,
    running_world,
    secret,
    shaken,
)

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def our_node(
    limits: HostLimits | None = None, *, allow_private: bool = True
) -> AsyncIterator[tuple[Libp2pWorld, Libp2pTransport, RecordingHandler]]:
    """A node that listens; the deadline turns a hang into a failure."""
    with trio.fail_after(PATIENCE_S * 2):
        async with running_world(Libp2pWorld) as world:
            assert isinstance(world, Libp2pWorld)
            handler = RecordingHandler()
            yield world, await world.start(1, handler, limits, allow_private=allow_private), handler


async def assert_alive(world: Libp2pWorld, node: Libp2pTransport) -> None:
    """A newcomer can connect and be served."""
    newcomer = await world.start(99, RecordingHandler())
    await newcomer.dial(node.node_id, node.addresses())
    stream = await newcomer.open_stream(node.node_id, ECHO)
    await stream.send(b"alive?")
    assert await stream.receive() == b"alive?"


async def connect(node: Libp2pTransport, source: str = "127.0.0.1") -> trio.SocketStream:
    """A bare TCP connection to a node."""
    endpoint = parse_tcp(node.addresses()[0])
    return await trio.open_tcp_stream(endpoint.host, endpoint.port, local_address=source)


async def read_until_closed(stream: trio.abc.ReceiveStream) -> bytes:
    """All that comes until the other end closes, kindly or not."""
    received = b""
    with suppress(trio.BrokenResourceError):
        while piece := await stream.receive_some():
            received += piece
    return received


# ---------------------------------------------------------------- strangers

NOISE_HEADER = multistream.proposal("/noise")

BAD_BYTES = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls hello": bytes.fromhex("1603010200010001fc0303") + bytes(509),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "zeros": bytes(100_000),
    "random": bytes(range(256)) * 400,
    "giant token": b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(100_000),
    "token of 2 KiB": b"\x80\x10" + b"x" * 2048,
    "old multistream": multistream.encode("/multistream/0.9.0"),
    "only unknown protocols": multistream.encode(multistream.HEADER, *["/tls/1.0.0"] * 20),
    "empty noise message": NOISE_HEADER + bytes(2),
    "giant noise message": NOISE_HEADER + b"\xff\xff" + bytes(70_000),
    "wrong noise message": NOISE_HEADER + struct.pack("!H", 32) + bytes(32) + struct.pack("!H", 200) + bytes(200),
    "noise twice": NOISE_HEADER * 3,
}


@pytest.mark.parametrize("data", BAD_BYTES.values(), ids=BAD_BYTES.keys())
async def test_bad_bytes_on_the_port_cost_their_connection(data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    async with our_node() as (world, node, handler):
        stream = await connect(node)
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(read_until_closed, stream)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                await stream.send_eof()
        await eventually(lambda: node.statistics().handshakes_failed == 1)
        assert handler.infos == []
        await assert_alive(world, node)
    assert capfd.readouterr().err == "", "strangers write nothing to our terminal"


async def test_half_a_handshake_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_host, "HANDSHAKE_TIMEOUT_S", 0.1)
    async with our_node() as (_, node, _handler):
        for data in (b"", NOISE_HEADER, NOISE_HEADER + struct.pack("!H", 32) + b"half"):
            async with await connect(node) as stream:
                await stream.send_all(data)
                await read_until_closed(stream)
        assert node.statistics().handshakes_failed == 3


async def test_idle_sockets_of_a_machine_block_nobody_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_host, "HANDSHAKE_TIMEOUT_S", 1000)
    limits = HostLimits(handshakes=HandshakeLimits(total_max=8))
    async with our_node(limits, allow_private=False) as (world, node, _):
        idle = [await connect(node, "127.0.9.9") for _ in range(40)]
        assert await read_until_closed(idle[-1]) == b"", "there is no place for so many of one machine"
        await assert_alive(world, node)
        assert node.statistics().handshakes_failed == 0, "the first ones have theirs"
        for stream in idle:
            await stream.aclose()


async def test_handshakes_that_have_ended_take_no_place() -> None:
    async with (
        our_node(HostLimits(handshakes=HandshakeLimits(total_max=2))) as (world, node, _),
        await connect(node) as slow,
    ):
        for seed in range(2, 7):
            other = await world.start(seed, RecordingHandler())
            await other.dial(node.node_id, node.addresses())
        await slow.send_all(NOISE_HEADER)
        answer = await ByteReader(slow.receive_some).read(len(NOISE_HEADER))
        assert answer == NOISE_HEADER, "it had its place all the time"


@pytest.mark.parametrize("kind", ["odd y", "ed25519"])
async def test_a_key_that_is_no_node_id_is_refused(kind: str) -> None:
    from libp2p.crypto.ed25519 import create_new_key_pair as ed25519
    from libp2p.crypto.secp256k1 import create_new_key_pair as secp256k1
    from libp2p.crypto.x25519 import create_new_key_pair as x25519
    from libp2p.security.noise.transport import Transport as NoiseTransport

    keys = secp256k1(odd_secret(2)) if kind == "odd y" else ed25519(bytes(32))
    stranger = Identity(secret(2))
    stranger._noise = NoiseTransport(keys, noise_privkey=x25519().private_key)
    async with our_node() as (world, node, handler):
        async with await connect(node) as stream:
            with pytest.raises(ChannelBroken):
                await secure_outbound(stream, stranger, node.node_id)
        assert handler.infos == []
        assert node.statistics().handshakes_failed == 1
        await assert_alive(world, node)


def test_an_odd_secret_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="even Y"):
        Identity(odd_secret(1))


def test_the_secret_shows_nowhere() -> None:
    ours = Identity(secret(5))
    shown = repr(ours) + repr(vars(ours)) + str(ours.public_key)
    assert secret(5).hex() not in shown
    assert repr(secret(5)) not in shown


# ---------------------------------------------------------------- peers

YAMUX_ATTACKS = {
    "bad version": b"\x09" * 24,
    "data on no stream": header(frames.DATA, 0, 0, 10) + bytes(10),
    "our parity": header(frames.DATA, frames.SYN, 2, 0),
    "overrun": header(frames.DATA, frames.SYN, 1, 2**32 - 1),
    "credit": header(frames.WINDOW_UPDATE, frames.SYN, 1, 2**32 - 1),
    "pings": header(frames.PING, frames.SYN, 0, 0) * 30_000,
}


@pytest.mark.parametrize("data", YAMUX_ATTACKS.values(), ids=YAMUX_ATTACKS.keys())
async def test_a_peer_that_breaks_yamux_is_disconnected(data: bytes) -> None:
    async with our_node() as (world, node, handler):
        async with shaken(node.addresses()[0], node.node_id, 2) as channel:
            await eventually(lambda: handler.infos)
            with suppress(ChannelBroken):
                # More than the sockets between us hold, of what is only wrong in such numbers.
                for _ in range(200):
                    await channel.send(data)
            await eventually(lambda: handler.lost == [identity(2)])
        await assert_alive(world, node)


async def test_a_peer_that_opens_streams_and_says_nothing_gets_no_more_than_its_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libp2p_host, "CONTROL_DEADLINE_S", 0.2)
    async with our_node() as (world, node, _), shaken(node.addresses()[0], node.node_id, 2) as channel:
        opens = [header(frames.WINDOW_UPDATE, frames.SYN, stream_id, 0) for stream_id in range(1, 2001, 2)]
        await channel.send(b"".join(opens))
        await eventually(lambda: node.statistics().streams_refused > 900)
        assert node.statistics().streams <= HostLimits().yamux.inbound_streams_max
        await assert_alive(world, node)
        # That of the newcomer.
        await eventually(lambda: node.statistics().streams == 1)


async def test_rapid_resets_do_not_pile_up_handlers() -> None:
    async with our_node() as (_, node, handler), shaken(node.addresses()[0], node.node_id, 2) as channel:
        proposal = multistream.proposal(HOLD)
        rapid = [
            header(frames.DATA, frames.SYN, stream_id, len(proposal))
            + proposal
            + header(frames.WINDOW_UPDATE, frames.RESET, stream_id, 0)
            for stream_id in range(1, 1001, 2)
        ]
        await channel.send(b"".join(rapid))
        await eventually(lambda: node.statistics().streams_refused > 0)
        assert handler.serving <= HostLimits().yamux.inbound_streams_max


async def test_a_peer_may_open_any_number_of_streams_one_after_the_other() -> None:
    async with our_node() as (world, node, _):
        other = await world.start(2, RecordingHandler())
        await other.dial(node.node_id, node.addresses())
        for _ in range(3 * HostLimits().yamux.inbound_streams_max):
            stream = await other.open_stream(node.node_id, ECHO)
            await stream.send(b"x")
            await stream.finish()
            assert await read_to_end(stream) == b"x"
            await eventually(lambda: node.statistics().streams == 0)


async def test_bytes_of_past_connections_still_count() -> None:
    async with our_node() as (world, node, _):
        other = await world.start(2, RecordingHandler())
        await other.dial(node.node_id, node.addresses())
        stream = await other.open_stream(node.node_id, ECHO)
        await stream.send(bytes(1000))
        assert await stream.receive()
        await other.disconnect(node.node_id)
        await eventually(lambda: not node.peers())
        assert node.statistics().bytes_in > 1000
        assert node.statistics().bytes_out > 1000


async def test_a_cancelled_dial_leaves_no_socket() -> None:
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with our_node() as (_, node, _handler):
        before = psutil.Process().num_fds()
        with trio.move_on_after(0.1):
            await node.dial(identity(2), [tcp_multiaddr(*silent[0].socket.getsockname()[:2])])
        assert psutil.Process().num_fds() == before
    await silent[0].aclose()


async def test_a_peer_that_never_finishes_does_not_keep_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LINGER_S", 0.1)
    async with our_node() as (world, node, handler):
        other = await world.start(2, RecordingHandler())
        await other.dial(node.node_id, node.addresses())
        handler.release.set()
        stream = await other.open_stream(node.node_id, IDENTIFY_PROTOCOL)
        while await stream.receive():
            pass
        await eventually(lambda: node.statistics().streams == 0)
        await eventually(lambda: other.statistics().streams == 0)
        with pytest.raises(StreamBroken):
            await stream.send(b"x")


async def test_both_dial_at_once_and_both_are_served() -> None:
    async with our_node() as (world, node, handler):
        other_handler = RecordingHandler()
        other = await world.start(2, other_handler)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.dial, other.node_id, other.addresses())
            nursery.start_soon(other.dial, node.node_id, node.addresses())
        await eventually(lambda: node.statistics().connections == other.statistics().connections)
        assert (len(handler.infos), len(other_handler.infos)) == (1, 1)
        for source, target in ((node, other), (other, node)):
            stream = await source.open_stream(target.node_id, ECHO)
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"
        await node.disconnect(other.node_id)
        await eventually(lambda: not other.peers())
        assert (len(handler.lost), len(other_handler.lost)) == (1, 1)


async def test_dials_of_one_peer_at_once_make_one_connection() -> None:
    async with our_node() as (world, node, _):
        other = await world.start(2, RecordingHandler())
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(other.dial, node.node_id, node.addresses())
        assert node.statistics().handshakes_in == 1
        assert other._dialling == {}


async def test_dials_of_one_peer_at_different_addresses_make_one_connection_too() -> None:
    async with our_node() as (world, node, handler):
        dialer = await world.start(2, RecordingHandler())
        address = node.addresses()[0]
        async with trio.open_nursery() as nursery:
            for addresses in ([address], [address.partition("/p2p/")[0]], [address.replace("/ip4/", "/dns4/")]):
                nursery.start_soon(dialer.dial, node.node_id, addresses)
        assert dialer.statistics().connections == 1
        await eventually(lambda: node.statistics().connections == 1)
        assert dialer.peers() == [node.node_id]
        assert len(handler.infos) == 1


async def test_a_peer_that_comes_back_too_often_loses_its_oldest_connection() -> None:
    async with our_node(HostLimits(ConnectionLimits(per_peer_max=2))) as (_, node, handler):
        address = node.addresses()[0]
        async with AsyncExitStack() as stack:
            oldest, *_ = [await stack.enter_async_context(shaken(address, node.node_id, 2)) for _ in range(3)]
            while await oldest.receive():
                pass
            await eventually(lambda: node.statistics().connections == 2)
        assert len(handler.infos) == 1
        await eventually(lambda: handler.lost == [identity(2)])


async def test_a_peer_that_is_leaving_can_be_dialled_again() -> None:
    async with our_node() as (world, node, handler):
        async with shaken(node.addresses()[0], node.node_id, 2) as leaving:
            await eventually(lambda: handler.infos)
            await node.open_stream(identity(2), ECHO)
            await leaving.send(header(frames.GO_AWAY, 0, 0, frames.GO_AWAY_NORMAL))
            await eventually(lambda: node.statistics().bytes_in)
            with pytest.raises(NotConnected):
                await open_until_refused(node, identity(2))
            back = await world.start(2, RecordingHandler())
            await node.dial(identity(2), back.addresses())
            stream = await node.open_stream(identity(2), ECHO)
            await stream.send(b"back")
            assert await stream.receive() == b"back"
        assert len(handler.infos) == 1, "it was connected all the time"


async def open_until_refused(node: Libp2pTransport, peer: NodeId) -> None:
    """Open streams until the farewell has been read."""
    for _ in range(1000):
        await node.open_stream(peer, ECHO)
        await trio.sleep(0.001)


async def test_handshakes_that_end_together_do_not_exceed_the_cap() -> None:
    async with our_node(HostLimits(ConnectionLimits(total_max=2))) as (_, node, _handler):
        start = trio.Event()

        async def dial(seed: int) -> None:
            await start.wait()
            with suppress(ChannelBroken):
                async with shaken(node.addresses()[0], node.node_id, seed) as channel:
                    await channel.receive()

        async with trio.open_nursery() as nursery:
            for seed in range(2, 12):
                nursery.start_soon(dial, seed)
            start.set()
            await eventually(lambda: node.statistics().connections_refused == 8)
            assert node.statistics().connections == 2
            nursery.cancel_scope.cancel()


async def test_a_node_does_not_dial_itself() -> None:
    async with our_node() as (_, node, _handler):
        with pytest.raises(DialFailed, match="does not dial itself"):
            await node.dial(node.node_id, node.addresses())


async def test_remote_addresses_are_known_in_both_families() -> None:
    async with running_world(Libp2pWorld) as world:
        handler = RecordingHandler()
        node = Libp2pTransport(
            secret(1),
            agent="infernet/test",
            protocols=PROTOCOLS,
            randomness=random.Random(1),
            listen_hosts=("127.0.0.1", "::1"),
            port=0,
            allow_private=True,
        )
        await world._run(node, handler)
        for seed, address in enumerate(node.addresses(), 2):
            other = await world.start(seed, RecordingHandler())
            await other.dial(node.node_id, [address])
        await eventually(lambda: len(handler.infos) == 2)
        prefixes = [str(info.remote_address).rpartition("/")[0] for info in handler.infos]
        assert prefixes == ["/ip4/127.0.0.1/tcp", "/ip6/::1/tcp"]


async def test_a_node_without_listen_hosts_dials_and_serves() -> None:
    async with our_node() as (world, node, _):
        quiet = Libp2pTransport(
            secret(2), agent="x", protocols=PROTOCOLS, randomness=random.Random(1), listen_hosts=(), allow_private=True
        )
        await world._run(quiet, RecordingHandler())
        assert quiet.addresses() == []
        await quiet.dial(node.node_id, node.addresses())
        stream = await node.open_stream(quiet.node_id, ECHO)
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"


@pytest.mark.slow
async def test_a_process_killed_mid_stream_is_no_clean_end() -> None:
    program = (
        "import trio; from tests.helpers_transport import *\n"
        "async def main():\n"
        "    async with running_world(Libp2pWorld) as world:\n"
        "        node = await world.start(2, RecordingHandler())\n"
        "        print(node.addresses()[0], flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    async with trio.open_nursery() as nursery:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        start = partial(trio.run_process, stdout=subprocess.PIPE, check=False, cwd=ROOT, env=environment)
        process = await nursery.start(start, [sys.executable, "-c", program])
        async with our_node() as (_, node, handler):
            address = b""
            while not address.endswith(b"\n"):
                address += await process.stdout.receive_some()
            await node.dial(identity(2), [address.decode().strip()])
            stream = await node.open_stream(identity(2), ECHO)
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"
            process.kill()
            with pytest.raises(StreamBroken, match="connection is lost"):
                await stream.receive()
            await eventually(lambda: handler.lost == [identity(2)])


# ---------------------------------------------------------------- other makes


@pytest.fixture(scope="module")
def stock() -> Iterator[StockHost]:
    """A stock py-libp2p host."""
    host = StockHost()
    yield host
    host.close()


@pytest.mark.slow
async def test_a_stock_host_can_identify_and_ping_us(stock: StockHost) -> None:
    async with our_node() as (_, node, _handler):
        started = await stock.ask(op="start", seed=50)
        dialled = await stock.ask(
            op="dial",
            host=started["host"],
            peer=peer_id(node.node_id),
            addresses=[node.addresses()[0].partition("/p2p/")[0]],
        )
        assert "seconds" in dialled
        assert await stock.ask(op="ping", host=started["host"], peer=peer_id(node.node_id)) >= 0
        identified = await stock.ask(op="identify", host=started["host"], peer=peer_id(node.node_id))
        assert identified["agent"] == "infernet/test"
        assert set(identified["protocols"]) == {*PROTOCOLS, IDENTIFY_PROTOCOL, PING_PROTOCOL, STOP_PROTOCOL}
        assert identified["peer"] == peer_id(node.node_id)
        assert identified["observed"].startswith("/ip4/127.0.0.1/tcp/")
        assert identified["listening"] == [], "addresses go out in signed heartbeats only"


async def test_pings_are_echoed_in_pieces_of_any_size() -> None:
    async with our_node() as (world, node, _):
        other = await world.start(2, RecordingHandler())
        await other.dial(node.node_id, node.addresses())
        stream = await other.open_stream(node.node_id, PING_PROTOCOL)
        reader = ByteReader(stream.receive)
        for start in (0, 32, 64):
            payload = bytes(range(start, start + 32))
            await stream.send(payload[:7])
            await stream.send(payload[7:])
            assert await reader.read(32) == payload
        await stream.finish()
        assert await stream.receive() == b""


@pytest.mark.slow
async def test_we_can_dial_a_stock_host(stock: StockHost) -> None:
    async with our_node() as (_, node, _handler):
        started = await stock.ask(op="start", seed=51)
        await node.dial(identity(51), started["addresses"])
        stream = await node.open_stream(identity(51), PING_PROTOCOL)
        await stream.send(bytes(32))
        assert await ByteReader(stream.receive).read(32) == bytes(32)


async def test_a_connection_that_comes_when_the_node_is_ending_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody serves it any more; whoever dialled hears so, and the other side that it is gone."""
    async with our_node() as (world, node, _):
        ending = await world.start(2, RecordingHandler())
        dial = ending._dialer.dial

        async def slowly(*words: Any, **more: Any) -> Any:
            connection = await dial(*words, **more)
            running = ending._running
            assert running is not None
            world.kill(ending)
            await eventually(lambda: running.is_ending)
            await eventually(lambda: ending._running is None)
            return connection

        monkeypatch.setattr(ending._dialer, "dial", slowly)
        with pytest.raises(DialFailed, match="it is ending"):
            await ending.dial(node.node_id, node.addresses())
        await eventually(lambda: not node.peers())
        with pytest.raises(TransportError):
            await ending.dial(node.node_id, node.addresses())
