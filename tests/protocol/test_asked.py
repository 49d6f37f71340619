"""What is kept of a job of ours, and what it decides: whether another provider may go on, and with what."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.asked import Job, Stage
from protocol.attempt import Attempt
from protocol.effects import Served
from protocol.errors import Refusal
from protocol.events import Ask
from protocol.ids import StreamId
from protocol.records import ChunkBody, JobRequest, Kind
from protocol.sealing import ChunkCipher
from tests.helpers_machines import chat
from tests.helpers_records import PROVIDER, order, signing_key

HASH = bytes(32)
OTHER = signing_key("other").node


def job_of(ask: Ask | None = None) -> Job:
    job = Job(ask or chat(), Stage.SEARCHING, 600.0)
    job.measure()
    return job


def attempt_of(number: int = 1, tokens: int = 0, **changes: Any) -> Attempt:
    """An attempt that has brought so many tokens."""
    attempt = Attempt(StreamId(1), order(attempt=number, **changes), HASH, ChunkCipher(HASH, HASH), 0, HASH)
    attempt.chunks, attempt.output_tokens, attempt.prompt_tokens = tokens, tokens, 7
    return attempt


def test_what_has_arrived_is_what_the_next_one_continues() -> None:
    job = job_of(chat(request=replace(chat().request, continuation="Once ")))
    before = job.sealed_bytes
    attempt = attempt_of(tokens=3)
    for text, ids in (("upon ", b"\0\0\0\1"), ("a time", b"\0\0\0\2\0\0\0\3")):
        job.take_text(ChunkBody(text, token_ids=ids), attempt)
    job.settle(attempt)
    assert job.request().continuation == "Once upon a time"
    assert job.request().continuation_ids == b"\0\0\0\1\0\0\0\2\0\0\0\3"
    assert job.output_tokens_left == chat().output_tokens_max - 3
    assert job.served == [Served(attempt.order.provider, 1, 7, 3)]
    job.take_text(ChunkBody("x" * 3000), attempt)
    job.measure()
    assert job.sealed_bytes > before


def test_an_attempt_that_brought_nothing_is_not_accounted_for() -> None:
    job = job_of()
    job.settle(attempt_of())
    assert (job.served, job.output_tokens, job.has_begun) == ([], 0, False)
    assert job.request() is chat().request or job.request() == chat().request


def test_a_refusal_for_want_of_a_slot_is_no_failure_unless_it_was_to_wait() -> None:
    job = job_of()
    job.fail(PROVIDER.node, Refusal.BUSY, "full", 3_000, had_order=True)
    assert (job.failures, job.busy) == (0, {PROVIDER.node: 3_000})
    job.queue_wait_ms = 10_000
    job.fail(PROVIDER.node, Refusal.BUSY, "full", 3_000, had_order=True)
    assert (job.failures, job.busy) == (1, {})


@pytest.mark.parametrize(
    ("code", "had_order", "is_lost"),
    [
        (Refusal.PEER_LOST, True, True),
        (Refusal.PEER_LOST, False, False),
        (Refusal.DEADLINE, True, True),
        (Refusal.ENGINE_FAILED, True, True),
        (Refusal.SHUTDOWN, True, True),
        (Refusal.PROTOCOL, True, False),
        (Refusal.NOT_FREE, True, False),
        (Refusal.INTERNAL, True, False),
    ],
)
def test_only_who_went_away_in_the_middle_may_be_asked_again(code: Refusal, had_order: bool, is_lost: bool) -> None:
    job = job_of()
    job.fail(PROVIDER.node, code, "", 0, had_order=had_order)
    assert (job.lost == [PROVIDER.node]) is is_lost
    assert PROVIDER.node in job.tried


def test_text_starts_the_count_of_failures_anew() -> None:
    job = job_of()
    for _ in range(c.ATTEMPTS_MAX - 1):
        job.fail(PROVIDER.node, Refusal.PEER_LOST, "", 0, had_order=True)
    assert job.may_go_on(Refusal.PEER_LOST)
    job.take_text(ChunkBody("a"), attempt_of())
    for _ in range(c.ATTEMPTS_MAX - 1):
        job.fail(OTHER, Refusal.PEER_LOST, "", 0, had_order=True)
    assert job.may_go_on(Refusal.PEER_LOST)
    job.fail(OTHER, Refusal.PEER_LOST, "", 0, had_order=True)
    assert not job.may_go_on(Refusal.PEER_LOST)


def test_orders_are_bounded_whatever_they_bring() -> None:
    job = job_of()
    job.attempts = c.ORDERS_MAX - 1
    assert job.may_go_on(Refusal.PEER_LOST)
    job.attempts = c.ORDERS_MAX
    assert not job.may_go_on(Refusal.PEER_LOST)


@pytest.mark.parametrize("code", list(Refusal))
def test_an_answer_that_has_begun_goes_on_but_for_what_the_asker_did(code: Refusal) -> None:
    job = job_of()
    assert job.may_go_on(code)
    job.take_text(ChunkBody("a"), attempt_of())
    assert job.may_go_on(code) is (code not in (Refusal.CANCELLED, Refusal.SLOW_READER, Refusal.UNPAID))


def test_what_cannot_be_continued_is_not() -> None:
    unknown = job_of()
    unknown.take_text(ChunkBody("a"), attempt_of(fingerprint=bytes(32)))
    vectors = job_of(chat(kind=Kind.EMBEDDING, request=JobRequest(inputs=("a",)), output_tokens_max=0))
    vectors.take_text(ChunkBody(), attempt_of())
    whole = job_of(chat(output_tokens_max=3))
    attempt = attempt_of(tokens=3)
    whole.take_text(ChunkBody("a"), attempt)
    whole.settle(attempt)
    assert not any(job.may_go_on(Refusal.PEER_LOST) for job in (unknown, vectors, whole))
