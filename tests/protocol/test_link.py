"""The link, pure: both ends joined by lists of messages, and every kind of nonsense."""

from __future__ import annotations

import contextlib
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec, link
from protocol import constants as c
from protocol.effects import FinishStream, OpenStream, ResetStream, Send
from protocol.envelope import SigningKey
from protocol.errors import BadFrame, BadSignature, RemoteProtocolError, Stale
from protocol.events import BytesReceived, OutboxFull, StreamBroken, StreamFinished, StreamOpened
from protocol.ids import NodeId, StreamId
from protocol.link import (
    LINK_MESSAGE_BYTES_MAX,
    Announce,
    ClaimAnswer,
    ClaimFrame,
    ClaimRefusal,
    Closing,
    Data,
    Finish,
    Link,
    Open,
    Ping,
    Pong,
    Reset,
    decode_frame,
    encode_frame,
    split_claims,
)
from protocol.records import Signed

NODE = NodeId(b"\x01" * 32)
COORDINATOR = NodeId(b"\x02" * 32)
FRAMES = [
    Open(1, c.JOB_PROTOCOL),
    Data(3, b"x" * link.LINK_DATA_BYTES_MAX),
    Finish(2),
    Reset(2**62, "why"),
    Ping(0),
    Pong(2**63 - 1),
    Announce(Signed(b"body", b"s" * 64)),
    ClaimFrame(1, (Signed(b"body", b"s" * 64),)),
    ClaimAnswer(2**63 - 1, None, (ClaimRefusal(0, "lease_closed", "it has been closed"),)),
    Closing(Signed(b"body", b"s" * 64)),
]


def key(number: int) -> SigningKey:
    return SigningKey(number.to_bytes(32, "big"), lambda count: bytes(count))


def end(*, is_coordinator: bool, closed: list[StreamId] | None = None) -> Link:
    numbers = itertools.count(2, 2)
    return Link(
        NODE if is_coordinator else COORDINATOR,
        opens_odd=is_coordinator,
        next_stream=lambda: StreamId(next(numbers)),
        on_closed=closed.append if closed is not None else lambda stream: None,
    )


def deliver(source: Link, target: Link) -> list[link.LinkEvent]:
    """Carry everything that waits from one end to the other."""
    events: list[link.LinkEvent] = []
    while (message := source.take()) is not None:
        events += target.receive(message)
    return events


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_survives_the_wire(frame: link.AnyFrame) -> None:
    assert decode_frame(encode_frame(frame)) == frame


def test_unknown_odd_frames_are_ignored_and_even_ones_are_not() -> None:
    assert decode_frame(b"\x91\x63") is None
    with pytest.raises(BadFrame, match="mandatory"):
        decode_frame(b"\x91\x64")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x90",
        b"\x01",
        b"\xc0",
        b"\x91\xa1x",
        b"\x91\x00",
        b"\x91\xff",
        b"\x91\x02",
        b"\x93\x04\x01\xc4\x00",
        b"\x92\x06\x00",
    ],
)
def test_nonsense_is_refused(message: bytes) -> None:
    with pytest.raises(BadFrame):
        decode_frame(message)


@given(st.binary(max_size=200) | st.sampled_from(FRAMES).map(encode_frame).flatmap(lambda d: st.just(d) | mutated(d)))
def test_any_bytes_are_a_frame_or_refused(message: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        frame = decode_frame(message)
        assert frame is None or isinstance(frame, link.Frame)


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    return st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)).map(
        lambda change: data[: change[0]] + bytes([change[1]]) + data[change[0] + 1 :]
    )


# ---------------------------------------------------------------- hello and time


def test_a_hello_fits_one_key_one_node_and_one_request() -> None:
    message = link.encode_hello(key(7), NODE, "header", 123)
    assert link.decode_hello(message, key(7).node, NODE, "header").time_ms == 123
    with pytest.raises(BadSignature):
        link.decode_hello(message, key(8).node, NODE, "header")
    with pytest.raises(Stale):
        link.decode_hello(message, key(7).node, COORDINATOR, "header")
    with pytest.raises(Stale):
        link.decode_hello(message, key(7).node, NODE, "another header")
    with pytest.raises(RemoteProtocolError):
        link.decode_hello(message[:-1] + bytes([message[-1] ^ 1]), key(7).node, NODE, "header")


