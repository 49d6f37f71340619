"""A node in a process of its own, started by a command that waits until it is up, or until it has had enough.

The process reports by a pipe: once that it is there and loads, if that takes longer, and once how it went. While it
loads it is asked over its socket how far it is. There is no limit to that, for its owner sees what goes on; one that no
longer says it is left alone, as a machine that loads may have too much to do.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from infernet.cli.command import Failure, complain, self_command, self_environment
from infernet.cli.running_node import loading, node_status
from infernet.config import Config
from infernet.host.files import make_private_directory
from infernet.host.lock import AlreadyRunning, running_pid
from infernet.ipc.client import IpcError
from protocol.formats.text import clean_line

# Until the node is there, and between two answers of it: a slow disk, or a machine that has too much to do.
COMING_S: Final = 120.0
SILENCE_S: Final = 120.0
_LOOK_INTERVAL_S: Final = 1.0
_END_TIMEOUT_S: Final = 5.0
_MESSAGE_BYTES_MAX: Final = 1024 * 1024
_ERASE_LINE: Final = "\r\x1b[K"


class Reports:
    """The node's end of the pipe. Whoever started it may have left, which is nothing to the node."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._file = os.fdopen(descriptor, "wb")

    def send(self, message: dict[str, Any], *, is_last: bool = True) -> None:
        """Send a message; nothing is sent after the last one."""
        if self._file.closed:
            return
        with suppress(OSError):
            self._file.write(json.dumps(message).encode() + b"\n")
            self._file.flush()
        if is_last:
            with suppress(OSError):
                self._file.close()


def detach(config: Config, words: Sequence[str], *, quiet: bool) -> dict[str, Any]:
    """Start `infernet start` with these words in a process of its own, wait until it is up, and give its status.

    Raises Failure when it does not come up, and KeyboardInterrupt when it is not waited for: a node that is there by
    then goes on, and any other is ended.
    """
    pid = running_pid(config.pid_file)
    if pid is not None:
        raise AlreadyRunning(pid)
    make_private_directory(config.log_file.parent)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reports:
        # What is not logged, such as the last words of native code, ends up in the log file too.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        log = os.open(config.log_file, flags, 0o600)
        try:
            process = subprocess.Popen(
                [*self_command(), "start", "--ready-fd", str(writing), *words],
                env=self_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[writing],
            )
        finally:
            os.close(writing)
            os.close(log)
        for number in (signal.SIGTERM, signal.SIGHUP):
            # What is ignored from the start, as nohup has it, stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
        report = _Waiting(config, process, reports.fileno(), quiet=quiet).report()
    if report is None:
        raise Failure(f"the node ended before it was up: see {config.log_file}", log_file=str(config.log_file))
    if "error" in report:
        raise Failure(str(report["error"]), log_file=str(config.log_file))
    # It is not ours to wait for any more.
    process.returncode = 0
    status: dict[str, Any] = report["status"]
    return status


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


class _Waiting:
    """What the command does until the node is up."""

    def __init__(self, config: Config, process: subprocess.Popen[bytes], descriptor: int, *, quiet: bool) -> None:
        self._config = config
        self._process = process
        self._descriptor = descriptor
        self._progress = _Progress(quiet=quiet)
        self._heard_at_s = time.monotonic()
        self._is_loading = False

    def report(self) -> dict[str, Any] | None:
        """How it went: the node's status or its error; None when it ended without a word. Raises Failure."""
        try:
            with self._progress.shown():
                for report in self._messages():
                    if "loading" not in report:
                        return report
                    self._is_loading, self._heard_at_s = True, time.monotonic()
                return None
        except KeyboardInterrupt:
            # Whoever ends this command before the node is there wants no node.
            if not self._is_loading:
                _end(self._process)
                raise
            self._process.returncode = 0
            complain(
                f"the node (process {self._process.pid}) goes on loading: `infernet status` shows how far it is, and "
                "`infernet stop` ends it"
            )
            raise

    def _messages(self) -> Iterator[dict[str, Any]]:
        data = b""
        while len(data) < _MESSAGE_BYTES_MAX:
            readable, _, _ = select.select([self._descriptor], [], [], _LOOK_INTERVAL_S)
            if not readable:
                self._look()
                continue
            piece = os.read(self._descriptor, 65536)
            if not piece:
                return
            *lines, data = (data + piece).split(b"\n")
            for line in lines:
                yield json.loads(line)
            self._look()

    def _look(self) -> None:
        """See that the node is alive, and show what it does. Raises Failure when it has been silent for too long."""
        if self._is_loading:
            with suppress(IpcError, Failure):
                self._progress.show(loading(node_status(self._config)))
                self._heard_at_s = time.monotonic()
        if time.monotonic() - self._heard_at_s <= (SILENCE_S if self._is_loading else COMING_S):
            return
        log_file = str(self._config.log_file)
        if not self._is_loading:
            _end(self._process)
            raise Failure(
                f"the node was not there for {COMING_S:.0f} s and was ended: see {log_file}", log_file=log_file
            )
        self._process.returncode = 0
        raise Failure(
            f"the node (process {self._process.pid}) was loading and has not answered for {SILENCE_S:.0f} s: it is "
            f"left to go on, `infernet status` asks it again, `infernet stop` ends it, and its log is {log_file}",
            log_file=log_file,
            pid=self._process.pid,
        )


class _Progress:
    """What is loaded: a line on standard error that changes, or one that is printed once where that is no terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._is_quiet = quiet
        self._is_terminal = sys.stderr.isatty()
        self._has_shown = False

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Whatever comes after this block is printed on a line of its own."""
        try:
            yield
        finally:
            if self._has_shown and self._is_terminal:
                print(_ERASE_LINE, end="", file=sys.stderr, flush=True)

    def show(self, text: str) -> None:
        if self._is_quiet or not text or (self._has_shown and not self._is_terminal):
            return
        self._has_shown = True
        # An engine may take its names from somebody else's server.
        line = clean_line(f"{text}; Ctrl-C leaves it to go on", 1000)
        if self._is_terminal:
            print(f"{_ERASE_LINE}{line[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
