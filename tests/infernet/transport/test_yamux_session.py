"""The yamux state machine: two of them joined, one of them attacked."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from infernet.transport import yamux_frames as frames
from infernet.transport.yamux_frames import INITIAL_WINDOW_BYTES, YamuxError, header
from infernet.transport.yamux_session import (
    Event,
    GoneAway,
    Opened,
    Readable,
    Session,
    SessionStream,
    Writable,
    YamuxConfig,
)

SMALL = YamuxConfig(inbound_streams_max=4)


def listener(config: YamuxConfig = SMALL) -> Session:
    return Session(initiator=False, config=config)


def dialer(config: YamuxConfig = SMALL) -> Session:
    return Session(initiator=True, config=config)


def deliver(source: Session, target: Session) -> list[Event]:
    return target.receive(source.data_to_send())


def opened(events: list[Event]) -> SessionStream:
    (stream,) = [event.stream for event in events if isinstance(event, Opened)]
    return stream


# ---------------------------------------------------------------- the specification, byte by byte


def test_a_header_is_twelve_bytes_big_endian() -> None:
    assert header(frames.WINDOW_UPDATE, frames.SYN, 3, 0x01020304) == bytes.fromhex("000100010000000301020304")


def test_an_initiator_opens_odd_streams_and_a_listener_even_ones() -> None:
    assert [dialer().open(b"").stream_id, listener().open(b"").stream_id] == [1, 2]
    both = dialer()
    assert [both.open(b"").stream_id for _ in range(3)] == [1, 3, 5]


def test_resetting_a_stream_that_is_over_leaves_alone_what_was_opened_under_its_id_since() -> None:
    session = listener()
    whole = header(frames.WINDOW_UPDATE, frames.SYN | frames.FIN, 1, 0)
    old = opened(session.receive(whole))
    session.finish(old)
    new = opened(session.receive(whole))
    session.reset(old, "we are done with it")
    assert session.streams == {1: new}
    session.finish(new)
    assert not session.streams


def test_opening_says_syn_and_is_answered_with_ack() -> None:
    left, right = dialer(), listener()
    left.open(b"")
    assert left.data_to_send() == header(frames.WINDOW_UPDATE, frames.SYN, 1, 0)
    right.receive(header(frames.WINDOW_UPDATE, frames.SYN, 1, 0))
    assert right.data_to_send() == header(frames.WINDOW_UPDATE, frames.ACK, 1, 0)


def test_a_larger_window_is_announced_by_both_ends() -> None:
    config = YamuxConfig(window_bytes=INITIAL_WINDOW_BYTES + 1000)
    left, right = dialer(config), listener(config)
    stream = left.open(b"")
    theirs = opened(deliver(left, right))
    assert theirs.send_window_bytes == config.window_bytes
    deliver(right, left)
    assert stream.send_window_bytes == config.window_bytes


def test_a_stream_may_open_with_data() -> None:
    right = listener()
    stream = opened(right.receive(header(frames.DATA, frames.SYN | frames.FIN, 1, 2) + b"hi"))
    assert (right.take(stream, 10), stream.peer_finished) == (b"hi", True)


def test_pings_are_answered_with_their_value() -> None:
    right = listener()
    right.receive(header(frames.PING, frames.SYN, 0, 77))
    assert right.data_to_send() == header(frames.PING, frames.ACK, 0, 77)
    right.receive(header(frames.PING, frames.ACK, 0, 77))
    assert right.outgoing_bytes == 0


def test_finishing_ends_one_direction_only() -> None:
    left, right = dialer(), listener()
    mine = left.open(b"")
    theirs = opened(deliver(left, right))
    left.finish(mine)
    assert deliver(left, right) == [Readable(theirs)]
    right.send(theirs, b"still here")
    deliver(right, left)
    assert left.take(mine, 100) == b"still here"
    right.finish(theirs)
    deliver(right, left)
    assert (left.streams, right.streams) == ({}, {})
    assert mine.broken is None


def test_a_reset_breaks_both_directions_once() -> None:
    left, right = dialer(), listener()
    mine = left.open(b"hello")
    theirs = opened(deliver(left, right))
    right.reset(theirs, "we are fed up")
    assert theirs.buffer == b""
    events = deliver(right, left)
    assert Readable(mine) in events
    assert Writable(mine) in events
    assert mine.broken == "the peer reset the stream"
    assert (left.streams, right.streams) == ({}, {})
    right.reset(theirs, "twice")
    right.finish(theirs)
    assert theirs.broken == "we are fed up"
    assert right.outgoing_bytes == 0


def test_finishing_twice_says_it_once() -> None:
    left = dialer()
    stream = left.open(b"")
    left.finish(stream)
    left.data_to_send()
    left.finish(stream)
    assert left.outgoing_bytes == 0


def test_no_credit_is_granted_to_a_peer_that_has_finished() -> None:
    right = listener()
    stream = opened(right.receive(header(frames.DATA, frames.SYN | frames.FIN, 1, 200_000) + bytes(200_000)))
    right.data_to_send()
    right.take(stream, 200_000)
    assert right.outgoing_bytes == 0


def test_data_that_crosses_a_reset_is_dropped() -> None:
    left, right = dialer(), listener()
    mine = left.open(b"")
    theirs = opened(deliver(left, right))
    left.send(mine, b"on its way")
    right.reset(theirs, "gone")
    assert deliver(left, right) == []
    assert theirs.buffer == b""


def test_a_reset_in_the_middle_of_a_frame_drops_its_rest() -> None:
    right = listener()
    theirs = opened(right.receive(header(frames.DATA, frames.SYN, 1, 6) + b"abc"))
    right.reset(theirs, "gone")
    right.receive(b"def" + header(frames.PING, frames.SYN, 0, 5))
    assert theirs.buffer == b""
    assert right.data_to_send().endswith(header(frames.PING, frames.ACK, 0, 5))


def test_after_a_farewell_no_streams_are_opened_and_open_ones_go_on() -> None:
    left, right = dialer(), listener()
    mine = left.open(b"")
    theirs = opened(deliver(left, right))
    right.go_away(frames.GO_AWAY_NORMAL)
    assert GoneAway(frames.GO_AWAY_NORMAL) in deliver(right, left)
    with pytest.raises(YamuxError):
        left.open(b"")
    with pytest.raises(YamuxError):
        right.open(b"")
    left.send(mine, b"x")
    deliver(left, right)
    assert right.take(theirs, 1) == b"x"
    right.receive(header(frames.WINDOW_UPDATE, frames.SYN, 3, 0))
    assert right.data_to_send() == header(frames.WINDOW_UPDATE, frames.RESET, 3, 0)
    assert right.streams_refused == 1


# ---------------------------------------------------------------- windows, places, queues


def test_sending_stops_at_the_window_and_goes_on_with_credit() -> None:
    left, right = dialer(), listener(YamuxConfig())
    mine = left.open(b"")
    theirs = opened(deliver(left, right))
    data = bytes(INITIAL_WINDOW_BYTES + 500)
    sent = 0
    while mine.send_window_bytes:
        sent = left.send(mine, data, sent)
        deliver(left, right)
    assert sent == INITIAL_WINDOW_BYTES == len(theirs.buffer)
    right.take(theirs, INITIAL_WINDOW_BYTES // 2 - 1)
    assert right.outgoing_bytes == 12, "only the acknowledgement: less than half a window is no credit yet"
    right.take(theirs, 1)
    assert Writable(mine) in deliver(right, left)
    assert mine.send_window_bytes == INITIAL_WINDOW_BYTES // 2
    left.send(mine, data, sent)
    deliver(left, right)
    assert len(theirs.buffer) == INITIAL_WINDOW_BYTES // 2 + 500


def test_a_greeting_uses_up_credit() -> None:
    stream = dialer().open(b"hello")
    assert stream.send_window_bytes == INITIAL_WINDOW_BYTES - 5


def test_sending_stops_while_the_queue_is_full() -> None:
    left = dialer(YamuxConfig(queue_bytes=50_000))
    stream = left.open(b"")
    sent = left.send(stream, bytes(200_000))
    assert 50_000 <= left.outgoing_bytes <= 50_000 + frames.FRAME_BYTES_MAX + 12
    left.data_to_send()
    assert left.send(stream, bytes(200_000), sent) > sent


@pytest.mark.parametrize("overrun_bytes", [1, 2**32 - 1 - INITIAL_WINDOW_BYTES])
def test_a_window_overrun_is_seen_in_the_header(overrun_bytes: int) -> None:
    right = listener()
    right.receive(header(frames.WINDOW_UPDATE, frames.SYN, 1, 0))
    with pytest.raises(YamuxError, match="granted"):
        right.receive(header(frames.DATA, 0, 1, INITIAL_WINDOW_BYTES + overrun_bytes))


def test_a_window_is_overrun_by_the_sum_of_frames() -> None:
    right = listener()
    right.receive(header(frames.DATA, frames.SYN, 1, INITIAL_WINDOW_BYTES) + bytes(INITIAL_WINDOW_BYTES))
    with pytest.raises(YamuxError, match="granted"):
        right.receive(header(frames.DATA, 0, 1, 1) + b"x")


def test_places_are_bounded_until_they_are_released() -> None:
    right = listener(YamuxConfig(inbound_streams_max=2))
    streams = [opened(right.receive(header(frames.DATA, frames.SYN, number, 0))) for number in (1, 3)]
    right.data_to_send()
    # A reset does not free the place: whoever serves the stream has not noticed yet.
    right.receive(header(frames.WINDOW_UPDATE, frames.RESET, 1, 0))
    right.receive(header(frames.DATA, frames.SYN, 5, 3) + b"abc")
    assert right.data_to_send() == header(frames.WINDOW_UPDATE, frames.RESET, 5, 0)
    right.release(streams[0])
    assert opened(right.receive(header(frames.DATA, frames.SYN, 7, 0)))


def test_a_peer_that_pings_and_does_not_read_is_cut_off() -> None:
    right = listener(YamuxConfig(queue_bytes=1000))
    with pytest.raises(YamuxError, match="does not read"):
        right.receive(header(frames.PING, frames.SYN, 0, 0) * 10_000)
    assert right.outgoing_bytes < 1000 + 64 * 1024 + 13


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("!BBHII", 1, 0, 0, 1, 0),
        struct.pack("!BBHII", 0, 9, 0, 1, 0),
        header(frames.DATA, 0, 0, 0),
        header(frames.WINDOW_UPDATE, frames.SYN, 0, 0),
        header(frames.WINDOW_UPDATE, frames.SYN, 2, 0),
        header(frames.WINDOW_UPDATE, frames.SYN, 1, 0) * 2,
        header(frames.PING, frames.SYN, 1, 0),
        header(frames.GO_AWAY, 0, 1, 0),
        header(frames.WINDOW_UPDATE, frames.SYN, 1, 2**30),
        header(frames.DATA, frames.SYN | frames.FIN, 1, 0) + header(frames.DATA, 0, 1, 1) + b"x",
        header(frames.DATA, 0, 99, INITIAL_WINDOW_BYTES + 1),
    ],
    ids=[
        "version",
        "type",
        "data on the session",
        "stream 0",
        "our parity",
        "opened twice",
        "ping on a stream",
        "farewell on a stream",
        "too much credit",
        "data after the end",
        "no window is so large",
    ],
)
def test_broken_rules_end_the_session(frame: bytes) -> None:
    with pytest.raises(YamuxError):
        listener().receive(frame)


# ---------------------------------------------------------------- properties


class JoinedSessions(RuleBasedStateMachine):
    """Two sessions and a link that delivers when it likes, in pieces of any size."""

    streams = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        config = YamuxConfig(inbound_streams_max=100, queue_bytes=40_000)
        self.sides = (dialer(config), listener(config))
        self.config = config
        # Bytes that have left a side and not arrived.
        self.wire = (bytearray(), bytearray())
        # By stream id: its two ends, and what each side has sent and taken.
        self.ends: dict[int, list[SessionStream | None]] = {}
        self.sent: dict[tuple[int, int], bytearray] = {}
        self.taken: dict[tuple[int, int], bytearray] = {}

    @rule(target=streams, side=st.integers(0, 1), greeting=st.binary(max_size=40))
    def open(self, side: int, greeting: bytes) -> object:
        if len(self.ends) >= 100:
            return multiple()
        stream = self.sides[side].open(greeting)
        ends: list[SessionStream | None] = [None, None]
        ends[side] = stream
        self.ends[stream.stream_id] = ends
        for each in (0, 1):
            self.sent[stream.stream_id, each] = bytearray()
            self.taken[stream.stream_id, each] = bytearray()
        self.sent[stream.stream_id, side] += greeting
        return stream.stream_id

    @rule(stream_id=streams, side=st.integers(0, 1), size=st.integers(0, 300_000), seed=st.integers(0, 255))
    def send(self, stream_id: int, side: int, size: int, seed: int) -> None:
        stream = self.ends[stream_id][side]
        if stream is None or stream.broken or stream.we_finished:
            return
        data = bytes((seed + index) % 256 for index in range(256)) * (size // 256 + 1)
        sent = self.sides[side].send(stream, data[:size])
        self.sent[stream_id, side] += data[:sent]

    @rule(stream_id=streams, side=st.integers(0, 1), size=st.integers(1, 300_000))
    def take(self, stream_id: int, side: int, size: int) -> None:
        if stream := self.ends[stream_id][side]:
            self.taken[stream_id, side] += self.sides[side].take(stream, size)

    @rule(stream_id=streams, side=st.integers(0, 1))
    def finish(self, stream_id: int, side: int) -> None:
        if stream := self.ends[stream_id][side]:
            self.sides[side].finish(stream)

    @rule(stream_id=streams, side=st.integers(0, 1))
    def reset(self, stream_id: int, side: int) -> None:
        if stream := self.ends[stream_id][side]:
            self.sides[side].reset(stream, "reset by the test")

    @rule(side=st.integers(0, 1))
    def ping(self, side: int) -> None:
        self.sides[side].ping(1)

    @rule(side=st.integers(0, 1), size=st.integers(1, 100_000))
    def deliver(self, side: int, size: int) -> None:
        self.wire[side].extend(self.sides[side].data_to_send())
        piece = bytes(self.wire[side][:size])
        del self.wire[side][:size]
        for event in self.sides[1 - side].receive(piece):
            if isinstance(event, Opened):
                self.ends[event.stream.stream_id][1 - side] = event.stream

    @invariant()
    def windows_conserve(self) -> None:
        for side in self.sides:
            for stream in side.streams.values():
                held = stream.receive_window_bytes + len(stream.buffer) + stream.taken_bytes
                # What is still to come of a frame whose header has passed is counted nowhere.
                pending = side._payload_left_bytes if side._payload_stream is stream else 0
                assert held + pending == self.config.window_bytes

    @invariant()
    def what_is_read_was_sent(self) -> None:
        for (stream_id, side), taken in self.taken.items():
            stream = self.ends[stream_id][side]
            waiting = bytes(stream.buffer) if stream else b""
            assert self.sent[stream_id, 1 - side].startswith(bytes(taken) + waiting)

    def teardown(self) -> None:
        for _ in range(2000):
            for side in (0, 1):
                self.deliver(side, 10**9)
            for stream_id, ends in self.ends.items():
                for side, stream in enumerate(ends):
                    if stream:
                        self.taken[stream_id, side] += self.sides[side].take(stream, 10**9)
            if not any(session.outgoing_bytes for session in self.sides):
                break
        for stream_id, ends in self.ends.items():
            assert all(end is not None for end in ends)
            for side, stream in enumerate(ends):
                if stream and not stream.broken and not any(end and end.broken for end in ends):
                    assert self.taken[stream_id, side] == self.sent[stream_id, 1 - side]
                    other = ends[1 - side]
                    assert other is not None
                    assert stream.peer_finished == other.we_finished


TestJoinedSessions = JoinedSessions.TestCase

# Fields that are often right, so that frames get past the first check.
random_frames = st.lists(
    st.tuples(
        st.sampled_from([0] * 30 + [1]),
        st.sampled_from([0] * 6 + [1] * 6 + [2, 3, 4]),
        st.sampled_from([0, 0, 1, 1, 2, 3, 4, 5, 8, 15, 0xFFFF]),
        st.sampled_from([0, 1, 3, 3, 5, 7, 2, 2**32 - 1]),
        st.sampled_from([0, 1, 5, 100, 2**20, 2**32 - 1]),
        st.binary(max_size=120),
    ),
    max_size=30,
)


def observed(session: Session, pieces: list[bytes]) -> object:
    """Everything that a session shows after taking some bytes."""
    kinds: list[str] = []
    try:
        for piece in pieces:
            kinds += [type(event).__name__ for event in session.receive(piece)]
    except YamuxError as raised:
        return str(raised)
    streams = [
        (stream.stream_id, bytes(stream.buffer), stream.send_window_bytes, stream.peer_finished)
        for stream in session.streams.values()
    ]
    return kinds, streams, session.data_to_send(), session.peer_going_away


@given(random_frames, st.integers(1, 40))
def test_pieces_of_any_size_give_the_same_result(
    spoken: list[tuple[int, int, int, int, int, bytes]], piece_bytes: int
) -> None:
    stream = b"".join(struct.pack("!BBHII", *fields[:5]) + fields[5] for fields in spoken)
    whole = observed(listener(), [stream])
    for size in (1, piece_bytes):
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert observed(listener(), pieces) == whole


def attack(seed: int, count: int) -> None:
    """Feed random frames; the session must stay within its bounds and raise nothing but YamuxError."""
    source = random.Random(seed)
    session = listener()
    served: list[SessionStream] = []
    for _ in range(count):
        length = source.choice([0, 1, 50, 5000, source.randrange(2**18), source.randrange(2**32)])
        frame = struct.pack(
            "!BBHII",
            0 if source.random() < 0.99 else source.randrange(256),
            source.choice([0, 0, 0, 1, 1, 2, 3]) if source.random() < 0.99 else source.randrange(256),
            source.choice([0, 0, 0, 1, 1, 2, 4, 8, source.randrange(2**16)]),
            source.choice([1, 3, 5, 7, 9, 11, source.randrange(2**32)]),
            length,
        )
        payload = source.randbytes(min(length, 4096)) if source.random() < 0.9 else b""
        try:
            events = session.receive(frame + payload)
        except YamuxError:
            session, served = listener(), []
            continue
        served += [event.stream for event in events if isinstance(event, Opened)]
        assert sum(len(stream.buffer) for stream in served) <= 4 * INITIAL_WINDOW_BYTES
        assert len(served) <= 4
        if served and source.random() < 0.3:
            stream = source.choice(served)
            action = source.randrange(4)
            if action == 0:
                session.take(stream, source.randrange(1, 10**6))
            elif action == 1 and not (stream.broken or stream.we_finished):
                session.send(stream, bytes(source.randrange(1000)))
            elif action == 2:
                session.finish(stream)
            else:
                session.reset(stream, "by the test")
                session.release(stream)
                served.remove(stream)
        if source.random() < 0.5:
            session.data_to_send()


def test_random_frames_raise_only_yamux_errors() -> None:
    for seed in range(20):
        attack(seed, 500)


@pytest.mark.nightly
def test_many_random_frames_raise_only_yamux_errors() -> None:
    for seed in range(1000, 1800):
        attack(seed, 5000)


@given(st.binary(max_size=2000), st.booleans())
def test_random_bytes_raise_only_yamux_errors(data: bytes, initiator: bool) -> None:
    session = Session(initiator=initiator, config=SMALL)
    with contextlib.suppress(YamuxError):
        session.receive(data)