def test_the_server_time_fits_one_key_and_one_request() -> None:
    value = link.encode_server_time(key(7), "header", 123_456)
    assert link.decode_server_time(value, key(7).node, "header") == 123_456
    with pytest.raises(BadSignature):
        link.decode_server_time(value, key(8).node, "header")
    with pytest.raises(Stale):
        link.decode_server_time(value, key(7).node, "other")
    for wrong in ("", "zz", "é", value[:-2], "0" * 5000):
        with pytest.raises(RemoteProtocolError):
            link.decode_server_time(wrong, key(7).node, "header")


# ---------------------------------------------------------------- streams


def test_bytes_travel_both_ways_in_order_and_the_stream_ends_when_both_have_finished() -> None:
    closed: list[StreamId] = []
    here, there = end(is_coordinator=True, closed=closed), end(is_coordinator=False)
    long = random.Random(1).randbytes(3 * link.LINK_DATA_BYTES_MAX + 5)
    here.perform(OpenStream(StreamId(1), NODE, c.JOB_PROTOCOL))
    here.perform(Send(StreamId(1), long))
    here.perform(FinishStream(StreamId(1)))
    events = deliver(here, there)
    assert events[0] == StreamOpened(StreamId(2), COORDINATOR, c.JOB_PROTOCOL)
    assert b"".join(event.data for event in events if isinstance(event, BytesReceived)) == long
    assert events[-1] == StreamFinished(StreamId(2))
    there.perform(Send(StreamId(2), b"answer"))
    there.perform(FinishStream(StreamId(2)))
    assert deliver(there, here) == [BytesReceived(StreamId(1), b"answer"), StreamFinished(StreamId(1))]
    assert (here.streams, there.streams, closed) == (0, 0, [1])
    assert (here.queued_bytes, there.queued_bytes) == (0, 0)


def test_streams_take_turns() -> None:
    here, there = end(is_coordinator=True), end(is_coordinator=False)
    for stream in (1, 3):
        here.perform(OpenStream(StreamId(stream), NODE, c.JOB_PROTOCOL))
    deliver(here, there)
    here.perform(Send(StreamId(1), bytes(10 * link.LINK_DATA_BYTES_MAX)))
    here.perform(Send(StreamId(3), b"urgent"))
    events = [event for event in deliver(here, there) if isinstance(event, BytesReceived)]
    assert [event.data for event in events].index(b"urgent") == 1


def test_a_reset_overtakes_what_waits_and_drops_it() -> None:
    here, there = end(is_coordinator=True), end(is_coordinator=False)
    here.perform(OpenStream(StreamId(1), NODE, c.JOB_PROTOCOL))
    deliver(here, there)
    here.perform(Send(StreamId(1), bytes(100_000)))
    here.perform(ResetStream(StreamId(1), "enough"))
    assert deliver(here, there) == [StreamBroken(StreamId(2), "enough")]
    assert (here.streams, there.streams, here.queued_bytes) == (0, 0, 0)


def test_a_stream_that_is_reset_before_it_was_announced_leaves_no_trace() -> None:
    here = end(is_coordinator=True)
    here.perform(OpenStream(StreamId(1), NODE, c.JOB_PROTOCOL))
    here.perform(ResetStream(StreamId(1), "changed my mind"))
    assert here.take() is None


def test_what_crosses_a_reset_on_its_way_is_ignored() -> None:
    here, there = end(is_coordinator=True), end(is_coordinator=False)
    here.perform(OpenStream(StreamId(1), NODE, c.JOB_PROTOCOL))
    deliver(here, there)
    there.perform(Send(StreamId(2), b"too late"))
    there.perform(FinishStream(StreamId(2)))
    here.perform(ResetStream(StreamId(1), "gone"))
    assert deliver(there, here) == []
    assert deliver(here, there) == [StreamBroken(StreamId(2), "gone")] or there.streams == 0


