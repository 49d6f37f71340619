"""protocol/reaching.py: a verdict needs networks that agree, a liar cannot make one alone, and it is asked again."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from protocol import constants as c
from protocol.codec import CONTROL_LIMITS, FrameReader
from protocol.effects import Effect, FinishStream, OpenStream, Send
from protocol.errors import RemoteProtocolError
from protocol.ids import NodeId, StreamId
from protocol.messages import Reached, ReachMe
from protocol.reaching import ASK_AT_ONCE, FEATURE_DIALS_BACK, RETRY_S_MAX, SETTLE_S, Link, Reaching
from protocol.records import Reachability
from tests.helpers_machines import now

PORT = 46337
DIALS_BACK = (1, FEATURE_DIALS_BACK)
HOME = f"/ip4/198.51.7.9/tcp/{PORT}"

YES, NO = Reachability.REACHED, Reachability.NOT_REACHED


def peer(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


class Bench:
    """The machine, its peers, and what it asked of whom."""

    def __init__(self, seed: int = 1) -> None:
        self.links: dict[NodeId, Link] = {}
        self.numbers = iter(range(1, 10_000, 2))
        self.machine = Reaching(self.links, random.Random(seed), lambda: StreamId(next(self.numbers)))
        self.asked: dict[StreamId, NodeId] = {}
        self.at_s = 1000.0

    def connect(
        self, number: int, *, network: int | None = None, inbound: bool = False, address: str | None = None
    ) -> NodeId:
        address = address or f"/ip4/{network or number}.1.0.{number}/tcp/46337"
        self.links[peer(number)] = Link(address, inbound, DIALS_BACK)
        self.machine.on_hello(peer(number), "/ip4/198.51.7.9/tcp/55555", now(self.at_s))
        return peer(number)

    def listen(self) -> None:
        self.machine.listen(PORT, now(self.at_s))

    def wait(self, seconds: float) -> None:
        """Let time pass; the machine must ask at the moment that it named, not before."""
        end_s = self.at_s + seconds
        while (deadline := self.machine.next_deadline()) is not None and deadline <= end_s:
            self.at_s = max(self.at_s, deadline)
            self.take(self.machine.on_deadline(now(self.at_s)))
            following = self.machine.next_deadline()
            assert following is None or following > self.at_s
        self.at_s = end_s

    def take(self, effects: list[Effect]) -> None:
        for opening, send, finish in zip(effects[::3], effects[1::3], effects[2::3], strict=True):
            assert isinstance(opening, OpenStream)
            assert isinstance(send, Send)
            assert isinstance(finish, FinishStream)
            assert opening.protocol == c.REACH_PROTOCOL
            assert list(FrameReader(CONTROL_LIMITS).feed(send.data)) == [ReachMe(PORT)]
            self.asked[opening.stream] = opening.peer

    def answer(self, node: NodeId, reachability: Reachability, address: str | None = HOME) -> None:
        """The peer answers the newest question."""
        stream = next(s for s, asked in reversed(self.asked.items()) if asked == node)
        self.take(self.machine.on_message(stream, Reached(reachability, address, ""), now(self.at_s)))

    def say_nothing(self, node: NodeId) -> None:
        stream = next(s for s, asked in reversed(self.asked.items()) if asked == node)
        self.take(self.machine.on_stream_lost(stream, now(self.at_s)))

    def asked_now(self) -> list[NodeId]:
        """Those asked since the last call."""
        nodes = list(self.asked.values())
        self.asked_before = getattr(self, "asked_before", 0)
        new = nodes[self.asked_before :]
        self.asked_before = len(nodes)
        return new

    @property
    def verdict(self) -> tuple[Reachability, str | None]:
        return self.machine.reachability, self.machine.address


def ready(*numbers: int) -> Bench:
    """A node that listens and has dialled these peers, each in a network of its own, at the moment of asking."""
    bench = Bench()
    bench.listen()
    for number in numbers:
        bench.connect(number)
    bench.wait(SETTLE_S)
    return bench


def test_two_networks_that_agree_decide() -> None:
    bench = ready(1, 2)
    assert sorted(bench.asked_now()) == [peer(1), peer(2)]
    bench.answer(peer(1), YES)
    assert bench.verdict == (Reachability.UNKNOWN, None), "one is not enough as long as the other may answer"
    bench.answer(peer(2), YES)
    assert bench.verdict == (YES, HOME)


@pytest.mark.parametrize("outcome", [NO, Reachability.WRONG_NODE, Reachability.NO_NODE])
def test_what_is_not_reached_is_so_in_several_ways(outcome: Reachability) -> None:
    bench = ready(1, 2)
    bench.answer(peer(1), outcome)
    bench.answer(peer(2), outcome)
    assert bench.verdict == (outcome, None)


def test_the_only_peer_there_is_decides_alone() -> None:
    bench = ready(1)
    bench.answer(peer(1), YES)
    assert bench.verdict == (YES, HOME)


def test_what_one_network_decided_alone_is_asked_again_once_there_is_another() -> None:
    bench = ready(1)
    bench.answer(peer(1), YES)
    bench.asked_now()
    bench.connect(2, network=1)
    bench.wait(120)
    assert bench.asked_now() == [], "the same network again is no second voice"
    bench.connect(3)
    bench.wait(SETTLE_S)
    assert peer(3) in bench.asked_now()
    bench.answer(peer(3), NO)
    for node in (peer(1), peer(2)):
        if node in bench.asked.values():
            bench.answer(node, NO)
    assert bench.verdict == (NO, None)


def test_a_liar_among_three_decides_nothing() -> None:
    bench = ready(1, 2, 3)
    bench.answer(peer(1), YES, "/ip4/192.0.2.66/tcp/46337")
    bench.answer(peer(2), NO)
    bench.answer(peer(3), NO)
    assert bench.verdict == (NO, None)


def test_a_liar_cannot_have_another_address_published() -> None:
    bench = ready(1, 2, 3)
    bench.answer(peer(1), YES, "/ip4/192.0.2.66/tcp/46337")
    bench.answer(peer(2), YES)
    bench.answer(peer(3), YES)
    assert bench.verdict == (YES, HOME)


def test_nor_with_two_answers_that_name_different_addresses() -> None:
    bench = ready(1, 2)
    bench.answer(peer(1), YES, "/ip4/192.0.2.66/tcp/46337")
    bench.answer(peer(2), YES)
    assert bench.verdict == (YES, None), "reached, but nobody knows where"


def test_the_published_port_is_ours_whatever_was_answered() -> None:
    bench = ready(1)
    bench.answer(peer(1), YES, "/ip4/198.51.7.9/tcp/22")
    assert bench.verdict == (YES, HOME)


def test_where_answers_differ_others_are_asked() -> None:
    bench = ready(1, 2)
    bench.connect(3)
    bench.asked_now()
    bench.answer(peer(1), YES)
    bench.answer(peer(2), NO)
    assert bench.asked_now() == [peer(3)]
    bench.answer(peer(3), YES)
    assert bench.verdict == (YES, HOME)


def test_a_balance_counts_as_not_reached() -> None:
    bench = ready(1, 2)
    bench.answer(peer(1), YES)
    bench.answer(peer(2), NO)
    assert bench.verdict == (NO, None)


def test_a_network_has_one_vote_whatever_the_number_of_its_peers() -> None:
    bench = Bench()
    bench.listen()
    for number in (1, 2, 3, 4):
        bench.connect(number, network=9)
    bench.connect(5, network=8)
    bench.connect(6, network=7)
    bench.wait(SETTLE_S)
    asked = bench.asked_now()
    assert len(asked) == ASK_AT_ONCE
    assert {peer(5), peer(6)} < set(asked)


def test_only_direct_connections_that_we_dialled_count_and_only_to_those_who_do_it() -> None:
    bench = Bench()
    bench.listen()
    bench.connect(1, inbound=True)
    bench.connect(2, address="/ip4/9.9.9.9/tcp/1/p2p/16Uiu2/p2p-circuit")
    bench.links[peer(3)] = Link("/ip4/7.7.7.7/tcp/1", inbound=False, features=(1,))
    bench.machine.on_hello(peer(3), None, now(bench.at_s))
    bench.wait(3600)
    assert bench.asked_now() == []
    assert bench.machine.next_deadline() is None, "without anybody to ask there is nothing to wait for"
    bench.connect(4)
    bench.wait(SETTLE_S)
    assert bench.asked_now() == [peer(4)]


def test_who_is_too_busy_has_no_vote_and_another_of_his_network_is_asked() -> None:
    bench = Bench()
    bench.listen()
    bench.connect(1, network=9)
    bench.connect(2, network=9)
    bench.wait(SETTLE_S)
    [first] = bench.asked_now()
    bench.answer(first, Reachability.NOT_TRIED, None)
    [second] = bench.asked_now()
    assert {first, second} == {peer(1), peer(2)}
    bench.answer(second, YES)
    assert bench.verdict == (YES, HOME)


def test_an_answer_of_a_later_version_is_no_vote() -> None:
    bench = ready(1)
    bench.answer(peer(1), Reachability.UNKNOWN)
    assert bench.verdict == (Reachability.UNKNOWN, None)


def test_silence_is_no_vote_and_no_hang() -> None:
    bench = ready(1, 2, 3)
    bench.say_nothing(peer(1))
    bench.answer(peer(2), NO)
    bench.say_nothing(peer(3))
    assert bench.verdict == (NO, None)
    silent = ready(1)
    silent.say_nothing(peer(1))
    assert silent.verdict == (Reachability.UNKNOWN, None)
    silent.asked_now()
    silent.wait(200)
    assert silent.asked_now() == [peer(1)]


def test_not_reached_is_asked_again_soon_and_then_ever_less_often() -> None:
    bench = ready(1)
    times = []
    while bench.at_s < 1000 + 4 * 3600:
        if bench.asked_now():
            times.append(bench.at_s)
            bench.answer(peer(1), NO)
        bench.wait(1)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[0] < 90
    assert pauses[-1] > 1200
    assert len(times) < 20


def test_reached_is_asked_again_every_half_hour_and_may_change() -> None:
    bench = ready(1, 2)
    bench.answer(peer(1), YES)
    bench.answer(peer(2), YES)
    bench.asked_now()
    bench.wait(RETRY_S_MAX * 0.7)
    assert bench.asked_now() == []
    bench.wait(RETRY_S_MAX * 0.6)
    assert len(bench.asked_now()) == 2
    bench.answer(peer(1), NO)
    bench.answer(peer(2), NO)
    assert bench.verdict == (NO, None)


def test_a_new_address_is_asked_about_at_once_but_not_on_every_word() -> None:
    bench = ready(1)
    bench.answer(peer(1), YES)
    bench.asked_now()
    bench.wait(600)
    for _ in range(25):
        for ip in ("198.51.7.10", "198.51.7.11"):
            bench.machine.on_hello(peer(1), f"/ip4/{ip}/tcp/5", now(bench.at_s))
        bench.wait(SETTLE_S)
        for node in bench.asked_now():
            bench.answer(node, YES)
    assert len(bench.asked) == 3, "the first, the one after the change, and one more a minute later"


def test_another_port_is_another_question() -> None:
    bench = ready(1)
    bench.answer(peer(1), YES)
    bench.machine.listen(None, now(bench.at_s))
    assert bench.verdict == (Reachability.UNKNOWN, None)
    assert bench.machine.next_deadline() is None
    bench.machine.listen(80, now(bench.at_s))
    assert bench.machine.next_deadline() is None, "nobody dials that port"


def test_late_and_foreign_answers_change_nothing() -> None:
    bench = ready(1)
    bench.answer(peer(1), YES)
    bench.answer(peer(1), NO)
    assert bench.verdict == (YES, HOME)
    assert bench.machine.on_stream_lost(StreamId(99), now()) == []


def test_a_question_is_no_answer() -> None:
    with pytest.raises(RemoteProtocolError):
        ready(1).machine.on_message(StreamId(1), ReachMe(46337), now())
