"""The composed peer: streams and their limits, greetings, bad bytes, beats, shutdown, and the one timer."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import encode_message
from protocol.errors import LocalProtocolError, Refusal
from protocol.events import (
    DEADLINE,
    Allow,
    BytesReceived,
    Dial,
    DialFailed,
    EngineStarted,
    FinishStream,
    HangUp,
    HeartbeatSigned,
    LearnAddresses,
    LearnRecord,
    Note,
    OpenStream,
    OutboxFull,
    PeerConnected,
    PeerDisconnected,
    RecordLearnt,
    ResetStream,
    RunEngine,
    RunId,
    Send,
    SetOffer,
    Shutdown,
    StreamBroken,
    StreamFinished,
    StreamOpened,
)
from protocol.gossip import GossipConfig
from protocol.ids import NodeId, StreamId
from protocol.messages import (
    Availability,
    Cancel,
    Digest,
    Fault,
    Find,
    Found,
    FreePolicy,
    Hello,
    JobReject,
    Kind,
    Message,
    Records,
    Want,
)
from protocol.peer import GREETING_DELAY_S, Peer, PeerConfig, _is_loopback
from protocol.routing import Exclusion, RouteRequest
from tests.helpers_machines import (
    ADDRESS,
    ALONE,
    Bench,
    chat,
    hello_of,
    offer,
    provider_record,
    record_of,
    sealer_of,
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
    assert bench.heard(stream, Hello).features == ()
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
    assert kinds == [Send, ResetStream, Note]
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
    assert results[0] == [RecordLearnt, Send, ResetStream, Note]


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
    reasons = dict(bench.peer.explain(RouteRequest(OFFER.name, Kind.CHAT), bench.now().wall_ms))
    assert reasons == {
        bench.peer.node: Exclusion.OURSELVES,
        signing_key("p").node: None,
        signing_key("far").node: Exclusion.UNREACHABLE,
    }


# ---------------------------------------------------------------- the addresses of this machine


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("/ip4/127.0.0.1/tcp/1", True),
        ("/ip4/127.1.2.3/tcp/1", True),
        ("/ip6/::1/tcp/1", True),
        ("/ip6/::ffff:127.0.0.1/tcp/1", True),
        ("/ip6/::ffff:7f00:1/tcp/1", True),
        ("/ip6/::ffff:7f1:203/tcp/1", False),
        ("/ip4/128.0.0.1/tcp/1", False),
        ("/ip4/127.0.0.1/tcp/1/p2p/16Uiu2HAx/p2p-circuit", False),
        ("/ip4/127.evil/tcp/1", False),
        ("/dns4/localhost/tcp/1", False),
        ("/ip4", False),
        ("", False),
    ],
)
def test_only_loopback_is_this_machine(address: str, local: bool) -> None:
    assert _is_loopback(address) == local


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
