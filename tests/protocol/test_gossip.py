"""Gossip: news goes to every neighbour once, and what was missed is repaired by comparing digests."""

from __future__ import annotations

import random

import pytest

from protocol import constants as c
from protocol.codec import CONTROL_LIMITS, FrameReader, encode_message
from protocol.directory import FIRST_ID, LAST_ID, Directory
from protocol.errors import BadSignature, RemoteProtocolError
from protocol.events import Note, RecordLearnt
from protocol.gossip import Gossip, GossipConfig, Outgoing
from protocol.ids import NodeId
from protocol.messages import Digest, Find, Message, Records, Want
from protocol.records import Kind, Signed
from tests.helpers_machines import entry_of, now, record_of
from tests.helpers_records import NOW_MS, signing_key

X, Y, Z = (signing_key(name).node for name in ("x", "y", "z"))


class Node:
    """A gossip machine and its directory."""

    def __init__(self, *records: Signed, interval_s: float | None = c.GOSSIP_INTERVAL_S) -> None:
        self.directory = Directory()
        self.gossip = Gossip(GossipConfig(interval_s=interval_s), self.directory, random.Random(1))
        for record in records:
            self.directory.add(record, NOW_MS)

    def sequences(self) -> dict[NodeId, int]:
        return {entry.heartbeat.node: entry.heartbeat.sequence for entry in self.directory.entries()}


def exchange(a: Node, b: Node, opening: list[Outgoing]) -> int:
    """Pass messages between two nodes, X and Y, until both are silent; returns how many there were."""
    count = 0
    queue: list[tuple[Node, Message]] = [(b, out.message) for out in opening]
    while queue:
        receiver, message = queue.pop(0)
        count += 1
        # Every message must fit a control stream.
        assert list(FrameReader(CONTROL_LIMITS).feed(encode_message(message))) == [message]
        outgoing, _ = receiver.gossip.on_message(X if receiver is b else Y, message, now())
        other = a if receiver is b else b
        queue += [(other, out.message) for out in outgoing if out.neighbour == (X if receiver is b else Y)]
    return count


def numbered(count: int, sequence: int = 1) -> list[Signed]:
    return [record_of(f"node {number}", sequence=sequence) for number in range(count)]


