"""infernet/hardware/values.py: a value within its bounds, or None."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.hardware import values
from protocol.formats.text import clean_line

ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.lists(st.integers(), max_size=2)
    | st.from_regex(r"[0-9.]{1,30} ?(W|MiB|%)?")
)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("24564", 24564 << 20),
        (" 24564 MiB ", 24564 << 20),
        (24563, 24563 << 20),
        ("0", None),
        ("-1", None),
        ("1e9", None),
        ("[N/A]", None),
        ("²", None),
        (True, None),
        (None, None),
    ],
)
def test_memory(value: object, read: int | None) -> None:
    assert values.memory(value, 1 << 20) == read


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("00000000:01:00.0", "0000:01:00.0"),
        ("0000:C1:00.0", "0000:c1:00.0"),
        (b"00010000:01:00.0", "10000:01:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("../../etc/passwd", None),
        ("0000:01:00.0\n", "0000:01:00.0"),
        (7, None),
    ],
)
def test_an_address_has_one_form(value: object, read: str | None) -> None:
    assert values.slot(value) == read


@pytest.mark.parametrize("value", ["N/A", "[N/A]", "[Not Supported]", "[Unknown Error]", "ERR!", "", " ", None, 5])
def test_what_stands_for_nothing_is_nothing(value: object) -> None:
    assert values.text(value) is None


def test_a_name_that_would_move_the_cursor_does_not() -> None:
    assert values.text("RTX\x1b[2J 4090\n\n\u202e") == "RTX 4090"


@given(ANYTHING)
def test_whatever_comes_is_within_bounds_or_none(value: object) -> None:
    assert (share := values.percent(value)) is None or 0 <= share <= 100
    assert (warm := values.celsius(value)) is None or 0 <= warm <= 200
    assert (power := values.watts(value)) is None or 0 <= power <= 10_000
    for unit in (1, 1 << 20, 1 << 30):
        assert (total := values.memory(value, unit)) is None or 0 < total <= values.MEMORY_BYTES_MAX
        assert (used := values.used_memory(value, unit)) is None or 0 <= used <= values.MEMORY_BYTES_MAX
    assert (line := values.text(value)) is None or (0 < len(line) <= 64 and clean_line(line) == line)
    assert (slot := values.slot(value)) is None or values.slot(slot) == slot


@given(st.binary())
def test_whatever_a_tool_prints_is_an_object_or_an_empty_one(output: bytes) -> None:
    assert isinstance(values.json_object(output), dict)
