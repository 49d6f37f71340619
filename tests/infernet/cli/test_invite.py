"""infernet/cli/invite.py: whom an invite names, what it says about how far it reaches, and the picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infernet import identity
from infernet.store import Store
from protocol.envelope import sign_record
from protocol.formats.invites import InvitedNode, decode_invite
from protocol.ids import npub, peer_id
from tests.helpers_cli import Home, Outcome, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode
from tests.helpers_records import NOW_MS, PROVIDER, heartbeat, signing_key

pytestmark = pytest.mark.anyio

OURSELVES = signing_key("ourselves")
COORDINATOR = signing_key("coordinator")
PUBLIC = "/ip4/9.9.9.9/tcp/46337"
LAN = "/ip4/192.168.7.7/tcp/46337"
LOOPBACK = "/ip4/127.0.0.1/tcp/46337"


def fake(*advertised: str, listening: tuple[str, ...] = (LOOPBACK, LAN)) -> FakeNode:
    """A running node that publishes and listens on these addresses."""
    node = FakeNode()
    end = f"/p2p/{peer_id(OURSELVES.node)}"
    node.state = {
        "node_id": OURSELVES.node.hex(),
        "advertised_addresses": [address + end for address in advertised],
        "addresses": [address + end for address in listening],
    }
    return node


def peer(name: str, *addresses: str, connected: bool = True, ourselves: bool = False) -> dict[str, Any]:
    key = signing_key(name)
    return {
        "node_id": key.node.hex(),
        "connected": connected,
        "ourselves": ourselves,
        "addresses": [f"{address}/p2p/{peer_id(key.node)}" for address in addresses],
    }


async def invite(home: Home, capsys: pytest.CaptureFixture[str], node: FakeNode, *words: str) -> Outcome:
    async with running(node, home.config):
        return await invoke_beside(capsys, "invite", *words)


async def test_it_names_this_node_and_some_that_it_is_connected_to(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    node = fake(PUBLIC)
    node.known = [
        peer("ourselves", PUBLIC, ourselves=True),
        peer("away", PUBLIC, connected=False),
        peer("hidden"),
        peer("friend", PUBLIC, LAN, LOOPBACK),
        peer("neighbour", "/ip4/9.9.9.8/tcp/46337"),
        peer("third", PUBLIC),
    ]
    outcome = await invite(home, capsys, node)
    assert (outcome.code, outcome.err) == (0, "")
    (line,) = outcome.out.splitlines()
    invited = decode_invite(line)
    assert invited.nodes == (
        InvitedNode(OURSELVES.node, (PUBLIC,)),
        InvitedNode(signing_key("friend").node, (PUBLIC,)),
        InvitedNode(signing_key("neighbour").node, ("/ip4/9.9.9.8/tcp/46337",)),
    )
    assert (invited.coordinator_url, invited.coordinator_key) == (None, None)


@pytest.mark.parametrize(
    ("listening", "named", "warning"),
    [
        ((LOOPBACK, LAN), LAN, "this node has no public address: the invite works in your own network"),
        ((LOOPBACK,), LOOPBACK, "this node listens on loopback alone: the invite works on this machine only"),
    ],
)
async def test_without_a_public_address_it_says_how_far_it_reaches(
    home: Home, capsys: pytest.CaptureFixture[str], listening: tuple[str, ...], named: str, warning: str
) -> None:
    outcome = await invite(home, capsys, fake(listening=listening))
    assert decode_invite(outcome.out).nodes[0].addresses == (named,)
    assert outcome.complaint.startswith(f"infernet: warning: {warning}")


async def test_a_node_that_publishes_no_address_is_not_named_and_others_are(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert home.run("config", "set", "--no-advertise").code == 0
    node = fake(PUBLIC)
    outcome = await invite(home, capsys, node)
    assert outcome.code == 1
    assert "this node publishes no address (--advertise undoes that)" in outcome.complaint
    node.known = [peer("friend", PUBLIC)]
    outcome = await invite(home, capsys, node)
    assert [invited.node for invited in decode_invite(outcome.out).nodes] == [signing_key("friend").node]


async def test_the_coordinator_comes_with_its_key_and_as_json_everything_can_be_read(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--url", "https://c.example", "--coordinator-key", npub(COORDINATOR.node))
    assert home.run("config", "set", *words).code == 0
    outcome = await invite(home, capsys, fake(PUBLIC), "--json")
    invited = decode_invite(outcome.json["invite"])
    assert (invited.coordinator_url, invited.coordinator_key) == ("https://c.example", COORDINATOR.node)
    assert outcome.json == {
        "invite": outcome.json["invite"],
        "nodes": [
            {"node_id": OURSELVES.node.hex(), "peer_id": peer_id(OURSELVES.node), "addresses": [PUBLIC]},
        ],
        "coordinator_url": "https://c.example",
        "coordinator_key": COORDINATOR.node.hex(),
    }


async def test_a_coordinator_on_loopback_is_left_out_unless_everything_is(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--url", "http://127.0.0.1:8080", "--coordinator-key", npub(COORDINATOR.node))
    assert home.run("config", "set", *words).code == 0
    outcome = await invite(home, capsys, fake(PUBLIC))
    assert decode_invite(outcome.out).coordinator_url is None
    assert "the coordinator is left out: http://127.0.0.1:8080 means another machine" in outcome.complaint
    outcome = await invite(home, capsys, fake(listening=(LOOPBACK,)))
    assert decode_invite(outcome.out).coordinator_url == "http://127.0.0.1:8080"


async def test_beside_a_coordinator_on_loopback_others_of_the_local_network_are_invited(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--url", "http://127.0.0.1:8080", "--coordinator-key", npub(COORDINATOR.node))
    assert home.run("config", "set", *words).code == 0
    outcome = await invite(home, capsys, fake(LOOPBACK))
    invited = decode_invite(outcome.out)
    assert (invited.nodes[0].addresses, invited.coordinator_url) == ((LAN,), None)
    assert "listens on loopback alone" not in outcome.err
    assert "the invite works in your own network" in outcome.err
    # What the owner says goes.
    assert home.run("config", "set", "--address", "127.0.0.1").code == 0
    assert decode_invite((await invite(home, capsys, fake(LOOPBACK))).out).nodes[0].addresses == (LOOPBACK,)


def test_without_a_running_node_the_files_say_whom_to_name(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "invite")
    assert outcome.code == 1
    assert outcome.complaint == (
        "infernet: there is nobody to invite to: run `infernet start` first, or set this node's --address"
    )
    assert home.run("init", "--yes", "--address", "node.example.org").code == 0
    home.config.state_dir.mkdir(parents=True)
    store = Store(home.config.store_file)
    for key, address in ((PROVIDER, PUBLIC), (signing_key("heard of"), PUBLIC)):
        record = heartbeat(node=key.node, addresses=(address,))
        store.save_peers([(record, sign_record(record, key))], NOW_MS)
    store.note_reached([(PROVIDER.node, None)], NOW_MS)
    store.close()
    assert decode_invite(invoke(capsys, "invite").out).nodes == (
        InvitedNode(identity.load(home.config.key_file).node, ("/dns/node.example.org/tcp/46337",)),
        InvitedNode(PROVIDER.node, (PUBLIC,)),
    )


def test_a_picture_needs_a_terminal(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--qr",), ("--qr", "--json")):
        outcome = invoke(capsys, "invite", *words)
        assert (outcome.code, outcome.complaint) == (2, "infernet: --qr draws on a terminal: leave it out here")


def on_a_terminal(home: Home, columns: int, lines: int, encoding: str = "utf-8") -> str:
    """What `infernet invite --qr` shows on a terminal of this size."""
    environ = {"COLUMNS": str(columns), "LINES": str(lines), "PYTHONIOENCODING": encoding}
    code, shown = home.on_terminal("invite", "--qr", **environ)
    assert code == 0
    return shown


def test_the_picture_fits_the_terminal_or_is_not_drawn(home: Home, tmp_path: Path) -> None:
    assert home.run("init", "--yes", "--address", "node.example.org").code == 0
    shown = on_a_terminal(home, 80, 40).splitlines()
    assert shown[0].startswith("infernet:")
    rows = shown[1:]
    assert len(rows) * 2 - 1 <= len(rows[0]) <= 80, "it is square, and a line shows two rows"
    assert set("".join(rows)) <= set("█▄▀ ")
    *line, complaint = on_a_terminal(home, 30, 40).splitlines()
    assert len(line) == 1
    assert complaint.startswith("infernet: warning: this terminal is too small for the picture: it needs ")


def test_where_a_picture_would_be_question_marks_the_line_stands_alone(home: Home) -> None:
    assert home.run("init", "--yes", "--address", "node.example.org").code == 0
    line, complaint = on_a_terminal(home, 80, 40, "ascii").splitlines()
    assert line.startswith("infernet:")
    assert complaint.startswith("infernet: warning: no picture: it cannot be drawn in ascii: set a locale of UTF-8")