def test_both_ends_may_open_at_once() -> None:
    here, there = end(is_coordinator=True), end(is_coordinator=False)
    here.perform(OpenStream(StreamId(1), NODE, c.JOB_PROTOCOL))
    there.perform(OpenStream(StreamId(1), COORDINATOR, c.HELLO_PROTOCOL))
    assert deliver(here, there) == [StreamOpened(StreamId(2), COORDINATOR, c.JOB_PROTOCOL)]
    assert deliver(there, here) == [StreamOpened(StreamId(2), NODE, c.HELLO_PROTOCOL)]


@pytest.mark.parametrize(
    "frames",
    [
        [Open(1, c.JOB_PROTOCOL)],
        [Open(4, c.JOB_PROTOCOL), Open(2, c.JOB_PROTOCOL)],
        [Open(2, c.JOB_PROTOCOL), Open(2, c.JOB_PROTOCOL)],
        [Data(2, b"x")],
        [Data(1, b"x")],
        [Finish(8)],
        [Reset(2, "x")],
        [Open(2, c.JOB_PROTOCOL), Finish(2), Data(2, b"x")],
    ],
)
def test_frames_that_no_honest_end_sends_are_refused(frames: list[link.Frame]) -> None:
    here = end(is_coordinator=True)
    *good, bad = map(encode_frame, frames)
    for message in good:
        here.receive(message)
    with pytest.raises(BadFrame):
        here.receive(bad)


def test_an_unknown_protocol_is_reset_and_the_link_stays() -> None:
    here, there = end(is_coordinator=True), end(is_coordinator=False)
    assert here.receive(encode_frame(Open(2, "/other/1"))) == []
    assert here.take() == encode_frame(Reset(2, "unknown protocol"))
    assert here.receive(encode_frame(Data(2, b"already on its way"))) == []
    del there


def test_streams_are_bounded_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "LINK_STREAMS_MAX", 2)
    here = end(is_coordinator=True)
    for stream in (1, 3):
        assert here.perform(OpenStream(StreamId(stream), NODE, c.JOB_PROTOCOL)) is None
    assert isinstance(here.perform(OpenStream(StreamId(5), NODE, c.JOB_PROTOCOL)), StreamBroken)
    while here.take():
        pass
    assert here.receive(encode_frame(Open(2, c.JOB_PROTOCOL))) == []
    assert here.take() == encode_frame(Reset(2, "too many streams"))


def test_the_outbox_is_bounded_and_says_so() -> None:
    here = end(is_coordinator=True)
    here.perform(OpenStream(StreamId(1), NODE, c.JOB_PROTOCOL))
    assert here.perform(Send(StreamId(1), bytes(link.OUTBOX_STREAM_BYTES_MAX - 1000))) is None
    assert here.perform(Send(StreamId(1), bytes(2000))) == OutboxFull(StreamId(1))
    assert here.queued_bytes < link.OUTBOX_STREAM_BYTES_MAX


def test_nothing_follows_a_gap_but_the_reset() -> None:
    here = end(is_coordinator=True)
    here.perform(OpenStream(StreamId(1), NODE, c.JOB_PROTOCOL))
    assert here.perform(Send(StreamId(1), bytes(link.OUTBOX_STREAM_BYTES_MAX))) == OutboxFull(StreamId(1))
    assert here.perform(Send(StreamId(1), b"small")) is None
    assert here.perform(FinishStream(StreamId(1))) is None
    assert here.take() == encode_frame(Open(1, c.JOB_PROTOCOL))
    assert here.take() is None
    here.perform(ResetStream(StreamId(1), "too slow"))
    assert here.take() == encode_frame(Reset(1, "too slow"))


