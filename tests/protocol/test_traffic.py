"""protocol/traffic.py: what comes on streams reaches the right machine, and whoever breaks a rule is blamed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import constants as c
from protocol.codec import encode_message
from protocol.effects import FinishStream, HangUp, Misbehaved, Note, OpenStream, RecordLearnt, ResetStream, Send
from protocol.errors import Refusal
from protocol.events import BytesReceived, LearnRecord, PeerDisconnected, StreamBroken, StreamFinished
from protocol.gossip import GossipConfig
from protocol.ids import NodeId, StreamId
from protocol.jobs import FEATURE_ACKNOWLEDGES
from protocol.messages import Cancel, Fault, Find, Found, Hello, JobReject, Records, Want
from protocol.peer import PeerConfig
from protocol.reaching import FEATURE_DIALS_BACK
from protocol.records import Kind
from protocol.traffic import CONTROL_STREAMS_BURST
from tests.helpers_machines import (
    ALONE,
    Bench,
    chat,
    hello_of,
    provider_record,
    record_of,
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


def test_a_peer_opens_control_streams_only_so_often(bench: Bench) -> None:
    """One after the other, each ended before the next."""
    bench.connect(A, inbound=True)
    bench.connect(B, inbound=True)
    answered = 0
    for _ in range(CONTROL_STREAMS_BURST + 10):
        stream = bench.accept_stream(A, c.FIND_PROTOCOL)
        if bench.none_of(ResetStream):
            bench.hear(stream, FIND)
            answered += bool(bench.heard(stream, Found))
            bench.feed(StreamFinished(stream))
    assert answered == CONTROL_STREAMS_BURST
    stream = bench.accept_stream(B, c.FIND_PROTOCOL)
    assert bench.none_of(ResetStream), "others are not concerned"
    bench.accept_stream(A, c.JOB_PROTOCOL)
    assert bench.none_of(ResetStream), "and jobs have a bound of their own"
    bench.wait(1.0)
    bench.accept_stream(A, c.FIND_PROTOCOL)
    assert bench.none_of(ResetStream)


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
        bench.connect(A, gossips=True)
        stream = StreamId(2)
        effects = []
        for start in range(0, len(data), cut):
            effects += bench.feed(BytesReceived(stream, data[start : start + cut]))
        results.append([type(effect) for effect in effects])
    assert results[0] == results[1] == results[2]
    assert results[0] == [RecordLearnt, Send, ResetStream, Note, Misbehaved, FinishStream]


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
