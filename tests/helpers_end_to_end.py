"""Real processes and the real model: nodes started as people start them, killed as nobody wishes for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import trio

from infernet.answers import AskOptions
from infernet.assembly import client_node
from infernet.config import Config
from infernet.ipc import client as ipc
from infernet.node import Node
from protocol.effects import JobDone, JobEvent, JobText
from protocol.envelope import SigningKey
from protocol.records import ChatMessage, Role
from tests.helpers_cli import Home
from tests.helpers_processes import is_running, wait_until

# What the kernel of this machine tells at once and the programs must pass on. Far below the twenty seconds after
# which silence alone ends a job.
NOTICED_S = 5.0
JOB_S = 60.0
STOP_S = 20.0

PARIS = "What is the capital of France?"
LONG = "Tell me a very long story about a dragon and a knight."
LONG_TOKENS = 1500


class NodeProcess:
    """A provider in a process of its own, serving the starter model on one thread, at a free port of loopback."""

    def __init__(self, home: Home, *words: str) -> None:
        self.home = home
        self.log = home.path / "test.log"
        settings = ("--listen-hosts", "127.0.0.1", "--p2p-port", "0", "--threads", "1", "--slots", "2")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                home.command("start", "--foreground", *settings, *words),
                env=home.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        wait_until(lambda: self.process.poll() is not None or ipc.is_alive(self._socket), "the node is up")
        assert self.process.poll() is None, self.log.read_text()
        [self.address] = self.status()["addresses"]

    @property
    def _socket(self) -> Path:
        return self.home.config.socket_path

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return int(self.address.split("/")[4])

    def status(self) -> dict[str, Any]:
        """What `infernet status` would print."""
        status: dict[str, Any] = ipc.call(self._socket, "status")
        return status

    def engine_pid(self) -> int:
        """The process of its engine."""
        [engine] = psutil.Process(self.process.pid).children()
        return engine.pid

    def is_idle(self) -> bool:
        """Whether nothing is left of any job and of whoever asked."""
        status = self.status()
        engine = status["engine"]
        assert engine["slots_leaked"] == 0
        left = (status["jobs_running"], status["streams"], status["open_streams"], status["peers"])
        return left == (0, 0, 0, 0) and engine["runs_active"] == 0 and engine["state"] == "ready"

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it as its owner does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(STOP_S)


@contextmanager
def new_home(model: Path) -> Iterator[Home]:
    """An empty home that knows where the model is. Its path is short, so that sockets can lie below it."""
    path = Path(tempfile.mkdtemp(prefix="infernet-"))
    home = Home(path)
    store = home.config.models_dir
    store.parent.mkdir(parents=True)
    store.symlink_to(model.parent)
    try:
        yield home
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def provider(model: Path, *words: str, init: tuple[str, ...] = ()) -> Iterator[NodeProcess]:
    """A provider for as long as the block lasts; nothing of it is left afterwards."""
    with new_home(model) as home:
        outcome = home.run("init", "--role", "provider", "--name", "provider", "--yes", *init)
        assert outcome.code == 0, outcome.err
        node = NodeProcess(home, *words)
        engine_pid = node.engine_pid()
        try:
            yield node
        finally:
            node.stop()
            wait_until(lambda: not is_running(engine_pid), "the engine's process ends with its node")


async def until(condition: Callable[[], bool], what: str, within_s: float) -> None:
    """Look again and again, in a thread, until a condition holds."""
    with trio.move_on_after(within_s):
        while True:
            if await trio.to_thread.run_sync(condition):
                return
            await trio.sleep(0.02)
    raise AssertionError(f"not within {within_s:g} s: {what}")


@asynccontextmanager
async def asker(address: str) -> AsyncIterator[Node]:
    """A node in this process that only asks, and knows one provider."""
    nowhere = Path("/nonexistent")
    config = Config(config_dir=nowhere, state_dir=nowhere, data_dir=nowhere, role=Role.CLIENT, name="asker")
    async with client_node(config, SigningKey(os.urandom(32), os.urandom), peers=[address]) as node:
        yield node


def chat(text: str, max_tokens: int = 64) -> AskOptions:
    """A question; always the same answer."""
    return AskOptions(messages=(ChatMessage("user", text),), max_tokens=max_tokens, temperature=0.0, seed=1)


async def answer(node: Node, text: str = PARIS, max_tokens: int = 64) -> str:
    """Ask, and return the whole answer; fail when there is none."""
    pieces: list[str] = []
    with trio.fail_after(JOB_S):
        async with node.ask(chat(text, max_tokens)) as events:
            async for event in events:
                if isinstance(event, JobText):
                    pieces.append(event.text)
    assert isinstance(event, JobDone), event
    return "".join(pieces)


async def answer_of(provider: NodeProcess, text: str = PARIS, max_tokens: int = 64) -> str:
    """Ask a provider with a node made for this one question."""
    async with asker(provider.address) as node:
        return await answer(node, text, max_tokens)


async def first_text(events: AsyncIterator[JobEvent]) -> None:
    """Wait until the answer has begun."""
    with trio.fail_after(JOB_S):
        async for event in events:
            if isinstance(event, JobText):
                return
    raise AssertionError(f"the job ended before its answer began: {event}")
