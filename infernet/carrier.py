"""Carries streams of a transport for the driver: one task to read, one to write, and a bounded outbox each."""

from __future__ import annotations

from collections import deque
from typing import Final

import structlog
import trio

from infernet.driver import Driver, NetworkEffect
from infernet.transport.contract import ConnectionInfo, DialFailed, Stream, StreamBroken, Transport, TransportError
from protocol import constants as c
from protocol import events as e
from protocol.ids import NodeId, StreamId, short
from protocol.records import Reachability

log = structlog.get_logger(__name__)

# The largest sealed prompt and its frames fit; beyond that only a reader that stands still overflows.
OUTBOX_BYTES_MAX: Final = c.SEALED_BYTES_MAX + 256 * 1024
# What was queued before a reset, a Fault above all, gets this long to leave, and this long to be read: a reset that
# overtakes it would take it along.
LAST_WORDS_S: Final = 1.0
LAST_WORDS_READ_S: Final = 0.2
# Longer than one address may take, so that the reasons of all addresses are heard.
DIAL_TIMEOUT_S: Final = 2 * c.REACH_DEADLINE_S


class _Outbox:
    """What waits to be written on one stream, and how the stream is to end."""

    __slots__ = ("_finish", "_overflowed", "_queue", "_reset", "_wake", "size_bytes")

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._wake = trio.Event()
        self.size_bytes = 0
        self._finish = False
        self._reset = False
        self._overflowed = False

    def is_reset(self) -> bool:
        return self._reset

    def put(self, data: bytes) -> bool:
        """Queue data; False when it does not fit. Whatever comes after that is dropped: it would follow a gap."""
        if self._overflowed:
            return True
        if self.size_bytes + len(data) > OUTBOX_BYTES_MAX:
            self._overflowed = True
            return False
        self._queue.append(data)
        self.size_bytes += len(data)
        self._wake.set()
        return True

    def end(self, *, reset: bool) -> None:
        if self._overflowed and not reset:
            return  # an end after a gap would look like a clean one; the reset is on its way
        self._reset = self._reset or reset
        self._finish = True
        self._wake.set()

    async def wait_for_reset(self) -> None:
        while not self._reset:
            self._wake = trio.Event()
            await self._wake.wait()

    async def take(self) -> bytes:
        """Everything queued, as one piece; b"" when the stream is to end and all is written."""
        while not self._queue and not self._finish:
            self._wake = trio.Event()
            await self._wake.wait()
        data = b"".join(self._queue)
        self._queue.clear()
        self.size_bytes = 0
        return data


