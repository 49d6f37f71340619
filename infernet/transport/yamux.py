"""yamux over a secure channel: one task reads, one writes, one listens for silence.

The writer takes whatever all streams have queued since its last turn and sends it as one piece, so that fifty
streams with a token each cost one encryption and one system call. Because only the writer touches the channel, a
sender or reader may be cancelled anywhere without harm to the connection. The rules are in `yamux_session.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from infernet.transport.budget import Budget
from infernet.transport.channel import Channel, ChannelBroken
from infernet.transport.contract import RECEIVE_BYTES_MAX, StreamBroken
from infernet.transport.yamux_frames import GO_AWAY_NORMAL, GO_AWAY_PROTOCOL_ERROR, YamuxError
from infernet.transport.yamux_session import (
    Event,
    GoneAway,
    Opened,
    Readable,
    Session,
    SessionStream,
    Writable,
    YamuxConfig,
)

# SPEC 01: A node SHOULD ask a peer for a sign of life that was silent for 15 seconds, or for 5 seconds while somebody
#   waits for a job on that connection, and take it for lost after 10 more seconds of silence.
KEEPALIVE_S: Final = 15.0
KEEPALIVE_WATCHED_S: Final = 5.0
PING_TIMEOUT_S: Final = 10.0
# A peer that takes nothing at all from its socket for this long is gone: its streams' windows cannot cause that.
WRITE_TIMEOUT_S: Final = 30.0
# Frames without data that a peer may send: some hundred streams a second need no tenth of it.
CONTROL_FRAMES_PER_S: Final = 5_000.0
CONTROL_FRAMES_BURST: Final = 50_000
# What we still try to deliver, the farewell included, before we close.
FLUSH_TIMEOUT_S: Final = 0.5
# A sender that never has to wait lets others run each time this much is queued.
_YIELD_BYTES: Final = 16 * 1024


class YamuxStream:
    """One stream. Not yet the contract's: it has no protocol (`libp2p_stream.py` adds that)."""

    __slots__ = ("_connection", "_readable", "_sending", "_state", "_writable")

    def __init__(self, connection: YamuxConnection, state: SessionStream) -> None:
        self._connection = connection
        self._state = state
        self._sending = False
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None

    async def send(self, data: bytes) -> None:
        """As `Stream.send`. Yields only when much is queued or it must wait."""
        connection = self._connection
        if connection.session.outgoing_bytes > _YIELD_BYTES:
            await trio.lowlevel.checkpoint()
        self._check_sendable()
        sent = connection.session.send(self._state, data)
        connection.wake_writer()
        if sent < len(data):
            await self._send_rest(data, sent)

    def _check_sendable(self) -> None:
        if self._state.broken:
            raise StreamBroken(self._state.broken)
        if self._state.we_finished:
            raise StreamBroken("we have finished this stream")
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")

    async def _send_rest(self, data: bytes, sent: int) -> None:
        connection, state = self._connection, self._state
        self._sending = True
        try:
            while sent < len(data):
                if state.send_window_bytes:
                    await connection.room()
                else:
                    if self._writable is None:
                        self._writable = trio.Event()
                    await self._writable.wait()
                if state.broken:
                    raise StreamBroken(state.broken)
                sent = connection.session.send(state, data, sent)
                connection.wake_writer()
        except trio.Cancelled:
            if sent:
                self._drop("a send was cancelled half way")
            raise
        finally:
            self._sending = False

    async def receive(self, limit_bytes: int = RECEIVE_BYTES_MAX) -> bytes:
        """As `Stream.receive`, at most so much. What came before a reset or a loss is still given out first."""
        state = self._state
        while not state.buffer:
            if state.broken:
                raise StreamBroken(state.broken)
            if state.peer_finished:
                return b""
            if self._readable is None:
                self._readable = trio.Event()
            await self._readable.wait()
        data = self._connection.session.take(state, limit_bytes)
        self._connection.wake_writer()
        return data

    async def finish(self) -> None:
        """As `Stream.finish`; it never has to wait."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._connection.session.finish(self._state)
        self._connection.settle(self._state)

    def reset(self) -> None:
        """As `Stream.reset`."""
        self._drop("we reset the stream")

    def _drop(self, reason: str) -> None:
        self._connection.session.reset(self._state, reason)
        self._connection.settle(self._state)
        self.wake_reader()
        self.wake_sender()

    def watch(self) -> None:
        """Somebody waits for what comes on this stream: a dead connection is to be noticed soon, until it ends."""
        self._connection.watch(self._state)

    def release(self) -> None:
        """The task that served this inbound stream has ended; to be called once."""
        self._connection.session.release(self._state)

    def wake_reader(self) -> None:
        """Let a waiting `receive` look again."""
        if self._readable is not None:
            self._readable.set()
            self._readable = None

    def wake_sender(self) -> None:
        """Let a `send` that waits for credit look again."""
        if self._writable is not None:
            self._writable.set()
            self._writable = None


class YamuxConnection:
    """A multiplexed connection; `lost` says why it ended, and `offence` how the peer is to blame for that.

    `opened` is called with each stream that the peer opens. What the connection holds counts against `budget`.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        initiator: bool,
        config: YamuxConfig,
        opened: Callable[[YamuxStream], None],
        budget: Budget | None = None,
    ) -> None:
        self.session = Session(initiator=initiator, config=config)
        self.lost: str | None = None
        self.offence: str | None = None
        self._budget = budget or Budget()
        self._channel = channel
        self._opened = opened
        self._streams: dict[int, YamuxStream] = {}
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._writer_wake = trio.Event()
        self._room = trio.Event()
        self._flushed = trio.Event()
        self._heard_at_s = trio.current_time()
        self._used_at_s = self._heard_at_s
        #: How long the peer took to answer the last ping; None before the first, which comes after some silence.
        self.round_trip_s: float | None = None
        self._pinged_at_s: float | None = None
        self._sending_bytes = 0
        self._control_frames_left = float(CONTROL_FRAMES_BURST)
        self._watched: set[int] = set()
        self._watch_began = trio.Event()

    async def run(self) -> None:
        """Run until the connection ends, by whatever cause; raises nothing of its own."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for loop in (self._read_loop, self._write_loop, self._keepalive_loop):
                        nursery.start_soon(self._supervise, loop)
        finally:
            self._lose("the transport was stopped")
            with trio.CancelScope(shield=True):
                await self._channel.aclose()
            self._ended.set()

    def is_open(self) -> bool:
        """Whether new streams can be opened."""
        return not (self.lost or self.session.peer_going_away or self.session.going_away)

    def open_stream(self, greeting: bytes = b"") -> YamuxStream:
        """Open a stream with its first bytes, without waiting. Raises ChannelBroken when the connection takes none."""
        if self.lost:
            raise ChannelBroken(self.lost)
        try:
            state = self.session.open(greeting)
        except YamuxError as error:
            raise ChannelBroken(str(error)) from None
        self.wake_writer()
        return self._adopt(state)

    async def aclose(self) -> None:
        """Say farewell, give what is queued a moment to leave, and close."""
        if not self.lost:
            await self._farewell(GO_AWAY_NORMAL)
        self.abort("we closed the connection")
        await self.wait_ended()

    async def wait_ended(self) -> None:
        """Wait until `run` has ended."""
        await self._ended.wait()

    def retire(self) -> None:
        """Let neither side open streams any more; the connection ends with the last of those that are open."""
        self.session.go_away(GO_AWAY_NORMAL)
        self.wake_writer()

    def abort(self, reason: str) -> None:
        """End the connection at once; `run` returns soon after."""
        self._lose(reason)
        self._scope.cancel()

    def cut(self) -> None:
        """As `Holder.cut`: what is unread here is dropped."""
        streams = list(self._streams.values())
        self.offence = self.offence or "it made us hold more than anybody else"
        self.abort("this node holds too much, most of it for this peer")
        for stream in streams:
            stream.reset()

    @property
    def idle_s(self) -> float:
        """For how long nobody has had a stream here."""
        return 0.0 if self.session.streams else trio.current_time() - self._used_at_s

    def watch(self, state: SessionStream) -> None:
        """See `YamuxStream.watch`."""
        if state.stream_id in self._streams:
            self._watched.add(state.stream_id)
            self._watch_began.set()

    def wake_writer(self) -> None:
        """Something may have been received, taken or queued."""
        if self.session.outgoing_bytes:
            self._writer_wake.set()
        self._account()

    def _account(self) -> None:
        if not self.lost:
            session = self.session
            self._budget.set(self, session.unread_bytes + session.outgoing_bytes + self._sending_bytes)

    async def room(self) -> None:
        """Wait until the writer has taken what was queued."""
        await self._room.wait()

    def settle(self, state: SessionStream) -> None:
        """After a stream changed on our side: send what that queued, and forget the stream if it is over."""
        self.wake_writer()
        if state.stream_id not in self.session.streams:
            self._streams.pop(state.stream_id, None)
            self._watched.discard(state.stream_id)
            self._used_at_s = trio.current_time()
            self._end_if_drained()

    def _adopt(self, state: SessionStream) -> YamuxStream:
        stream = self._streams[state.stream_id] = YamuxStream(self, state)
        return stream

    def _lose(self, reason: str) -> None:
        if self.lost:
            return
        self.lost = reason
        self._budget.set(self, 0)
        self.session.lose(f"the connection is lost: {reason}")
        for stream in self._streams.values():
            stream.wake_reader()
            stream.wake_sender()
        self._streams.clear()
        self._room.set()
        self._flushed.set()

    async def _supervise(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            await loop()
        except ChannelBroken as error:
            self.abort(str(error))
        except YamuxError as error:
            self.offence = f"it breaks the rules of yamux: {error}"
            await self._farewell(GO_AWAY_PROTOCOL_ERROR)
            self.abort(f"the peer breaks the rules of yamux: {error}")

    async def _farewell(self, code: int) -> None:
        """Tell the peer that we go, as far as it still listens."""
        self.session.go_away(code)
        self._flushed = trio.Event()
        self.wake_writer()
        with trio.move_on_after(FLUSH_TIMEOUT_S):
            await self._flushed.wait()

    async def _read_loop(self) -> None:
        while data := await self._channel.receive():
            now_s = trio.current_time()
            self._count_control_frames(now_s - self._heard_at_s)
            self._heard_at_s = now_s
            pongs = self.session.pongs
            for event in self.session.receive(data):
                self._dispatch(event)
            if self.session.pongs != pongs and self._pinged_at_s is not None:
                self.round_trip_s, self._pinged_at_s = now_s - self._pinged_at_s, None
            self.wake_writer()
            self._end_if_drained()
        raise ChannelBroken("the peer closed it")

    def _count_control_frames(self, since_s: float) -> None:
        """Take what came last from a bucket that fills with time."""
        left = self._control_frames_left - self.session.control_frames + since_s * CONTROL_FRAMES_PER_S
        self.session.control_frames = 0
        self._control_frames_left = min(float(CONTROL_FRAMES_BURST), left)
        if left < 0:
            raise YamuxError("more frames without data than anybody needs")

    def _dispatch(self, event: Event) -> None:
        match event:
            case Readable(state):
                if stream := self._streams.get(state.stream_id):
                    stream.wake_reader()
                    self.settle(state)
            case Writable(state):
                if stream := self._streams.get(state.stream_id):
                    stream.wake_sender()
            case Opened(state):
                self._opened(self._adopt(state))
            case GoneAway(code) if code != GO_AWAY_NORMAL:
                raise ChannelBroken(f"the peer ended it with code {code}")
            case GoneAway():
                pass

    def _end_if_drained(self) -> None:
        # What the last stream still had to say must leave first.
        is_silent = not (self.session.outgoing_bytes or self._sending_bytes)
        if self.session.peer_going_away and not self.session.streams and is_silent:
            self.abort("the peer said farewell")

    async def _write_loop(self) -> None:
        session = self.session
        while True:
            if not session.outgoing_bytes:
                self._flushed.set()
                self._writer_wake = trio.Event()
                await self._writer_wake.wait()
            self._sending_bytes = session.outgoing_bytes
            # No name for the data, which the channel gives up as soon as it has encrypted it.
            sending = self._channel.send(session.data_to_send())
            self._account()
            self._room.set()
            self._room = trio.Event()
            with trio.move_on_after(WRITE_TIMEOUT_S) as deadline:
                await sending
            if deadline.cancelled_caught:
                raise ChannelBroken(f"the peer took nothing for {WRITE_TIMEOUT_S:.0f} s")
            self._sending_bytes = 0
            self._account()
            self._end_if_drained()

    async def _keepalive_loop(self) -> None:
        while True:
            self._watch_began = trio.Event()
            silence_s = KEEPALIVE_WATCHED_S if self._watched else KEEPALIVE_S
            with trio.move_on_at(self._heard_at_s + silence_s) as silence:
                await self._watch_began.wait()
            if not silence.cancelled_caught or trio.current_time() < self._heard_at_s + silence_s:
                continue
            heard_at_s = self._heard_at_s
            self.session.ping(0)
            self._pinged_at_s = trio.current_time()
            self.wake_writer()
            # In two halves: when this process stood still, the answer may be here and not be read yet.
            for _ in range(2):
                await trio.sleep(PING_TIMEOUT_S / 2)
            if self._heard_at_s == heard_at_s:
                raise ChannelBroken(f"the peer was silent for {silence_s + PING_TIMEOUT_S:.0f} s")
