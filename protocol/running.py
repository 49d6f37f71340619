"""One run of the engine, from the prompt in the clear to the receipt.

The machine of the runs that the engine works on: it accepts when the engine has counted the prompt, sends what the
engine writes in sealed chunks, and ends with a receipt when the engine says that its slot is free, whether or not
anyone still listens: until then the run counts as load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol import constants as c
from protocol.codec import encode_message
from protocol.effects import CancelEngine, Effect, FinishStream, Note, RunEngine, Send
from protocol.envelope import Signer, sign_record
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineProgress, EngineStarted, EngineText, EngineVector, Now
from protocol.ids import NodeId, RunId, StreamId
from protocol.jobs import JobState, advance, cost_uusd, running_hash
from protocol.messages import Chunk, JobAccept, Progress, Receipt
from protocol.records import (
    ChunkBody,
    JobAcceptRecord,
    JobOpenRecord,
    Kind,
    ModelOffer,
    Outcome,
    ReceiptRecord,
    SealedPrompt,
    Signed,
)
from protocol.sealing import ChunkCipher
from protocol.timers import Timers

EngineEvent = EngineStarted | EngineProgress | EngineText | EngineVector | EngineFinished | EngineFailed

# A chunk's text stays below the limit of one byte string, whatever its characters take in UTF-8.
CHUNK_CHARACTERS_MAX = 12 * 1024
# As many tokens as go with it; an engine that writes more at once is no model that anybody continues word by word.
CHUNK_TOKEN_IDS_BYTES_MAX = c.TOKEN_ID_BYTES * 1024


@dataclass(slots=True)
class Run:
    """One order that we took up; `providing` keeps it until the engine gets it.

    `said_at_s` is when the asker last heard of us, `position` the place in the queue that it was told.
    """

    run: RunId
    stream: StreamId | None
    peer: NodeId
    order: JobOpenRecord
    signed: Signed
    order_hash: bytes
    offer: ModelOffer
    is_known: bool
    has_slot: bool
    state: JobState = JobState.OFFERED
    sealed: bytearray = field(default_factory=bytearray)
    next_part: int = 0
    position: int | None = None
    slot_since_s: float = 0.0
    said_at_s: float = 0.0
    cipher: ChunkCipher | None = None
    engine_runs: bool = False
    prompt_tokens: int = 0
    read_tokens: int = 0
    reading_tokens: int = 0
    output_tokens: int = 0
    sent_tokens: int = 0
    spells: bool = True
    pending: list[ChunkBody] = field(default_factory=list)
    chunks: int = 0
    running_hash: bytes = b""
    accepted_at_ms: int = 0
    accepted_at_s: float = 0.0
    first_token_ms: int = 0
    last_token_ms: int = 0
    cancel_code: Refusal | None = None


class Running:
    """The state machine.

    `refused` sends what a run that was never accepted ends with, and `ended` hears of every run whose slot is free.
    """

    def __init__(
        self,
        signer: Signer,
        *,
        refused: Callable[[Run, Refusal, str, Now], list[Effect]],
        ended: Callable[[Run, Now], list[Effect]],
    ) -> None:
        self._signer = signer
        self._refused = refused
        self._ended = ended
        self._runs: dict[RunId, Run] = {}
        self._timers: Timers[tuple[str, RunId]] = Timers()

    def next_deadline(self) -> float | None:
        return self._timers.next_deadline()

    def start(self, run: Run, prompt: SealedPrompt, now: Now) -> list[Effect]:
        """Hand the prompt to the engine."""
        order = run.order
        run.cipher = ChunkCipher(prompt.response_key, run.order_hash)
        run.engine_runs = True
        self._runs[run.run] = run
        self._timers.set(("expires", run.run), now.monotonic_s + (order.expires_at_ms - now.wall_ms) / 1000)
        self._timers.set(("sign", run.run), run.said_at_s + c.SIGN_INTERVAL_S)
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
        event: EngineEvent,
        now: Now,
    ) -> list[Effect]:
        """Take what the engine reports. Reports for runs that are over are dropped."""
        run = self._runs.get(event.run)
        if run is None:
            return []
        if isinstance(event, EngineStarted):
            return self._accept(run, event.prompt_tokens, now)
        if isinstance(event, EngineProgress):
            run.read_tokens, run.reading_tokens = event.done_tokens, event.total_tokens
            return []
        if isinstance(event, EngineText):
            return self._text(run, event, now)
        if isinstance(event, EngineVector):
            if run.state not in (JobState.ACCEPTED, JobState.RUNNING):
                return []
            run.pending.append(ChunkBody("", event.index, event.vector))
            return self._flush(run, now)
        return self._engine_ended(run, event, now)

    def _accept(self, run: Run, prompt_tokens: int, now: Now) -> list[Effect]:
        if run.state is not JobState.OFFERED or run.stream is None:
            return []
        # SPEC 05: The provider MUST NOT accept a prompt of more than `prompt_tokens_max` tokens; it refuses it with
        #   `CONTEXT_EXCEEDED`.
        if prompt_tokens > run.order.prompt_tokens_max:
            # The engine should have refused it; the asker would have to.
            return self.stop(run, Refusal.CONTEXT_EXCEEDED, now)
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
        return self._say(run, now, encode_message(JobAccept(sign_record(acceptance, self._signer))))

    def _sign(self, run: Run, now: Now) -> list[Effect]:
        """Say that we are alive and how far the prompt is, unless the asker has just heard of us."""
        if run.stream is None or run.state is JobState.CANCELLING:
            return []
        effects: list[Effect] = []
        # SPEC 05: A provider with feature 5 MUST send something at least every second while its engine has the prompt:
        #   a chunk, or else `Progress` with the figures as they stand.
        if now.monotonic_s >= run.said_at_s + c.SIGN_INTERVAL_S:
            # SPEC 05: The provider MUST state in `Progress` only what its engine has really read.
            # A sign of life and no more: an engine that hangs shows in figures that stand still.
            progress = Progress(run.order.job, run.order.attempt, run.read_tokens, run.reading_tokens)
            effects = self._say(run, now, encode_message(progress))
        self._timers.set(("sign", run.run), run.said_at_s + c.SIGN_INTERVAL_S)
        return effects

    @staticmethod
    def _say(run: Run, now: Now, data: bytes) -> list[Effect]:
        if run.stream is None:
            return []
        run.said_at_s = now.monotonic_s
        return [Send(run.stream, data)]

    def _text(self, run: Run, event: EngineText, now: Now) -> list[Effect]:
        if run.state not in (JobState.ACCEPTED, JobState.RUNNING):
            return []
        run.output_tokens = event.output_tokens
        run.pending.append(ChunkBody(event.text, token_ids=event.token_ids))
        # SPEC 05: The provider MUST send the first token at once, and later ones after at most 16 tokens or 20 ms.
        due_s = run.said_at_s + c.CHUNK_DELAY_S if run.chunks else now.monotonic_s
        if now.monotonic_s >= due_s or run.output_tokens - run.sent_tokens >= c.CHUNK_TOKENS_MAX:
            return self._flush(run, now)
        if not self._timers.is_set(("flush", run.run)):
            self._timers.set(("flush", run.run), due_s)
        return []

    def _flush(self, run: Run, now: Now) -> list[Effect]:
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
            bodies = self._text_bodies(run, bodies)
        run.pending = []
        elapsed_ms = round((now.monotonic_s - run.accepted_at_s) * 1000)
        if run.chunks == 0:
            run.first_token_ms = elapsed_ms
        run.last_token_ms = elapsed_ms
        run.sent_tokens = run.output_tokens
        return self._say(run, now, b"".join(self._chunk(run, body) for body in bodies))

    @staticmethod
    def _text_bodies(run: Run, pending: list[ChunkBody]) -> list[ChunkBody]:
        """What is pending as few chunks as hold it, and with the last of them the tokens that spell it."""
        texts = _pieces("".join(body.text for body in pending))
        token_ids = b"".join(body.token_ids for body in pending)
        # Tokens after a gap would spell something else.
        run.spells = run.spells and len(token_ids) <= CHUNK_TOKEN_IDS_BYTES_MAX
        return [*map(ChunkBody, texts[:-1]), ChunkBody(texts[-1], token_ids=token_ids if run.spells else b"")]

    def _chunk(self, run: Run, body: ChunkBody) -> bytes:
        assert run.cipher is not None
        # SPEC 05: The provider MUST number the chunks from 1 without a gap, and use a number once.
        run.chunks += 1
        owed = cost_uusd(run.order, run.prompt_tokens, run.output_tokens)
        sealed = run.cipher.seal(run.chunks, run.output_tokens, owed, body)
        run.running_hash = running_hash(run.running_hash, run.chunks, run.output_tokens, owed, sealed)
        return encode_message(Chunk(run.order.job, run.order.attempt, run.chunks, run.output_tokens, owed, sealed))

    # ------------------------------------------------------------ ending

    def _engine_ended(self, run: Run, event: EngineFinished | EngineFailed, now: Now) -> list[Effect]:
        """The slot is free: account for the run and forget it."""
        # SPEC 05: The provider MUST NOT count the slot as free before the engine has left it.
        run.engine_runs = False
        self._leave(run)
        return [*self._end(run, event, now), *self._ended(run, now)]

    def _end(self, run: Run, event: EngineFinished | EngineFailed, now: Now) -> list[Effect]:
        if isinstance(event, EngineFinished) and (
            run.state is JobState.OFFERED or event.outcome not in (Outcome.STOP, Outcome.LENGTH)
        ):
            # It ended what it never started, or what nobody cancelled.
            event = EngineFailed(event.run, Refusal.ENGINE_FAILED, "the engine dropped the job")
        if run.state is JobState.OFFERED:
            assert isinstance(event, EngineFailed)
            run.state = advance(run.state, JobState.FAILED)
            return self._refused(run, event.code, event.text, now)
        if run.state is JobState.CANCELLING:
            code = run.cancel_code or Refusal.CANCELLED
            outcome = Outcome.CANCELLED if code is Refusal.CANCELLED else Outcome.FAILED
            return self._receipt(run, outcome, code, now)
        if isinstance(event, EngineFailed):
            return [*self._flush(run, now), *self._receipt(run, Outcome.FAILED, event.code, now)]
        if run.order.kind is not Kind.EMBEDDING:
            run.output_tokens = event.output_tokens
        if run.output_tokens != run.sent_tokens and not run.pending:
            # Tokens without text, those of a stop string above all, are counted in a last chunk of their own.
            run.pending.append(ChunkBody())
        return [*self._flush(run, now), *self._receipt(run, event.outcome, None, now)]

    def _receipt(self, run: Run, outcome: Outcome, code: Refusal | None, now: Now) -> list[Effect]:
        ended = {Outcome.CANCELLED: JobState.CANCELLED, Outcome.FAILED: JobState.FAILED}.get(outcome, JobState.DONE)
        run.state = advance(run.state, ended)
        if run.stream is None:
            return []
        if run.accepted_at_ms == 0:
            return self._refused(run, code or Refusal.CANCELLED, "the job was stopped", now)
        order = run.order
        # SPEC 05: The provider MUST state in the receipt the counts and the running hash of what it sent, not of what
        #   it made.
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
        # SPEC 05: The provider MUST end every order that it accepted with a `Receipt`, and close its half of the stream
        #   after it, as long as there is a stream.
        return [Send(run.stream, encode_message(Receipt(sign_record(receipt, self._signer)))), FinishStream(run.stream)]

    def stop(self, run: Run, code: Refusal, now: Now) -> list[Effect]:
        """Stop a run for this reason; its receipt follows when the slot is free."""
        if run.state is JobState.CANCELLING:
            return []
        run.cancel_code = code
        run.state = advance(run.state, JobState.CANCELLING)
        # SPEC 05: The provider MUST send nothing but the receipt after a `Cancel`;
        run.pending.clear()
        self._timers.cancel(("flush", run.run))
        self._timers.set(("cancel", run.run), now.monotonic_s + c.CANCEL_DEADLINE_S)
        # SPEC 05: The provider MUST stop its engine within 1 second of a `Cancel`, and of the loss of the stream.
        return [CancelEngine(run.run)]

    def _leave(self, run: Run) -> None:
        del self._runs[run.run]
        for name in ("expires", "sign", "flush", "cancel"):
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
            elif name == "sign":
                effects += self._sign(run, now)
            elif name == "expires":
                effects += self.stop(run, Refusal.DEADLINE, now)
            elif name == "cancel":
                # The engine's supervisor restarts an engine that does not stop; here it is only told.
                effects.append(Note("engine.slow_cancel", run.order.asker, f"run {run_id}"))
        return effects


def _pieces(text: str) -> list[str]:
    """Cut a text to what chunks can hold; an engine that hands over everything at once is no reason to fail."""
    return [text[start : start + CHUNK_CHARACTERS_MAX] for start in range(0, len(text), CHUNK_CHARACTERS_MAX)] or [""]
