"""The asker's side of jobs: find a provider, order, check every chunk, end with a receipt or a reason.

A job goes through attempts, one provider each. Until the first piece of the answer has arrived a failed attempt is
followed by the next candidate; afterwards the job fails, because another provider would start over.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from protocol import constants as c
from protocol.asked import Job, Stage, check_ask
from protocol.attempt import Attempt
from protocol.codec import encode_message
from protocol.directory import Directory, Entry
from protocol.envelope import Signer
from protocol.errors import LocalProtocolError, Refusal, RemoteProtocolError, SealError, refusal_from_code
from protocol.events import (
    Ask,
    Effect,
    FinishStream,
    JobAccepted,
    JobDone,
    JobFailed,
    JobText,
    JobVector,
    Note,
    Now,
    RecordLearnt,
    ResetStream,
    Send,
    StopAsking,
)
from protocol.ids import JobId, NodeId, StreamId
from protocol.messages import Cancel, Chunk, JobAccept, JobReject, Message, Progress, Receipt
from protocol.ordering import Ordering
from protocol.records import Heartbeat, Kind, ModelOffer, Outcome, SealedPrompt
from protocol.routing import RouteRequest
from protocol.sealing import Sealer, sealed_size
from protocol.searching import Outcomes, Searching
from protocol.timers import Timers


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
        self._directory = directory
        self._ordering = Ordering(signer, sealer, rng, next_stream)
        self._searching = Searching(
            signer.node,
            directory,
            rng,
            connected=connected,
            addresses=addresses,
            search=search,
            connected_only=connected_only,
            outcomes=Outcomes(self._offer, self._attempt_failed, self._give_up),
        )
        self._jobs: dict[JobId, Job] = {}
        self._by_stream: dict[StreamId, JobId] = {}
        self._timers: Timers[tuple[str, JobId]] = Timers()
        self.zombie_chunks = 0

    def next_deadline(self) -> float | None:
        deadlines = (self._timers.next_deadline(), self._searching.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

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
        check_ask(ask)
        sealed_bytes = sealed_size(SealedPrompt(bytes(32), ask.request))
        if sealed_bytes > c.SEALED_BYTES_MAX:
            raise LocalProtocolError(f"the prompt takes {sealed_bytes} bytes sealed; shorten it")
        job = Job(ask, Stage.SEARCHING, now.monotonic_s + ask.timeout_s, sealed_bytes)
        self._jobs[ask.job] = job
        self._timers.set(("total", ask.job), job.deadline_s)
        return self._searching.begin(job, now)

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

    def _stop(self, job: Job, code: Refusal, text: str, now: Now) -> list[Effect]:
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

    # ------------------------------------------------------------ what happens in the network

    def on_record(self, heartbeat: Heartbeat, now: Now) -> list[Effect]:
        """The directory learnt something: jobs that look for a provider may go on."""
        return self._searching.on_record(heartbeat, now)

    def on_connected(self, peer: NodeId, now: Now) -> list[Effect]:
        return self._searching.on_connected(peer, now)

    def on_unreachable(self, peer: NodeId, reason: str, now: Now) -> list[Effect]:
        """Dialling failed, or the connection went away while we waited for the peer's record."""
        return self._searching.on_unreachable(peer, reason, now)

    # ------------------------------------------------------------ ordering

    def _offer(self, job: Job, entry: Entry, offer: ModelOffer, now: Now) -> list[Effect]:
        """Order from a provider that is reached."""
        try:
            attempt, effects = self._ordering.order(job, entry, offer, now)
        except SealError as error:
            return self._attempt_failed(job, Refusal.CANNOT_OPEN_SEAL, str(error), now)
        job.attempt = attempt
        job.stage = Stage.OFFERED
        self._by_stream[attempt.stream] = job.ask.job
        # The answer can come only once the whole prompt has arrived, over however slow a line.
        transfer_s = attempt.order.sealed_bytes / c.PROMPT_BYTES_PER_S_MIN
        self._timers.set(("stage", job.ask.job), now.monotonic_s + c.ACCEPT_DEADLINE_S + transfer_s)
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

    def _on_accept(self, job: Job, attempt: Attempt, message: JobAccept, now: Now) -> list[Effect]:
        if attempt.is_accepted:
            raise RemoteProtocolError("a second acceptance")
        record = attempt.accept(message.acceptance)
        if job.stage is Stage.CANCELLING:
            return []
        order = attempt.order
        job.stage = Stage.ACCEPTED
        self._timers.set(("stage", order.job), now.monotonic_s + c.FIRST_CHUNK_DEADLINE_S)
        return [JobAccepted(order.job, order.provider, order.attempt, order.model, record.prompt_tokens)]

    def _on_progress(self, job: Job, attempt: Attempt, message: Progress, now: Now) -> list[Effect]:
        attempt.check_named(message.job, message.attempt)
        if job.stage is Stage.ACCEPTED:
            self._timers.set(("stage", job.ask.job), now.monotonic_s + c.FIRST_CHUNK_DEADLINE_S)
        elif job.stage is Stage.RUNNING:
            self._timers.set(("stage", job.ask.job), now.monotonic_s + c.PROGRESS_DEADLINE_S)
        return []

    def _on_chunk(self, job: Job, attempt: Attempt, chunk: Chunk, now: Now) -> list[Effect]:
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

    def _on_reject(self, job: Job, attempt: Attempt, message: JobReject, now: Now) -> list[Effect]:
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

    def _on_receipt(self, job: Job, attempt: Attempt, message: Receipt, now: Now) -> list[Effect]:
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

    def _close(self, job: Job, attempt: Attempt) -> list[Effect]:
        self._forget(job)
        return [FinishStream(attempt.stream)]

    def _leave(self, job: Job, attempt: Attempt) -> None:
        self._by_stream.pop(attempt.stream, None)
        job.attempt = None

    # ------------------------------------------------------------ failing

    def _attempt_failed(
        self,
        job: Job,
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
        return [note, *self._searching.begin(job, now)]

    def _give_up(self, job: Job) -> list[Effect]:
        code, text, retry_after_ms = job.last_failure or (Refusal.NO_PROVIDER, _nobody(job), 0)
        self._forget(job)
        return [JobFailed(job.ask.job, code, text, retry_after_ms)]

    def _forget(self, job: Job) -> None:
        del self._jobs[job.ask.job]
        self._searching.leave(job)
        if job.attempt is not None:
            self._leave(job, job.attempt)
        self._timers.cancel(("total", job.ask.job))
        self._timers.cancel(("stage", job.ask.job))

    def on_deadline(self, now: Now) -> list[Effect]:
        effects = self._searching.on_deadline(now)
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

    def _on_stage_deadline(self, job: Job, now: Now) -> list[Effect]:
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


def _nobody(job: Job) -> str:
    what = f"model {job.ask.model!r}" if job.ask.model else "any model"
    return f"no provider of {what} for {job.ask.kind.name.lower()} jobs is known or turned up"
