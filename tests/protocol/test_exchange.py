"""What was missed is found by comparing digests, within what both sides want and may cost each other."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.broadcast import Broadcast
from protocol.codec import CONTROL_LIMITS, FrameReader, encode_message
from protocol.directory import FIRST_ID, LAST_ID, Directory, Scope
from protocol.errors import RemoteProtocolError
from protocol.exchange import DIGESTS_MAX, INTERVALS_MAX, PART_RECORDS, QUESTIONS_BURST, SOON_S, Exchange
from protocol.gossip import Heartbeats
from protocol.ids import NodeId
from protocol.interest import Interests
from protocol.links import BURST_BYTES, Budget, Link, Outgoing, cost_bytes
from protocol.messages import Digest, Message, Records, Summary, Want
from protocol.records import Signed
from tests.helpers_machines import now, record_of
from tests.helpers_records import NOW_MS, OFFER, signing_key

X, Y, Z = (signing_key(name).node for name in "xyz")


class Node:
    """An exchange over a directory; all neighbours want `scope`."""

    def __init__(self, *records: Signed, neighbours: Iterable[NodeId] = (), scope: Scope = None) -> None:
        self.directory = Directory()
        self.directory.add_all(records, NOW_MS)
        self.kind = Heartbeats(self.directory)
        self.links: dict[NodeId, Link] = {}
        self.interests = Interests(self.directory)
        rng = random.Random(1)
        self.broadcast = Broadcast(self.links, self.kind, rng)
        self.exchange = Exchange(
            c.GOSSIP_INTERVAL_S, self.directory, self.kind, self.interests, self.links, self.broadcast, rng
        )
        for node in neighbours:
            self.join(node, scope=scope)

    def join(self, node: NodeId, at_s: float = 0.0, scope: Scope = None, *, is_chosen: bool = False) -> list[Outgoing]:
        self.links[node] = Link(scope, Budget(at_s))
        self.broadcast.on_joined(node, now(at_s))
        return self.exchange.on_joined(node, now(at_s), is_chosen=is_chosen)

    def take(self, source: NodeId, message: Message, at_s: float) -> list[Outgoing]:
        if isinstance(message, Digest):
            return self.exchange.on_digest(source, message, now(at_s))
        if isinstance(message, Summary):
            return self.exchange.on_summary(source, message, now(at_s))
        if isinstance(message, Want):
            return self.exchange.on_want(source, message, now(at_s))
        assert isinstance(message, Records)
        news, _ = self.directory.add_all(message.records, NOW_MS)
        self.exchange.on_news(source, len(news), now(at_s))
        return []

    def sequences(self) -> dict[NodeId, int]:
        return {entry.heartbeat.node: entry.heartbeat.sequence for entry in self.directory.entries()}


def converse(a: Node, b: Node, opening: list[Outgoing], at_s: float = 0.0) -> list[Message]:
    """Pass messages between X and Y until both are silent; returns all of them."""
    said: list[Message] = []
    queue: list[tuple[Node, Message]] = [(b, out.message) for out in opening]
    while queue:
        receiver, message = queue.pop(0)
        said.append(message)
        # Every message must fit a control stream.
        assert list(FrameReader(CONTROL_LIMITS).feed(encode_message(message))) == [message]
        answers = receiver.take(X if receiver is b else Y, message, at_s)
        queue += [(a if receiver is b else b, out.message) for out in answers]
    return said


def pair(a: Iterable[Signed], b: Iterable[Signed]) -> tuple[Node, Node]:
    return Node(*a), Node(*b, neighbours=[X])


def numbered(count: int, sequence: int = 1) -> list[Signed]:
    return [record_of(f"node {number}", sequence=sequence) for number in range(count)]


def records_in(messages: Iterable[Message]) -> list[Signed]:
    return [record for message in messages if isinstance(message, Records) for record in message.records]


# ---------------------------------------------------------------- digests


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_two_nodes_become_equal_by_comparing(count: int) -> None:
    records = numbered(count)
    a, b = pair(records[: count // 2], records[count // 2 :])
    converse(a, b, a.join(Y))
    rounds = 0
    while a.sequences() != b.sequences():
        rounds += 1
        assert rounds < 12
        at_s = 100.0 * rounds
        converse(a, b, a.exchange.on_deadline(now(at_s)), at_s)
    assert len(a.sequences()) == count


def compare(a: Node, b: Node, at_s: float = 100.0) -> list[Message]:
    """A's turn to compare with its neighbour B, when all that they hold has settled."""
    if Y not in a.links:
        a.join(Y)
    return converse(a, b, a.exchange.on_deadline(now(at_s)), at_s)


def test_the_newer_of_two_versions_wins_in_both_directions() -> None:
    a, b = pair(
        [record_of("p", sequence=2), record_of("q", sequence=1)],
        [record_of("p", sequence=1), record_of("q", sequence=2)],
    )
    compare(a, b)
    assert set(a.sequences().values()) == set(b.sequences().values()) == {2}


