"""infernet/notes.py: what peers cause is written down, and a flood of it is counted."""

from __future__ import annotations

import structlog

from infernet.notes import NOTES_BURST, NOTES_PER_S, Notes
from protocol.effects import Note
from protocol.ids import short
from tests.helpers_records import PROVIDER


def test_a_flood_of_one_kind_is_counted_and_hides_no_other() -> None:
    notes = Notes()
    with structlog.testing.capture_logs() as lines:
        for _ in range(NOTES_BURST + 1000):
            notes.write(Note("gossip.records_skipped", PROVIDER.node, "1"), 0.0)
        notes.write(Note("job.attempt_failed", PROVIDER.node, "busy"), 0.0)
        assert [line["event"] for line in lines].count("gossip.records_skipped") == NOTES_BURST
        assert lines[-1]["event"] == "job.attempt_failed"
        assert not any(line["dropped"] for line in lines)
        notes.write(Note("gossip.records_skipped", None, "2"), 1 / NOTES_PER_S)
        notes.write(Note("gossip.records_skipped", None, "3"), 2 / NOTES_PER_S)
    assert lines[-2]["dropped"] == 1000
    assert lines[-1]["dropped"] == 0, "each is counted once"


def test_a_note_says_who_and_what() -> None:
    with structlog.testing.capture_logs() as lines:
        Notes().write(Note("peer.clock_skew", PROVIDER.node, "its clock differs by 90 s"), 0.0)
    [line] = lines
    assert (line["peer"], line["detail"]) == (short(PROVIDER.node), "its clock differs by 90 s")