def test_the_outbox_of_all_streams_together_is_bounded() -> None:
    here = end(is_coordinator=True)
    answers = []
    for stream in range(1, 21, 2):
        here.perform(OpenStream(StreamId(stream), NODE, c.JOB_PROTOCOL))
        answers.append(here.perform(Send(StreamId(stream), bytes(1024 * 1024))))
    assert OutboxFull(StreamId(19)) in answers
    assert here.queued_bytes <= link.OUTBOX_BYTES_MAX


def test_who_asks_for_answers_and_reads_none_clogs_the_link_and_no_memory() -> None:
    here = end(is_coordinator=True)
    for number in range(2 * link.CONTROL_QUEUE_MAX):
        here.receive(encode_frame(Ping(number)))
    assert here.is_clogged
    assert here.queued_bytes < 64 * 1024


def test_answers_that_nobody_reads_are_bounded_in_bytes_too() -> None:
    here = end(is_coordinator=True)
    text = "x" * c.TEXT_CHARACTERS_MAX
    refusals = tuple(ClaimRefusal(position, "internal", text) for position in range(c.CLAIMS_MAX))
    for number in range(link.CONTROL_QUEUE_MAX):
        here.tell(ClaimAnswer(number, None, refusals))
    assert here.is_clogged
    assert here.queued_bytes <= link.CONTROL_BYTES_MAX
    while here.take() is not None:
        pass
    assert here.queued_bytes == 0
    here.tell(ClaimAnswer(1, None, refusals))
    assert here.take() is not None, "what was read makes room"


def test_all_claims_that_a_node_may_have_on_their_way_wait_in_one_queue() -> None:
    here = end(is_coordinator=False)
    claim = Signed(bytes(c.RECORD_BYTES_MAX), bytes(64))
    for number, part in enumerate(split_claims([claim] * link.LINK_CLAIMS_MAX)):
        here.claim(number, part)
    assert not here.is_clogged


def test_closing_tells_of_every_stream_once() -> None:
    closed: list[StreamId] = []
    here = end(is_coordinator=True, closed=closed)
    here.perform(OpenStream(StreamId(1), NODE, c.JOB_PROTOCOL))
    here.receive(encode_frame(Open(2, c.JOB_PROTOCOL)))
    assert here.close("cut") == [StreamBroken(StreamId(1), "cut"), StreamBroken(StreamId(2), "cut")]
    assert here.close("cut") == []
    assert (closed, here.take(), here.queued_bytes) == ([1, 2], None, 0)
    assert here.perform(Send(StreamId(1), b"late")) is None


@given(st.data())
def test_whatever_two_honest_ends_do_each_stream_arrives_whole_and_nothing_stays(data: st.DataObject) -> None:
    """Random effects at both ends and random delivery: streams that were not reset arrive byte for byte."""
    ends = {True: end(is_coordinator=True), False: end(is_coordinator=False)}
    wires: dict[bool, list[bytes]] = {True: [], False: []}
    sent: dict[tuple[bool, int], bytes] = {}
    got: dict[tuple[bool, int], bytes] = {}
    opened: dict[bool, list[StreamId]] = {True: [], False: []}
    finished: set[tuple[bool, int]] = set()
    order: dict[bool, list[int]] = {True: [], False: []}
    for _ in range(data.draw(st.integers(0, 60))):
        side = data.draw(st.booleans())
        match data.draw(st.sampled_from(["open", "send", "finish", "take", "receive"])):
            case "open":
                stream = StreamId(2 * len(opened[side]) + 1)
                ends[side].perform(OpenStream(stream, NODE, c.JOB_PROTOCOL))
                opened[side].append(stream)
                sent[side, stream] = b""
            case "send" if opened[side]:
                stream = data.draw(st.sampled_from(opened[side]))
                if (side, stream) not in finished:
                    piece = data.draw(st.binary(min_size=1, max_size=40))
                    ends[side].perform(Send(stream, piece))
                    sent[side, stream] += piece
            case "finish" if opened[side]:
                stream = data.draw(st.sampled_from(opened[side]))
                ends[side].perform(FinishStream(stream))
                finished.add((side, stream))
            case "take":
                message = ends[side].take()
                if message is not None:
                    wires[side].append(message)
            case "receive" if wires[not side]:
                collect(ends[side].receive(wires[not side].pop(0)), not side, got, order)
            case _:
                pass
    for side in (True, False):
        for stream in opened[side]:
            ends[side].perform(FinishStream(stream))
        while (message := ends[side].take()) is not None:
            wires[side].append(message)
        for message in wires[side]:
            collect(ends[not side].receive(message), side, got, order)
    assert {where: content for where, content in got.items() if content} == {w: c for w, c in sent.items() if c}
    for side in (True, False):
        for number in range(len(order[side])):
            ends[not side].perform(FinishStream(StreamId(2 * number + 2)))
        for message in iter(ends[not side].take, None):
            ends[side].receive(message)
    assert (ends[True].streams, ends[False].streams) == (0, 0)
    assert (ends[True].queued_bytes, ends[False].queued_bytes) == (0, 0)


