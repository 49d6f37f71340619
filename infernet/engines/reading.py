"""How far a prompt is, as whoever asked sees it."""

from __future__ import annotations

from infernet.engines.contract import Report
from protocol.events import EngineProgress
from protocol.ids import RunId


class Reading:
    """How far a prompt is, those that were before it in the queue included: to whoever waits that is one figure."""

    def __init__(self, run: RunId, prompt_tokens: int, report: Report) -> None:
        self._run = run
        self._prompt_tokens = prompt_tokens
        self._report = report
        self._ahead_first = 0
        self._ahead = 0
        self._read = 0
        self._told = 0

    def ahead(self, tokens: int) -> None:
        """So many tokens of others are to be read before ours."""
        self._ahead_first = max(self._ahead_first, tokens)
        self._ahead = tokens
        self._tell()

    def read(self, tokens: int) -> None:
        """So many of ours are read."""
        self._ahead = 0
        self._read = tokens
        self._tell()

    def _tell(self) -> None:
        done = self._ahead_first - self._ahead + self._read
        # The number stays the same while the engine is busy with other slots.
        if done > self._told:
            self._told = done
            self._report(EngineProgress(self._run, done, self._ahead_first + self._prompt_tokens))
