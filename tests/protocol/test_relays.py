"""protocol/relays.py: two relays in different networks, replaced when lost, and left alone when they fail."""

from __future__ import annotations

import random
from itertools import pairwise

from protocol.directory import Directory
from protocol.effects import Dial, Effect, OwnAddresses, ReleaseRelay, ReserveRelay
from protocol.events import RelayLost, RelayReserved
from protocol.ids import NodeId
from protocol.reaching import Link
from protocol.relays import FEATURE_RELAYS, LOOK_S, LOOK_SELDOM_S, RELAYS_MIN, TAKING_S_MAX, Relays
from tests.helpers_machines import now, record_of
from tests.helpers_records import NOW_MS, signing_key

OURS = signing_key("ours").node


def node(number: int) -> NodeId:
    return signing_key(f"relay {number}").node


def address(number: int, network: int | None = None) -> str:
    return f"/ip4/{network or number}.1.0.{number}/tcp/46337"


def circuit(number: int) -> str:
    return f"{address(number)}/p2p/relay/p2p-circuit/p2p/ours"


class Bench:
    """The machine, and relays that do what they are told to."""

    def __init__(self) -> None:
        self.links: dict[NodeId, Link] = {}
        self.directory = Directory()
        self.machine = Relays(OURS, self.directory, self.links, random.Random(2))
        self.at_s = 50.0
        self.effects: list[Effect] = []

    def know(self, number: int, network: int | None = None) -> None:
        """Hear of a relay."""
        record = record_of(f"relay {number}", addresses=(address(number, network),), features=(1, FEATURE_RELAYS))
        self.directory.add(record, NOW_MS)

    def connect(self, number: int, *, network: int | None = None, relays: bool = True, through: bool = False) -> None:
        features = (1, FEATURE_RELAYS) if relays else (1,)
        where = f"{address(99)}/p2p/r/p2p-circuit" if through else address(number, network)
        self.links[node(number)] = Link(where, inbound=False, features=features)
        self.take(self.machine.on_link(node(number), now(self.at_s)))

    def want(self, is_wanted: bool = True) -> None:
        self.take(self.machine.want(is_wanted, now(self.at_s)))

    def reserved(self, *numbers: int) -> None:
        for number in numbers:
            event = RelayReserved(node(number), (circuit(number),))
            self.take(self.machine.on_reserved(event, now(self.at_s)))

    def lost(self, number: int) -> None:
        self.take(self.machine.on_lost(RelayLost(node(number), "gone"), now(self.at_s)))

    def wait(self, seconds: float) -> None:
        end_s = self.at_s + seconds
        while (deadline := self.machine.next_deadline()) is not None and deadline <= end_s:
            self.at_s = max(self.at_s, deadline)
            self.take(self.machine.on_deadline(now(self.at_s)))
            following = self.machine.next_deadline()
            assert following is None or following > self.at_s
        self.at_s = end_s

    def take(self, effects: list[Effect]) -> None:
        self.effects += effects

    def asked(self) -> list[NodeId]:
        """At which relays a place was asked for since the last call."""
        found = [effect.relay for effect in self.effects if isinstance(effect, ReserveRelay)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, ReserveRelay)]
        return found

    def dialled(self) -> list[NodeId]:
        found = [effect.peer for effect in self.effects if isinstance(effect, Dial)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, Dial)]
        return found


def test_nobody_is_asked_as_long_as_no_relay_is_wanted() -> None:
    bench = Bench()
    bench.connect(1)
    bench.wait(600)
    assert bench.effects == []
    assert bench.machine.next_deadline() is None


def test_two_connected_relays_are_taken_and_their_addresses_published() -> None:
    bench = Bench()
    for number in (1, 2, 3):
        bench.connect(number)
    bench.want()
    asked = bench.asked()
    assert len(asked) == RELAYS_MIN
    numbers = [number for number in (1, 2, 3) if node(number) in asked]
    bench.reserved(*numbers)
    assert bench.machine.held == 2
    assert sorted(bench.machine.addresses) == [circuit(number) for number in numbers]
    assert bench.effects[-1] == OwnAddresses(bench.machine.addresses)
    bench.wait(3600)
    assert bench.asked() == []
    assert bench.machine.next_deadline() is None


def test_a_relay_that_was_heard_of_is_dialled_first() -> None:
    bench = Bench()
    bench.know(1)
    bench.want()
    assert bench.dialled() == [node(1)]
    assert bench.asked() == []
    bench.connect(1)
    assert bench.asked() == [node(1)]


