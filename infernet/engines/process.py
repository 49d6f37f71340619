"""The engine process as the node sees it: how it is started, what it may inherit, and how it is ended.

A crash, a hang or an out-of-memory kill in native code ends that process and nothing else.
"""

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
from dataclasses import dataclass
from typing import Final

import trio

from infernet.engines.frames import BadWorkerFrame, FrameReader, WorkerCommand, WorkerReport, encode

_READ_BYTES: Final = 64 * 1024
# Each run is two commands at most, and there are no more runs than slots; pings are one at a time.
_OUTBOX_COMMANDS_MAX: Final = 4096
_REASONS_MAX: Final = 16
# Of what comes at once only the last lines are looked at: nobody else is served meanwhile.
_ERROR_LINES_MAX: Final = 128
_KILL_TIMEOUT_S: Final = 10.0
_REASON_TIMEOUT_S: Final = 2.0
# What an engine needs of the environment. Everything else, credentials above all, stays in the node.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
_ENVIRONMENT_PREFIXES: Final = (
    *("CUDA_", "NVIDIA_", "HIP_", "HSA_", "ROCR_", "GGML_", "OMP_", "VK_"),
    *("TORCH_", "PYTORCH_"),
)
# What an engine process may say about itself. The rest of its standard error may hold somebody's prompt.
_REASONS: Final = (
    (re.compile(r"out of memory|failed to allocate|unable to allocate|cudaMalloc failed"), "not enough memory"),
    (re.compile(r"engine process: OutOfMemoryError"), "not enough memory on the cards"),
    (re.compile(r"unknown model architecture"), "this llama.cpp does not know the model's architecture"),
    (re.compile(r"failed to read magic|invalid magic"), "the file is no GGUF model"),
    (re.compile(r"failed to read key-value|failed to read tensor|not within the file bounds"), "the file is damaged"),
    (
        re.compile(r"unsupported model version|unsupported GGUF|invalid version"),
        "the file's format is too new or too old",
    ),
    (re.compile(r"couldn't bind HTTP server socket"), "its private socket cannot be made"),
    (re.compile(r"CUDA error|ROCm error|HIP error"), "the GPU reported an error"),
    (re.compile(r"GGML_ASSERT"), "llama.cpp found itself in an impossible state"),
    (re.compile(r"No module named"), "the installation of infernet is incomplete"),
)


def worker_command() -> list[str]:
    """The command that starts an engine process: this Python, or this very binary by its hidden verb."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "engine-worker"]
    return [sys.executable, "-P", "-m", "infernet.engines.worker"]


@dataclass(frozen=True)
class Place:
    """Where an engine process may run: what of its environment names cards to it, and how to say so to people.

    A variable that is None is taken out.
    """

    words: str = ""
    environ: tuple[tuple[str, str | None], ...] = ()
    on_processor: bool = False


#: Wherever llama.cpp likes: on all cards that there are, and on the processor what does not fit them.
ANYWHERE: Final = Place()


def worker_environment(environ: Mapping[str, str], place: Place = ANYWHERE) -> dict[str, str]:
    """What of `environ` an engine process gets, and where it finds the modules that this process has found."""
    environ = {name: value for name, value in {**environ, **dict(place.environ)}.items() if value is not None}
    kept = {
        name: value for name, value in environ.items() if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }
    if not getattr(sys, "frozen", False):
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return kept


def reason_in(line: str) -> str | None:
    """What a line of an engine process's standard error tells, in our words; None for everything we do not know."""
    return next((reason for pattern, reason in _REASONS if pattern.search(line)), None)


