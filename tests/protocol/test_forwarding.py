"""An aggregator passes the streams of jobs on: what it checks, what it does not look at, and how things end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol import forwarding as f
from protocol.codec import encode_message
from protocol.effects import Dial, Drained, Effect, FinishStream, HangUp, Note, OpenStream, ResetStream, Send
from protocol.envelope import open_record, sign_record
from protocol.errors import BadFrame, Refusal
from protocol.events import (
    BytesReceived,
    DialFailed,
    Drain,
    LearnRecord,
    OutboxFull,
    PeerDisconnected,
    Shutdown,
    StreamBroken,
)
from protocol.ids import NodeId, StreamId
from protocol.messages import Cancel, Fault, Forward, JobOpen, JobReject, Message
from protocol.peer import FEATURE_FORWARDS, PeerConfig
from protocol.records import Heartbeat, Role
from tests.helpers_machines import ADDRESS, Bench, provider_record, record_of
from tests.helpers_records import JOB, order, signing_key

AGGREGATOR = PeerConfig(agent="test/1", neighbours_min=0, forwards=True)
ASKER, PROVIDER = signing_key("asker"), signing_key("p")
REJECT = JobReject(JOB, 1, int(Refusal.BUSY), 0, "full", (), None)
CANCEL = Cancel(JOB, 1, int(Refusal.CANCELLED))


class RawBench(Bench):
    """A bench whose peer may also pass on what is no message."""

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            try:
                super()._take([effect])
            except BadFrame:
                assert effect in self.effects


@pytest.fixture
def bench() -> Bench:
    """An aggregator that knows one provider, and is connected to an asker."""
    bench = RawBench(config=AGGREGATOR)
    bench.feed(LearnRecord(provider_record("p", addresses=(ADDRESS,))))
    bench.connect(ASKER.node, inbound=True)
    return bench


def opening(key: Any = ASKER, sealed: bytes = b"s" * 100, **changes: Any) -> JobOpen:
    record = order(asker=key.node, provider=PROVIDER.node, **changes)
    return JobOpen(sign_record(record, key), sealed)


def stream_of(bench: Bench, key: Any = ASKER) -> StreamId:
    return bench.accept_stream(key.node, c.JOB_PROTOCOL)


def forwarded(bench: Bench) -> tuple[StreamId, StreamId]:
    """A job whose order has reached the provider: the asker's stream and the provider's."""
    bench.connect(PROVIDER.node)
    asker = stream_of(bench)
    bench.hear(asker, Forward(PROVIDER.node), opening())
    return asker, bench.one(OpenStream).stream


def sent_to(effects: list[Effect], stream: StreamId) -> bytes:
    return b"".join(effect.data for effect in effects if isinstance(effect, Send) and effect.stream == stream)


def resets(bench: Bench) -> set[StreamId]:
    return {effect.stream for effect in bench.all(ResetStream)}


def fault_on(bench: Bench, stream: StreamId) -> Refusal:
    return Refusal(bench.heard(stream, Fault).code)


def is_at_rest(bench: Bench) -> bool:
    statistics = bench.peer.statistics()
    return statistics.forwards.active == 0


# ---------------------------------------------------------------- the way it should go


def test_an_order_goes_on_as_it_came_with_what_follows_it(bench: Bench) -> None:
    bench.connect(PROVIDER.node)
    asker = stream_of(bench)
    body = encode_message(opening()) + b"\0\0\0\x05aster"
    bench.feed(BytesReceived(asker, encode_message(Forward(PROVIDER.node)) + body))
    opened = bench.one(OpenStream)
    assert (opened.peer, opened.protocol) == (PROVIDER.node, c.JOB_PROTOCOL)
    assert sent_to(bench.effects, opened.stream) == body


def test_bytes_pass_both_ways_however_they_are_cut_and_without_waiting_for_a_whole_frame(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    frame = (300).to_bytes(4, "big") + bytes(300)
    for piece in (frame[:1], frame[1:3], frame[3:50], frame[50:] + frame):
        assert sent_to(bench.feed(BytesReceived(asker, piece)), provider) == piece
        assert sent_to(bench.feed(BytesReceived(provider, piece)), asker) == piece
    statistics = bench.peer.statistics().forwards
    assert statistics.frames == 5  # the order, and two each way
    assert statistics.bytes == 4 * len(frame) + len(encode_message(opening()))


def test_the_order_may_come_byte_by_byte(bench: Bench) -> None:
    bench.connect(PROVIDER.node)
    asker = stream_of(bench)
    data = encode_message(Forward(PROVIDER.node)) + encode_message(opening())
    for at in range(len(data) - 1):
        bench.feed(BytesReceived(asker, data[at : at + 1]))
        assert bench.none_of(OpenStream, Send, ResetStream)
    bench.feed(BytesReceived(asker, data[-1:]))
    assert sent_to(bench.effects, bench.one(OpenStream).stream) == encode_message(opening())


def test_a_job_ends_when_both_sides_have_ended_and_is_accounted_for(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    bench.hear(provider, REJECT)
    bench.hear_end(provider)
    assert bench.one(FinishStream).stream == asker
    bench.hear_end(asker)
    assert bench.one(FinishStream).stream == provider
    assert bench.none_of(ResetStream)
    size = len(encode_message(opening())) + len(encode_message(REJECT))
    assert bench.peer.statistics().forwards == f.ForwardStatistics(0, 1, 0, size, 2)
    assert bench.peer.forward_accounts() == [(ASKER.node, PROVIDER.node, f.Account(1, 2, size))]


def test_an_asker_that_ends_its_side_early_still_gets_its_answer(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    bench.hear_end(asker)
    assert bench.one(FinishStream).stream == provider
    bench.wait(30)
    assert not resets(bench) & {asker, provider}
    bench.hear(provider, REJECT)
    assert sent_to(bench.effects, asker) == encode_message(REJECT)
    bench.hear_end(provider)
    assert bench.one(FinishStream).stream == asker
    assert is_at_rest(bench)


def test_a_provider_that_is_not_connected_is_dialled_and_gets_all_that_waited(bench: Bench) -> None:
    asker = stream_of(bench)
    bench.hear(asker, Forward(PROVIDER.node), opening())
    assert bench.one(Dial) == Dial(PROVIDER.node, (ADDRESS,))
    bench.hear(asker, CANCEL)
    bench.hear_end(asker)
    assert bench.none_of(OpenStream, Send, FinishStream)
    bench.connect(PROVIDER.node, greets=False)
    provider = bench.stream_to(PROVIDER.node, c.JOB_PROTOCOL)
    assert sent_to(bench.effects, provider) == encode_message(opening()) + encode_message(CANCEL)
    assert FinishStream(provider) in bench.effects


def test_an_aggregator_says_so_in_its_heartbeat(bench: Bench) -> None:
    bench.provide(role=Role.AGGREGATOR, models=())
    entry = bench.peer.directory.get(bench.peer.node)
    assert entry is not None
    assert FEATURE_FORWARDS in open_record(entry.record, Heartbeat).features


# ---------------------------------------------------------------- the order is an address


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([CANCEL], id="no order"),
        pytest.param([Forward(PROVIDER.node), opening()], id="another forward"),
        pytest.param([opening(signing_key("somebody"))], id="an order of somebody else"),
        pytest.param(
            [JobOpen(sign_record(order(asker=ASKER.node, provider=signing_key("q").node), ASKER), b"")],
            id="for another provider",
        ),
        pytest.param([replace(opening(), order=replace(opening().order, signature=bytes(64)))], id="a bad signature"),
        pytest.param([opening(sealed=b"s" * 3000)], id="more than is ordered"),
    ],
)
def test_what_is_no_order_of_the_sender_for_that_provider_is_not_passed_on(
    bench: Bench, messages: list[Message]
) -> None:
    bench.connect(PROVIDER.node)
    asker = stream_of(bench)
    bench.hear(asker, Forward(PROVIDER.node), *messages)
    assert fault_on(bench, asker) is Refusal.PROTOCOL
    assert resets(bench) == {asker}
    assert bench.none_of(OpenStream)
    assert bench.peer.statistics().bad_frames == 1
    assert is_at_rest(bench)


def test_a_length_that_no_receiver_takes_is_blamed_on_who_sent_it(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    bench.feed(BytesReceived(asker, b"\xff" * 4))
    assert fault_on(bench, asker) is Refusal.PROTOCOL
    assert resets(bench) == {asker, provider}
    assert sent_to(bench.effects, provider) == b""
    assert is_at_rest(bench)


def test_a_provider_that_breaks_the_rules_is_blamed_and_the_asker_told(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    bench.feed(BytesReceived(provider, b"\0\0\0\0"))
    assert resets(bench) == {asker, provider}
    assert [note.peer for note in bench.all(Note) if note.event == "peer.misbehaved"] == [PROVIDER.node]


@pytest.mark.parametrize(("is_provider", "limit"), [(False, f.BYTES_TO_PROVIDER_MAX), (True, f.BYTES_TO_ASKER_MAX)])
def test_more_bytes_than_any_job_needs_end_it(bench: Bench, limit: int, *, is_provider: bool) -> None:
    asker, provider = forwarded(bench)
    frame = (60_000).to_bytes(4, "big") + bytes(60_000)
    sender = provider if is_provider else asker
    for _ in range(limit // len(frame)):
        if not bench.peer.statistics().forwards.active:
            break
        bench.feed(BytesReceived(sender, frame))
    bench.feed(BytesReceived(sender, frame))
    assert resets(bench) == {asker, provider}
    assert is_at_rest(bench)


# ---------------------------------------------------------------- ends that are none


@pytest.mark.parametrize(
    ("loss", "code"),
    [
        (lambda stream: StreamBroken(stream, "reset"), Refusal.PEER_LOST),
        (lambda stream: OutboxFull(stream), Refusal.SLOW_READER),
        (lambda _: PeerDisconnected(PROVIDER.node), Refusal.PEER_LOST),
    ],
    ids=["reset", "too slow", "connection lost"],
)
def test_a_provider_that_is_lost_never_looks_like_an_end(
    bench: Bench, loss: Callable[[StreamId], Any], code: Refusal
) -> None:
    asker, provider = forwarded(bench)
    bench.hear(provider, REJECT)
    bench.feed(loss(provider))
    assert fault_on(bench, asker) is code
    assert asker in resets(bench)
    assert bench.none_of(FinishStream)
    assert is_at_rest(bench)
    assert bench.peer.statistics().forwards.failed == 1


def test_a_provider_that_is_lost_inside_a_frame_leaves_no_fault_in_it(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    bench.feed(BytesReceived(provider, b"\0\0\0\x09half"))
    bench.feed(StreamBroken(provider, "reset"))
    assert sent_to(bench.effects, asker) == b""
    assert resets(bench) == {asker}


def test_a_provider_that_ends_inside_a_frame_has_not_ended(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    bench.feed(BytesReceived(provider, b"\0\0\0\x09half"))
    bench.hear_end(provider)
    assert resets(bench) == {asker, provider}
    assert bench.none_of(FinishStream)


def test_the_loss_of_a_provider_that_has_ended_takes_nothing_from_the_asker(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    bench.hear(provider, REJECT)
    bench.hear_end(provider)
    bench.feed(PeerDisconnected(PROVIDER.node))
    assert bench.none_of(ResetStream)
    bench.hear_end(asker)
    assert bench.peer.statistics().forwards == f.ForwardStatistics(
        0, 1, 0, len(encode_message(opening())) + len(encode_message(REJECT)), 2
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda stream: StreamBroken(stream, "reset"),
        lambda stream: OutboxFull(stream),
        lambda _: PeerDisconnected(ASKER.node),
    ],
    ids=["reset", "too slow", "connection lost"],
)
def test_the_provider_hears_at_once_that_the_asker_is_gone(bench: Bench, loss: Callable[[StreamId], Any]) -> None:
    asker, provider = forwarded(bench)
    bench.feed(loss(asker))
    assert provider in resets(bench)
    assert is_at_rest(bench)


def test_an_asker_that_never_closes_after_the_end_is_cut(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    bench.hear(provider, REJECT)
    bench.hear_end(provider)
    bench.wait(c.CONTROL_DEADLINE_S)
    assert asker in resets(bench)
    assert is_at_rest(bench)


def test_a_shutdown_ends_what_is_carried_and_says_so(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    bench.feed(Shutdown())
    assert fault_on(bench, asker) is Refusal.SHUTDOWN
    assert resets(bench) == {asker, provider}


def test_who_drains_takes_no_new_jobs_and_is_done_when_the_last_one_has_ended(bench: Bench) -> None:
    bench.provide(role=Role.AGGREGATOR, models=())
    asker, provider = forwarded(bench)
    bench.feed(Drain())
    assert bench.none_of(Drained, ResetStream)
    assert _refused(bench, ASKER) is Refusal.NOT_ALLOWED
    bench.hear(provider, REJECT)
    bench.hear_end(provider)
    assert bench.none_of(Drained)
    bench.hear_end(asker)
    assert bench.one(Drained)


# ---------------------------------------------------------------- who is not reached


def test_a_provider_that_does_not_answer_is_no_route(bench: Bench) -> None:
    asker = stream_of(bench)
    bench.hear(asker, Forward(PROVIDER.node), opening())
    bench.feed(DialFailed(PROVIDER.node, "refused"))
    assert fault_on(bench, asker) is Refusal.NO_ROUTE
    assert resets(bench) == {asker}


def test_a_provider_that_takes_too_long_is_no_route(bench: Bench) -> None:
    asker = stream_of(bench)
    bench.hear(asker, Forward(PROVIDER.node), opening())
    bench.wait(c.FORWARD_REACH_DEADLINE_S - 0.01)
    assert bench.none_of(ResetStream)
    bench.wait(0.01)
    assert fault_on(bench, asker) is Refusal.NO_ROUTE
    bench.connect(PROVIDER.node, greets=False)
    assert c.JOB_PROTOCOL not in [opened.protocol for opened in bench.all(OpenStream)]


def test_a_provider_of_whom_nothing_is_known_is_no_route(bench: Bench) -> None:
    stranger = signing_key("stranger")
    asker = stream_of(bench)
    wanted = JobOpen(sign_record(order(asker=ASKER.node, provider=stranger.node), ASKER), b"")
    bench.hear(asker, Forward(stranger.node), wanted)
    assert fault_on(bench, asker) is Refusal.NO_ROUTE


# ---------------------------------------------------------------- limits


def test_a_node_that_is_no_aggregator_forwards_nothing() -> None:
    bench = Bench()
    bench.connect(ASKER.node, inbound=True)
    asker = stream_of(bench)
    bench.hear(asker, Forward(PROVIDER.node), opening())
    assert fault_on(bench, asker) is Refusal.NOT_ALLOWED
    assert resets(bench) == {asker}
    assert bench.peer.statistics().bad_frames == 0


@pytest.mark.parametrize("target", ["bench", "asker", "client"])
def test_nothing_is_forwarded_to_ourselves_back_or_to_who_runs_no_jobs(bench: Bench, target: str) -> None:
    bench.feed(LearnRecord(record_of("client", role=Role.CLIENT, models=())))
    asker = stream_of(bench)
    bench.hear(asker, Forward(signing_key(target).node))
    expected = Refusal.NOT_ALLOWED if target == "client" else Refusal.BAD_REQUEST
    assert fault_on(bench, asker) is expected


def test_an_asker_that_says_nothing_after_forward_is_cut(bench: Bench) -> None:
    asker = stream_of(bench)
    bench.hear(asker, Forward(PROVIDER.node))
    bench.wait(c.CONTROL_DEADLINE_S)
    assert fault_on(bench, asker) is Refusal.DEADLINE


def test_a_job_on_which_nothing_moves_is_cut_and_one_on_which_something_does_is_not(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    for _ in range(5):
        bench.wait(f.IDLE_DEADLINE_S - 1)
        assert not resets(bench) & {asker, provider}
        bench.hear(provider, REJECT)
    bench.wait(f.IDLE_DEADLINE_S)
    assert fault_on(bench, asker) is Refusal.DEADLINE
    assert resets(bench) == {asker, provider}


def test_no_job_takes_longer_than_any_may(bench: Bench) -> None:
    asker, provider = forwarded(bench)
    for _ in range(c.JOB_LIFETIME_MS_MAX // 1000 // 50):
        bench.wait(50)
        if bench.peer.statistics().forwards.active:
            bench.hear(provider, REJECT)
    assert is_at_rest(bench)
    assert fault_on(bench, asker) is Refusal.DEADLINE


def _refused(bench: Bench, key: Any, provider: NodeId = PROVIDER.node) -> Refusal | None:
    """What a further order comes to: a refusal, or None when it is taken."""
    asker = stream_of(bench, key)
    bench.hear(asker, Forward(provider))
    faults = [message for message in bench.said[asker] if isinstance(message, Fault)]
    return Refusal(faults[0].code) if faults else None


def test_an_asker_holds_few_jobs_at_once(bench: Bench) -> None:
    taken = [_refused(bench, ASKER) for _ in range(f.FORWARDS_PER_ASKER_MAX + 1)]
    assert taken == [None] * f.FORWARDS_PER_ASKER_MAX + [Refusal.RATE_LIMITED]
    other = signing_key("other")
    bench.connect(other.node, inbound=True)
    assert _refused(bench, other) is None


def test_an_asker_sends_few_orders_a_second(bench: Bench) -> None:
    for _ in range(f.FORWARDS_BURST):
        asker = stream_of(bench)
        bench.hear(asker, Forward(PROVIDER.node))
        bench.feed(StreamBroken(asker, "gone"))
    assert _refused(bench, ASKER) is Refusal.RATE_LIMITED
    bench.wait(1.01 / f.FORWARDS_PER_S)
    assert _refused(bench, ASKER) is None


def test_a_provider_is_sent_no_more_jobs_at_once_than_it_takes_from_one_peer(bench: Bench) -> None:
    askers = [signing_key(f"asker {n}") for n in range(f.FORWARDS_PER_PROVIDER_MAX + 1)]
    for asker in askers:
        bench.connect(asker.node, inbound=True)
    assert {_refused(bench, asker) for asker in askers[:-1]} == {None}
    assert _refused(bench, askers[-1]) is Refusal.BUSY
    assert _refused(bench, askers[-1], signing_key("q").node) is None


def test_there_is_a_most_in_all(bench: Bench) -> None:
    """Of jobs with an order. One on which nothing came makes room, the oldest first."""
    provider_keys = [signing_key(f"provider {number}") for number in range(f.FORWARDS_MAX // 16)]
    for key in provider_keys:
        bench.connect(key.node)
    streams = []
    for number in range(f.FORWARDS_MAX):
        key = signing_key(f"asker {number // 4}")
        bench.connect(key.node, inbound=True)
        streams.append((stream_of(bench, key), key, provider_keys[number % len(provider_keys)].node))
        bench.hear(streams[-1][0], Forward(streams[-1][2]))
    silent, others = streams[0], streams[1:]
    for stream, key, provider in others:
        bench.hear(stream, JobOpen(sign_record(order(asker=key.node, provider=provider), key), b""))
    assert bench.peer.statistics().forwards.active == f.FORWARDS_MAX
    assert _refused(bench, ASKER) is None
    assert fault_on(bench, silent[0]) is Refusal.BUSY
    assert not any(isinstance(message, Fault) for stream, *_ in others for message in bench.said[stream])
    last = stream_of(bench, ASKER)
    bench.hear(last, Forward(PROVIDER.node))
    newcomer = signing_key("newcomer")
    bench.connect(newcomer.node, inbound=True)
    assert _refused(bench, newcomer) is None, "the newest without an order are those that just came"


def test_few_providers_are_dialled_at_once(bench: Bench) -> None:
    dialled = 0
    for number in range(f.DIALS_MAX + 1):
        key, name = signing_key(f"asker {number}"), f"provider {number}"
        bench.feed(LearnRecord(provider_record(name, addresses=(ADDRESS,))))
        bench.connect(key.node, inbound=True)
        asker = stream_of(bench, key)
        record = order(asker=key.node, provider=signing_key(name).node)
        bench.hear(asker, Forward(record.provider), JobOpen(sign_record(record, key), b""))
        dialled += len(bench.all(Dial))
    assert dialled == f.DIALS_MAX
    assert fault_on(bench, asker) is Refusal.BUSY


def test_a_second_forward_on_one_stream_is_no_message_of_ours(bench: Bench) -> None:
    # After the order everything is the provider's to judge.
    asker, provider = forwarded(bench)
    again = encode_message(Forward(PROVIDER.node))
    assert sent_to(bench.feed(BytesReceived(asker, again)), provider) == again


def test_accounts_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f, "ACCOUNTS_MAX", 2)
    bench.connect(PROVIDER.node)
    for number in range(3):
        key = signing_key(f"asker {number}")
        bench.connect(key.node, inbound=True)
        asker = stream_of(bench, key)
        bench.hear(asker, Forward(PROVIDER.node), opening(key))
        bench.feed(StreamBroken(asker, "reset"))
    kept = [asker for asker, _, _ in bench.peer.forward_accounts()]
    assert kept == [signing_key("asker 1").node, signing_key("asker 2").node]


def test_no_honest_job_makes_anybody_hang_up(bench: Bench) -> None:
    for _ in range(5):
        asker, provider = forwarded(bench)
        bench.feed(StreamBroken(provider, "reset"))
        bench.feed(StreamBroken(asker, "reset"))
        assert bench.none_of(HangUp)