def test_a_peer_that_begins_to_relay_is_taken_when_its_heartbeat_says_so() -> None:
    bench = Bench()
    bench.connect(1, relays=False)
    bench.want()
    assert bench.asked() == []
    bench.know(1)
    bench.wait(LOOK_S)
    assert bench.asked() == [node(1)]


def test_two_relays_that_only_claim_to_be_in_different_networks_are_one_owners() -> None:
    bench = Bench()
    for number in (1, 2):
        bench.know(number)
    bench.want()
    assert set(bench.dialled()) == {node(1), node(2)}
    for number in (1, 2):
        bench.connect(number, network=7)
    bench.reserved(1, 2)
    bench.know(3)
    bench.wait(LOOK_SELDOM_S)
    assert bench.dialled() == [node(3)]


def test_networks_differ_where_they_can() -> None:
    for seed in range(10):
        bench = Bench()
        bench.machine = Relays(OURS, bench.directory, bench.links, random.Random(seed))
        for number in (1, 2, 3, 4):
            bench.connect(number, network=7)
        bench.connect(5)
        bench.want()
        assert node(5) in bench.asked()


def test_a_third_is_taken_when_a_new_network_turns_up() -> None:
    bench = Bench()
    bench.connect(1, network=7)
    bench.connect(2, network=7)
    bench.connect(3, network=7)
    bench.want()
    assert len(bench.asked()) == 2, "better than none at all"
    bench.connect(4)
    assert bench.asked() == [node(4)]


def test_a_lost_relay_is_replaced_at_once_and_its_address_withdrawn() -> None:
    bench = Bench()
    for number in (1, 2):
        bench.connect(number)
    bench.want()
    bench.reserved(1, 2)
    bench.connect(3)
    bench.asked()
    bench.lost(1)
    assert bench.asked() == [node(3)]
    assert bench.machine.addresses == (circuit(2),)
    bench.reserved(3)
    assert bench.machine.addresses == (circuit(2), circuit(3))


def test_a_relay_that_fails_is_left_alone_ever_longer() -> None:
    bench = Bench()
    bench.connect(1)
    bench.want()
    times = []
    while bench.at_s < 50 + 2 * 3600:
        if bench.asked():
            times.append(bench.at_s)
            bench.lost(1)
        bench.wait(1)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert 5 <= pauses[0] <= 15 + LOOK_S
    assert pauses[-1] > 500
    assert len(times) < 15


def test_who_cannot_be_dialled_is_replaced() -> None:
    bench = Bench()
    for number in (1, 2, 3):
        bench.know(number)
    bench.want()
    first, _ = bench.dialled()
    bench.take(bench.machine.on_unreachable(first, now(bench.at_s)))
    [replacement] = bench.dialled()
    assert replacement != first


def test_who_never_answers_is_given_up() -> None:
    bench = Bench()
    bench.connect(1)
    bench.connect(2)
    bench.want()
    first, second = bench.asked()
    bench.connect(3)
    bench.wait(TAKING_S_MAX + LOOK_S)
    released = [effect.relay for effect in bench.effects if isinstance(effect, ReleaseRelay)]
    assert {first, second} <= set(released)
    assert node(3) in bench.asked()


def test_whoever_does_not_relay_or_is_reached_through_a_relay_is_no_candidate() -> None:
    bench = Bench()
    bench.connect(1, relays=False)
    bench.connect(2, through=True)
    record = record_of("relay 3", addresses=(f"{address(3)}/p2p/x/p2p-circuit/p2p/y",), features=(FEATURE_RELAYS,))
    bench.directory.add(record, NOW_MS)
    bench.want()
    bench.wait(60)
    assert (bench.asked(), bench.dialled()) == ([], [])


def test_we_are_not_our_own_relay() -> None:
    bench = Bench()
    bench.directory.add(record_of("ours", addresses=(address(1),), features=(FEATURE_RELAYS,)), NOW_MS)
    bench.want()
    assert bench.dialled() == []


def test_relays_are_let_go_when_nobody_needs_them() -> None:
    bench = Bench()
    bench.connect(1)
    bench.connect(2)
    bench.want()
    bench.reserved(1, 2)
    bench.effects.clear()
    bench.want(is_wanted=False)
    assert {effect.relay for effect in bench.effects if isinstance(effect, ReleaseRelay)} == {node(1), node(2)}
    assert bench.effects[-1] == OwnAddresses(())
    bench.effects.clear()
    bench.reserved(1)
    assert bench.effects == [ReleaseRelay(node(1))], "an answer that was on its way is of no use either"


def test_a_place_that_is_prolonged_is_no_news() -> None:
    bench = Bench()
    bench.connect(1)
    bench.want()
    bench.reserved(1)
    bench.effects.clear()
    bench.reserved(1)
    assert bench.effects == []
