"""protocol/behaviour.py: points that halve, thresholds, bans that grow and end, and bounds."""

from __future__ import annotations

import math
from ipaddress import ip_address

import pytest

from protocol import behaviour
from protocol.behaviour import (
    BAN_FACTOR,
    BAN_FIRST_S,
    BAN_MEMORY_S,
    BAN_S_MAX,
    HALF_LIFE_S,
    HOST_POINTS_MAX,
    KEY_POINTS_MAX,
    NETWORK_POINTS_MAX,
    POINTS_PER_WEIGHT,
    Ban,
    Behaviour,
    Culprit,
)
from protocol.ids import NodeId
from protocol.networks import host_of, subnet_of

KEY = NodeId(bytes(32))
HOST = host_of(ip_address("192.0.2.1"))
HOST_6 = host_of(ip_address("2001:db8:1:2::3"))
NETWORK = subnet_of(ip_address("192.0.2.1"))
NETWORK_6 = subnet_of(ip_address("2001:db8:1::3"))


def blame_until_banned(state: Behaviour, culprit: Culprit, now_s: float) -> tuple[int, Ban]:
    for count in range(1, 1000):
        ban = state.blame(culprit, 1, "bad frame", now_s)
        if ban is not None:
            return count, ban
    raise AssertionError("never banned")


@pytest.mark.parametrize(
    ("culprit", "points_max"),
    [
        (KEY, KEY_POINTS_MAX),
        (HOST, HOST_POINTS_MAX),
        (HOST_6, HOST_POINTS_MAX),
        (NETWORK, NETWORK_POINTS_MAX),
        (NETWORK_6, NETWORK_POINTS_MAX),
    ],
)
def test_each_sort_bears_its_own_measure(culprit: Culprit, points_max: float) -> None:
    state = Behaviour()
    count, ban = blame_until_banned(state, culprit, 100.0)
    assert count == math.ceil(points_max / POINTS_PER_WEIGHT)
    assert ban == Ban(culprit, 100.0 + BAN_FIRST_S, count * POINTS_PER_WEIGHT, "bad frame")
    assert state.ban_of(culprit, 100.0 + BAN_FIRST_S - 0.1) == ban
    assert state.ban_of(culprit, 100.0 + BAN_FIRST_S) is None


def test_points_halve_with_time() -> None:
    state = Behaviour()
    state.blame(KEY, 4, "x", 0.0)
    assert state.points_of(KEY, HALF_LIFE_S) == pytest.approx(20.0)
    assert state.points_of(KEY, 2 * HALF_LIFE_S) == pytest.approx(10.0)
    assert state.points_of(HOST, 0.0) == 0.0


def test_a_rare_mistake_is_never_banned() -> None:
    state = Behaviour()
    assert all(state.blame(KEY, 1, "x", number * HALF_LIFE_S / 2) is None for number in range(10_000))


def test_one_sort_does_not_answer_for_another() -> None:
    state = Behaviour()
    blame_until_banned(state, KEY, 0.0)
    assert state.ban_of(HOST, 0.0) is None
    assert state.ban_of(NETWORK, 0.0) is None
    assert [ban.culprit for ban in state.bans(0.0)] == [KEY]


def test_a_banned_one_is_not_banned_again_before_its_ban_ends() -> None:
    state = Behaviour()
    _, ban = blame_until_banned(state, KEY, 0.0)
    assert all(state.blame(KEY, 1, "x", 1.0) is None for _ in range(100))
    assert state.ban_of(KEY, 1.0) == ban


def test_every_further_ban_is_longer_up_to_a_day() -> None:
    state = Behaviour()
    now_s, lengths = 0.0, []
    for _ in range(8):
        _, ban = blame_until_banned(state, KEY, now_s)
        lengths.append(ban.until_s - now_s)
        now_s = ban.until_s + 1
    assert lengths == [pytest.approx(min(BAN_S_MAX, BAN_FIRST_S * BAN_FACTOR**n)) for n in range(8)]


def test_bans_are_forgotten_one_a_day() -> None:
    state = Behaviour()
    _, first = blame_until_banned(state, KEY, 0.0)
    _, second = blame_until_banned(state, KEY, first.until_s)
    _, third = blame_until_banned(state, KEY, second.until_s + BAN_MEMORY_S + 1)
    assert third.until_s - (second.until_s + BAN_MEMORY_S + 1) == pytest.approx(BAN_FIRST_S * BAN_FACTOR)


def test_after_a_ban_it_begins_anew() -> None:
    state = Behaviour()
    _, ban = blame_until_banned(state, KEY, 0.0)
    assert state.points_of(KEY, ban.until_s) == 0.0
    assert state.blame(KEY, 1, "x", ban.until_s) is None


def test_whoever_turns_out_to_be_known_is_forgiven() -> None:
    state = Behaviour()
    blame_until_banned(state, HOST, 0.0)
    state.forgive(HOST)
    state.forgive(NETWORK)
    assert state.bans(0.0) == []
    assert len(state) == 0


def test_a_flood_of_culprits_does_not_grow_and_forgets_only_its_own_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviour, "CULPRITS_MAX", 16)
    state = Behaviour()
    blame_until_banned(state, HOST, 0.0)
    for number in range(1000):
        state.blame(NodeId(number.to_bytes(32, "big")), 1, "x", 0.0)
    assert len(state) == 17
    assert state.ban_of(HOST, 1.0) is not None
