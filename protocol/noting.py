"""Which notes are written down: peers cause them, as many as they like, and a log has an end."""

from __future__ import annotations

from collections import Counter
from typing import Final

from protocol.effects import Note
from protocol.rates import Rates

# Of each kind of note: what happens to an honest node on a bad day is written down whole, a flood is counted.
NOTES_PER_S: Final = 2.0
NOTES_BURST: Final = 60


class Noting:
    """The state: how often each kind of note came, and how many of it were left out since the last that was written."""

    def __init__(self) -> None:
        self._rates: Rates[str] = Rates(NOTES_PER_S, NOTES_BURST)
        self._dropped: Counter[str] = Counter()

    def admit(self, note: Note, now_s: float) -> int | None:
        """How many of its kind were left out before this one, which is to be written down; None: leave it out, too."""
        if self._rates.take(note.event, now_s):
            return self._dropped.pop(note.event, 0)
        self._dropped[note.event] += 1
        return None
