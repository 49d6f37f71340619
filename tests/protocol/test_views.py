"""Neighbours: agreed, chosen in distinct networks, bounded, replaced when they go or tell nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import CONTROL_LIMITS, FrameReader, encode_message
from protocol.contacts import Contacts
from protocol.directory import Directory
from protocol.effects import Dial
from protocol.events import LearnAddresses
from protocol.ids import NodeId
from protocol.links import Budget, Link, Outgoing
from protocol.locality import network_of
from protocol.messages import Leave, Message, Neighbour, NeighbourAnswer, Shuffle, Shuffled
from protocol.passive import Passive
from protocol.places import LEAVES_MAX, PROBATION_S, TAKEN_MAX, URGENT_AGE_S
from protocol.records import Signed
from protocol.views import (
    ATTEMPT_S,
    ATTEMPTS_MAX,
    CHOSEN_FOR_MODELS_MAX,
    CHOSEN_MIN,
    CHOSEN_MORE,
    FAILURES_MAX,
    REQUESTS_BURST,
    REST_S,
    ROTATE_MUTE_S,
    ROTATE_S,
    SHUFFLE_S,
    Change,
    Joined,
    Left,
    Views,
)
from tests.helpers_machines import now, record_of
from tests.helpers_records import NOW_MS, OFFER, signing_key

Kind = TypeVar("Kind")
ME = signing_key("me").node
AIM = CHOSEN_MIN + CHOSEN_MORE


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def address(network: int, host: int = 1) -> str:
    return f"/ip4/20.{network}.0.{host}/tcp/46337"


class Bench:
    """Views and what surrounds them. Whoever joins gets a link, as gossip would give it."""

    def __init__(self, *, chosen_min: int = CHOSEN_MIN, seed: int = 1) -> None:
        rng = random.Random(seed)
        self.directory = Directory()
        self.contacts = Contacts(self.directory, rng)
        self.passive = Passive(rng)
        self.links: dict[NodeId, Link] = {}
        self.wanting: list[NodeId] = []
        self.mute: set[NodeId] = set()
        self.at_s = 1000.0
        self.views = Views(
            ME,
            self.directory,
            self.contacts,
            self.passive,
            self.links,
            rng,
            now(self.at_s),
            chosen_min=chosen_min,
            is_mute=self.mute.__contains__,
            wanting=lambda _: self.wanting,
        )

    def follow(self, changes: Iterable[Change]) -> list[Change]:
        changes = list(changes)
        for change in changes:
            if isinstance(change, Joined):
                self.links[change.node] = Link(None, Budget(self.at_s))
            elif isinstance(change, Left):
                del self.links[change.node]
        return changes

    def wait(self, seconds: float) -> list[Change]:
        changes: list[Change] = []
        end_s = self.at_s + seconds
        while (deadline := self.views.next_deadline()) is not None and deadline <= end_s:
            self.at_s = deadline
            changes += self.follow(self.views.on_deadline(now(deadline)))
            following = self.views.next_deadline()
            assert following is None or following > deadline
        self.at_s = end_s
        return changes

    def connect(self, peer: NodeId, network: int = 0, *, speaks: bool = True) -> list[Change]:
        self.contacts.on_connected(peer, now(self.at_s))
        self.views.on_connected(peer, network_of(address(network)))
        return self.follow(self.views.on_greeted(peer, speaks, now(self.at_s)))

    def lose(self, peer: NodeId) -> list[Change]:
        self.contacts.on_unreachable(peer, now(self.at_s))
        return self.follow(self.views.on_disconnected(peer, now(self.at_s)))

    def hear(self, peer: NodeId, message: Message) -> list[Change]:
        if isinstance(message, Neighbour):
            return self.follow(self.views.on_neighbour(peer, message, now(self.at_s)))
        if isinstance(message, NeighbourAnswer):
            return self.follow(self.views.on_answer(peer, message, now(self.at_s)))
        assert isinstance(message, Leave)
        return self.follow(self.views.on_leave(peer, now(self.at_s)))

    def candidates(self, count: int, network: int | None = None) -> None:
        for number in range(1, count + 1):
            self.passive.add(node(number), (address(number if network is None else network, number),))

    def meet(self, changes: Iterable[Change], *, accepts: bool = True) -> list[NodeId]:
        """Everybody who is dialled is reached; they take us or not. Returns whom."""
        met = []
        for dial in only(changes, Dial):
            met.append(dial.peer)
            (asked,) = self.connect(dial.peer, dial.peer[-1])
            assert isinstance(asked, Outgoing)
            assert isinstance(asked.message, Neighbour)
            self.hear(dial.peer, NeighbourAnswer(int(accepts), ()))
        return met

    def settle(self, seconds: float = 60.0) -> list[NodeId]:
        """Everybody who is dialled takes us, for so long."""
        met: list[NodeId] = []
        for _ in range(int(seconds)):
            met += self.meet(self.wait(1.0))
        return met

    def ask(self, peer: NodeId, network: int = 0, *, is_urgent: bool = False) -> list[Change]:
        """A connected stranger asks to be our neighbour."""
        self.connect(peer, network)
        return self.hear(peer, Neighbour(int(is_urgent)))

    def publishes(self, name: str) -> NodeId:
        """Somebody whose record has an address: no leaf."""
        self.directory.add(record_of(name), NOW_MS)
        return signing_key(name).node


def only(changes: Iterable[Any], cls: type[Kind]) -> list[Kind]:
    return [change for change in changes if isinstance(change, cls)]


def said(changes: Iterable[Change]) -> list[tuple[NodeId, Message]]:
    return [(out.neighbour, out.message) for out in only(changes, Outgoing)]


YES, NO = NeighbourAnswer(1, ()), NeighbourAnswer(0, ())

# ---------------------------------------------------------------- choosing


def test_a_node_chooses_a_handful_and_then_looks_no_further() -> None:
    bench = Bench()
    bench.candidates(50)
    assert len(bench.settle(30.0)) == AIM
    assert len(bench.links) == AIM


def test_neighbours_are_chosen_in_distinct_networks_as_long_as_there_are_so_many() -> None:
    bench = Bench()
    for number in range(1, 101):
        bench.passive.add(node(number), (address(200, number),))
    for number in range(101, 108):
        bench.passive.add(node(number), (address(number),))
    met = bench.settle(30.0)
    assert len(met) == AIM
    assert len({network_of(bench.passive.addresses(peer)[0]) for peer in met}) == AIM


def test_whoever_claims_to_be_in_many_networks_is_chosen_once() -> None:
    bench = Bench()
    for number in range(1, 101):
        bench.passive.add(node(number), (address(number),))
    for number in range(101, 108):
        bench.passive.add(node(number), (address(number),))
    for _ in range(300):
        for dial in only(bench.wait(1.0), Dial):
            for _, message in said(bench.connect(dial.peer, 200 if dial.peer[-1] <= 100 else dial.peer[-1])):
                assert isinstance(message, Neighbour)
                bench.hear(dial.peer, YES)
            if dial.peer not in bench.links:
                bench.lose(dial.peer)
    assert len(bench.links) == AIM
    assert sum(peer[-1] <= 100 for peer in bench.links) == 1


def test_in_a_single_network_neighbours_are_chosen_all_the_same() -> None:
    bench = Bench()
    bench.candidates(20, network=7)
    assert len(bench.settle(30.0)) == AIM


def test_the_first_are_sought_among_those_that_were_given() -> None:
    bench = Bench()
    bench.candidates(50)
    for number in (101, 102):
        bench.contacts.learn(LearnAddresses(node(number), (address(number),), connect=False), connected=False)
    assert bench.settle(30.0)[:2] == [node(101), node(102)]


def test_only_the_first_request_is_urgent() -> None:
    bench = Bench()
    bench.candidates(1)
    (dial,) = only(bench.wait(5.0), Dial)
    assert said(bench.connect(dial.peer)) == [(dial.peer, Neighbour(1))]
    bench.hear(dial.peer, YES)
    bench.passive.add(node(2), (address(2),))
    bench.views.on_candidates(now(bench.at_s))
    (dial,) = only(bench.wait(5.0), Dial)
    assert said(bench.connect(dial.peer)) == [(dial.peer, Neighbour(0))]


def test_only_so_many_are_tried_at_once() -> None:
    bench = Bench()
    bench.candidates(50)
    assert len(only(bench.wait(ATTEMPT_S - 5.0), Dial)) == ATTEMPTS_MAX


def test_who_refuses_is_left_alone_for_a_while() -> None:
    bench = Bench()
    bench.candidates(1)
    (dial,) = only(bench.wait(5.0), Dial)
    bench.connect(dial.peer)
    assert bench.hear(dial.peer, NO) == []
    bench.lose(dial.peer)
    assert only(bench.wait(0.5 * REST_S), Dial) == []
    assert only(bench.wait(1.5 * REST_S), Dial)


def test_who_does_not_answer_is_given_up_and_told_so_when_it_does() -> None:
    bench = Bench()
    bench.candidates(1)
    (dial,) = only(bench.wait(5.0), Dial)
    bench.connect(dial.peer)
    bench.wait(ATTEMPT_S)
    assert said(bench.hear(dial.peer, YES)) == [(dial.peer, Leave())]
    assert not bench.links


def test_who_cannot_be_reached_is_tried_ever_more_seldom_and_at_last_forgotten() -> None:
    bench = Bench()
    bench.candidates(1)
    tried = []
    for _ in range(3000):
        for dial in only(bench.wait(1.0), Dial):
            tried.append(bench.at_s)
            bench.contacts.on_unreachable(dial.peer, now(bench.at_s))
            bench.views.on_unreachable(dial.peer, now(bench.at_s))
    assert len(tried) == FAILURES_MAX
    assert node(1) not in bench.passive


def test_who_speaks_no_gossip_is_no_candidate() -> None:
    bench = Bench()
    bench.candidates(1)
    (dial,) = only(bench.wait(5.0), Dial)
    changes = bench.connect(dial.peer, speaks=False)
    assert changes == []
    assert node(1) not in bench.passive


def test_who_looks_for_nobody_dials_nobody_but_takes_others_in() -> None:
    bench = Bench(chosen_min=0)
    bench.candidates(50)
    assert only(bench.wait(1000.0), Dial) == []
    assert said(bench.ask(node(1))) == [(node(1), YES)]


def test_a_peer_that_somebody_asked_for_is_always_asked_and_asked_again() -> None:
    bench = Bench(chosen_min=0)
    bench.contacts.learn(LearnAddresses(node(1), (address(1),), connect=True), connected=False)
    assert said(bench.connect(node(1))) == [(node(1), Neighbour(1))]
    bench.hear(node(1), NO)
    assert said(bench.wait(0.4 * REST_S)) == []
    while not (asked := said(bench.wait(1.0))):
        assert bench.at_s < 1000.0 + 2 * REST_S
    assert asked == [(node(1), Neighbour(1))]
    bench.hear(node(1), YES)
    assert node(1) in bench.views


def test_when_both_ask_at_once_they_are_neighbours_once() -> None:
    bench = Bench()
    bench.candidates(1)
    bench.wait(5.0)
    bench.connect(node(1))
    assert only(bench.hear(node(1), Neighbour(1)), Joined) == [Joined(node(1))]
    assert bench.hear(node(1), YES) == []
    assert said(bench.hear(node(1), Neighbour(0))) == [(node(1), YES)]
    assert list(bench.links) == [node(1)]


# ---------------------------------------------------------------- taking in


def test_strangers_are_taken_in_up_to_a_bound_and_then_shown_others() -> None:
    bench = Bench(chosen_min=0)
    for number in range(TAKEN_MAX):
        assert said(bench.ask(bench.publishes(f"p{number}"), number))[-1][1] == YES
    bench.passive.add(node(1), (address(1),), record_of("shown"))
    late = bench.publishes("late")
    assert said(bench.ask(late, 100)) == [(late, NeighbourAnswer(0, (record_of("shown"),)))]
    assert len(bench.links) == TAKEN_MAX


def test_many_who_cannot_be_dialled_find_room_beside_them() -> None:
    bench = Bench(chosen_min=0)
    for number in range(TAKEN_MAX):
        bench.ask(bench.publishes(f"p{number}"), number)
    answers = [said(bench.ask(node(number), number))[-1][1] for number in range(1, LEAVES_MAX + 2)]
    assert answers == [YES] * LEAVES_MAX + [NO]
    assert len(bench.links) == TAKEN_MAX + LEAVES_MAX


def test_a_newcomer_from_elsewhere_takes_the_place_of_the_latest_of_a_crowd() -> None:
    bench = Bench(chosen_min=0)
    for number in range(TAKEN_MAX):
        bench.ask(bench.publishes(f"p{number}"), 7 if number % 2 else number)
        bench.wait(1.0)
    latest = signing_key(f"p{TAKEN_MAX - 1}").node
    newcomer = bench.publishes("newcomer")
    assert said(bench.ask(newcomer, 100)) == [(latest, Leave()), (newcomer, YES)]
    assert len(bench.links) == TAKEN_MAX


def test_whom_we_chose_makes_room_for_nobody() -> None:
    bench = Bench()
    bench.candidates(AIM, network=7)
    chosen = bench.settle(30.0)
    for number in range(3 * TAKEN_MAX):
        bench.wait(URGENT_AGE_S)
        bench.ask(bench.publishes(f"p{number}"), 7, is_urgent=True)
    assert set(chosen) <= set(bench.links)


def test_who_asks_all_the_time_is_not_answered() -> None:
    bench = Bench(chosen_min=0)
    for number in range(TAKEN_MAX):
        bench.ask(bench.publishes(f"p{number}"), number)
    bench.passive.add(node(1), (address(1),), record_of("shown"))
    late = bench.publishes("late")
    bench.connect(late, 100)
    answers = [said(bench.hear(late, Neighbour(0))) for _ in range(REQUESTS_BURST + 3)]
    assert [bool(answer) for answer in answers] == [True] * REQUESTS_BURST + [False] * 3


def test_who_answers_all_the_time_without_being_asked_is_told_no_more() -> None:
    bench = Bench(chosen_min=0)
    bench.connect(node(1))
    told = [said(bench.hear(node(1), YES)) for _ in range(REQUESTS_BURST + 3)]
    assert told == [[(node(1), Leave())]] * REQUESTS_BURST + [[]] * 3


# ---------------------------------------------------------------- going


@pytest.mark.parametrize("how", ["leave", "disconnect", "stream"])
def test_who_goes_is_replaced(how: str) -> None:
    bench = Bench()
    bench.candidates(50)
    chosen = bench.settle(30.0)
    if how == "leave":
        changes = bench.hear(chosen[0], Leave())
    elif how == "disconnect":
        changes = bench.lose(chosen[0])
    else:
        changes = bench.follow(bench.views.on_stream_lost(chosen[0], now(bench.at_s)))
    assert only(changes, Left) == [Left(chosen[0])]
    met = bench.settle(10.0)
    assert len(met) == 1
    assert met != [chosen[0]]
    assert len(bench.links) == AIM


def test_who_was_no_neighbour_leaves_nothing() -> None:
    bench = Bench()
    bench.connect(node(1))
    assert bench.hear(node(1), Leave()) == []
    assert bench.lose(node(1)) == []
    assert bench.lose(node(1)) == []


# ---------------------------------------------------------------- meeting others


def test_now_and_then_somebody_new_comes_for_whoever_told_least() -> None:
    bench = Bench()
    bench.candidates(50)
    chosen = bench.settle(30.0)
    for number, peer in enumerate(chosen[1:]):
        bench.links[peer].told = number % 2
        bench.links[peer].told_before = 1
    met: list[NodeId] = []
    left: list[NodeId] = []
    for _ in range(int(2 * ROTATE_S)):
        changes = bench.wait(1.0)
        for dial in only(changes, Dial):
            bench.connect(dial.peer, dial.peer[-1])
            after = bench.hear(dial.peer, YES)
            met.append(dial.peer)
            left += [change.node for change in only(after, Left)]
            assert {out.neighbour for out in only(after, Outgoing)} == set(left[-1:])
        if met:
            break
    assert left == [chosen[0]]
    assert met
    assert not set(met) & set(chosen)
    assert len(bench.links) == AIM


def test_nobody_is_replaced_before_it_could_be_of_use() -> None:
    bench = Bench()
    bench.candidates(50)
    chosen = bench.settle(20.0)
    assert len(chosen) == AIM
    assert bench.settle(PROBATION_S - 25.0) == []


def test_a_mute_one_is_replaced_soon() -> None:
    bench = Bench()
    bench.candidates(50)
    chosen = bench.settle(300.0)
    assert len(chosen) > AIM
    held = [peer for peer in chosen if peer in bench.links]
    bench.mute.add(held[0])
    for peer in held[1:]:
        bench.links[peer].told = 1
    bench.settle(ROTATE_S * 1.5)
    assert held[0] not in bench.links
    bench.mute.update(bench.links)
    assert len(bench.settle(8 * ROTATE_MUTE_S)) >= 3


def test_a_young_node_meets_others_more_often() -> None:
    bench = Bench()
    bench.candidates(200)
    first = len(bench.settle(2 * ROTATE_S)) - AIM
    later = len(bench.settle(6 * ROTATE_S))
    assert first >= 3
    assert 4 <= later <= 9


def test_whoever_only_others_chose_is_in_need() -> None:
    """A crowd around a newcomer, which chose it, does not keep it from asking urgently."""
    bench = Bench()
    for number in range(5):
        bench.ask(node(100 + number), number)
    bench.candidates(1)
    bench.views.on_candidates(now(bench.at_s))
    (dial,) = only(bench.wait(15.0), Dial)
    assert said(bench.connect(dial.peer)) == [(dial.peer, Neighbour(1))]


def test_nobody_else_is_asked_before_one_of_those_that_were_given() -> None:
    bench = Bench()
    bench.candidates(50)
    bench.contacts.learn(LearnAddresses(node(101), (address(101),), connect=False), connected=False)
    assert [dial.peer for dial in only(bench.wait(10.0), Dial)] == [node(101)]
    bench.connect(node(101), 101)
    bench.hear(node(101), NO)
    assert len(only(bench.wait(10.0), Dial)) == ATTEMPTS_MAX


def test_a_peer_that_somebody_asked_for_is_not_replaced() -> None:
    bench = Bench()
    for number in range(1, AIM + 1):
        bench.contacts.learn(LearnAddresses(node(number), (address(number),), connect=True), connected=False)
        bench.connect(node(number), number)
        bench.hear(node(number), YES)
    for number in range(50, 90):
        bench.passive.add(node(number), (address(number),))
    assert bench.settle(10 * ROTATE_S) == []
    assert len(bench.links) == AIM


def test_nodes_that_know_models_of_interest_are_chosen_beyond_the_aim() -> None:
    bench = Bench()
    bench.candidates(30)
    bench.settle(30.0)
    bench.wanting = [peer for peer in map(node, range(1, 31)) if peer not in bench.links]
    bench.settle(40.0)
    assert len(bench.links) == AIM + CHOSEN_FOR_MODELS_MAX


# ---------------------------------------------------------------- shuffling


def shuffles(changes: Iterable[Change]) -> list[tuple[NodeId, Shuffle]]:
    return [(out.neighbour, out.message) for out in only(changes, Outgoing) if isinstance(out.message, Shuffle)]


def test_now_and_then_a_neighbour_is_told_of_ourselves_and_others() -> None:
    bench = Bench(chosen_min=0)
    bench.directory.add(record_of("me"), NOW_MS)
    bench.ask(node(1))
    for number in range(40):
        peer = signing_key(f"p{number}").node
        bench.passive.add(peer, (address(number),), record_of(f"p{number}"))
    ((to, message),) = shuffles(bench.wait(1.5 * SHUFFLE_S))
    assert to == node(1)
    assert message.records[0] == record_of("me")
    assert len(message.records) == c.SHUFFLE_RECORDS_MAX
    assert bench.views.expects_shuffled(node(1))
    assert not bench.views.expects_shuffled(node(1))


def test_without_neighbours_or_something_to_say_nothing_is_shuffled() -> None:
    bench = Bench(chosen_min=0)
    assert bench.wait(10 * SHUFFLE_S) == []
    bench.ask(node(1))
    assert shuffles(bench.wait(10 * SHUFFLE_S)) == []


def test_large_records_of_strangers_do_not_make_a_frame_that_nobody_may_send() -> None:
    """Whoever gets one would hold it against us, and not against those who signed what is in it."""
    bench = Bench(chosen_min=0)
    for number in range(20, 30):
        large = record_of(f"n{number}", extensions=tuple((2 * each + 1, bytes(1024)) for each in range(8)))
        bench.passive.add(node(number), (address(number),), large)
    for number in range(LEAVES_MAX):
        bench.ask(node(100 + number), number)
    said_by_us = [
        *said(bench.ask(node(99), 99)),
        *said(bench.views.on_shuffle(node(100), now(bench.at_s))),
        *shuffles(bench.wait(1.5 * SHUFFLE_S)),
    ]
    assert [type(message) for _, message in said_by_us] == [NeighbourAnswer, Shuffled, Shuffle]
    for _, message in said_by_us:
        assert list(FrameReader(CONTROL_LIMITS).feed(encode_message(message))) == [message]
        assert isinstance(message, (NeighbourAnswer, Shuffle, Shuffled))
        assert len(message.others if isinstance(message, NeighbourAnswer) else message.records) > 4


def test_a_shuffle_is_answered_for_neighbours_and_not_without_end() -> None:
    bench = Bench(chosen_min=0)
    bench.passive.add(node(9), (address(9),), record_of("shown"))
    assert bench.views.on_shuffle(node(1), now(bench.at_s)) == []
    bench.ask(node(1))
    answers = [said(bench.views.on_shuffle(node(1), now(bench.at_s))) for _ in range(REQUESTS_BURST + 2)]
    assert answers[0] == [(node(1), Shuffled((record_of("shown"),)))]
    assert answers[-1] == []


def test_a_shuffle_fits_a_frame_however_large_the_records_of_strangers_are() -> None:
    bench = Bench(chosen_min=0)
    bench.directory.add(large_record("me"), NOW_MS)
    for number in range(2, 2 + 2 * c.SHUFFLE_RECORDS_MAX):
        bench.passive.add(node(number), (address(number),), large_record(str(number)))
    bench.ask(node(1))
    bench.wait(2 * SHUFFLE_S)
    shuffle = bench.views.on_shuffle(node(1), now(bench.at_s)) + [
        change for _ in range(4) for change in bench.wait(2 * SHUFFLE_S)
    ]
    assert {type(message) for _, message in said(shuffle)} == {Shuffle, Shuffled}
    for _, message in said(shuffle):
        assert list(FrameReader(CONTROL_LIMITS).feed(encode_message(message))) == [message]


def large_record(name: str) -> Signed:
    """A heartbeat that is as good as any, and has nearly as many bytes as one may have."""
    models = tuple(replace(OFFER, name=f"{number:02}" + "m" * 100 + "\U0001f9ca" * 26) for number in range(32))
    return record_of(name, models=models[:30], addresses=tuple(f"/dns4/{'a' * 120}{n}/tcp/5000" for n in range(8)))
