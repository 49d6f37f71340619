"""scripts/dev_network as people run it: it says what happens, answers, and leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from _environment import ROOT
from tests.helpers_processes import is_running, wait_until

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0


class DevNetwork:
    """The command as a process."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "_dev_network.py"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        self.told: list[dict[str, Any]] = []

    def until(self, event: str) -> dict[str, Any]:
        """Read what it tells until this happens."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(json.loads(line))
            if self.told[-1]["event"] == event:
                return self.told[-1]
        assert self.process.stderr is not None
        raise AssertionError(f"it ended without {event}: {self.process.stderr.read()}")

    def nodes(self) -> list[dict[str, Any]]:
        """Those that were told to be up."""
        return [told for told in self.told if told["event"] == "up"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        for node in self.nodes():
            # Where it was killed, nobody tidied up.
            shutil.rmtree(Path(node["home"]).parent, ignore_errors=True)


@pytest.fixture
def started(request: pytest.FixtureRequest) -> Iterator[DevNetwork]:
    """Started with the words of the test's `parametrize`."""
    network = DevNetwork(*request.param)
    yield network
    network.close()


def is_gone(nodes: list[dict[str, Any]]) -> bool:
    """Whether neither processes nor homes are left."""
    return not any(is_running(node["pid"]) for node in nodes)


@pytest.mark.parametrize("started", [("4", "--paced", "--check", "--json")], indirect=True)
def test_a_network_finds_itself_and_every_node_gets_every_model(started: DevNetwork) -> None:
    view = started.until("full_view")
    assert len(view["after_s"]) == 4
    checked = started.until("checked")
    # Three providers with a model each ask for the two others, and one asker for all three.
    assert (checked["asked"], checked["failed"]) == (9, [])
    assert started.process.wait(DEADLINE_S) == 0
    nodes = started.nodes()
    assert [node["role"] for node in sorted(nodes, key=lambda node: node["node"])] == [*["provider"] * 3, "client"]
    assert is_gone(nodes)
    assert not any(Path(node["home"]).exists() for node in nodes)


@pytest.mark.parametrize(
    "started", [("3", "--paced", "--providers", "1", "--paid", "--check", "--json")], indirect=True
)
def test_where_answers_cost_the_askers_have_money(started: DevNetwork) -> None:
    bank = started.until("bank")
    checked = started.until("checked")
    assert (checked["asked"], checked["failed"]) == (2, [])
    assert started.process.wait(DEADLINE_S) == 0
    assert not is_running(bank["pid"])
    assert not Path(bank["home"]).exists()


@pytest.mark.parametrize("started", [("2", "--paced", "--providers", "1", "--json")], indirect=True)
def test_a_reader_that_has_enough_ends_it_without_a_traceback(started: DevNetwork) -> None:
    assert started.process.stdout is not None
    assert started.process.stderr is not None
    started.process.stdout.close()
    assert started.process.wait(DEADLINE_S) == 1
    assert started.process.stderr.read() == ""


@pytest.mark.parametrize("started", [("3", "--paced", "--json")], indirect=True)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_it_ends_when_it_is_asked_to(started: DevNetwork, number: int, code: int) -> None:
    started.until("full_view")
    started.process.send_signal(number)
    assert started.process.wait(DEADLINE_S) == code
    assert is_gone(started.nodes())
    assert not any(Path(node["home"]).exists() for node in started.nodes())


@pytest.mark.namespaces
@pytest.mark.parametrize("started", [("3", "--paced", "--nat", "n3", "--json")], indirect=True)
def test_nothing_runs_on_when_it_is_killed(started: DevNetwork) -> None:
    started.until("full_view")
    nodes = started.nodes()
    assert len(nodes) == 3
    assert not is_gone(nodes)
    started.process.kill()
    wait_until(lambda: is_gone(nodes), "all nodes end")


@pytest.mark.namespaces
@pytest.mark.parametrize(
    "started",
    [("3", "--paced", "--providers", "2", "--fault", "n2-n3:cut@0+2", "--kill", "n1@1", "--check", "--json")],
    indirect=True,
)
def test_faults_come_and_go_and_a_killed_node_is_missed(started: DevNetwork) -> None:
    assert started.until("fault")["pair"] == ["n2", "n3"]
    assert started.until("killed")["node"] == "n1"
    assert not is_running(started.nodes()[0]["pid"])
    assert started.until("healed")["pair"] == ["n2", "n3"]
    # The asker alone asks: n2 serves model-b, and does not ask itself.
    assert (started.until("checked")["asked"], started.told[-1]["failed"]) == (1, [])
    assert started.process.wait(DEADLINE_S) == 0
