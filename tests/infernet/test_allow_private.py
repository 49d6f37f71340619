"""When a node takes the network that it lives in for its own: the default of --allow-private."""

from __future__ import annotations

from pathlib import Path

import pytest

from infernet.config import load
from protocol.ids import peer_id
from tests.helpers_transport import identity

KEY = identity(1).hex()


def peers(*hosts: str) -> list[str]:
    kinds = [("ip6" if ":" in host else "ip4" if host[0].isdigit() else "dns", host) for host in hosts]
    return [f"/{kind}/{host}/tcp/46337/p2p/{peer_id(identity(2))}" for kind, host in kinds]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"INFERNET_HOME": str(tmp_path)}


@pytest.mark.parametrize(
    ("url", "is_private"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost:8080", True),
        ("http://[::1]:8080", True),
        ("http://192.168.1.20", True),
        ("http://100.64.0.7:8080", True),
        ("http://[fd00::1]:8080", True),
        ("https://8.8.8.8", False),
        ("https://coordinator.example", False),
        ("https://localhost.example", False),
        ("http://0.0.0.0:8080", False),
    ],
)
def test_it_follows_the_coordinator(home: dict[str, str], url: str, is_private: bool) -> None:
    private, public = peers("10.0.0.1"), peers("8.8.8.8")
    for others in ({}, {"peers": private}, {"peers": public}, {"listen_hosts": "127.0.0.1"}):
        loaded = load({"coordinator_url": url, "coordinator_key": KEY, **others}, home)
        assert loaded.config.allow_private is is_private
        assert loaded.origins["allow_private"] == "default"


@pytest.mark.parametrize(
    ("hosts", "is_private"),
    [
        (["127.0.0.1"], True),
        (["10.0.0.1", "fd00::1"], True),
        (["10.0.0.1", "8.8.8.8"], False),
        (["10.0.0.1", "node.example"], False),
        (["2606:4700::1"], False),
    ],
)
def test_without_a_coordinator_it_follows_the_peers(home: dict[str, str], hosts: list[str], is_private: bool) -> None:
    for others in ({}, {"listen_hosts": "127.0.0.1"}, {"listen_hosts": "0.0.0.0"}):
        assert load({"peers": peers(*hosts), **others}, home).config.allow_private is is_private


@pytest.mark.parametrize(
    ("hosts", "is_private"),
    [("127.0.0.1", True), ("127.0.0.1,::1", True), ("0.0.0.0,::", False), ("10.0.0.1,8.8.8.8", False)],
)
def test_without_both_it_follows_the_listen_hosts(home: dict[str, str], hosts: str, is_private: bool) -> None:
    assert load({"listen_hosts": hosts}, home).config.allow_private is is_private


def test_with_nothing_given_a_node_is_on_the_internet(home: dict[str, str]) -> None:
    assert load({}, home).config.allow_private is False


def test_whoever_says_so_is_obeyed(home: dict[str, str]) -> None:
    local = {"coordinator_url": "http://127.0.0.1:8080", "coordinator_key": KEY}
    assert load({**local, "allow_private": False}, home).config.allow_private is False
    assert load({"allow_private": True}, home).config.allow_private is True
    assert load({}, {**home, "INFERNET_ALLOW_PRIVATE": "yes"}).config.allow_private is True
