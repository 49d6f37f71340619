"""The carrier alone: bounded outboxes, resets that let last words out, faults that stay in their stream."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from infernet.carriers.outbox import OUTBOX_BYTES_MAX
from infernet.carriers.transport import LAST_WORDS_S, TransportCarrier
from infernet.driver import Driver
from infernet.transport.contract import ConnectionInfo, Stream, StreamBroken
from infernet.transport.memory import MemoryNetwork, MemoryTransport
from protocol import events as e
from protocol.constants import HELLO_PROTOCOL, JOB_PROTOCOL, PROTOCOLS
from protocol.effects import Dial, FinishStream, OpenStream, ResetStream, Send
from protocol.ids import NodeId, StreamId
from protocol.peer import Peer, PeerConfig
from protocol.sealing import HpkeSealer
from tests.helpers_node import key_of, virtual_wall_ms

pytestmark = pytest.mark.anyio
STREAM = StreamId(1)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


class RecordingDriver(Driver):
    """A driver whose events are kept for the test instead of being handled."""

    def __init__(self) -> None:
        key = key_of(1)
        rng = random.Random(1)
        peer = Peer(PeerConfig("test"), key, HpkeSealer(), rng, e.Now(0.0, virtual_wall_ms()))
        super().__init__(peer, engine=None, observe=lambda effect: None, clock_ms=virtual_wall_ms)
        self.posted: list[e.Event] = []

    def post(self, event: e.Event) -> None:
        self.posted.append(event)

    async def post_with_backpressure(self, event: e.Event) -> None:
        self.posted.append(event)

    def of(self, kind: type[e.Event]) -> list[e.Event]:
        return [event for event in self.posted if isinstance(event, kind)]


class OtherEnd:
    """A peer at the other end of the carrier's streams that does what a test tells it."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.streams: list[Stream] = []
        self.arrived = trio.Event()
        self.left = trio.Event()

    def connected(self, info: ConnectionInfo) -> None: ...

    def disconnected(self, peer: NodeId) -> None: ...

    async def stream_opened(self, stream: Stream) -> None:
        self.streams.append(stream)
        self.arrived.set()
        await self.left.wait()


class Setting:
    """A carrier, connected to another end."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.driver = RecordingDriver()
        self.node = key_of(1).node
        self.carrier = TransportCarrier(network.transport(self.node, protocols=PROTOCOLS), self.driver)
        self.other = OtherEnd(network.transport(key_of(2).node, protocols=PROTOCOLS))

    async def start(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.carrier.run)
        await nursery.start(self.other.transport.run, self.other)
        await self.dial()

    async def dial(self) -> None:
        peer = self.other.transport.node_id
        self.carrier.perform(Dial(peer, tuple(self.other.transport.addresses())))
        with trio.fail_after(10):
            while not self.driver.of(e.PeerConnected):
                await trio.lowlevel.checkpoint()

    def open(self) -> None:
        self.carrier.perform(OpenStream(STREAM, self.other.transport.node_id, JOB_PROTOCOL))


async def run(test: object, pipe_bytes: int = 64 * 1024) -> None:
    """Run a test function within a setting."""
    async with trio.open_nursery() as nursery:
        setting = Setting(MemoryNetwork(pipe_bytes=pipe_bytes))
        await setting.start(nursery)
        with trio.fail_after(60):
            await test(setting)  # type: ignore[operator]
        nursery.cancel_scope.cancel()


async def until(condition: object) -> None:
    """Let everything run until a condition holds; the caller's deadline bounds it."""
    while not condition():  # type: ignore[operator]
        await trio.lowlevel.checkpoint()


async def test_what_is_sent_arrives_in_order_and_is_finished() -> None:
    async def test(s: Setting) -> None:
        s.open()
        for number in range(100):
            s.carrier.perform(Send(STREAM, bytes([number])))
        s.carrier.perform(FinishStream(STREAM))
        await s.other.arrived.wait()
        data = b""
        while piece := await s.other.streams[0].receive():
            data += piece
        assert data == bytes(range(100))

    await run(test)


