"""The events of one chat in memory: numbered, complete, and read from any number on.

A reader is no more than the number it has read up to, so a slow one costs nothing and a lost one resumes exactly.
Reading and waiting happen in one step of the event loop: nothing can fall between them. Texts live here and nowhere
else, within a bound.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

TEXT_KIND: Final = "token"

_UNICODE_LINE_ENDS: Final = (
    (b"\xc2\x85", b"\\u0085"),
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
)

Entry = tuple[int, str, bytes]


class FeedFull(Exception):
    """The answer is larger than its number of tokens can honestly be."""


class Feed:
    """Append at one end, read by number at the other."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._entries: list[Entry] = []
        self._texts: list[str] = []
        self._waiters: set[asyncio.Future[bool]] = set()
        self.has_ended = False

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._texts)

    def add(self, kind: str, data: dict[str, Any]) -> None:
        """Append an event."""
        assert not self.has_ended, "an event after the end"
        self._append(kind, msgspec.json.encode(data))

    def add_text(self, text: str) -> None:
        """Append a piece of the answer. Raises FeedFull, and keeps nothing of it."""
        data = msgspec.json.encode({"text": text})
        if self._bytes + len(data) > self._bytes_max:
            raise FeedFull
        self._texts.append(text)
        self._bytes += len(data)
        self._append(TEXT_KIND, data)

    def end(self, kind: str, data: dict[str, Any]) -> None:
        """Append the last event."""
        self.add(kind, data)
        self.has_ended = True  # before any reader that was woken runs

    def read(self, after: int) -> list[Entry]:
        """All events with a number above `after`: number, kind, JSON."""
        return self._entries[max(0, after) :]

    async def wait(self, after: int, timeout_s: float) -> bool:
        """Wait until there is something above `after`, or the feed has ended; False when the time ran out first."""
        if len(self._entries) > after or self.has_ended:
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters.add(waiter)
        # A timer and a future: once per token and reader, asyncio.timeout would cost as much as all the rest.
        timer = loop.call_later(timeout_s, _resolve, waiter, False)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)

    def _append(self, kind: str, data: bytes) -> None:
        self._entries.append((len(self._entries) + 1, kind, data))
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            _resolve(waiter, True)


def _resolve(waiter: asyncio.Future[bool], result: bool) -> None:
    if not waiter.done():
        waiter.set_result(result)


def sse_frame(entry: Entry) -> bytes:
    """One event of a `text/event-stream` (WHATWG HTML, 9.2). The JSON holds no line break, so nothing injects one.

    The standard ends lines at CR and LF only, which JSON escapes anyway; many clients also do at Unicode's own line
    ends, so those are escaped too.
    """
    number, kind, data = entry
    for raw, escaped in _UNICODE_LINE_ENDS:
        data = data.replace(raw, escaped)
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, kind.encode(), data)
