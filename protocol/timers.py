"""Deadlines by key, for machines that read no clock: set, cancel, what is due, which comes first."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Timers(Generic[Key]):
    """At most one deadline per key, in monotonic seconds; setting a key again moves its deadline."""

    def __init__(self) -> None:
        self._at: dict[Key, tuple[float, int, Key]] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._at)

    def __iter__(self) -> Iterator[Key]:
        """The keys that are set, in the order in which they were first."""
        return iter(self._at)

    def set(self, key: Key, at_s: float) -> None:
        self._count += 1
        self._at[key] = entry = (at_s, self._count, key)
        heapq.heappush(self._heap, entry)
        # Moved deadlines leave dead entries behind; sweep before they outnumber the living by much.
        if len(self._heap) > 2 * len(self._at) + 64:
            self._heap = list(self._at.values())
            heapq.heapify(self._heap)

    def cancel(self, key: Key) -> None:
        self._at.pop(key, None)

    def is_set(self, key: Key) -> bool:
        return key in self._at

    def next_deadline(self) -> float | None:
        """The earliest deadline, or None."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if self._at.get(entry[2]) is entry:
                return entry[0]
            heapq.heappop(heap)
        return None

    def pop_due(self, now_s: float) -> list[Key]:
        """Remove and return the keys whose deadline is not after now, earliest first."""
        due: list[Key] = []
        while (at := self.next_deadline()) is not None and at <= now_s:
            key = heapq.heappop(self._heap)[2]
            del self._at[key]
            due.append(key)
        return due
