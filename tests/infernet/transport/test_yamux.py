"""yamux over a channel in memory, on a virtual clock: who waits for whom, and for how long."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from infernet.transport import yamux_frames as frames
from infernet.transport.budget import Budget
from infernet.transport.channel import ChannelBroken
from infernet.transport.contract import StreamBroken
from infernet.transport.yamux import (
    CONTROL_FRAMES_BURST,
    CONTROL_FRAMES_PER_S,
    KEEPALIVE_S,
    KEEPALIVE_WATCHED_S,
    PING_TIMEOUT_S,
    WRITE_TIMEOUT_S,
    YamuxConnection,
    YamuxStream,
)
from infernet.transport.yamux_frames import INITIAL_WINDOW_BYTES, header
from infernet.transport.yamux_session import YamuxConfig

pytestmark = pytest.mark.anyio

# In virtual time: no test needs so much, and a hang reaches it at once.
HANG_S = 7200


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Time passes only while everybody waits."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class PlainChannel:
    """A channel without secrecy; counts its sends."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.sends = 0

    async def send(self, data: bytes) -> None:
        self.sends += 1
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise ChannelBroken("the pipe is gone") from error

    async def receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(65536))
        except trio.ClosedResourceError as error:
            raise ChannelBroken("the pipe is gone") from error

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


class End:
    """One end of a connection and the streams that the other end opened."""

    def __init__(
        self, stream: trio.abc.Stream, *, initiator: bool, config: YamuxConfig, budget: Budget | None = None
    ) -> None:
        self.channel = PlainChannel(stream)
        self.ended = trio.Event()
        self.opened: list[YamuxStream] = []
        self.serve: Callable[[YamuxStream], None] = self.opened.append
        self.connection = YamuxConnection(
            self.channel, initiator=initiator, config=config, opened=lambda stream: self.serve(stream), budget=budget
        )

    async def run(self) -> None:
        await self.connection.run()
        self.ended.set()


@asynccontextmanager
async def joined(
    config: YamuxConfig | None = None, budgets: tuple[Budget | None, Budget | None] = (None, None)
) -> AsyncIterator[tuple[End, End]]:
    """Two ends that run."""
    streams = trio.testing.memory_stream_pair()
    left, right = (
        End(stream, initiator=initiator, config=config or YamuxConfig(), budget=budgets[0 if initiator else 1])
        for stream, initiator in zip(streams, (True, False), strict=True)
    )
    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.run)
            nursery.start_soon(right.run)
            yield left, right
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def attacked() -> AsyncIterator[tuple[End, trio.abc.Stream]]:
    """A listener that runs, and the bare bytes of whoever dialled it."""
    mine, theirs = trio.testing.lockstep_stream_pair()
    end = End(mine, initiator=False, config=YamuxConfig())
    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            yield end, theirs
            nursery.cancel_scope.cancel()


async def read_exactly(stream: YamuxStream, count: int) -> bytes:
    received = b""
    while len(received) < count:
        piece = await stream.receive()
        assert piece, "the stream ended early"
        received += piece
    return received


async def swallow(stream: trio.abc.Stream) -> None:
    """Read and never answer."""
    while await stream.receive_some(65536):
        pass


# ---------------------------------------------------------------- liveness


async def test_a_silent_peer_is_given_up() -> None:
    async with attacked() as (end, theirs):
        start_s = trio.current_time()
        await swallow(theirs)
        assert trio.current_time() - start_s == pytest.approx(KEEPALIVE_S + PING_TIMEOUT_S)
        assert end.connection.lost == "the peer was silent for 25 s"


