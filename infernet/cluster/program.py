"""A program of llama.cpp as the node sees it: how it is started, what is read of what it says, and how it is ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import trio

from infernet.engines.process import reason_in, signal_name, worker_environment
from infernet.host.files import reason_of

_READ_BYTES: Final = 64 * 1024
_LINE_BYTES_MAX: Final = 4096
_HEARD_MAX: Final = 32
# After this many lines of what it said at once others get their turn.
_LINES_PER_TURN: Final = 64
_KILL_TIMEOUT_S: Final = 10.0
_CANNOT_START: Final = 126
# What the programs say of their trouble, beside what every engine says. The rest may quote somebody's prompt.
_REASONS: Final = (
    (re.compile(r"RPC server version mismatch"), "a worker's RPC server speaks another version of the protocol"),
    (re.compile(r"Remote RPC server crashed"), "a worker's RPC server is gone or answers wrongly"),
    (re.compile(r"RPC not supported in this build"), "this llama-server was built without RPC (-DGGML_RPC=ON)"),
    (re.compile(r"Failed to connect to|failed to register RPC|Failed to add RPC"), "a worker cannot be reached"),
    (re.compile(r"Failed to create server socket"), "the port that was chosen was taken meanwhile"),
    (re.compile(r"unknown argument|invalid argument"), "this build does not know an argument that it needs"),
)


class ProgramGone(Exception):
    """The program ended before it said what was waited for, or did not say it in time."""


def keeper_command(words: Sequence[str]) -> list[str]:
    """The command that runs a program for as long as this process lives."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "cluster-keeper", *words]
    return [sys.executable, "-P", "-m", "infernet.cluster.keeper", *words]


def describe_exit(name: str, status: int) -> str:
    """How a program ended, in words."""
    if status == _CANNOT_START:
        return f"{name} cannot be started"
    if status >= 0:
        return f"{name} exited with status {status}"
    hint = ", perhaps because the machine ran out of memory" if -status == signal.SIGKILL else ""
    return f"{name} was ended by {signal_name(-status)}{hint}"


class Program:
    """A program that runs. `open_program` makes it and ends it."""

    def __init__(
        self, name: str, process: trio.Process, leash: int, listens_for: Mapping[str, re.Pattern[str]]
    ) -> None:
        self._name = name
        self._process = process
        # The other end of the keeper's standard input: closing it ends keeper and program, on every system.
        self._leash: int | None = leash
        self._listens_for = listens_for
        self._heard: dict[str, list[re.Match[str]]] = {what: [] for what in listens_for}
        self._news = trio.Event()
        self._reasons: deque[str] = deque(maxlen=8)
        self._verdict: str | None = None
        #: Set when the program has ended and all of its words were read.
        self.gone = trio.Event()
        #: Set when nobody reads what it says any more.
        self.heard_out = trio.Event()

    @property
    def pid(self) -> int:
        """The process id of its keeper."""
        return self._process.pid

    def all_heard(self, what: str) -> list[re.Match[str]]:
        """Every line of this kind so far, up to a bound."""
        return self._heard[what]

    async def hear(self, what: str, timeout_s: float) -> re.Match[str]:
        """The first line of this kind. Raises ProgramGone."""
        with trio.move_on_after(timeout_s):
            while not self._heard[what]:
                if self.gone.is_set():
                    raise ProgramGone(self.why_gone())
                await self._news.wait()
            return self._heard[what][0]
        raise ProgramGone(f"{self._name} was not ready within {timeout_s:.0f} s")

    def end(self, verdict: str) -> None:
        """End it at once, for this reason; never waits, and `gone` is set soon after. It has nothing to save."""
        if not self.gone.is_set():
            self._verdict = self._verdict or verdict
        if self._leash is not None:
            os.close(self._leash)
            self._leash = None

    def why_gone(self) -> str:
        """Why it ended, in one line, with the last thing that it told of its trouble."""
        status = self._process.returncode
        how = self._verdict or describe_exit(self._name, status if status is not None else 0)
        return ": ".join([how, *list(self._reasons)[-1:]])

    async def follow(self) -> None:
        """Read what it says, in bounds, until it is gone."""
        try:
            await self._read()
            await self._process.wait()
            self.gone.set()
            self._tell()
        finally:
            self.heard_out.set()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        try:
            async for data in self._process.stdout:
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[-_LINE_BYTES_MAX:]
                for number, line in enumerate(lines, 1):
                    if number % _LINES_PER_TURN == 0:
                        await trio.lowlevel.checkpoint()
                    self._take(line[-_LINE_BYTES_MAX:].decode("utf-8", "replace").rstrip("\r"))
        except trio.BrokenResourceError:
            pass

    def _take(self, line: str) -> None:
        for what, pattern in self._listens_for.items():
            match = pattern.search(line)
            if match is not None and len(self._heard[what]) < _HEARD_MAX:
                self._heard[what].append(match)
                self._tell()
        told = next((reason for pattern, reason in _REASONS if pattern.search(line)), None) or reason_in(line)
        if told is not None:
            self._reasons.append(told)

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def open_program(
    words: Sequence[str], directory: str, listens_for: Mapping[str, re.Pattern[str]]
) -> AsyncIterator[Program]:
    """Start a program; when the block is left it is ended and waited for. Raises ProgramGone when it cannot start."""
    name = Path(words[0]).name
    try:
        reading, writing = os.pipe()
    except OSError as error:
        raise ProgramGone(f"{name} cannot be started ({_plain(error)})") from None
    try:
        # A home of its own: what it keeps there goes with it.
        environment = worker_environment(os.environ) | {"HOME": directory}
        process = await trio.lowlevel.open_process(
            keeper_command(words),
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
        )
    except OSError as error:
        os.close(writing)
        raise ProgramGone(f"{name} cannot be started ({_plain(error)})") from None
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    program = Program(name, process, writing, listens_for)
    # Shielded: it is heard to its end, which comes by its leash, whoever is cancelled.
    following = trio.CancelScope(shield=True)

    async def follow() -> None:
        with following:
            await program.follow()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        try:
            yield program
        finally:
            program.end("it was ended with the node")
            following.deadline = trio.current_time() + _KILL_TIMEOUT_S
            with trio.CancelScope(shield=True):
                await program.heard_out.wait()
                process.kill()
                await process.wait()
                assert process.stdout is not None
                await process.stdout.aclose()


def _plain(error: OSError) -> str:
    return reason_of(error)


@contextmanager
def private_directory() -> Iterator[Path]:
    """A folder that only this user can enter, for as long as the block lasts. Raises ProgramGone."""
    try:
        directory = tempfile.mkdtemp(prefix="infernet-cluster-")
    except OSError as error:
        raise ProgramGone(f"no temporary folder can be made ({_plain(error)})") from None
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