@pytest.mark.parametrize("count", [1, 10, 200])
def test_equal_nodes_say_one_summary_and_no_more(count: int) -> None:
    a, b = pair(numbered(count), numbered(count))
    (said,) = compare(a, b)
    assert isinstance(said, Summary)
    assert len(said.parts) == -(-count // PART_RECORDS)


def test_one_difference_among_thousands_costs_a_part_of_them() -> None:
    records = numbered(1000)
    a, b = pair(records, records[:-1])
    said = compare(a, b)
    assert len(b.directory) == 1000
    assert [type(message) for message in said] == [Summary, Digest, Records]
    assert sum(len(encode_message(message)) for message in said) < 5000


def test_what_was_issued_just_now_is_no_difference_yet() -> None:
    """It is on its way along the tree; a comparison that saw it would find something missing every time."""
    a, b = pair(numbered(20), numbered(20))
    for directory, sequence in ((a.directory, 2), (b.directory, 3)):
        directory.add(record_of("p", sequence=sequence, issued_at_ms=NOW_MS + 58_000), NOW_MS)
    assert [type(message) for message in compare(a, b, 65.0)] == [Summary]
    assert len(compare(a, b, 200.0)) > 1
    assert a.sequences() == b.sequences()


def test_a_newcomer_lists_the_little_that_it_holds_and_gets_the_rest() -> None:
    a, b = pair([record_of("me"), record_of("node 7")], numbered(300))
    (out,) = a.join(Y)
    assert isinstance(out.message, Digest)
    assert (out.message.first, out.message.last, len(out.message.entries)) == (FIRST_ID, LAST_ID, 2)
    converse(a, b, [out])
    assert len(a.directory) == len(b.directory) == 301


def test_nobody_asks_for_what_it_holds() -> None:
    a = Node(*numbered(300), neighbours=[Y])
    last = a.directory.range(FIRST_ID, 300)[-1].heartbeat
    answer = a.take(Y, Digest(FIRST_ID, LAST_ID, ((last.node, last.sequence),)), 0.0)
    assert not any(isinstance(out.message, Want) for out in answer)
    assert len(records_in(out.message for out in answer)) == 299


def test_nobody_is_sent_its_own_record() -> None:
    a = Node(record_of("y"), record_of("z"), neighbours=[Y])
    (out,) = a.take(Y, Digest(FIRST_ID, LAST_ID, ()), 0.0)
    assert out.message == Records((record_of("z"),))


def test_a_want_is_answered_with_what_is_held() -> None:
    a = Node(record_of("z"), neighbours=[Y])
    assert a.take(Y, Want((X, Z)), 0.0) == [Outgoing(Y, Records((record_of("z"),)))]
    assert a.take(Y, Want((X,)), 0.0) == []


@pytest.mark.parametrize(
    "message",
    [
        Digest(LAST_ID, FIRST_ID, ()),
        Digest(FIRST_ID, LAST_ID, ((X, 1), (X, 2))),
        Summary(0, ((X, bytes(8)),)),
        Summary(0, ((LAST_ID, bytes(8)), (X, bytes(8)), (LAST_ID, bytes(8)))),
        Summary(0, ((LAST_ID, bytes(8)), (LAST_ID, bytes(8)))),
    ],
)
def test_what_no_honest_node_says_is_an_error(message: Message) -> None:
    with pytest.raises(RemoteProtocolError):
        Node(neighbours=[Y]).take(Y, message, 0.0)


def test_a_summary_covers_a_directory_of_any_size() -> None:
    node = Node(*numbered(4000), neighbours=[X])
    (out,) = node.exchange.on_deadline(now(100.0))
    assert isinstance(out.message, Summary)
    assert len(out.message.parts) == c.ARRAY_ITEMS_MAX
    assert out.message.parts[-1][0] == LAST_ID


def test_where_the_other_side_holds_much_more_it_is_listed_in_pieces() -> None:
    records = numbered(300)
    a, b = pair(records[:1], records)
    (summary,) = [out.message for out in a.join(Y) + a.exchange.on_deadline(now(100.0))][-1:]
    digests = [out.message for out in b.take(X, summary, 100.0)]
    assert len(digests) == DIGESTS_MAX
    for digest in digests:
        assert isinstance(digest, Digest)
        listed = [node for node, _ in digest.entries]
        held = [e.heartbeat.node for e in b.directory.between(digest.first, digest.last, 1000)]
        assert listed == held


# ---------------------------------------------------------------- what both want


def of_model(name: str, model: str, **changes: int) -> Signed:
    return record_of(name, models=(replace(OFFER, name=model),), **changes)


def test_only_what_concerns_both_is_listed_and_answered() -> None:
    """One has room for everything and the other does not: each record travels once, and no round repeats it."""
    a = Node(of_model("p", "red"), of_model("q", "blue"))
    narrow = Node(of_model("r", "red", sequence=3), of_model("s", "blue", sequence=3))
    narrow.interests.ours = frozenset({"red"})
    narrow.join(X)
    a.join(Y, scope=frozenset({"red"}))
    said = compare(a, narrow)
    digest = said[1]
    assert isinstance(digest, Digest)
    assert [node for node, _ in digest.entries] == [signing_key("r").node]
    assert set(narrow.sequences()) == {signing_key(name).node for name in "prs"}
    assert set(a.sequences()) == {signing_key(name).node for name in "pqr"}
    assert len(compare(a, narrow, 200.0)) == 1
    (out,) = narrow.exchange.on_deadline(now(200.0))
    assert a.take(Y, out.message, 200.0) == []


def test_neighbours_that_want_what_we_want_are_compared_with() -> None:
    node = Node(*numbered(3), neighbours=[X, Y], scope=frozenset({"blue"}))
    node.join(Z, scope=frozenset({"red", "green"}))
    node.interests.ours = frozenset({"red"})
    partners = {out.neighbour for at_s in range(100, 2000, 100) for out in node.exchange.on_deadline(now(float(at_s)))}
    assert partners == {Z}
    node.interests.ours = frozenset({"white"})
    partners = {out.neighbour for at_s in range(2000, 9000, 100) for out in node.exchange.on_deadline(now(float(at_s)))}
    assert partners == {X, Y, Z}


# ---------------------------------------------------------------- pace


def test_the_first_neighbour_is_compared_with_at_once_and_others_soon() -> None:
    node = Node(record_of("p"))
    (out,) = node.join(X, 50.0)
    assert isinstance(out.message, Digest)
    assert node.join(Y, 50.0) == []
    deadline = node.exchange.next_deadline()
    assert deadline is not None
    assert deadline <= 50.0 + 1.5 * SOON_S


def test_a_newcomer_compares_at_once_with_whom_it_chose_itself() -> None:
    """Whoever came to it first may have come to keep it from others."""
    node = Node(neighbours=[X])
    (out,) = node.join(Y, 30.0, is_chosen=True)
    assert out.neighbour == Y
    assert node.join(Z, 90.0, is_chosen=True) == []


def test_nodes_that_lack_nothing_compare_ever_more_seldom_and_with_everyone() -> None:
    node = Node(neighbours=[X, Y, Z])
    at_s, waits, reached = 0.0, [], set()
    for _ in range(40):
        deadline = node.exchange.next_deadline()
        assert deadline is not None
        assert node.exchange.on_deadline(now(deadline - 0.01)) == []
        (out,) = node.exchange.on_deadline(now(deadline))
        reached.add(out.neighbour)
        waits.append(deadline - at_s)
        at_s = deadline
    slowest_s = INTERVALS_MAX * c.GOSSIP_INTERVAL_S
    assert reached == {X, Y, Z}
    assert waits[1] < 2 * SOON_S
    assert all(0.75 * slowest_s <= wait <= 1.25 * slowest_s for wait in waits[10:])
    assert min(waits[10:]) < max(waits[10:])


def test_a_partner_that_brings_much_is_followed_by_the_next_comparison_soon() -> None:
    node = Node(neighbours=[X])
    for at_s in (100.0, 200.0, 300.0, 400.0):
        node.exchange.on_deadline(now(at_s))
    node.exchange.on_news(X, 1, now(401.0))
    node.exchange.on_news(Y, 60, now(401.0))
    deadline = node.exchange.next_deadline()
    assert deadline is not None
    assert deadline > 410.0
    node.exchange.on_news(X, 60, now(401.0))
    deadline = node.exchange.next_deadline()
    assert deadline is not None
    assert deadline <= 401.0 + 1.5 * SOON_S


def test_without_neighbours_there_is_no_deadline() -> None:
    node = Node(record_of("p"), neighbours=[X])
    del node.links[X]
    assert node.exchange.next_deadline() is None
    assert node.exchange.on_deadline(now(1000.0)) == []


# ---------------------------------------------------------------- what it may cost


def huge() -> list[Signed]:
    return [record_of(f"node {n}", addresses=tuple("/" + "a" * 255 for _ in range(8))) for n in range(300)]


def test_a_small_question_draws_no_more_than_the_budget_and_another_part_each_time() -> None:
    records = huge()
    assert sum(map(cost_bytes, records)) > 2 * BURST_BYTES
    a = Node(*records, neighbours=[Y])
    seen: set[Signed] = set()
    for at_s in range(0, 100, 10):
        got = records_in(out.message for out in a.take(Y, Digest(FIRST_ID, LAST_ID, ()), float(at_s)))
        assert sum(map(cost_bytes, got)) <= BURST_BYTES
        seen |= set(got)
    assert seen == set(records)


def test_questions_without_end_are_not_answered() -> None:
    a = Node(record_of("p"), neighbours=[Y])
    empty = Digest(FIRST_ID, LAST_ID, ())
    answers = [a.take(Y, empty, 0.0) for _ in range(2 * QUESTIONS_BURST)]
    assert all(answers[:QUESTIONS_BURST])
    assert not any(answers[QUESTIONS_BURST:])
    assert a.take(Y, Want((signing_key("p").node,)), 0.0) == []
    assert a.take(Y, empty, 10.0)
