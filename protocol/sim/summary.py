"""The figures of a run: what was asked, what became of it, how long it took, what it cost the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.effects import JobDone, JobFailed, JobText, JobVector
from protocol.events import Ask
from protocol.ids import JobId
from protocol.sim.checkers import Seen


@dataclass(slots=True)
class Summary:
    """Counts and durations; all times are virtual seconds. Jobs whose asker crashed appear only among those asked."""

    jobs_asked: int = 0
    jobs_done: int = 0
    jobs_failed: Counter[str] = field(default_factory=Counter)
    first_text_s: list[float] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)
    _asked_at_s: dict[JobId, float] = field(default_factory=dict)
    _without_text: set[JobId] = field(default_factory=set)

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {
            Ask: self._on_ask,
            JobText: self._on_text,
            JobVector: self._on_text,
            JobDone: self._on_done,
            JobFailed: self._on_failed,
        }

    def _on_ask(self, seen: Seen) -> None:
        self.jobs_asked += 1
        self._asked_at_s[seen.item.job] = seen.at_s
        self._without_text.add(seen.item.job)

    def _on_text(self, seen: Seen) -> None:
        if seen.item.job in self._without_text:
            self._without_text.remove(seen.item.job)
            self.first_text_s.append(seen.at_s - self._asked_at_s[seen.item.job])

    def _on_done(self, seen: Seen) -> None:
        self.jobs_done += 1
        self.done_s.append(seen.at_s - self._asked_at_s[seen.item.job])

    def _on_failed(self, seen: Seen) -> None:
        self.jobs_failed[seen.item.code.name.lower()] += 1
