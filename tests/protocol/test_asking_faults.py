"""The asker's side of a job when the provider lies, and when the user has had enough."""

from __future__ import annotations

from typing import Any

import pytest

from protocol import constants as c
from protocol.effects import FinishStream, JobAccepted, JobDone, JobFailed, JobText, JobVector, OpenStream, ResetStream
from protocol.errors import Refusal
from protocol.events import OutboxFull, Shutdown, StopAsking, StreamBroken
from protocol.ids import JobId
from protocol.messages import Cancel, Message, Progress
from protocol.records import ChunkBody, JobRequest, Kind, Outcome
from tests.helpers_asking import EMBEDDER, bench_with, is_at_rest, running
from tests.helpers_machines import Bench, chat
from tests.helpers_records import OFFER, signing_key

# ---------------------------------------------------------------- lies


LIES: dict[str, Any] = {
    "acceptance of another order": lambda p: [p.accept(open_hash=bytes(32))],
    "acceptance for another job": lambda p: [p.accept(job=JobId(bytes(16)))],
    "acceptance for another attempt": lambda p: [p.accept(attempt=2)],
    "acceptance with too many prompt tokens": lambda p: [p.accept(prompt_tokens=OFFER.context_tokens + 1)],
    "acceptance with other weights": lambda p: [p.accept(fingerprint=b"\x99" * 32)],
    "two acceptances": lambda p: [p.accept(), p.accept()],
    "refusal after the acceptance": lambda p: [p.accept(), p.reject(Refusal.BUSY)],
    "refusal of another job": lambda p: [p.reject(Refusal.BUSY, job=JobId(bytes(16)))],
    "progress of another job": lambda p: [p.accept(), Progress(JobId(bytes(16)), 1, 0, 0)],
    "chunk before the acceptance": lambda p: [p.chunk("a")],
    "receipt before the acceptance": lambda p: [p.receipt()],
    "first chunk is not the first": lambda p: [p.accept(), p.chunk("a", number=2)],
    "chunk of another job": lambda p: [p.accept(), p.chunk("a", job=JobId(bytes(16)))],
    "chunk of another attempt": lambda p: [p.accept(), p.chunk("a", attempt=2)],
    "chunk with other counts": lambda p: [p.accept(), p.chunk("a", output_tokens=5)],
    "chunk over the limit": lambda p: [p.accept(), p.chunk("a", 101)],
    "chunk that asks for money": lambda p: [p.accept(), p.chunk("a", owed_uusd=1)],
    "garbled chunk": lambda p: [p.accept(), p.chunk("a", sealed=bytes(80))],
    "message of an asker": lambda p: [Cancel(p.order.job, 1, 0)],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_before_the_first_piece_ends_the_attempt_and_is_blamed(lie: str) -> None:
    bench, (provider, second) = bench_with("p", "q")
    bench.feed(chat())
    provider.take(bench)
    bench.hear(provider.stream, *LIES[lie](provider))
    assert bench.one(ResetStream).stream == provider.stream
    assert bench.peer.statistics().bad_frames == 1
    assert bench.none_of(JobText, JobFailed)
    second.take(bench)


@pytest.mark.parametrize(
    "lies",
    [
        {"open_hash": bytes(32)},
        {"job": JobId(bytes(16))},
        {"attempt": 2},
        {"asker": signing_key("z").node},
        {"chunks": 2},
        {"running_hash": bytes(32)},
        {"output_tokens": 2},
        {"prompt_tokens": 4},
        {"owed_uusd": 1},
    ],
)
def test_a_receipt_that_differs_from_what_arrived_is_none(lies: dict[str, Any]) -> None:
    bench, provider = running()
    bench.hear(provider.stream, provider.receipt(**lies))
    assert bench.one(ResetStream).stream == provider.stream
    assert bench.peer.statistics().bad_frames == 1
    assert bench.none_of(JobDone)


def test_counts_that_go_back_are_a_lie() -> None:
    bench, provider = running()
    bench.hear(provider.stream, provider.chunk("b", -1))
    assert bench.one(ResetStream).stream == provider.stream
    assert bench.none_of(JobText)


@pytest.mark.parametrize(
    "bodies",
    [
        [ChunkBody("", 2, b"\x01" * 8)],
        [ChunkBody("", 0, b"\x01" * 8), ChunkBody("", 0, b"\x01" * 8)],
        [ChunkBody("", 0, b"\x01" * 7)],
        [ChunkBody("", 0, b"")],
        [ChunkBody("text", 0, b"")],
        [ChunkBody("", 0, b"\x01" * 8)],
    ],
)
def test_vectors_that_were_not_asked_for_or_are_missing_are_a_lie(bodies: list[ChunkBody]) -> None:
    bench, (provider,) = bench_with("p", models=(EMBEDDER,))
    bench.feed(chat(kind=Kind.EMBEDDING, request=JobRequest(inputs=("a", "b")), output_tokens_max=0))
    provider.take(bench)
    bench.hear(provider.stream, provider.accept(), *[provider.chunk(body, 0) for body in bodies], provider.receipt())
    assert bench.one(JobFailed).code is Refusal.PROTOCOL
    assert bench.none_of(JobDone)
    assert len(bench.all(JobVector)) < 2


# ---------------------------------------------------------------- cancelling


def test_a_cancelled_job_ends_for_the_user_at_once_and_what_comes_after_is_dropped_and_counted() -> None:
    bench, provider = running()
    bench.feed(StopAsking(chat().job))
    assert bench.one(JobFailed).code is Refusal.CANCELLED
    assert bench.heard(provider.stream, Cancel).attempt == 1
    bench.hear(provider.stream, provider.chunk("late"), provider.chunk("later"))
    assert bench.effects == []
    assert bench.peer.statistics().zombie_chunks == 2
    bench.hear(provider.stream, provider.receipt(Outcome.CANCELLED, Refusal.CANCELLED))
    assert bench.effects == [FinishStream(provider.stream)]
    assert is_at_rest(bench)


@pytest.mark.parametrize("honest", [True, False])
def test_the_receipt_of_a_cancelled_job_must_count_what_was_dropped(honest: bool) -> None:
    bench, provider = running()
    bench.feed(StopAsking(chat().job))
    bench.hear(provider.stream, provider.chunk("late"))
    changes = {} if honest else {"output_tokens": 9}
    bench.hear(provider.stream, provider.receipt(Outcome.CANCELLED, Refusal.CANCELLED, **changes))
    assert bench.peer.statistics().bad_frames == (not honest)
    assert bench.none_of(JobFailed, JobDone)
    assert is_at_rest(bench)


def test_an_embedding_that_was_done_as_it_was_cancelled_is_nobodys_fault() -> None:
    bench, (provider,) = bench_with("p", models=(EMBEDDER,))
    bench.feed(chat(kind=Kind.EMBEDDING, request=JobRequest(inputs=("a",)), output_tokens_max=0))
    provider.take(bench)
    bench.feed(StopAsking(chat().job))
    vector = provider.chunk(ChunkBody("", 0, b"\x01" * 8), 0)
    bench.hear(provider.stream, provider.accept(), vector, provider.receipt())
    assert bench.peer.statistics().bad_frames == 0
    assert bench.none_of(JobVector, JobDone)
    assert is_at_rest(bench)


@pytest.mark.parametrize("answer", ["accept", "reject", "receipt", "broken", "end", "overflow", "silence"])
def test_a_job_cancelled_while_it_is_offered_ends_whatever_the_provider_answers(answer: str) -> None:
    bench, (provider, _) = bench_with("p", "q")
    bench.feed(chat())
    provider.take(bench)
    bench.feed(StopAsking(chat().job))
    assert bench.one(JobFailed)
    answers: dict[str, Message] = {
        "accept": provider.accept(),
        "reject": provider.reject(Refusal.CANCELLED),
    }
    if answer == "receipt":
        bench.hear(provider.stream, provider.accept(), provider.receipt(Outcome.CANCELLED))
        assert bench.effects == [FinishStream(provider.stream)]
    elif answer in answers:
        bench.hear(provider.stream, answers[answer])
    elif answer == "broken":
        bench.feed(StreamBroken(provider.stream, "reset"))
    elif answer == "end":
        bench.hear_end(provider.stream)
    elif answer == "overflow":
        bench.feed(OutboxFull(provider.stream))
    else:
        bench.feed()
    assert bench.none_of(JobFailed, JobDone, JobAccepted, OpenStream)
    bench.wait(c.CANCEL_GRACE_S)
    assert is_at_rest(bench)
    assert bench.none_of(JobFailed, OpenStream)


@pytest.mark.parametrize("stage", ["searching", "reaching"])
def test_a_job_without_an_order_is_cancelled_without_a_word(stage: str) -> None:
    bench = Bench() if stage == "searching" else bench_with("p", connected=False)[0]
    bench.feed(chat())
    bench.feed(StopAsking(chat().job))
    assert [type(effect) for effect in bench.effects] == [JobFailed]
    assert is_at_rest(bench)
    bench.connect(signing_key("p").node)
    assert all(effect.protocol != c.JOB_PROTOCOL for effect in bench.all(OpenStream))


def test_cancelling_twice_or_what_is_over_does_nothing() -> None:
    bench, provider = running()
    bench.feed(StopAsking(chat().job))
    assert bench.feed(StopAsking(chat().job)) == []
    assert bench.feed(StopAsking(JobId(bytes(16)))) == []
    bench.hear(provider.stream, provider.receipt(Outcome.CANCELLED))
    assert bench.feed(StopAsking(chat().job)) == []


def test_a_shutdown_cancels_every_job_in_every_stage() -> None:
    bench, (provider,) = bench_with("p")
    bench.feed(chat(1))
    provider.take(bench)
    bench.feed(chat(2, model="unknown"))
    bench.feed(Shutdown())
    assert {failed.job for failed in bench.all(JobFailed)} == {chat(1).job, chat(2).job}
    assert {failed.code for failed in bench.all(JobFailed)} == {Refusal.SHUTDOWN}
    bench.wait(c.CONTROL_DEADLINE_S)
    assert is_at_rest(bench)
