"""Orders as they are written: everything that they say comes from the job, the provider's record, or the moment."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.asked import Job, Stage
from protocol.attempt import Attempt
from protocol.codec import JOB_LIMITS, FrameReader
from protocol.effects import Effect, OpenStream, Send
from protocol.envelope import open_record
from protocol.errors import SealError
from protocol.events import Ask
from protocol.ids import StreamId
from protocol.jobs import FEATURE_ACKNOWLEDGES, may_hand_off, queue_wait_ms
from protocol.messages import JobOpen, Message, Part
from protocol.ordering import Ordering
from protocol.records import ChatMessage, ChunkBody, JobOpenRecord, JobRequest
from protocol.sealing import open_prompt, seal_context
from tests.helpers_machines import chat, entry_of, now, sealer_of
from tests.helpers_records import NOW_MS, OFFER, signing_key

ASKER = signing_key("asker")
ENTRY = entry_of("p", sealing_key=sealer_of("p").public_key(NOW_MS), features=(FEATURE_ACKNOWLEDGES,))


@pytest.fixture
def ordering() -> Ordering:
    numbers = itertools.count(1, 2)
    return Ordering(ASKER, sealer_of("asker"), random.Random(1), lambda: StreamId(next(numbers)))


def job_of(ask: Ask | None = None) -> Job:
    return Job(ask or chat(), Stage.REACHING, 30.0)


def messages(effects: list[Effect]) -> list[Message]:
    reader = FrameReader(JOB_LIMITS)
    return [m for effect in effects if isinstance(effect, Send) for m in reader.feed(effect.data)]


def opened(attempt: Attempt, effects: list[Effect]) -> tuple[JobOpenRecord, JobRequest]:
    """Read an order as its provider does."""
    first, *rest = messages(effects)
    assert isinstance(first, JobOpen)
    record = open_record(first.order, JobOpenRecord)
    assert record == attempt.order
    sealed = first.sealed + b"".join(part.sealed for part in rest if isinstance(part, Part))
    assert (record.sealed_bytes, record.sealed_hash) == (len(sealed), hashlib.sha256(sealed).digest())
    context = seal_context(record.job, record.attempt, record.asker, record.provider, record.lease)
    return record, open_prompt(sealed, sealer_of("p"), context).request


def test_an_order_says_what_the_job_wants_and_the_provider_offers(ordering: Ordering) -> None:
    ask = chat(output_tokens_max=33)
    attempt, effects = ordering.order(job_of(ask), ENTRY, OFFER, None, now(10.0))
    record, request = opened(attempt, effects)
    assert effects[0] == OpenStream(attempt.stream, ENTRY.heartbeat.node, c.JOB_PROTOCOL)
    assert (record.job, record.attempt, record.asker) == (ask.job, 1, ASKER.node)
    assert (record.model, record.fingerprint, record.sampling) == (OFFER.name, OFFER.fingerprint, ask.sampling)
    assert (record.output_tokens_max, record.prompt_tokens_max) == (33, OFFER.context_tokens)
    assert (record.created_at_ms, record.expires_at_ms - record.created_at_ms) == (NOW_MS + 10_000, 20_000)
    assert request == ask.request
    assert (attempt.acknowledges, attempt.sealing_key) == (True, ENTRY.heartbeat.sealing_key)


def test_every_order_of_a_job_has_a_number_a_stream_and_a_key_of_its_own(ordering: Ordering) -> None:
    job = job_of()
    first, one = ordering.order(job, ENTRY, OFFER, None, now())
    second, two = ordering.order(job, ENTRY, OFFER, None, now())
    assert [first.order.attempt, second.order.attempt, job.attempts] == [1, 2, 2]
    assert first.stream != second.stream
    body = ChunkBody("the same")
    assert first.cipher.seal(1, 1, 0, body) != second.cipher.seal(1, 1, 0, body)
    assert opened(first, one)[1] == opened(second, two)[1]


def test_an_order_that_continues_asks_for_the_rest(ordering: Ordering) -> None:
    job = job_of(chat(output_tokens_max=50))
    first, _ = ordering.order(job, ENTRY, OFFER, None, now())
    job.take_text(ChunkBody("half", token_ids=b"\0\0\0\5"), first)
    first.chunks, first.output_tokens = 1, 20
    job.settle(first)
    record, request = opened(*ordering.order(job, ENTRY, OFFER, None, now()))
    assert (record.attempt, record.output_tokens_max) == (2, 30)
    assert request == replace(chat().request, continuation="half", continuation_ids=b"\0\0\0\5")


def test_what_an_order_allows_is_in_its_extensions(ordering: Ordering) -> None:
    job = job_of()
    job.queue_wait_ms = 7_000
    record = ordering.order(job, ENTRY, OFFER, None, now())[0].order
    assert (may_hand_off(record), queue_wait_ms(record)) == (True, 7_000)
    chosen = job_of(chat(provider=ENTRY.heartbeat.node))
    assert ordering.order(chosen, ENTRY, OFFER, None, now())[0].order.extensions == ()


def test_a_prompt_that_does_not_fit_one_frame_travels_in_parts(ordering: Ordering) -> None:
    request = JobRequest(messages=(ChatMessage("user", "x" * 150_000),))
    attempt, effects = ordering.order(job_of(chat(request=request)), ENTRY, OFFER, None, now())
    assert opened(attempt, effects)[1] == request
    assert [m.index for m in messages(effects) if isinstance(m, Part)] == list(range(len(messages(effects)) - 1))


def test_a_sealing_key_that_is_none_is_told_before_anything_is_sent() -> None:
    class Refusing:
        def public_key(self, wall_ms: int) -> bytes:
            raise NotImplementedError(wall_ms)

        def seal(self, plaintext: bytes, recipient: bytes, context: bytes) -> bytes:
            raise SealError(f"{len(plaintext)} {len(recipient)} {len(context)}")

        def open(self, sealed: bytes, context: bytes) -> bytes:
            raise NotImplementedError(sealed, context)

    job = job_of()
    ordering = Ordering(ASKER, Refusing(), random.Random(1), lambda: StreamId(1))
    with pytest.raises(SealError):
        ordering.order(job, ENTRY, OFFER, None, now())
    assert job.attempts == 0
