"""The DHT process as the node sees it: started, talked to, and ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from infernet.discovery.dht_frames import Command, FrameCutter, Report, encode, read_report

_READ_BYTES: Final = 64 * 1024
# Commands that the process has not read yet; a process that stands still is noticed by its pings.
_OUTBOX_MAX: Final = 64
_END_TIMEOUT_S: Final = 5.0
# What the process needs of the environment; everything else stays in the node.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_WORD_CHARACTERS_MAX: Final = 200


def worker_command() -> list[str]:
    """The command that starts a DHT process: this Python, or this very binary by its hidden verb."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "dht-worker"]
    return [sys.executable, "-P", "-m", "infernet.discovery.dht_worker"]


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {name: environ[name] for name in _ENVIRONMENT if name in environ}
    if not getattr(sys, "frozen", False):
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return kept


class DhtProcess:
    """A running DHT process. `open_dht_process` makes it and ends it."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._outbox, self._outgoing = trio.open_memory_channel[Command](_OUTBOX_MAX)
        self._cutter = FrameCutter()
        self._last_word = ""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def post(self, command: Command) -> None:
        """Send a command; never waits. One that does not fit any more is lost: hints are cheap."""
        with suppress(trio.WouldBlock, trio.BrokenResourceError):
            self._outbox.send_nowait(command)

    async def receive(self) -> list[Report] | None:
        """What the process says next, or None once it is gone. Raises BadDhtFrame when it breaks its contract."""
        assert self._process.stdout is not None
        try:
            data = await self._process.stdout.receive_some(_READ_BYTES)
        except trio.BrokenResourceError:
            return None
        return [read_report(body) for body in self._cutter.feed(bytes(data))] if data else None

    async def why_gone(self) -> str:
        """How the process ended, in one line; waits for its end."""
        with trio.move_on_after(_END_TIMEOUT_S):
            status = await self._process.wait()
            how = f"exited with status {status}" if status >= 0 else f"was ended by signal {-status}"
            return f"it {how}{self._last_word}"
        return "it closed its output and does not end"

    async def write_commands(self) -> None:
        """Carry posted commands to the process until it is gone."""
        assert self._process.stdin is not None
        async for command in self._outgoing:
            try:
                await self._process.stdin.send_all(encode(command))
            except trio.BrokenResourceError:
                return

    async def read_errors(self) -> None:
        """Keep the last word that the process itself says on standard error; the rest may be strangers' text."""
        assert self._process.stderr is not None
        line = b""
        try:
            async for data in self._process.stderr:
                *lines, line = (line + data).split(b"\n")
                line = line[-_READ_BYTES:]
                for text in lines:
                    if text.startswith(b"dht process: "):
                        word = text.removeprefix(b"dht process: ")[:_WORD_CHARACTERS_MAX].decode("ascii", "replace")
                        self._last_word = f" ({word})" if word.isidentifier() else ""
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def open_dht_process(command: Sequence[str]) -> AsyncIterator[DhtProcess]:
    """Start a DHT process; when the block is left it is ended and waited for. Raises OSError."""
    process = await trio.lowlevel.open_process(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(os.environ),
        cwd="/",
    )
    running = DhtProcess(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.write_commands)
            nursery.start_soon(running.read_errors)
            try:
                yield running
            finally:
                nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True), trio.move_on_after(_END_TIMEOUT_S):
            await process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                assert pipe is not None
                await pipe.aclose()
