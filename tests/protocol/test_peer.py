"""The composed peer: streams and their limits, greetings, bad bytes, beats, shutdown, and the one timer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import encode_message
from protocol.errors import Refusal
from protocol.events import (
    BytesReceived,
    FinishStream,
    HangUp,
    LearnRecord,
    Misbehaved,
    Note,
    OpenStream,
    OutboxFull,
    PeerConnected,
    PeerDisconnected,
    RecordLearnt,
    ResetStream,
    Send,
    StreamBroken,
    StreamFinished,
)
from protocol.gossip import GossipConfig
from protocol.greeting import GREETING_DELAY_S
from protocol.ids import NodeId, StreamId
from protocol.jobs import FEATURE_ACKNOWLEDGES
from protocol.messages import Cancel, Digest, Fault, Find, Found, Hello, JobReject, Records, Want
from protocol.peer import PeerConfig
from protocol.reaching import FEATURE_DIALS_BACK
from protocol.records import Kind
from tests.helpers_machines import (
    ADDRESS,
    ALONE,
    Bench,
    chat,
    hello_of,
    provider_record,
    record_of,
)
from tests.helpers_puppets import order_for
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


# ---------------------------------------------------------------- streams and their limits


def test_a_protocol_that_is_not_spoken_is_reset(bench: Bench) -> None:
    bench.connect(A, inbound=True)
    stream = bench.accept_stream(A, "/infernet/other/1")
    assert bench.one(ResetStream).stream == stream
    assert bench.peer.statistics().streams == 0


def test_who_leaves_gossip_out_takes_no_gossip_stream() -> None:
    bench = Bench(config=replace_config(gossip=GossipConfig(interval_s=None)))
    bench.connect(A, inbound=True)
    bench.accept_stream(A, c.GOSSIP_PROTOCOL)
    assert bench.one(ResetStream)
    stream = bench.accept_stream(A, c.HELLO_PROTOCOL)
    bench.hear(stream, hello_of(gossips=True))
    assert bench.heard(stream, Hello).features == (FEATURE_DIALS_BACK, FEATURE_ACKNOWLEDGES)
    assert bench.none_of(OpenStream)


def replace_config(**changes: Any) -> PeerConfig:
    fields = {"agent": ALONE.agent, "neighbours_min": 0, **changes}
    return PeerConfig(**fields)


@pytest.mark.parametrize(
    ("protocol", "limit"),
    [(c.FIND_PROTOCOL, c.CONTROL_STREAMS_PER_PEER_MAX), (c.JOB_PROTOCOL, c.JOB_STREAMS_PER_PEER_MAX)],
)
def test_a_peer_opens_only_so_many_streams(bench: Bench, protocol: str, limit: int) -> None:
    bench.connect(A, inbound=True)
    bench.connect(B, inbound=True)
    streams = [bench.accept_stream(A, protocol) for _ in range(limit)]
    assert bench.effects == []
    refused = bench.accept_stream(A, protocol)
    assert bench.one(ResetStream).stream == refused
    bench.accept_stream(B, protocol)
    assert bench.effects == []
    bench.feed(StreamBroken(streams[0], "reset"))
    bench.accept_stream(A, protocol)
    assert bench.effects == []


def test_streams_that_we_opened_do_not_count_against_the_peer(bench: Bench) -> None:
    bench.feed(LearnRecord(provider_record("a")))
    bench.connect(A)
    for number in range(c.JOB_STREAMS_PER_PEER_MAX + 5):
        bench.feed(chat(number))
    bench.accept_stream(A, c.JOB_PROTOCOL)
    assert bench.effects == []


@pytest.mark.parametrize("protocol", c.PROTOCOLS)
def test_a_stream_on_which_nothing_comes_is_reset(bench: Bench, protocol: str) -> None:
    bench.connect(A)
    stream = bench.accept_stream(A, protocol)
    bench.wait(c.CONTROL_DEADLINE_S - 0.001)
    assert bench.none_of(ResetStream)
    bench.wait(0.001)
    assert bench.one(ResetStream).stream == stream
    assert bench.peer.statistics().streams == 0
    assert bench.hear(stream, FIND) == []


def test_a_gossip_stream_may_be_quiet_after_its_first_message() -> None:
    bench, _ = gossip_bench()
    stream = bench.accept_stream(A, c.GOSSIP_PROTOCOL)
    bench.hear(stream, Want((B,)))
    bench.wait(120.0)
    assert all(reset.stream != stream for reset in bench.all(ResetStream))


def test_a_peer_that_has_everything_and_never_closes_is_cut(bench: Bench) -> None:
    bench.connect(A, inbound=True)
    bench.hear(bench.accept_stream(A, c.HELLO_PROTOCOL), hello_of())
    stream = bench.accept_stream(A, c.JOB_PROTOCOL)
    bench.hear(stream, *order_for(bench).messages)
    assert bench.heard(stream, JobReject).code == Refusal.NO_MODEL
    bench.wait(c.CONTROL_DEADLINE_S)
    assert stream in {reset.stream for reset in bench.all(ResetStream)}
    assert bench.peer.statistics().streams == 0


def test_all_streams_of_a_lost_peer_are_gone(bench: Bench) -> None:
    bench.provide()
    bench.connect(A)
    bench.connect(B)
    job = bench.accept_stream(A, c.JOB_PROTOCOL)
    bench.hear(job, *order_for(bench, signing_key("a")).messages)
    other = bench.accept_stream(B, c.JOB_PROTOCOL)
    assert bench.peer.statistics().jobs_running == 1
    bench.feed(PeerDisconnected(A))
    statistics = bench.peer.statistics()
    assert (statistics.connections, statistics.streams) == (1, 1)
    bench.hear(other, FIND)
    assert bench.peer.statistics().bad_frames == 1


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


def test_a_broken_gossip_stream_is_opened_anew_when_there_is_something_to_say() -> None:
    bench, stream = gossip_bench()
    bench.feed(StreamBroken(stream, "reset"))
    bench.provide()
    assert bench.one(OpenStream).protocol == c.GOSSIP_PROTOCOL
    fresh = bench.stream_to(A, c.GOSSIP_PROTOCOL)
    assert fresh != stream
    assert isinstance(bench.said[fresh][0], Records)
    bench.feed(OutboxFull(fresh))
    assert bench.one(ResetStream).stream == fresh
    bench.wait(2 * c.GOSSIP_INTERVAL_S)
    assert bench.stream_to(A, c.GOSSIP_PROTOCOL) not in (stream, fresh)


def test_a_peer_without_the_feature_hears_no_gossip(bench: Bench) -> None:
    bench.connect(A)
    bench.provide()
    bench.wait(60.0)
    assert all(effect.protocol != c.GOSSIP_PROTOCOL for effect in bench.opened.values())


def test_who_went_away_is_no_neighbour_any_more() -> None:
    bench, _ = gossip_bench()
    bench.connect(B, gossips=True)
    bench.feed(PeerDisconnected(A))
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
    bench.wait(2 * c.GOSSIP_INTERVAL_S)
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
    assert bench.one(Note).event == "record.skipped"


# ---------------------------------------------------------------- bad bytes


@pytest.mark.parametrize(
    ("protocol", "data"),
    [
        (c.HELLO_PROTOCOL, b"\xff\xff\xff\xff"),
        (c.FIND_PROTOCOL, (3).to_bytes(4, "big") + b"\xc1\xc1\xc1"),
        (c.GOSSIP_PROTOCOL, encode_message(FIND)),
        (c.FIND_PROTOCOL, encode_message(Want((A,)))),
        (c.HELLO_PROTOCOL, (2).to_bytes(4, "big") + b"\x91\x7e"),
        (c.JOB_PROTOCOL, encode_message(Cancel(chat().job, 1, 0))),
    ],
)
def test_bytes_that_break_a_rule_reset_their_stream_and_say_why(bench: Bench, protocol: str, data: bytes) -> None:
    bench.connect(A, inbound=True)
    stream = bench.accept_stream(A, protocol)
    bench.feed(BytesReceived(stream, data))
    kinds = [type(effect) for effect in bench.effects]
    assert kinds == [Send, ResetStream, Note, Misbehaved]
    assert bench.one(Misbehaved).peer == A
    assert bench.heard(stream, Fault).code == Refusal.PROTOCOL
    assert bench.peer.statistics().streams == 0
    assert bench.feed(BytesReceived(stream, data)) == []


def test_the_third_bad_frame_ends_the_connection_and_counting_is_per_connection(bench: Bench) -> None:
    def misbehave(node: NodeId) -> None:
        bench.feed(BytesReceived(bench.accept_stream(node, c.FIND_PROTOCOL), b"\xff\xff\xff\xff"))

    bench.connect(A, inbound=True)
    bench.connect(B, inbound=True)
    for _ in range(c.BAD_FRAMES_MAX - 1):
        misbehave(A)
        misbehave(B)
        assert bench.none_of(HangUp)
    misbehave(A)
    assert bench.one(HangUp).peer == A
    bench.feed(PeerDisconnected(A))
    bench.connect(A, inbound=True)
    misbehave(A)
    assert bench.none_of(HangUp)


def test_an_optional_message_of_a_newer_version_is_passed_over(bench: Bench) -> None:
    bench.connect(A, inbound=True)
    stream = bench.accept_stream(A, c.FIND_PROTOCOL)
    unknown_odd = b"\x92\x7f\x01"
    bench.feed(BytesReceived(stream, len(unknown_odd).to_bytes(4, "big") + unknown_odd + encode_message(FIND)))
    assert bench.heard(stream, Found)


def test_a_stream_that_ends_inside_a_frame_is_blamed(bench: Bench) -> None:
    bench.connect(A, inbound=True)
    stream = bench.accept_stream(A, c.FIND_PROTOCOL)
    bench.feed(BytesReceived(stream, encode_message(FIND)[:-1]))
    bench.hear_end(stream)
    assert bench.peer.statistics().bad_frames == 1
    assert bench.one(ResetStream).stream == stream


def test_a_fault_ends_the_stream_and_is_noted_once_without_its_text(bench: Bench) -> None:
    bench.connect(A, inbound=True)
    stream = bench.accept_stream(A, c.FIND_PROTOCOL)
    bench.hear(stream, *[Fault(68, "\x1b[31mred")] * 5)
    assert [note.detail for note in bench.all(Note)] == ["code 68"]
    assert bench.peer.statistics().streams == 0
    assert bench.peer.statistics().bad_frames == 0


def test_what_was_good_before_the_bad_counts_however_the_bytes_were_cut() -> None:
    data = encode_message(Records((record_of("p"),))) + b"\xff\xff\xff\xff"
    results = []
    for cut in (1, 7, len(data)):
        bench = Bench()
        bench.connect(A, inbound=True)
        stream = bench.accept_stream(A, c.GOSSIP_PROTOCOL)
        effects = []
        for start in range(0, len(data), cut):
            effects += bench.feed(BytesReceived(stream, data[start : start + cut]))
        results.append([type(effect) for effect in effects])
    assert results[0] == results[1] == results[2]
    assert results[0] == [RecordLearnt, Send, ResetStream, Note, Misbehaved]


@given(st.lists(st.binary(max_size=40), max_size=6), st.sampled_from(c.PROTOCOLS), st.booleans())
def test_no_bytes_can_raise_or_leak(pieces: list[bytes], protocol: str, outbound: bool) -> None:
    bench = Bench()
    bench.provide()
    bench.feed(LearnRecord(provider_record("a")))
    bench.connect(A, greets=False)
    bench.feed(chat())
    stream = bench.stream_to(A, c.JOB_PROTOCOL) if outbound else bench.accept_stream(A, protocol)
    for piece in pieces:
        bench.feed(BytesReceived(stream, len(piece).to_bytes(4, "big") + piece))
        bench.feed(BytesReceived(stream, piece))
    bench.feed(StreamFinished(stream))
    bench.feed(PeerDisconnected(A))
    bench.wait(700.0)
    statistics = bench.peer.statistics()
    assert (statistics.streams, statistics.jobs_asked, statistics.jobs_running, statistics.queries) == (0, 0, 0, 0)
