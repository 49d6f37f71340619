"""`infernet stop`: end the running node."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from typing import Any, Final

from infernet.cli.command import Failure
from infernet.cli.output import print_json
from infernet.config import Config, places
from infernet.host.lock import running_pid
from infernet.ipc import client as ipc

WAIT_S_DEFAULT: Final = 30.0
SHUTDOWN_TIMEOUT_S: Final = 5.0
# Running jobs get their receipts, peers and the coordinator hear of it, the engine ends.
END_TIMEOUT_S: Final = 15.0
KILL_TIMEOUT_S: Final = 5.0
POLL_INTERVAL_S: Final = 0.02

_SIGNALS: Final = ("TERM", "INT", "HUP", "KILL")

USAGE: Final = "[--now | --wait S] [--force] [--signal NAME] [--json]"
DESCRIPTION: Final = """\
End the running node. It takes no new jobs from this moment on, and ends when those that run have ended, after
--wait seconds at the latest; jobs that are cut short get their receipts, and their askers go on elsewhere. Peers and
the coordinator hear that it goes offline. Ctrl-C leaves this command and not the node: it ends all the same.
Exits with 1 when no node is running."""
EXAMPLES: Final = """\
examples:
  infernet stop
  infernet stop --wait 600   give long answers ten minutes
  infernet stop --now        do not wait for running jobs
  infernet stop --force      kill it if it does not end by itself
  infernet stop --signal KILL    do not ask: this very signal, and no other"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How patient to be, and how hard to try."""
    patience = parser.add_mutually_exclusive_group()
    patience.add_argument("--now", action="store_true", help="do not wait for running jobs")
    patience.add_argument(
        "--wait",
        type=seconds,
        default=WAIT_S_DEFAULT,
        metavar="S",
        help="how long running jobs may take (default: %(default)g)",
    )
    parser.add_argument("--force", action="store_true", help="kill it if it does not end when asked")
    parser.add_argument(
        "--signal",
        type=lambda word: word.upper().removeprefix("SIG"),
        choices=_SIGNALS,
        help="send this signal instead of asking: TERM, INT and HUP let jobs finish, KILL loses them",
    )


def seconds(word: str) -> float:
    """A wait, from the command line."""
    try:
        seconds = float(word)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError("a wait is a number of seconds up to 86400")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Ask it, then signal it, then, if told to, kill it."""
    config = places()
    pid = running_pid(config.pid_file)
    if pid is None:
        raise Failure("no node is running here", running=False)
    if arguments.signal is not None:
        return _tell(_signalled(config, arguments), pid, as_json=arguments.json)
    how = end_node(config, pid, 0.0 if arguments.now else arguments.wait, force=arguments.force, quiet=arguments.json)
    return _tell(how, pid, as_json=arguments.json)


def _tell(how: str, pid: int, *, as_json: bool) -> int:
    if as_json:
        print_json({"stopped": True, "pid": pid, "how": how})
    else:
        print(f"The node has {'ended' if how != 'killed' else 'been killed'} (process {pid}).")
    return 0


def _signalled(config: Config, arguments: argparse.Namespace) -> str:
    """Send the signal that was named, and wait. Raises Failure when the node does not end of it."""
    _signal(config, signal.Signals[f"SIG{arguments.signal}"])
    if not _has_ended(config, KILL_TIMEOUT_S if arguments.signal == "KILL" else arguments.wait + END_TIMEOUT_S):
        raise Failure(f"the node does not end of SIG{arguments.signal}: `infernet stop --force` kills it")
    return "killed" if arguments.signal == "KILL" else "signalled"


def end_node(config: Config, pid: int, wait_s: float, *, force: bool, quiet: bool) -> str:
    """End the node that runs, and say how it went. Raises Failure when it does not end."""
    with contextlib.suppress(ipc.IpcError):
        if wait_s:
            _drain(config, wait_s, quiet=quiet)
        else:
            ipc.call(config.socket_path, "shutdown", timeout_s=SHUTDOWN_TIMEOUT_S)
        if _has_ended(config, END_TIMEOUT_S):
            return "asked"
    # The first signal lets jobs finish, as the node was asked to; the second one does not.
    for patience_s in (SHUTDOWN_TIMEOUT_S, END_TIMEOUT_S):
        _signal(config, signal.SIGTERM)
        if _has_ended(config, patience_s):
            return "signalled"
    if force:
        _signal(config, signal.SIGKILL)
        if _has_ended(config, KILL_TIMEOUT_S):
            return "killed"
    raise Failure(f"the node (process {pid}) does not end: `infernet stop --force` kills it; log: {config.log_file}")


def _drain(config: Config, wait_s: float, *, quiet: bool) -> None:
    """Let running jobs finish, and say what is waited for. Raises IpcError unless the node has begun to end."""
    has_begun = False
    said = ""
    try:
        for _, left in ipc.stream(config.socket_path, "drain", {"limit_s": wait_s}, silence_s=SHUTDOWN_TIMEOUT_S):
            has_begun = True
            text = jobs_left(left)
            if text and text != said and not quiet:
                said = text
                print(f"waiting for {text} to end ({left.get('ends_in_s')} s at most)", file=sys.stderr, flush=True)
    except ipc.IpcError:
        # The node closes its socket when it ends, which is what was asked for.
        if not has_begun:
            raise


def jobs_left(left: dict[str, Any]) -> str:
    """What a node that drains still does, in words; empty when that is nothing."""
    counts = (("running", "job"), ("asked", "question"), ("forwarded", "forwarded job"))
    parts = [f"{left[key]} {word}{'s' if left[key] != 1 else ''}" for key, word in counts if left.get(key)]
    return ", ".join(parts)


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
