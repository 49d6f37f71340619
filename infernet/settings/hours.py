"""The hours in which a node serves: what an owner may write, and whether an instant lies within.

Hours are those of a clock on the wall. `22:00-07:00` is open whenever that clock shows 22:00 or later, or earlier than
07:00, whatever the seasons do to it: where a clock is put forward, minutes that it skips are never open, and where it
is put back, minutes that it shows twice are open twice.

Nothing here reads a clock or knows a zone: instants are seconds since 1970 in UTC, and `Offset` says for one of them
how far the wall is ahead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES: Final = 24 * 60
WEEK_MINUTES: Final = 7 * DAY_MINUTES
#: What a node is that its owner has told to take no new jobs.
PAUSED: Final = "paused by its owner"
WINDOWS_MAX: Final = 32
#: What a window must look like, for people.
FORM: Final = 'must be like "22:00-07:00" or "sat,sun 00:00-24:00", with days mon tue wed thu fri sat sun or mon-fri'
# Some minutes of a week are skipped when a clock is put forward, and the change that they make comes a week later.
HORIZON_S: Final = 15 * 86_400
# No clock is put forward and back within so short a time.
_STEP_S: Final = 3600
# 1970 began on a Thursday.
_FIRST_DAY: Final = 3
_TEXT: Final = re.compile(r"(?:([a-z, -]{3,64}) )?([0-9]{1,2}):([0-9]{2}) ?- ?([0-9]{1,2}):([0-9]{2})")

#: Seconds that the clock on the wall is ahead of UTC at an instant.
Offset = Callable[[int], int]


@dataclass(frozen=True)
class Window:
    """From one time of day to another, on some days of the week; one that ends in the night belongs to the day before.

    `start` and `length` are minutes.
    """

    days: tuple[int, ...]
    start: int
    length: int

    def __str__(self) -> str:
        end = self.start + self.length
        end = end if end <= DAY_MINUTES else end - DAY_MINUTES
        times = f"{_time(self.start)}-{_time(end)}"
        return times if len(self.days) == len(DAYS) else f"{_days(self.days)} {times}"


def read_window(text: str) -> Window:
    """A window from what its owner wrote. Raises ValueError with what is allowed."""
    match = _TEXT.fullmatch(" ".join(text.lower().split()))
    if match is None:
        raise ValueError(FORM)
    days = tuple(range(len(DAYS))) if match[1] is None else _read_days(match[1])
    start, end = _minutes(match[2], match[3]), _minutes(match[4], match[5])
    if start in (end, DAY_MINUTES):
        raise ValueError(f'{FORM}; a whole day is "00:00-24:00"')
    return Window(days, start, end - start if end > start else end - start + DAY_MINUTES)


def _read_days(text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for word in re.sub(r"\s*-\s*", "-", text).replace(",", " ").split():
        first, _, last = word.partition("-")
        if first not in DAYS or (last or first) not in DAYS or word.endswith("-"):
            raise ValueError(FORM)
        begin = DAYS.index(first)
        # `sat-mon` goes over the end of the week.
        count = (DAYS.index(last or first) - begin) % len(DAYS) + 1
        found.update((begin + number) % len(DAYS) for number in range(count))
    if not found:
        raise ValueError(FORM)
    return tuple(sorted(found))


def _minutes(hours: str, minutes: str) -> int:
    count = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or count > DAY_MINUTES:
        raise ValueError(f"{FORM}; times are 00:00 to 24:00")
    return count


def _time(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _days(days: tuple[int, ...]) -> str:
    """`mon-fri` for three days or more in a row, else one by one."""
    runs: list[list[int]] = []
    for day in days:
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    words = [f"{DAYS[run[0]]}-{DAYS[run[-1]]}" if len(run) > 2 else ",".join(DAYS[day] for day in run) for run in runs]
    return ",".join(words)


@dataclass(frozen=True)
class Week:
    """Which minutes of a week are open, on the clock's face. Without a window, all are."""

    windows: tuple[Window, ...] = ()

    @classmethod
    def read(cls, texts: Iterable[str]) -> Week:
        """From windows as their owner wrote them. Raises ValueError."""
        return cls(tuple(map(read_window, texts)))

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The open minutes as spans that neither touch nor overlap, in order, the end of each not included."""
        if not self.windows:
            return ((0, WEEK_MINUTES),)
        pieces: list[tuple[int, int]] = []
        for window in self.windows:
            for day in window.days:
                start = day * DAY_MINUTES + window.start
                end = start + window.length
                # What goes over the end of Sunday is Monday's.
                pieces += [(start, min(end, WEEK_MINUTES)), (0, max(0, end - WEEK_MINUTES))]
        merged: list[tuple[int, int]] = []
        for start, end in sorted(piece for piece in pieces if piece[0] < piece[1]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return tuple(merged)

    def has(self, minute: int) -> bool:
        """Whether this minute of the week is open."""
        return any(start <= minute < end for start, end in self.spans)

    def minutes_to_change(self, minute: int) -> int | None:
        """How many minutes after this one the state is another one; None where it never is."""
        if self.spans in ((), ((0, WEEK_MINUTES),)):
            return None
        edges = {edge % WEEK_MINUTES for span in self.spans for edge in span}
        if self.has(0) and self.has(WEEK_MINUTES - 1):
            edges.discard(0)
        return min((edge - minute - 1) % WEEK_MINUTES + 1 for edge in edges)

    def is_open(self, at_s: int, offset: Offset) -> bool:
        """Whether the node serves at this instant."""
        return self.has(minute_of_week(at_s + offset(at_s)))

    def next_change(self, at_s: int, offset: Offset) -> int | None:
        """The first instant after this one at which the node begins or ends to serve; None where there is none."""
        was_open = self.is_open(at_s, offset)
        now_s, horizon_s = at_s, at_s + HORIZON_S
        while now_s < horizon_s:
            # Up to where the clock is put forward or back it simply goes on.
            even_until_s = _offset_change(now_s, horizon_s, offset)
            wall_s = now_s + offset(now_s)
            minutes = self.minutes_to_change(minute_of_week(wall_s))
            if minutes is not None:
                change_s = now_s - wall_s % 60 + minutes * 60
                if change_s < even_until_s:
                    return change_s
            now_s = even_until_s
            if self.is_open(now_s, offset) != was_open:
                return now_s
        return None


def minute_of_week(wall_s: int) -> int:
    """Which minute of a week a clock on the wall shows; Monday's first is 0."""
    return (wall_s // 60 + _FIRST_DAY * DAY_MINUTES) % WEEK_MINUTES


def _offset_change(from_s: int, until_s: int, offset: Offset) -> int:
    """The first instant after `from_s` at which the offset is another one, or `until_s`."""
    before = offset(from_s)
    low = from_s
    while low < until_s:
        high = min(low + _STEP_S, until_s)
        if offset(high) != before:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == before else (low, middle)
            return high
        low = high
    return until_s


def spoken(at_s: int, now_s: int, offset: Offset) -> str:
    """An instant for people: its time of day, with the day where that could be mistaken."""
    wall_s = at_s + offset(at_s)
    time = _time(wall_s // 60 % DAY_MINUTES)
    return time if at_s - now_s < 86_400 else f"{DAYS[minute_of_week(wall_s) // DAY_MINUTES].title()} {time}"


def words_of(week: Week, now_s: int, offset: Offset) -> str:
    """Such as `outside its hours until 22:00`, to be said of a node; empty where there are no hours."""
    if not week.windows:
        return ""
    change_s = week.next_change(now_s, offset)
    where = "within its hours" if week.is_open(now_s, offset) else "outside its hours"
    return where if change_s is None else f"{where} until {spoken(change_s, now_s, offset)}"


def described(week: Week, now_s: int, offset: Offset, zone: str | None) -> dict[str, Any]:
    """Hours at an instant, for programs and people; `zone` is the name of the one that the offset is of."""
    change_s = week.next_change(now_s, offset)
    return {
        "serve_hours": [str(window) for window in week.windows],
        "zone": zone,
        "open": week.is_open(now_s, offset),
        "until": None if change_s is None else f"{datetime.fromtimestamp(change_s, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "words": words_of(week, now_s, offset),
    }
