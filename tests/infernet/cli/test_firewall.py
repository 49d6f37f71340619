"""infernet/cli/firewall.py: what to type, or that nothing is to be typed; nothing is run."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.cli import firewall
from infernet.cli.__main__ import main
from infernet.cli.firewall import need_of_running
from infernet.host import firewalls
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode

LAN = "/ip4/192.168.7.7/tcp/46400/p2p/16Uiu2HAm"
LOOPBACK = "/ip4/127.0.0.1/tcp/46400/p2p/16Uiu2HAm"


@pytest.fixture(autouse=True)
def linux_with_iptables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two firewalls, on which nothing may be started."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it must not run anything")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(firewall.sys, "platform", "linux")
    monkeypatch.setattr(firewall, "detect", lambda _: [firewalls.BY_NAME["ufw"], firewalls.BY_NAME["iptables"]])


def test_the_commands_of_the_one_that_is_found(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "firewall")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "Also installed: iptables (--for shows the commands).",
        "ufw, to let in TCP port 46337, as root:",
        "  ufw allow 46337/tcp",
        "  ufw reload",
    ]


def test_another_port_and_another_firewall(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "firewall", "--port", "5000", "--for", "pf")
    assert "pass in proto tcp from any to any port 5000" in outcome.out
    assert "pfctl -f /etc/pf.conf" in outcome.out


def test_without_one_that_is_known_all_of_the_system_are_shown(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall, "detect", lambda _: [])
    outcome = invoke(capsys, "firewall")
    assert outcome.code == 0
    assert all(word in outcome.out for word in ("None of", "ufw allow", "firewall-cmd", "nft add", "iptables -I"))
    assert "netsh" not in outcome.out
    assert invoke(capsys, "firewall", "--json").json["commands"] == []


def test_as_json(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    shown = invoke(capsys, "firewall", "--json").json
    assert (shown["needed"], shown["reason"], shown["ports"]) == (True, None, [46337])
    assert (shown["firewall"], shown["installed"]) == ("ufw", ["ufw", "iptables"])
    assert shown["commands"] == ["ufw allow 46337/tcp", "ufw reload"]
    assert set(shown["all"]) == set(firewalls.BY_NAME)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["--no-advertise"], "this node opens no port"),
        (["--no-p2p"], "this node opens no port"),
        (["--listen-hosts", "127.0.0.1,::1"], "for programs of this machine only"),
    ],
)
def test_a_node_that_is_not_to_be_dialled_needs_none(
    home: Home, capsys: pytest.CaptureFixture[str], settings: list[str], reason: str
) -> None:
    assert main(["config", "set", *settings]) == 0
    outcome = invoke(capsys, "firewall")
    assert (outcome.code, outcome.out.count("\n")) == (0, 1)
    assert outcome.out.startswith("No rule is needed: ")
    assert reason in outcome.out
    assert "ufw allow 9/tcp" in invoke(capsys, "firewall", "--port", "9").out


def test_a_port_that_changes_needs_to_be_fixed_first(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "set", "--p2p-port", "0"]) == 0
    outcome = invoke(capsys, "firewall")
    assert outcome.code == 0
    assert "--p2p-port" in outcome.out
    assert "ufw allow" not in outcome.out


def test_the_dht_has_a_port_of_its_own(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "set", "--dht", "--p2p-port", "5000"]) == 0
    assert invoke(capsys, "firewall", "--json").json["ports"] == [5000, 5001]
    assert main(["config", "set", "--dht-port", "0"]) == 0
    assert invoke(capsys, "firewall", "--json").json["ports"] == [5000]


@pytest.mark.anyio
async def test_a_running_node_says_where_it_listens(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    node = FakeNode()
    node.state = {"addresses": [LOOPBACK, LAN], "reached": {"reachability": "not_reached", "circuits": []}}
    async with running(node, home.config):
        outcome = await invoke_beside(capsys, "firewall", "--json")
    assert (outcome.json["needed"], outcome.json["ports"]) == (True, [46400])


@pytest.mark.parametrize(
    ("status", "is_needed", "ports", "word"),
    [
        ({"addresses": []}, False, (), "no port"),
        ({"addresses": [LOOPBACK]}, False, (), "this machine only"),
        ({"addresses": [LAN], "reached": {"reachability": "reached"}}, False, (), "have reached"),
        (
            {"addresses": [LAN], "reached": {"reachability": "not_reached", "circuits": ["a", "b"]}},
            False,
            (46400,),
            "through 2 relays",
        ),
        ({"addresses": [LAN], "dht": {"addresses": ["/ip4/192.168.7.7/tcp/46401"]}}, True, (46400, 46401), ""),
    ],
)
def test_whether_a_running_node_needs_a_rule(
    status: dict[str, Any], is_needed: bool, ports: tuple[int, ...], word: str
) -> None:
    need = need_of_running(status)
    assert (need.is_needed, need.ports) == (is_needed, ports)
    assert word in need.reason


json_values = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from([LAN, "/ip4/x/tcp/1", "/ip4/1.2.3.4/tcp/999999"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["addresses", "circuits"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["addresses", "dht", "reached"]), json_values))
def test_whatever_the_node_says_there_is_an_answer(status: dict[str, Any]) -> None:
    need_of_running(status)


@pytest.mark.parametrize("words", [["--port", "0"], ["--port", "65536"], ["--port", "x"], ["--for", "windows"]])
def test_what_is_no_port_or_firewall_is_a_misuse(
    home: Home, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    outcome = invoke(capsys, "firewall", *words)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
