"""`infernet schedule`: in which hours this node runs jobs for others, drawn as a week, and how to change them."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Final

from infernet.cli.command import Misuse, warn
from infernet.cli.output import print_fields, print_json
from infernet.cli.running_node import STATUS_TIMEOUT_S, node_status
from infernet.cli.settings_flags import warn_if_running
from infernet.cli.stop import jobs_left
from infernet.config import Config, load, places, save
from infernet.ipc import client as ipc
from infernet.settings.hours import DAY_MINUTES, DAYS, WEEK_MINUTES, Offset, Week, described, minute_of_week
from infernet.settings.table import BY_NAME
from infernet.settings.time_zone import offset_of
from protocol.records import Role

# Half an hour to a character, so that a day and its name fit into any terminal.
CELL_MINUTES: Final = 30
_BLOCKS: Final = ("·", "▒", "█")
_PLAIN: Final = (".", "+", "#")
_ACTIONS: Final = ("show", "set", "clear", "pause", "resume")

USAGE: Final = "[show | set HOURS... [--zone ZONE] | clear | pause | resume] [--json]"
DESCRIPTION: Final = """\
In which hours this node runs jobs for others. Outside of them it takes no new jobs and says so; what runs is finished,
what waits is sent elsewhere, connections are relayed as before, and its owner's questions are answered. It comes back
by itself; meanwhile its model stays in memory. Nothing set means: at any time.

show    the week as a picture, and where in it this node is now (this is the default)
set     write these hours into the file, in place of those before
clear   run jobs at any time
pause   have the running node take no new jobs, until it is told to resume or started anew
resume  have it take jobs again, within its hours

HOURS are as a clock shows them, such as 22:00-07:00 for every night, or with days: "sat,sun 00:00-24:00",
"mon-fri 18:00-08:00". A night belongs to the day on which it begins. Where the clock is put forward, what it skips is
not there; where it is put back, what it shows twice counts twice. --zone names the clock; without it, it is that of
this machine."""
EXAMPLES: Final = """\
examples:
  infernet schedule set 22:00-07:00 "sat,sun 00:00-24:00"
  infernet schedule set "mon-fri 18:00-08:00" --zone Europe/Berlin
  infernet schedule
  infernet schedule --json | jq -r .until
  infernet schedule clear
  infernet schedule pause                           a game on this card, say; then: infernet schedule resume

the first of these, on a Wednesday at 20:10 (half an hour to a character):
         00    03    06    09    12    15    18    21
    mon  ██████████████······························████
    tue  ██████████████······························████
  > wed  ██████████████······························████
                                                 ^ now
    thu  ██████████████······························████
    fri  ██████████████······························████
    sat  ████████████████████████████████████████████████
    sun  ████████████████████████████████████████████████

A node that is running goes on with its hours, and in the zone that this machine had, until it is started anew."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and the hours."""
    parser.add_argument("action", nargs="?", choices=_ACTIONS, default="show", help="default: show")
    parser.add_argument("hours", nargs="*", metavar="HOURS", help="with set: when to run jobs")
    parser.add_argument("--zone", metavar="ZONE", help="with set: the zone of the clock, such as Europe/Berlin")


def run(arguments: argparse.Namespace) -> int:
    """Show or set them."""
    if arguments.action != "set" and (arguments.hours or arguments.zone is not None):
        raise Misuse("hours are written with `infernet schedule set`")
    if arguments.action in ("pause", "resume"):
        _tell_node(arguments.action, as_json=arguments.json)
        return 0
    changes: dict[str, object] | None = None
    if arguments.action == "set":
        changes = _read(arguments.hours, arguments.zone)
    elif arguments.action == "clear":
        changes = {"serve_hours": None, "serve_zone": None}
    if changes is not None:
        # What is in the file must be sound before something is added to it.
        save(load().config.config_file, changes, keep=True)
    loaded = load()
    config = loaded.config
    _tell(config, as_json=arguments.json)
    if config.role is not Role.PROVIDER:
        warn(f"the role of this node is {config.role.name.lower()}, so it runs no jobs for others at any hour")
    if changes is not None:
        for name in changes:
            if loaded.origins[name] == "environment":
                warn(f"{BY_NAME[name].variable} is set, and holds where it is, whatever the file says")
        warn_if_running(config)
    return 0


