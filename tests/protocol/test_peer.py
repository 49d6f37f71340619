"""The composed peer: streams and their limits, greetings, bad bytes, beats, shutdown, and the one timer."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import FinishStream, Note, OpenStream, RecordLearnt, ResetStream, Send
from protocol.events import LearnRecord, OutboxFull, PeerConnected, PeerDisconnected, StreamBroken
from protocol.greeting import GREETING_DELAY_S
from protocol.ids import StreamId
from protocol.messages import Digest, Find, Found, Hello, Interest, NeighbourAnswer, Records
from protocol.records import Kind
from tests.helpers_machines import (
    ADDRESS,
    Bench,
    chat,
    hello_of,
    provider_record,
    record_of,
)
from tests.helpers_records import NOW_MS, OFFER, signing_key

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


# ---------------------------------------------------------------- greetings


def test_the_dialler_greets_and_learns_what_the_other_offers(bench: Bench) -> None:
    bench.provide()
    bench.connect(A, greets=False)
    stream = bench.stream_to(A, c.HELLO_PROTOCOL)
    hello = bench.heard(stream, Hello)
    assert (hello.clock_ms, hello.observed_address, hello.agent) == (bench.now().wall_ms, ADDRESS, "test/1")
    assert hello.heartbeat is not None
    assert bench.one(FinishStream).stream == stream
    bench.hear(stream, hello_of(record_of("a")))
    assert bench.one(RecordLearnt).heartbeat.node == A
    bench.hear_end(stream)
    assert bench.peer.statistics().streams == 0


def test_a_greeting_is_answered_once_with_the_address_that_was_seen(bench: Bench) -> None:
    bench.connect(A, inbound=True, address="/ip4/203.0.113.7/tcp/1")
    stream = bench.accept_stream(A, c.HELLO_PROTOCOL)
    bench.hear(stream, hello_of())
    answer = bench.heard(stream, Hello)
    assert answer.observed_address == "/ip4/203.0.113.7/tcp/1"
    assert bench.one(FinishStream).stream == stream
    bench.hear_end(stream)
    assert bench.peer.statistics().streams == 0


def test_a_connection_that_nobody_greets_is_greeted_by_who_waited(bench: Bench) -> None:
    """Both sides dialled at once, and each took the other's dial for the first connection."""
    bench.connect(A, inbound=True)
    bench.wait(GREETING_DELAY_S - 0.001)
    assert bench.none_of(OpenStream)
    bench.wait(0.001)
    assert bench.one(OpenStream).protocol == c.HELLO_PROTOCOL


def test_a_connection_that_was_greeted_or_lost_is_not_greeted_again(bench: Bench) -> None:
    bench.connect(A, inbound=True)
    bench.hear(bench.accept_stream(A, c.HELLO_PROTOCOL), hello_of())
    bench.connect(B, inbound=True)
    bench.feed(PeerDisconnected(B))
    bench.wait(60.0)
    assert bench.none_of(OpenStream)


def test_a_clock_that_is_off_is_noted_and_a_small_skew_is_not(bench: Bench) -> None:
    for node, skew_ms, notes in ((A, c.CLOCK_SKEW_MS_MAX, 0), (B, -c.CLOCK_SKEW_MS_MAX - 1000, 1)):
        bench.connect(node, inbound=True)
        stream = bench.accept_stream(node, c.HELLO_PROTOCOL)
        bench.hear(stream, hello_of(clock_ms=bench.now().wall_ms + skew_ms))
        found = [note for note in bench.all(Note) if note.event == "peer.clock_skew"]
        assert len(found) == notes


def test_a_forged_record_in_a_greeting_is_blamed_and_an_expired_one_is_not(bench: Bench) -> None:
    bench.connect(A, inbound=True)
    forged = replace(record_of("a"), signature=bytes(64))
    bench.hear(bench.accept_stream(A, c.HELLO_PROTOCOL), hello_of(forged))
    assert bench.peer.statistics().bad_frames == 1
    stale = record_of("a", expires_at_ms=NOW_MS)
    stream = bench.accept_stream(A, c.HELLO_PROTOCOL)
    bench.hear(stream, hello_of(stale))
    assert bench.heard(stream, Hello)
    assert bench.peer.statistics().bad_frames == 1


@pytest.mark.parametrize("together", [True, False])
def test_a_second_greeting_on_one_stream_gets_no_second_answer(bench: Bench, together: bool) -> None:
    bench.connect(A, inbound=True)
    stream = bench.accept_stream(A, c.HELLO_PROTOCOL)
    if together:
        bench.hear(stream, hello_of(), hello_of())
    else:
        bench.hear(stream, hello_of())
        bench.hear(stream, hello_of())
    assert len(bench.said[stream]) == 1


def test_a_second_answer_to_our_greeting_is_an_error(bench: Bench) -> None:
    bench.connect(A, greets=False)
    stream = bench.stream_to(A, c.HELLO_PROTOCOL)
    bench.hear(stream, hello_of(), hello_of())
    assert bench.peer.statistics().bad_frames == 1
    assert bench.one(ResetStream).stream == stream


def test_a_greeting_that_is_never_answered_is_given_up(bench: Bench) -> None:
    bench.connect(A, greets=False)
    stream = bench.stream_to(A, c.HELLO_PROTOCOL)
    bench.wait(c.CONTROL_DEADLINE_S)
    assert bench.one(ResetStream).stream == stream
    assert bench.peer.statistics().streams == 0


def test_a_second_connection_to_one_peer_changes_nothing(bench: Bench) -> None:
    bench.connect(A)
    assert bench.feed(PeerConnected(A, ADDRESS, True)) == []
    bench.feed(PeerDisconnected(A))
    assert bench.feed(PeerDisconnected(A)) == []


