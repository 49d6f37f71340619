"""infernet/cli/status.py: what a node says of itself, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infernet.cli.running_node import loading, not_serving
from infernet.cli.status import fields_of
from infernet.config import Config
from protocol.reach_advice import Situation, advice
from protocol.records import Reachability
from tests.helpers_cli import Home, invoke_beside, running
from tests.helpers_ipc import FakeNode

REACHED = Situation(Reachability.REACHED, 46337, (), None, 0)
NOWHERE = Path("/nonexistent")
CONFIG = Config(config_dir=NOWHERE, state_dir=NOWHERE, data_dir=NOWHERE)


@pytest.mark.parametrize(
    ("reached", "words"),
    [
        (None, "unknown"),
        ({"reachability": "unknown", "advice": ""}, "unknown"),
        (
            {"reachability": "not_reached", "advice": "forward TCP port 46337"},
            "not reached: forward TCP port 46337",
        ),
        (
            {"reachability": "reached", "advice": advice(REACHED), "relays_for_others": True},
            "reached: there is nothing to do; others are reached through it",
        ),
    ],
)
def test_reachability_in_words(reached: dict[str, Any] | None, words: str) -> None:
    assert dict(fields_of({"reached": reached}, CONFIG))["reached"] == words


def test_one_restart_is_one() -> None:
    for count, words in ((1, "1 restart"), (2, "2 restarts")):
        told = {"engine": {"state": "ready", "restarts": count}, "dht": {"addresses": ["/a"], "restarts": count}}
        shown = dict(fields_of(told, CONFIG))
        assert str(shown["engine"]).endswith(f", {words}")
        assert shown["dht"] == f"/a, {words}"


def test_what_each_model_runs_on_and_what_is_wrong_with_it_in_words() -> None:
    parts = [
        {"engine": "llama", "models": ["a"], "state": "ready", "where": "RTX (nvidia 0)", "trouble": ""},
        {"engine": "llama", "models": ["b"], "state": "waiting", "where": "RTX (nvidia 1)", "trouble": "it broke"},
        {"engine": "llama", "models": ["c"], "state": "stopped", "where": "nowhere", "trouble": "c needs 80.0 GB"},
        {"engine": "openai", "models": [], "state": "starting", "where": "no server", "trouble": ""},
    ]
    assert dict(fields_of({"engines": parts}, CONFIG))["run on"] == [
        "a: RTX (nvidia 0)",
        "b: waiting (it broke)",
        "c: nowhere (c needs 80.0 GB)",
        "openai: starting",
    ]
    assert not_serving(parts) == [
        "b: waiting (it broke)",
        "c: nowhere (c needs 80.0 GB)",
        "openai: starting",
    ]
    assert dict(fields_of({"engines": "nonsense"}, CONFIG))["run on"] == []


def test_what_is_loading_and_for_how_long_in_words() -> None:
    parts: list[dict[str, Any]] = [
        {"engine": "llama", "models": ["a"], "state": "ready", "where": "RTX", "trouble": "", "loading_s": None},
        {"engine": "llama", "models": ["b"], "state": "starting", "where": "", "trouble": "it broke", "loading_s": 3.9},
        {"engine": "openai", "models": [], "state": "starting", "where": "no server", "loading_s": 120},
    ]
    engine = {"state": "starting", "runs_active": 0, "runs_total": 0, "loading_s": 120.0}
    status = {"engine": engine, "engines": parts}
    shown = dict(fields_of(status, CONFIG))
    assert shown["engine"] == "loading for 2 min, 0 runs now, 0 in all"
    assert shown["run on"] == ["a: RTX", "b: loading for 4 s (it broke)", "openai: loading for 2 min"]
    assert loading(status) == "b: loading for 4 s; openai: loading for 2 min"
    # What that server has is not known yet.
    assert loading(status, "b") == "b: loading for 4 s; openai: loading for 2 min"
    assert loading(status, "c") == "openai: loading for 2 min"
    assert loading({"engine": engine}) == "loading for 2 min"
    assert loading({"engine": {"state": "ready", "loading_s": None}}) == ""
    assert loading({"engine": "nonsense", "engines": "nonsense"}) == ""


def test_this_node_is_not_among_those_it_knows() -> None:
    status = {"peers": 0, "peers_known": 0, "records": 1}
    assert dict(fields_of(status, CONFIG))["peers"] == "0 connected; 0 known by their records"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({}, "none"),
        ({"coordinator": None, "coordinator_url": "http://c"}, "http://c, asked when there is something to ask"),
        (
            {"coordinator": {"url": "http://c", "state": "connected", "last_error": ""}, "coordinator_url": "http://c"},
            "http://c, connected",
        ),
    ],
)
def test_a_node_without_a_link_still_has_a_coordinator(status: dict[str, Any], words: str) -> None:
    assert str(dict(fields_of(status, CONFIG))["coordinator"]).startswith(words)


@pytest.mark.anyio
@pytest.mark.parametrize(("ends_in_s", "is_told"), [(None, False), (27.3, True)])
async def test_a_node_that_drains_says_so(
    home: Home, capsys: pytest.CaptureFixture[str], ends_in_s: float | None, is_told: bool
) -> None:
    node = FakeNode()
    node.state |= {"role": "provider", "uptime_s": 3.0, "ends_in_s": ends_in_s}
    async with running(node, home.config):
        outcome = await invoke_beside(capsys, "status")
    assert (outcome.code, "It is ending" in outcome.out, "27 s at most" in outcome.out) == (0, is_told, is_told)


@pytest.mark.anyio
async def test_only_who_serves_a_model_has_a_load(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    node = FakeNode()
    common = {"node_id": "ab" * 32, "connected": True, "addresses": [], "age_s": 3.0, "load": 0}
    node.known = [
        {**common, "name": "works", "role": "provider", "models": ["tiny"]},
        {**common, "name": "asks", "role": "client", "models": []},
    ]
    async with running(node, home.config):
        outcome = await invoke_beside(capsys, "peers")
    loads = {line.split()[0]: "0/8" in line for line in outcome.out.splitlines()[1:]}
    assert loads == {"works": True, "asks": False}
