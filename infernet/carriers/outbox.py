"""What waits to be written: a bounded queue for each stream, and a bound for all of them together.

A reader that stands still fills its own queue and nobody else's. A thousand of them that each hold back a little would
fill the memory all the same, so the sum is bounded too: then the queue goes first from which nothing has left for
longest.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from protocol import constants as c
from protocol.ids import StreamId

# The largest sealed prompt and its frames fit; beyond that only a reader that stands still overflows.
OUTBOX_BYTES_MAX: Final = c.SEALED_BYTES_MAX + 256 * 1024
OUTBOXES_BYTES_MAX: Final = 64 * 1024 * 1024


class Outbox:
    """The queue of one stream, and how the stream is to end."""

    __slots__ = ("_finish", "_queue", "_reset", "_wake", "held_bytes", "moved_at_s", "overflowed")

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._wake = trio.Event()
        self._finish = False
        self._reset = False
        # Queued, or taken and not yet on its way.
        self.held_bytes = 0
        self.moved_at_s = trio.current_time()
        self.overflowed = False

    def is_reset(self) -> bool:
        """Whether the stream is to be dropped."""
        return self._reset

    def put(self, data: bytes) -> None:
        """Queue data."""
        if not self.held_bytes:
            self.moved_at_s = trio.current_time()
        self._queue.append(data)
        self.held_bytes += len(data)
        self._wake.set()

    def drop(self) -> None:
        """Drop everything: from here on there is a gap, so nothing more is queued, and the reset is on its way."""
        self.overflowed = True
        self._queue.clear()
        self.held_bytes = 0

    def end(self, *, reset: bool) -> None:
        """Finish the stream after what is queued, or drop it."""
        if self.overflowed and not reset:
            return  # an end after a gap would look like a clean one
        self._reset = self._reset or reset
        self._finish = True
        self._wake.set()

    async def wait_for_reset(self) -> None:
        """Wait until the stream is to be dropped."""
        while not self._reset:
            await self._woken()

    async def take(self) -> bytes:
        """Everything queued, as one piece; b"" when the stream is to end and all is written."""
        while not self._queue and not self._finish:
            await self._woken()
        data = b"".join(self._queue)
        self._queue.clear()
        return data

    async def _woken(self) -> None:
        if self._wake.is_set():
            self._wake = trio.Event()
        await self._wake.wait()


class Outboxes:
    """Those of all streams of one carrier."""

    def __init__(self, limit_bytes: int = OUTBOXES_BYTES_MAX) -> None:
        self._limit_bytes = limit_bytes
        self._outboxes: dict[StreamId, Outbox] = {}
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._outboxes)

    def open(self, stream: StreamId) -> Outbox:
        """A queue for a new stream."""
        outbox = self._outboxes[stream] = Outbox()
        return outbox

    def get(self, stream: StreamId) -> Outbox | None:
        """The queue of a stream that is open."""
        return self._outboxes.get(stream)

    def close(self, stream: StreamId) -> None:
        """A stream is over. Nothing when it is already."""
        outbox = self._outboxes.pop(stream, None)
        if outbox is not None:
            self.held_bytes -= outbox.held_bytes

    def put(self, stream: StreamId, data: bytes) -> list[StreamId]:
        """Queue data for a stream; gives those streams whose queue was dropped for it, each once."""
        outbox = self._outboxes.get(stream)
        if outbox is None or outbox.overflowed:
            return []
        outbox.put(data)
        self.held_bytes += len(data)
        overflowed = []
        if outbox.held_bytes > OUTBOX_BYTES_MAX:
            overflowed.append(self._drop(stream, outbox))
        while self.held_bytes > self._limit_bytes and (victim := self._slowest()) is not None:
            overflowed.append(self._drop(*victim))
        return overflowed

    def _drop(self, stream: StreamId, outbox: Outbox) -> StreamId:
        self.held_bytes -= outbox.held_bytes
        outbox.drop()
        return stream

    def _slowest(self) -> tuple[StreamId, Outbox] | None:
        holding = ((number, box) for number, box in self._outboxes.items() if box.held_bytes)
        return min(holding, key=lambda pair: pair[1].moved_at_s, default=None)

    def sent(self, outbox: Outbox, size_bytes: int) -> None:
        """So much of what was taken is on its way."""
        outbox.moved_at_s = trio.current_time()
        if not outbox.overflowed:
            outbox.held_bytes -= size_bytes
            self.held_bytes -= size_bytes
