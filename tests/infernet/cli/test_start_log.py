"""What a node in the foreground logs: lines for people on a terminal, JSON everywhere else, and JSON in its file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading

import pytest

from tests.helpers_cli import DEADLINE_S, Home

pytestmark = pytest.mark.slow
QUIET = ("--role", "client", "--no-p2p", "--json")


@pytest.fixture
def node(home: Home) -> Home:
    assert home.run("init", "--yes", "--role", "client").code == 0
    return home


def run_until_up(home: Home, *words: str, stderr: int) -> None:
    """Run a node until it says that it is up, and stop it."""
    process = subprocess.Popen(
        home.command("start", "--foreground", *QUIET, *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=home.environment(),
    )
    with process:
        late = threading.Timer(DEADLINE_S, process.kill)
        late.start()
        assert process.stdout is not None
        assert process.stdout.readline() == b"{\n"
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(DEADLINE_S) == 0
        late.cancel()


def test_in_a_pipe_it_is_json(node: Home) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe:
        run_until_up(node, stderr=writing)
        os.close(writing)
        lines = [json.loads(line) for line in pipe]
    assert [line["event"] for line in lines if line["event"].startswith("node.st")] == [
        "node.started",
        "node.stopping",
        "node.stopped",
    ]
    assert all(line["timestamp"].endswith("Z") and line["level"] == "info" for line in lines)


def test_on_a_terminal_it_is_for_people_without_colours(node: Home) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        run_until_up(node, stderr=theirs)
        # While our end of it is open there is no end to read to.
        text = terminal.read(65536).decode()
        os.close(theirs)
    lines = text.splitlines()
    assert any(" info    node.started  " in line and " role=client " in line for line in lines)
    assert not any(line.startswith("{") for line in lines)
    assert "\x1b" not in text


def test_in_its_file_it_is_json_and_standard_error_stays_silent(node: Home) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe:
        run_until_up(node, "--log-to-file", stderr=writing)
        os.close(writing)
        assert pipe.read() == ""
    events = [json.loads(line)["event"] for line in node.config.log_file.read_text().splitlines()]
    assert events[0] == "node.started"
    assert events[-1] == "node.stopped"
