"""`infernet logs`: what the node that runs detached has written down."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from infernet.cli.command import Failure
from infernet.config import places
from infernet.log_lines import LogReader, for_people, for_programs

LINES_DEFAULT: Final = 200
LINES_MAX: Final = 100_000
POLL_INTERVAL_S: Final = 0.25

USAGE: Final = "[-f] [--lines N] [--json]"
DESCRIPTION: Final = """\
The last lines of the node's log, as text with times in UTC; -f goes on with those that come, until Ctrl-C. The log is
kept by a node that was started without --foreground. It is begun anew at 5 MB, and three older files are kept beside
it. With --json every line is one JSON object, as the node wrote it; a line of something else is the `text` of one."""
EXAMPLES: Final = """\
examples:
  infernet logs
  infernet logs -f --lines 20
  infernet logs --json --lines 5000 | jq 'select(.level == "warning")'

Exits with 1 when there is no log. In a container, or under systemd, the log is where standard error goes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much, and whether to go on."""
    parser.add_argument("-f", "--follow", action="store_true", help="go on with the lines that come")
    parser.add_argument(
        "--lines",
        type=read_count,
        default=LINES_DEFAULT,
        metavar="N",
        help="how many to begin with (default: %(default)d)",
    )


def read_count(word: str) -> int:
    """A number of lines, from the command line."""
    count = int(word) if word.isascii() and word.isdigit() and len(word) <= 9 else -1
    if not 0 <= count <= LINES_MAX:
        raise argparse.ArgumentTypeError(f"a number of lines is 0 to {LINES_MAX}")
    return count


def run(arguments: argparse.Namespace) -> int:
    """Print them."""
    path = places().log_file
    show = for_programs if arguments.json else for_people
    try:
        show_file(path, arguments.lines, show, follow=arguments.follow)
    except FileNotFoundError:
        raise Failure(no_log(path), log_file=str(path)) from None
    return 0


def no_log(path: Path) -> str:
    """What there is to say where there is no log."""
    return (
        f"there is no log in {path}: `infernet start` begins one; a node in the foreground, in a container or under "
        "systemd (`infernet service logs`) writes to its standard error instead"
    )


def show_file(path: Path, lines: int, show: Callable[[str], str], *, follow: bool) -> None:
    """Print the last lines, and those that come. Raises FileNotFoundError where there is no log."""
    with LogReader(path) as reader:
        for line in reader.last(lines, with_unfinished=not follow):
            print(show(line))
        if follow:
            _follow(reader, show, _wait)


def _follow(reader: LogReader, show: Callable[[str], str], wait: Callable[[], None]) -> None:
    while True:
        for line in reader.new():
            print(show(line))
        # Somebody may be reading this from a pipe.
        print(end="", flush=True)
        wait()


def _wait() -> None:
    time.sleep(POLL_INTERVAL_S)
