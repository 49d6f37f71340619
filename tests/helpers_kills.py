"""Real SIGKILLs at the n-th system call of a real process (M2): what it acknowledged before must be there after.

A `Killer` is a process of its own that starts, follows and kills others: a program (`run`), or a function that it
has already imported (`call`), which saves the start of an interpreter each time. What is killed writes what it
acknowledges to its standard output, which is a file in memory: nothing of it is ever in flight.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests import helpers_ptrace

ROOT: Final = Path(__file__).resolve().parent.parent
# All by which a store changes what other processes and the next one see; the locks are taken by fcntl.
CHANGING: Final = (
    "write", "writev", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync", "unlink", "unlinkat", "rename",
    "renameat", "renameat2", "openat", "fcntl", "flock", "mmap",
)  # fmt: skip
SERVING: Final = "import sys; from tests.helpers_kills import serve; serve(*sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Killed:
    """What came of it: the whole lines that were acknowledged, how many calls it came to, whether it was killed."""

    lines: list[str]
    calls: int
    was_killed: bool


def can_kill() -> bool:
    """Whether this machine lets its processes be followed."""
    if sys.platform != "linux" or platform.machine() not in helpers_ptrace.NUMBERS:
        return False
    try:
        return run_until_killed(["echo", "a"], ("write",), 1).was_killed
    except CannotFollow:
        return False


class CannotFollow(Exception):
    """The machine does not allow it, or what was to be killed could not be started."""


class Killer:
    """Kills at calls of these kinds. `target` is "module:function", for `call`. A context manager."""

    def __init__(self, syscalls: Collection[str] = CHANGING, target: str | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVING, ",".join(syscalls), target or ""],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)

    def run(self, argv: Sequence[str], at_call: int, after_lines: int = 0) -> Killed:
        """Start a program, count its calls once it has written so many lines, and kill it at this one (from 1)."""
        return self._ask({"argv": list(argv), "at_call": at_call, "after_lines": after_lines})

    def call(self, arguments: Sequence[Any], at_call: int, after_lines: int = 0) -> Killed:
        """The same with the target function in a forked process; the arguments travel as JSON."""
        return self._ask({"arguments": list(arguments), "at_call": at_call, "after_lines": after_lines})

    def _ask(self, request: dict[str, Any]) -> Killed:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise CannotFollow("the process that kills has ended; its errors are on standard error")
        told = json.loads(answer)
        # What it wrote until then is no answer to anything; why it ended is on standard error.
        assert told["exit_code"] in (None, 0), f"it was not killed, and ended with exit code {told['exit_code']}"
        return Killed(told["lines"], told["calls"], was_killed=told["exit_code"] is None)


def run_until_killed(argv: Sequence[str], syscalls: Collection[str], at_call: int, after_lines: int = 0) -> Killed:
    """Once. Many are faster with one `Killer`."""
    with Killer(syscalls) as killer:
        return killer.run(argv, at_call, after_lines)


# ---------------------------------------------------------------- in the process that kills


def serve(syscalls: str, target: str) -> None:
    """Answer requests, one JSON line each, until standard input ends."""
    calls = helpers_ptrace.numbers_of(syscalls.split(","))
    function = _imported(target) if target else None
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(json.dumps(_carry_out(request, calls, function)) + "\n")
        sys.stdout.flush()


def _imported(target: str) -> Callable[..., None]:
    module, _, name = target.partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(module), name)
    return found


def _carry_out(request: dict[str, Any], calls: list[int], function: Callable[..., None] | None) -> dict[str, Any]:
    output = os.memfd_create("acknowledged")

    def body() -> None:
        os.dup2(output, 1)
        if "argv" in request:
            os.execvp(request["argv"][0], request["argv"])
        assert function is not None, "this killer was given no target"
        function(*request["arguments"])
        os._exit(0)

    def counts() -> bool:
        return not request["after_lines"] or _written(output).count(b"\n") >= request["after_lines"]

    pid = helpers_ptrace.fork_stopped(calls, body)
    reached, exit_code = helpers_ptrace.follow(pid, request["at_call"], counts)
    whole = _written(output).decode().split("\n")[:-1]
    os.close(output)
    return {"lines": whole, "calls": reached, "exit_code": exit_code}


def _written(output: int) -> bytes:
    return os.pread(output, os.fstat(output).st_size, 0)
