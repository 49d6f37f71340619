"""One at a time, in the order of arrival.

llama.cpp works on one prompt after the other, and a run whose prompt waits inside it can be neither cancelled nor
told when its turn comes. So runs wait here.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

_CANCEL_INTERVAL_S: Final = 0.05


class Turns:
    """A lock for threads that is fair, and whose waiters can be cancelled."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    def take(self, cancelled: threading.Event) -> Turn | None:
        """Wait for a turn; None when `cancelled` was set first."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            while self._queue[0] is not ticket and not cancelled.is_set():
                self._changed.wait(_CANCEL_INTERVAL_S)
            if not cancelled.is_set():
                return Turn(self, ticket)
            self._leave(ticket)
            return None

    def _leave(self, ticket: object) -> None:
        with self._changed:
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._changed.notify_all()


class Turn:
    """Somebody's turn, which lasts until it is given back."""

    def __init__(self, turns: Turns, ticket: object) -> None:
        self._turns = turns
        self._ticket = ticket

    def give_back(self) -> None:
        """Let the next one in. Idempotent."""
        self._turns._leave(self._ticket)
