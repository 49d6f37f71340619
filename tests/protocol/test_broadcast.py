"""The tree: news goes out at once on some links, is announced on others, and holes are asked for."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable

import pytest

from protocol import constants as c
from protocol.broadcast import (
    ANNOUNCERS_MAX,
    ANSWER_S,
    FLUSH_S,
    GRAFT_RETRY_S,
    GRAFT_S,
    HAVE_S,
    HEARD_MIN,
    PROMISES_MAX,
    WINDOW_S,
    Broadcast,
)
from protocol.codec import decode_record
from protocol.directory import Directory
from protocol.gossip import Heartbeats
from protocol.ids import NodeId
from protocol.links import BURST_BYTES, BYTES_PER_S, PATIENCE, Budget, Link, Outgoing, cost_bytes
from protocol.messages import Graft, Have, Message, Prune, Records
from protocol.records import Heartbeat, Signed
from tests.helpers_machines import now, record_of
from tests.helpers_records import NOW_MS, OFFER, signing_key

X, Y, Z, P, Q = (signing_key(name).node for name in "xyzpq")


class Tree:
    """A broadcast over a directory, with neighbours that want everything unless told otherwise."""

    def __init__(self, *neighbours: NodeId, scope: frozenset[str] | None = None) -> None:
        self.directory = Directory()
        self.kind = Heartbeats(self.directory)
        self.links = {node: Link(scope, Budget(0.0)) for node in neighbours}
        self.broadcast = Broadcast(self.links, self.kind, random.Random(1))

    def news(self, *records: Signed, source: NodeId | None = None, at_s: float = 0.0) -> list[Outgoing]:
        """These records arrive, from a neighbour or by ourselves."""
        entries, _ = self.directory.add_all(records, NOW_MS)
        nodes = [entry.heartbeat.node for entry in entries]
        if source is None:
            return self.broadcast.spread(self.kind, nodes, now(at_s), source=None)
        repeated = [node for r in records if (node := self.directory.signer_of(r.body)) and node not in nodes]
        return self.broadcast.on_records(source, self.kind, nodes, repeated, now(at_s))

    def wait(self, until_s: float) -> list[tuple[float, Outgoing]]:
        """What goes out up to this instant, and when."""
        said = []
        while (deadline := self.broadcast.next_deadline()) is not None and deadline <= until_s:
            said += [(deadline, out) for out in self.broadcast.on_deadline(now(deadline))]
            following = self.broadcast.next_deadline()
            assert following is None or following > deadline
        return said


def by_neighbour(outgoing: Iterable[Outgoing]) -> dict[NodeId, list[Message]]:
    said: defaultdict[NodeId, list[Message]] = defaultdict(list)
    for out in outgoing:
        said[out.neighbour].append(out.message)
    return dict(said)


def sequences(messages: Iterable[tuple[float, Outgoing]]) -> list[tuple[float, int]]:
    return [
        (at_s, decode_record(record.body, Heartbeat).sequence)
        for at_s, out in messages
        if isinstance(out.message, Records)
        for record in out.message.records
    ]


# ---------------------------------------------------------------- news


def test_news_goes_at_once_to_everyone_but_its_source_and_its_subject() -> None:
    tree = Tree(X, Y, Z, P)
    outgoing = tree.news(record_of("p"), source=X)
    assert by_neighbour(outgoing) == {Y: [Records((record_of("p"),))], Z: [Records((record_of("p"),))]}


def test_the_same_news_for_many_is_one_message() -> None:
    first, second = Tree(X, Y).news(record_of("p"))
    assert first.message is second.message


def test_news_shortly_after_other_news_travels_together() -> None:
    tree = Tree(X)
    assert len(tree.news(record_of("p"))) == 1
    assert tree.news(record_of("q"), at_s=0.01) == []
    assert tree.news(record_of("z"), at_s=0.02) == []
    ((at_s, out),) = tree.wait(1.0)
    assert at_s == FLUSH_S
    assert out == Outgoing(X, Records((record_of("q"), record_of("z"))))


def test_a_record_goes_only_to_those_whom_it_concerns() -> None:
    tree = Tree(X, Y, Z)
    tree.links[X].scope = frozenset({OFFER.name})
    tree.links[Y].scope = frozenset({"another model"})
    assert set(by_neighbour(tree.news(record_of("p")))) == {X, Z}


def test_who_said_that_it_has_the_news_is_not_sent_them() -> None:
    tree = Tree(X, Y, Z)
    tree.broadcast.on_have(Y, Have(((P, 7),)), now())
    assert set(by_neighbour(tree.news(record_of("p", sequence=7), source=X))) == {Z}
    assert tree.broadcast.next_deadline() is None, "nothing is asked for that is here"


def test_who_said_that_it_has_older_news_is_sent_these() -> None:
    tree = Tree(X, Y)
    tree.broadcast.on_have(Y, Have(((P, 6),)), now())
    assert set(by_neighbour(tree.news(record_of("p", sequence=7), source=X))) == {Y}


# ---------------------------------------------------------------- what changes all the time


def test_a_node_that_changes_all_the_time_goes_out_once_in_five_seconds_and_then_as_it_is() -> None:
    tree = Tree(X, Y)
    said: list[tuple[float, Outgoing]] = []
    for step in range(100):
        at_s = step * 0.25
        said += tree.wait(at_s)
        said += [(at_s, out) for out in tree.news(record_of("p", sequence=step + 1), source=X, at_s=at_s)]
    said += tree.wait(100.0)
    # At 5 s the change of that very instant comes a moment too late for its turn.
    assert sequences(said) == [(0.0, 1), (5.0, 20), (10.0, 40), (15.0, 60), (20.0, 80), (25.0, 100)]


def test_a_second_change_is_not_lost_when_nothing_follows() -> None:
    tree = Tree(X)
    tree.news(record_of("p", sequence=1))
    assert tree.news(record_of("p", sequence=2), at_s=1.0) == []
    assert sequences(tree.wait(60.0)) == [(c.RECORD_INTERVAL_S, 2)]


def test_a_held_change_does_not_go_back_to_whom_it_came_from() -> None:
    tree = Tree(X, Y)
    tree.news(record_of("p", sequence=1))
    tree.news(record_of("p", sequence=2), source=X, at_s=1.0)
    assert [out.neighbour for _, out in tree.wait(60.0)] == [Y]


def test_last_words_wait_for_nothing() -> None:
    tree = Tree(X)
    tree.news(record_of("p", sequence=1))
    tree.directory.add(record_of("p", sequence=2), NOW_MS)
    (out,) = tree.broadcast.spread(tree.kind, [P], now(0.1), source=None, at_once=True)
    assert out.message == Records((record_of("p", sequence=2),))
    assert tree.wait(60.0) == []


def test_what_was_pushed_is_forgotten_in_time() -> None:
    tree = Tree(X)
    for number in range(200):
        tree.news(record_of(str(number)), at_s=float(number))
    assert len(tree.broadcast._pushed_s) + len(tree.broadcast._pushed_before_s) <= 2 * c.RECORD_INTERVAL_S + 1


# ---------------------------------------------------------------- the tree


def repeat(tree: Tree, source: NodeId, name: str, at_s: float) -> list[Outgoing]:
    """A neighbour brings what we have."""
    tree.directory.add(record_of(name), NOW_MS)
    return tree.news(record_of(name), source=source, at_s=at_s)


def pruned(*neighbours: NodeId) -> Tree:
    """A tree whose first neighbour is only told."""
    tree = Tree(*neighbours)
    said = [out for number in range(PATIENCE) for out in repeat(tree, neighbours[0], f"known {number}", 10.0 + number)]
    assert said[-1] == Outgoing(neighbours[0], Prune())
    assert not tree.links[neighbours[0]].is_eager
    return tree


def test_who_only_repeats_what_we_know_is_pruned() -> None:
    tree = pruned(X, Y)
    assert [out.message for out in repeat(tree, X, "known again", 20.0)] == []
    assert tree.links[Y].is_eager


def test_who_also_brings_news_is_not_pruned() -> None:
    tree = Tree(X, Y)
    for number in range(10):
        repeat(tree, X, f"known {number}", 10.0 * number)
        tree.news(record_of(f"new {number}"), source=X, at_s=10.0 * number + 1.0)
    assert tree.links[X].is_eager


def test_an_answer_to_our_own_question_is_no_reason_to_prune() -> None:
    tree = Tree(X)
    tree.broadcast.expects_answers(X, now(10.0))
    for number in range(10):
        assert repeat(tree, X, f"known {number}", 10.0 + number * 0.1) == []
    assert [repeat(tree, X, f"late {number}", 10.0 + ANSWER_S + number) for number in range(PATIENCE)][-1]


def test_a_pruned_neighbour_is_told_in_batches() -> None:
    tree = pruned(X, Y)
    for number in range(3):
        assert set(by_neighbour(tree.news(record_of(f"new {number}"), source=Y, at_s=20.0 + 0.3 * number))) <= {Y}
    ((at_s, out),) = tree.wait(60.0)
    assert 20.0 + 0.5 * HAVE_S <= at_s <= 20.0 + 1.5 * HAVE_S
    assert out == Outgoing(X, Have(tuple((signing_key(f"new {number}").node, 7) for number in range(3))))


def test_a_neighbour_that_has_told_us_is_not_told_and_it_counts_in_its_favour() -> None:
    tree = pruned(X, Y)
    tree.news(record_of("p"), source=Y, at_s=20.0)
    tree.broadcast.on_have(X, Have(((P, 7),)), now(20.1))
    assert tree.wait(60.0) == []
    assert tree.links[X].told + tree.links[X].told_before == 1


def test_a_prune_from_the_other_side_turns_what_waits_into_an_announcement() -> None:
    tree = Tree(X)
    tree.news(record_of("p"))
    tree.news(record_of("q"), at_s=0.1)
    tree.broadcast.on_prune(X, now(0.1))
    ((_, out),) = tree.wait(60.0)
    assert out == Outgoing(X, Have(((Q, 7),)))


def test_what_does_not_come_is_asked_for_and_the_link_is_part_of_the_tree_again() -> None:
    tree = pruned(X, Y)
    tree.broadcast.on_have(X, Have(((P, 7),)), now(20.0))
    ((at_s, out),) = tree.wait(21.5)
    assert at_s == 20.0 + GRAFT_S
    assert out == Outgoing(X, Graft((P,)))
    assert tree.links[X].is_eager
    tree.news(record_of("p"), source=X, at_s=21.5)
    assert not [message for _, message in tree.wait(60.0) if isinstance(message.message, Graft)]


def test_what_came_by_itself_is_not_asked_for() -> None:
    tree = pruned(X, Y)
    tree.broadcast.on_have(X, Have(((P, 7),)), now(20.0))
    tree.news(record_of("p"), source=Y, at_s=20.5)
    assert tree.wait(60.0) == []
    assert not tree.links[X].is_eager


def test_what_is_announced_while_something_older_is_awaited_is_asked_for() -> None:
    tree = pruned(X, Y)
    tree.broadcast.on_have(X, Have(((P, 7),)), now(20.0))
    tree.broadcast.on_have(X, Have(((P, 8),)), now(20.1))
    tree.news(record_of("p"), source=Y, at_s=20.5)
    asked = [out for _, out in tree.wait(60.0) if isinstance(out.message, Graft)]
    assert asked == [Outgoing(X, Graft((P,)))]


def test_when_one_does_not_answer_the_next_is_asked_and_then_nobody() -> None:
    tree = Tree(X, Y, Z)
    for at_s, node in ((20.0, X), (20.1, Y), (20.2, Z), (20.3, X)):
        tree.broadcast.on_have(node, Have(((P, 7),)), now(at_s))
    asked = [(at_s, out.neighbour) for at_s, out in tree.wait(60.0)]
    assert asked == [(21.0, X), (21.0 + GRAFT_RETRY_S, Y), (21.0 + 2 * GRAFT_RETRY_S, Z)]
    assert all(link.promised == 0 for link in tree.links.values())
    assert not tree.broadcast._missing


def test_many_holes_are_one_question() -> None:
    tree = Tree(X)
    nodes = tuple(signing_key(str(number)).node for number in range(100))
    for at in (0, 50):
        tree.broadcast.on_have(X, Have(tuple((node, 1) for node in nodes[at : at + 50])), now(20.0))
    grafts = [out.message for _, out in tree.wait(21.0)]
    assert all(isinstance(graft, Graft) for graft in grafts)
    assert [len(graft.nodes) for graft in grafts if isinstance(graft, Graft)] == [64, 36]


def test_a_link_that_was_cut_too_early_is_cut_later_the_next_time() -> None:
    tree = pruned(X, Y)
    tree.broadcast.on_have(X, Have(((P, 7),)), now(20.0))
    tree.wait(21.0)
    said = [repeat(tree, X, f"again {number}", 30.0 + number) for number in range(2 * PATIENCE)]
    assert said[:-1] == [[]] * (2 * PATIENCE - 1)
    assert said[-1] == [Outgoing(X, Prune())]


def test_a_graft_is_answered_with_what_is_held_and_makes_the_link_eager() -> None:
    tree = pruned(X, Y)
    tree.directory.add(record_of("p"), NOW_MS)
    assert tree.broadcast.on_graft(X, Graft((P, Q)), now(20.0)) == [Outgoing(X, Records((record_of("p"),)))]
    assert set(by_neighbour(tree.news(record_of("q"), source=Y, at_s=30.0))) == {X}


def test_what_is_asked_for_and_not_held_is_not_kept() -> None:
    """Nothing leaves while the budget is used up, so all that was asked for would be held here."""
    tree = Tree(X)
    tree.directory.add(record_of("p"), NOW_MS)
    tree.links[X].budget = Budget(0.0, per_s=0.001, burst_bytes=1)
    for number in range(20):
        invented = tuple(NodeId(bytes((number, each)) * 16) for each in range(64))
        assert tree.broadcast.on_graft(X, Graft((P, *invented[1:])), now()) == []
    assert list(tree.links[X].pushes) == [(tree.kind, P)]


def test_promises_of_one_neighbour_are_bounded() -> None:
    """Whoever announces what does not exist cannot fill our memory, nor keep others from being heard."""
    tree = Tree(X, Y)
    for number in range(0, 4 * PROMISES_MAX, 64):
        entries = tuple((signing_key(str(number + each)).node, 1) for each in range(64))
        tree.broadcast.on_have(X, Have(entries), now())
    assert tree.links[X].promised == PROMISES_MAX
    assert len(tree.broadcast._missing) == PROMISES_MAX
    tree.broadcast.on_have(Y, Have(((P, 7),)), now())
    assert len(tree.broadcast._missing) == PROMISES_MAX + 1


def test_only_so_many_announcers_are_remembered() -> None:
    nodes = [signing_key(f"n{number}").node for number in range(8)]
    tree = Tree(*nodes)
    for node in nodes:
        tree.broadcast.on_have(node, Have(((P, 7),)), now())
    assert len(tree.broadcast._missing[P].announcers) == ANNOUNCERS_MAX


def test_a_neighbour_that_left_is_not_asked() -> None:
    tree = Tree(X, Y)
    tree.broadcast.on_have(X, Have(((P, 7), (Q, 7))), now(20.0))
    tree.broadcast.on_have(Y, Have(((P, 7),)), now(20.0))
    del tree.links[X]
    tree.broadcast.on_left(X)
    assert [out for _, out in tree.wait(60.0)] == [Outgoing(Y, Graft((P,)))]


# ---------------------------------------------------------------- who tells nothing


def test_who_told_nothing_for_two_windows_while_others_told_much_is_mute() -> None:
    tree = Tree(X, Y)
    for node in (X, Y):
        tree.broadcast.on_joined(node, now())
    for number in range(HEARD_MIN):
        assert not tree.broadcast.is_mute(X)
        tree.news(record_of(f"new {number}"), source=Y, at_s=1.0 + number)
    assert tree.broadcast.is_mute(X)
    assert not tree.broadcast.is_mute(Y)
    tree.news(record_of("p"), source=X, at_s=20.0)
    assert not tree.broadcast.is_mute(X)
    for window in range(1, 5):
        tree.broadcast.on_deadline(now(20.0 + window * WINDOW_S))
    assert not tree.broadcast.is_mute(X)
    assert not tree.broadcast.is_mute(Y), "nobody told anything for a while"
    tree.news(*[record_of(f"late {number}") for number in range(HEARD_MIN)], source=Y, at_s=20.0 + 5 * WINDOW_S)
    assert tree.broadcast.is_mute(X)
    assert not tree.broadcast.is_mute(Y)


def test_who_has_only_come_is_not_mute() -> None:
    tree = Tree(X, Y)
    for number in range(2 * HEARD_MIN):
        tree.news(record_of(f"new {number}"), source=Y, at_s=float(number))
    tree.links[Z] = Link(None, Budget(50.0))
    tree.broadcast.on_joined(Z, now(50.0))
    assert not tree.broadcast.is_mute(Z)


# ---------------------------------------------------------------- what it may cost


def test_a_neighbour_draws_no_more_than_its_budget_and_gets_the_rest_later() -> None:
    tree = Tree(X)
    records = [record_of(f"n {n}", addresses=tuple("/" + "a" * 255 for _ in range(8))) for n in range(300)]
    entries, _ = tree.directory.add_all(records, NOW_MS)
    nodes = [entry.heartbeat.node for entry in entries]
    total = sum(cost_bytes(record) for record in records)
    assert total > 2 * BURST_BYTES

    def sent(outgoing: Iterable[Outgoing]) -> int:
        return sum(cost_bytes(r) for out in outgoing if isinstance(out.message, Records) for r in out.message.records)

    first = sent(tree.broadcast.queue(X, tree.kind, nodes, now()))
    assert first <= BURST_BYTES
    said = tree.wait(1000.0)
    assert first + sent(out for _, out in said) == total
    took_s = (total - BURST_BYTES) / BYTES_PER_S
    assert took_s * 0.9 <= said[-1][0] <= took_s + 1.0


def test_what_is_sent_at_once_stops_where_the_budget_ends() -> None:
    tree = Tree(X)
    records = [record_of(f"n {n}") for n in range(50)]
    tree.directory.add_all(records, NOW_MS)
    nodes = [signing_key(f"n {n}").node for n in range(50)]
    tree.links[X].budget = Budget(0.0, per_s=0.001, burst_bytes=10 * cost_bytes(records[0]) + 10)
    (out,) = tree.broadcast.send(X, tree.kind, nodes, now())
    assert isinstance(out.message, Records)
    assert len(out.message.records) == 10
    assert tree.broadcast.send(X, tree.kind, nodes[10:], now()) == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_without_news_there_is_no_deadline(count: int) -> None:
    tree = Tree(*(X, Y, Z)[:count])
    assert tree.broadcast.next_deadline() is None
    assert tree.broadcast.spread(tree.kind, [P], now(), source=None) == []
    assert tree.wait(10.0) == []
