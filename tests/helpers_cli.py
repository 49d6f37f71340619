"""Running the command line: within the test, where output is caught, or as a process of its own."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from infernet.cli.__main__ import main
from infernet.config import Config, places
from infernet.host.lock import hold_lock
from tests.helpers_ipc import FakeNode, is_served, served
from tests.helpers_json_shapes import check

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 60.0


@dataclass
class Outcome:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str
    #: The command line, without the name of the program.
    words: tuple[str, ...] = field(default=(), compare=False)
    #: Whether a double of the node could answer, with no more than the test is about.
    by_double: bool = field(default=False, compare=False)

    @property
    def json(self) -> Any:
        """What it printed, which must be what docs/json.md says."""
        return self._checked(json.loads(self.out))

    @property
    def json_lines(self) -> list[Any]:
        """The same for verbs that print an object on each line."""
        return [self._checked(json.loads(line)) for line in self.out.splitlines()]

    def _checked(self, printed: Any) -> Any:
        if self.words:
            check(self.words, printed, may_lack=self.by_double)
        return printed

    @property
    def complaint(self) -> str:
        """The last line on standard error."""
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else ""


@dataclass
class Home:
    """A home of a node, and the commands run in it."""

    path: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        return places({"INFERNET_HOME": str(self.path)})

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "infernet.cli", *words]

    def environment(self, **more: str) -> dict[str, str]:
        return os.environ | {"INFERNET_HOME": str(self.path), "PYTHONPATH": str(ROOT)} | self.environ | more

    def run(self, *words: str, stdin: str | bytes = "", **environ: str) -> Outcome:
        """Run a command as a process, to its end."""
        done = subprocess.run(
            self.command(*words),
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            check=False,
            timeout=DEADLINE_S,
            env=self.environment(**environ),
        )
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode(), words)

    def on_terminal(self, *words: str, **environ: str) -> tuple[int, str]:
        """Run a command with a terminal for its output: its exit status, and what the terminal gets."""
        ours, its = pty.openpty()
        with os.fdopen(ours, "rb", buffering=0) as screen:
            process = subprocess.Popen(self.command(*words), stdout=its, stderr=its, env=self.environment(**environ))
            os.close(its)
            shown = b""
            try:
                while piece := screen.read(65536):
                    shown += piece
            except OSError:
                pass  # Linux says so when the last writer is gone
            return process.wait(DEADLINE_S), shown.decode()

    @contextmanager
    def started(self, *words: str) -> Iterator[dict[str, Any]]:
        """A detached node as long as the block lasts; gives its status."""
        outcome = self.run("start", "--json", *words)
        assert outcome.code == 0, outcome.err
        try:
            yield outcome.json
        finally:
            self.run("stop", "--force")


def invoke(capsys: pytest.CaptureFixture[str], *words: str) -> Outcome:
    """Run a command within this process. INFERNET_HOME is the test's to set."""
    capsys.readouterr()
    try:
        code = main(list(words))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    out, err = capsys.readouterr()
    return Outcome(code, out, err, words, by_double=is_served())


async def invoke_beside(capsys: pytest.CaptureFixture[str], *words: str) -> Outcome:
    """Run a command in a thread, while the test serves what it asks for."""
    with trio.fail_after(DEADLINE_S):
        return await trio.to_thread.run_sync(lambda: invoke(capsys, *words))


@asynccontextmanager
async def running(node: FakeNode, config: Config) -> AsyncIterator[FakeNode]:
    """A double of the running node: it holds the lock and answers on the socket."""
    with hold_lock(config.pid_file):
        async with served(node, config.socket_path):
            yield node
