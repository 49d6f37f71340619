"""Virtual time: a heap of what happens when. Ties are broken by the order in which things were planned."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Schedule:
    """The clock of a simulation, in virtual seconds since its start; it moves only by doing what is planned next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Action]] = []
        self._count = 0

    def at(self, at_s: float, action: Action) -> None:
        """Plan an action; one planned for the past happens now, after what is already planned for now."""
        self._count += 1
        heapq.heappush(self._heap, (max(at_s, self.now_s), self._count, action))

    def soon(self, action: Action) -> None:
        """Plan an action for this very instant, after what is already planned for it."""
        self.at(self.now_s, action)

    def run_until(self, end_s: float) -> None:
        """Do everything that is planned up to and including this instant, and let the clock stand there."""
        heap = self._heap
        while heap and heap[0][0] <= end_s:
            at_s, _, action = heapq.heappop(heap)
            self.now_s = at_s
            action()
        self.now_s = max(self.now_s, end_s)
