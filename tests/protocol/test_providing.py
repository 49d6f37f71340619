"""The provider's side of a job: admitted once, run once, streamed, ended with a receipt or a refusal."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import CancelEngine, FinishStream, Note, ResetStream, RunEngine, Send
from protocol.envelope import open_record
from protocol.errors import Refusal
from protocol.events import (
    EngineFailed,
    EngineFinished,
    EngineProgress,
    EngineStarted,
    EngineText,
    EngineVector,
    LearnRecord,
    OutboxFull,
    Shutdown,
    StreamBroken,
)
from protocol.ids import JobId, RunId, StreamId
from protocol.messages import Cancel, Chunk, Fault, JobAccept, JobReject, Message, Part, Progress, Receipt
from protocol.records import Availability, ChatMessage, JobAcceptRecord, JobRequest, Kind, Outcome, ReceiptRecord
from tests.helpers_machines import Bench, provider_record
from tests.helpers_puppets import HELLO, Order, job_stream, order_for
from tests.helpers_records import OFFER, signing_key

RUN = RunId(1)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.provide()
    return bench


def opened(bench: Bench, **changes: Any) -> tuple[StreamId, Order]:
    """An order whose run has been handed to the engine."""
    stream, wanted = job_stream(bench), order_for(bench, **changes)
    bench.hear(stream, *wanted.messages)
    assert bench.one(RunEngine).run == RUN
    return stream, wanted


def accepted(bench: Bench, **changes: Any) -> tuple[StreamId, Order]:
    stream, wanted = opened(bench, **changes)
    bench.feed(EngineStarted(RUN, 17))
    return stream, wanted


def chunks_on(bench: Bench, stream: StreamId) -> list[Chunk]:
    return [message for message in bench.said[stream] if isinstance(message, Chunk)]


def receipt_on(bench: Bench, stream: StreamId) -> ReceiptRecord:
    return open_record(bench.heard(stream, Receipt).receipt, ReceiptRecord)


def refusal_on(bench: Bench, stream: StreamId) -> Refusal:
    return Refusal(bench.heard(stream, JobReject).code)


def is_at_rest(bench: Bench) -> bool:
    return bench.peer.statistics().jobs_running == 0


# ---------------------------------------------------------------- the way it should go


def test_an_order_reaches_the_engine_as_it_was_asked(bench: Bench) -> None:
    _, wanted = opened(bench)
    run = bench.one(RunEngine)
    assert (run.kind, run.model, run.request) == (Kind.CHAT, OFFER.name, HELLO)
    assert run.sampling == wanted.record.sampling
    assert (run.prompt_tokens_max, run.output_tokens_max) == (2048, 128)


def test_acceptance_comes_with_the_count_of_the_engine_and_binds_the_order(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    record = open_record(bench.heard(stream, JobAccept).acceptance, JobAcceptRecord)
    assert (record.job, record.attempt) == (wanted.record.job, 1)
    assert (record.open_hash, record.prompt_tokens) == (wanted.order_hash, 17)
    assert record.fingerprint == OFFER.fingerprint
    assert bench.none_of(FinishStream)


def test_the_first_token_leaves_at_once_and_later_ones_gather(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    bench.feed(EngineText(RUN, "a", 1))
    assert len(chunks_on(bench, stream)) == 1
    bench.feed(EngineText(RUN, "b", 2), EngineText(RUN, "c", 3))
    assert len(chunks_on(bench, stream)) == 1
    bench.wait(c.CHUNK_DELAY_S)
    assert [body.text for body in wanted.open(chunks_on(bench, stream))] == ["a", "bc"]
    assert [chunk.output_tokens for chunk in chunks_on(bench, stream)] == [1, 3]


def test_sixteen_tokens_leave_without_waiting(bench: Bench) -> None:
    stream, _ = accepted(bench)
    bench.feed(EngineText(RUN, "a", 1))
    bench.feed(*[EngineText(RUN, "x", 1 + n) for n in range(1, c.CHUNK_TOKENS_MAX)])
    assert len(chunks_on(bench, stream)) == 1
    bench.feed(EngineText(RUN, "x", 1 + c.CHUNK_TOKENS_MAX))
    assert [chunk.output_tokens for chunk in chunks_on(bench, stream)] == [1, 1 + c.CHUNK_TOKENS_MAX]


def test_a_slow_engine_is_not_slowed_further(bench: Bench) -> None:
    stream, _ = accepted(bench)
    for number in range(1, 6):
        bench.feed(EngineText(RUN, "x", number))
        assert len(chunks_on(bench, stream)) == number
        bench.wait(2 * c.CHUNK_DELAY_S)


def test_the_receipt_accounts_for_what_was_sent(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    bench.wait(0.5)
    bench.feed(EngineText(RUN, "a", 1))
    bench.wait(0.25)
    bench.feed(EngineText(RUN, "b", 2), EngineFinished(RUN, Outcome.STOP, 2))
    chunks, receipt = chunks_on(bench, stream), receipt_on(bench, stream)
    assert (receipt.output_tokens, receipt.prompt_tokens, receipt.chunks) == (2, 17, len(chunks))
    assert receipt.running_hash == wanted.hash_of(chunks)
    assert (receipt.outcome, receipt.code) == (Outcome.STOP, 0)
    assert (receipt.first_token_ms, receipt.last_token_ms) == (500, 750)
    assert (receipt.open_hash, receipt.asker) == (wanted.order_hash, wanted.record.asker)
    assert bench.one(FinishStream).stream == stream
    assert is_at_rest(bench)


def test_tokens_without_text_are_counted_in_a_last_chunk(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    bench.feed(EngineText(RUN, "a", 1), EngineFinished(RUN, Outcome.STOP, 4))
    chunks = chunks_on(bench, stream)
    assert [chunk.output_tokens for chunk in chunks] == [1, 4]
    assert [body.text for body in wanted.open(chunks)] == ["a", ""]
    assert receipt_on(bench, stream).output_tokens == 4


def test_an_answer_without_a_token_ends_with_a_receipt_over_nothing(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    bench.feed(EngineFinished(RUN, Outcome.STOP, 0))
    receipt = receipt_on(bench, stream)
    assert (receipt.chunks, receipt.running_hash) == (0, wanted.order_hash)


def test_a_flood_of_text_in_one_report_is_cut_to_chunks_that_fit(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    text = "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 40_000
    bench.feed(EngineText(RUN, text, 100), EngineFinished(RUN, Outcome.STOP, 100))
    chunks = chunks_on(bench, stream)
    assert len(chunks) > 1
    assert "".join(body.text for body in wanted.open(chunks)) == text
    assert receipt_on(bench, stream).running_hash == wanted.hash_of(chunks)


def test_the_tokens_that_spell_a_text_travel_with_it(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    bench.feed(EngineText(RUN, "a", 1, b"\0\0\0\1"), EngineText(RUN, "b", 2), EngineText(RUN, "c", 3, b"\0\0\0\2" * 2))
    bench.wait(c.CHUNK_DELAY_S)
    assert [(b.text, b.token_ids) for b in wanted.open(chunks_on(bench, stream))] == [
        ("a", b"\0\0\0\1"),
        ("bc", b"\0\0\0\2" * 2),
    ]


def test_more_tokens_at_once_than_a_chunk_holds_are_not_told_and_neither_are_those_after_them(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    flood = b"\0\0\0\1" * 2000
    bench.feed(EngineText(RUN, "a", 1, b"\0\0\0\1"))
    bench.feed(EngineText(RUN, "b" * 2000, 2, flood), EngineFinished(RUN, Outcome.STOP, 2))
    assert [b.token_ids for b in wanted.open(chunks_on(bench, stream))] == [b"\0\0\0\1", b""]
    assert receipt_on(bench, stream).running_hash == wanted.hash_of(chunks_on(bench, stream))


def test_vectors_leave_one_by_one(bench: Bench) -> None:
    bench.provide(models=(replace(OFFER, kinds=(Kind.EMBEDDING,)),))
    request = JobRequest(inputs=("a", "b"))
    stream, wanted = accepted(bench, kind=Kind.EMBEDDING, request=request, output_tokens_max=0)
    bench.feed(EngineVector(RUN, 1, b"\x01" * 8), EngineVector(RUN, 0, b"\x00" * 8))
    bench.feed(EngineFinished(RUN, Outcome.STOP, 5))
    bodies = wanted.open(chunks_on(bench, stream))
    assert [(body.index, body.vector) for body in bodies] == [(1, b"\x01" * 8), (0, b"\x00" * 8)]
    receipt = receipt_on(bench, stream)
    assert (receipt.output_tokens, receipt.chunks) == (0, 2)


def progress_on(bench: Bench, stream: StreamId) -> list[tuple[int, int]]:
    return [(m.done_tokens, m.total_tokens) for m in bench.said[stream] if isinstance(m, Progress)]


def test_an_order_is_acknowledged_before_anything_is_done_about_it(bench: Bench) -> None:
    stream, wanted = job_stream(bench), order_for(bench)
    bench.hear(stream, *wanted.messages)
    assert bench.said[stream] == [Progress(wanted.record.job, 1, 0, 0)]
    assert [type(effect) for effect in bench.effects] == [Send, RunEngine]


def test_real_progress_is_passed_on_once_a_second(bench: Bench) -> None:
    stream, _ = accepted(bench)
    for step in range(12):
        bench.feed(EngineProgress(RUN, step, 100))
        bench.wait(0.25)
    assert progress_on(bench, stream) == [(0, 0), (3, 100), (7, 100), (11, 100)]


def test_an_engine_that_hangs_shows_in_figures_that_stand_still(bench: Bench) -> None:
    stream, _ = accepted(bench)
    bench.feed(EngineProgress(RUN, 8, 100))
    bench.wait(5.5)
    assert progress_on(bench, stream) == [(0, 0), *[(8, 100)] * 5]


def test_whoever_hears_chunks_hears_no_other_signs_of_life(bench: Bench) -> None:
    stream, _ = accepted(bench)
    for number in range(1, 12):
        bench.feed(EngineText(RUN, "x", number))
        bench.wait(0.5)
    assert progress_on(bench, stream) == [(0, 0)]
    bench.wait(c.SIGN_INTERVAL_S)
    assert progress_on(bench, stream) == [(0, 0), (0, 0)]


def test_nothing_but_the_receipt_follows_a_cancel(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    bench.hear(stream, Cancel(wanted.record.job, 1, Refusal.CANCELLED))
    before = list(bench.said[stream])
    bench.wait(5.0)
    assert bench.said[stream] == before


# ---------------------------------------------------------------- prompts in parts


LONG = JobRequest(messages=(ChatMessage("user", "x" * 150_000),))


def test_a_long_prompt_runs_when_its_last_part_is_here(bench: Bench) -> None:
    stream, wanted = job_stream(bench), order_for(bench, request=LONG)
    assert len(wanted.rest) > 2
    for message in wanted.messages[:-1]:
        bench.hear(stream, message)
        assert bench.none_of(RunEngine)
    assert bench.peer.statistics().jobs_running == 1
    bench.hear(stream, wanted.messages[-1])
    assert bench.one(RunEngine).request == LONG


def test_parts_that_do_not_come_free_the_slot(bench: Bench) -> None:
    stream, wanted = job_stream(bench), order_for(bench, request=LONG)
    bench.hear(stream, wanted.opening)
    bench.wait(c.PARTS_DEADLINE_S - 0.001)
    assert [type(message) for message in bench.said[stream]] == [Progress]
    bench.wait(0.001)
    assert refusal_on(bench, stream) is Refusal.DEADLINE
    assert is_at_rest(bench)


@pytest.mark.parametrize("mistake", ["twice", "skipped", "too many bytes", "another job", "after the last"])
def test_wrong_parts_break_the_stream(bench: Bench, mistake: str) -> None:
    stream, wanted = job_stream(bench), order_for(bench, request=LONG)
    bench.hear(stream, wanted.opening)
    first, last = wanted.rest[0], wanted.rest[-1]
    messages: dict[str, list[Message]] = {
        "twice": [first, first],
        "skipped": [wanted.rest[1]],
        "too many bytes": [*wanted.rest[:-1], Part(last.job, last.attempt, last.index, b"x" * 48_000)],
        "another job": [Part(JobId(bytes(16)), 1, 0, first.sealed)],
        "after the last": [*wanted.rest, Part(last.job, last.attempt, last.index + 1, b"x")],
    }
    bench.hear(stream, *messages[mistake])
    assert bench.one(ResetStream).stream == stream
    assert isinstance(bench.said[stream][-1], Fault)
    if mistake == "after the last":
        assert bench.one(CancelEngine).run == RUN
        bench.feed(EngineFinished(RUN, Outcome.CANCELLED, 0))
    assert is_at_rest(bench)


def test_an_order_without_its_first_bytes_waits_for_them_all_in_parts(bench: Bench) -> None:
    stream, wanted = job_stream(bench), order_for(bench)
    bench.hear(stream, replace(wanted.opening, sealed=b""))
    assert bench.none_of(RunEngine)
    bench.hear(stream, Part(wanted.record.job, 1, 0, wanted.opening.sealed))
    assert bench.one(RunEngine)


# ---------------------------------------------------------------- refusals


def refused(bench: Bench, wanted: Order) -> Refusal:
    stream = job_stream(bench)
    bench.hear(stream, *wanted.messages)
    assert bench.one(FinishStream).stream == stream
    assert bench.none_of(RunEngine)
    assert is_at_rest(bench)
    return refusal_on(bench, stream)


def test_a_prompt_that_does_not_open_is_refused(bench: Bench) -> None:
    wanted = order_for(bench)
    garbled = bytes(byte ^ 1 for byte in wanted.opening.sealed)
    assert refused(bench, order_for(bench, sealed=garbled)) is Refusal.BAD_REQUEST
    digest = hashlib.sha256(garbled).digest()
    job = JobId(b"\x07" * 16)
    assert refused(bench, order_for(bench, sealed=garbled, sealed_hash=digest, job=job)) is Refusal.CANNOT_OPEN_SEAL


def test_a_seal_for_another_attempt_does_not_open(bench: Bench) -> None:
    """The seal is bound to its order: what was sealed for attempt 1 cannot be sold as attempt 2."""
    genuine = order_for(bench)
    moved = order_for(
        bench,
        attempt=2,
        sealed=genuine.opening.sealed,
        sealed_hash=genuine.record.sealed_hash,
        sealed_bytes=genuine.record.sealed_bytes,
    )
    assert refused(bench, moved) is Refusal.CANNOT_OPEN_SEAL


def test_a_request_that_does_not_fit_its_kind_is_refused(bench: Bench) -> None:
    assert refused(bench, order_for(bench, request=JobRequest(prompt="once"))) is Refusal.BAD_REQUEST


def test_what_the_engine_refuses_is_refused_with_its_words(bench: Bench) -> None:
    stream, _ = opened(bench)
    bench.feed(EngineFailed(RUN, Refusal.CONTEXT_EXCEEDED, "too long for this model"))
    reject = bench.heard(stream, JobReject)
    assert (reject.code, reject.text) == (Refusal.CONTEXT_EXCEEDED, "too long for this model")
    assert is_at_rest(bench)


def test_an_engine_that_counts_more_than_was_allowed_is_stopped_before_the_asker_must(bench: Bench) -> None:
    stream, _ = opened(bench, prompt_tokens_max=10)
    bench.feed(EngineStarted(RUN, 11))
    assert bench.one(CancelEngine).run == RUN
    bench.feed(EngineFinished(RUN, Outcome.CANCELLED, 0))
    assert refusal_on(bench, stream) is Refusal.CONTEXT_EXCEEDED


def test_a_full_provider_names_others_and_when_to_come_again(bench: Bench) -> None:
    for name in ("full", "other"):
        bench.feed(LearnRecord(provider_record(name)))
    for number in range(OFFER.concurrency):
        key = signing_key(f"asker {number}")
        bench.hear(job_stream(bench, key), *order_for(bench, key).messages)
    stream = job_stream(bench)
    bench.hear(stream, *order_for(bench).messages)
    reject = bench.heard(stream, JobReject)
    assert (reject.code, len(reject.better)) == (Refusal.BUSY, 2)
    assert reject.retry_after_ms > 0


def test_the_same_attempt_is_run_once_whoever_brings_it_again(bench: Bench) -> None:
    _, wanted = accepted(bench)
    again = bench.accept_stream(signing_key("relay").node, c.JOB_PROTOCOL)
    bench.hear(again, *wanted.messages)
    assert refusal_on(bench, again) is Refusal.DUPLICATE
    bench.feed(EngineFinished(RUN, Outcome.STOP, 0))
    once_more = bench.accept_stream(signing_key("relay").node, c.JOB_PROTOCOL)
    bench.hear(once_more, *wanted.messages)
    assert refusal_on(bench, once_more) is Refusal.DUPLICATE
    assert bench.none_of(RunEngine)


def test_a_forged_order_breaks_the_stream(bench: Bench) -> None:
    stream, wanted = job_stream(bench), order_for(bench)
    bench.hear(stream, replace(wanted.opening, order=replace(wanted.opening.order, signature=bytes(64))))
    assert bench.one(ResetStream)
    assert bench.none_of(RunEngine)


def test_more_sealed_bytes_than_stated_break_the_stream(bench: Bench) -> None:
    stream, wanted = job_stream(bench), order_for(bench, sealed_bytes=100)
    bench.hear(stream, wanted.opening)
    assert bench.one(ResetStream)


def test_a_second_order_on_one_stream_is_not_run(bench: Bench) -> None:
    stream, _ = opened(bench)
    bench.hear(stream, *order_for(bench, job=JobId(b"\x07" * 16)).messages)
    assert bench.one(ResetStream)
    assert bench.none_of(RunEngine)


@pytest.mark.parametrize("together", [True, False])
def test_an_order_after_a_refusal_on_one_stream_is_not_run(bench: Bench, together: bool) -> None:
    """The stream is answered and finished: whatever comes on it, nothing is sent on it any more."""
    stream = job_stream(bench)
    bad, good = order_for(bench, model="other"), order_for(bench, job=JobId(b"\x07" * 16))
    if together:
        bench.hear(stream, bad.opening, good.opening)
    else:
        bench.hear(stream, bad.opening)
        bench.hear(stream, good.opening)
    assert bench.none_of(RunEngine)
    assert len(bench.said[stream]) == 1
    assert is_at_rest(bench)


@pytest.mark.parametrize("message", [Cancel(JobId(bytes(16)), 1, 65), Part(JobId(bytes(16)), 1, 0, b"x")])
def test_what_comes_for_an_ended_job_is_nobodys_fault(bench: Bench, message: Message) -> None:
    stream, _ = accepted(bench)
    bench.feed(EngineFinished(RUN, Outcome.STOP, 0))
    bench.hear(stream, message)
    assert bench.effects == []


def test_an_asker_does_not_say_what_a_provider_says(bench: Bench) -> None:
    stream, wanted = opened(bench)
    bench.hear(stream, Progress(wanted.record.job, 1, 1, 1))
    assert bench.one(ResetStream)


# ---------------------------------------------------------------- cancelling


def test_a_cancel_stops_the_engine_and_ends_with_a_receipt_over_what_was_sent(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    bench.feed(EngineText(RUN, "a", 1), EngineText(RUN, "b", 2))
    bench.hear(stream, Cancel(wanted.record.job, 1, 65))
    assert bench.one(CancelEngine).run == RUN
    bench.feed(EngineText(RUN, "c", 3))
    bench.wait(0.5)
    assert len(chunks_on(bench, stream)) == 1
    bench.feed(EngineFinished(RUN, Outcome.CANCELLED, 3))
    bench.wait(1.0)
    chunks, receipt = chunks_on(bench, stream), receipt_on(bench, stream)
    assert [chunk.output_tokens for chunk in chunks] == [1]
    assert (receipt.output_tokens, receipt.chunks) == (1, 1)
    assert receipt.running_hash == wanted.hash_of(chunks)
    assert (receipt.outcome, receipt.code) == (Outcome.CANCELLED, Refusal.CANCELLED)
    assert is_at_rest(bench)


def test_a_second_cancel_changes_nothing(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    bench.hear(stream, Cancel(wanted.record.job, 1, 65))
    assert bench.hear(stream, Cancel(wanted.record.job, 1, 65)) == []


def test_a_cancel_of_another_job_breaks_the_stream(bench: Bench) -> None:
    stream, _ = accepted(bench)
    bench.hear(stream, Cancel(JobId(bytes(16)), 1, 65))
    assert bench.one(ResetStream)
    assert bench.one(CancelEngine)


def test_a_cancel_before_the_acceptance_ends_with_a_refusal(bench: Bench) -> None:
    stream, wanted = opened(bench)
    bench.hear(stream, Cancel(wanted.record.job, 1, 65))
    bench.feed(EngineStarted(RUN, 17), EngineFinished(RUN, Outcome.CANCELLED, 0))
    assert refusal_on(bench, stream) is Refusal.CANCELLED
    assert is_at_rest(bench)


def test_a_cancel_before_the_prompt_is_complete_never_meets_the_engine(bench: Bench) -> None:
    stream, wanted = job_stream(bench), order_for(bench, request=LONG)
    bench.hear(stream, wanted.opening)
    bench.hear(stream, Cancel(wanted.record.job, 1, 65))
    assert bench.none_of(CancelEngine)
    assert refusal_on(bench, stream) is Refusal.CANCELLED
    assert is_at_rest(bench)


def test_an_engine_that_finishes_as_it_is_cancelled_is_cancelled(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    bench.hear(stream, Cancel(wanted.record.job, 1, 65))
    bench.feed(EngineFinished(RUN, Outcome.STOP, 9))
    assert receipt_on(bench, stream).outcome is Outcome.CANCELLED


def test_an_engine_that_does_not_stop_is_reported_and_its_slot_stays_taken(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    bench.hear(stream, Cancel(wanted.record.job, 1, 65))
    bench.wait(c.CANCEL_DEADLINE_S - 0.001)
    assert bench.none_of(Note)
    bench.wait(0.001)
    assert bench.one(Note).event == "engine.slow_cancel"
    bench.wait(60.0)
    assert bench.peer.statistics().jobs_running == 1
    bench.feed(EngineFailed(RUN, Refusal.ENGINE_FAILED, "it was restarted"))
    assert receipt_on(bench, stream).outcome is Outcome.CANCELLED
    assert is_at_rest(bench)


@pytest.mark.parametrize("event", [StreamBroken, OutboxFull])
def test_an_asker_that_is_gone_or_does_not_read_frees_the_slot(bench: Bench, event: type) -> None:
    stream, _ = accepted(bench)
    bench.feed(EngineText(RUN, "a", 1))
    bench.feed(event(stream, "gone") if event is StreamBroken else event(stream))
    assert bench.one(CancelEngine).run == RUN
    assert len(bench.all(ResetStream)) == (event is OutboxFull)
    bench.feed(EngineText(RUN, "b", 20), EngineFinished(RUN, Outcome.CANCELLED, 20))
    assert bench.none_of(Send)
    assert is_at_rest(bench)


def test_an_asker_that_closed_its_side_still_reads(bench: Bench) -> None:
    stream, _ = opened(bench)
    bench.hear_end(stream)
    bench.feed(EngineStarted(RUN, 17), EngineText(RUN, "a", 1), EngineFinished(RUN, Outcome.STOP, 1))
    assert receipt_on(bench, stream).output_tokens == 1
    assert bench.peer.statistics().streams == 0


def test_a_stream_that_ends_before_any_order_is_closed(bench: Bench) -> None:
    stream = job_stream(bench)
    bench.hear_end(stream)
    assert bench.one(FinishStream).stream == stream
    assert bench.peer.statistics().streams == 0


# ---------------------------------------------------------------- other ends


def test_an_order_that_expires_is_stopped(bench: Bench) -> None:
    stream, _ = accepted(bench)
    bench.feed(EngineText(RUN, "a", 1))
    bench.wait(59.999)
    assert bench.none_of(CancelEngine)
    bench.wait(0.001)
    assert bench.one(CancelEngine).run == RUN
    bench.feed(EngineFinished(RUN, Outcome.CANCELLED, 1))
    receipt = receipt_on(bench, stream)
    assert (receipt.outcome, receipt.code) == (Outcome.FAILED, Refusal.DEADLINE)


def test_an_engine_that_fails_ends_with_a_receipt_over_what_was_sent(bench: Bench) -> None:
    stream, wanted = accepted(bench)
    bench.feed(EngineText(RUN, "a", 1), EngineText(RUN, "b", 2))
    bench.feed(EngineFailed(RUN, Refusal.ENGINE_FAILED, "it broke"))
    chunks, receipt = chunks_on(bench, stream), receipt_on(bench, stream)
    assert (receipt.outcome, receipt.code) == (Outcome.FAILED, Refusal.ENGINE_FAILED)
    assert [body.text for body in wanted.open(chunks)] == ["a", "b"]
    assert receipt.output_tokens == 2


@pytest.mark.parametrize("started", [True, False])
def test_an_engine_that_drops_a_run_that_nobody_cancelled_has_failed(bench: Bench, started: bool) -> None:
    stream, _ = opened(bench)
    if started:
        bench.feed(EngineStarted(RUN, 17))
    bench.feed(EngineFinished(RUN, Outcome.CANCELLED, 0))
    if started:
        assert receipt_on(bench, stream).code == Refusal.ENGINE_FAILED
    else:
        assert refusal_on(bench, stream) is Refusal.ENGINE_FAILED
    assert is_at_rest(bench)


def test_reports_of_runs_that_are_over_do_nothing(bench: Bench) -> None:
    _, _ = accepted(bench)
    bench.feed(EngineFinished(RUN, Outcome.STOP, 0))
    over = (EngineText(RUN, "late", 9), EngineFinished(RUN, Outcome.STOP, 9), EngineStarted(RunId(99), 1))
    assert bench.feed(*over) == []


def test_a_shutdown_stops_every_run_and_takes_no_more(bench: Bench) -> None:
    stream, _ = accepted(bench)
    bench.feed(Shutdown())
    assert bench.one(CancelEngine).run == RUN
    bench.feed(EngineFinished(RUN, Outcome.CANCELLED, 0))
    receipt = receipt_on(bench, stream)
    assert (receipt.outcome, receipt.code) == (Outcome.FAILED, Refusal.SHUTDOWN)
    assert refused(bench, order_for(bench, job=JobId(b"\x07" * 16))) is Refusal.DRAINING


def test_a_draining_provider_finishes_what_runs(bench: Bench) -> None:
    stream, _ = accepted(bench)
    bench.provide(availability=Availability.DRAINING)
    bench.feed(EngineText(RUN, "a", 1), EngineFinished(RUN, Outcome.STOP, 1))
    assert receipt_on(bench, stream).outcome is Outcome.STOP
    assert refused(bench, order_for(bench, job=JobId(b"\x07" * 16))) is Refusal.DRAINING


def test_load_is_told_in_eighths_rounded_up(bench: Bench) -> None:
    bench.provide(models=(replace(OFFER, concurrency=16),))
    loads = [bench.peer._providing.load()]
    for number in range(16):
        key = signing_key(f"asker {number}")
        bench.hear(job_stream(bench, key), *order_for(bench, key).messages)
        loads.append(bench.peer._providing.load())
    assert loads == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]
