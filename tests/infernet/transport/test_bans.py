"""Who is refused, who never is, and the one line that says so."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
import trio.testing

from infernet import log
from infernet.transport import bans as bans_module
from infernet.transport.bans import Bans
from infernet.transport.crowd import Origin, origin_of_circuit, origin_of_ip
from protocol.behaviour import BAN_FIRST_S, HOST_POINTS_MAX, KEY_POINTS_MAX, NETWORK_POINTS_MAX, POINTS_PER_WEIGHT
from protocol.ids import peer_id
from tests.helpers_log import logging_restored
from tests.helpers_transport import identity

pytestmark = pytest.mark.anyio

README = Path(__file__).resolve().parents[3] / "README.md"
# 2026-01-01T00:00:00Z
WALL_S = 1_767_225_600.0
PEER = identity(2)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    with logging_restored():
        stream = io.StringIO()
        log.configure("info", stream=stream)
        yield stream


def from_(text: str) -> Origin:
    return origin_of_ip(ip_address(text))


def bans(*, exempt_loopback: bool = False) -> Bans:
    return Bans(exempt_loopback=exempt_loopback, wall_s=lambda: WALL_S)


def weight_of(points: float) -> float:
    return points / POINTS_PER_WEIGHT


async def test_a_key_is_banned_wherever_it_comes_from_and_for_a_while() -> None:
    state = bans()
    assert not state.blame(PEER, from_("192.0.2.1"), 1, "bad frame")
    assert state.blame(PEER, from_("198.51.100.1"), weight_of(KEY_POINTS_MAX), "bad frame")
    assert state.of_peer(PEER) is not None
    assert state.of_origin(from_("192.0.2.1")) is None, "its hosts did not do as much"
    await trio.sleep(BAN_FIRST_S + 1)
    assert state.of_peer(PEER) is None


async def test_whoever_changes_keys_is_known_by_the_host_and_whoever_changes_hosts_by_the_network() -> None:
    state = bans()
    for seed in range(2, 2 + int(weight_of(HOST_POINTS_MAX))):
        assert state.of_origin(from_("192.0.2.1")) is None
        state.blame(identity(seed), from_("192.0.2.1"), 1, "bad frame")
    assert state.of_origin(from_("192.0.2.1")) is not None
    assert state.of_origin(from_("192.0.2.2")) is None
    for host in range(2, 2 + int(weight_of(NETWORK_POINTS_MAX))):
        state.blame(None, from_(f"192.0.2.{host}"), 1, "bad handshake")
    assert state.of_origin(from_("192.0.2.250")) is not None
    assert state.of_origin(from_("192.0.3.1")) is None
    assert state.count() == 2


async def test_those_whom_the_owner_knows_are_never_refused() -> None:
    state = bans()
    state.blame(PEER, None, weight_of(KEY_POINTS_MAX), "before they were known")
    state.trust({PEER})
    assert state.of_peer(PEER) is None
    assert not state.blame(PEER, from_("192.0.2.1"), 1000, "afterwards")
    assert state.of_origin(from_("192.0.2.1")) is None
    state.trust(set())
    assert state.blame(PEER, None, 1000, "no longer known")


async def test_where_a_known_peer_was_seen_nobody_is_refused_for_others() -> None:
    state = bans()
    state.trust({PEER})
    state.blame(None, from_("192.0.2.1"), 1000, "bad handshake")
    assert state.of_origin(from_("192.0.2.1")) is not None
    state.seen(identity(3), from_("192.0.2.1"))
    assert state.of_origin(from_("192.0.2.1")) is not None
    state.seen(PEER, from_("192.0.2.1"))
    assert state.of_origin(from_("192.0.2.1")) is None
    state.blame(None, from_("192.0.2.1"), 1000, "bad handshake")
    assert state.of_origin(from_("192.0.2.1")) is None
    assert state.of_origin(from_("192.0.2.2")) is not None, "its network is still banned for the others"


async def test_spared_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bans_module, "SPARED_MAX", 2)
    state = bans()
    for host in (1, 2, 3):
        state.spare(ip_address(f"192.0.2.{host}"))
        state.blame(None, from_(f"192.0.2.{host}"), weight_of(HOST_POINTS_MAX), "x")
    state.blame(None, from_("192.0.2.1"), weight_of(HOST_POINTS_MAX), "x")
    assert state.of_origin(from_("192.0.2.1")) is not None
    assert state.of_origin(from_("192.0.2.3")) is None


async def test_programs_of_this_machine_share_an_address_that_answers_for_none_of_them() -> None:
    exempt, strict = bans(exempt_loopback=True), bans()
    for state in (exempt, strict):
        state.blame(PEER, from_("127.0.0.1"), 1000, "bad frame")
        assert state.of_peer(PEER) is not None
    assert exempt.of_origin(from_("127.0.0.1")) is None
    assert strict.of_origin(from_("127.0.0.1")) is not None


async def test_a_relay_does_not_answer_for_whoever_comes_through_it() -> None:
    state = bans()
    origin = origin_of_circuit("/ip4/192.0.2.1/tcp/4001/p2p/R/p2p-circuit", PEER)
    assert state.blame(PEER, origin, 1000, "bad frame")
    assert state.of_origin(origin) is None
    assert state.count() == 1


# ---------------------------------------------------------------- the line


def without_date(line: str) -> str:
    """A line as fail2ban matches it: after the date has been found and cut out."""
    (pattern,) = re.findall(r"^datepattern = (.*)$", README.read_text("utf-8"), re.MULTILINE)
    for letter, digits in {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2}.items():
        pattern = pattern.replace(f"%%{letter}", rf"\d{{{digits}}}")
    rest, count = re.subn(pattern, "", line, count=1)
    assert count == 1
    return rest


def failregex() -> re.Pattern[str]:
    """The filter that the README gives, with the group that fail2ban puts in place of <HOST>."""
    (line,) = re.findall(r"^failregex = (.*)$", README.read_text("utf-8"), re.MULTILINE)
    return re.compile(line.replace("<HOST>", r"(?P<host>[0-9a-fA-F:.]+)"))


async def test_a_ban_is_one_line_that_the_documented_filter_reads(output: io.StringIO) -> None:
    state = bans()
    state.blame(PEER, from_("2001:db8::7"), weight_of(KEY_POINTS_MAX), "bad frame")
    (line,) = output.getvalue().splitlines()
    match = failregex().fullmatch(line)
    assert match is not None, line
    assert match["host"] == "2001:db8::7"
    assert failregex().fullmatch(without_date(line))
    told = json.loads(line)
    assert {name: told[name] for name in ("event", "peer", "ip", "reason", "score", "until", "banned")} == {
        "event": "peer.banned",
        "peer": peer_id(PEER),
        "ip": "2001:db8::7",
        "reason": "bad frame",
        "score": 45,
        "until": "2026-01-01T00:10:00+00:00",
        "banned": "peer",
    }


async def test_each_culprit_has_its_line_and_nobody_is_named_twice(output: io.StringIO) -> None:
    state = bans()
    for _ in range(5):
        state.blame(PEER, from_("192.0.2.1"), 1000, "bad frame")
    told = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [entry["banned"] for entry in told] == ["peer", "192.0.2.1/32", "192.0.2.0/24"]
    assert all(failregex().fullmatch(line) for line in output.getvalue().splitlines())


async def test_a_ban_without_an_address_is_no_business_of_a_firewall(output: io.StringIO) -> None:
    bans().blame(PEER, None, 1000, "bad frame")
    (line,) = output.getvalue().splitlines()
    assert failregex().fullmatch(line) is None
    assert json.loads(line)["ip"] == "-"


async def test_nothing_that_a_peer_says_can_forge_a_line(output: io.StringIO) -> None:
    forged = (
        'x"}\n{"timestamp": "t", "level": "warning", "event": "peer.banned", "peer": "p", "ip": "8.8.8.8", "a": ""}'
    )
    bans().blame(PEER, from_("192.0.2.1"), weight_of(KEY_POINTS_MAX), forged + "\x1b[2J\u202e")
    (line,) = output.getvalue().splitlines()
    for seen in (line, without_date(line)):
        match = failregex().fullmatch(seen)
        assert match is not None
        assert match["host"] == "192.0.2.1"
    assert len(json.loads(line)["reason"]) <= 80
    assert "\x1b" not in line
