"""`infernet register` and `update`: the coordinator's entry, and that a hidden node stays hidden."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from infernet.config import load, save
from infernet.coordinator_client import CoordinatorRefused
from protocol.errors import LocalProtocolError
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode
from tests.helpers_money_server import BANK, MoneyServer, Refusal, money_server

pytestmark = pytest.mark.anyio
Capture = pytest.CaptureFixture[str]

ROW = {
    "id": BANK.node.hex(),
    "node_id": "provider-abc",
    "public_key": BANK.node.hex(),
    "name": "attic",
    "role": "provider",
    "status": "offline",
    "address": None,
    "port": None,
    "specs": {"served_models": []},
    "gpu_model": None,
    "created_at": "2026-11-29T09:00:00Z",
    "last_seen": "2026-11-29T09:00:00Z",
}


@asynccontextmanager
async def coordinator(home: Home, capsys: Capture, *words: str) -> AsyncIterator[MoneyServer]:
    """A home after init, with this coordinator."""
    assert invoke(capsys, "init", "--yes", *words).code == 0
    async with money_server(answers={"node/me": {"row": ROW}}) as server:
        save(home.config.config_file, {"coordinator_url": server.url, "coordinator_key": BANK.node}, keep=True)
        yield server


@pytest.mark.parametrize("verb", ["register", "update"])
async def test_a_node_that_does_not_run_is_entered_as_offline(home: Home, capsys: Capture, verb: str) -> None:
    async with coordinator(home, capsys, "--address", "198.51.100.7") as server:
        outcome = await invoke_beside(capsys, verb)
        assert outcome.code == 0, outcome.err
        assert outcome.out.startswith(f"Registered at {server.url}.\n")
        assert "provider-abc" in outcome.out
        assert "`infernet start`" in outcome.out
        registered, looked = server.asked
    assert (registered.target, looked.target) == ("/api/v1/node/register", "/api/v1/node/me")
    fields = registered.fields
    assert (fields["status"], fields["role"], fields["address"]) == ("offline", "provider", "198.51.100.7")
    assert looked.fields == {"role": "provider"}


@pytest.mark.parametrize("verb", ["register", "update"])
async def test_a_node_that_hides_stays_hidden_whatever_verb_comes_after(home: Home, capsys: Capture, verb: str) -> None:
    async with coordinator(home, capsys, "--address", "198.51.100.7", "--no-advertise") as server:
        assert (await invoke_beside(capsys, verb)).code == 0
        registered = server.asked[0].fields
    assert "address" not in registered
    assert "port" not in registered
    assert load().config.advertise is False


async def test_a_node_that_runs_registers_itself(home: Home, capsys: Capture) -> None:
    node = FakeNode()
    node.money_answers = {"register": {"id": "1"}, "me": {"row": ROW | {"status": "available", "address": "192.0.2.1"}}}
    async with coordinator(home, capsys) as server:
        async with running(node, home.config):
            outcome = await invoke_beside(capsys, "register", "--json")
        assert server.asked == []
    assert outcome.code == 0, outcome.err
    assert (outcome.json["registered"], outcome.json["running"]) == (True, True)
    assert outcome.json["row"]["status"] == "available"
    assert [(each.ask, dict(each.fields)) for each in node.money_asked] == [
        ("register", {}),
        ("me", {"role": "provider"}),
    ]


async def test_one_that_was_started_before_it_was_to_hide_does_not_publish_its_address_again(
    home: Home, capsys: Capture
) -> None:
    node = FakeNode()
    node.state["advertised_addresses"] = ["/ip4/198.51.100.7/tcp/46337"]
    async with coordinator(home, capsys, "--no-advertise"), running(node, home.config):
        outcome = await invoke_beside(capsys, "register")
    assert (outcome.code, outcome.out) == (1, "")
    assert "`infernet stop`, then `infernet start`" in outcome.complaint
    assert node.money_asked == []


async def test_without_a_coordinator_there_is_nowhere_to_register(home: Home, capsys: Capture) -> None:
    assert invoke(capsys, "init", "--yes").code == 0
    outcome = await invoke_beside(capsys, "register")
    assert (outcome.code, outcome.out) == (1, "")
    assert "no coordinator is configured, so there is none that could have an entry" in outcome.complaint
    node = FakeNode()
    node.state["coordinator_url"] = None
    async with running(node, home.config):
        outcome = await invoke_beside(capsys, "update")
    assert (outcome.code, outcome.out) == (1, "")
    assert "could have an entry of this node" in outcome.complaint
    assert "`infernet stop` and `infernet start`" in outcome.complaint
    assert node.money_asked == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"row": None}, "does not know this node"),
        ({"row": "x"}, "does not know this node"),
        ([], "something else than fields"),
        (Refusal(403, "not you", "wrong_sender"), "not you"),
    ],
)
async def test_whatever_the_coordinator_answers_is_one_line(
    home: Home, capsys: Capture, answer: Any, words: str
) -> None:
    async with coordinator(home, capsys) as server:
        server.answers = {"node/me": answer}
        outcome = await invoke_beside(capsys, "register")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert words in outcome.complaint


@pytest.mark.parametrize(
    "error", [LocalProtocolError("no coordinator holds money"), CoordinatorRefused(403, "no", "conflict")]
)
async def test_a_node_that_cannot_register_says_why(home: Home, capsys: Capture, error: Exception) -> None:
    node = FakeNode()
    node.money_answers = {"register": error}
    async with coordinator(home, capsys), running(node, home.config):
        outcome = await invoke_beside(capsys, "register")
    assert (outcome.code, outcome.err) == (1, f"infernet: {error}\n")
