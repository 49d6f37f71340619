"""--no-advertise and --no-mdns: said once, kept, and honoured by every command until the opposite is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from infernet.config import load, values_in
from infernet.ipc import client as ipc
from protocol.formats.invites import Invite, InvitedNode, encode_invite
from protocol.ids import NodeId
from tests.helpers_cli import Home, invoke
from tests.helpers_processes import free_port
from tests.helpers_records import PROVIDER

SWITCHES = ("advertise", "mdns")
# Every way to say it. `start` is in the tests below, because it starts something.
SAYING = (("init", "--yes"), ("config", "set"))
NODE = ("--role", "aggregator", "--listen-hosts", "127.0.0.1", "--p2p-port", "0")
DEAD = encode_invite(Invite(1, (InvitedNode(PROVIDER.node, ("/ip4/127.0.0.1/tcp/9",)),), None, None))


@pytest.fixture
def made(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home with a key, in which nothing but the file decides."""
    monkeypatch.delenv("INFERNET_MDNS")
    assert home.run("init", "--yes", "--role", "aggregator").code == 0
    yield home
    home.run("stop", "--force")


def kept(home: Home) -> dict[str, Any]:
    values = values_in(home.config.config_file)
    return {name: values.get(name) for name in SWITCHES}


def sockets(pid: int) -> list[tuple[str, int]]:
    """The ports that a process listens on or is bound to."""
    found = psutil.Process(pid).net_connections()
    return [("udp" if c.type == 2 else "tcp", c.laddr.port) for c in found if c.type == 2 or c.status == "LISTEN"]


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("words", SAYING, ids=" ".join)
def test_it_is_kept_until_the_opposite_is_said(made: Home, words: tuple[str, ...], name: str) -> None:
    assert made.run(*words, f"--no-{name}").code == 0
    assert kept(made)[name] is False
    assert made.run("config", "set", "--slots", "2").code == 0
    assert kept(made)[name] is False
    assert made.run(*words, f"--{name}").code == 0
    assert kept(made)[name] is True


@pytest.mark.slow
def test_start_keeps_it_and_says_so_and_keeps_nothing_else(made: Home) -> None:
    with made.started("--no-advertise", "--no-mdns", "--slots", "3") as status:
        assert status["addresses"] == status["advertised_addresses"] == []
    assert kept(made) == {"advertise": False, "mdns": False}
    assert "slots" not in values_in(made.config.config_file)
    outcome = made.run("start", "--no-mdns")
    assert outcome.code == 0
    assert "is kept" not in outcome.err, "it was kept already"
    made.run("stop")
    outcome = made.run("start", "--advertise", *NODE[2:])
    assert outcome.code == 0
    assert f"--advertise is kept in {made.config.config_file} and holds for all commands" in outcome.err
    assert ipc.call(made.config.socket_path, "status")["addresses"] != []


def test_it_is_kept_even_when_the_node_runs_already(made: Home) -> None:
    with made.started(*NODE):
        outcome = made.run("start", "--no-advertise")
        assert outcome.code == 1
        assert "a node is running already" in outcome.err or "already" in outcome.complaint
        assert "for the changes to take effect" in outcome.err, "its port is still open"
    assert kept(made)["advertise"] is False


def test_a_flag_of_one_command_is_not_a_setting_that_the_environment_holds(
    made: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made.run("config", "set", "--no-advertise").code == 0
    monkeypatch.setenv("INFERNET_ADVERTISE", "yes")
    assert load().config.advertise is True
    assert kept(made)["advertise"] is False


@pytest.mark.nightly
def test_every_command_honours_it(made: Home, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert made.run("config", "set", "--no-advertise", "--no-mdns", "--dht", "--p2p-port", str(port)).code == 0
    with made.started() as status:
        # start: no port is open, of the DHT's process neither, and nothing is published.
        assert status["addresses"] == status["advertised_addresses"] == []
        pids = [status["pid"], *(child.pid for child in psutil.Process(status["pid"]).children(recursive=True))]
        assert [found for pid in pids for found in sockets(pid)] == []
        assert "mdns" not in status["discovered"]
        # status and peers tell of no address.
        assert made.run("status", "--json").json["advertised_addresses"] == []
        (ourselves,) = [peer for peer in made.run("peers", "--all", "--json").json["peers"] if peer["ourselves"]]
        assert ourselves["addresses"] == []
        # invite names somebody else or nobody.
        outcome = made.run("invite")
        assert outcome.code == 1
        assert "this node publishes no address" in outcome.complaint
        # join and chat change nothing about it.
        assert made.run("join", DEAD).code == 1
        assert made.run("chat", "--timeout", "1", "why").code == 1
        assert made.run("status", "--json").json["addresses"] == []
    assert kept(made) == {"advertise": False, "mdns": False}
    # Without a running node: chat dials and is not dialled, invite has nobody to name, init asks and keeps.
    assert made.run("chat", "--peer", f"/ip4/127.0.0.1/tcp/9/p2p/{_peer()}", "--timeout", "1", "why").code == 1
    outcome = made.run("invite")
    assert (outcome.code, _peer() in outcome.out) == (1, False)
    assert made.run("init", "--yes", "--name", "other").code == 0
    shown = made.run("config", "show", "--json").json["settings"]
    assert {name: (shown[name]["value"], shown[name]["from"]) for name in SWITCHES} == {
        "advertise": (False, "file"),
        "mdns": (False, "file"),
    }
    assert kept(made) == {"advertise": False, "mdns": False}


def _peer() -> str:
    from protocol.ids import peer_id

    return peer_id(NodeId(PROVIDER.node))


def test_config_set_without_a_setting_or_with_a_bad_one_changes_nothing(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = invoke(capsys, "config", "set")
    assert (outcome.code, "nothing to set" in outcome.complaint) == (2, True)
    outcome = invoke(capsys, "config", "set", "--slots", "none")
    assert outcome.code == 2
    assert "--slots must be a whole number" in outcome.complaint
    outcome = invoke(capsys, "config", "set", "--url", "http://127.0.0.1:8080")
    assert (outcome.code, "without coordinator_key" in outcome.complaint) == (1, True)
    assert not home.config.config_file.exists()


def test_config_set_writes_what_is_given_and_leaves_the_rest(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.config.config_dir.mkdir(parents=True)
    home.config.config_file.write_text('# mine\nname = "kitchen"\n')
    outcome = invoke(capsys, "config", "set", "--slots", "2", "--listen-hosts", "127.0.0.1", "--no-advertise", "--json")
    assert outcome.json == {
        "config_file": str(home.config.config_file),
        "set": {"listen_hosts": ["127.0.0.1"], "advertise": False, "slots": 2},
    }
    assert home.config.config_file.read_text().startswith("# mine\n")
    values = values_in(home.config.config_file)
    assert (values["name"], values["slots"], values["listen_hosts"]) == ("kitchen", 2, ("127.0.0.1",))
    assert "listen_hosts has no effect" in outcome.err
