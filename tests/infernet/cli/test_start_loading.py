"""infernet start with a model that takes long: a real node before a server that answers when the test lets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from infernet.cli.__main__ import main
from infernet.host.lock import running_pid
from infernet.ipc import client as ipc
from tests.helpers_cli import DEADLINE_S, Home, invoke_beside
from tests.helpers_openai_servers import Asked, OddServer, Reply, ollama

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MODEL = "qwen2.5:7b"


class SlowServer:
    """A double of Ollama whose model does not answer before the test says so."""

    def __init__(self) -> None:
        self.may_answer = trio.Event()
        self.status = 200
        self.double: OddServer = ollama()
        self._answer = self.double.pages["/v1/chat/completions"]
        self.double.pages["/v1/chat/completions"] = self._late

    async def _late(self, asked: Asked, reply: Reply) -> None:
        await self.may_answer.wait()
        if self.status == 200:
            await self._answer(asked, reply)
        else:
            await reply.json({"error": {"message": "no"}}, self.status)


class Starting:
    """`infernet start` before that server, and what it says."""

    def __init__(self, home: Home, server: SlowServer, process: trio.Process) -> None:
        self.home = home
        self.server = server
        self.process = process
        self._said = b""

    async def say(self, word: str) -> str:
        """What it has said on standard error, as soon as this is in it; with an empty word to the end of it."""
        assert self.process.stderr is not None
        with trio.fail_after(DEADLINE_S):
            while not word or word.encode() not in self._said:
                piece = await self.process.stderr.receive_some()
                if not piece:
                    break
                self._said += piece
        assert word.encode() in self._said
        return self._said.decode()

    async def end(self) -> tuple[int, str]:
        """Its exit code, and all that it said."""
        said = await self.say("")
        with trio.fail_after(DEADLINE_S):
            return await self.process.wait(), said

    async def status(self) -> dict[str, Any]:
        """What the node says of itself over its socket."""
        path = self.home.config.socket_path
        status: dict[str, Any] = await trio.to_thread.run_sync(lambda: ipc.call(path, "status", timeout_s=DEADLINE_S))
        return status


def until_it_serves(home: Home) -> dict[str, Any]:
    """The node's status, as soon as it serves."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        status: dict[str, Any] = ipc.call(home.config.socket_path, "status", timeout_s=DEADLINE_S)
        if status["models"]:
            return status
        assert time.monotonic() < deadline, "it never served"
        time.sleep(0.02)


