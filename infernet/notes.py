"""Writes to the log what the protocol notes about peers, who can cause as many notes as they like."""

from __future__ import annotations

from collections import Counter
from typing import Final

import structlog

from protocol.effects import Note
from protocol.ids import short
from protocol.rates import Rates

log = structlog.get_logger(__name__)

# Of each kind of note: what happens to an honest node on a bad day is written down whole, a flood is counted.
NOTES_PER_S: Final = 2.0
NOTES_BURST: Final = 60


class Notes:
    """The state: how often each kind of note came, and how many of it were left out since the last that was written."""

    def __init__(self) -> None:
        self._rates: Rates[str] = Rates(NOTES_PER_S, NOTES_BURST)
        self._dropped: Counter[str] = Counter()

    def write(self, note: Note, now_s: float) -> None:
        """Write a note down, or count it."""
        if not self._rates.take(note.event, now_s):
            self._dropped[note.event] += 1
            return
        peer = short(note.peer) if note.peer is not None else None
        dropped = self._dropped.pop(note.event, 0)
        log.info(note.event, peer=peer, detail=note.detail, dropped=dropped)
