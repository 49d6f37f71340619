"""Gossip as a whole: who is listened to, what may be brought, who is told of load and of interest."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import TypeVar

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import CONTROL_LIMITS, FrameReader, encode_record
from protocol.contacts import Contacts
from protocol.directory import FIRST_ID, LAST_ID, Directory, Entry, HeartbeatReader
from protocol.effects import Effect, FinishStream, Misbehaved, Note, OpenStream, RecordLearnt, Send
from protocol.errors import BadSignature, RemoteProtocolError
from protocol.gossip import (
    NEIGHBOURS_PER_MODEL,
    NEW_KEYS_BURST,
    NEW_KEYS_PER_S,
    RECORD_BYTES_MIN,
    REFUSED_BURST,
    SEARCH_S_MAX,
    SEARCH_S_MIN,
    UPDATES_BURST,
    Gossip,
    GossipConfig,
    Heartbeats,
)
from protocol.ids import NodeId, StreamId
from protocol.links import Budget, Outgoing, cost_bytes
from protocol.messages import (
    Digest,
    Find,
    Graft,
    Have,
    Interest,
    Leave,
    Load,
    Message,
    Neighbour,
    NeighbourAnswer,
    Prune,
    Records,
    Shuffle,
    Shuffled,
    Want,
)
from protocol.records import Availability, FreePolicy, Heartbeat, Kind, Role, Signed
from tests.helpers_machines import now, record_of
from tests.helpers_records import NOW_MS, OFFER, signing_key

MessageType = TypeVar("MessageType", bound=Message)
ME, X, Y, Z, P = (signing_key(name).node for name in ("me", "x", "y", "z", "p"))


class Bench:
    """One gossip machine; the test is everybody else. What is said is read back from the bytes."""

    def __init__(
        self,
        *,
        records_max: int = 1000,
        interval_s: float | None = c.GOSSIP_INTERVAL_S,
        reader: HeartbeatReader | None = None,
    ) -> None:
        self.directory = Directory(records_max, random.Random(1), reader)
        self.searched: list[str] = []
        self.at_s = 100.0
        self._streams = iter(range(1, 10_000, 2))
        rng = random.Random(1)
        self.gossip = Gossip(
            GossipConfig(interval_s),
            ME,
            self.directory,
            Contacts(self.directory, rng),
            rng,
            now(self.at_s),
            chosen_min=0,
            search=self._search,
            next_stream=lambda: StreamId(next(self._streams)),
        )
        self.effects: list[Effect] = []
        self.opened: dict[StreamId, NodeId] = {}
        self.said: defaultdict[NodeId, list[Message]] = defaultdict(list)

    def _search(self, model: str) -> list[Effect]:
        self.searched.append(model)
        return []

    def follow(self, effects: Iterable[Effect]) -> list[Effect]:
        self.effects = list(effects)
        for effect in self.effects:
            if isinstance(effect, OpenStream):
                self.opened[effect.stream] = effect.peer
            elif isinstance(effect, Send):
                self.said[self.opened[effect.stream]] += FrameReader(CONTROL_LIMITS).feed(effect.data)
        return self.effects

    def connect(self, node: NodeId, network: int = 1, *, speaks: bool = True) -> None:
        self.gossip.on_connected(node, f"/ip4/20.{network}.0.1/tcp/5")
        self.follow(self.gossip.on_greeted(node, speaks, now(self.at_s)))

    def join(self, *nodes: NodeId, scope: frozenset[str] | None = None) -> None:
        """Neighbours that want to hear of this."""
        for number, node in enumerate(nodes):
            self.connect(node, number)
            self.hear(node, Interest(1, ()) if scope is None else Interest(0, tuple(scope)), Neighbour(0))
            self.said[node].clear()

    def hear(self, node: NodeId, *messages: Message) -> list[Effect]:
        effects: list[Effect] = []
        for message in messages:
            effects += self.follow(self.gossip.on_message(node, message, now(self.at_s)))
        return effects

    def wait(self, seconds: float) -> None:
        end_s = self.at_s + seconds
        effects: list[Effect] = []
        while (deadline := self.gossip.next_deadline()) is not None and deadline <= end_s:
            self.at_s = deadline
            effects += self.follow(self.gossip.on_deadline(now(deadline)))
            following = self.gossip.next_deadline()
            assert following is None or following > deadline
        self.at_s = end_s
        self.effects = effects

    def offer(self, *models: str, **changes: int) -> None:
        """We serve these models, and our record says so."""
        offers = tuple(replace(OFFER, name=model) for model in models)
        self.directory.add(record_of("me", models=offers, **changes), NOW_MS)
        self.gossip.serve(models)

    def heard(self, node: NodeId, cls: type[MessageType]) -> list[MessageType]:
        return [message for message in self.said[node] if isinstance(message, cls)]

    def learnt(self) -> list[NodeId]:
        return [effect.heartbeat.node for effect in self.effects if isinstance(effect, RecordLearnt)]


def serving(name: str, model: str, **changes: int) -> Signed:
    return record_of(name, models=(replace(OFFER, name=model),), **changes)


# ---------------------------------------------------------------- who is listened to


def test_what_we_want_to_hear_is_said_first_on_every_stream() -> None:
    bench = Bench()
    bench.connect(X)
    bench.hear(X, Neighbour(0))
    assert bench.said[X][:2] == [Interest(1, ()), NeighbourAnswer(1, ())]
    assert len(bench.opened) == 1
    bench.gossip.on_stream_lost(StreamId(1), X, inbound=False)
    assert bench.follow(bench.gossip.on_streams_lost(now(bench.at_s))) == []
    assert bench.gossip.neighbours == ()
    bench.said[X].clear()
    bench.hear(X, Neighbour(0))
    assert bench.said[X][:2] == [Interest(1, ()), NeighbourAnswer(1, ())]


@pytest.mark.parametrize(
    "message",
    [
        Records((record_of("p"),)),
        Have(((P, 9),)),
        Graft((P,)),
        Prune(),
        Digest(FIRST_ID, LAST_ID, ()),
        Want((P,)),
        Load(8, 10),
        Shuffle((record_of("p"),)),
        Shuffled((record_of("p"),)),
        Leave(),
    ],
)
def test_who_is_no_neighbour_is_not_listened_to_and_not_blamed(message: Message) -> None:
    bench = Bench()
    bench.directory.add(record_of("y"), NOW_MS)
    bench.connect(X)
    assert bench.hear(X, message) == []
    bench.join(X)
    bench.hear(X, Leave())
    assert bench.hear(X, message) == []
    assert len(bench.directory) == 1


def test_what_is_no_gossip_message_is_an_error() -> None:
    bench = Bench()
    bench.join(X)
    with pytest.raises(RemoteProtocolError):
        bench.hear(X, Find(1, None, Kind.CHAT, 0, None, None, 1))


def test_who_leaves_gossip_out_says_nothing() -> None:
    bench = Bench(interval_s=None)
    bench.connect(X)
    bench.offer("a")
    assert bench.follow(bench.gossip.spread_own(now(bench.at_s))) == []
    assert bench.follow(bench.gossip.set_load(3, 0, now(bench.at_s))) == []
    assert bench.gossip.on_candidate(P, now(bench.at_s)) == []
    bench.wait(1000.0)
    assert bench.gossip.next_deadline() is None
    assert bench.said == {}


def test_a_record_that_came_otherwise_is_learnt_and_passed_on() -> None:
    bench = Bench()
    bench.join(X, Y)
    bench.follow(bench.gossip.learn(record_of("p"), now(bench.at_s), X))
    assert bench.learnt() == [P]
    assert bench.heard(Y, Records) == [Records((record_of("p"),))]
    assert bench.heard(X, Records) == []
    assert bench.follow(bench.gossip.learn(record_of("p"), now(bench.at_s), None)) == []


def test_to_whom_there_is_nothing_more_to_say_no_stream_stays_open() -> None:
    """So that a connection that nobody needs is idle."""
    bench = Bench()
    bench.join(X)
    assert bench.hear(X, Leave()) == [FinishStream(StreamId(1))]
    bench.connect(Y)
    bench.follow(bench.gossip.deliver([Outgoing(Y, Load(1, 1))], now(bench.at_s)))
    assert [type(effect) for effect in bench.effects] == [OpenStream, Send, Send, FinishStream]
    bench.hear(X, Neighbour(0))
    assert bench.gossip.neighbours == (X,)
    bench.gossip.on_stream_lost(StreamId(1), X, inbound=False)
    bench.follow(bench.gossip.on_streams_lost(now(bench.at_s)))
    assert bench.gossip.neighbours == (X,), "that was the stream of the time before"


# ---------------------------------------------------------------- what is checked


def test_one_forged_record_spoils_the_message_and_hides_nothing() -> None:
    bench = Bench()
    bench.join(X, Y)
    with pytest.raises(BadSignature):
        bench.hear(X, Records((record_of("p"), Signed(record_of("q").body, bytes(64)))))
    assert bench.said[Y] == []
    bench.hear(Y, Records((record_of("p"),)))
    assert bench.learnt() == [P]
    assert bench.heard(X, Records) == [Records((record_of("p"),))]


@pytest.mark.parametrize("kind", [Shuffle, NeighbourAnswer])
def test_records_in_other_messages_are_checked_too(kind: type[Message]) -> None:
    bench = Bench()
    bench.join(X)
    forged = (Signed(record_of("q").body, bytes(64)),)
    with pytest.raises(BadSignature):
        bench.hear(X, Shuffle(forged) if kind is Shuffle else NeighbourAnswer(0, forged))
    good = (record_of("q"),)
    bench.hear(X, Shuffle(good) if kind is Shuffle else NeighbourAnswer(0, good))
    assert bench.directory.get(signing_key("q").node) is not None


def test_expired_records_are_skipped_with_one_note() -> None:
    bench = Bench()
    bench.join(X, Y)
    stale = tuple(record_of(f"node {n}", expires_at_ms=NOW_MS) for n in range(10))
    effects = bench.hear(X, Records((*stale, record_of("p"))))
    assert len([effect for effect in effects if isinstance(effect, Note)]) == 1
    assert bench.heard(Y, Records) == [Records((record_of("p"),))]


# ---------------------------------------------------------------- what may be brought


def numbered(count: int, prefix: str = "n") -> list[Signed]:
    return [record_of(f"{prefix} {number}") for number in range(count)]


def test_one_network_brings_only_so_many_new_keys_whatever_the_number_of_its_nodes() -> None:
    bench = Bench(records_max=10_000)
    for node in (X, Y):
        bench.connect(node, network=7)
        bench.hear(node, Interest(0, ()), Neighbour(0))
    bench.connect(Z, network=8)
    bench.hear(Z, Interest(0, ()), Neighbour(0))
    flood = numbered(NEW_KEYS_BURST + 128)
    for at in range(0, len(flood), 64):
        bench.hear(X if at % 128 else Y, Records(tuple(flood[at : at + 64])))
    assert len(bench.directory) == NEW_KEYS_BURST
    bench.hear(Z, Records((record_of("honest"),)))
    assert bench.learnt() == [signing_key("honest").node]
    bench.hear(X, Records((record_of("n 0", sequence=8),)))
    assert bench.learnt() == [signing_key("n 0").node], "what is known is renewed all the same"


def test_a_neighbours_own_record_is_always_taken() -> None:
    bench = Bench(records_max=10_000)
    bench.join(X)
    flood = numbered(NEW_KEYS_BURST)
    for at in range(0, len(flood), 64):
        bench.hear(X, Records(tuple(flood[at : at + 64])))
    bench.hear(X, Records((record_of("x"),)))
    assert bench.learnt() == [X]


def test_a_key_that_signs_all_the_time_costs_few_checks_and_whoever_brings_it_is_blamed_at_last() -> None:
    bench = Bench()
    bench.join(X)
    taken = blamed = 0
    for sequence in range(UPDATES_BURST + REFUSED_BURST + 50):
        effects = bench.hear(X, Records((record_of("p", sequence=sequence),)))
        taken += sum(isinstance(effect, RecordLearnt) for effect in effects)
        blamed += sum(isinstance(effect, Misbehaved) for effect in effects)
    assert taken == 1 + UPDATES_BURST
    assert 0 < blamed < 50


def test_an_honest_neighbour_that_brings_changes_twice_as_fast_is_not_blamed() -> None:
    bench = Bench()
    bench.join(X)
    for sequence in range(200):
        effects = bench.hear(X, Records((record_of("p", sequence=sequence),)))
        assert not any(isinstance(effect, Misbehaved) for effect in effects)
        bench.wait(0.5 * c.RECORD_INTERVAL_S)


def test_a_neighbour_is_not_blamed_for_a_flood_that_it_passes_on() -> None:
    """What it was brought by many networks is more than one network may bring us; its budget for us bounds it."""
    bench = Bench(records_max=10_000, reader=Unchecked())
    bench.join(X)
    budget, keys = Budget(bench.at_s), iter(range(1, 100_000))
    for _ in range(100):
        records = []
        while budget.take(cost_bytes(record := smallest(next(keys))), bench.at_s):
            records.append(record)
        for message in Heartbeats(bench.directory).pack(records):
            assert not any(isinstance(effect, Misbehaved) for effect in bench.hear(X, message))
        bench.wait(0.2)
    assert next(keys) > 2 * NEW_KEYS_BURST
    assert len(bench.directory) < NEW_KEYS_BURST + 25 * NEW_KEYS_PER_S


def smallest(number: int) -> Signed:
    """A heartbeat that says as little as one can; nobody has signed it."""
    beat = Heartbeat(
        *(1, NodeId(number.to_bytes(32, "big")), 1, NOW_MS, NOW_MS + 600_000, Role.CLIENT, Availability.AVAILABLE),
        *("", "", (), (), (), 0, FreePolicy.NOBODY, None, 0, (), (), ()),
    )
    return Signed(encode_record(beat), bytes(64))


class Unchecked(HeartbeatReader):
    """Takes every signature, which nobody could make so fast here."""

    def verify(self, entry: Entry) -> None:
        """It is good."""


def test_no_record_is_smaller_than_the_smallest() -> None:
    assert cost_bytes(smallest(1)) >= RECORD_BYTES_MIN


def test_in_a_full_directory_the_near_and_the_interesting_stay() -> None:
    bench = Bench(records_max=20)
    bench.offer("red")
    bench.join(X)
    bench.directory.add(record_of("x"), NOW_MS)
    bench.directory.add(serving("useful", "blue"), NOW_MS)
    bench.directory.mark_useful(signing_key("useful").node)
    for number in range(16):
        bench.directory.add(serving(f"stranger {number}", "blue"), NOW_MS)
    bench.directory.add(serving("red", "red"), NOW_MS)
    bench.wait(60.0)
    for number in range(200):
        bench.hear(X, Records((serving(f"flood {number}", "blue"),)))
    kept = {entry.heartbeat.node for entry in bench.directory.entries()}
    assert {ME, X, signing_key("useful").node, signing_key("red").node} <= kept
    assert len(kept) == 20


# ---------------------------------------------------------------- interest


def test_neighbours_hear_when_our_interest_changes() -> None:
    bench = Bench(records_max=8)
    bench.offer("red")
    bench.join(X)
    for number in range(7):
        bench.directory.add(record_of(str(number)), NOW_MS)
    bench.gossip.ask("green", now(bench.at_s))
    bench.wait(60.0)
    assert bench.heard(X, Interest) == [Interest(0, ("green", "red"))]
    bench.wait(600.0)
    assert len(bench.heard(X, Interest)) == 1


def test_a_neighbour_with_a_narrow_interest_is_not_bothered_with_the_rest() -> None:
    bench = Bench()
    bench.join(X, Y, scope=frozenset({"red"}))
    bench.hear(Y, Interest(1, ()))
    bench.hear(Z, Interest(1, ()))
    bench.follow(bench.gossip.learn(serving("p", "blue"), now(bench.at_s), None))
    bench.wait(1.0)
    bench.follow(bench.gossip.learn(serving("q", "red"), now(bench.at_s), None))
    assert bench.heard(X, Records) == [Records((serving("q", "red"),))]
    assert len(bench.heard(Y, Records)) == 2


def test_who_serves_a_model_no_more_is_told_to_those_who_wanted_it() -> None:
    bench = Bench()
    bench.join(X, scope=frozenset({"red"}))
    bench.follow(bench.gossip.learn(serving("p", "red", sequence=1), now(bench.at_s), None))
    bench.wait(10.0)
    bench.follow(bench.gossip.learn(serving("p", "blue", sequence=2), now(bench.at_s), None))
    bench.wait(10.0)
    bench.follow(bench.gossip.learn(serving("p", "blue", sequence=3), now(bench.at_s), None))
    assert [r for m in bench.heard(X, Records) for r in m.records] == [
        serving("p", "red", sequence=1),
        serving("p", "blue", sequence=2),
    ]


def test_providers_of_a_model_of_interest_are_searched_for_ever_more_seldom() -> None:
    bench = Bench()
    bench.join(X)
    bench.gossip.ask("red", now(bench.at_s))
    bench.wait(4000.0)
    assert set(bench.searched) == {"red"}
    few = 3 + 4000.0 / SEARCH_S_MAX
    assert 2 < len(bench.searched) < 2 * few
    for number in range(NEIGHBOURS_PER_MODEL):
        bench.directory.add(serving(str(number), "red"), NOW_MS)
    bench.searched.clear()
    bench.wait(4000.0)
    assert bench.searched == []
    assert SEARCH_S_MIN < SEARCH_S_MAX


# ---------------------------------------------------------------- load


def test_load_goes_on_change_once_a_second_to_those_who_are_interested() -> None:
    bench = Bench()
    bench.offer("red")
    bench.join(X)
    bench.join(Y, scope=frozenset({"red"}))
    bench.join(Z, scope=frozenset({"blue"}))
    for step in range(40):
        bench.follow(bench.gossip.set_load(step % 8, 100 * step, now(bench.at_s)))
        bench.wait(0.1)
    bench.wait(5.0)
    told = [load.load for load in bench.heard(X, Load)]
    assert (len(told), told[0], told[-1]) == (5, 0, 7)
    assert bench.heard(Y, Load) == bench.heard(X, Load)
    assert bench.heard(Z, Load) == []
    bench.follow(bench.gossip.set_load(7, 3900, now(bench.at_s)))
    bench.wait(5.0)
    assert len(bench.heard(X, Load)) == 5, "nothing has changed"


def test_a_new_neighbour_hears_the_load_at_once() -> None:
    bench = Bench()
    bench.offer("red")
    bench.follow(bench.gossip.set_load(5, 250, now(bench.at_s)))
    bench.connect(X)
    bench.hear(X, Interest(1, ()), Neighbour(0))
    assert bench.heard(X, Load) == [Load(5, 250)]


def test_who_serves_nothing_has_no_load() -> None:
    bench = Bench()
    bench.offer()
    bench.join(X)
    bench.follow(bench.gossip.set_load(5, 250, now(bench.at_s)))
    assert bench.heard(X, Load) == []


def test_the_load_of_a_neighbour_is_known_until_it_leaves() -> None:
    bench = Bench()
    bench.directory.add(record_of("x", load=2), NOW_MS)
    bench.join(X)
    bench.hear(X, Load(7, 900))
    assert bench.directory.load_of(X) == (7, 900)
    bench.hear(X, Leave())
    assert bench.directory.load_of(X) == (2, 0)


# ---------------------------------------------------------------- others' messages


def test_messages_of_others_go_to_those_who_speak_gossip() -> None:
    bench = Bench()
    bench.connect(X)
    bench.connect(Y, speaks=False)
    message = Load(1, 1)
    bench.follow(bench.gossip.deliver([Outgoing(node, message) for node in (X, Y, Z)], now(bench.at_s)))
    assert bench.said == {X: [Interest(1, ()), message]}


def test_what_goes_to_many_is_encoded_once() -> None:
    bench = Bench()
    bench.join(X, Y)
    effects = bench.follow(bench.gossip.learn(record_of("p"), now(bench.at_s), None))
    first, second = [effect.data for effect in effects if isinstance(effect, Send)]
    assert first is second