def _tell_node(command: str, *, as_json: bool) -> None:
    """Have the running node pause, or go on."""
    config = places()
    try:
        left: dict[str, Any] = ipc.call(config.socket_path, command, timeout_s=STATUS_TIMEOUT_S)
    except ipc.NotRunning:
        node_status(config)  # says whether it is starting
        raise
    if as_json:
        print_json(left)
    elif command == "resume":
        print("The node takes jobs again, within its hours.")
    else:
        text = jobs_left(left)
        ending = f"; what it has begun it finishes: {text}" if text else ""
        print(f"The node takes no new jobs until `infernet schedule resume`{ending}.")


def _read(words: list[str], zone: str | None) -> dict[str, object]:
    """What to write; days that the shell has parted from their times are put back."""
    hours: list[str] = []
    days = ""
    for word in words:
        days = f"{days} {word}".strip()
        if ":" in word:
            hours.append(days)
            days = ""
    if days or not hours:
        raise Misuse('say when: infernet schedule set 22:00-07:00 "sat,sun 00:00-24:00"')
    try:
        values: dict[str, object] = {"serve_hours": BY_NAME["serve_hours"].read(hours)}
    except ValueError as error:
        raise Misuse(f"HOURS {error}") from None
    try:
        return values | {"serve_zone": BY_NAME["serve_zone"].read(zone) if zone is not None else None}
    except ValueError as error:
        raise Misuse(f"--zone {error}") from None


def _tell(config: Config, *, as_json: bool) -> None:
    week, offset = Week.read(config.serve_hours), offset_of(config.serve_zone)
    now_s = int(time.time())
    told = described(week, now_s, offset, config.serve_zone)
    if as_json:
        print_json(told | {"week": _days(week)})
        return
    if not week.windows:
        print("This node runs jobs for others at any time.")
        return
    for line in picture(week, now_s, offset, _BLOCKS if _can_print("".join(_BLOCKS)) else _PLAIN):
        print(line)
    print()
    print_fields(
        [
            ("hours", told["serve_hours"]),
            ("zone", config.serve_zone or "that of this machine"),
            ("now", told["words"]),
        ]
    )


def picture(week: Week, now_s: int, offset: Offset, marks: tuple[str, str, str]) -> list[str]:
    """The week, a line for each day; `marks` are for half hours that are closed, open in part, and open."""
    now = minute_of_week(now_s + offset(now_s))
    cells_a_day = DAY_MINUTES // CELL_MINUTES
    open_minutes = [0] * (WEEK_MINUTES // CELL_MINUTES)
    for start, end in week.spans:
        for cell in range(start // CELL_MINUTES, -(-end // CELL_MINUTES)):
            open_minutes[cell] += min(end, (cell + 1) * CELL_MINUTES) - max(start, cell * CELL_MINUTES)
    cells = [marks[2 if count == CELL_MINUTES else bool(count)] for count in open_minutes]
    lines = ["       " + "".join(f"{hour:02}    " for hour in range(0, 24, 3)).rstrip()]
    for number, day in enumerate(DAYS):
        is_today = number == now // DAY_MINUTES
        row = "".join(cells[number * cells_a_day : (number + 1) * cells_a_day])
        lines.append(f"{'>' if is_today else ' '} {day}  {row}")
        if is_today:
            lines.append(" " * (7 + now % DAY_MINUTES // CELL_MINUTES) + "^ now")
    return lines


def _days(week: Week) -> dict[str, list[str]]:
    """The open times of each day, as on a clock."""
    days: dict[str, list[str]] = {day: [] for day in DAYS}
    for start, end in week.spans:
        while start < end:
            day, begin = divmod(start, DAY_MINUTES)
            stop = min(end - day * DAY_MINUTES, DAY_MINUTES)
            days[DAYS[day]].append(f"{begin // 60:02}:{begin % 60:02}-{stop // 60:02}:{stop % 60:02}")
            start = day * DAY_MINUTES + stop
    return days


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
