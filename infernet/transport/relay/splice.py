"""Two streams made one: what comes on either goes out on the other, no faster than it is taken there."""

from __future__ import annotations

from collections.abc import Callable

import trio

from infernet.transport.contract import Stream, StreamBroken
from infernet.transport.relay.pace import Pace
from infernet.transport.relay.wire import Limit


class _Direction:
    """One way through a circuit: at most one piece is held here, the rest waits in the sender's window."""

    def __init__(self, source: Stream, sink: Stream, limit: Limit, paces: tuple[Pace, ...]) -> None:
        self._source = source
        self._sink = sink
        self._left_bytes = limit.data_bytes or None
        self._paces = paces
        self.moved_at_s = trio.current_time()

    async def run(self, first: bytes, count: Callable[[int], None]) -> None:
        """Carry to the end. Raises StreamBroken when either stream breaks, or the limit is reached."""
        data = first or await self._source.receive()
        while data:
            await self._carry(data)
            count(len(data))
            data = await self._source.receive()
        await self._sink.finish()

    async def _carry(self, data: bytes) -> None:
        self.moved_at_s = trio.current_time()
        if self._left_bytes is not None:
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                raise StreamBroken("the circuit has carried all that it may")
        for pace in self._paces:
            await pace.take(len(data))
        await self._sink.send(data)
        self.moved_at_s = trio.current_time()


async def splice(
    near: Stream,
    far: Stream,
    *,
    from_near: bytes,
    from_far: bytes,
    limit: Limit,
    idle_s: float,
    paces: tuple[Pace, ...],
    count: Callable[[int], None],
) -> None:
    """Carry bytes between two streams until both have finished, one breaks, or a limit is reached.

    Returns when both have finished; in every other case both streams are reset. `from_near` and `from_far` have been
    received already. `count` hears how many bytes went through. Raises nothing but cancellation.
    """
    there = _Direction(near, far, limit, paces)
    back = _Direction(far, near, limit, paces)

    async def watch() -> None:
        while True:
            quiet_since_s = max(there.moved_at_s, back.moved_at_s)
            if trio.current_time() >= quiet_since_s + idle_s:
                raise StreamBroken(f"nothing moved for {idle_s:g} s")
            await trio.sleep_until(quiet_since_s + idle_s)

    async def carry(nursery: trio.Nursery) -> None:
        async with trio.open_nursery() as both:
            both.start_soon(there.run, from_near, count)
            both.start_soon(back.run, from_far, count)
        nursery.cancel_scope.cancel()

    is_done = False
    try:
        with trio.move_on_after(limit.duration_s or float("inf")) as deadline:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await carry(nursery)
        is_done = not deadline.cancelled_caught
    except* StreamBroken:
        pass  # an end of the circuit is gone, or it has had its share; the other end hears by the reset
    finally:
        # SPEC 08: A relay MUST pass on that an end has finished sending, and MUST reset both ends when one of them
        #   breaks or a limit is reached.
        if not is_done:
            near.reset()
            far.reset()
