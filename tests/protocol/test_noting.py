"""protocol/noting.py: what peers cause is written down, and a flood of it is counted."""

from __future__ import annotations

from protocol.effects import Note
from protocol.noting import NOTES_BURST, NOTES_PER_S, Noting

FLOOD = Note("gossip.records_skipped")


def test_a_flood_of_one_kind_is_counted_and_hides_no_other() -> None:
    noting = Noting()
    said = [noting.admit(FLOOD, 0.0) for _ in range(NOTES_BURST + 1000)]
    assert said == [0] * NOTES_BURST + [None] * 1000
    assert noting.admit(Note("job.attempt_failed"), 0.0) == 0
    assert noting.admit(FLOOD, 1 / NOTES_PER_S) == 1000
    assert noting.admit(FLOOD, 2 / NOTES_PER_S) == 0, "each is counted once"
