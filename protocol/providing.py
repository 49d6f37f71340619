"""The provider's side of jobs: check the order, run it once, stream the answer, end with a receipt.

One `_Run` per order that was not refused at once. It starts when the prompt is complete and its seal opens, and it
ends when the engine says that its slot is free, whether or not anyone still listens: until then it counts as load.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol import constants as c
from protocol.admission import Admission, Running, Why
from protocol.codec import encode_message, record_job
from protocol.envelope import Signer, open_record, sign_record
from protocol.errors import BadFrame, Refusal, RemoteProtocolError, SealError, UnknownVersion
from protocol.events import (
    CancelEngine,
    Effect,
    EngineFailed,
    EngineFinished,
    EngineProgress,
    EngineStarted,
    EngineText,
    EngineVector,
    FinishStream,
    Note,
    Now,
    Offer,
    RunEngine,
    RunId,
    Send,
)
from protocol.ids import JobId, NodeId, StreamId
from protocol.jobs import JobState, advance, check_request, cost_uusd, order_hash, running_hash
from protocol.messages import Cancel, Chunk, JobAccept, JobOpen, JobReject, Message, Part, Progress, Receipt
from protocol.records import ChunkBody, JobAcceptRecord, JobOpenRecord, Kind, ModelOffer, Outcome, ReceiptRecord, Signed
from protocol.sealing import ChunkCipher, Sealer, open_prompt, seal_context
from protocol.timers import Timers

# A chunk's text stays below the limit of one byte string, whatever its characters take in UTF-8.
CHUNK_CHARACTERS_MAX = 12 * 1024
# Told to an asker when all slots are taken: about the length of a short answer.
RETRY_AFTER_BUSY_MS = 2_000


@dataclass(slots=True)
class _Run:
    """One order that we took up."""

    run: RunId
    stream: StreamId | None
    peer: NodeId
    order: JobOpenRecord
    order_hash: bytes
    offer: ModelOffer
    state: JobState = JobState.OFFERED
    sealed: bytearray = field(default_factory=bytearray)
    next_part: int = 0
    cipher: ChunkCipher | None = None
    engine_runs: bool = False
    prompt_tokens: int = 0
    output_tokens: int = 0
    sent_tokens: int = 0
    sent_at_s: float = 0.0
    pending: list[ChunkBody] = field(default_factory=list)
    chunks: int = 0
    running_hash: bytes = b""
    accepted_at_ms: int = 0
    accepted_at_s: float = 0.0
    first_token_ms: int = 0
    last_token_ms: int = 0
    cancel_code: Refusal | None = None


class Providing:
    """The state machine. `better` names other providers for a refusal; it is the router's business who they are."""

    def __init__(
        self,
        signer: Signer,
        sealer: Sealer,
        started_at_ms: int,
        better: Callable[[JobOpenRecord], tuple[Signed, ...]],
    ) -> None:
        self._signer = signer
        self._sealer = sealer
        self._better = better
        self._admission = Admission(signer.node, started_at_ms)
        self._runs: dict[RunId, _Run] = {}
        self._by_stream: dict[StreamId, RunId] = {}
        self._next_run = 1
        self._timers: Timers[tuple[str, RunId]] = Timers()

    # ------------------------------------------------------------ what others ask of it

    def set_offer(self, offer: Offer) -> None:
        self._admission.offer = offer

    def allow(self, nodes: frozenset[NodeId]) -> None:
        self._admission.allowed = nodes

    def next_deadline(self) -> float | None:
        return self._timers.next_deadline()

    @property
    def active(self) -> int:
        """Runs that hold or will hold a slot of the engine."""
        return len(self._runs)

    def load(self) -> int:
        """Slots taken of slots offered, in coarse steps of 0 to 8."""
        slots = self._slots()
        if slots == 0:
            return 0
        return min(c.LOAD_STEPS, -(-self.active * c.LOAD_STEPS // slots))

    def job_streams_max(self, peer: NodeId) -> int:
        """How many job streams of this peer are held at once."""
        if peer not in self._admission.allowed:
            return c.JOB_STREAMS_PER_PEER_MAX
        # Whom the owner knows, the coordinator above all, may fill every slot while streams of ended jobs close.
        return max(c.JOB_STREAMS_PER_PEER_MAX, 2 * self._slots())

    def _slots(self) -> int:
        offer = self._admission.offer
        return sum(model.concurrency for model in offer.models) if offer else 0

    def owns(self, stream: StreamId) -> bool:
        return stream in self._by_stream

    # ------------------------------------------------------------ messages of a job stream

    def on_message(self, stream: StreamId, peer: NodeId, local: bool, message: Message, now: Now) -> list[Effect]:
        """Take a message of an inbound job stream. Raises RemoteProtocolError; the peer then resets the stream.

        `local` says that the connection comes from this machine.
        """
        run = self._runs.get(self._by_stream.get(stream, RunId(0)))
        if isinstance(message, JobOpen):
            if run is not None or stream in self._by_stream:
                raise RemoteProtocolError("a second order on one job stream")
            return self._on_open(stream, peer, local, message, now)
        if run is None:
            raise RemoteProtocolError(f"{type(message).__name__} before any order")
        if isinstance(message, Part):
            self._check_belongs(run, message.job, message.attempt)
            return self._on_part(run, message, now)
        if isinstance(message, Cancel):
            self._check_belongs(run, message.job, message.attempt)
            return self._stop(run, Refusal.CANCELLED, now)
        raise RemoteProtocolError(f"{type(message).__name__} does not come from an asker")

    def on_stream_lost(self, stream: StreamId, code: Refusal, now: Now) -> list[Effect]:
        """The asker is gone or reads too slowly: stop its run and free the slot."""
        run = self._runs.get(self._by_stream.pop(stream, RunId(0)))
        if run is None:
            return []
        run.stream = None
        return self._stop(run, code, now)

    def shut_down(self, now: Now) -> list[Effect]:
        """Stop every run; each ends with its receipt."""
        effects: list[Effect] = []
        for run in list(self._runs.values()):
            effects += self._stop(run, Refusal.SHUTDOWN, now)
        return effects

    @staticmethod
    def _check_belongs(run: _Run, job: JobId, attempt: int) -> None:
        if (job, attempt) != (run.order.job, run.order.attempt):
            raise RemoteProtocolError("a message for another job on this stream")

    def _on_open(self, stream: StreamId, peer: NodeId, local: bool, message: JobOpen, now: Now) -> list[Effect]:
        try:
            order = open_record(message.order, JobOpenRecord)
        except UnknownVersion as error:
            return self._reject_unknown(stream, message.order, str(error))
        if len(message.sealed) > order.sealed_bytes:
            raise RemoteProtocolError("more sealed bytes than the order states")
        running = [Running(run.order.asker, run.peer, run.offer.name) for run in self._runs.values()]
        offer = self._admission.admit(order, peer, local, running, now)
        if not isinstance(offer, ModelOffer):
            return self._reject(stream, order, offer)
        hash_ = order_hash(message.order.body)
        run = _Run(RunId(self._next_run), stream, peer, order, hash_, offer, running_hash=hash_)
        self._next_run += 1
        self._runs[run.run] = run
        self._by_stream[stream] = run.run
        run.sealed += message.sealed
        if len(run.sealed) < order.sealed_bytes:
            self._timers.set(("parts", run.run), now.monotonic_s + c.PARTS_DEADLINE_S)
            return []
        return self._start(run, now)

    def _on_part(self, run: _Run, part: Part, now: Now) -> list[Effect]:
        # SPEC 05: The provider MUST treat a `Part` that is not the next one, and bytes beyond the length in the order,
        #   as a bad frame.
        if run.engine_runs or run.state is not JobState.OFFERED or part.index != run.next_part:
            raise RemoteProtocolError("a part of the prompt that is not the next one")
        run.next_part += 1
        run.sealed += part.sealed
        if len(run.sealed) > run.order.sealed_bytes:
            raise RemoteProtocolError("more sealed bytes than the order states")
        return self._start(run, now) if len(run.sealed) == run.order.sealed_bytes else []

    # ------------------------------------------------------------ running

    def _start(self, run: _Run, now: Now) -> list[Effect]:
        """The prompt is complete: open it and hand it to the engine."""
        self._timers.cancel(("parts", run.run))
        order = run.order
        context = seal_context(order.job, order.attempt, order.asker, order.provider, order.lease)
        sealed = bytes(run.sealed)
        run.sealed.clear()
        # SPEC 05: The provider MUST refuse a prompt whose SHA-256 is not the one in the order, with `BAD_REQUEST`.
        if order.sealed_hash != hashlib.sha256(sealed).digest():
            return self._fail_offer(run, Refusal.BAD_REQUEST, "the sealed prompt is not the one that was ordered")
        try:
            prompt = open_prompt(sealed, self._sealer, context)
        except SealError:
            text = "the prompt is sealed for a key that this node no longer holds: fetch its heartbeat again"
            return self._fail_offer(run, Refusal.CANNOT_OPEN_SEAL, text)
        except BadFrame as error:
            return self._fail_offer(run, Refusal.BAD_REQUEST, str(error))
        wrong = check_request(order.kind, prompt.request)
        if wrong is not None:
            return self._fail_offer(run, Refusal.BAD_REQUEST, wrong)
        run.cipher = ChunkCipher(prompt.response_key, run.order_hash)
        run.engine_runs = True
        self._timers.set(("expires", run.run), now.monotonic_s + (order.expires_at_ms - now.wall_ms) / 1000)
        return [
            RunEngine(
                run.run,
                order.kind,
                order.model,
                prompt.request,
                order.sampling,
                order.prompt_tokens_max,
                order.output_tokens_max,
            )
        ]

    def on_engine(
        self,
        event: EngineStarted | EngineProgress | EngineText | EngineVector | EngineFinished | EngineFailed,
        now: Now,
    ) -> list[Effect]:
        """Take what the engine reports. Reports for runs that are over are dropped."""
        run = self._runs.get(event.run)
        if run is None:
            return []
        if isinstance(event, EngineStarted):
            return self._accept(run, event.prompt_tokens, now)
        if isinstance(event, EngineProgress):
            return self._progress(run, event.done_tokens, event.total_tokens, now)
        if isinstance(event, EngineText):
            return self._text(run, event, now)
        if isinstance(event, EngineVector):
            if run.state not in (JobState.ACCEPTED, JobState.RUNNING):
                return []
            run.pending.append(ChunkBody("", event.index, event.vector))
            return self._flush(run, now)
        return self._engine_ended(run, event, now)

    def _accept(self, run: _Run, prompt_tokens: int, now: Now) -> list[Effect]:
        if run.state is not JobState.OFFERED or run.stream is None:
            return []
        if prompt_tokens > run.order.prompt_tokens_max:
            # The engine should have refused it; the asker would have to.
            return self._stop(run, Refusal.CONTEXT_EXCEEDED, now)
        run.prompt_tokens = prompt_tokens
        run.accepted_at_ms = now.wall_ms
        run.accepted_at_s = now.monotonic_s
        run.state = advance(run.state, JobState.ACCEPTED)
        order = run.order
        acceptance = JobAcceptRecord(
            version=1,
            job=order.job,
            attempt=order.attempt,
            provider=self._signer.node,
            lease=order.lease,
            open_hash=run.order_hash,
            fingerprint=run.offer.fingerprint,
            prompt_tokens=prompt_tokens,
            paid_before_uusd=0,
            prefill_uusd=cost_uusd(order, prompt_tokens, 0),
            window_tokens=0,
            window_uusd=0,
            accepted_at_ms=now.wall_ms,
            extensions=(),
        )
        return [Send(run.stream, encode_message(JobAccept(sign_record(acceptance, self._signer))))]

    def _progress(self, run: _Run, done: int, total: int, now: Now) -> list[Effect]:
        if run.state not in (JobState.ACCEPTED, JobState.RUNNING) or run.stream is None:
            return []
        if self._timers.is_set(("quiet", run.run)):
            return []
        # The engine reports as often as it likes; the asker needs to hear once a second. Only real progress is
        # reported: a provider whose engine hangs must look hung.
        self._timers.set(("quiet", run.run), now.monotonic_s + 1.0)
        return [Send(run.stream, encode_message(Progress(run.order.job, run.order.attempt, done, total)))]

    def _text(self, run: _Run, event: EngineText, now: Now) -> list[Effect]:
        if run.state not in (JobState.ACCEPTED, JobState.RUNNING):
            return []
        run.output_tokens = event.output_tokens
        run.pending.append(ChunkBody(event.text))
        # SPEC 05: The provider MUST send the first token at once, and later ones after at most 16 tokens or 20 ms.
        due_s = run.sent_at_s + c.CHUNK_DELAY_S if run.chunks else now.monotonic_s
        if now.monotonic_s >= due_s or run.output_tokens - run.sent_tokens >= c.CHUNK_TOKENS_MAX:
            return self._flush(run, now)
        if not self._timers.is_set(("flush", run.run)):
            self._timers.set(("flush", run.run), due_s)
        return []

    def _flush(self, run: _Run, now: Now) -> list[Effect]:
        """Send what is pending as one chunk (text) or one chunk each (vectors)."""
        self._timers.cancel(("flush", run.run))
        if not run.pending or run.stream is None:
            run.pending.clear()
            return []
        assert run.cipher is not None
        if run.state is JobState.ACCEPTED:
            run.state = advance(run.state, JobState.RUNNING)
        bodies = run.pending
        if run.order.kind is not Kind.EMBEDDING:
            bodies = [ChunkBody(text) for text in _pieces("".join(body.text for body in bodies))]
        run.pending = []
        elapsed_ms = round((now.monotonic_s - run.accepted_at_s) * 1000)
        if run.chunks == 0:
            run.first_token_ms = elapsed_ms
        run.last_token_ms = elapsed_ms
        run.sent_tokens = run.output_tokens
        run.sent_at_s = now.monotonic_s
        data = b"".join(self._chunk(run, body) for body in bodies)
        return [Send(run.stream, data)]

    def _chunk(self, run: _Run, body: ChunkBody) -> bytes:
        assert run.cipher is not None
        run.chunks += 1
        owed = cost_uusd(run.order, run.prompt_tokens, run.output_tokens)
        sealed = run.cipher.seal(run.chunks, run.output_tokens, owed, body)
        run.running_hash = running_hash(run.running_hash, run.chunks, run.output_tokens, owed, sealed)
        return encode_message(Chunk(run.order.job, run.order.attempt, run.chunks, run.output_tokens, owed, sealed))

    # ------------------------------------------------------------ ending

    def _engine_ended(self, run: _Run, event: EngineFinished | EngineFailed, now: Now) -> list[Effect]:
        """The slot is free: account for the run and forget it."""
        run.engine_runs = False
        if isinstance(event, EngineFinished) and (
            run.state is JobState.OFFERED or event.outcome not in (Outcome.STOP, Outcome.LENGTH)
        ):
            # It ended what it never started, or what nobody cancelled.
            event = EngineFailed(event.run, Refusal.ENGINE_FAILED, "the engine dropped the job")
        if run.state is JobState.OFFERED:
            assert isinstance(event, EngineFailed)
            return self._fail_offer(run, event.code, event.text)
        if run.state is JobState.CANCELLING:
            code = run.cancel_code or Refusal.CANCELLED
            outcome = Outcome.CANCELLED if code is Refusal.CANCELLED else Outcome.FAILED
            return self._receipt(run, outcome, code)
        if isinstance(event, EngineFailed):
            return [*self._flush(run, now), *self._receipt(run, Outcome.FAILED, event.code)]
        if run.order.kind is not Kind.EMBEDDING:
            run.output_tokens = event.output_tokens
        if run.output_tokens != run.sent_tokens and not run.pending:
            # Tokens without text, those of a stop string above all, are counted in a last chunk of their own.
            run.pending.append(ChunkBody())
        return [*self._flush(run, now), *self._receipt(run, event.outcome, None)]

    def _receipt(self, run: _Run, outcome: Outcome, code: Refusal | None) -> list[Effect]:
        ended = {Outcome.CANCELLED: JobState.CANCELLED, Outcome.FAILED: JobState.FAILED}.get(outcome, JobState.DONE)
        accepted = run.accepted_at_ms > 0
        stream = run.stream
        run.state = advance(run.state, ended)
        self._forget(run)
        if stream is None:
            return []
        if not accepted:
            return self._reject(stream, run.order, (code or Refusal.CANCELLED, "the job was stopped"))
        order = run.order
        receipt = ReceiptRecord(
            version=1,
            job=order.job,
            attempt=order.attempt,
            provider=self._signer.node,
            asker=order.asker,
            lease=order.lease,
            open_hash=run.order_hash,
            fingerprint=run.offer.fingerprint,
            prompt_tokens=run.prompt_tokens,
            output_tokens=run.sent_tokens,
            chunks=run.chunks,
            running_hash=run.running_hash,
            paid_before_uusd=0,
            owed_uusd=cost_uusd(order, run.prompt_tokens, run.sent_tokens),
            accepted_at_ms=run.accepted_at_ms,
            first_token_ms=run.first_token_ms,
            last_token_ms=run.last_token_ms,
            outcome=outcome,
            code=int(code) if code is not None else 0,
            extensions=(),
        )
        return [Send(stream, encode_message(Receipt(sign_record(receipt, self._signer)))), FinishStream(stream)]

    def _stop(self, run: _Run, code: Refusal, now: Now) -> list[Effect]:
        """Stop a run for this reason. With the engine at work the receipt follows when the slot is free."""
        if run.state is JobState.CANCELLING:
            return []
        run.cancel_code = code
        if not run.engine_runs:
            return self._fail_offer(run, code, "the job was stopped")
        run.state = advance(run.state, JobState.CANCELLING)
        run.pending.clear()
        self._timers.cancel(("flush", run.run))
        self._timers.set(("cancel", run.run), now.monotonic_s + c.CANCEL_DEADLINE_S)
        return [CancelEngine(run.run)]

    def _fail_offer(self, run: _Run, code: Refusal, text: str) -> list[Effect]:
        """A run that was never accepted ends with a refusal."""
        run.state = advance(run.state, JobState.FAILED)
        self._forget(run)
        return self._reject(run.stream, run.order, (code, text)) if run.stream is not None else []

    def _reject(self, stream: StreamId, order: JobOpenRecord, why: Why) -> list[Effect]:
        code, text = why
        retry_after_ms = RETRY_AFTER_BUSY_MS if code in (Refusal.BUSY, Refusal.RATE_LIMITED) else 0
        better = self._better(order) if code in (Refusal.BUSY, Refusal.DRAINING, Refusal.NO_MODEL) else ()
        reject = JobReject(
            order.job, order.attempt, int(code), retry_after_ms, text[: c.TEXT_CHARACTERS_MAX], better, None
        )
        return [
            Send(stream, encode_message(reject)),
            FinishStream(stream),
            Note("job.refused", order.asker, code.name.lower()),
        ]

    @staticmethod
    def _reject_unknown(stream: StreamId, order: Signed, text: str) -> list[Effect]:
        """An order of a newer version: refuse it by name, which all versions state in the same place."""
        named = record_job(order.body)
        if named is None:
            raise RemoteProtocolError(text)
        job, attempt = named
        reject = JobReject(JobId(job), attempt, int(Refusal.UNSUPPORTED), 0, text[: c.TEXT_CHARACTERS_MAX], (), None)
        return [Send(stream, encode_message(reject)), FinishStream(stream)]

    def _forget(self, run: _Run) -> None:
        del self._runs[run.run]
        if run.stream is not None:
            self._by_stream.pop(run.stream, None)
        for name in ("parts", "expires", "quiet", "flush", "cancel"):
            self._timers.cancel((name, run.run))

    # ------------------------------------------------------------ time

    def on_deadline(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for name, run_id in self._timers.pop_due(now.monotonic_s):
            run = self._runs.get(run_id)
            if run is None:
                continue
            if name == "flush":
                effects += self._flush(run, now)
            elif name == "parts":
                effects += self._fail_offer(run, Refusal.DEADLINE, "the rest of the prompt did not arrive")
            elif name == "expires":
                effects += self._stop(run, Refusal.DEADLINE, now)
            elif name == "cancel":
                # The engine's supervisor restarts an engine that does not stop; here it is only told.
                effects.append(Note("engine.slow_cancel", run.order.asker, f"run {run_id}"))
        return effects


def _pieces(text: str) -> list[str]:
    """Cut a text to what chunks can hold; an engine that hands over everything at once is no reason to fail."""
    return [text[start : start + CHUNK_CHARACTERS_MAX] for start in range(0, len(text), CHUNK_CHARACTERS_MAX)] or [""]
