"""Carries streams of a transport for the driver: one task to read, one to write, and a bounded outbox each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
import trio

from infernet.carriers.outbox import Outbox, Outboxes
from infernet.driver import Driver, NetworkEffect
from infernet.transport.contract import ConnectionInfo, DialFailed, Stream, StreamBroken, Transport, TransportError
from protocol import constants as c
from protocol import events as e
from protocol.effects import (
    Dial,
    DialBack,
    FinishStream,
    HangUp,
    Misbehaved,
    OpenStream,
    ReleaseRelay,
    ReserveRelay,
    ResetStream,
    Send,
)
from protocol.ids import NodeId, StreamId, short

log = structlog.get_logger(__name__)

# What was queued before a reset, a Fault above all, gets this long to leave, and this long to be read: a reset that
# overtakes it would take it along.
LAST_WORDS_S: Final = 1.0
LAST_WORDS_READ_S: Final = 0.2
# Longer than one address may take, so that the reasons of all addresses are heard.
DIAL_TIMEOUT_S: Final = 2 * c.REACH_DEADLINE_S


class TransportCarrier:
    """Connects a transport with the driver: it is the transport's handler and the driver's carrier."""

    def __init__(
        self,
        transport: Transport,
        driver: Driver,
        services: Mapping[str, Callable[[Stream], Awaitable[None]]] | None = None,
    ) -> None:
        """`services` has, by protocol, who serves the streams that are none of the driver's."""
        self._transport = transport
        self._driver = driver
        self._services = services or {}
        self._outboxes = Outboxes()
        self._nursery: trio.Nursery | None = None
        self._dialling: set[NodeId] = set()
        self._relays: dict[NodeId, trio.CancelScope] = {}
        #: Bytes of messages, by the protocol of their stream.
        self.bytes_in: Counter[str] = Counter()
        self.bytes_out: Counter[str] = Counter()

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
        if (serve := self._services.get(stream.protocol)) is not None:
            await serve(stream)
            return
        number = self._driver.inbound_stream(self)
        outbox = self._outboxes.open(number)
        await self._driver.post_with_backpressure(e.StreamOpened(number, stream.peer, stream.protocol))
        await self._carry(number, stream, outbox)

    # ------------------------------------------------------------ the driver's carrier

    def perform(self, effect: NetworkEffect) -> None:
        if isinstance(effect, Send):
            for overflowed in self._outboxes.put(effect.stream, effect.data):
                self._driver.post(e.OutboxFull(overflowed))
        elif isinstance(effect, (FinishStream, ResetStream)):
            outbox = self._outboxes.get(effect.stream)
            if outbox is not None:
                outbox.end(reset=isinstance(effect, ResetStream))
        elif isinstance(effect, DialBack):
            self._started().start_soon(self._dial_back, effect)
        elif isinstance(effect, ReserveRelay):
            self._started().start_soon(self._hold_relay, effect.relay)
        elif isinstance(effect, ReleaseRelay):
            if scope := self._relays.get(effect.relay):
                scope.cancel()
        elif isinstance(effect, Misbehaved):
            self._transport.misbehaved(effect.peer, effect.reason, effect.weight)
        elif isinstance(effect, (Dial, HangUp, OpenStream)):
            self._spawn(effect)

    def _started(self) -> trio.Nursery:
        assert self._nursery is not None, "an effect before the transport ran"
        return self._nursery

    def _spawn(self, effect: Dial | HangUp | OpenStream) -> None:
        nursery = self._started()
        if isinstance(effect, OpenStream):
            nursery.start_soon(self._open, effect, self._outboxes.open(effect.stream))
        elif isinstance(effect, Dial):
            if effect.peer not in self._dialling:
                self._dialling.add(effect.peer)
                nursery.start_soon(self._dial, effect)
        else:
            nursery.start_soon(self._transport.disconnect, effect.peer)

    async def _dial(self, effect: Dial) -> None:
        try:
            with trio.fail_after(DIAL_TIMEOUT_S):
                await self._transport.dial(effect.peer, effect.addresses, at_once=effect.at_once)
        except DialFailed as error:
            self._driver.post(e.DialFailed(effect.peer, str(error), error.left_out))
        except trio.TooSlowError:
            self._driver.post(e.DialFailed(effect.peer, f"no address answered within {DIAL_TIMEOUT_S:g} s"))
        finally:
            self._dialling.discard(effect.peer)

    async def _dial_back(self, effect: DialBack) -> None:
        reachability, text = await self._transport.dial_back(effect.peer, effect.address)
        self._driver.post(e.DialedBack(effect.probe, reachability, text))

    async def _hold_relay(self, relay: NodeId) -> None:
        """Keep a place at a relay until it is released; the driver hears when it is lost instead."""

        def reserved(addresses: tuple[str, ...]) -> None:
            self._driver.post(e.RelayReserved(relay, addresses))

        with trio.CancelScope() as scope:
            self._relays[relay] = scope
            try:
                await self._transport.reserve_relay(relay, reserved)
            except TransportError as error:
                self._driver.post(e.RelayLost(relay, str(error)))
            finally:
                if self._relays.get(relay) is scope:
                    del self._relays[relay]

    async def _open(self, effect: OpenStream, outbox: Outbox) -> None:
        try:
            stream = await self._transport.open_stream(effect.peer, effect.protocol)
        except TransportError as error:
            self._close(effect.stream)
            self._driver.post(e.StreamBroken(effect.stream, str(error)))
            return
        await self._carry(effect.stream, stream, outbox)

    # ------------------------------------------------------------ one stream

    async def _carry(self, number: StreamId, stream: Stream, outbox: Outbox) -> None:
        """Read and write until both sides are done or the stream breaks; the driver hears of the latter once."""
        try:
            async with trio.open_nursery() as nursery:
                written = trio.Event()
                nursery.start_soon(self._write, stream, outbox, written)
                nursery.start_soon(_end_when_reset, stream, outbox, written, nursery.cancel_scope)
                await self._read(number, stream)
                await written.wait()
                nursery.cancel_scope.cancel()
        except* StreamBroken as group:
            # What has come and was not read counts against the connection until somebody drops it.
            stream.reset()
            if not outbox.is_reset():
                self._driver.post(e.StreamBroken(number, str(group.exceptions[0])))
        except* Exception as group:  # a bug in one stream must not end the node
            log.exception("stream.failed", peer=short(stream.peer), error=type(group.exceptions[0]).__name__)
            self._driver.post(e.StreamBroken(number, "an internal error"))
            stream.reset()
        finally:
            self._close(number)

    def _close(self, number: StreamId) -> None:
        self._outboxes.close(number)
        self._driver.stream_closed(number)

    async def _read(self, number: StreamId, stream: Stream) -> None:
        while data := await stream.receive():
            self.bytes_in[stream.protocol] += len(data)
            await self._driver.post_with_backpressure(e.BytesReceived(number, data))
        await self._driver.post_with_backpressure(e.StreamFinished(number))

    async def _write(self, stream: Stream, outbox: Outbox, written: trio.Event) -> None:
        while data := await outbox.take():
            await stream.send(data)
            self.bytes_out[stream.protocol] += len(data)
            self._outboxes.sent(outbox, len(data))
        if not outbox.is_reset():
            await stream.finish()
        written.set()


async def _end_when_reset(stream: Stream, outbox: Outbox, written: trio.Event, scope: trio.CancelScope) -> None:
    """Drop the stream as soon as we reset it, whoever stands still, but for a moment for what was said before."""
    await outbox.wait_for_reset()
    if outbox.held_bytes:
        with trio.move_on_after(LAST_WORDS_S):
            await written.wait()
            await stream.finish()
            await trio.sleep(LAST_WORDS_READ_S)
    stream.reset()
    scope.cancel()
