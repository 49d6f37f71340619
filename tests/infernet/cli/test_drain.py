"""infernet/cli/drain.py: no new jobs, what is left, and no waiting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infernet.draining import JobsLeft
from infernet.host.lock import hold_lock
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode

pytestmark = pytest.mark.anyio


class Draining(FakeNode):
    """A double that has this left."""

    def __init__(self, left: JobsLeft) -> None:
        super().__init__()
        self._left = left

    def handlers(self):
        return replace(super().handlers(), jobs_left=lambda: self._left)


async def test_it_tells_the_node_and_says_what_is_left(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    node = Draining(JobsLeft(running=2, asked=1, forwarded=0, ends_in_s=3600.0))
    async with running(node, home.config):
        outcome = await invoke_beside(capsys, "drain")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "The node takes no new jobs.",
        "It ends when these have ended, in 1 h at the latest: 2 jobs, 1 question.",
    ]
    assert node.drained == [3600.0]


async def test_one_that_has_nothing_to_do_ends_now(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(Draining(JobsLeft(0, 0, 0, 3600.0)), home.config):
        outcome = await invoke_beside(capsys, "drain")
    assert "Nothing is left to do" in outcome.out


async def test_the_limit_and_the_numbers_for_programs(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    node = Draining(JobsLeft(running=1, asked=0, forwarded=3, ends_in_s=9.5))
    async with running(node, home.config):
        outcome = await invoke_beside(capsys, "drain", "--limit", "10", "--json")
    assert outcome.json == {"draining": True, "running": 1, "asked": 0, "forwarded": 3, "ends_in_s": 9.5}
    assert node.drained == [10.0]


async def test_without_a_node_there_is_nothing_to_drain(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "drain", "--json")
    assert (outcome.code, outcome.json["running"]) == (1, False)
    with hold_lock(home.config.pid_file):
        assert "is starting or ending" in invoke(capsys, "drain").complaint


@pytest.mark.parametrize("word", ["-1", "x", "inf", "nan", "86401"])
async def test_a_limit_that_is_none_is_a_misuse(home: Home, capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert invoke(capsys, "drain", f"--limit={word}").code == 2
