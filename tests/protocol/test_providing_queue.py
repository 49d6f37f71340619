"""Orders that wait at a provider: told where they stand, never for ever, fair and bounded; and how it drains."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import CancelEngine, Drained, HeartbeatSigned, ResetStream, RunEngine
from protocol.envelope import SigningKey, open_record
from protocol.errors import Refusal
from protocol.events import Allow, Drain, EngineFinished, EngineStarted, LearnRecord, Pressure, SetOffer, StreamBroken
from protocol.ids import RunId, StreamId
from protocol.jobs import order_extensions
from protocol.messages import Cancel, JobReject, Progress, Queued, Receipt
from protocol.queueing import RUN_GUESS_S
from protocol.records import Availability, ChatMessage, Heartbeat, JobRequest, Outcome, ReceiptRecord
from tests.helpers_machines import Bench, offer, provider_record
from tests.helpers_puppets import Order, job_stream, order_for
from tests.helpers_records import OFFER, signing_key

WAITS = {"extensions": order_extensions(may_hand_off=False, queue_wait_ms=30_000)}
FAR_AWAY = "/ip4/198.51.100.7/tcp/50000"


def bench_full(slots: int = 1) -> Bench:
    """A provider whose slots are all taken, by the runs 1 to `slots`."""
    bench = Bench()
    bench.provide(models=(replace(OFFER, concurrency=slots),))
    for number in range(slots):
        bench.hear(
            job_stream(bench, signing_key(f"first {number}")),
            *order_for(bench, signing_key(f"first {number}")).messages,
        )
        bench.feed(EngineStarted(RunId(number + 1), 5))
    assert bench.peer.statistics().jobs_running == slots
    return bench


def ask(
    bench: Bench, name: str, *, address: str = "/ip4/127.0.0.1/tcp/50000", **changes: Any
) -> tuple[StreamId, Order]:
    key = signing_key(name)
    stream, wanted = job_stream(bench, key, address), order_for(bench, key, **(WAITS | changes))
    bench.hear(stream, *wanted.messages)
    return stream, wanted


def places(bench: Bench, stream: StreamId) -> list[int]:
    return [message.position for message in bench.said[stream] if isinstance(message, Queued)]


def free_a_slot(bench: Bench, run: int) -> None:
    bench.feed(EngineFinished(RunId(run), Outcome.STOP, 0))


def refusal(bench: Bench, stream: StreamId) -> JobReject:
    return bench.heard(stream, JobReject)


# ---------------------------------------------------------------- waiting


def test_an_order_that_may_wait_is_told_its_place_and_runs_when_a_slot_is_free() -> None:
    bench = bench_full()
    stream, wanted = ask(bench, "asker")
    assert bench.said[stream] == [Queued(wanted.record.job, 1, 0, round(RUN_GUESS_S * 1000))]
    assert bench.none_of(RunEngine)
    bench.wait(4.0)
    free_a_slot(bench, 1)
    assert bench.one(RunEngine).run == RunId(2)
    assert isinstance(bench.said[stream][-1], Progress)
    assert bench.peer.statistics().jobs_waiting == 0


def test_an_order_that_may_not_wait_is_refused_with_the_time_until_a_slot_is_free() -> None:
    bench = bench_full()
    bench.wait(3.0)
    stream, _ = ask(bench, "asker", extensions=())
    assert (refusal(bench, stream).code, refusal(bench, stream).retry_after_ms) == (Refusal.BUSY, 7_000)
    ask(bench, "waits")
    behind, _ = ask(bench, "behind", extensions=())
    assert refusal(bench, behind).retry_after_ms == 17_000


def test_what_is_told_follows_what_runs_have_taken() -> None:
    bench = bench_full()
    bench.wait(2.0)
    free_a_slot(bench, 1)
    ask(bench, "second")
    bench.feed(EngineStarted(RunId(2), 5))
    bench.wait(0.5)
    stream, _ = ask(bench, "third")
    assert bench.heard(stream, Queued).wait_ms == 1_500


def test_a_place_that_changes_is_told_soon_and_one_that_does_not_now_and_then() -> None:
    bench = bench_full()
    ask(bench, "one")
    stream, _ = ask(bench, "two")
    assert places(bench, stream) == [1]
    bench.wait(c.QUEUED_INTERVAL_S)
    assert places(bench, stream) == [1]
    bench.wait(c.QUEUED_CHANGE_S)
    assert places(bench, stream) == [1, 1]
    free_a_slot(bench, 1)
    assert places(bench, stream) == [1, 1]
    bench.wait(c.QUEUED_CHANGE_S)
    assert places(bench, stream) == [1, 1, 0]


def test_whoever_waits_hears_of_it_often_enough_to_believe_it() -> None:
    bench = bench_full()
    stream, _ = ask(bench, "asker")
    bench.wait(29.0)
    gaps = 29.0 / (len(places(bench, stream)) - 1)
    assert gaps < c.SILENCE_DEADLINE_S / 2


def test_askers_take_turns() -> None:
    bench = bench_full()
    bench.feed(Allow(frozenset(signing_key(name).node for name in ("many", "one"))))
    many = [ask(bench, "many", job=bytes([n]) * 16)[0] for n in range(3)]
    one, _ = ask(bench, "one")
    assert places(bench, one) == [1]
    bench.wait(c.QUEUED_CHANGE_S)
    assert [places(bench, stream)[-1] for stream in many] == [0, 2, 3]


def test_slots_that_are_new_go_to_those_who_wait() -> None:
    bench = bench_full()
    stream, _ = ask(bench, "waits")
    bench.feed(SetOffer(offer(models=(replace(OFFER, concurrency=2),))))
    assert bench.one(RunEngine)
    assert isinstance(bench.said[stream][-1], Progress)
    late, _ = ask(bench, "late", extensions=())
    assert refusal(bench, late).code == Refusal.BUSY


def test_those_who_wait_keep_their_place_while_the_engine_is_down() -> None:
    bench = bench_full()
    stream, _ = ask(bench, "waits")
    bench.feed(SetOffer(offer(models=())), EngineFinished(RunId(1), Outcome.STOP, 0))
    bench.wait(3.0)
    assert places(bench, stream)[-1] == 0
    bench.feed(SetOffer(offer()))
    assert bench.one(RunEngine)


def test_a_prompt_may_arrive_while_its_order_waits() -> None:
    bench = bench_full()
    long = JobRequest(messages=(ChatMessage("user", "x" * 100_000),))
    stream, wanted = job_stream(bench), order_for(bench, request=long, **WAITS)
    bench.hear(stream, wanted.opening)
    bench.hear(stream, *wanted.rest)
    bench.wait(c.PARTS_DEADLINE_S)
    assert bench.said[stream][-1] != JobReject
    free_a_slot(bench, 1)
    assert bench.one(RunEngine).request == long


def test_a_prompt_that_does_not_arrive_gives_its_place_up() -> None:
    bench = bench_full()
    long = JobRequest(messages=(ChatMessage("user", "x" * 100_000),))
    stream, wanted = job_stream(bench), order_for(bench, request=long, **WAITS)
    bench.hear(stream, wanted.opening)
    bench.wait(c.PARTS_DEADLINE_S)
    assert refusal(bench, stream).code == Refusal.DEADLINE
    assert bench.peer.statistics().jobs_waiting == 0


def test_an_order_whose_two_deadlines_come_at_once_ends_once() -> None:
    bench = bench_full()
    long = JobRequest(messages=(ChatMessage("user", "x" * 100_000),))
    extensions = order_extensions(may_hand_off=False, queue_wait_ms=round(c.PARTS_DEADLINE_S * 1000))
    stream, wanted = job_stream(bench), order_for(bench, request=long, extensions=extensions)
    bench.hear(stream, wanted.opening)
    bench.wait(c.PARTS_DEADLINE_S)
    assert [type(message) for message in bench.said[stream]].count(JobReject) == 1
    assert bench.peer.statistics().jobs_waiting == 0


# ---------------------------------------------------------------- leaving


@pytest.mark.parametrize("how", ["cancel", "lost"])
def test_whoever_leaves_gives_its_place_to_those_behind(how: str) -> None:
    bench = bench_full()
    first, wanted = ask(bench, "one")
    second, _ = ask(bench, "two")
    if how == "cancel":
        bench.hear(first, Cancel(wanted.record.job, 1, Refusal.CANCELLED))
        assert refusal(bench, first).code == Refusal.CANCELLED
    else:
        bench.feed(StreamBroken(first, "gone"))
    assert bench.none_of(CancelEngine)
    bench.wait(c.QUEUED_CHANGE_S)
    assert places(bench, second)[-1] == 0
    free_a_slot(bench, 1)
    assert bench.one(RunEngine)
    assert bench.peer.statistics().jobs_running == 1


@pytest.mark.parametrize("limit", ["wait", "order"])
def test_an_order_waits_no_longer_than_it_says(limit: str) -> None:
    bench = bench_full()
    wait_ms = 5_000 if limit == "wait" else 600_000
    extensions = order_extensions(may_hand_off=False, queue_wait_ms=wait_ms)
    stream, wanted = ask(bench, "asker", extensions=extensions)
    until_s = 5.0 if limit == "wait" else (wanted.record.expires_at_ms - wanted.record.created_at_ms) / 1000
    bench.wait(until_s - 0.001)
    assert not any(isinstance(message, JobReject) for message in bench.said[stream])
    bench.wait(0.001)
    assert refusal(bench, stream).code == Refusal.BUSY
    assert refusal(bench, stream).retry_after_ms > 0


def test_a_later_attempt_ends_the_one_before_it() -> None:
    bench = bench_full(2)
    first, _ = ask(bench, "asker")
    again, _ = ask(bench, "asker", attempt=2)
    assert refusal(bench, first).code == Refusal.CANCELLED
    assert places(bench, again) == [0]
    running = job_stream(bench, signing_key("first 0"))
    bench.hear(running, *order_for(bench, signing_key("first 0"), attempt=2).messages)
    assert bench.one(CancelEngine).run == RunId(1)


# ---------------------------------------------------------------- bounds


def test_the_queue_is_bounded() -> None:
    bench = bench_full()
    names = [f"asker {n}" for n in range(c.QUEUE_PER_SLOT + 1)]
    streams = [ask(bench, name)[0] for name in names]
    assert [bool(places(bench, stream)) for stream in streams] == [True] * c.QUEUE_PER_SLOT + [False]
    assert refusal(bench, streams[-1]).code == Refusal.BUSY


def test_strangers_leave_half_of_the_queue_to_those_whom_the_owner_knows() -> None:
    bench = bench_full()
    bench.feed(Allow(frozenset({signing_key("friend").node})))
    streams = [ask(bench, f"stranger {n}", address=FAR_AWAY)[0] for n in range(c.QUEUE_PER_SLOT)]
    waiting = [stream for stream in streams if places(bench, stream)]
    assert len(waiting) == c.QUEUE_PER_SLOT // 2
    friend, _ = ask(bench, "friend", address=FAR_AWAY)
    assert places(bench, friend)


def test_strangers_who_wait_for_one_model_take_no_place_of_another() -> None:
    bench = Bench()
    bench.provide(models=tuple(replace(OFFER, name=name, concurrency=1) for name in ("one", "other")))
    for model in ("one", "other"):
        ask(bench, f"runs {model}", model=model)
    for number in range(c.QUEUE_PER_SLOT):
        ask(bench, f"stranger {number}", address=FAR_AWAY, model="one")
    stream, _ = ask(bench, "late stranger", address=FAR_AWAY, model="other")
    assert places(bench, stream) == [0]


def test_a_stranger_has_two_orders_here_those_that_wait_included() -> None:
    bench = bench_full()
    streams = [ask(bench, "stranger", address=FAR_AWAY, job=bytes([n]) * 16)[0] for n in range(3)]
    assert [bool(places(bench, stream)) for stream in streams] == [True, True, False]
    assert refusal(bench, streams[2]).code == Refusal.RATE_LIMITED


def test_what_prompts_take_in_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "ORDERS_BYTES_MAX", 1500)
    bench = bench_full()
    streams = [ask(bench, f"asker {n}")[0] for n in range(3)]
    assert [bool(places(bench, stream)) for stream in streams] == [True, True, False]
    assert refusal(bench, streams[2]).code == Refusal.BUSY


def test_a_node_that_falls_behind_refuses_new_orders_and_goes_on_with_the_old() -> None:
    bench = bench_full(2)
    free_a_slot(bench, 1)
    bench.feed(Pressure(is_high=True))
    stream, _ = ask(bench, "asker")
    assert (refusal(bench, stream).code, refusal(bench, stream).retry_after_ms) == (
        Refusal.BUSY,
        c.OVERLOADED_RETRY_MS,
    )
    free_a_slot(bench, 2)
    bench.feed(Pressure(is_high=False))
    ask(bench, "asker")
    assert bench.one(RunEngine)


# ---------------------------------------------------------------- draining


def availability(bench: Bench) -> Availability:
    return open_record(bench.all(HeartbeatSigned)[-1].record, Heartbeat).availability


def test_a_node_that_drains_says_so_finishes_what_runs_and_sends_the_rest_elsewhere() -> None:
    bench = bench_full()
    bench.feed(LearnRecord(provider_record("other")))
    waiting, _ = ask(bench, "waits")
    bench.feed(Drain())
    assert availability(bench) is Availability.DRAINING
    assert refusal(bench, waiting).code == Refusal.DRAINING
    assert len(refusal(bench, waiting).better) == 1
    assert bench.none_of(CancelEngine, Drained)
    late, _ = ask(bench, "late")
    assert (refusal(bench, late).code, len(refusal(bench, late).better)) == (Refusal.DRAINING, 1)
    assert bench.none_of(Drained)
    free_a_slot(bench, 1)
    assert bench.one(Drained)
    assert bench.feed(SetOffer(offer())) != []
    assert bench.none_of(Drained)
    assert availability(bench) is Availability.DRAINING


def test_an_offer_that_takes_no_jobs_sends_those_who_wait_elsewhere_until_the_next_that_does() -> None:
    bench = bench_full()
    waiting, _ = ask(bench, "waits")
    bench.feed(SetOffer(replace(offer(), availability=Availability.DRAINING)))
    assert refusal(bench, waiting).code == Refusal.DRAINING
    assert bench.none_of(CancelEngine, Drained)
    assert bench.peer.statistics().jobs_running > 0
    free_a_slot(bench, 1)
    assert bench.none_of(Drained)
    bench.feed(SetOffer(offer()))
    ask(bench, "again")
    assert bench.one(RunEngine)


def test_an_idle_node_is_drained_at_once() -> None:
    bench = Bench()
    bench.provide()
    bench.feed(Drain())
    assert bench.one(Drained)


def test_what_runs_when_a_node_drains_ends_with_its_receipt() -> None:
    bench = Bench()
    bench.provide()
    stream, _ = ask(bench, "asker")
    bench.feed(Drain(), EngineStarted(RunId(1), 5))
    free_a_slot(bench, 1)
    receipt = open_record(bench.heard(stream, Receipt).receipt, ReceiptRecord)
    assert receipt.outcome is Outcome.STOP
    assert bench.one(Drained)


# ---------------------------------------------------------------- a provider that started anew


def test_an_order_for_a_key_that_is_gone_is_refused_with_the_new_heartbeat() -> None:
    bench = Bench("bench")
    bench.provide()
    key: SigningKey = signing_key("asker")
    wanted = order_for(bench, key)
    bench.peer._providing._sealer = Bench("restarted").peer._providing._sealer
    stream = job_stream(bench, key)
    bench.hear(stream, *wanted.messages)
    assert refusal(bench, stream).code == Refusal.CANNOT_OPEN_SEAL
    (own,) = refusal(bench, stream).better
    assert open_record(own, Heartbeat).node == bench.peer.node
    assert bench.none_of(RunEngine, ResetStream)
