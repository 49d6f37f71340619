"""Orders that wait for a slot: who is next, at which place everybody stands, and how long that takes.

Fair between askers: they take turns, and each one's own orders go in the order of their arrival. So whoever sends many
delays itself, and whoever sends one waits for at most one of everybody else. How long a place takes is estimated from
how long runs have really taken of late; where nothing is measured yet, from a guess. What the owner of the machine
asks goes before all of them.

Nothing here sends: `providing` asks, and tells those who wait.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

from protocol.ids import NodeId, RunId

# How long a run is thought to take before one has been measured.
RUN_GUESS_S: Final = 10.0
# As many of the latest runs as make an estimate steady, and few enough to follow a change of use.
_RUNS_REMEMBERED: Final = 32


class Line:
    """Those who wait for one model's slots."""

    def __init__(self) -> None:
        self._askers: OrderedDict[NodeId, deque[RunId]] = OrderedDict()
        # The owner's, before all others.
        self._own: deque[RunId] = deque()

    def __len__(self) -> int:
        return len(self._own) + sum(map(len, self._askers.values()))

    def add(self, asker: NodeId, run: RunId, *, is_own: bool = False) -> None:
        """Take a place. An asker's first order comes after one of everybody who waits already."""
        (self._own if is_own else self._askers.setdefault(asker, deque())).append(run)

    def remove(self, asker: NodeId, run: RunId) -> None:
        """Leave the line. Those who did not stand in it may."""
        if run in self._own:
            self._own.remove(run)
            return
        runs = self._askers.get(asker)
        if runs is None or run not in runs:
            return
        runs.remove(run)
        if not runs:
            del self._askers[asker]

    def pop(self) -> RunId | None:
        """The next run; its asker goes to the end of the turns."""
        if self._own:
            return self._own.popleft()
        if not self._askers:
            return None
        asker, runs = next(iter(self._askers.items()))
        run = runs.popleft()
        if runs:
            self._askers.move_to_end(asker)
        else:
            del self._askers[asker]
        return run

    def in_order(self) -> list[RunId]:
        """All who wait, in the order in which their turn will come."""
        ordered: list[RunId] = list(self._own)
        rounds = max(map(len, self._askers.values()), default=0)
        for turn in range(rounds):
            ordered += [runs[turn] for runs in self._askers.values() if turn < len(runs)]
        return ordered


class Pace:
    """How long runs of one model take."""

    def __init__(self) -> None:
        self._taken_s: deque[float] = deque(maxlen=_RUNS_REMEMBERED)

    def add(self, taken_s: float) -> None:
        """A run has freed its slot after so long."""
        self._taken_s.append(taken_s)

    def waits_s(self, slots: int, elapsed_s: Sequence[float], places: int) -> list[float]:
        """How long each of so many places waits for a slot, when the runs in the slots have run for so long."""
        if slots == 0:
            return [RUN_GUESS_S] * places
        mean_s = sum(self._taken_s) / len(self._taken_s) if self._taken_s else RUN_GUESS_S
        free_at_s = [0.0] * (slots - len(elapsed_s)) + [self._left_s(elapsed, mean_s) for elapsed in elapsed_s]
        heapq.heapify(free_at_s)
        waits: list[float] = []
        for _ in range(places):
            wait_s = heapq.heappop(free_at_s)
            waits.append(wait_s)
            heapq.heappush(free_at_s, wait_s + mean_s)
        return waits

    def _left_s(self, elapsed_s: float, mean_s: float) -> float:
        """What runs that got as far as this one had still before them; half a mean when none ever did."""
        left = [taken_s - elapsed_s for taken_s in self._taken_s if taken_s > elapsed_s]
        if left:
            return sum(left) / len(left)
        return max(mean_s - elapsed_s, mean_s / 2)
