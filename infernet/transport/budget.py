"""How many bytes all connections together may make us hold."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Protocol

# Four connections that use all they may, or a thousand that each hold back an answer.
HELD_BYTES_MAX: Final = 64 * 1024 * 1024


class Holder(Hashable, Protocol):
    """Something whose bytes are counted."""

    def cut(self) -> None:
        """Give up everything that is held, at once."""


class Budget:
    """What each holder holds now; when it is too much in all, those that hold most are cut, the greediest first.

    A window for each stream bounds what one stream costs, and a limit for each connection its streams. Neither bounds
    what thousands of peers cost together, each of which does what it may.
    """

    def __init__(self, limit_bytes: int = HELD_BYTES_MAX) -> None:
        self._limit_bytes = limit_bytes
        self._held: dict[Holder, int] = {}
        self.total_bytes = 0
        self.cuts = 0

    def set(self, holder: Holder, held_bytes: int) -> None:
        """A holder now holds so much."""
        self.total_bytes += held_bytes - self._held.get(holder, 0)
        if held_bytes:
            self._held[holder] = held_bytes
        else:
            self._held.pop(holder, None)
        while self.total_bytes > self._limit_bytes:
            greediest = max(self._held, key=self._held.__getitem__)
            self.total_bytes -= self._held.pop(greediest)
            self.cuts += 1
            greediest.cut()