class TransportCarrier:
    """Connects a transport with the driver: it is the transport's handler and the driver's carrier."""

    def __init__(self, transport: Transport, driver: Driver) -> None:
        self._transport = transport
        self._driver = driver
        self._outboxes: dict[StreamId, _Outbox] = {}
        self._nursery: trio.Nursery | None = None
        self._dialling: set[NodeId] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the transport and all streams until cancelled. Raises what `Transport.run` raises."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._transport.run, self)
            self._driver.dialer = self
            task_status.started()

    @property
    def streams(self) -> int:
        """Streams that are carried at this moment."""
        return len(self._outboxes)

    # ------------------------------------------------------------ the transport's handler

    def connected(self, info: ConnectionInfo) -> None:
        self._driver.connected(self, e.PeerConnected(info.peer, info.remote_address, info.inbound))

    def disconnected(self, peer: NodeId) -> None:
        self._driver.disconnected(self, peer)

    async def stream_opened(self, stream: Stream) -> None:
        number = self._driver.inbound_stream(self)
        outbox = self._outboxes[number] = _Outbox()
        await self._driver.post_with_backpressure(e.StreamOpened(number, stream.peer, stream.protocol))
        await self._carry(number, stream, outbox)

    # ------------------------------------------------------------ the driver's carrier

    def perform(self, effect: NetworkEffect) -> None:
        if isinstance(effect, e.Send):
            outbox = self._outboxes.get(effect.stream)
            if outbox is not None and not outbox.put(effect.data):
                self._driver.post(e.OutboxFull(effect.stream))
        elif isinstance(effect, (e.FinishStream, e.ResetStream)):
            outbox = self._outboxes.get(effect.stream)
            if outbox is not None:
                outbox.end(reset=isinstance(effect, e.ResetStream))
        elif isinstance(effect, e.DialBack):
            self._driver.post(e.DialedBack(effect.probe, Reachability.NOT_TRIED, "this node dials nobody back"))
        elif isinstance(effect, e.ReserveRelay):
            self._driver.post(e.RelayLost(effect.relay, "this node uses no relays"))
        elif isinstance(effect, e.Misbehaved):
            self._transport.misbehaved(effect.peer, effect.reason, effect.weight)
        elif isinstance(effect, (e.Dial, e.HangUp, e.OpenStream)):
            self._spawn(effect)

    def _spawn(self, effect: e.Dial | e.HangUp | e.OpenStream) -> None:
        assert self._nursery is not None, "an effect before the transport ran"
        if isinstance(effect, e.OpenStream):
            self._outboxes[effect.stream] = _Outbox()
            self._nursery.start_soon(self._open, effect)
        elif isinstance(effect, e.Dial):
            if effect.peer not in self._dialling:
                self._dialling.add(effect.peer)
                self._nursery.start_soon(self._dial, effect)
        else:
            self._nursery.start_soon(self._transport.disconnect, effect.peer)

    async def _dial(self, effect: e.Dial) -> None:
        try:
            with trio.fail_after(DIAL_TIMEOUT_S):
                await self._transport.dial(effect.peer, effect.addresses)
        except DialFailed as error:
            self._driver.post(e.DialFailed(effect.peer, str(error)))
        except trio.TooSlowError:
            self._driver.post(e.DialFailed(effect.peer, f"no address answered within {DIAL_TIMEOUT_S:g} s"))
        finally:
            self._dialling.discard(effect.peer)

    async def _open(self, effect: e.OpenStream) -> None:
        outbox = self._outboxes[effect.stream]
        try:
            stream = await self._transport.open_stream(effect.peer, effect.protocol)
        except TransportError as error:
            self._close(effect.stream)
            self._driver.post(e.StreamBroken(effect.stream, str(error)))
            return
        await self._carry(effect.stream, stream, outbox)

    # ------------------------------------------------------------ one stream

    async def _carry(self, number: StreamId, stream: Stream, outbox: _Outbox) -> None:
        """Read and write until both sides are done or the stream breaks; the driver hears of the latter once."""
        try:
            async with trio.open_nursery() as nursery:
                written = trio.Event()
                nursery.start_soon(self._write, stream, outbox, written, nursery.cancel_scope)
                await self._read(number, stream)
                await written.wait()
                nursery.cancel_scope.cancel()
        except* StreamBroken as group:
            if not outbox.is_reset():
                self._driver.post(e.StreamBroken(number, str(group.exceptions[0])))
        except* Exception as group:  # a bug in one stream must not end the node
            log.exception("stream.failed", peer=short(stream.peer), error=type(group.exceptions[0]).__name__)
            self._driver.post(e.StreamBroken(number, "an internal error"))
            stream.reset()
        finally:
            self._close(number)

    def _close(self, number: StreamId) -> None:
        self._outboxes.pop(number, None)
        self._driver.stream_closed(number)

    async def _read(self, number: StreamId, stream: Stream) -> None:
        while data := await stream.receive():
            await self._driver.post_with_backpressure(e.BytesReceived(number, data))
        await self._driver.post_with_backpressure(e.StreamFinished(number))

    @staticmethod
    async def _write(stream: Stream, outbox: _Outbox, written: trio.Event, scope: trio.CancelScope) -> None:
        while data := await outbox.take():
            if outbox.is_reset():
                await _say_last_words(stream, data)
                break
            await stream.send(data)
        if not outbox.is_reset():
            await stream.finish()
            written.set()
            # The other side may still send; a reset of ours must end the stream then, too.
            await outbox.wait_for_reset()
        stream.reset()
        scope.cancel()


async def _say_last_words(stream: Stream, data: bytes) -> None:
    with trio.move_on_after(LAST_WORDS_S):
        await stream.send(data)
        await stream.finish()
        await trio.sleep(LAST_WORDS_READ_S)
