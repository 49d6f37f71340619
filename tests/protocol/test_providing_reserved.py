"""A provider with slots that are held for orders to come, and with orders that an aggregator passes on."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import FinishStream, HangUp, HeartbeatSigned, ResetStream, RunEngine
from protocol.envelope import open_record, sign_record
from protocol.errors import Refusal
from protocol.events import BytesReceived, EngineFinished, EngineStarted, Pressure
from protocol.ids import JobId, RunId, StreamId
from protocol.jobs import order_extensions
from protocol.messages import Cancel, JobReject, Queued, Reserve, Reserved
from protocol.records import Availability, FreePolicy, Heartbeat, Outcome, ReservationRecord
from tests.helpers_machines import ADDRESS, Bench
from tests.helpers_puppets import Order, order_for
from tests.helpers_records import OFFER, order, signing_key

FULL, ASKER = signing_key("full provider"), signing_key("asker")
CONSENT = order_extensions(may_hand_off=True, queue_wait_ms=0)


@pytest.fixture
def bench() -> Bench:
    """A provider with two slots."""
    bench = Bench()
    bench.provide()
    bench.connect(FULL.node, inbound=True, address=ADDRESS)
    bench.connect(ASKER.node, inbound=True, address=ADDRESS)
    return bench


def number(value: int) -> JobId:
    return JobId(value.to_bytes(16, "big"))


def reserve(bench: Bench, job: int = 1, asker: str = "asker") -> Reserved:
    """What is answered to another provider that has no slot for a job."""
    key, wall_ms = signing_key(asker), bench.now().wall_ms
    refused = order(
        job=number(job),
        asker=key.node,
        provider=FULL.node,
        extensions=CONSENT,
        created_at_ms=wall_ms,
        expires_at_ms=wall_ms + 60_000,
    )
    stream = bench.accept_stream(FULL.node, c.JOB_PROTOCOL)
    bench.hear(stream, Reserve(sign_record(refused, key)))
    bench.hear_end(stream)
    return bench.heard(stream, Reserved)


def slot(answer: Reserved) -> JobId:
    assert answer.reservation is not None
    return open_record(answer.reservation, ReservationRecord).reservation


def come(bench: Bench, asker: str, job: int, **changes: Any) -> tuple[StreamId, Order]:
    """An asker orders."""
    key = signing_key(asker)
    bench.connect(key.node, inbound=True, address=ADDRESS)
    stream = bench.accept_stream(key.node, c.JOB_PROTOCOL)
    wanted = order_for(bench, key, job=number(job), **changes)
    bench.hear(stream, *wanted.messages)
    return stream, wanted


def runs(bench: Bench) -> bool:
    return bool(bench.all(RunEngine))


def code(bench: Bench, stream: StreamId) -> Refusal:
    return Refusal(bench.heard(stream, JobReject).code)


def load(bench: Bench) -> int:
    """What the next heartbeat says."""
    bench.provide()
    return open_record(bench.one(HeartbeatSigned).record, Heartbeat).load


# ---------------------------------------------------------------- slots that are held


def test_a_held_slot_is_taken_for_everybody_but_the_one_it_is_for(bench: Bench) -> None:
    held = slot(reserve(bench))
    come(bench, "b", 2)
    assert runs(bench)
    stream, _ = come(bench, "c", 3)
    assert code(bench, stream) is Refusal.BUSY
    stream, _ = come(bench, "c", 4, reservation=held)
    assert code(bench, stream) is Refusal.BUSY
    come(bench, "asker", 1, reservation=held)
    assert runs(bench)


def test_a_reservation_is_good_for_one_order(bench: Bench) -> None:
    held = slot(reserve(bench))
    come(bench, "b", 2)
    come(bench, "asker", 1, reservation=held)
    stream, _ = come(bench, "asker", 1, reservation=held, attempt=2)
    # The later attempt has ended the earlier one, whose engine has yet to leave its slot.
    assert code(bench, stream) is Refusal.BUSY


def test_a_held_slot_counts_as_load(bench: Bench) -> None:
    assert load(bench) == 0
    reserve(bench)
    assert load(bench) == c.LOAD_STEPS // 2


def test_a_slot_for_which_nobody_came_goes_to_who_waits(bench: Bench) -> None:
    reserve(bench)
    come(bench, "b", 2)
    waits = order_extensions(may_hand_off=False, queue_wait_ms=60_000)
    stream, _ = come(bench, "c", 3, extensions=waits)
    assert bench.heard(stream, Queued).position == 0
    assert not runs(bench)
    bench.wait(c.RESERVATION_LIFETIME_MS_MAX / 1000)
    assert runs(bench)


def test_who_comes_for_a_held_slot_does_not_stand_in_the_queue(bench: Bench) -> None:
    held = slot(reserve(bench))
    come(bench, "b", 2)
    come(bench, "c", 3, extensions=order_extensions(may_hand_off=False, queue_wait_ms=60_000))
    come(bench, "asker", 1, reservation=held)
    assert runs(bench)


def test_an_expired_reservation_makes_an_order_like_any_other(bench: Bench) -> None:
    held = slot(reserve(bench))
    bench.wait(c.RESERVATION_LIFETIME_MS_MAX / 1000)
    come(bench, "asker", 1, reservation=held)
    assert runs(bench)


def test_an_order_that_is_refused_leaves_the_slot_held(bench: Bench) -> None:
    held = slot(reserve(bench))
    stream, _ = come(bench, "asker", 1, reservation=held, price_job_uusd=1)
    assert code(bench, stream) is Refusal.LEASE
    come(bench, "asker", 1, reservation=held)
    assert runs(bench)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"availability": Availability.DRAINING}, Refusal.DRAINING),
        ({"free_policy": FreePolicy.KNOWN}, Refusal.NOT_FREE),
        ({"models": ()}, Refusal.NO_MODEL),
        ({"sealed_bytes_max": 100}, Refusal.TOO_LARGE),
    ],
    ids=["draining", "known", "no model", "too large"],
)
def test_nothing_is_held_for_an_order_that_would_be_refused(
    bench: Bench, changes: dict[str, Any], expected: Refusal
) -> None:
    bench.provide(**changes)
    assert reserve(bench).code == expected


def test_nothing_is_held_where_all_slots_are_taken_or_waited_for(bench: Bench) -> None:
    come(bench, "b", 2)
    come(bench, "c", 3)
    assert reserve(bench).code == Refusal.BUSY
    come(bench, "d", 4, extensions=order_extensions(may_hand_off=False, queue_wait_ms=60_000))
    bench.feed(EngineStarted(RunId(1), 3), EngineFinished(RunId(1), Outcome.STOP, 0))
    assert runs(bench)  # the one that waited
    assert reserve(bench).code == Refusal.BUSY


def test_nothing_is_held_by_who_has_too_much_to_do(bench: Bench) -> None:
    bench.feed(Pressure(is_high=True))
    assert reserve(bench).code == Refusal.BUSY


def test_an_asker_gets_no_more_slots_by_having_them_held(bench: Bench) -> None:
    bench.provide(models=(replace(OFFER, concurrency=8),))
    come(bench, "asker", 1)
    come(bench, "asker", 2)
    assert reserve(bench, 3).code == Refusal.RATE_LIMITED


# ---------------------------------------------------------------- orders that an aggregator passes on


def test_an_aggregator_is_not_blamed_for_what_its_askers_send(bench: Bench) -> None:
    bench.provide(models=(replace(OFFER, concurrency=16),))
    for job in range(1, c.BAD_FRAMES_MAX + 2):
        stream = bench.accept_stream(FULL.node, c.JOB_PROTOCOL)
        bench.hear(stream, *order_for(bench, signing_key(f"asker {job}"), job=number(job)).messages)
        assert runs(bench)
        bench.feed(BytesReceived(stream, b"\0\0\0\x01\xc1"))
        assert stream in [reset.stream for reset in bench.all(ResetStream)]
        assert not bench.all(HangUp)


@pytest.mark.parametrize("ending", ["refused", "stopped"])
def test_nor_for_what_they_send_when_their_order_has_come_to_its_end(bench: Bench, ending: str) -> None:
    for job in range(1, c.BAD_FRAMES_MAX + 2):
        model = "unknown" if ending == "refused" else OFFER.name
        stream = bench.accept_stream(FULL.node, c.JOB_PROTOCOL)
        wanted = order_for(bench, signing_key(f"asker {job}"), job=number(job), model=model)
        bench.hear(stream, *wanted.messages)
        if ending == "stopped":
            bench.hear(stream, Cancel(wanted.record.job, wanted.record.attempt, Refusal.CANCELLED))
            bench.feed(EngineFinished(RunId(job), Outcome.CANCELLED, 0))
        assert stream in [finish.stream for finish in bench.all(FinishStream)]
        bench.feed(BytesReceived(stream, b"\0\0\0\x01\xc1"))
        assert stream in [reset.stream for reset in bench.all(ResetStream)]
        assert not bench.all(HangUp)
        assert not bench.peer._providing.is_forwarded(stream), "nothing is kept of a stream that is gone"


def test_whoever_sends_nonsense_of_its_own_is(bench: Bench) -> None:
    for job in range(1, c.BAD_FRAMES_MAX + 1):
        stream = bench.accept_stream(ASKER.node, c.JOB_PROTOCOL)
        bench.hear(stream, *order_for(bench, ASKER, job=number(job)).messages)
        bench.feed(BytesReceived(stream, b"\0\0\0\x01\xc1"))
    assert bench.all(HangUp)
