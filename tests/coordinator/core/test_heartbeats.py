"""coordinator/core/heartbeats.py: whatever a newer node says about itself can be stored."""

from __future__ import annotations

from coordinator.core.heartbeats import ROLE_WORDS, STATUS_WORDS
from protocol.records import Availability, Role


def test_every_value_that_a_record_can_hold_has_a_word() -> None:
    """UNKNOWN included, as which a value of a later version is read: it offers nothing and takes no jobs."""
    assert set(ROLE_WORDS) == set(Role)
    assert set(STATUS_WORDS) == set(Availability)
    assert (ROLE_WORDS[Role(200)], STATUS_WORDS[Availability(200)]) == ("client", "offline")
