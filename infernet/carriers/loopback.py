"""Carries the streams of a node to itself: what its owner asks is served like any order, and never leaves the process.

Both ends of such a stream are the same peer's, under two numbers. What one end says waits in a bounded outbox, as on
any connection, and reaches the other end as an event in its turn. Nobody connects for it or appears as connected.
"""

from __future__ import annotations

import trio

from infernet.carriers.outbox import Outbox, Outboxes
from infernet.driver import Driver, NetworkEffect
from protocol import events as e
from protocol.effects import FinishStream, OpenStream, ResetStream, Send
from protocol.ids import StreamId


class Loopback:
    """The driver's carrier for the node's own id; it has no other use."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._outboxes = Outboxes()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._driver.loopback = self
            task_status.started()
            await trio.sleep_forever()

    @property
    def streams(self) -> int:
        """Ends of streams that are carried at this moment."""
        return len(self._outboxes)

    def perform(self, effect: NetworkEffect) -> None:
        if isinstance(effect, Send):
            for overflowed in self._outboxes.put(effect.stream, effect.data):
                self._driver.post(e.OutboxFull(overflowed))
        elif isinstance(effect, (FinishStream, ResetStream)):
            if (outbox := self._outboxes.get(effect.stream)) is not None:
                outbox.end(reset=isinstance(effect, ResetStream))
        elif isinstance(effect, OpenStream):
            assert self._nursery is not None, "an effect before the carrier ran"
            far = self._driver.inbound_stream(self)
            ends = (effect.stream, self._outboxes.open(effect.stream)), (far, self._outboxes.open(far))
            self._nursery.start_soon(self._carry, effect, *ends)

    async def _carry(self, opened: OpenStream, near: tuple[StreamId, Outbox], far: tuple[StreamId, Outbox]) -> None:
        """Bring each end what the other says, until both are done or one drops the stream."""
        try:
            await self._driver.post_with_backpressure(e.StreamOpened(far[0], opened.peer, opened.protocol))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._bring, near[1], far[0], nursery.cancel_scope)
                nursery.start_soon(self._bring, far[1], near[0], nursery.cancel_scope)
        finally:
            for number, _ in (near, far):
                self._outboxes.close(number)
                self._driver.stream_closed(number)

    async def _bring(self, outbox: Outbox, end: StreamId, scope: trio.CancelScope) -> None:
        """What was said before a reset, a Fault above all, is heard before it."""
        while data := await outbox.take():
            await self._driver.post_with_backpressure(e.BytesReceived(end, data))
            self._outboxes.sent(outbox, len(data))
        if outbox.is_reset():
            await self._driver.post_with_backpressure(e.StreamBroken(end, "the other end has dropped it"))
            scope.cancel()
        else:
            await self._driver.post_with_backpressure(e.StreamFinished(end))
