"""The passive view: bounded, mixed over networks, and drawn from by network."""

from __future__ import annotations

import random
from collections import Counter

from protocol.ids import NodeId
from protocol.locality import network_of
from protocol.passive import Passive
from tests.helpers_machines import record_of


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def address(network: int, host: int = 1) -> tuple[str, ...]:
    return (f"/ip4/20.{network}.0.{host}/tcp/46337",)


def view(candidates_max: int = 256, seed: int = 1) -> Passive:
    return Passive(random.Random(seed), candidates_max)


def anybody(_: NodeId) -> bool:
    return True


def networks_of(passive: Passive, nodes: range) -> Counter[str]:
    return Counter(network_of(passive.addresses(node(number))[0]) for number in nodes if node(number) in passive)


def test_who_has_no_address_is_no_candidate() -> None:
    passive = view()
    passive.add(node(1), ())
    assert len(passive) == 0
    assert passive.choose(anybody, ()) is None
    assert passive.addresses(node(1)) == ()


def test_a_flood_from_a_few_networks_displaces_nobody_elsewhere() -> None:
    passive = view(candidates_max=64)
    for number in range(32):
        passive.add(node(number), address(number))
    for number in range(1000, 6000):
        passive.add(node(number), address(200 + number % 4, number % 250))
    held = networks_of(passive, range(6000))
    assert len(passive) == 64
    assert sum(held[network_of(address(number)[0])] for number in range(32)) == 32


def test_in_a_single_network_newcomers_still_get_in() -> None:
    passive = view(candidates_max=16)
    for number in range(400):
        passive.add(node(number), address(1, number % 250))
    assert len(passive) == 16
    assert any(node(number) in passive for number in range(200, 400))


def test_one_network_of_many_nodes_is_chosen_no_more_often_than_one_of_a_single_node() -> None:
    passive = view()
    for number in range(90):
        passive.add(node(number), address(1, number))
    for number in range(100, 109):
        passive.add(node(number), address(number))
    chosen: Counter[bool] = Counter()
    for _ in range(1000):
        found = passive.choose(anybody, ())
        assert found is not None
        chosen[found < node(90)] += 1
    assert 60 < chosen[True] < 200


def test_networks_that_are_to_be_avoided_are_taken_when_there_is_no_other() -> None:
    passive = view()
    passive.add(node(1), address(1))
    passive.add(node(2), address(2))
    avoided = {network_of(address(1)[0])}
    assert {passive.choose(anybody, avoided) for _ in range(20)} == {node(2)}
    passive.forget(node(2))
    assert passive.choose(anybody, avoided) == node(1)


def test_only_who_fits_is_chosen() -> None:
    passive = view()
    for number in range(10):
        passive.add(node(number), address(number))
    assert {passive.choose(lambda each: each == node(7), ()) for _ in range(10)} == {node(7)}
    assert passive.choose(lambda _: False, ()) is None


def test_forgetting_keeps_the_rest() -> None:
    passive = view()
    for number in range(5):
        passive.add(node(number), address(number))
    passive.forget(node(0))
    passive.forget(node(0))
    passive.forget(node(4))
    assert len(passive) == 3
    assert {passive.choose(anybody, ()) for _ in range(100)} == {node(1), node(2), node(3)}


def test_a_candidate_moves_with_its_address() -> None:
    passive = view()
    passive.add(node(1), address(1))
    passive.add(node(1), address(2))
    passive.add(node(1), ())
    assert passive.addresses(node(1)) == address(2)
    assert networks_of(passive, range(3)) == Counter({network_of(address(2)[0]): 1})


def test_only_records_are_shown_to_others_and_not_those_left_out() -> None:
    passive = view()
    records = {node(number): record_of(str(number)) for number in range(6)}
    passive.add(node(10), address(10))
    for each, record in records.items():
        passive.add(each, address(each[-1]), record)
    shown = {record for _ in range(50) for record in passive.records(3, (node(0),))}
    assert shown == set(records.values()) - {records[node(0)]}
    assert len(passive.records(3)) <= 3
    assert len(passive.records(100)) <= 8


def test_a_newer_record_replaces_the_one_that_is_shown() -> None:
    passive = view()
    passive.add(node(1), address(1), record_of("a"))
    passive.add(node(1), address(1), record_of("a", sequence=9))
    passive.add(node(1), address(1))
    assert passive.records(1) == [record_of("a", sequence=9)]


def test_where_a_candidate_is_found_counts_and_not_where_it_claims_to_be() -> None:
    passive = view()
    passive.add(node(1), address(1))
    passive.add(node(2), address(2))
    passive.found_in(node(1), network_of(address(2)[0]))
    passive.found_in(node(2), "")
    passive.found_in(node(3), network_of(address(3)[0]))
    taken = {network_of(address(2)[0])}
    assert not passive.has_other(lambda _: True, taken)
    passive.add(node(4), address(4))
    assert passive.has_other(lambda _: True, taken)
    assert not passive.has_other(lambda other: other != node(4), taken)
    assert {passive.choose(lambda _: True, taken) for _ in range(20)} == {node(4)}
