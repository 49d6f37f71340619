"""The transport contract, once for every transport that fulfils it."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from infernet.transport.contract import (
    RECEIVE_BYTES_MAX,
    ConnectionInfo,
    DialFailed,
    NotConnected,
    Stream,
    StreamBroken,
    Transport,
    TransportError,
)
from protocol.ids import peer_id
from tests.helpers_transport import (
    ECHO,
    FAIL,
    HOLD,
    PATIENCE_S,
    SINK,
    Libp2pWorld,
    MemoryWorld,
    RecordingHandler,
    World,
    eventually,
    identity,
    read_to_end,
    running_world,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[MemoryWorld, Libp2pWorld], ids=["memory", "libp2p"])
def kind(request: pytest.FixtureRequest) -> type[World]:
    """Every test of this module runs in each world."""
    found: type[World] = request.param
    return found


@dataclass
class Pair:
    """Two nodes, the left one connected to the right one."""

    world: World
    left: Transport
    right: Transport
    left_handler: RecordingHandler
    right_handler: RecordingHandler

    async def open(self, protocol: str) -> Stream:
        return await self.left.open_stream(self.right.node_id, protocol)


@asynccontextmanager
async def strangers(kind: type[World]) -> AsyncIterator[Pair]:
    """Two nodes that run and are not connected; the deadline turns a hang into a failure."""
    with trio.fail_after(PATIENCE_S * 2):
        async with running_world(kind) as world:
            left_handler, right_handler = RecordingHandler(), RecordingHandler()
            left = await world.start(1, left_handler)
            right = await world.start(2, right_handler)
            yield Pair(world, left, right, left_handler, right_handler)


@asynccontextmanager
async def connected(kind: type[World]) -> AsyncIterator[Pair]:
    """Two nodes with a connection that the left one made."""
    async with strangers(kind) as pair:
        await pair.left.dial(pair.right.node_id, pair.right.addresses())
        await eventually(lambda: pair.right.peers() == [pair.left.node_id])
        yield pair


# ---------------------------------------------------------------- connections


async def test_both_ends_hear_who_is_connected(kind: type[World]) -> None:
    async with connected(kind) as pair:
        assert pair.left.peers() == [identity(2)]
        (left_info,), (right_info,) = pair.left_handler.infos, pair.right_handler.infos
        assert (left_info.peer, left_info.inbound) == (identity(2), False)
        assert (right_info.peer, right_info.inbound) == (identity(1), True)
        assert pair.left.statistics().handshakes_out == pair.right.statistics().handshakes_in == 1


async def test_addresses_end_in_our_peer_id(kind: type[World]) -> None:
    async with strangers(kind) as pair:
        (address,) = pair.left.addresses()
        assert address.endswith(f"/p2p/{peer_id(identity(1))}")


async def test_dialling_a_connected_peer_does_nothing(kind: type[World]) -> None:
    async with connected(kind) as pair:
        await pair.left.dial(pair.right.node_id, ["/ip4/127.0.0.1/tcp/1"])
        assert len(pair.left_handler.infos) == 1
        assert pair.left.statistics().connections == 1


async def test_another_identity_at_the_address_is_not_the_peer(kind: type[World]) -> None:
    async with strangers(kind) as pair:
        (address,) = pair.right.addresses()
        bare = address.replace(f"/p2p/{peer_id(identity(2))}", "") if kind is Libp2pWorld else address
        with pytest.raises(DialFailed, match="another identity answers there"):
            await pair.left.dial(identity(3), [bare])
        assert pair.left.peers() == []
        assert pair.left_handler.infos == []
        assert pair.left.statistics().dials_failed == 1


async def test_a_failed_dial_has_a_reason_for_each_address(kind: type[World]) -> None:
    async with strangers(kind) as pair:
        tried = ["/ip4/127.0.0.1/tcp/1", "nonsense"]
        with pytest.raises(DialFailed) as failure:
            await pair.left.dial(identity(3), tried)
        assert list(failure.value.reasons) == tried
        assert all(failure.value.reasons.values())


async def test_a_stream_needs_a_connection(kind: type[World]) -> None:
    async with strangers(kind) as pair:
        with pytest.raises(NotConnected):
            await pair.open(ECHO)


async def test_nothing_can_be_asked_of_a_transport_that_does_not_run(kind: type[World]) -> None:
    async with strangers(kind) as pair:
        pair.world.kill(pair.left)
        await eventually(lambda: not pair.left.addresses())
        with pytest.raises(TransportError):
            await pair.left.dial(identity(2), pair.right.addresses())


async def test_disconnecting_is_heard_by_both_ends(kind: type[World]) -> None:
    async with connected(kind) as pair:
        stream = await pair.open(ECHO)
        await pair.left.disconnect(identity(2))
        assert pair.left.peers() == []
        assert pair.left_handler.lost == [identity(2)]
        await eventually(lambda: pair.right_handler.lost == [identity(1)])
        with pytest.raises(StreamBroken):
            await stream.receive()
        await pair.left.disconnect(identity(2))


async def test_a_peer_can_come_back(kind: type[World]) -> None:
    async with connected(kind) as pair:
        await pair.left.disconnect(identity(2))
        await eventually(lambda: not pair.right.peers())
        await pair.left.dial(identity(2), pair.right.addresses())
        stream = await pair.open(ECHO)
        await stream.send(b"again")
        assert await stream.receive() == b"again"
        assert [info.peer for info in pair.left_handler.infos] == [identity(2)] * 2


async def test_a_killed_peer_is_no_clean_end(kind: type[World]) -> None:
    async with connected(kind) as pair:
        reading, sending = await pair.open(HOLD), await pair.open(HOLD)
        await reading.send(b"x")
        await eventually(lambda: len(pair.right_handler.held) == 2)
        pair.world.kill(pair.right)
        with pytest.raises(StreamBroken):
            await reading.receive()
        with pytest.raises(StreamBroken):
            await send_forever(sending)
        await eventually(lambda: pair.left_handler.lost == [identity(2)])
        assert pair.left.peers() == []
        with pytest.raises(NotConnected):
            await pair.open(ECHO)


# ---------------------------------------------------------------- streams


async def test_bytes_come_in_order_and_whole(kind: type[World]) -> None:
    async with connected(kind) as pair:
        stream = await pair.open(ECHO)
        assert (stream.peer, stream.protocol) == (identity(2), ECHO)
        await stream.send(b"one ")
        await stream.send(b"two ")
        await stream.send(b"")
        await stream.send(b"three")
        await stream.finish()
        assert await read_to_end(stream) == b"one two three"
        assert await stream.receive() == b""


async def test_either_end_can_open_streams(kind: type[World]) -> None:
    async with connected(kind) as pair:
        stream = await pair.right.open_stream(identity(1), ECHO)
        await stream.send(b"from the one that was dialled")
        await stream.finish()
        assert await read_to_end(stream) == b"from the one that was dialled"


async def test_many_streams_at_once_keep_apart(kind: type[World]) -> None:
    async with connected(kind) as pair:
        answers: dict[int, bytes] = {}

        async def talk(number: int) -> None:
            stream = await pair.open(ECHO)
            for _ in range(10):
                await stream.send(b"%d," % number)
            await stream.finish()
            answers[number] = await read_to_end(stream)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(talk, number)
        assert answers == {number: b"%d," % number * 10 for number in range(50)}
        await eventually(lambda: pair.right.statistics().streams == 0)
        assert pair.left.statistics().streams == 0
        assert pair.right.statistics().streams_in == 50


async def test_after_finishing_we_still_receive(kind: type[World]) -> None:
    async with connected(kind) as pair:
        stream = await pair.open(HOLD)
        await stream.finish()
        await stream.finish()
        await eventually(lambda: pair.right_handler.held)
        (theirs,) = pair.right_handler.held
        await theirs.send(b"late")
        assert await stream.receive() == b"late"
        with pytest.raises(StreamBroken):
            await stream.send(b"too late")
        pair.right_handler.release.set()
        assert await read_to_end(stream) == b""
        assert pair.right_handler.endings == ["end"]


async def test_a_reset_is_told_from_an_end(kind: type[World]) -> None:
    async with connected(kind) as pair:
        ended, reset = await pair.open(SINK), await pair.open(SINK)
        await ended.send(b"x")
        await ended.finish()
        assert await read_to_end(ended) == b""
        await reset.send(b"x")
        await eventually(lambda: pair.right_handler.received_bytes == 2)
        reset.reset()
        reset.reset()
        await eventually(lambda: len(pair.right_handler.endings) == 2)
        assert pair.right_handler.endings[0] == "end"
        assert "reset" in pair.right_handler.endings[1]
        with pytest.raises(StreamBroken):
            await reset.receive()
        with pytest.raises(StreamBroken):
            await reset.send(b"x")


async def test_what_came_before_a_reset_is_still_read(kind: type[World]) -> None:
    async with connected(kind) as pair:
        stream = await pair.open(HOLD)
        await eventually(lambda: pair.right_handler.held)
        (theirs,) = pair.right_handler.held
        await theirs.send(b"last words")
        assert await stream.receive() == b"last words"
        await theirs.send(b"and more")
        theirs.reset()
        assert await stream.receive() == b"and more"
        with pytest.raises(StreamBroken):
            await stream.receive()


async def test_a_protocol_that_the_peer_does_not_speak(kind: type[World]) -> None:
    async with connected(kind) as pair:
        stream = await pair.open("/test/unknown/1")
        with pytest.raises(StreamBroken, match="does not speak /test/unknown/1"):
            await stream.receive()
        assert (await pair.open(ECHO)).protocol == ECHO
        await eventually(lambda: pair.left.peers() == [identity(2)])


async def test_a_handler_that_fails_hurts_only_its_stream(kind: type[World]) -> None:
    async with connected(kind) as pair:
        with capture_logs() as logged:
            broken = await pair.open(FAIL)
            with pytest.raises(StreamBroken):
                await broken.receive()
        assert [line["protocol"] for line in logged if line["event"] == "stream.failed"] == [FAIL]
        stream = await pair.open(ECHO)
        await stream.send(b"alive")
        assert await stream.receive() == b"alive"


async def test_a_handler_that_fails_on_news_of_peers_hurts_nobody(kind: type[World]) -> None:
    class Clumsy(RecordingHandler):
        def connected(self, info: ConnectionInfo) -> None:
            raise RuntimeError("clumsy at the start")

    with capture_logs() as logged:
        await _meet_somebody(kind, Clumsy())
    assert "transport.handler_failed" in [line["event"] for line in logged]


async def _meet_somebody(kind: type[World], clumsy: RecordingHandler) -> None:
    async with strangers(kind) as pair:
        third = await pair.world.start(3, clumsy)
        await third.dial(identity(2), pair.right.addresses())
        stream = await third.open_stream(identity(2), ECHO)
        await stream.send(b"alive")
        assert await stream.receive() == b"alive"


async def test_a_stream_is_finished_when_its_handler_returns(kind: type[World]) -> None:
    async with connected(kind) as pair:
        stream = await pair.open(HOLD)
        pair.right_handler.release.set()
        await stream.send(b"x")
        await stream.finish()
        assert await stream.receive() == b""
        await eventually(lambda: pair.right.statistics().streams == 0)


# ---------------------------------------------------------------- backpressure and cancellation


async def test_a_big_transfer_to_a_slow_reader(kind: type[World]) -> None:
    blob = random.Random(1).randbytes(3_000_000)
    async with connected(kind) as pair:
        stream = await pair.open(ECHO)
        received = bytearray()

        async def send() -> None:
            await stream.send(blob)
            await stream.finish()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while data := await stream.receive():
                assert len(data) <= RECEIVE_BYTES_MAX
                received += data
                await trio.lowlevel.checkpoint()
        assert received == blob


async def test_a_sender_waits_for_a_reader_that_does_not_read(kind: type[World]) -> None:
    async with connected(kind) as pair:
        stream = await pair.open(HOLD)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < 4_000_000:
                await stream.send(bytes(10_000))
                sent += 10_000

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await eventually(lambda: pair.right_handler.held)
            await settled(lambda: sent)
            assert sent < 1_000_000
            # Another stream of the same connection is not held up.
            other = await pair.open(ECHO)
            await other.send(b"hello")
            assert await other.receive() == b"hello"
            pair.right_handler.release.set()
        await stream.finish()
        await eventually(lambda: pair.right_handler.received_bytes == 4_000_000)


async def test_cancelling_a_blocked_send_does_not_hurt_other_streams(kind: type[World]) -> None:
    async with connected(kind) as pair:
        blocked, other = await pair.open(HOLD), await pair.open(ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocked.send, bytes(4_000_000))
            await eventually(lambda: pair.left.statistics().bytes_out > 50_000)
            nursery.cancel_scope.cancel()
        await other.send(b"unharmed")
        assert await other.receive() == b"unharmed"
        # Half of something was sent, so nothing may ever follow it.
        with pytest.raises(StreamBroken, match="cancelled half way"):
            await blocked.send(b"x")
        pair.right_handler.release.set()
        await eventually(lambda: pair.right_handler.endings)
        assert pair.right_handler.endings != ["end"]


async def test_a_cancelled_send_that_sent_nothing_leaves_the_stream_usable(kind: type[World]) -> None:
    async with connected(kind) as pair:
        stream = await pair.open(HOLD)
        capacity_bytes = pair.world.capacity_bytes(HOLD)
        await stream.send(bytes(capacity_bytes))
        with trio.move_on_after(0.01) as scope:
            await stream.send(b"lost")
        assert scope.cancelled_caught
        pair.right_handler.release.set()
        await stream.send(b"more")
        await stream.finish()
        await eventually(lambda: pair.right_handler.endings == ["end"])
        assert pair.right_handler.received_bytes == capacity_bytes + 4


async def test_cancelling_a_receive_loses_nothing(kind: type[World]) -> None:
    async with connected(kind) as pair:
        stream = await pair.open(ECHO)
        received = b""
        for number in range(20):
            with trio.move_on_after(0.001 * (number % 2)):
                received += await stream.receive()
            await stream.send(b"%d " % number)
        await stream.finish()
        received += await read_to_end(stream)
        assert received == b"".join(b"%d " % number for number in range(20))


async def test_two_senders_on_one_stream_are_a_mistake_that_shows(kind: type[World]) -> None:
    async with connected(kind) as pair:
        stream = await pair.open(HOLD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, bytes(4_000_000))
            await trio.testing.wait_all_tasks_blocked(0.02)
            with pytest.raises(trio.BusyResourceError):
                await stream.send(b"me too")
            with pytest.raises(trio.BusyResourceError):
                await stream.finish()
            nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- leaks


async def test_300_cycles_leave_nothing_behind(kind: type[World]) -> None:
    async with strangers(kind) as pair:
        for number in range(305):
            if number == 5:
                await eventually(lambda: pair.right_handler.serving == 0)
                before = resources()
            await pair.left.dial(identity(2), pair.right.addresses())
            stream = await pair.open(ECHO)
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            if number % 2:
                stream.reset()
            await pair.left.disconnect(identity(2))
            await eventually(lambda: not pair.right.peers())
        await eventually(lambda: resources() == before, f"{before} again, now {resources()}")
        assert pair.left_handler.lost == [identity(2)] * 305


async def test_a_killed_node_leaves_no_task(kind: type[World]) -> None:
    before = resources()
    async with connected(kind) as pair:
        for _ in range(10):
            await (await pair.open(HOLD)).send(b"x")
        await eventually(lambda: len(pair.right_handler.held) == 10)
    await eventually(lambda: resources() == before, f"{before} again, now {resources()}")


def resources() -> tuple[int, int]:
    """Tasks and file descriptors of this process."""
    gc.collect()
    return trio.lowlevel.current_statistics().tasks_living, psutil.Process(os.getpid()).num_fds()


async def send_forever(stream: Stream) -> None:
    while True:
        await stream.send(bytes(1024))


async def settled(value: object) -> None:
    """Wait until a number has stopped growing for a while."""
    assert callable(value)
    previous = None
    while (current := value()) != previous:
        previous = current
        await trio.sleep(0.05)
