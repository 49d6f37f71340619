"""`infernet drain`: let the running node finish its jobs and end, without waiting for that."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any, Final

from infernet.cli.command import Failure
from infernet.cli.output import duration, print_json
from infernet.cli.running_node import node_status
from infernet.cli.stop import SHUTDOWN_TIMEOUT_S, jobs_left, seconds
from infernet.config import places
from infernet.ipc import client as ipc

LIMIT_S_DEFAULT: Final = 3600.0

USAGE: Final = "[--limit S] [--json]"
DESCRIPTION: Final = """\
Tell the running node to take no new jobs, and say how many are left. It ends by itself when the last one has ended, or
after --limit seconds; those that wait for a slot are sent elsewhere. This command does not wait: `infernet status` says
how it goes, `infernet stop` ends the node sooner, and nothing makes it take jobs again but a new start. Told again, it
keeps the sooner limit. Exits with 1 when no node is running."""
EXAMPLES: Final = """\
examples:
  infernet drain
  infernet drain --limit 86400
  infernet drain --json | jq .running"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long jobs may take."""
    parser.add_argument(
        "--limit",
        type=seconds,
        default=LIMIT_S_DEFAULT,
        metavar="S",
        help="seconds after which the node ends although jobs run (default: %(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Tell it, and say what is left."""
    config = places()
    try:
        left = _drain(config.socket_path, arguments.limit)
    except ipc.NotRunning:
        node_status(config)  # says whether it is starting
        raise
    if left is None:
        raise Failure("the node here ended before it said what was left: see `infernet status` and its log")
    if arguments.json:
        print_json({"draining": True, **left})
        return 0
    text = jobs_left(left)
    ends_in_s = left.get("ends_in_s")
    limit = f", in {duration(ends_in_s)} at the latest" if isinstance(ends_in_s, (int, float)) else ""
    print("The node takes no new jobs.")
    print(f"It ends when these have ended{limit}: {text}." if text else "Nothing is left to do, so it ends now.")
    return 0


def _drain(path: Path, limit_s: float) -> dict[str, Any] | None:
    """What is left once the node has begun; it goes on when we hang up."""
    with contextlib.closing(ipc.stream(path, "drain", {"limit_s": limit_s}, silence_s=SHUTDOWN_TIMEOUT_S)) as reports:
        return next((left for _, left in reports), None)