def collect(
    events: list[link.LinkEvent],
    sender: bool,
    got: dict[tuple[bool, int], bytes],
    order: dict[bool, list[int]],
) -> None:
    """Book received bytes under the sender's number of the stream: the nth that was announced is its nth."""
    for event in events:
        if isinstance(event, StreamOpened):
            order[sender].append(event.stream)
        elif isinstance(event, BytesReceived):
            announced = order[sender].index(event.stream)
            where = (sender, 2 * announced + 1)
            got[where] = got.get(where, b"") + event.data


def test_the_limits_of_a_frame_are_those_of_the_specification() -> None:
    assert len(encode_frame(Data(2**62, bytes(link.LINK_DATA_BYTES_MAX)))) < link.LINK_MESSAGE_BYTES_MAX
    record = Signed(bytes(c.RECORD_BYTES_MAX), bytes(64))
    assert decode_frame(encode_frame(Announce(record))) == Announce(record)
    with pytest.raises(BadFrame):
        decode_frame(codec.encode_value([4, 1, bytes(link.LINK_DATA_BYTES_MAX + 1)]))


def test_claims_and_what_is_said_of_them_go_both_ways() -> None:
    node, coordinator = end(is_coordinator=False), end(is_coordinator=True)
    signed = Signed(b"body", b"s" * 64)
    node.claim(7, (signed, signed))
    assert deliver(node, coordinator) == [ClaimFrame(7, (signed, signed))]
    for frame in (ClaimAnswer(7, signed, (ClaimRefusal(1, "busy", "later"),)), Closing(signed)):
        coordinator.tell(frame)
        assert deliver(coordinator, node) == [frame]


def test_a_node_that_does_not_know_closing_ignores_it() -> None:
    assert Closing.__struct_config__.tag % 2 == 1


@given(st.lists(st.integers(1, c.RECORD_BYTES_MAX), max_size=80))
def test_claims_are_split_into_frames_in_order_and_as_many_as_fit(sizes: list[int]) -> None:
    claims = [Signed(bytes(size), bytes(64)) for size in sizes]
    parts = list(split_claims(claims))
    assert [claim for part in parts for claim in part] == claims
    for part, following in itertools.pairwise([*parts, ()]):
        frame = ClaimFrame(c.INTEGER_MAX, part)
        assert decode_frame(encode_frame(frame)) == frame
        if following and len(part) < c.CLAIMS_MAX:
            size_bytes = sum(len(claim.body) + 70 for claim in (*part, following[0]))
            assert size_bytes + 14 > LINK_MESSAGE_BYTES_MAX


def test_the_largest_answer_to_claims_fits() -> None:
    text = "\N{OLD PERSIAN SIGN A}" * c.TEXT_CHARACTERS_MAX
    refusals = tuple(ClaimRefusal(position, "internal", text) for position in range(c.CLAIMS_MAX))
    answer = ClaimAnswer(c.INTEGER_MAX, Signed(bytes(c.RECORD_BYTES_MAX), bytes(64)), refusals)
    assert decode_frame(encode_frame(answer)) == answer
