"""scripts/up, whole: real processes, the real model, and a question that crosses libp2p."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers_processes import free_port, processes_below, wait_until

ROOT = Path(__file__).resolve().parents[2]
MARKET = ROOT / "scripts" / "_market.py"
DEADLINE_S = 120.0
QUESTION = "What is the capital of France?"

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture
def home(tmp_path: Path, starter_model_path: Path) -> Iterator[Path]:
    """A home for a market, which has its model already; at the end no process may be left in it."""
    home = tmp_path / "up"
    store = home / "provider" / "data" / "models"
    store.mkdir(parents=True)
    (store / starter_model_path.name).symlink_to(starter_model_path)
    yield home
    assert processes_below(home) == []


def command(home: Path, *words: str) -> list[str]:
    """The words that start the market, on ports of its own."""
    ports = ["--port", str(free_port()), "--p2p-port", str(free_port())]
    return [sys.executable, str(MARKET), "--home", str(home), *ports, *words]


def test_a_question_is_answered_by_the_model_over_libp2p(home: Path) -> None:
    done = subprocess.run(
        command(home, "--ask", QUESTION), check=False, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_the_market_says_where_it_is_and_ends_with_ctrl_c(home: Path) -> None:
    with subprocess.Popen(command(home, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as market:
        assert market.stdout is not None
        assert market.stderr is not None
        line = market.stdout.readline()
        assert line, market.stderr.read().decode()
        ready = json.loads(line)
        with urllib.request.urlopen(ready["chat"], timeout=DEADLINE_S) as page:
            assert page.status == 200
        assert ready["multiaddr"].startswith("/ip4/127.0.0.1/tcp/")
        market.send_signal(signal.SIGINT)
        assert market.wait(DEADLINE_S) == 0


def test_killed_outright_it_leaves_nothing_behind(home: Path) -> None:
    with subprocess.Popen(command(home, "--json"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as market:
        assert market.stdout is not None
        assert market.stdout.readline()
        market.kill()
    wait_until(lambda: not processes_below(home), "coordinator, provider and engine end")
