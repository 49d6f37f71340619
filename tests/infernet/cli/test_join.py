"""infernet/cli/join.py: what an invite says is kept, nothing is replaced in silence, and a running node connects."""

from __future__ import annotations

import io
import tomllib
from typing import Any

import pytest

from infernet import identity
from infernet.config import values_in
from protocol.formats.invites import Invite, InvitedNode, encode_invite
from protocol.ids import npub, peer_id
from tests.helpers_cli import Home, Outcome, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode
from tests.helpers_records import PROVIDER, signing_key

pytestmark = pytest.mark.anyio

FRIEND = signing_key("friend")
COORDINATOR = signing_key("coordinator")
OTHER = signing_key("another coordinator")
URL = "https://c.example"
PUBLIC = "/ip4/9.9.9.9/tcp/46337"
NODES = (InvitedNode(PROVIDER.node, (PUBLIC, "/ip6/2620:fe::fe/tcp/46337")), InvitedNode(FRIEND.node, (PUBLIC,)))
LINE = encode_invite(Invite(1, NODES, None, None))
WITH_COORDINATOR = encode_invite(Invite(1, NODES[:1], URL, COORDINATOR.node))
PEERS = (
    f"{PUBLIC}/p2p/{peer_id(PROVIDER.node)}",
    f"/ip6/2620:fe::fe/tcp/46337/p2p/{peer_id(PROVIDER.node)}",
    f"{PUBLIC}/p2p/{peer_id(FRIEND.node)}",
)


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run join with what somebody types."""

    def run(*words: str, typed: str = "") -> Outcome:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        return invoke(capsys, "join", *words)

    return run


@pytest.fixture
def made(home: Home) -> Home:
    """A home with a key."""
    assert home.run("init", "--yes").code == 0
    return home


def kept(home: Home) -> dict[str, Any]:
    return values_in(home.config.config_file)


def test_a_mistyped_line_is_told_as_such_and_changes_nothing(home: Home, join: Any) -> None:
    typed = LINE[:40] + ("q" if LINE[40] != "q" else "p") + LINE[41:]
    outcome = join(typed, "--yes")
    assert outcome.code == 1
    assert outcome.complaint == (
        "infernet: the checksum of this invite is wrong: a character is missing or mistyped: copy the whole line again"
    )
    assert not (home.path / "config").exists()


def test_on_a_new_machine_it_says_what_to_do_or_does_it(home: Home, join: Any) -> None:
    outcome = join(LINE)
    assert outcome.code == 1
    assert "run `infernet init`, then this again, or add --yes" in outcome.complaint
    assert not (home.path / "config").exists()
    outcome = join(LINE, "--yes")
    assert outcome.code == 0, outcome.err
    key = identity.load(home.config.key_file)
    assert npub(key.node) in outcome.err
    assert tomllib.loads(home.config.config_file.read_text()) == {
        "schema_version": 1,
        "role": "provider",
        "peers": list(PEERS),
    }
    assert "Next: `infernet start`" in outcome.out


def test_whoever_is_at_the_keyboard_can_agree_to_make_a_node(home: Home, join: Any) -> None:
    assert join(LINE, typed="n\n").code == 1
    assert join(LINE, typed="y\n").code == 0
    assert kept(home)["peers"] == PEERS


def test_it_may_come_wrapped_or_from_standard_input(made: Home, join: Any) -> None:
    assert join(LINE[:50], LINE[50:]).code == 0
    assert kept(made)["peers"] == PEERS
    made.config.config_file.unlink()
    assert join("-", typed=f"{LINE[:50]}\n{LINE[50:]}\n").code == 0
    assert kept(made)["peers"] == PEERS


def test_joining_again_adds_and_keeps_what_is_there(made: Home, join: Any) -> None:
    config = made.config.config_file
    known = f"/ip4/9.9.9.9/tcp/1/p2p/{peer_id(OTHER.node)}"
    config.write_text(f'# mine\nrole = "client"\npeers = ["{PEERS[2]}", "{known}"]\n')
    for _ in range(2):
        assert join(LINE).code == 0
    assert kept(made)["peers"] == (*PEERS, known)
    assert "# mine" in config.read_text()


def test_an_address_of_an_unknown_form_is_left_out_with_a_word(made: Home, join: Any) -> None:
    strange = InvitedNode(PROVIDER.node, ("/ip4/9.9.9.9/udp/46337/quic-v1", PUBLIC))
    outcome = join(encode_invite(Invite(1, (strange,), None, None)))
    assert outcome.code == 0
    assert kept(made)["peers"] == (PEERS[0],)
    assert "is left out, because this version does not know its form: /ip4/9.9.9.9/udp" in outcome.err
    outcome = join(encode_invite(Invite(1, (InvitedNode(PROVIDER.node, ("/onion3/abc:1",)),), None, None)))
    assert (outcome.code, "upgrade infernet" in outcome.complaint) == (1, True)


def test_a_first_coordinator_is_taken_when_somebody_agrees(made: Home, join: Any) -> None:
    outcome = join(WITH_COORDINATOR, typed="n\n")
    assert outcome.code == 0
    assert npub(COORDINATOR.node) in outcome.err
    assert "coordinator_url" not in kept(made)
    outcome = join(WITH_COORDINATOR)
    assert "the coordinator is not taken: --yes takes it" in outcome.err
    assert "coordinator_url" not in kept(made)
    assert kept(made)["peers"] == PEERS[:2], "the nodes are kept whatever becomes of the coordinator"
    assert join(WITH_COORDINATOR, typed="y\n").code == 0
    assert (kept(made)["coordinator_url"], kept(made)["coordinator_key"]) == (URL, COORDINATOR.node)


def test_with_yes_nobody_is_asked(made: Home, join: Any) -> None:
    outcome = join(WITH_COORDINATOR, "--yes", "--json")
    assert outcome.json["coordinator_key"] == COORDINATOR.node.hex()
    assert (kept(made)["coordinator_url"], kept(made)["coordinator_key"]) == (URL, COORDINATOR.node)


@pytest.mark.parametrize("words", [(), ("--yes",)])
@pytest.mark.parametrize("url", [URL, "https://other.example"])
def test_another_coordinator_is_never_replaced_in_silence(
    made: Home, join: Any, words: tuple[str, ...], url: str
) -> None:
    assert made.run("config", "set", "--url", url, "--coordinator-key", npub(OTHER.node)).code == 0
    outcome = join(WITH_COORDINATOR, *words, typed="y\ny\n")
    assert outcome.code == 0
    assert f"this node keeps its coordinator {url}" in outcome.err
    assert (kept(made)["coordinator_url"], kept(made)["coordinator_key"]) == (url, OTHER.node)
    outcome = join(WITH_COORDINATOR, *words, "--replace-coordinator")
    assert f"no longer {url}" in outcome.err
    assert (kept(made)["coordinator_url"], kept(made)["coordinator_key"]) == (URL, COORDINATOR.node)


def test_the_coordinator_that_is_there_already_is_not_talked_about(made: Home, join: Any) -> None:
    assert made.run("config", "set", "--url", URL, "--coordinator-key", npub(COORDINATOR.node)).code == 0
    outcome = join(WITH_COORDINATOR)
    assert (outcome.code, outcome.err) == (0, "")


def test_a_coordinator_without_a_proper_url_is_refused(made: Home, join: Any) -> None:
    line = encode_invite(Invite(1, NODES, "ftp://c.example", COORDINATOR.node))
    outcome = join(line, "--yes")
    assert (outcome.code, "must be like https://" in outcome.complaint) == (1, True)
    assert "peers" not in kept(made)


async def test_a_running_node_connects_at_once_and_says_how_that_went(
    made: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    node = FakeNode()
    node.join_results = {PROVIDER.node.hex(): "", FRIEND.node.hex(): "connection refused"}
    async with running(node, made.config):
        outcome = await invoke_beside(capsys, "join", LINE)
        assert outcome.code == 0
        as_json = await invoke_beside(capsys, "join", LINE, "--json")
    assert [request.peers for request in node.joined] == [PEERS, PEERS]
    assert [line.split(maxsplit=1)[1] for line in outcome.out.splitlines()] == [
        "connected",
        "not connected: connection refused",
    ]
    assert [(found["connected"], found["reason"]) for found in as_json.json["nodes"]] == [
        (True, None),
        (False, "connection refused"),
    ]


async def test_when_nobody_answers_it_fails_and_keeps_them(made: Home, capsys: pytest.CaptureFixture[str]) -> None:
    node = FakeNode()
    node.join_results = {PROVIDER.node.hex(): "timed out", FRIEND.node.hex(): "connection refused"}
    async with running(node, made.config):
        outcome = await invoke_beside(capsys, "join", LINE)
    assert outcome.code == 1
    assert "nobody in this invite answered; the node goes on trying" in outcome.complaint
    assert kept(made)["peers"] == PEERS


async def test_a_running_node_takes_a_new_coordinator_when_it_is_started_again(
    made: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    node = FakeNode()
    node.join_results = {PROVIDER.node.hex(): ""}
    async with running(node, made.config):
        outcome = await invoke_beside(capsys, "join", WITH_COORDINATOR, "--yes")
    assert outcome.code == 0
    assert "after `infernet stop` and `infernet start`" in outcome.complaint
