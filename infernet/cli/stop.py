"""`infernet stop`: end the running node."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from typing import Any, Final

from infernet.cli.command import Failure
from infernet.cli.output import print_json
from infernet.config import Config, places
from infernet.host.lock import running_pid
from infernet.host.processes import NodeProcess
from infernet.ipc import client as ipc

WAIT_S_DEFAULT: Final = 30.0
SHUTDOWN_TIMEOUT_S: Final = 5.0
# A healthy node answers and ends at once; a machine with much to do may keep it from that for a moment.
HEALTHY_TIMEOUT_S: Final = 2.0
# Running jobs get their receipts, peers and the coordinator hear of it, the engine ends.
END_TIMEOUT_S: Final = 15.0
KILL_TIMEOUT_S: Final = 5.0
POLL_INTERVAL_S: Final = 0.02

_SIGNALS: Final = ("TERM", "INT", "HUP", "KILL")

USAGE: Final = "[--now | --wait S] [--force] [--signal NAME] [--json]"
DESCRIPTION: Final = """\
End the running node. It takes no new jobs from this moment on, and ends when those that run have ended, after
--wait seconds at the latest; jobs that are cut short get their receipts, and their askers go on elsewhere. Peers and
the coordinator hear that it goes offline. Ctrl-C leaves this command and not the node: it ends all the same. This
command returns when the node's process is gone. A node that does not answer is sent a signal, and this command gives
up after --wait seconds, or kills it with --force after a few.
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
        return _tell(_signalled(config, pid, arguments), pid, as_json=arguments.json)
    how = end_node(config, pid, 0.0 if arguments.now else arguments.wait, force=arguments.force, quiet=arguments.json)
    return _tell(how, pid, as_json=arguments.json)


def _tell(how: str, pid: int, *, as_json: bool) -> int:
    if as_json:
        print_json({"stopped": True, "pid": pid, "how": how})
    else:
        print(f"The node has {'ended' if how != 'killed' else 'been killed'} (process {pid}).")
    return 0


def _signalled(config: Config, pid: int, arguments: argparse.Namespace) -> str:
    """Send the signal that was named, and wait. Raises Failure when the node does not end of it."""
    node = NodeProcess(config.pid_file, pid)
    limit_s = KILL_TIMEOUT_S if arguments.signal == "KILL" else arguments.wait + END_TIMEOUT_S
    if node.is_suspended() and arguments.signal != "KILL":
        _say(f"the node (process {pid}) is suspended: it has {limit_s:.0f} s to go on and end", quiet=arguments.json)
    node.send(signal.Signals[f"SIG{arguments.signal}"])
    if not _has_ended(node, limit_s):
        raise Failure(f"the node does not end of SIG{arguments.signal}: `infernet stop --force` kills it")
    return "killed" if arguments.signal == "KILL" else "signalled"


def end_node(config: Config, pid: int, wait_s: float, *, force: bool, quiet: bool) -> str:
    """End the node that runs, wait until its process is gone, and say how it went. Raises Failure when it does not end.

    One that answers has `wait_s` for its jobs, and END_TIMEOUT_S after that. One that does not answer has `wait_s` in
    all, or what a healthy one takes where that is longer.
    """
    node = NodeProcess(config.pid_file, pid)
    deadline = time.monotonic() + max(wait_s, HEALTHY_TIMEOUT_S)
    if node.is_suspended():
        _say(f"the node (process {pid}) is suspended, so it neither answers nor ends", quiet=quiet)
        if force:
            return _kill(node, config, quiet=quiet)
    with contextlib.suppress(ipc.IpcError):
        answer_s = min(SHUTDOWN_TIMEOUT_S, deadline - time.monotonic())
        if wait_s:
            _drain(config, wait_s, answer_s, quiet=quiet)
        else:
            ipc.call(config.socket_path, "shutdown", timeout_s=answer_s)
        if _has_ended(node, END_TIMEOUT_S):
            return "asked"
        deadline = time.monotonic() + END_TIMEOUT_S
    # The first signal lets jobs finish, as the node was asked to; the second one does not.
    waits = ((SHUTDOWN_TIMEOUT_S, HEALTHY_TIMEOUT_S / 4), (END_TIMEOUT_S, HEALTHY_TIMEOUT_S))
    for patience_s, least_s in ((HEALTHY_TIMEOUT_S, HEALTHY_TIMEOUT_S),) if force else waits:
        left_s = max(min(patience_s, deadline - time.monotonic()), least_s)
        _say(
            f"the node (process {pid}) was asked, and is there still: it gets a signal and {left_s:.2g} s", quiet=quiet
        )
        node.send(signal.SIGTERM)
        if _has_ended(node, left_s):
            return "signalled"
    if force:
        return _kill(node, config, quiet=quiet)
    raise _does_not_end(node, config)


def _kill(node: NodeProcess, config: Config, *, quiet: bool) -> str:
    """Raises Failure when not even that ends it."""
    _say(f"the node (process {node.pid}) is killed", quiet=quiet)
    node.send(signal.SIGKILL)
    if _has_ended(node, KILL_TIMEOUT_S):
        return "killed"
    raise _does_not_end(node, config)


def _does_not_end(node: NodeProcess, config: Config) -> Failure:
    why = f", for it is suspended (`kill -CONT {node.pid}` has it go on)" if node.is_suspended() else ""
    return Failure(
        f"the node (process {node.pid}) does not end{why}: `infernet stop --force` kills it; log: {config.log_file}"
    )


def _say(text: str, *, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def _drain(config: Config, wait_s: float, answer_s: float, *, quiet: bool) -> None:
    """Let running jobs finish, and say what is waited for. Raises IpcError unless the node has begun to end."""
    has_begun = False
    said = ""
    try:
        for _, left in ipc.stream(config.socket_path, "drain", {"limit_s": wait_s}, silence_s=answer_s):
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


def _has_ended(node: NodeProcess, timeout_s: float) -> bool:
    """Whether its process is gone within this time: while it dies it holds on to what it runs from."""
    deadline = time.monotonic() + timeout_s
    while not node.is_gone():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL_S)
    return True
