"""`infernet tui`: the running node, as it works."""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import Final

from infernet.cli.command import Failure, Misuse
from infernet.config import places

REFRESH_S_DEFAULT: Final = 1.0
_REFRESH_S_MIN: Final = 0.25
_REFRESH_S_MAX: Final = 60.0

USAGE: Final = "[--refresh S]"
DESCRIPTION: Final = """\
The running node as it works, on the whole terminal: what it is linked to, the jobs that run, peers, GPUs, what it has
earned, and its log. Of jobs it shows who asks for which model and how fast that goes, never what is asked or answered.
When no node runs it says so, and finds it by itself when it is started.

  1-5, tab   the panel: overview, jobs, peers, GPUs, log
  /          show only lines of the log with some words, Esc shows all
  r          ask the node again, now
  d          let the node finish its jobs and end (asks first)
  ?          help
  q          leave; the node goes on

Colours are the terminal's own; with NO_COLOR there are none."""
EXAMPLES: Final = """\
examples:
  infernet tui
  infernet tui --refresh 5
  NO_COLOR=1 infernet tui

It needs a terminal of 80 columns and 24 lines or more. For programs there are `infernet status --json`, `infernet
stats --json`, `infernet peers --json` and `infernet logs --json`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How often."""
    parser.add_argument(
        "--refresh",
        type=_seconds,
        default=REFRESH_S_DEFAULT,
        metavar="S",
        help="seconds between two looks at the node, 0.25 to 60 (default: %(default)g)",
    )


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = math.nan
    if not _REFRESH_S_MIN <= seconds <= _REFRESH_S_MAX:
        raise argparse.ArgumentTypeError(f"must be {_REFRESH_S_MIN:g} to {_REFRESH_S_MAX:g} seconds")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Show it until the user leaves."""
    if arguments.json or not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise Misuse("the live view needs a terminal: for programs there is `infernet status --json`")
    config = places()
    has_colour = not os.environ.get("NO_COLOR")
    if has_colour:
        # An empty one asks for nothing, and Textual takes it for one.
        os.environ.pop("NO_COLOR", None)
    try:
        import textual  # noqa: F401 - whether it is there
    except ImportError:
        raise Failure("the live view needs the package textual: pip install textual") from None
    from infernet.tui.app import LiveView
    from infernet.tui.feed import Feed
    from infernet.tui.panels import Look

    LiveView(Feed(config, arguments.refresh), Look(has_colour)).run(mouse=False)
    return 0