async def test_a_reader_that_stands_still_overflows_its_own_outbox() -> None:
    async def test(s: Setting) -> None:
        s.open()
        await s.other.arrived.wait()
        half = bytes(OUTBOX_BYTES_MAX // 2)
        for _ in range(4):
            s.carrier.perform(Send(STREAM, half))
            await trio.testing.wait_all_tasks_blocked()
        assert s.driver.of(e.OutboxFull) == [e.OutboxFull(STREAM)]

    await run(test)


async def test_nothing_follows_a_gap_but_the_reset() -> None:
    async def test(s: Setting) -> None:
        s.open()
        await s.other.arrived.wait()
        for data in (bytes(OUTBOX_BYTES_MAX + 1), b"small", b"small"):
            s.carrier.perform(Send(STREAM, data))
        s.carrier.perform(FinishStream(STREAM))
        await trio.testing.wait_all_tasks_blocked()
        assert s.driver.of(e.OutboxFull) == [e.OutboxFull(STREAM)]
        s.carrier.perform(ResetStream(STREAM, "too slow"))
        with pytest.raises(StreamBroken):
            await s.other.streams[0].receive()

    await run(test)


async def test_last_words_leave_before_a_reset() -> None:
    async def test(s: Setting) -> None:
        s.open()
        s.carrier.perform(Send(STREAM, b"because"))
        s.carrier.perform(ResetStream(STREAM, "because"))
        await s.other.arrived.wait()
        assert await s.other.streams[0].receive() == b"because"
        await until(lambda: not s.driver.open_streams)
        assert not s.driver.of(e.StreamBroken), "who resets a stream is not told that it broke"

    await run(test)


async def test_the_other_sides_reset_ends_a_blocked_send() -> None:
    async def test(s: Setting) -> None:
        s.open()
        await s.other.arrived.wait()
        s.carrier.perform(Send(STREAM, bytes(OUTBOX_BYTES_MAX)))
        await trio.testing.wait_all_tasks_blocked()
        s.other.streams[0].reset()
        await until(lambda: s.driver.of(e.StreamBroken))

    await run(test, pipe_bytes=1024)


async def test_our_reset_ends_a_send_to_a_reader_that_stands_still() -> None:
    async def test(s: Setting) -> None:
        s.open()
        await s.other.arrived.wait()
        s.carrier.perform(Send(STREAM, bytes(OUTBOX_BYTES_MAX)))
        await trio.testing.wait_all_tasks_blocked()
        s.carrier.perform(ResetStream(STREAM, "too slow"))
        await trio.sleep(LAST_WORDS_S * 0.9)
        assert s.carrier.streams == 1, "what was said before gets a moment"
        await trio.sleep(LAST_WORDS_S * 0.2)
        assert s.carrier.streams == s.driver.open_streams == 0

    await run(test, pipe_bytes=1024)


async def test_after_an_overflow_nothing_is_waited_for() -> None:
    async def test(s: Setting) -> None:
        s.open()
        await s.other.arrived.wait()
        for _ in range(2):
            s.carrier.perform(Send(STREAM, bytes(OUTBOX_BYTES_MAX)))
        await trio.testing.wait_all_tasks_blocked()
        s.carrier.perform(ResetStream(STREAM, "too slow"))
        await trio.testing.wait_all_tasks_blocked()
        assert s.carrier.streams == 0

    await run(test, pipe_bytes=1024)


async def test_our_reset_after_we_finished_still_ends_the_stream() -> None:
    async def test(s: Setting) -> None:
        s.open()
        s.carrier.perform(FinishStream(STREAM))
        await s.other.arrived.wait()
        assert await s.other.streams[0].receive() == b""
        s.carrier.perform(ResetStream(STREAM, "too late"))
        await trio.testing.wait_all_tasks_blocked()
        assert s.carrier.streams == 0

    await run(test)


async def test_a_stream_to_nobody_breaks() -> None:
    async def test(s: Setting) -> None:
        s.carrier.perform(OpenStream(STREAM, key_of(9).node, HELLO_PROTOCOL))
        await until(lambda: s.driver.of(e.StreamBroken))

    await run(test)


async def test_a_failed_dial_says_why() -> None:
    async def test(s: Setting) -> None:
        nobody = key_of(9).node
        s.carrier.perform(Dial(nobody, ("/memory/1/p2p/nobody",)))
        await until(lambda: s.driver.of(e.DialFailed))
        assert s.driver.of(e.DialFailed)[0].reason

    await run(test)


async def test_the_other_sides_reset_is_one_broken_stream() -> None:
    async def test(s: Setting) -> None:
        s.open()
        await s.other.arrived.wait()
        s.other.streams[0].reset()
        await until(lambda: s.driver.of(e.StreamBroken))
        await trio.testing.wait_all_tasks_blocked()
        assert len(s.driver.of(e.StreamBroken)) == 1
        assert s.carrier.streams == 0

    await run(test)


class BreakingStream:
    """A double of a stream that breaks while something is sent, before what has come on it is read."""

    peer = key_of(2).node
    protocol = JOB_PROTOCOL

    def __init__(self) -> None:
        self.was_reset = False

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        raise StreamBroken("the peer reset the stream")

    async def receive(self) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def finish(self) -> None:
        raise AssertionError

    def reset(self) -> None:
        self.was_reset = True


async def test_what_was_not_read_of_a_broken_stream_is_dropped() -> None:
    async def test(s: Setting) -> None:
        stream, outbox = BreakingStream(), s.carrier._outboxes.open(STREAM)
        s.carrier.perform(Send(STREAM, b"data"))
        await s.carrier._carry(STREAM, stream, outbox)
        assert stream.was_reset
        assert len(s.driver.of(e.StreamBroken)) == 1

    await run(test)
