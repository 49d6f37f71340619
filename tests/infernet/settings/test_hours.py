"""infernet/settings/hours.py against a model that looks at the clock minute by minute, over both its changes."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infernet.settings.hours import DAY_MINUTES, DAYS, HORIZON_S, WEEK_MINUTES, Week, Window, read_window, spoken
from infernet.settings.time_zone import offset_of

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Santiago")
# Berlin: forward on 29 March 2026 at 01:00 UTC (02:00 becomes 03:00), back on 25 October at 01:00 UTC.
FORWARD_S = 1_774_746_000
BACK_S = 1_792_890_000
BERLIN = offset_of("Europe/Berlin")


def instant(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp())


def shows(at_s: int | None, zone: str = "Europe/Berlin") -> str | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, ZoneInfo(zone)).isoformat()


def model_is_open(windows: list[Window], at_s: int, zone: str) -> bool:
    """What the words of the module say, of one instant, with no arithmetic of weeks."""
    face = datetime.fromtimestamp(at_s, ZoneInfo(zone))
    minute = face.hour * 60 + face.minute
    yesterday = (face.weekday() - 1) % 7
    for window in windows:
        end = window.start + window.length
        if face.weekday() in window.days and window.start <= minute < end:
            return True
        if yesterday in window.days and minute < end - DAY_MINUTES:
            return True
    return not windows


windows = st.builds(
    Window,
    st.sets(st.integers(0, 6), min_size=1).map(lambda days: tuple(sorted(days))),
    st.integers(0, DAY_MINUTES - 1),
    st.integers(1, DAY_MINUTES),
).filter(lambda window: window.length < DAY_MINUTES or window.start == 0)  # a whole day is written from 00:00
around_changes = st.one_of(
    st.integers(1_760_000_000, 1_830_000_000),
    st.integers(FORWARD_S - 90_000, FORWARD_S + 90_000),
    st.integers(BACK_S - 90_000, BACK_S + 90_000),
)


@given(st.lists(windows, max_size=4), around_changes, st.sampled_from(ZONES))
def test_an_instant_is_open_when_the_clock_shows_an_open_minute(given: list[Window], at_s: int, zone: str) -> None:
    assert Week(tuple(given)).is_open(at_s, offset_of(zone)) == model_is_open(given, at_s, zone)


@given(st.lists(windows, min_size=1, max_size=3), around_changes, st.sampled_from(ZONES))
@settings(deadline=None, max_examples=60)
def test_the_next_change_is_the_first_minute_that_differs(given: list[Window], at_s: int, zone: str) -> None:
    found = Week(tuple(given)).next_change(at_s, offset_of(zone))
    before = model_is_open(given, at_s, zone)
    # Changes lie on whole minutes: every zone here has them, now.
    minute = at_s - at_s % 60 + 60
    expected = None
    while expected is None and minute < at_s + HORIZON_S:
        if model_is_open(given, minute, zone) != before:
            expected = minute
        minute += 60
    assert found == expected


@given(windows)
def test_a_window_is_read_as_it_is_written(window: Window) -> None:
    again = read_window(str(window))
    assert again == window


@given(st.lists(windows, max_size=4), st.integers(0, WEEK_MINUTES - 1))
def test_between_now_and_the_change_nothing_changes(given: list[Window], minute: int) -> None:
    week = Week(tuple(given))
    distance = week.minutes_to_change(minute)
    states = [week.has((minute + step) % WEEK_MINUTES) for step in range(WEEK_MINUTES)]
    assert distance == next((step for step, state in enumerate(states) if state != states[0]), None)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("22:00-07:00", "22:00-07:00"),
        ("  SAT,sun   0:00-24:00 ", "sat,sun 00:00-24:00"),
        ("mon - fri 18:00 - 8:00", "mon-fri 18:00-08:00"),
        ("fri-mon 12:00-13:00", "mon,fri-sun 12:00-13:00"),
        ("mon tue wed thu fri sat sun 09:30-10:00", "09:30-10:00"),
        ("mon,tue,thu 09:00-00:00", "mon,tue,thu 09:00-24:00"),
        ("00:00-24:00", "00:00-24:00"),
    ],
)
def test_hours_have_one_form(written: str, canonical: str) -> None:
    assert str(read_window(written)) == canonical
    assert str(read_window(canonical)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "22:00",
            "22-07",
            "25:00-26:00",
            "10:60-11:00",
            "24:01-03:00",
            "24:00-03:00",
            "10:00-10:00",
            "day 1:00-2:00",
        ),
        *("mon- 10:00-11:00", "-mon 10:00-11:00", ", 10:00-11:00", "mon 10:00-11:00 12:00-13:00", "x" * 10_000),
        *("mon\x1b[2J 10:00-11:00", "１０:00-11:00", "--- 10:00-11:00", "mon-tue-wed 10:00-11:00"),
    ],
)
def test_what_is_no_window_is_told_what_one_is(text: str) -> None:
    with pytest.raises(ValueError, match="must be like"):
        read_window(text)


def test_no_window_is_always_open_and_never_changes() -> None:
    assert Week().is_open(FORWARD_S, BERLIN)
    assert Week().next_change(FORWARD_S, BERLIN) is None
    all_week = Week.read(["00:00-12:00", "12:00-24:00"])
    assert all_week.next_change(FORWARD_S, BERLIN) is None


def test_the_night_in_which_the_clock_is_put_forward_is_an_hour_shorter() -> None:
    night = Week.read(["22:00-07:00"])
    opens = instant("2026-03-28T22:00")
    assert night.next_change(opens - 1, BERLIN) == opens
    closes = night.next_change(opens, BERLIN)
    assert closes is not None
    assert shows(closes) == "2026-03-29T07:00:00+02:00"
    assert closes - opens == 8 * 3600


def test_the_night_in_which_the_clock_is_put_back_is_an_hour_longer() -> None:
    night = Week.read(["22:00-07:00"])
    opens = instant("2026-10-24T22:00")
    closes = night.next_change(opens, BERLIN)
    assert closes is not None
    assert shows(closes) == "2026-10-25T07:00:00+01:00"
    assert closes - opens == 10 * 3600


def test_hours_that_the_clock_skips_are_not_there_that_day() -> None:
    skipped = Week.read(["sun 02:15-02:45"])
    week_later = skipped.next_change(instant("2026-03-28T12:00"), BERLIN)
    assert shows(week_later) == "2026-04-05T02:15:00+02:00"


def test_hours_that_begin_in_what_the_clock_skips_begin_where_it_goes_on() -> None:
    half_skipped = Week.read(["02:30-04:00"])
    opens = half_skipped.next_change(instant("2026-03-29T01:00"), BERLIN)
    assert opens == FORWARD_S
    assert shows(opens) == "2026-03-29T03:00:00+02:00"


def test_hours_that_the_clock_shows_twice_are_open_twice() -> None:
    twice = Week.read(["02:15-02:45"])
    changes = [instant("2026-10-25T01:00")]
    for _ in range(4):
        change = twice.next_change(changes[-1], BERLIN)
        assert change is not None
        changes.append(change)
    assert [shows(change) for change in changes[1:]] == [
        "2026-10-25T02:15:00+02:00",
        "2026-10-25T02:45:00+02:00",
        "2026-10-25T02:15:00+01:00",
        "2026-10-25T02:45:00+01:00",
    ]


def test_an_instant_is_said_with_its_day_only_where_that_is_needed() -> None:
    now_s = instant("2026-11-27T12:00")
    assert spoken(instant("2026-11-27T22:00"), now_s, BERLIN) == "22:00"
    assert spoken(instant("2026-11-30T22:00"), now_s, BERLIN) == "Mon 22:00"
    assert DAYS[datetime.fromtimestamp(now_s + 3 * 86_400, ZoneInfo("Europe/Berlin")).weekday()] == "mon"
    assert timedelta(seconds=BERLIN(now_s)) == timedelta(hours=1)
