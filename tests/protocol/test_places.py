"""Places for those who choose us: who is taken in, and at whose cost."""

from __future__ import annotations

import random

import pytest

from protocol.ids import NodeId
from protocol.places import NETWORK_REST_S, PROBATION_S, URGENT_AGE_S, URGENT_BURST, Place, Places
from tests.helpers_machines import now

PLACES = 8


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


class Bench:
    """Places that are all held; everybody has told us something unless told otherwise."""

    def __init__(self, *networks: str) -> None:
        self.held = {node(number): Place(network, float(number)) for number, network in enumerate(networks)}
        self.told = dict.fromkeys(self.held, 1)
        self.places = Places(random.Random(1), lambda each: self.told[each])
        self._next = 1000

    def ask(self, network: str, at_s: float = 100.0, *, is_urgent: bool = False) -> NodeId | None:
        """A newcomer from there; returns who makes room, or its own id where nobody does."""
        self._next += 1
        is_taken, victim = self.places.find(self.held, PLACES, network, now(at_s), is_urgent=is_urgent)
        if not is_taken:
            assert victim is None
            return node(self._next)
        if victim is not None:
            del self.held[victim]
        self.held[node(self._next)] = Place(network, at_s)
        self.told[node(self._next)] = 0
        return victim

    def refuses(self, network: str, at_s: float = 100.0, *, is_urgent: bool = False) -> bool:
        return self.ask(network, at_s, is_urgent=is_urgent) == node(self._next)

    def networks(self) -> list[str]:
        return sorted(place.network for place in self.held.values())


def test_while_there_is_room_everybody_is_taken_in() -> None:
    bench = Bench()
    assert [bench.ask("a") for _ in range(PLACES)] == [None] * PLACES
    assert bench.refuses("a")


def test_the_latest_of_the_network_that_has_most_makes_room() -> None:
    bench = Bench("a", "a", "b", "c", "d", "e", "a", "f")
    assert bench.ask("g") == node(6)
    assert bench.refuses("b"), "two of one network are no more than those of the other would be"


def test_a_crowd_displaces_nobody_elsewhere() -> None:
    bench = Bench("a", "a", "a", "a", "b", "c", "d", "e")
    for number in range(100):
        bench.ask("a", 200.0 + number, is_urgent=True)
    assert bench.networks() == ["a", "a", "a", "a", "b", "c", "d", "e"]


def test_whoever_told_nothing_makes_room_for_a_network_that_has_no_place_and_its_own_network_rests() -> None:
    bench = Bench("a", "b", "c", "d", "e", "f", "g", "h")
    bench.told[node(3)] = 0
    assert bench.refuses("i", PROBATION_S + 2.0)
    assert bench.ask("i", PROBATION_S + 3.0) == node(3)
    bench.told[node(4)] = 0
    at_s = PROBATION_S + 5.0
    assert bench.refuses("d", at_s, is_urgent=True), "it rests"
    assert bench.ask("d", at_s + NETWORK_REST_S) is not None


def test_silence_is_no_reason_for_one_more_of_a_network_that_has_its_place() -> None:
    bench = Bench("a", "b", "c", "d", "e", "f", "g", "h")
    bench.told = dict.fromkeys(bench.held, 0)
    assert bench.refuses("a", 500.0)


def test_an_urgent_case_gets_the_place_of_a_larger_network_that_is_not_quite_new() -> None:
    bench = Bench("a", "b", "c", "d", "e", "f", "g", "h")
    assert bench.refuses("i", URGENT_AGE_S - 0.1, is_urgent=True)
    victim = bench.ask("j", 100.0, is_urgent=True)
    assert victim == node(7)
    assert bench.refuses("k", 100.0)


def test_where_all_are_of_one_network_an_urgent_case_still_gets_a_place() -> None:
    bench = Bench(*["a"] * PLACES)
    assert bench.refuses("a")
    assert bench.ask("a", is_urgent=True) == node(7)


@pytest.mark.parametrize("network", ["i", "a"])
def test_a_network_is_not_in_need_all_the_time(network: str) -> None:
    bench = Bench(*["a"] * PLACES) if network == "a" else Bench("a", "b", "c", "d", "e", "f", "g", "h")
    granted = 0
    for second in range(600):
        if not bench.refuses(network, 100.0 + second, is_urgent=True):
            granted += 1
            # It is gone again at once, and somebody else has come.
            bench.held.pop(node(bench._next))
            bench.held[node(5000 + second)] = Place("a" if network == "a" else f"other {second}", 0.0)
            bench.told[node(5000 + second)] = 1
    assert granted <= URGENT_BURST + 600 / 60 + 1