# ---------------------------------------------------------------- digests


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_two_nodes_become_equal_by_exchanging_digests(count: int) -> None:
    records = numbered(count)
    a, b = Node(*records[: count // 2]), Node(*records[count // 2 :])
    rounds = 0
    exchange(a, b, a.gossip.add_neighbour(Y, now()))
    while a.sequences() != b.sequences():
        rounds += 1
        assert rounds < 12
        at_s = 10.0 * rounds
        exchange(a, b, a.gossip.on_deadline(now(at_s)))
    assert len(a.sequences()) == count


def test_the_newer_of_two_versions_wins_in_both_directions() -> None:
    a = Node(record_of("p", sequence=2), record_of("q", sequence=1))
    b = Node(record_of("p", sequence=1), record_of("q", sequence=2))
    exchange(a, b, a.gossip.add_neighbour(Y, now()))
    assert set(a.sequences().values()) == set(b.sequences().values()) == {2}


def test_equal_nodes_say_one_digest_and_no_more() -> None:
    a, b = Node(*numbered(10)), Node(*numbered(10))
    assert exchange(a, b, a.gossip.add_neighbour(Y, now())) == 1


def test_nobody_asks_for_what_it_holds_beyond_the_part_that_it_looked_at() -> None:
    """A digest over a wide range names a record that comes after the 128 which the answer covers."""
    records = numbered(300)
    a = Node(*records)
    last = a.directory.range(FIRST_ID, 300)[-1].heartbeat
    outgoing, _ = a.gossip.on_message(Y, Digest(FIRST_ID, LAST_ID, ((last.node, last.sequence),)), now())
    assert not any(isinstance(out.message, Want) for out in outgoing)
    assert sum(len(out.message.records) for out in outgoing if isinstance(out.message, Records)) == 128


def test_nobody_is_sent_its_own_record() -> None:
    a = Node(record_of("y"), record_of("z"))
    outgoing, _ = a.gossip.on_message(Y, Digest(FIRST_ID, LAST_ID, ()), now())
    (out,) = outgoing
    assert out.message == Records((record_of("z"),))


def test_a_want_is_answered_with_what_is_held() -> None:
    a = Node(record_of("z"))
    outgoing, _ = a.gossip.on_message(Y, Want((X, Z)), now())
    assert outgoing == [Outgoing(Y, Records((record_of("z"),)))]
    assert a.gossip.on_message(Y, Want((X,)), now()) == ([], [])


def test_large_records_are_spread_over_messages_that_fit() -> None:
    huge = [record_of(f"node {n}", addresses=tuple("/" + "a" * 255 for _ in range(8))) for n in range(60)]
    a, b = Node(*huge), Node()
    exchange(b, a, b.gossip.add_neighbour(Y, now()))
    assert len(b.directory) == 60


@pytest.mark.parametrize(
    "message",
    [
        Digest(LAST_ID, FIRST_ID, ()),
        Digest(FIRST_ID, LAST_ID, ((X, 1), (X, 2))),
        Find(1, None, Kind.CHAT, 0, None, None, 1),
    ],
)
def test_what_no_honest_node_says_is_an_error(message: Message) -> None:
    with pytest.raises(RemoteProtocolError):
        Node().gossip.on_message(Y, message, now())


# ---------------------------------------------------------------- news


def with_neighbours(*neighbours: NodeId) -> Node:
    node = Node()
    for neighbour in neighbours:
        node.gossip.add_neighbour(neighbour, now())
    return node


def test_news_goes_to_everyone_but_its_source_and_its_subject() -> None:
    node = with_neighbours(X, Y, Z)
    outgoing, effects = node.gossip.on_message(X, Records((record_of("y"),)), now())
    assert [out.neighbour for out in outgoing] == [Z]
    (learnt,) = effects
    assert isinstance(learnt, RecordLearnt)
    assert learnt.heartbeat.node == Y


def test_old_news_goes_nowhere() -> None:
    node = with_neighbours(X, Y)
    node.gossip.on_message(X, Records((record_of("p"),)), now())
    assert node.gossip.on_message(Y, Records((record_of("p"),)), now()) == ([], [])


def test_many_news_travel_together() -> None:
    node = with_neighbours(X, Y)
    outgoing, effects = node.gossip.on_message(X, Records(tuple(numbered(30))), now())
    assert len(outgoing) == 1
    assert len(effects) == 30


def test_a_node_that_changes_all_the_time_is_pushed_once_in_five_seconds() -> None:
    node = with_neighbours(X, Y)
    pushed = []
    for step in range(100):
        at_s = step * 0.25
        outgoing, _ = node.gossip.on_message(X, Records((record_of("p", sequence=100 + step),)), now(at_s))
        pushed += [at_s] * len(outgoing)
    assert pushed == [0.0, 5.0, 10.0, 15.0, 20.0]
    assert node.sequences() == {signing_key("p").node: 199}


def test_one_forged_record_spoils_the_message_and_hides_nothing() -> None:
    """What was beside a forgery is news again when an honest neighbour brings it."""
    node = with_neighbours(X, Y)
    forged = Signed(record_of("q").body, bytes(64))
    with pytest.raises(BadSignature):
        node.gossip.on_message(X, Records((record_of("p"), forged)), now())
    _, effects = node.gossip.on_message(Y, Records((record_of("p"),)), now())
    assert len(effects) == 1


def test_expired_records_are_skipped_with_one_note() -> None:
    node = with_neighbours(X, Y)
    stale = tuple(record_of(f"node {n}", expires_at_ms=NOW_MS) for n in range(10))
    outgoing, effects = node.gossip.on_message(X, Records((*stale, record_of("p"))), now())
    assert len([effect for effect in effects if isinstance(effect, Note)]) == 1
    assert len(outgoing) == 1


# ---------------------------------------------------------------- neighbours and time


def test_a_new_neighbour_hears_a_digest_at_once_and_only_once() -> None:
    node = Node(record_of("p"))
    (out,) = node.gossip.add_neighbour(X, now())
    assert isinstance(out.message, Digest)
    assert node.gossip.add_neighbour(X, now()) == []


def test_exchanges_come_at_the_interval_with_jitter_and_reach_everyone() -> None:
    node = with_neighbours(X, Y, Z)
    at_s, waits, reached = 0.0, [], set()
    for _ in range(50):
        deadline = node.gossip.next_deadline()
        assert deadline is not None
        assert node.gossip.on_deadline(now(deadline - 0.01)) == []
        (out,) = node.gossip.on_deadline(now(deadline))
        reached.add(out.neighbour)
        waits.append(deadline - at_s)
        at_s = deadline
    assert reached == {X, Y, Z}
    assert 0.75 * c.GOSSIP_INTERVAL_S <= min(waits) < max(waits) <= 1.25 * c.GOSSIP_INTERVAL_S


def test_without_neighbours_there_is_no_deadline_and_nothing_grows() -> None:
    node = with_neighbours(X)
    node.gossip.remove_neighbour(X)
    assert node.gossip.next_deadline() is None
    for number in range(50):
        assert node.gossip.spread([entry_of(str(number))], now(), source=None) == []
    assert not node.gossip._pushed_at_s


def test_a_node_that_leaves_gossip_out_has_no_neighbours() -> None:
    node = Node(interval_s=None)
    assert node.gossip.add_neighbour(X, now()) == []
    assert node.gossip.next_deadline() is None
    assert node.gossip.spread([entry_of("p")], now(), source=None) == []


def test_what_was_pushed_is_forgotten_in_time() -> None:
    node = with_neighbours(X, Y)
    node.gossip.on_message(X, Records(tuple(numbered(20))), now())
    assert len(node.gossip._pushed_at_s) == 20
    deadline = node.gossip.next_deadline()
    assert deadline is not None
    node.gossip.on_deadline(now(deadline + c.RECORD_INTERVAL_S))
    assert not node.gossip._pushed_at_s


def test_all_of_a_large_directory_is_told_in_turns() -> None:
    node = Node(*numbered(150))
    node.gossip.add_neighbour(X, now())
    told: set[NodeId] = set()
    digests = [out for at_s in range(10, 60, 10) for out in node.gossip.on_deadline(now(at_s))]
    for out in digests:
        assert isinstance(out.message, Digest)
        told |= {entry for entry, _ in out.message.entries}
    assert len(told) == 150
