"""protocol/greeting.py: who says hello first, and what a hello says."""

from __future__ import annotations

import itertools

from protocol import constants as c
from protocol.codec import FrameReader, limits_of_protocol
from protocol.effects import Effect, FinishStream, Note, OpenStream, Send
from protocol.events import Now
from protocol.greeting import AGAIN_S_MAX, AGAIN_S_MIN, GREETING_DELAY_S, Greeting
from protocol.ids import NodeId, StreamId
from protocol.messages import Hello

PEER = NodeId(b"\x01" * 32)
SEEN_AT = "/ip4/192.0.2.1/tcp/5"


def at(seconds: float) -> Now:
    return Now(1000.0 + seconds, 1_700_000_000_000 + round(seconds * 1000))


def greeting() -> Greeting:
    numbers = iter(range(1, 100, 2))
    return Greeting(
        "test/1",
        at(0).wall_ms,
        features=lambda: (1, 5),
        heartbeat=lambda: None,
        records_held=lambda: 7,
        address_of={PEER: SEEN_AT}.get,
        next_stream=lambda: StreamId(next(numbers)),
    )


def hello_in(effects: list[Effect]) -> Hello:
    opened, sent, finished = effects
    assert isinstance(opened, OpenStream)
    assert (opened.peer, opened.protocol) == (PEER, c.HELLO_PROTOCOL)
    assert finished == FinishStream(opened.stream)
    assert isinstance(sent, Send)
    assert sent.stream == opened.stream
    (hello,) = FrameReader(limits_of_protocol(c.HELLO_PROTOCOL)).feed(sent.data)
    assert isinstance(hello, Hello)
    return hello


def hello_of(clock_ms: int) -> Hello:
    return Hello(1, (), "other/1", clock_ms, clock_ms, None, 0, None)


def test_the_dialler_greets_at_once_and_says_where_it_sees_the_other() -> None:
    hello = hello_in(greeting().on_connected(PEER, at(3), inbound=False))
    assert (hello.version, hello.features, hello.agent) == (c.PROTOCOL_VERSION, (1, 5), "test/1")
    assert (hello.clock_ms, hello.started_at_ms) == (at(3).wall_ms, at(0).wall_ms)
    assert (hello.observed_address, hello.records_held, hello.heartbeat) == (SEEN_AT, 7, None)


def test_the_dialled_one_waits_and_greets_when_nothing_came() -> None:
    machine = greeting()
    assert machine.on_connected(PEER, at(0), inbound=True) == []
    assert machine.next_deadline() == at(GREETING_DELAY_S).monotonic_s
    assert machine.on_deadline(at(GREETING_DELAY_S - 0.01)) == []
    hello_in(machine.on_deadline(at(GREETING_DELAY_S)))


def test_who_has_not_said_hello_is_greeted_again_ever_more_seldom() -> None:
    """Its hello may have been lost although the connection stands; and it may be none of us."""
    machine = greeting()
    hello_in(machine.on_connected(PEER, at(0), inbound=False))
    greeted_s = [0.0]
    for _ in range(8):
        deadline_s = machine.next_deadline()
        assert deadline_s is not None
        after_s = deadline_s - at(0).monotonic_s
        assert machine.on_deadline(at(after_s - 0.01)) == []
        hello_in(machine.on_deadline(at(after_s)))
        greeted_s.append(after_s)
    pauses = [later - earlier for earlier, later in itertools.pairwise(greeted_s)]
    assert pauses[:3] == [AGAIN_S_MIN, 2 * AGAIN_S_MIN, 4 * AGAIN_S_MIN]
    assert pauses[-1] == AGAIN_S_MAX
    machine.on_hello(PEER, hello_of(at(9000).wall_ms), at(9000))
    assert machine.next_deadline() is None
    hello_in(machine.on_connected(PEER, at(9001), inbound=False))
    assert machine.next_deadline() == at(9001 + AGAIN_S_MIN).monotonic_s, "what was is forgotten"


def test_one_that_was_greeted_or_left_is_not_greeted_late() -> None:
    for forget in (lambda m: m.on_hello(PEER, hello_of(at(1).wall_ms), at(1)), lambda m: m.on_disconnected(PEER)):
        machine = greeting()
        machine.on_connected(PEER, at(0), inbound=True)
        forget(machine)
        assert machine.next_deadline() is None


def test_a_clock_that_differs_is_named_and_one_that_hardly_differs_is_not() -> None:
    machine, limit_ms = greeting(), c.CLOCK_SKEW_MS_MAX
    for skew_ms in (-limit_ms, 0, limit_ms):
        assert machine.on_hello(PEER, hello_of(at(1).wall_ms + skew_ms), at(1)) == []
    for skew_ms in (-limit_ms - 1, limit_ms + 1):
        (note,) = machine.on_hello(PEER, hello_of(at(1).wall_ms + skew_ms), at(1))
        assert isinstance(note, Note)
        assert (note.event, note.peer) == ("peer.clock_skew", PEER)
