"""Three programs and an aggregator between them: a provider that nobody can dial answers a question from a shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infernet.ipc import client as ipc
from tests.helpers_cli import ROOT, Home
from tests.helpers_processes import wait_until

MODEL = "paced"
STOP_S = 20.0
LOOPBACK = ["--listen-hosts", "127.0.0.1", "--p2p-port", "0", "--no-mdns", "--allow-private"]

pytestmark = pytest.mark.slow


@contextmanager
def paced_provider(path: Path, aggregator: str, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A provider's process that opens no port and knows only the aggregator."""
    home = Home(path)
    assert home.run("init", "--role", "provider", "--name", "hidden", "--yes").code == 0
    settings = ["--no-advertise", "--no-mdns", "--allow-private", "--free-for", "all", "--peers", aggregator]
    with (path / "test.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers_paced_node", "--paced", MODEL, *words, *settings],
            cwd=ROOT,
            env=home.environment(PYTHONPATH=f"{ROOT}:{ROOT / 'scripts'}"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: process.poll() is not None or ipc.is_alive(home.config.socket_path), "the node is up")
        assert process.poll() is None, (path / "test.log").read_text()
        yield process, home.config.socket_path
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(STOP_S)


def knows_provider(home: Home) -> bool:
    return any(MODEL in peer["models"] for peer in ipc.call(home.config.socket_path, "peers"))


@pytest.mark.nightly
def test_a_question_from_a_shell_goes_through_an_aggregator(tmp_path: Path) -> None:
    aggregator, asker = Home(tmp_path / "aggregator"), Home(tmp_path / "asker")
    outcome = aggregator.run("init", "--role", "aggregator", "--name", "between", "--yes")
    assert outcome.code == 0, outcome.err
    with aggregator.started(*LOOPBACK) as status:
        assert (status["role"], status["models"], status["engine"]) == ("aggregator", [], None)
        [address] = status["addresses"]
        with paced_provider(tmp_path / "provider", address) as (_, socket):
            wait_until(lambda: knows_provider(aggregator), "the aggregator knows the provider")
            words = ["chat", "--json", "--via", address, "--max-tokens", "12", "What is the capital of France?"]
            outcome = asker.run(*words, INFERNET_ALLOW_PRIVATE="yes")
            assert outcome.code == 0, outcome.err
            answer = outcome.json
            assert (answer["outcome"], answer["output_tokens"], answer["route"]) == ("length", 12, "peer")
            assert answer["via"] == status["node_id"]
            assert answer["provider"] == ipc.call(socket, "status")["node_id"]
            assert aggregator.run("status", "--json").json["jobs_forwarded"]["carried"] == 1
            told = aggregator.run("status").out
            assert "1 carried to their end, 0 failed" in told
            plain = asker.run(*[word for word in words if word != "--json"], INFERNET_ALLOW_PRIVATE="yes")
            assert f"passed on by {status['node_id'][:8]}" in plain.err


def test_a_provider_that_is_killed_behind_an_aggregator_leaves_no_answer_that_looks_whole(tmp_path: Path) -> None:
    aggregator, asker = Home(tmp_path / "aggregator"), Home(tmp_path / "asker")
    assert aggregator.run("init", "--role", "aggregator", "--yes").code == 0
    with aggregator.started(*LOOPBACK) as status:
        [address] = status["addresses"]
        slow = ["--tokens-per-s", "10", "--answer-tokens", "1000"]
        with paced_provider(tmp_path / "provider", address, *slow) as (process, socket):
            wait_until(lambda: knows_provider(aggregator), "the aggregator knows the provider")
            chat = subprocess.Popen(
                asker.command("chat", "--via", address, "--max-tokens", "1000", "Count."),
                env=asker.environment(INFERNET_ALLOW_PRIVATE="yes"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            running: dict[str, Any] = {}

            def is_answering() -> bool:
                running.update(ipc.call(socket, "status"))
                return bool(running["jobs_running"])

            wait_until(is_answering, "the provider answers")
            assert chat.stdout is not None
            assert chat.stdout.read(10)
            os.kill(process.pid, signal.SIGKILL)
            _, complaint = chat.communicate(timeout=60)
            assert chat.returncode == 1
            assert b"the answer broke off" in complaint
            assert aggregator.run("status", "--json").json["jobs_forwarded"]["active"] == 0