def until_it_has_logged(home: Home, event: str) -> list[str]:
    """All that it has logged, as soon as this is among it."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        events = [json.loads(line)["event"] for line in home.config.log_file.read_text().splitlines()]
        if event in events:
            return events
        assert time.monotonic() < deadline, f"it never logged {event}"
        time.sleep(0.02)


def until_it_answers(home: Home) -> None:
    """As soon as the node listens to its owner."""
    deadline = time.monotonic() + DEADLINE_S
    while not ipc.is_alive(home.config.socket_path):
        assert time.monotonic() < deadline, "it never answered"
        time.sleep(0.02)


@pytest.fixture
async def starting(home: Home, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Starting]:
    """A command that waits for a node which loads."""
    assert main(["init", "--yes"]) == 0
    capsys.readouterr()
    async with _starting(home) as begun:
        yield begun


@asynccontextmanager
async def _starting(
    home: Home,
    *more: str,
    before: Sequence[str] = (),
    command: Sequence[str] = (),
    first_word: str = f"{MODEL}: loading for ",
) -> AsyncIterator[Starting]:
    server = SlowServer()
    async with server.double.running():
        words = ["--p2p-port", "0", "--listen-hosts", "127.0.0.1", "--engine", "openai", "--engine-models", MODEL]
        process = await trio.lowlevel.open_process(
            [*before, *(command or home.command()), "start", *words, *more, "--engine-url", server.double.url],
            env=home.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            begun = Starting(home, server, process)
            if first_word:
                await begun.say(first_word)
            yield begun
        finally:
            process.kill()
            await process.wait()
            await trio.to_thread.run_sync(lambda: home.run("stop", "--force"))


async def test_the_node_is_there_while_it_loads_and_whoever_waits_may_leave_it(
    starting: Starting, capsys: pytest.CaptureFixture[str]
) -> None:
    home = starting.home
    status = await starting.status()
    assert (status["models"], status["engines"][0]["models"], status["engine"]["state"]) == ([], [MODEL], "starting")
    assert status["addresses"]
    shown = await invoke_beside(capsys, "status")
    assert f"run on        {MODEL}: loading for " in shown.out

    starting.process.send_signal(signal.SIGINT)
    code, said = await starting.end()
    assert code == 130
    pid = running_pid(home.config.pid_file)
    assert f"the node (process {pid}) goes on loading: `infernet status` shows how far it is" in said

    starting.server.may_answer.set()
    status = await trio.to_thread.run_sync(until_it_serves, home)
    assert (status["pid"], status["models"], status["engine"]["loading_s"]) == (pid, [MODEL], None)
    wanted = ["node.started", "node.loading", "node.loaded"]
    events = await trio.to_thread.run_sync(until_it_has_logged, home, wanted[-1])
    assert [event for event in events if event in wanted] == wanted


async def test_a_node_that_has_begun_to_load_and_does_not_answer_is_left_alone(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--yes"]) == 0
    capsys.readouterr()
    impatient = (
        "from infernet.cli import __main__, detached; detached.SILENCE_S = 3.0; raise SystemExit(__main__.main())"
    )
    async with _starting(home, command=[sys.executable, "-c", impatient]) as starting:
        pid = running_pid(home.config.pid_file)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            code, said = await starting.end()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert code == 1
        assert f"the node (process {pid}) was loading and has not answered for 3 s: it is left to go on" in said
        assert str(home.config.log_file) in said
        starting.server.may_answer.set()
        status = await trio.to_thread.run_sync(until_it_serves, home)
        assert (status["pid"], status["models"]) == (pid, [MODEL])


async def test_with_nohup_a_hang_up_ends_neither_the_command_nor_the_node(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--yes"]) == 0
    capsys.readouterr()
    async with _starting(home, before=["nohup"]) as starting:
        starting.process.send_signal(signal.SIGHUP)
        starting.server.may_answer.set()
        code, said = await starting.end()
        assert (code, "goes on loading" in said) == (0, False)
        assert (await starting.status())["models"] == [MODEL]


@pytest.mark.parametrize("by_signal", [False, pytest.param(True, marks=pytest.mark.nightly)])
async def test_a_node_is_ended_while_it_loads(
    starting: Starting, capsys: pytest.CaptureFixture[str], by_signal: bool
) -> None:
    config = starting.home.config
    pid = running_pid(config.pid_file)
    assert pid is not None
    if by_signal:
        os.kill(pid, signal.SIGTERM)
    else:
        assert (await invoke_beside(capsys, "stop")).code == 0
    code, said = await starting.end()
    assert code == 1
    assert said.splitlines()[-1] == "infernet: the node was stopped before its engine had loaded"
    assert running_pid(config.pid_file) is None
    assert not config.socket_path.exists()
    assert json.loads(config.log_file.read_text().splitlines()[-1])["event"] == "node.stopped"


async def test_one_that_is_started_once_and_stopped_before_it_was_up_did_not_come_up(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--yes"]) == 0
    capsys.readouterr()
    async with _starting(home, "--once", first_word="") as begun:
        await trio.to_thread.run_sync(until_it_answers, home)
        assert (await invoke_beside(capsys, "stop")).code == 0
        code, said = await begun.end()
    assert code == 1
    assert said.splitlines()[-1] == "infernet: the node was stopped before it was up"


@pytest.mark.nightly
async def test_a_model_that_does_not_load_after_all_ends_the_node_with_the_reason(starting: Starting) -> None:
    starting.server.status = 404
    starting.server.may_answer.set()
    code, said = await starting.end()
    assert code == 1
    url = starting.server.double.url
    why = f"infernet: the server at {url} cannot be used: it answered /v1/chat/completions with status 404"
    assert said.splitlines()[-1] == why
    assert running_pid(starting.home.config.pid_file) is None
