"""protocol/constants.py: relations between numbers that must hold whoever changes one of them."""

from __future__ import annotations

import re
from pathlib import Path

from protocol import constants as c

SPECS = Path(__file__).parents[2] / "specs"
SPECIFICATION, IMPLEMENTATION = Path(c.__file__).read_text("utf-8").split(f"# {'-' * 64} ")[1:]


def test_every_frame_that_a_limit_allows_fits_its_stream() -> None:
    slack = 1024  # type, array headers and the other fields
    assert c.RECORD_BYTES_MAX + c.SEALED_INLINE_BYTES_MAX + slack <= c.JOB_FRAME_BYTES_MAX
    assert c.BETTER_PEERS_MAX * c.RECORD_BYTES_MAX + c.RECORD_BYTES_MAX + slack <= c.JOB_FRAME_BYTES_MAX
    assert c.SEALED_PART_BYTES_MAX + slack <= c.JOB_FRAME_BYTES_MAX
    assert c.BYTES_MAX + slack <= c.JOB_FRAME_BYTES_MAX
    assert c.RECORD_BYTES_MAX + slack <= c.CONTROL_FRAME_BYTES_MAX


def test_a_provider_remembers_attempts_longer_than_an_order_can_be_admitted() -> None:
    # An order from a clock that is ahead by the allowed skew stays young for that much longer.
    assert c.JOB_MEMORY_S * 1000 > c.JOB_OPEN_AGE_MS_MAX + c.CLOCK_SKEW_MS_MAX


def test_records_outlive_the_interval_at_which_they_are_renewed() -> None:
    assert c.HEARTBEAT_LIFETIME_MS_MAX >= 2 * c.GOSSIP_REFRESH_S * 1000
    assert c.HEARTBEAT_INTERVAL_S * 2 <= 60


def test_a_provider_that_is_silent_at_the_limit_is_never_faster_lost_than_it_may_speak() -> None:
    assert c.CHUNK_DELAY_S < 1 < c.NEXT_CHUNK_DEADLINE_S <= c.FIRST_CHUNK_DEADLINE_S
    assert c.CANCEL_DEADLINE_S < c.CANCEL_GRACE_S


def test_every_implementation_constant_has_its_reason_above_it() -> None:
    for block in IMPLEMENTATION.split("\n\n")[1:]:
        assert block.lstrip().startswith("#"), f"no reason above:\n{block}"


def test_the_specification_states_every_constant_that_is_part_of_it() -> None:
    """And no other, with its value: the table of specs/01 and the first block of the module are the same list."""
    names = re.findall(r"^([A-Z][A-Z0-9_]+): Final", SPECIFICATION, re.MULTILINE)
    table = (SPECS / "01-wire.md").read_text("utf-8").split("## Constants")[1]
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| `?([^|`]+)`? \|", table, re.MULTILINE)
    assert {name: value.strip().replace(",", "") for name, value in rows} == {
        name: str(getattr(c, name)) for name in names if name != "PROTOCOLS"
    }
    assert set(c.PROTOCOLS) == {getattr(c, name) for name in names if name.endswith("_PROTOCOL")}