# ---------------------------------------------------------------- finding


def test_a_question_is_answered_and_the_stream_closed(bench: Bench) -> None:
    bench.feed(LearnRecord(provider_record("p")))
    bench.connect(A, inbound=True)
    stream = bench.accept_stream(A, c.FIND_PROTOCOL)
    bench.hear(stream, FIND)
    assert bench.heard(stream, Found).records == (provider_record("p"),)
    bench.hear_end(stream)
    assert bench.peer.statistics().streams == 0


@pytest.mark.parametrize("together", [True, False])
def test_a_second_question_on_one_stream_gets_no_second_answer(bench: Bench, together: bool) -> None:
    bench.connect(A, inbound=True)
    stream = bench.accept_stream(A, c.FIND_PROTOCOL)
    if together:
        bench.hear(stream, FIND, FIND)
    else:
        bench.hear(stream, FIND)
        bench.hear(stream, FIND)
    assert len(bench.said[stream]) == 1


def test_a_question_for_an_answer_is_an_error_and_nothing_is_sent_on_the_finished_stream(bench: Bench) -> None:
    bench.connect(A)
    bench.feed(chat())
    stream = bench.stream_to(A, c.FIND_PROTOCOL)
    bench.hear(stream, FIND)
    assert bench.none_of(Send)
    assert bench.one(ResetStream).stream == stream


def test_a_query_that_is_never_answered_is_forgotten(bench: Bench) -> None:
    bench.connect(A)
    bench.feed(chat())
    stream = bench.stream_to(A, c.FIND_PROTOCOL)
    assert bench.peer.statistics().queries == 1
    bench.hear_end(stream)
    assert bench.peer.statistics().queries == 0
    bench.feed(chat(2))
    bench.wait(c.CONTROL_DEADLINE_S)
    assert bench.peer.statistics().queries == 0


# ---------------------------------------------------------------- gossip


def test_a_neighbour_hears_our_digest_and_our_news_on_one_stream() -> None:
    bench, stream = gossip_bench()
    assert isinstance(bench.said[stream][-1], Digest)
    bench.provide()
    assert isinstance(bench.said[stream][-1], Records)
    assert len([s for s, effect in bench.opened.items() if effect.protocol == c.GOSSIP_PROTOCOL]) == 1


def test_what_a_neighbour_is_told_first_is_what_we_want_to_hear_and_that_it_is_one() -> None:
    bench, stream = gossip_bench()
    assert bench.said[stream][:2] == [Interest(1, ()), NeighbourAnswer(1, ())]


@pytest.mark.parametrize("inbound", [True, False])
def test_a_lost_gossip_stream_in_either_direction_ends_the_neighbourhood(inbound: bool) -> None:
    bench, stream = gossip_bench()
    bench.feed(StreamBroken(StreamId(2) if inbound else stream, "reset"))
    assert bench.peer.statistics().neighbours == 0
    bench.provide()
    assert bench.none_of(OpenStream, Send)
    bench.befriend(A)
    assert isinstance(bench.said[bench.stream_to(A, c.GOSSIP_PROTOCOL)][-1], Digest)


def test_a_neighbour_that_reads_too_slowly_is_none() -> None:
    bench, stream = gossip_bench()
    bench.feed(OutboxFull(stream))
    assert bench.one(ResetStream).stream == stream
    assert bench.peer.statistics().neighbours == 0
    bench.befriend(A)
    fresh = bench.stream_to(A, c.GOSSIP_PROTOCOL)
    assert fresh != stream
    assert bench.said[fresh][:2] == [Interest(1, ()), NeighbourAnswer(1, ())]


def test_a_peer_without_the_feature_hears_no_gossip(bench: Bench) -> None:
    bench.connect(A)
    bench.provide()
    bench.wait(60.0)
    assert all(effect.protocol != c.GOSSIP_PROTOCOL for effect in bench.opened.values())


def test_who_went_away_is_no_neighbour_any_more() -> None:
    bench, _ = gossip_bench()
    bench.connect(B, gossips=True)
    bench.feed(PeerDisconnected(A))
    assert bench.peer.statistics().neighbours == 1
    bench.provide()
    assert [effect.peer for effect in bench.all(OpenStream)] == []
    assert {out.peer for out in bench.opened.values() if out.protocol == c.GOSSIP_PROTOCOL} == {A, B}
    bench.connect(A, gossips=True)
    assert [e.peer for e in bench.all(OpenStream) if e.protocol == c.GOSSIP_PROTOCOL] == [A]


def test_records_expire_with_time() -> None:
    bench, _ = gossip_bench()
    bench.feed(LearnRecord(record_of("p", expires_at_ms=bench.now().wall_ms + 60_000)))
    bench.wait(59.0)
    assert bench.peer.statistics().records == 1
    bench.wait(120.0)
    assert bench.peer.statistics().records == 0


def test_a_record_from_elsewhere_is_learnt_and_passed_on() -> None:
    bench, stream = gossip_bench()
    bench.feed(LearnRecord(provider_record("p")))
    assert bench.one(RecordLearnt)
    assert bench.said[stream][-1] == Records((provider_record("p"),))
    assert bench.feed(LearnRecord(provider_record("p"))) == []


def test_a_bad_record_of_our_own_sources_is_noted() -> None:
    bench = Bench()
    bench.feed(LearnRecord(replace(record_of("p"), signature=bytes(64))))
    assert bench.one(Note).event == "record.bad"
    bench.feed(LearnRecord(record_of("p", expires_at_ms=NOW_MS)))
    assert bench.one(Note).event == "gossip.records_skipped"
