"""One at a time, in the order of arrival.

llama.cpp works on one prompt after the other, and a run whose prompt waits inside it can be neither cancelled nor
told when its turn comes. So runs wait here, and see how those before them get on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

_LOOK_INTERVAL_S: Final = 0.05


class _Ticket:
    def __init__(self, work: int) -> None:
        self.work_left = work


class Turns:
    """A lock for threads that is fair, and whose waiters can be cancelled. Work is counted in tokens."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[_Ticket] = deque()

    def take(
        self, cancelled: threading.Event, work: int = 0, ahead: Callable[[int], None] = lambda _: None
    ) -> Turn | None:
        """Wait for a turn; None when `cancelled` was set first.

        `work` is how much this one brings with it. `ahead` is told how much is before it, at first and now and then.
        """
        ticket = _Ticket(work)
        with self._changed:
            self._queue.append(ticket)
        while not cancelled.is_set():
            with self._changed:
                if self._queue[0] is ticket:
                    return Turn(self, ticket)
                before = sum(other.work_left for other in self._ahead_of(ticket))
            ahead(before)
            with self._changed:
                if self._queue[0] is not ticket:
                    self._changed.wait(_LOOK_INTERVAL_S)
        self._leave(ticket)
        return None

    def _ahead_of(self, ticket: _Ticket) -> list[_Ticket]:
        queue = list(self._queue)
        return queue[: queue.index(ticket)]

    def _leave(self, ticket: _Ticket) -> None:
        with self._changed:
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._changed.notify_all()


class Turn:
    """Somebody's turn, which lasts until it is given back."""

    def __init__(self, turns: Turns, ticket: _Ticket) -> None:
        self._turns = turns
        self._ticket = ticket

    def work_left(self, work: int) -> None:
        """Tell those who wait how much of it is still to be done."""
        self._ticket.work_left = work

    def give_back(self) -> None:
        """Let the next one in. Idempotent."""
        self._turns._leave(self._ticket)
