"""A speed limit for bytes."""

from __future__ import annotations

import math

import trio


class Pace:
    """So many bytes a second in the long run, and at once what a second allows; whoever takes waits in order."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        # When all that was taken so far is paid for.
        self._paid_at_s = -math.inf

    async def take(self, count: int) -> None:
        """Wait until so many bytes may go; returns at once below the limit."""
        now_s = trio.current_time()
        # A debt is paid in the order in which it was made: everybody waits for the end of his own.
        self._paid_at_s = max(self._paid_at_s, now_s - 1.0) + count / self._bytes_per_s
        if self._paid_at_s > now_s:
            await trio.sleep_until(self._paid_at_s)
