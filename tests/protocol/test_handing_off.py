"""A provider that refuses an order asks others first, with the asker's consent, for half a second."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol import handing_off as h
from protocol import routing
from protocol.codec import encode_message
from protocol.details import Said, extensions_of
from protocol.effects import Dial, FinishStream, OpenStream, ResetStream, Send
from protocol.envelope import open_record, sign_record
from protocol.errors import Refusal
from protocol.events import BytesReceived, DialFailed, LearnRecord, PeerDisconnected, Shutdown, StreamBroken
from protocol.ids import JobId, NodeId, StreamId
from protocol.jobs import order_extensions
from protocol.messages import Cancel, JobReject, Message, Part, Reserve, Reserved
from protocol.records import Availability, FreePolicy, Heartbeat, JobOpenRecord, ReservationRecord, Signed
from tests.helpers_machines import ADDRESS, Bench, provider_record
from tests.helpers_puppets import Order, job_stream, order_for
from tests.helpers_records import OFFER, signing_key

CONSENT = order_extensions(may_hand_off=True, queue_wait_ms=0)
WIDE = replace(OFFER, name="wide", context_tokens=4096)


@pytest.fixture
def bench() -> Bench:
    """A provider that drains: it refuses everything."""
    bench = Bench()
    bench.provide(availability=Availability.DRAINING)
    return bench


def know(bench: Bench, *names: str, connected: bool = True, **changes: Any) -> None:
    """Other providers, the first one the least loaded."""
    for load, name in enumerate(names):
        fields: dict[str, Any] = {"free_policy": FreePolicy.ALL, "load": load, "addresses": (ADDRESS,), **changes}
        bench.feed(LearnRecord(provider_record(name, **fields)))
        if connected:
            bench.connect(signing_key(name).node)


def ordered(bench: Bench, **changes: Any) -> tuple[StreamId, Order]:
    """An order that agrees to a handoff arrives."""
    fields: dict[str, Any] = {"extensions": CONSENT, **changes}
    stream, wanted = job_stream(bench), order_for(bench, **fields)
    bench.hear(stream, *wanted.messages)
    return stream, wanted


def questions(bench: Bench) -> list[tuple[NodeId, StreamId]]:
    """Whom the bench has asked for a slot in the last step."""
    sent = {effect.stream: effect for effect in bench.all(Send)}
    return [
        (opened.peer, opened.stream)
        for opened in bench.all(OpenStream)
        if opened.protocol == c.JOB_PROTOCOL and any(isinstance(said, Reserve) for said in bench.said[opened.stream])
        if opened.stream in sent
    ]


def question(bench: Bench) -> tuple[NodeId, StreamId]:
    (asked,) = questions(bench)
    return asked


def reservation(name: str, wanted: Order, **lies: Any) -> Signed:
    key = signing_key(name)
    record = ReservationRecord(
        version=1,
        reservation=JobId(b"\x07" * 16),
        provider=key.node,
        asker=wanted.record.asker,
        job=wanted.record.job,
        model=wanted.record.model,
        issued_at_ms=wanted.record.created_at_ms,
        expires_at_ms=wanted.record.created_at_ms + c.RESERVATION_LIFETIME_MS_MAX,
        extensions=(),
    )
    return sign_record(replace(record, **lies), key)


def refusal(bench: Bench, stream: StreamId) -> JobReject:
    return bench.heard(stream, JobReject)


def refused(bench: Bench, stream: StreamId) -> bool:
    return any(isinstance(message, JobReject) for message in bench.said[stream])


# ---------------------------------------------------------------- the way it should go


def test_the_least_loaded_is_shown_the_order_and_nothing_of_the_prompt(bench: Bench) -> None:
    know(bench, "b", "c")
    stream, wanted = ordered(bench)
    node, asking = question(bench)
    assert node == signing_key("b").node
    asked = bench.heard(asking, Reserve)
    assert asked.order == wanted.opening.order
    assert bench.all(Send) == [Send(asking, encode_message(asked))]
    assert FinishStream(asking) in bench.effects
    assert not refused(bench, stream)


def test_the_refusal_comes_with_the_reservation_and_the_record_of_who_gave_it(bench: Bench) -> None:
    know(bench, "b", "c")
    stream, wanted = ordered(bench)
    _, asking = question(bench)
    held = reservation("b", wanted)
    bench.hear(asking, Reserved(wanted.record.job, held, 0))
    answer = refusal(bench, stream)
    assert (answer.code, answer.reservation) == (Refusal.DRAINING, held)
    assert open_record(answer.better[0], Heartbeat).node == signing_key("b").node
    assert FinishStream(stream) in bench.effects
    assert bench.peer.statistics().jobs_running == 0


def test_who_has_the_name_as_an_alias_alone_is_not_shown_the_order(bench: Bench) -> None:
    other = (replace(OFFER, name="other"),)
    know(bench, "b", models=other, extensions=extensions_of(other, {"other": Said(aliases=(OFFER.name,))}))
    stream, _ = ordered(bench)
    assert not questions(bench)
    assert refusal(bench, stream).code == Refusal.DRAINING


def test_a_second_one_is_asked_when_the_first_has_no_room(bench: Bench) -> None:
    know(bench, "b", "c", "d")
    stream, wanted = ordered(bench)
    _, asking = question(bench)
    bench.hear(asking, Reserved(wanted.record.job, None, int(Refusal.BUSY)))
    node, asking = question(bench)
    assert node == signing_key("c").node
    bench.hear(asking, Reserved(wanted.record.job, None, int(Refusal.BUSY)))
    assert not questions(bench)  # never a third
    assert refusal(bench, stream).reservation is None


def test_a_second_one_is_asked_when_the_first_is_slow_and_either_may_answer(bench: Bench) -> None:
    know(bench, "b", "c")
    stream, wanted = ordered(bench)
    _, first = question(bench)
    bench.wait(h.ANSWER_DEADLINE_S)
    node, second = question(bench)
    assert node == signing_key("c").node
    held = reservation("b", wanted)
    bench.hear(first, Reserved(wanted.record.job, held, 0))
    assert refusal(bench, stream).reservation == held
    assert bench.one(ResetStream).stream == second


def test_nobody_answers_and_the_refusal_goes_out_in_time(bench: Bench) -> None:
    know(bench, "b", "c")
    stream, _ = ordered(bench)
    _, first = question(bench)
    bench.wait(h.ANSWER_DEADLINE_S)
    _, second = question(bench)
    bench.wait(h.HANDOFF_DEADLINE_S - h.ANSWER_DEADLINE_S - 0.01)
    assert not refused(bench, stream)
    bench.wait(0.01)
    assert refusal(bench, stream).reservation is None
    assert {effect.stream for effect in bench.all(ResetStream)} == {first, second}
    assert h.HANDOFF_DEADLINE_S <= 0.5


def test_one_that_is_not_connected_is_dialled_when_no_other_is_left(bench: Bench) -> None:
    know(bench, "far", connected=False)
    stream, wanted = ordered(bench)
    assert bench.one(Dial).peer == signing_key("far").node
    bench.connect(signing_key("far").node, greets=False)
    _, asking = question(bench)
    held = reservation("far", wanted)
    bench.hear(asking, Reserved(wanted.record.job, held, 0))
    assert refusal(bench, stream).reservation == held


def test_one_is_dialled_at_most(bench: Bench) -> None:
    know(bench, "far", "farther", connected=False)
    stream, _ = ordered(bench)
    bench.feed(DialFailed(bench.one(Dial).peer, "refused"))
    assert bench.none_of(Dial)
    assert refusal(bench, stream).reservation is None


def test_connected_ones_come_before_idle_ones_that_are_not(bench: Bench) -> None:
    know(bench, "far", connected=False)
    bench.feed(LearnRecord(provider_record("near", free_policy=FreePolicy.ALL, load=5)))
    bench.connect(signing_key("near").node)
    ordered(bench)
    assert question(bench)[0] == signing_key("near").node
    assert bench.none_of(Dial)


# ---------------------------------------------------------------- who is asked, and when


@pytest.mark.parametrize("extensions", [(), order_extensions(may_hand_off=False, queue_wait_ms=50)])
def test_without_consent_nobody_hears_of_it(bench: Bench, extensions: Any) -> None:
    know(bench, "b")
    stream, _ = ordered(bench, extensions=extensions)
    assert not questions(bench)
    assert refusal(bench, stream).reservation is None


@pytest.mark.parametrize(
    "changes",
    [
        {"load": c.LOAD_STEPS},
        {"availability": Availability.DRAINING},
        {"free_policy": FreePolicy.NOBODY},
        {"models": (replace(OFFER, fingerprint=b"\x12" * 32),)},
        {"models": (replace(OFFER, context_tokens=127),)},
        {"sealed_bytes_max": 100},
    ],
    ids=lambda changes: next(iter(changes)) + str(len(str(changes))),
)
def test_who_cannot_take_it_either_is_not_asked(bench: Bench, changes: dict[str, Any]) -> None:
    know(bench, "b", **changes)
    stream, _ = ordered(bench)
    assert not questions(bench)
    assert refused(bench, stream)


def test_the_asker_itself_is_not_asked(bench: Bench) -> None:
    know(bench, "asker")
    stream, _ = ordered(bench)
    assert not questions(bench)
    assert refused(bench, stream)


def test_weights_that_nobody_knows_are_equal_to_any(bench: Bench) -> None:
    know(bench, "b")
    ordered(bench, fingerprint=bytes(32))
    assert questions(bench)


@pytest.mark.parametrize(
    ("loading", "code"), [((), Refusal.NO_MODEL), (("wide",), Refusal.ENGINE_UNAVAILABLE)], ids=["unknown", "loading"]
)
def test_a_model_that_we_do_not_serve_now_is_handed_on(bench: Bench, loading: tuple[str, ...], code: Refusal) -> None:
    bench.provide(models_loading=loading)
    know(bench, "b", models=(WIDE,))
    stream, wanted = ordered(bench, model="wide")
    _, asking = question(bench)
    held = reservation("b", wanted)
    bench.hear(asking, Reserved(wanted.record.job, held, 0))
    assert refusal(bench, stream).code == code


@pytest.mark.parametrize("code", [Refusal.NOT_FREE, Refusal.STALE, Refusal.LEASE])
def test_what_is_wrong_with_the_order_itself_is_nobody_elses_business(bench: Bench, code: Refusal) -> None:
    bench.provide(free_policy=FreePolicy.NOBODY if code is Refusal.NOT_FREE else FreePolicy.ALL)
    know(bench, "b")
    stream = job_stream(bench)
    wanted = order_for(bench, extensions=CONSENT, price_job_uusd=5 if code is Refusal.LEASE else 0)
    if code is Refusal.STALE:
        wanted = replace_order(wanted, replace(wanted.record, created_at_ms=bench.now().wall_ms - 10**6))
    bench.hear(stream, *wanted.messages)
    assert refusal(bench, stream).code == code
    assert not questions(bench)


def replace_order(wanted: Order, record: JobOpenRecord) -> Order:
    signed = sign_record(record, signing_key("asker"))
    return Order(record, replace(wanted.opening, order=signed), wanted.rest, wanted.cipher, wanted.order_hash)


def test_a_stranger_makes_others_check_few_signatures(bench: Bench) -> None:
    know(bench, "b")
    asked = 0
    for number in range(h.HANDOFFS_BURST + 4):
        stream, _ = ordered(bench, job=JobId(number.to_bytes(16, "big")))
        asked += len(questions(bench))
        bench.feed(StreamBroken(stream, "gone"))
    assert asked == h.HANDOFFS_BURST


# ---------------------------------------------------------------- an order that is about to be refused


def test_the_rest_of_the_prompt_is_dropped(bench: Bench) -> None:
    know(bench, "b")
    stream, wanted = ordered(bench)
    bench.hear(stream, Part(wanted.record.job, 1, 0, b"x"))
    assert bench.none_of(ResetStream, FinishStream)
    assert bench.peer.statistics().bad_frames == 0


def test_an_asker_that_closes_its_side_still_hears_the_refusal(bench: Bench) -> None:
    know(bench, "b")
    stream, _ = ordered(bench)
    bench.hear_end(stream)
    assert bench.none_of(FinishStream)
    bench.wait(h.HANDOFF_DEADLINE_S)
    assert refused(bench, stream)


def test_a_cancel_ends_it_at_once(bench: Bench) -> None:
    know(bench, "b")
    stream, wanted = ordered(bench)
    _, asking = question(bench)
    bench.hear(stream, Cancel(wanted.record.job, 1, int(Refusal.CANCELLED)))
    assert refusal(bench, stream).code == Refusal.CANCELLED
    assert bench.one(ResetStream).stream == asking


def test_an_asker_that_is_gone_needs_no_slot(bench: Bench) -> None:
    know(bench, "b")
    stream, _ = ordered(bench)
    _, asking = question(bench)
    bench.feed(StreamBroken(stream, "reset"))
    assert bench.one(ResetStream).stream == asking
    bench.wait(1)
    assert not refused(bench, stream)


def test_a_shutdown_ends_it_at_once(bench: Bench) -> None:
    know(bench, "b")
    stream, _ = ordered(bench)
    bench.feed(Shutdown())
    assert refusal(bench, stream).code == Refusal.SHUTDOWN


def test_a_second_order_on_the_stream_breaks_the_protocol(bench: Bench) -> None:
    know(bench, "b")
    stream, wanted = ordered(bench)
    bench.hear(stream, wanted.opening)
    assert bench.peer.statistics().bad_frames == 1
    assert stream in [reset.stream for reset in bench.all(ResetStream)]


# ---------------------------------------------------------------- answers that are none


@pytest.mark.parametrize(
    "lies",
    [{"asker": signing_key("x").node}, {"job": JobId(bytes(16))}, {"model": "other"}],
    ids=["asker", "job", "model"],
)
def test_a_reservation_for_something_else_is_a_lie(bench: Bench, lies: dict[str, Any]) -> None:
    know(bench, "b", "c")
    stream, wanted = ordered(bench)
    _, asking = question(bench)
    bench.hear(asking, Reserved(wanted.record.job, reservation("b", wanted, **lies), 0))
    assert bench.peer.statistics().bad_frames == 1
    assert question(bench)[0] == signing_key("c").node
    assert not refused(bench, stream)


def test_a_reservation_that_somebody_else_signed_is_a_lie(bench: Bench) -> None:
    know(bench, "b")
    stream, wanted = ordered(bench)
    _, asking = question(bench)
    bench.hear(asking, Reserved(wanted.record.job, reservation("c", wanted), 0))
    assert bench.peer.statistics().bad_frames == 1
    assert refusal(bench, stream).reservation is None


def test_a_reservation_of_a_later_version_is_none(bench: Bench) -> None:
    know(bench, "b")
    stream, wanted = ordered(bench)
    _, asking = question(bench)
    body = b"\x92\x02\xc0"
    signed = Signed(body, signing_key("b").sign(ReservationRecord.TAG, body))
    bench.hear(asking, Reserved(wanted.record.job, signed, 0))
    assert refusal(bench, stream).reservation is None
    assert bench.peer.statistics().bad_frames == 0


@pytest.mark.parametrize("answer", [Cancel(JobId(bytes(16)), 1, 1), Reserved(JobId(bytes(16)), None, 1)])
def test_an_answer_to_something_else_is_none(bench: Bench, answer: Message) -> None:
    know(bench, "b")
    stream, _ = ordered(bench)
    _, asking = question(bench)
    bench.hear(asking, answer)
    assert bench.peer.statistics().bad_frames == 1
    assert refused(bench, stream)


@pytest.mark.parametrize("how", ["reset", "ended", "hung up", "nonsense"])
def test_whoever_does_not_answer_is_passed_over(bench: Bench, how: str) -> None:
    know(bench, "b", "c")
    stream, _ = ordered(bench)
    node, asking = question(bench)
    if how == "reset":
        bench.feed(StreamBroken(asking, "reset"))
    elif how == "ended":
        bench.hear_end(asking)
    elif how == "hung up":
        bench.feed(PeerDisconnected(node))
    else:
        bench.feed(BytesReceived(asking, b"\0\0\0\x01\xc1"))
    assert question(bench)[0] == signing_key("c").node
    assert not refused(bench, stream)


def test_an_answer_that_comes_too_late_is_dropped(bench: Bench) -> None:
    know(bench, "b")
    stream, wanted = ordered(bench)
    _, asking = question(bench)
    bench.wait(h.HANDOFF_DEADLINE_S)
    bench.hear(asking, Reserved(wanted.record.job, reservation("b", wanted), 0))
    assert bench.effects == []
    assert refusal(bench, stream).reservation is None


# ---------------------------------------------------------------- looking for somebody costs little


def test_a_large_market_is_sampled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    genuine = routing.exclusion

    def counted(*args: Any, **kwargs: Any) -> Any:
        looked.append(args)
        return genuine(*args, **kwargs)

    monkeypatch.setattr(h, "exclusion", counted)
    for number in range(3 * h.SAMPLE):
        bench.feed(LearnRecord(provider_record(f"p{number}", free_policy=FreePolicy.ALL)))
    ordered(bench)
    assert len(looked) == h.SAMPLE


def test_equal_ones_take_turns_by_chance(bench: Bench) -> None:
    know(bench, "b", "c", load=0)
    asked = set()
    for number in range(8):
        ordered(bench, job=JobId(number.to_bytes(16, "big")))
        asked.add(question(bench)[0])
        bench.wait(2)
    assert asked == {signing_key("b").node, signing_key("c").node}