def describe_exit(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"the engine process exited with status {status}"
    hint = {
        int(signal.SIGKILL): ", perhaps because the machine ran out of memory",
        int(signal.SIGILL): ", because this CPU lacks an instruction that llama.cpp needs",
    }.get(-status, "")
    return f"the engine process was ended by {signal_name(-status)}{hint}"


def signal_name(number: int) -> str:
    """What a signal is called; most of the real-time ones have no name, and a broken process may send itself any."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class WorkerProcess:
    """A running engine process. `open_worker` makes it and ends it."""

    def __init__(self, process: trio.Process, directory: str) -> None:
        self._process = process
        self.directory = directory
        self._outbox, self._outgoing = trio.open_memory_channel[bytes](_OUTBOX_COMMANDS_MAX)
        self._reader = FrameReader()
        self._received: deque[WorkerReport] = deque()
        self._reasons: deque[str] = deque(maxlen=_REASONS_MAX)
        self._told = trio.Event()
        self._errors_read = trio.Event()
        self._verdict: str | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def post(self, command: WorkerCommand) -> None:
        """Send a command; never waits. Raises UnicodeEncodeError for text that is not Unicode."""
        try:
            self._outbox.send_nowait(encode(command))
        except trio.WouldBlock:
            self.kill("the engine process does not read its commands")
        except trio.BrokenResourceError:
            pass  # it is gone, as `receive` says

    async def receive(self) -> WorkerReport | None:
        """The next thing the process says, or None once it is gone."""
        assert self._process.stdout is not None
        if self._received:
            # Whoever takes the reports gets a turn after each: one that floods must not fill the node's queues.
            await trio.lowlevel.checkpoint()
        while not self._received:
            try:
                data = await self._process.stdout.receive_some(_READ_BYTES)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            try:
                messages = self._reader.feed(bytes(data))
            except BadWorkerFrame as error:
                self.kill(f"the engine process broke its contract ({error})")
                return None
            self._received.extend(message for message in messages if isinstance(message, WorkerReport))
        return self._received.popleft()

    def kill(self, verdict: str) -> None:
        """End the process at once, for this reason; `receive` gives None soon after. It has nothing to save."""
        self._verdict = self._verdict or verdict
        self._process.kill()

    async def hear_reason(self) -> None:
        """Wait a moment for what the process writes about its trouble; a thread of the engine does, in its own time."""
        with trio.move_on_after(_REASON_TIMEOUT_S):
            await self._told.wait()

    async def why_gone(self) -> str:
        """Why the process ended, in one line, with the last thing that it told; waits for its end."""
        with trio.move_on_after(_KILL_TIMEOUT_S):
            status = await self._process.wait()
            await self._errors_read.wait()
            return ": ".join([self._verdict or describe_exit(status), *list(self._reasons)[-1:]])
        return self._verdict or "the engine process closed its output but does not end"

    async def write_commands(self) -> None:
        """Carry posted commands to the process until it is gone."""
        assert self._process.stdin is not None
        async for frame in self._outgoing:
            try:
                await self._process.stdin.send_all(frame)
            except trio.BrokenResourceError:
                return  # it is gone, as `receive` says

    async def read_errors(self) -> None:
        """Keep what its standard error tells, in our words and within bounds."""
        assert self._process.stderr is not None
        line = b""
        try:
            async for data in self._process.stderr:
                *lines, line = (line + data).split(b"\n")
                line = line[-_READ_BYTES:]
                told = (reason_in(text.decode("utf-8", "replace")) for text in lines[-_ERROR_LINES_MAX:])
                self._reasons.extend(filter(None, told))
                if self._reasons:
                    self._told.set()
        except trio.BrokenResourceError:
            pass  # it is gone, as `receive` says
        finally:
            self._errors_read.set()


@asynccontextmanager
async def open_worker(command: Sequence[str], place: Place = ANYWHERE) -> AsyncIterator[WorkerProcess]:
    """Start an engine process; when the block is left it is ended, waited for and cleaned up after.

    Raises OSError when it cannot be started.
    """
    with _private_directory() as directory:
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=worker_environment(os.environ, place) | {"TMPDIR": directory},
            cwd=directory,
        )
        worker = WorkerProcess(process, directory)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.write_commands)
                nursery.start_soon(worker.read_errors)
                try:
                    yield worker
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            process.kill()
            with trio.CancelScope(shield=True), trio.move_on_after(_KILL_TIMEOUT_S):
                await process.wait()
                for pipe in (process.stdin, process.stdout, process.stderr):
                    assert pipe is not None
                    await pipe.aclose()


@contextmanager
def _private_directory() -> Iterator[str]:
    """A folder that only this user can enter; a socket in it has a path that fits."""
    directory = tempfile.mkdtemp(prefix="infernet-engine-")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
