"""infernet/cli/stats.py: what a node has done so far, in numbers."""

from __future__ import annotations

from typing import Any

import pytest

from infernet.host.lock import hold_lock
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode

COUNTS: dict[str, Any] = {
    "jobs": {"taken": 12, "completed": 9, "cancelled": 1, "failed": 2, "refused": 4, "output_tokens": 12345},
    "asked": {"answered": 3, "failed": 1, "output_tokens": 70, "paid_uusd": 1500},
    "heartbeats": {"signed": 20, "told": 18, "missed": 2, "age_s": 12.3},
}


def counting_node(**state: Any) -> FakeNode:
    node = FakeNode()
    node.state |= {"role": "provider", "uptime_s": 3700.0, "pid": 7, "peers": 2, "peers_known": 5, "counts": COUNTS}
    node.state |= {"jobs_running": 3, "jobs_waiting": 1, "jobs_asked": 0, **state}
    return node


@pytest.mark.anyio
async def test_the_numbers_for_people(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    money = {"earned_uusd": 250_000, "unclaimed_uusd": 1000}
    node = counting_node(coordinator={"state": "connected"}, money=money)
    async with running(node, home.config):
        outcome = await invoke_beside(capsys, "stats")
    assert (outcome.code, outcome.err) == (0, "")
    for words in (
        "fake (provider) has been running for 1 h 1 min",
        "2 running for others, 1 waiting",
        "12: 9 completed, 1 cancelled, 2 failed, 0 not paid for",
        "4 jobs",
        "0 of prompts, 12,345 of answers",
        "3 answered, 0 cancelled, 1 failed",
        "$0.0015 signed for",
        "20 signed, the last 12 s ago; 18 told to the coordinator at once, 2 while there was no link",
        "2 connected; 5 known by their records",
        "$0.25 redeemed, $0.001 in vouchers not redeemed yet",
    ):
        assert words in outcome.out, words


@pytest.mark.anyio
async def test_the_numbers_for_programs(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(counting_node(), home.config):
        outcome = await invoke_beside(capsys, "stats", "--json")
    assert outcome.code == 0
    assert outcome.json["running"] is True
    assert outcome.json["jobs"] == {"running": 2, "waiting": 1, **COUNTS["jobs"]}
    assert outcome.json["asked"] == {"running": 0, **COUNTS["asked"]}
    assert (outcome.json["money"], outcome.json["coordinator"], outcome.json["forwarded"]) == (None, None, None)


@pytest.mark.anyio
async def test_a_node_that_does_not_count_is_told_of(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(FakeNode(), home.config):
        outcome = await invoke_beside(capsys, "stats")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "older version" in outcome.complaint


def test_without_a_node_there_are_no_numbers(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "stats")
    assert (outcome.code, outcome.out) == (1, "")
    assert "no node is running here: run `infernet start`" in outcome.complaint
    assert invoke(capsys, "stats", "--json").json["running"] is False
    with hold_lock(home.config.pid_file):
        assert "is starting or ending" in invoke(capsys, "stats").complaint


@pytest.mark.anyio
async def test_metrics_are_printed_as_the_node_gives_them(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    node = counting_node()
    node.metrics = "# TYPE infernet_bans gauge\ninfernet_bans 0.0\x1b[31m\n"
    async with running(node, home.config):
        outcome = await invoke_beside(capsys, "stats", "--prometheus")
        refused = await invoke_beside(capsys, "stats", "--prometheus", "--json")
    assert (outcome.code, outcome.out) == (0, "# TYPE infernet_bans gauge\ninfernet_bans 0.0\n")
    assert refused.code == 2
    assert "leave out --json" in refused.err


def test_without_a_node_there_are_no_metrics(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "stats", "--prometheus")
    assert (outcome.code, outcome.out) == (1, "")
    assert "no node is running here: run `infernet start`" in outcome.complaint
