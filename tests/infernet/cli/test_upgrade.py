"""infernet/cli/upgrade.py: what to do for a newer version; it does none of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import infernet
from infernet.cli.upgrade import installation
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode


@pytest.fixture(autouse=True)
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it must not run anything")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_each_installation_has_its_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, steps = installation(tmp_path)
    assert kind == "package"
    assert steps == [f"{sys.executable} -m pip install --upgrade FILE_OF_THE_NEW_RELEASE.whl"]
    checkout = tmp_path / "my checkout"
    (checkout / "scripts").mkdir(parents=True)
    (checkout / "scripts" / "up").touch()
    (checkout / "pyproject.toml").touch()
    kind, steps = installation(checkout)
    assert (kind, steps[0]) == ("checkout", f"git -C '{checkout}' pull --ff-only")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert installation(checkout)[0] == "binary"


def test_without_a_node_there_is_only_the_program(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "upgrade")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"This is infernet {infernet.__version__}, ")
    assert "infernet stop" not in outcome.out
    shown = invoke(capsys, "upgrade", "--json").json
    assert (shown["version"], shown["running"], shown["jobs"]) == (infernet.__version__, False, None)
    assert shown["steps"]


@pytest.mark.anyio
async def test_a_busy_node_is_to_be_drained(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    node = FakeNode()
    node.state |= {"version": "0.0.9\x1b[2J", "jobs_running": 2, "jobs_asked": 1}
    async with running(node, home.config):
        outcome = await invoke_beside(capsys, "upgrade")
        shown = (await invoke_beside(capsys, "upgrade", "--json")).json
    assert "The node is busy (3 jobs): `infernet drain`" in outcome.out
    assert "still 0.0.9:" in outcome.out
    assert (shown["steps"][0], shown["steps"][-1], shown["jobs"]) == ("infernet stop --wait 600", "infernet start", 3)
    assert (node.drained, node.stopped.is_set()) == ([], False)
