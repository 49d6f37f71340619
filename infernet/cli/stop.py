"""`infernet stop`: end the running node."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import time
from typing import Final

from infernet import ipc
from infernet.cli.command import Failure
from infernet.cli.output import print_json
from infernet.config import Config, places
from infernet.lock import running_pid

SHUTDOWN_TIMEOUT_S: Final = 5.0
# Running jobs get their receipts, peers and the coordinator hear of it, the engine ends.
END_TIMEOUT_S: Final = 15.0
KILL_TIMEOUT_S: Final = 5.0
POLL_INTERVAL_S: Final = 0.02

USAGE: Final = "[--force] [--json]"
DESCRIPTION: Final = """\
End the running node: jobs that run get their receipts, peers and the coordinator hear that it goes offline.
Exits with 1 when no node is running."""
EXAMPLES: Final = """\
examples:
  infernet stop
  infernet stop --force      kill it if it does not end by itself"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How hard to try."""
    parser.add_argument("--force", action="store_true", help="kill it if it does not end when asked")


def run(arguments: argparse.Namespace) -> int:
    """Ask it, then signal it, then, if told to, kill it."""
    config = places()
    pid = running_pid(config.pid_file)
    if pid is None:
        raise Failure("no node is running here", running=False)
    how = _end(config, pid, force=arguments.force)
    if arguments.json:
        print_json({"stopped": True, "pid": pid, "how": how})
    else:
        print(f"The node has {'ended' if how != 'killed' else 'been killed'} (process {pid}).")
    return 0


def _end(config: Config, pid: int, *, force: bool) -> str:
    with contextlib.suppress(ipc.IpcError):
        ipc.call(config.socket_path, "shutdown", timeout_s=SHUTDOWN_TIMEOUT_S)
        if _has_ended(config, END_TIMEOUT_S):
            return "asked"
    _signal(config, signal.SIGTERM)
    if _has_ended(config, END_TIMEOUT_S):
        return "signalled"
    if force:
        _signal(config, signal.SIGKILL)
        if _has_ended(config, KILL_TIMEOUT_S):
            return "killed"
    raise Failure(f"the node (process {pid}) does not end: `infernet stop --force` kills it; log: {config.log_file}")


def _signal(config: Config, number: signal.Signals) -> None:
    # The process id is the lock holder's, so this reaches the node or nobody.
    pid = running_pid(config.pid_file)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _has_ended(config: Config, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while running_pid(config.pid_file) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL_S)
    return True
