"""protocol/streams.py: the table of streams follows what goes out and what comes in."""

from __future__ import annotations

from protocol import constants as c
from protocol.effects import FinishStream, OpenStream, ResetStream
from protocol.events import Now, StreamOpened
from protocol.ids import NodeId, StreamId
from protocol.streams import Stream, Streams

PEER = NodeId(b"\x01" * 32)
OTHER = NodeId(b"\x02" * 32)
NOW = Now(100.0, 0)


def at(seconds: float) -> Now:
    return Now(100.0 + seconds, 0)


class Table(Streams):
    """A table that remembers whom it dropped."""

    def __init__(self) -> None:
        self.gone: list[StreamId] = []
        super().__init__(self._note)

    def _note(self, number: StreamId, stream: Stream) -> None:
        self.gone.append(number)


def opened(number: int, protocol: str = c.FIND_PROTOCOL, peer: NodeId = PEER) -> StreamOpened:
    return StreamOpened(StreamId(number), peer, protocol)


def test_our_streams_have_odd_numbers() -> None:
    table = Table()
    assert [table.next_number() for _ in range(3)] == [1, 3, 5]


def test_a_stream_that_both_sides_finish_is_gone_and_heard_of_once() -> None:
    table = Table()
    table.follow(OpenStream(StreamId(1), PEER, c.JOB_PROTOCOL), NOW)
    stream = table.get(StreamId(1))
    assert stream is not None
    stream.remote_done = True
    table.follow(FinishStream(StreamId(1)), NOW)
    table.drop(StreamId(1))
    assert table.gone == [1]
    assert len(table) == 0


def test_one_that_only_we_finish_is_overdue_when_the_other_side_never_does() -> None:
    table = Table()
    table.follow(OpenStream(StreamId(1), PEER, c.JOB_PROTOCOL), NOW)
    assert table.next_deadline() is None
    table.follow(FinishStream(StreamId(1)), NOW)
    assert table.overdue(at(c.CONTROL_DEADLINE_S - 0.1)) == []
    assert table.overdue(at(c.CONTROL_DEADLINE_S)) == [1]


def test_a_reset_needs_no_second_side() -> None:
    table = Table()
    table.follow(OpenStream(StreamId(1), PEER, c.FIND_PROTOCOL), NOW)
    table.follow(ResetStream(StreamId(1), "why not"), NOW)
    assert table.gone == [1]
    assert table.next_deadline() is None


def test_questions_have_a_deadline_from_the_start_and_jobs_have_none() -> None:
    for protocol in c.PROTOCOLS:
        table = Table()
        table.follow(OpenStream(StreamId(1), PEER, protocol), NOW)
        assert (table.next_deadline() is not None) == (protocol not in (c.JOB_PROTOCOL, c.GOSSIP_PROTOCOL))


def test_an_inbound_stream_has_a_deadline_until_it_is_settled() -> None:
    table = Table()
    assert table.accept(opened(2, c.JOB_PROTOCOL), 1, NOW)
    assert table.next_deadline() == at(c.CONTROL_DEADLINE_S).monotonic_s
    table.settle(StreamId(2))
    assert table.next_deadline() is None


def test_control_streams_and_jobs_of_each_peer_are_counted_apart() -> None:
    table = Table()
    assert table.accept(opened(2), 1, NOW)
    assert not table.accept(opened(4), 1, NOW)
    assert not table.accept(opened(4, c.HELLO_PROTOCOL), 1, NOW)
    assert table.accept(opened(4, c.JOB_PROTOCOL), 1, NOW)
    assert table.accept(opened(6, peer=OTHER), 1, NOW)
    table.drop(StreamId(2))
    assert table.accept(opened(8), 1, NOW)


def test_streams_that_we_opened_do_not_count_against_the_peer() -> None:
    table = Table()
    table.follow(OpenStream(StreamId(1), PEER, c.FIND_PROTOCOL), NOW)
    assert table.accept(opened(2), 1, NOW)
    assert table.of_peer(PEER) == [1, 2]
    assert StreamId(2) in table