async def test_a_silent_peer_is_given_up_sooner_while_somebody_waits_for_it() -> None:
    async with attacked() as (end, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(swallow, theirs)
        await trio.sleep(4)
        end.connection.open_stream()
        waiting = end.connection.open_stream()
        waiting.watch()
        start_s = trio.current_time()
        await end.ended.wait()
        assert trio.current_time() - start_s == pytest.approx(KEEPALIVE_WATCHED_S + PING_TIMEOUT_S - 4)
        nursery.cancel_scope.cancel()


async def test_how_long_a_sign_of_life_takes_is_measured_and_one_that_nobody_asked_for_is_not() -> None:
    async with attacked() as (end, theirs), trio.open_nursery() as nursery:

        async def answer_late() -> None:
            await theirs.send_all(header(frames.PING, frames.ACK, frames.SESSION_ID, 0))
            while (data := await theirs.receive_some(65536)) and data != header(
                frames.PING, frames.SYN, frames.SESSION_ID, 0
            ):
                pass
            assert end.connection.round_trip_s is None
            await trio.sleep(0.25)
            await theirs.send_all(header(frames.PING, frames.ACK, frames.SESSION_ID, 0))
            await swallow(theirs)

        nursery.start_soon(answer_late)
        await trio.sleep(KEEPALIVE_S + 1)
        assert end.connection.round_trip_s == pytest.approx(0.25)
        nursery.cancel_scope.cancel()


async def test_nobody_waits_on_a_stream_that_has_ended() -> None:
    async with attacked() as (end, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(swallow, theirs)
        waiting = end.connection.open_stream()
        waiting.watch()
        waiting.reset()
        waiting.watch()
        start_s = trio.current_time()
        await end.ended.wait()
        assert trio.current_time() - start_s == pytest.approx(KEEPALIVE_S + PING_TIMEOUT_S)
        nursery.cancel_scope.cancel()


async def test_a_peer_that_answers_pings_is_kept_while_somebody_waits_for_it() -> None:
    async with joined() as (left, _):
        left.connection.open_stream().watch()
        await trio.sleep(3600)
        assert left.connection.lost is None


async def test_a_connection_is_idle_from_the_end_of_its_last_stream() -> None:
    async with joined() as (left, right):
        await trio.sleep(100)
        assert left.connection.idle_s == pytest.approx(100)
        stream = left.connection.open_stream()
        await trio.sleep(100)
        assert (left.connection.idle_s, right.connection.idle_s) == (0, 0)
        stream.reset()
        await trio.sleep(7)
        assert left.connection.idle_s == right.connection.idle_s == pytest.approx(7), "pings are no use of it"


async def test_an_idle_peer_that_answers_pings_is_kept() -> None:
    async with joined() as (left, right):
        stream = left.connection.open_stream()
        await trio.sleep(3600)
        await stream.send(b"still there")
        assert await read_exactly(right.opened[0], 11) == b"still there"


async def test_a_peer_that_takes_nothing_is_given_up() -> None:
    async with attacked() as (end, theirs):

        async def talk() -> None:
            # It speaks, so it is not silent; it never reads our answers.
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await theirs.send_all(header(frames.PING, frames.ACK, 0, 0))
                    await trio.sleep(5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            end.connection.open_stream()
            start_s = trio.current_time()
            await end.ended.wait()
            assert trio.current_time() - start_s == pytest.approx(WRITE_TIMEOUT_S, abs=1)
            assert end.connection.lost == "the peer took nothing for 30 s"
            nursery.cancel_scope.cancel()


async def test_a_lost_connection_breaks_its_streams() -> None:
    async with joined() as (left, right):
        waiting, sending = left.connection.open_stream(), left.connection.open_stream()

        async def expect_broken(action: str) -> None:
            with pytest.raises(StreamBroken, match="connection is lost"):
                await (waiting.receive() if action == "receive" else sending.send(bytes(10**6)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_broken, "receive")
            nursery.start_soon(expect_broken, "send")
            await trio.testing.wait_all_tasks_blocked()
            right.connection.abort("killed by the test")
        assert left.connection.lost == "the peer closed it"
        with pytest.raises(ChannelBroken):
            left.connection.open_stream()
        assert not left.connection.is_open()


async def test_a_sender_that_waits_for_room_sees_the_loss() -> None:
    async with attacked() as (end, _):
        stream = end.connection.open_stream()
        await trio.testing.wait_all_tasks_blocked()

        async def expect_broken() -> None:
            # More than the queue takes and less than the credit.
            with pytest.raises(StreamBroken, match="connection is lost"):
                await stream.send(bytes(INITIAL_WINDOW_BYTES - 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_broken)
            await trio.testing.wait_all_tasks_blocked()
            end.connection.abort("by the test")


# ---------------------------------------------------------------- farewells


async def test_closing_delivers_what_was_queued_and_says_farewell() -> None:
    async with joined() as (left, right):
        stream = left.connection.open_stream()
        await stream.send(b"last")
        await left.connection.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await right.opened[0].receive() == b"last"
        with pytest.raises(StreamBroken):
            await right.opened[0].receive()
        await left.connection.aclose()


async def test_after_a_farewell_open_streams_end_before_the_connection() -> None:
    async with attacked() as (end, theirs):
        await theirs.send_all(header(frames.DATA, frames.SYN, 1, 2) + b"hi" + header(frames.GO_AWAY, 0, 0, 0))
        await trio.testing.wait_all_tasks_blocked()
        assert not end.connection.is_open()
        assert not end.connection.lost
        (stream,) = end.opened
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swallow, theirs)
            await theirs.send_all(header(frames.WINDOW_UPDATE, frames.FIN, 1, 0))
            assert await stream.receive() == b"hi"
            assert await stream.receive() == b""
            await stream.finish()
            await trio.testing.wait_all_tasks_blocked()
            assert end.connection.lost == "the peer said farewell"


async def test_a_connection_that_is_retired_opens_nothing_and_loses_nothing() -> None:
    async with joined() as (left, right):
        stream = left.connection.open_stream()
        await stream.send(b"question")
        await trio.testing.wait_all_tasks_blocked()
        left.connection.retire()
        await trio.testing.wait_all_tasks_blocked()
        assert (left.connection.is_open(), right.connection.is_open()) == (False, False)
        assert (left.connection.lost, right.connection.lost) == (None, None)
        assert await right.opened[0].receive() == b"question"
        await stream.finish()
        await trio.testing.wait_all_tasks_blocked()
        await right.opened[0].send(b"answer")
        await right.opened[0].finish()
        await left.ended.wait()
        assert await stream.receive() == b"answer", "the last words left before the connection ended"
        assert await stream.receive() == b""


async def test_a_farewell_with_a_code_ends_at_once() -> None:
    async with attacked() as (end, theirs):
        await theirs.send_all(header(frames.GO_AWAY, 0, 0, frames.GO_AWAY_INTERNAL_ERROR))
        await trio.testing.wait_all_tasks_blocked()
        assert end.connection.lost == "the peer ended it with code 2"


async def test_a_peer_that_breaks_the_rules_is_told_and_dropped() -> None:
    async with attacked() as (end, theirs):
        await theirs.send_all(header(frames.DATA, frames.SYN, 1, INITIAL_WINDOW_BYTES + 1))
        said = b""
        while piece := await theirs.receive_some(65536):
            said += piece
        assert said.endswith(header(frames.GO_AWAY, 0, 0, frames.GO_AWAY_PROTOCOL_ERROR))
        assert "breaks the rules of yamux" in str(end.connection.lost)


async def test_a_peer_that_breaks_the_rules_and_does_not_listen_is_dropped_too() -> None:
    async with attacked() as (end, theirs):
        await theirs.send_all(header(frames.PING, frames.SYN, 7, 0))
        await trio.sleep(1)
        assert "breaks the rules of yamux" in str(end.connection.lost)


# ---------------------------------------------------------------- sharing


async def test_streams_that_are_over_are_forgotten() -> None:
    async with joined() as (left, right):
        for number in range(20):
            stream = left.connection.open_stream()
            await trio.testing.wait_all_tasks_blocked()
            theirs = right.opened[-1]
            theirs.release()
            if number % 2:
                stream.reset()
            else:
                await stream.finish()
                await theirs.finish()
            await trio.testing.wait_all_tasks_blocked()
        assert (left.connection._streams, right.connection._streams) == ({}, {})
        assert (left.connection.session.streams, right.connection.session.streams) == ({}, {})


async def test_what_many_streams_send_at_once_leaves_as_one_piece() -> None:
    async with joined() as (left, right):
        streams = [left.connection.open_stream(b"") for _ in range(50)]
        await trio.testing.wait_all_tasks_blocked()
        before = left.channel.sends
        for stream in streams:
            await stream.send(b"token" * 40)
        await trio.testing.wait_all_tasks_blocked()
        assert left.channel.sends - before == 1
        assert [await stream.receive() for stream in right.opened] == [b"token" * 40] * 50


async def test_streams_beyond_the_cap_are_reset_and_places_come_back() -> None:
    async with joined(YamuxConfig(inbound_streams_max=2)) as (left, right):
        first, _, third = [left.connection.open_stream() for _ in range(3)]
        with pytest.raises(StreamBroken, match="the peer reset the stream"):
            await third.receive()
        assert len(right.opened) == 2
        first.reset()
        right.opened[0].release()
        fourth = left.connection.open_stream()
        await fourth.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert len(right.opened) == 3


async def test_a_reset_by_ourselves_wakes_our_own_waiters() -> None:
    async with joined() as (left, _):
        stream = left.connection.open_stream()

        async def expect_broken() -> None:
            with pytest.raises(StreamBroken, match="we reset the stream"):
                await stream.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_broken)
            await trio.testing.wait_all_tasks_blocked()
            stream.reset()


async def test_a_send_without_credit_that_is_cancelled_leaves_the_stream_whole() -> None:
    async with joined() as (left, right):
        stream = left.connection.open_stream()
        await stream.send(bytes(INITIAL_WINDOW_BYTES))
        with trio.move_on_after(1) as scope:
            await stream.send(b"never")
        assert scope.cancelled_caught
        theirs = right.opened[0]
        await read_exactly(theirs, INITIAL_WINDOW_BYTES)
        await stream.send(b"after")
        assert await read_exactly(theirs, 5) == b"after"


async def test_cancelling_senders_and_readers_anywhere_harms_no_other_stream() -> None:
    source = random.Random(7)
    async with joined() as (left, right):
        steady = left.connection.open_stream()
        await trio.testing.wait_all_tasks_blocked()
        (steady_theirs,) = right.opened

        async def disturb() -> None:
            for _ in range(200):
                stream = left.connection.open_stream()
                with contextlib.suppress(StreamBroken):
                    with trio.move_on_after(source.random() * 0.01):
                        await stream.send(bytes(source.randrange(10**6)))
                    with trio.move_on_after(source.random() * 0.01):
                        await stream.receive()
                stream.reset()

        async def serve(stream: YamuxStream) -> None:
            with contextlib.suppress(StreamBroken), trio.move_on_after(source.random() * 0.02):
                while data := await stream.receive():
                    await stream.send(data)
            stream.reset()
            stream.release()

        async def talk() -> None:
            for number in range(2000):
                await steady.send(b"%8d" % number)
                await trio.sleep(0.001)
            await steady.finish()

        async with trio.open_nursery() as nursery:
            right.serve = partial(nursery.start_soon, serve)
            nursery.start_soon(talk)
            nursery.start_soon(disturb)
            received = await read_to_end(steady_theirs)
        assert received == b"".join(b"%8d" % number for number in range(2000))
        assert not left.connection.lost


async def read_to_end(stream: YamuxStream) -> bytes:
    received = b""
    while piece := await stream.receive():
        received += piece
    return received


# ---------------------------------------------------------------- what a peer may cost


async def test_frames_without_data_are_counted_against_time() -> None:
    async with attacked() as (end, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(swallow, theirs)
        pings = header(frames.PING, frames.ACK, 0, 0) * 1000
        for _ in range(CONTROL_FRAMES_BURST // 1000):
            await theirs.send_all(pings)
        for _ in range(100):
            await trio.sleep(1000 / CONTROL_FRAMES_PER_S)
            await theirs.send_all(pings)
        assert end.connection.lost is None, "as fast as anybody needs"
        with contextlib.suppress(trio.BrokenResourceError):
            await theirs.send_all(pings * 2)
        await end.ended.wait()
        assert end.connection.offence == "it breaks the rules of yamux: more frames without data than anybody needs"
        nursery.cancel_scope.cancel()


async def test_what_is_unread_counts_against_the_budget_until_it_is_taken() -> None:
    budget = Budget()
    async with joined(budgets=(None, budget)) as (left, right):
        stream = left.connection.open_stream()
        await stream.send(bytes(100_000))
        await trio.testing.wait_all_tasks_blocked()
        assert budget.total_bytes == 100_000
        await read_exactly(right.opened[0], 60_000)
        assert budget.total_bytes == 100_000 - 65_536, "taken in pieces"
        right.opened[0].reset()
        assert budget.total_bytes <= 12, "the reset that waits to be sent"
        await trio.testing.wait_all_tasks_blocked()
        assert budget.total_bytes == 0


async def test_what_waits_to_be_sent_counts_against_the_budget() -> None:
    budget = Budget()
    mine, _ = trio.testing.lockstep_stream_pair()
    end = End(mine, initiator=True, config=YamuxConfig(), budget=budget)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.run)
        stream = end.connection.open_stream()
        await stream.send(bytes(50_000))
        await trio.testing.wait_all_tasks_blocked()
        assert budget.total_bytes > 50_000
        end.connection.abort("enough")
        await end.ended.wait()
        assert budget.total_bytes == 0


async def test_whoever_makes_us_hold_most_is_cut_and_nobody_else() -> None:
    budget = Budget(400_000)
    async with joined(budgets=(None, budget)) as (greedy, victim), joined(budgets=(None, budget)) as (modest, other):
        small = modest.connection.open_stream()
        await small.send(bytes(50_000))
        await trio.testing.wait_all_tasks_blocked()
        streams = [greedy.connection.open_stream() for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(send_until_broken, stream)
        await victim.ended.wait()
        assert victim.connection.offence == "it made us hold more than anybody else"
        assert budget.total_bytes == 50_000
        with pytest.raises(StreamBroken):
            await victim.opened[0].receive()
        assert len(await read_exactly(other.opened[0], 50_000)) == 50_000
        assert modest.connection.lost is None


async def send_until_broken(stream: YamuxStream) -> None:
    with contextlib.suppress(StreamBroken):
        await stream.send(bytes(INITIAL_WINDOW_BYTES))
        await stream.receive()
