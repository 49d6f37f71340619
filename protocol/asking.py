"""The asker's side of jobs: find a provider, order, check every chunk, end with a receipt or a reason.

A job goes through attempts, one provider each. Until the first piece of the answer has arrived a failed attempt is
followed by the next candidate; afterwards the job fails, because another provider would start over.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from protocol import constants as c
from protocol.attempt import Attempt
from protocol.codec import SEALED_LIMITS, decode_struct, encode_message, encode_value
from protocol.directory import Directory
from protocol.envelope import Signer, sign_record
from protocol.errors import LocalProtocolError, Refusal, RemoteProtocolError, SealError, refusal_from_code
from protocol.events import (
    Ask,
    Dial,
    Effect,
    FinishStream,
    JobAccepted,
    JobDone,
    JobFailed,
    JobText,
    JobVector,
    Note,
    Now,
    OpenStream,
    RecordLearnt,
    ResetStream,
    Send,
    StopAsking,
)
from protocol.ids import JobId, NodeId, StreamId, short
from protocol.jobs import check_request, order_hash, parts
from protocol.messages import Cancel, Chunk, JobAccept, JobOpen, JobReject, Message, Part, Progress, Receipt
from protocol.records import Heartbeat, JobOpenRecord, Kind, Outcome, SealedPrompt, Signed
from protocol.routing import RouteRequest, choose, model_for
from protocol.sealing import ChunkCipher, Sealer, seal_context, seal_prompt, sealed_size
from protocol.timers import Timers


class Stage(Enum):
    """Where our job is. From OFFERED on the names are those of `jobs.JobState`."""

    SEARCHING = "searching"
    REACHING = "reaching"
    OFFERED = "offered"
    ACCEPTED = "accepted"
    RUNNING = "running"
    CANCELLING = "cancelling"


@dataclass(slots=True)
class _Job:
    ask: Ask
    stage: Stage
    deadline_s: float
    sealed_bytes: int
    provider: NodeId | None = None
    model: str | None = None
    attempts: int = 0
    tried: set[NodeId] = field(default_factory=set)
    attempt: Attempt | None = None
    last_failure: tuple[Refusal, str, int] | None = None


class Asking:
    """The state machine.

    `connected` and `addresses` are the peer's knowledge of the network, `search` asks one peer for providers, or a
    few when none is named, and `next_stream` numbers the streams we open.
    """

    def __init__(
        self,
        signer: Signer,
        sealer: Sealer,
        directory: Directory,
        rng: random.Random,
        *,
        connected: Callable[[NodeId], bool],
        addresses: Callable[[NodeId], tuple[str, ...]],
        search: Callable[[RouteRequest, NodeId | None], list[Effect]],
        next_stream: Callable[[], StreamId],
        connected_only: bool = False,
    ) -> None:
        self._signer = signer
        self._sealer = sealer
        self._directory = directory
        self._rng = rng
        self._connected = connected
        self._addresses = addresses
        self._search = search
        self._next_stream = next_stream
        self._connected_only = connected_only
        self._jobs: dict[JobId, _Job] = {}
        self._by_stream: dict[StreamId, JobId] = {}
        self._timers: Timers[tuple[str, JobId]] = Timers()
        self.zombie_chunks = 0

    def next_deadline(self) -> float | None:
        return self._timers.next_deadline()

    @property
    def active(self) -> int:
        """Jobs that have not ended, those being cancelled included."""
        return len(self._jobs)

    def owns(self, stream: StreamId) -> bool:
        return stream in self._by_stream

    # ------------------------------------------------------------ commands

    def ask(self, ask: Ask, now: Now) -> list[Effect]:
        """Begin a job. Raises LocalProtocolError for a request that no provider could run."""
        if ask.job in self._jobs:
            raise LocalProtocolError("this job id is in use")
        _check_ask(ask)
        sealed_bytes = sealed_size(SealedPrompt(bytes(32), ask.request))
        if sealed_bytes > c.SEALED_BYTES_MAX:
            raise LocalProtocolError(f"the prompt takes {sealed_bytes} bytes sealed; shorten it")
        job = _Job(ask, Stage.SEARCHING, now.monotonic_s + ask.timeout_s, sealed_bytes)
        self._jobs[ask.job] = job
        self._timers.set(("total", ask.job), job.deadline_s)
        return self._next_candidate(job, now)

    def stop(self, command: StopAsking, now: Now) -> list[Effect]:
        """Stop a job for the user, who hears at once; the provider is told and its receipt awaited for a moment."""
        job = self._jobs.get(command.job)
        if job is None or job.stage is Stage.CANCELLING:
            return []
        return self._stop(job, command.code, "the job was cancelled", now)

    def shut_down(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.stage is not Stage.CANCELLING:
                effects += self._stop(job, Refusal.SHUTDOWN, "this node is shutting down", now)
        return effects

    def _stop(self, job: _Job, code: Refusal, text: str, now: Now) -> list[Effect]:
        failed = JobFailed(job.ask.job, code, text)
        attempt = job.attempt
        if attempt is None:
            self._forget(job)
            return [failed]
        job.stage = Stage.CANCELLING
        self._timers.cancel(("total", job.ask.job))
        self._timers.set(("stage", job.ask.job), now.monotonic_s + c.CANCEL_GRACE_S)
        cancel = Cancel(job.ask.job, attempt.order.attempt, int(Refusal.CANCELLED))
        return [Send(attempt.stream, encode_message(cancel)), failed]

    # ------------------------------------------------------------ finding and reaching a provider

    def on_record(self, heartbeat: Heartbeat, now: Now) -> list[Effect]:
        """The directory learnt something: jobs that search or wait for this node's record go on."""
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.stage is Stage.SEARCHING:
                effects += self._next_candidate(job, now)
            elif job.stage is Stage.REACHING and job.provider == heartbeat.node:
                effects += self._offer_if_ready(job, now)
        return effects

    def on_connected(self, peer: NodeId, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.stage is Stage.REACHING and job.provider == peer:
                effects += self._offer_if_ready(job, now)
            elif job.stage is Stage.SEARCHING:
                # It may be a provider whose record we hold, and that only lacked a connection.
                effects += self._next_candidate(job, now)
                if job.stage is Stage.SEARCHING:
                    # Or it may know whom the others did not.
                    effects += self._search(self._route_request(job), peer)
        return effects

    def on_unreachable(self, peer: NodeId, reason: str, now: Now) -> list[Effect]:
        """Dialling failed, or the connection went away while we waited for the peer's record."""
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.stage is Stage.REACHING and job.provider == peer:
                effects += self._attempt_failed(job, Refusal.PEER_LOST, reason, now)
        return effects

    def _next_candidate(self, job: _Job, now: Now) -> list[Effect]:
        ask = job.ask
        if ask.provider is not None:
            if ask.provider in job.tried:
                return self._give_up(job)
            job.provider, job.model = ask.provider, ask.model
        else:
            candidate = choose(
                self._route_request(job),
                self._directory,
                now.wall_ms,
                self._rng,
                ourselves=self._signer.node,
                tried=job.tried,
                connected=self._connected,
                has_address=lambda node: bool(self._addresses(node)),
            )
            if candidate is None:
                return self._search_or_wait(job, now)
            job.provider, job.model = candidate.node, candidate.model
        return self._reach(job, now)

    def _search_or_wait(self, job: _Job, now: Now) -> list[Effect]:
        if job.attempts:
            return self._give_up(job)
        if self._timers.is_set(("stage", job.ask.job)):
            return []  # the search goes on
        self._timers.set(("stage", job.ask.job), now.monotonic_s + c.SEARCH_DEADLINE_S)
        return self._search(self._route_request(job), None)

    def _reach(self, job: _Job, now: Now) -> list[Effect]:
        assert job.provider is not None
        job.stage = Stage.REACHING
        self._timers.set(("stage", job.ask.job), now.monotonic_s + c.REACH_DEADLINE_S)
        if self._connected(job.provider):
            return self._offer_if_ready(job, now)
        addresses = self._addresses(job.provider)
        if not addresses:
            text = f"no address of provider {short(job.provider)} is known"
            return self._attempt_failed(job, Refusal.PEER_LOST, text, now)
        return [Dial(job.provider, addresses)]

    def _route_request(self, job: _Job) -> RouteRequest:
        ask = job.ask
        return RouteRequest(
            ask.model,
            ask.kind,
            context_tokens=ask.output_tokens_max,
            prompt_bytes=job.sealed_bytes,
            connected_only=self._connected_only,
        )

    # ------------------------------------------------------------ ordering

    def _offer_if_ready(self, job: _Job, now: Now) -> list[Effect]:
        """Order from the provider once it is connected and its record, with the key to seal for, is here."""
        assert job.provider is not None
        entry = self._directory.get(job.provider)
        if entry is None or not self._connected(job.provider) or entry.heartbeat.sealing_key is None:
            return []
        model = model_for(entry, RouteRequest(job.model, job.ask.kind))
        offer = entry.offer(model) if model is not None else None
        if offer is None:
            wanted = f"model {job.model!r}" if job.model else "a model for this kind of job"
            return self._attempt_failed(job, Refusal.NO_MODEL, f"the provider does not serve {wanted}", now)
        job.attempts += 1
        ask = job.ask
        context = seal_context(ask.job, job.attempts, self._signer.node, job.provider, None)
        response_key = self._rng.randbytes(32)
        try:
            sealed = seal_prompt(
                SealedPrompt(response_key, ask.request), self._sealer, entry.heartbeat.sealing_key, context
            )
        except SealError as error:
            return self._attempt_failed(job, Refusal.CANNOT_OPEN_SEAL, str(error), now)
        order = JobOpenRecord(
            version=1,
            job=ask.job,
            attempt=job.attempts,
            asker=self._signer.node,
            provider=job.provider,
            lease=None,
            reservation=None,
            kind=ask.kind,
            model=offer.name,
            fingerprint=offer.fingerprint,
            sampling=ask.sampling,
            prompt_tokens_max=offer.context_tokens,
            output_tokens_max=ask.output_tokens_max,
            price_in_uusd=0,
            price_out_uusd=0,
            price_job_uusd=0,
            prepay_max_uusd=0,
            sealed_hash=hashlib.sha256(sealed).digest(),
            sealed_bytes=len(sealed),
            created_at_ms=now.wall_ms,
            expires_at_ms=now.wall_ms + max(1, round((job.deadline_s - now.monotonic_s) * 1000)),
            extensions=(),
        )
        return self._send_order(job, sign_record(order, self._signer), order, sealed, response_key, now)

    def _send_order(
        self, job: _Job, signed: Signed, order: JobOpenRecord, sealed: bytes, response_key: bytes, now: Now
    ) -> list[Effect]:
        stream = self._next_stream()
        hash_ = order_hash(signed.body)
        cipher = ChunkCipher(response_key, hash_)
        job.attempt = Attempt(stream, order, hash_, cipher, len(job.ask.request.inputs), hash_)
        job.stage = Stage.OFFERED
        self._by_stream[stream] = order.job
        # The answer can come only once the whole prompt has arrived, over however slow a line.
        transfer_s = len(sealed) / c.PROMPT_BYTES_PER_S_MIN
        self._timers.set(("stage", order.job), now.monotonic_s + c.ACCEPT_DEADLINE_S + transfer_s)
        first, rest = parts(sealed)
        effects: list[Effect] = [
            OpenStream(stream, order.provider, c.JOB_PROTOCOL),
            Send(stream, encode_message(JobOpen(signed, first))),
        ]
        for index, data in enumerate(rest):
            effects.append(Send(stream, encode_message(Part(order.job, order.attempt, index, data))))
        return effects

    # ------------------------------------------------------------ messages of a job stream

    def on_message(self, stream: StreamId, message: Message, now: Now) -> list[Effect]:
        """Take a message of a job stream that we opened. Raises RemoteProtocolError; the attempt has then failed."""
        job = self._jobs.get(self._by_stream.get(stream, JobId(b"")))
        if job is None or job.attempt is None:
            self.zombie_chunks += isinstance(message, Chunk)
            return []
        if isinstance(message, Chunk):
            return self._on_chunk(job, job.attempt, message, now)
        if isinstance(message, JobAccept):
            return self._on_accept(job, job.attempt, message, now)
        if isinstance(message, Progress):
            return self._on_progress(job, job.attempt, message, now)
        if isinstance(message, JobReject):
            return self._on_reject(job, job.attempt, message, now)
        if isinstance(message, Receipt):
            return self._on_receipt(job, job.attempt, message, now)
        raise RemoteProtocolError(f"{type(message).__name__} does not come from a provider")

    def on_stream_lost(self, stream: StreamId, code: Refusal, text: str, now: Now) -> list[Effect]:
        """The stream broke, ended early or carried nonsense."""
        job = self._jobs.get(self._by_stream.pop(stream, JobId(b"")))
        if job is None:
            return []
        if job.stage is Stage.CANCELLING:
            self._forget(job)
            return []
        started = job.attempt is not None and job.attempt.started
        job.attempt = None
        return self._attempt_failed(job, code, text, now, started=started)

    def _on_accept(self, job: _Job, attempt: Attempt, message: JobAccept, now: Now) -> list[Effect]:
        if attempt.is_accepted:
            raise RemoteProtocolError("a second acceptance")
        record = attempt.accept(message.acceptance)
        if job.stage is Stage.CANCELLING:
            return []
        order = attempt.order
        job.stage = Stage.ACCEPTED
        self._timers.set(("stage", order.job), now.monotonic_s + c.FIRST_CHUNK_DEADLINE_S)
        return [JobAccepted(order.job, order.provider, order.attempt, order.model, record.prompt_tokens)]

    def _on_progress(self, job: _Job, attempt: Attempt, message: Progress, now: Now) -> list[Effect]:
        attempt.check_named(message.job, message.attempt)
        if job.stage is Stage.ACCEPTED:
            self._timers.set(("stage", job.ask.job), now.monotonic_s + c.FIRST_CHUNK_DEADLINE_S)
        elif job.stage is Stage.RUNNING:
            self._timers.set(("stage", job.ask.job), now.monotonic_s + c.PROGRESS_DEADLINE_S)
        return []

    def _on_chunk(self, job: _Job, attempt: Attempt, chunk: Chunk, now: Now) -> list[Effect]:
        if job.stage is Stage.CANCELLING:
            # SPEC 05: The asker MUST drop chunks that arrive after it cancelled.
            self.zombie_chunks += 1
            attempt.fold(chunk)
            return []
        if job.stage not in (Stage.ACCEPTED, Stage.RUNNING):
            raise RemoteProtocolError("a chunk before the acceptance")
        body = attempt.take(chunk)
        job.stage = Stage.RUNNING
        self._timers.set(("stage", job.ask.job), now.monotonic_s + c.PROGRESS_DEADLINE_S)
        if job.ask.kind is Kind.EMBEDDING:
            return [JobVector(job.ask.job, body.index, body.vector)]
        return [JobText(job.ask.job, body.text, chunk.output_tokens)]

    def _on_reject(self, job: _Job, attempt: Attempt, message: JobReject, now: Now) -> list[Effect]:
        attempt.check_named(message.job, message.attempt)
        if job.stage is Stage.CANCELLING:
            return self._close(job, attempt)
        if job.stage is not Stage.OFFERED:
            raise RemoteProtocolError("a refusal after the acceptance")
        better: list[Effect] = []
        for record in message.better:
            try:
                heartbeat = self._directory.add(record, now.wall_ms)
            except RemoteProtocolError:
                continue  # a hint that does not hold is no hint
            if heartbeat is not None:
                better.append(RecordLearnt(heartbeat, record))
        self._leave(job, attempt)
        code = refusal_from_code(message.code)
        failed = self._attempt_failed(job, code, message.text, now, retry_after_ms=message.retry_after_ms)
        return [FinishStream(attempt.stream), *better, *failed]

    def _on_receipt(self, job: _Job, attempt: Attempt, message: Receipt, now: Now) -> list[Effect]:
        record = attempt.check_receipt(message.receipt)
        if job.stage is Stage.CANCELLING:
            return self._close(job, attempt)
        if record.outcome in (Outcome.STOP, Outcome.LENGTH):
            attempt.check_complete()
            return [*self._close(job, attempt), JobDone(attempt.order.job, record)]
        self._leave(job, attempt)
        code = refusal_from_code(record.code)
        text = f"the provider ended the job: {code.name.lower()}"
        failed = self._attempt_failed(job, code, text, now, started=attempt.started)
        return [FinishStream(attempt.stream), *failed]

    def _close(self, job: _Job, attempt: Attempt) -> list[Effect]:
        self._forget(job)
        return [FinishStream(attempt.stream)]

    def _leave(self, job: _Job, attempt: Attempt) -> None:
        self._by_stream.pop(attempt.stream, None)
        job.attempt = None

    # ------------------------------------------------------------ failing

    def _attempt_failed(
        self,
        job: _Job,
        code: Refusal,
        text: str,
        now: Now,
        *,
        started: bool = False,
        retry_after_ms: int = 0,
    ) -> list[Effect]:
        """This provider did not do it: try the next one, or tell the user."""
        assert job.provider is not None
        job.tried.add(job.provider)
        job.last_failure = (code, text, retry_after_ms)
        job.attempts = max(job.attempts, 1)
        note = Note("job.attempt_failed", job.provider, code.name.lower())
        if started or len(job.tried) >= c.ATTEMPTS_MAX:
            return [note, *self._give_up(job)]
        return [note, *self._next_candidate(job, now)]

    def _give_up(self, job: _Job) -> list[Effect]:
        code, text, retry_after_ms = job.last_failure or (Refusal.NO_PROVIDER, _nobody(job), 0)
        self._forget(job)
        return [JobFailed(job.ask.job, code, text, retry_after_ms)]

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.ask.job]
        if job.attempt is not None:
            self._leave(job, job.attempt)
        self._timers.cancel(("total", job.ask.job))
        self._timers.cancel(("stage", job.ask.job))

    def on_deadline(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for name, job_id in self._timers.pop_due(now.monotonic_s):
            job = self._jobs.get(job_id)
            if job is None:
                continue
            if name == "total":
                text = f"the job was not done within {job.ask.timeout_s:g} s"
                effects += self._stop(job, Refusal.DEADLINE, text, now)
            elif not self._timers.is_set((name, job_id)):  # set again: the job went on at this very instant
                effects += self._on_stage_deadline(job, now)
        return effects

    def _on_stage_deadline(self, job: _Job, now: Now) -> list[Effect]:
        if job.stage is Stage.SEARCHING:
            return self._give_up(job)
        if job.stage is Stage.REACHING:
            text = "the provider could not be reached, or did not say what it offers, in time"
            return self._attempt_failed(job, Refusal.DEADLINE, text, now)
        attempt = job.attempt
        assert attempt is not None
        if job.stage is Stage.CANCELLING:
            self._forget(job)
            return [ResetStream(attempt.stream, "no receipt came after the cancel")]
        text = {
            Stage.OFFERED: "the provider did not answer the order in time",
            Stage.ACCEPTED: f"the provider accepted but sent nothing for {c.FIRST_CHUNK_DEADLINE_S:g} s",
            Stage.RUNNING: f"the provider stopped sending for {c.PROGRESS_DEADLINE_S:g} s",
        }[job.stage]
        self._leave(job, attempt)
        reset = ResetStream(attempt.stream, text)
        return [reset, *self._attempt_failed(job, Refusal.DEADLINE, text, now, started=attempt.started)]


def _check_ask(ask: Ask) -> None:
    """Find here what a provider would refuse, or blame us for. Raises LocalProtocolError."""
    wrong = check_request(ask.kind, ask.request)
    if wrong is not None:
        raise LocalProtocolError(wrong)
    if not (0 if ask.kind is Kind.EMBEDDING else 1) <= ask.output_tokens_max <= c.OUTPUT_TOKENS_MAX:
        raise LocalProtocolError(f"between 1 and {c.OUTPUT_TOKENS_MAX} output tokens can be asked for")
    if not 0 < ask.timeout_s <= c.JOB_LIFETIME_MS_MAX / 1000:
        raise LocalProtocolError(f"a job may take up to {c.JOB_LIFETIME_MS_MAX // 1000} s")
    if ask.model is not None and not 0 < len(ask.model) <= c.MODEL_NAME_CHARACTERS_MAX:
        raise LocalProtocolError(f"the name of a model has 1 to {c.MODEL_NAME_CHARACTERS_MAX} characters")
    encode_value(ask.model)  # a name that is no Unicode text would raise later, when nobody who asked is there
    # Building a struct checks no bounds: the decoder does.
    for value in (ask.sampling, ask.request):
        try:
            decode_struct(encode_value(value), type(value), SEALED_LIMITS)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"this cannot be asked: {error}") from None


def _nobody(job: _Job) -> str:
    what = f"model {job.ask.model!r}" if job.ask.model else "any model"
    return f"no provider of {what} for {job.ask.kind.name.lower()} jobs is known or turned up"
