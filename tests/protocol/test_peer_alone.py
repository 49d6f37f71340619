"""The composed peer by itself: whom it dials, what it says about itself, and its one timer."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import constants as c
from protocol.codec import encode_message
from protocol.effects import Dial, HeartbeatSigned, RecordLearnt, RunEngine, Send
from protocol.errors import LocalProtocolError
from protocol.events import (
    DEADLINE,
    Allow,
    BytesReceived,
    DialFailed,
    EngineStarted,
    LearnAddresses,
    LearnRecord,
    PeerDisconnected,
    SetOffer,
    Shutdown,
    StreamOpened,
)
from protocol.ids import RunId, StreamId
from protocol.messages import Find, Message, Records, Want
from protocol.peer import Peer, PeerConfig
from protocol.records import Availability, FreePolicy, Kind
from protocol.routing import Exclusion, RouteRequest
from tests.helpers_machines import (
    ADDRESS,
    ALONE,
    Bench,
    chat,
    hello_of,
    offer,
    provider_record,
    sealer_of,
)
from tests.helpers_puppets import order_for
from tests.helpers_records import OFFER, signing_key

A, B = signing_key("a").node, signing_key("b").node
FIND = Find(1, OFFER.name, Kind.CHAT, 0, None, None, 4)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def gossip_bench() -> tuple[Bench, StreamId]:
    """A bench that has greeted a gossiping neighbour A; and its gossip stream towards A."""
    bench = Bench()
    bench.connect(A, gossips=True)
    return bench, bench.stream_to(A, c.GOSSIP_PROTOCOL)


# ---------------------------------------------------------------- dialling


def test_a_wanted_peer_is_dialled_again_after_it_went_away(bench: Bench) -> None:
    bench.feed(LearnAddresses(A, (ADDRESS,), connect=True))
    assert bench.one(Dial) == Dial(A, (ADDRESS,))
    bench.connect(A)
    bench.feed(PeerDisconnected(A))
    bench.wait(1.5)
    assert bench.one(Dial) == Dial(A, (ADDRESS,))


def test_a_failed_dial_to_a_connected_peer_starts_no_dialling(bench: Bench) -> None:
    bench.feed(LearnAddresses(A, (ADDRESS,), connect=True))
    bench.connect(A, inbound=True)
    bench.feed(DialFailed(A, "refused"))
    bench.wait(400.0)
    assert bench.none_of(Dial)


def test_who_does_not_dial_looks_for_no_company() -> None:
    config = PeerConfig("test/1", dials=False)
    bench = Bench(config=config)
    bench.feed(LearnRecord(provider_record("p")))
    bench.wait(300.0)
    assert bench.none_of(Dial)


def test_a_lonely_peer_looks_for_company_among_those_it_has_heard_of() -> None:
    bench = Bench(config=PeerConfig("test/1"))
    bench.feed(LearnRecord(provider_record("p")))
    bench.wait(60.0)
    assert {dial.peer for dial in bench.all(Dial)} == {signing_key("p").node}


# ---------------------------------------------------------------- what it says about itself


def test_a_heartbeat_is_signed_every_thirty_seconds_and_spread_every_ten_minutes() -> None:
    bench, stream = gossip_bench()
    bench.provide()
    bench.said[stream].clear()
    signed = spread = 0
    for _ in range(40):
        bench.wait(c.HEARTBEAT_INTERVAL_S)
        signed += len(bench.all(HeartbeatSigned))
        spread += sum(isinstance(message, Records) for message in bench.said[stream])
        bench.said[stream].clear()
    assert signed == 40
    assert spread == 2


def test_a_peer_without_an_offer_says_nothing(bench: Bench) -> None:
    bench.wait(1000.0)
    assert bench.none_of(HeartbeatSigned)


def test_a_bad_offer_is_refused_and_changes_nothing(bench: Bench) -> None:
    bench.provide()
    with pytest.raises(LocalProtocolError):
        bench.provide(name="x" * 49, availability=Availability.DRAINING)
    bench.connect(A, inbound=True)
    stream = bench.accept_stream(A, c.JOB_PROTOCOL)
    bench.hear(stream, *order_for(bench, signing_key("a")).messages)
    assert bench.one(RunEngine)


def test_whom_the_owner_knows_is_served_and_others_are_not(bench: Bench) -> None:
    bench.provide(free_policy=FreePolicy.KNOWN)
    bench.feed(Allow(frozenset({A})))
    for key, runs in ((signing_key("a"), 1), (signing_key("b"), 0)):
        bench.connect(key.node, inbound=True)
        stream = bench.accept_stream(key.node, c.JOB_PROTOCOL)
        bench.hear(stream, *order_for(bench, key).messages)
        assert len(bench.all(RunEngine)) == runs


def test_a_shutdown_tells_the_neighbours() -> None:
    bench, stream = gossip_bench()
    bench.provide()
    bench.wait(c.RECORD_INTERVAL_S)
    bench.feed(Shutdown())
    (record,) = [m for m in bench.said[stream] if isinstance(m, Records)][-1].records
    other = Bench("other")
    other.feed(LearnRecord(record))
    assert other.one(RecordLearnt).heartbeat.availability is Availability.OFFLINE


def test_a_shutdown_of_a_peer_without_an_offer_is_quiet(bench: Bench) -> None:
    assert bench.feed(Shutdown()) == []


def test_explain_gives_a_reason_for_everybody(bench: Bench) -> None:
    bench.provide()
    bench.feed(LearnRecord(provider_record("p")), LearnRecord(provider_record("far", addresses=())))
    verdicts = bench.peer.explain(RouteRequest(OFFER.name, Kind.CHAT), bench.now())
    assert [verdict.node for verdict in verdicts if verdict.rank is not None] == [signing_key("p").node]
    assert {verdict.node: verdict.against for verdict in verdicts} == {
        bench.peer.node: Exclusion.OURSELVES,
        signing_key("p").node: None,
        signing_key("far").node: Exclusion.UNREACHABLE,
    }


# ---------------------------------------------------------------- the one timer


STEPS = st.lists(
    st.sampled_from(
        [
            "offer",
            "connect",
            "hello",
            "ask",
            "stop",
            "wait",
            "order",
            "engine",
            "lost",
            "dial failed",
            "learn",
            "gossip",
        ]
    ),
    max_size=25,
)


@given(STEPS, st.integers(0, 2**32))
def test_after_a_deadline_the_next_one_lies_ahead(steps: list[str], seed: int) -> None:
    """Otherwise a driver would spin. The bench asserts it at every step of `wait`."""
    rng = random.Random(seed)
    bench = Bench(config=PeerConfig("test/1"))
    nodes = [signing_key(name) for name in ("a", "b", "c")]
    for number, step in enumerate(steps, 1):
        key = rng.choice(nodes)
        if step == "offer":
            bench.provide()
        elif step == "connect":
            bench.connect(key.node, inbound=rng.random() < 0.5, greets=False)
        elif step == "hello":
            bench.hear(bench.accept_stream(key.node, c.HELLO_PROTOCOL), hello_of(gossips=True))
        elif step == "ask":
            bench.feed(chat(number, timeout_s=rng.choice([0.5, 5.0, 100.0])))
        elif step == "order":
            bench.hear(bench.accept_stream(key.node, c.JOB_PROTOCOL), *order_for(bench, key).messages[:1])
        elif step == "engine":
            bench.feed(EngineStarted(RunId(1), 3))
        elif step == "lost":
            bench.feed(PeerDisconnected(key.node))
        elif step == "dial failed":
            bench.feed(DialFailed(key.node, "refused"))
        elif step == "learn":
            bench.feed(LearnAddresses(key.node, (ADDRESS,), connect=True))
            bench.feed(LearnRecord(provider_record("a", sequence=number)))
        elif step == "gossip":
            bench.hear(bench.accept_stream(key.node, c.GOSSIP_PROTOCOL), Want((A,)))
        else:
            bench.wait(rng.choice([0.01, 1.0, 7.0, 40.0]))
    bench.wait(700.0)
    assert bench.peer.statistics().jobs_asked == 0


def test_an_early_deadline_does_nothing() -> None:
    bench = Bench()
    bench.provide()
    bench.connect(A, gossips=True)
    bench.feed(chat())
    before = bench.peer.next_deadline()
    assert bench.feed(DEADLINE) == []
    assert bench.peer.next_deadline() == before


def test_the_same_seed_and_events_give_the_same_bytes() -> None:
    def run() -> list[object]:
        bench = Bench()
        effects: list[object] = []
        effects += bench.feed(SetOffer(offer()), LearnRecord(provider_record("a")))
        effects += bench.connect(A, gossips=True)
        effects += bench.feed(chat())
        return effects + bench.wait(100.0)

    assert run() == run()
    assert any(isinstance(effect, Send) for effect in run())


def test_a_peer_is_named_by_its_key() -> None:
    key = signing_key("me")
    peer = Peer(ALONE, key, sealer_of("me"), random.Random(1), Bench().now())
    assert peer.node == key.node
    message: Message = FIND
    assert peer.handle(StreamOpened(StreamId(2), A, c.FIND_PROTOCOL), Bench().now()) == []
    assert peer.handle(BytesReceived(StreamId(2), encode_message(message)), Bench().now())
