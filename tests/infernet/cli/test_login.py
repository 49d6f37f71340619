"""`infernet login`: who this node is, what is known of it, and that there is nothing to sign in to."""

from __future__ import annotations

import io
import re

import pytest

from infernet import identity
from infernet.config import load, save
from protocol.ids import npub
from tests.helpers_cli import Home, invoke, invoke_beside
from tests.helpers_money_server import BANK, money_server
from tests.infernet.cli.test_init import KEY_SHOWN, UNREACHABLE
from tests.infernet.cli.test_init import coordinator as shown_coordinator
from tests.infernet.cli.test_register import ROW

pytestmark = pytest.mark.anyio
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def own(home: Home, capsys: Capture) -> str:
    """The npub of a node that was made."""
    assert invoke(capsys, "init", "--yes").code == 0
    return npub(identity.load(home.config.key_file).node)


def test_it_shows_the_key_and_that_it_is_the_account(home: Home, own: str, capsys: Capture) -> None:
    outcome = invoke(capsys, "login")
    assert (outcome.code, outcome.err) == (0, "")
    assert own in outcome.out
    assert "nothing to sign in to" in outcome.out
    assert invoke(capsys, "login", "--json").json == {"npub": own, "coordinator_url": None}


def test_without_a_key_it_says_how_to_have_one(home: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "login")
    assert (outcome.code, outcome.out) == (1, "")
    assert "run `infernet init`" in outcome.complaint


async def test_status_is_what_the_coordinator_knows(home: Home, own: str, capsys: Capture) -> None:
    async with money_server(answers={"node/me": {"row": ROW}}) as server:
        save(home.config.config_file, {"coordinator_url": server.url, "coordinator_key": BANK.node}, keep=True)
        outcome = await invoke_beside(capsys, "login", "--status")
        assert outcome.code == 0, outcome.err
        assert re.search(r"name +attic", outcome.out)
        told = (await invoke_beside(capsys, "login", "--status", "--json")).json
        assert (told["npub"], told["known"], told["row"]["name"]) == (own, True, "attic")


async def test_who_is_not_known_is_told_so(home: Home, own: str, capsys: Capture) -> None:
    async with money_server(answers={"node/me": {"row": None}}) as server:
        save(home.config.config_file, {"coordinator_url": server.url, "coordinator_key": BANK.node}, keep=True)
        outcome = await invoke_beside(capsys, "login", "--status", "--json")
        assert (outcome.code, outcome.json["known"]) == (1, False)
        assert "`infernet register`" in outcome.json["error"]


def test_status_without_a_coordinator_is_a_failure(home: Home, own: str, capsys: Capture) -> None:
    outcome = invoke(capsys, "login", "--status")
    assert (outcome.code, outcome.out) == (1, "")
    assert "`infernet login --url URL` names one" in outcome.complaint


def test_a_coordinator_is_used_once_its_key_is_agreed_to(
    home: Home, own: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shown_coordinator(KEY_SHOWN) as url:
        monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
        assert invoke(capsys, "login", "--url", url).code == 1
        assert load().config.coordinator_url is None
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        assert invoke(capsys, "login", "--url", url).code == 2
        assert invoke(capsys, "login", "--url", url, "--yes").code == 0
    config = load().config
    assert (config.coordinator_url, config.coordinator_key is not None) == (url, True)
    assert invoke(capsys, "login", "--url", "none").code == 0
    config = load().config
    assert (config.coordinator_url, config.coordinator_key) == (None, None)
    # With its key, nobody needs to be asked.
    assert invoke(capsys, "login", "--url", UNREACHABLE, "--coordinator-key", own).code == 0
    assert load().config.coordinator_url == UNREACHABLE


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["--url", "ftp://x"], 2, "--url must be like"),
        (["--url", UNREACHABLE, "--coordinator-key", "x"], 2, "--coordinator-key must be a public key"),
        (["--url", UNREACHABLE, "--yes"], 1, "nothing was written"),
        (["--url", "none", "--coordinator-key", "ab" * 32], 2, "--url none goes without"),
        (["--yes"], 2, "go with --url"),
        (["--token", "secret-token"], 2, "no coordinator takes a token"),
        (["--token"], 2, "no coordinator takes a token"),
    ],
)
def test_what_makes_no_sense_changes_nothing(
    home: Home, own: str, capsys: Capture, words: list[str], code: int, complaint: str
) -> None:
    before = home.config.config_file.read_bytes()
    outcome = invoke(capsys, "login", *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert complaint in outcome.complaint
    assert "secret-token" not in outcome.err
    assert home.config.config_file.read_bytes() == before


def test_signing_out_is_done_already(home: Home, own: str, capsys: Capture) -> None:
    outcome = invoke(capsys, "login", "--logout")
    assert outcome.code == 0
    assert "nothing to sign out of" in outcome.out
