"""`infernet upgrade`: how to get a newer version. It changes nothing: a node that is busy must not lose its jobs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import infernet
from infernet.cli.output import print_json
from infernet.cli.running_node import STATUS_TIMEOUT_S
from infernet.config import places
from infernet.host.packaged import is_packaged, program_file, unpacked_beside
from infernet.ipc import client as ipc
from protocol.formats.text import clean_line

USAGE: Final = "[--json]"
DESCRIPTION: Final = """\
Say how this installation gets a newer version, for the way in which it was installed, and what to do with a node that
runs meanwhile. It looks at nothing beyond this machine, and changes nothing: when to upgrade is for you to say."""
EXAMPLES: Final = """\
examples:
  infernet upgrade
  infernet upgrade --json | jq -r '.steps[]'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but --json."""


def run(arguments: argparse.Namespace) -> int:
    """Look, and say."""
    kind, how = installation(Path(infernet.__file__).resolve().parents[1])
    status = _status()
    steps = [*_before(status), *how, *_after(status)]
    if arguments.json:
        jobs = _jobs(status) if status is not None else None
        print_json(
            {
                "version": infernet.__version__,
                "installed": kind,
                "steps": steps,
                "running": status is not None,
                "running_version": status.get("version") if status is not None else None,
                "jobs": jobs,
            }
        )
        return 0
    print(f"This is infernet {infernet.__version__}, {_KINDS[kind]}. For a newer version:")
    for step in steps:
        print(f"  {step}")
    if status is not None and status.get("version") not in (None, infernet.__version__):
        running = clean_line(str(status["version"]), 32)
        print(f"The node that runs is still {running}: it takes the new version with its next start.")
    if status is not None and (jobs := _jobs(status)):
        print(f"The node is busy ({jobs} job{'s' if jobs != 1 else ''}): `infernet drain` loses none of them.")
    return 0


_KINDS: Final = {
    "checkout": "from a checkout of its source",
    "package": "installed as a Python package",
    "binary": "a single binary",
}


def installation(folder: Path) -> tuple[str, list[str]]:
    """How the program that lies in this folder was installed, and the commands that renew it."""
    if is_packaged():
        file = shlex.quote(str(program_file()))
        return "binary", [
            f"replace {file} by the file of the new release, whose sha256 you have compared with its SHA256SUMS",
            f"rm -r {shlex.quote(str(unpacked_beside()))}/program-*   to have back the room that old versions take",
        ]
    if (folder / "pyproject.toml").is_file() and (folder / "scripts" / "up").is_file():
        # It installs what the locks name, with every hash checked, tries that once, and ends.
        up = shlex.quote(str(folder / "scripts" / "up"))
        return "checkout", [f"git -C {shlex.quote(str(folder))} pull --ff-only", f"{up} --ask Hello"]
    python = shlex.quote(sys.executable)
    return "package", [f"{python} -m pip install --upgrade FILE_OF_THE_NEW_RELEASE.whl"]


def _status() -> dict[str, Any] | None:
    """What the running node says; None when none does."""
    try:
        status = ipc.call(places().socket_path, "status", timeout_s=STATUS_TIMEOUT_S)
    except ipc.IpcError:
        return None
    return status if isinstance(status, dict) else None


def _jobs(status: dict[str, Any]) -> int:
    counts = (status.get(name) for name in ("jobs_running", "jobs_asked"))
    return sum(count for count in counts if isinstance(count, int))


def _before(status: dict[str, Any] | None) -> Iterator[str]:
    if status is not None:
        yield "infernet stop --wait 600"


def _after(status: dict[str, Any] | None) -> Iterator[str]:
    if status is not None:
        yield "infernet start"
