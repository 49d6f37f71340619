"""infernet status, peers, config and model: true numbers, cleaned names, JSON for programs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from infernet.cli.output import duration, size
from infernet.engines import models, starter
from infernet.host.lock import hold_lock
from infernet.settings.table import BY_NAME
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode

Capture = pytest.CaptureFixture[str]
STATUS = {
    "pid": 7,
    "name": "kitchen",
    "role": "provider",
    "npub": "npub1x",
    "peer_id": "16Uiu2HAx",
    "uptime_s": 3723.4,
    "addresses": ["/ip4/127.0.0.1/tcp/1/p2p/x", "/ip6/::1/tcp/1/p2p/x"],
    "advertised_addresses": [],
    "models": ["tiny-135m"],
    "engine": {"state": "ready", "runs_active": 1, "runs_total": 5, "restarts": 2, "last_error": "it crashed"},
    "coordinator": {"url": "http://c", "state": "waiting", "last_error": "out of reach"},
    "peers": 2,
    "records": 9,
    "jobs_running": 1,
    "jobs_asked": 3,
}
PEER = {
    "name": "stranger\x1b[31m [bold]x[/bold]\nforged",
    "node_id": "ab" * 32,
    "role": "provider",
    "connected": True,
    "ourselves": False,
    "models": ["tiny", "big\u202e"],
    "load": 3,
    "age_s": 61.2,
    "addresses": ["/ip4/203.0.113.7/tcp/46337"],
}


@pytest.mark.anyio
async def test_status_says_everything_in_words(home: Home, capsys: Capture) -> None:
    fake = FakeNode()
    fake.state = STATUS
    async with running(fake, home.config):
        outcome = await invoke_beside(capsys, "status")
        as_json = await invoke_beside(capsys, "status", "--json")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "kitchen (provider) has been running for 1 h 2 min"
    assert "  listening on  /ip4/127.0.0.1/tcp/1/p2p/x" in lines
    assert "                /ip6/::1/tcp/1/p2p/x" in lines
    assert "  published     no address" in lines
    assert "  engine        ready, 1 runs now, 5 in all, 2 restarts (it crashed)" in lines
    assert "  jobs          1 running for others, 3 asked by this node" in lines
    assert "  coordinator   http://c, waiting (out of reach)" in lines
    assert as_json.json == {"running": True, **STATUS}


def test_a_node_that_is_starting_is_told_apart_from_none(home: Home, capsys: Capture) -> None:
    with hold_lock(home.config.pid_file):
        for verb in ("status", "peers"):
            outcome = invoke(capsys, verb)
            assert (outcome.code, "is starting or ending" in outcome.complaint) == (1, True)


@pytest.mark.anyio
async def test_names_of_peers_are_cleaned_and_this_node_is_left_out(home: Home, capsys: Capture) -> None:
    fake = FakeNode()
    fake.known = [
        PEER,
        PEER | {"name": "zz", "connected": False, "models": []},
        PEER | {"name": "us", "ourselves": True},
    ]
    async with running(fake, home.config):
        outcome = await invoke_beside(capsys, "peers")
        everyone = await invoke_beside(capsys, "peers", "--all", "--json")
        fake.known = []
        nobody = await invoke_beside(capsys, "peers")
    assert [line.split("  ")[0] for line in outcome.out.splitlines()] == [
        "NAME",
        "stranger [bold]x[/bold] forged",
        "zz",
    ]
    assert "abababab  provider  yes" in outcome.out
    assert "tiny, big  -     3/8   1 min 1 s ago  /ip4/203.0.113.7/tcp/46337" in outcome.out
    assert "\x1b" not in outcome.out
    assert [peer["name"] for peer in everyone.json["peers"]] == [PEER["name"], "us", "zz"]
    # In JSON nothing is changed, only escaped.
    assert "\\u001b" in everyone.out
    assert "\\u202e" in everyone.out
    assert (nobody.code, "No peers yet" in nobody.out) == (0, True)


@pytest.mark.anyio
async def test_on_a_terminal_markup_in_a_name_is_only_text(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    fake = FakeNode()
    fake.known = [PEER]
    async with running(fake, home.config):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        outcome = await invoke_beside(capsys, "peers")
    assert "[bold]x[/bold] forged" in outcome.out
    assert "\x1b[3" not in outcome.out


def test_config_show_names_the_source_of_each_value(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke(capsys, "init", "--yes", "--p2p-port", "5000").code == 0
    monkeypatch.setenv("INFERNET_SLOTS", "2")
    outcome = invoke(capsys, "config", "show", "--threads", "1", "--no-advertise", "--json")
    settings: dict[str, Any] = outcome.json["settings"]
    assert list(settings) == list(BY_NAME)
    assert settings["p2p_port"] == {"value": 5000, "from": "file", "variable": "INFERNET_P2P_PORT"}
    assert settings["slots"] == {"value": 2, "from": "environment", "variable": "INFERNET_SLOTS"}
    assert settings["threads"] == {"value": 1, "from": "flag", "variable": "INFERNET_THREADS"}
    assert settings["advertise"] == {"value": False, "from": "flag", "variable": "INFERNET_ADVERTISE"}
    assert settings["free_for"]["from"] == "default"
    assert outcome.json["files"]["config"] == str(home.config.config_file)
    table = invoke(capsys, "config", "show").out
    assert re.search(r"^p2p_port +5000 ", table, re.MULTILINE)
    assert str(home.config.key_file) in table


def test_config_show_warns_of_what_has_no_effect(home: Home, capsys: Capture) -> None:
    home.config.config_dir.mkdir(mode=0o700)
    home.config.config_file.write_text("slotz = 3\n")
    outcome = invoke(capsys, "config", "show")
    assert outcome.code == 0
    assert "warning" in outcome.err
    assert "did you mean slots?" in outcome.err


def test_model_pull_gives_the_path_of_the_model(home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fetch(store: object, progress: object, proxy: object) -> object:
        asked.append(store)
        assert (callable(progress), proxy) == (True, None)
        return home.config.models_dir / "x.gguf"

    monkeypatch.setattr(starter, "fetch_starter", fetch)
    outcome = invoke(capsys, "model", "pull", "--json")
    assert outcome.json == {"model": models.STARTER.name, "path": str(home.config.models_dir / "x.gguf")}
    assert invoke(capsys, "model", "pull").out.strip().endswith("x.gguf")
    assert asked == [home.config.models_dir] * 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (90_061, "1 d 1 h"),
        (86_401, "1 d 1 s"),
    ],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (123_456, "123 kB"), (4_560_000, "4.56 MB"), (10**16, "1e+04 TB")],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.anyio
async def test_only_who_forwards_jobs_says_how_many(home: Home, capsys: Capture) -> None:
    fake = FakeNode()
    fake.state = STATUS
    async with running(fake, home.config):
        assert "forwarded" not in (await invoke_beside(capsys, "status")).out
        counts = {"active": 2, "carried": 17, "failed": 1, "bytes": 4_560_000, "frames": 900}
        fake.state = STATUS | {"jobs_forwarded": counts}
        outcome = await invoke_beside(capsys, "status")
    assert "  forwarded     2 jobs now, 17 carried to their end, 1 failed, 4.56 MB" in outcome.out.splitlines()
