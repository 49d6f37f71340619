"""One run of the engine, from the prompt in the clear to the receipt.

The machine of the runs that the engine works on: it accepts when the engine has counted the prompt, sends what the
engine writes in sealed chunks, and ends with a receipt when the engine says that its slot is free, whether or not
anyone still listens: until then the run counts as load. Of a paid job the engine reads the prompt when that is paid,
and what it writes is sent as far as the window reaches; if need be the run outlives its slot for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from protocol import constants as c
from protocol.codec import encode_message
from protocol.counting import JobCounting, JobNow
from protocol.effects import CancelEngine, ContinueEngine, Effect, FinishStream, Note, RunEngine, Send
from protocol.envelope import Signer, sign_record
from protocol.errors import Refusal, RemoteProtocolError
from protocol.events import EngineFailed, EngineFinished, EngineProgress, EngineStarted, EngineText, EngineVector, Now
from protocol.ids import NodeId, RunId, StreamId
from protocol.jobs import JobState, advance, cost_uusd, is_own, running_hash
from protocol.leases import Meter
from protocol.messages import Chunk, JobAccept, Progress, Receipt, Voucher
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
from protocol.till import Till
from protocol.timers import Timers


class Piece(NamedTuple):
    """What the engine wrote and was not sent yet, and the cumulative number of output tokens with it."""

    body: ChunkBody
    output_tokens: int


EngineEvent = EngineStarted | EngineProgress | EngineText | EngineVector | EngineFinished | EngineFailed

# A chunk's text stays below the limit of one byte string, whatever its characters take in UTF-8.
CHUNK_CHARACTERS_MAX = 12 * 1024
# So many tokens may have to be paid before the text that they spell can be sent.
TOKENS_AT_ONCE_MAX = c.TEXTLESS_TOKENS_MAX // 2
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
    came_at_s: float = 0.0
    slot_since_s: float = 0.0
    said_at_s: float = 0.0
    cipher: ChunkCipher | None = None
    meter: Meter | None = None
    engine_runs: bool = False
    engine_holds: bool = False
    #: What the engine ended with, while not all that it wrote is paid for.
    ending: EngineFinished | EngineFailed | None = None
    prompt_tokens: int = 0
    read_tokens: int = 0
    reading_tokens: int = 0
    output_tokens: int = 0
    sent_tokens: int = 0
    spells: bool = True
    pending: list[Piece] = field(default_factory=list)
    chunks: int = 0
    running_hash: bytes = b""
    accepted_at_ms: int = 0
    accepted_at_s: float = 0.0
    first_token_ms: int = 0
    last_token_ms: int = 0
    cancel_code: Refusal | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is of the node's own owner."""
        return is_own(self.order)

    @property
    def waits(self) -> bool:
        """Whether it waits for a slot, and has not had one."""
        return not self.has_slot and self.ending is None

    def described(self, now_s: float) -> JobNow:
        """What its provider's owner may see of it."""
        writing_s = now_s - self.accepted_at_s - self.first_token_ms / 1000
        has_pace = self.output_tokens > 0 and self.accepted_at_ms > 0 and writing_s > 0
        return JobNow(
            asker=self.order.asker,
            model=self.offer.name,
            waits=self.waits,
            is_paid=self.meter is not None,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            age_s=now_s - self.came_at_s,
            tokens_per_s=self.output_tokens / writing_s if has_pace else 0.0,
        )


class Running:
    """The state machine.

    `refused` sends what a run that was never accepted ends with, `freed` hears of every run whose slot is free, and
    `ended` of every run of which no more is to be sent.
    """

    def __init__(
        self,
        signer: Signer,
        till: Till,
        *,
        refused: Callable[[Run, Refusal, str, Now], list[Effect]],
        freed: Callable[[Run, Now], None],
        ended: Callable[[Run, Now], None],
    ) -> None:
        self._signer = signer
        self._till = till
        self._refused = refused
        self._freed = freed
        self._ended = ended
        self.counting = JobCounting()
        self._runs: dict[RunId, Run] = {}
        self._timers: Timers[tuple[str, RunId]] = Timers()

    def next_deadline(self) -> float | None:
        return self._timers.next_deadline()

    def start(self, run: Run, prompt: SealedPrompt, now: Now) -> list[Effect]:
        """Hand the prompt to the engine."""
        order = run.order
        run.cipher = ChunkCipher(prompt.response_key, run.order_hash)
        run.engine_runs = True
        run.engine_holds = run.meter is not None
        self._runs[run.run] = run
        if not run.is_own:
            self.counting.took()
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
                run.engine_holds,
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
            run.pending.append(Piece(ChunkBody("", event.index, event.vector), 0))
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
        prefill_uusd = cost_uusd(run.order, prompt_tokens, 0)
        # SPEC 06: The provider MUST NOT accept a prompt whose price is above `prepay_max_uusd` of a paid order.
        if run.meter is not None and prefill_uusd > run.order.prepay_max_uusd:
            return self.stop(run, Refusal.PRICE, now)
        run.prompt_tokens = prompt_tokens
        run.accepted_at_ms = now.wall_ms
        run.accepted_at_s = now.monotonic_s
        run.state = advance(run.state, JobState.ACCEPTED)
        order, meter = run.order, run.meter
        if meter is not None:
            meter.accept(prefill_uusd, run.running_hash, now.monotonic_s)
        acceptance = JobAcceptRecord(
            version=1,
            job=order.job,
            attempt=order.attempt,
            provider=self._signer.node,
            lease=order.lease,
            open_hash=run.order_hash,
            fingerprint=run.offer.fingerprint,
            prompt_tokens=prompt_tokens,
            paid_before_uusd=meter.base_uusd if meter is not None else 0,
            prefill_uusd=prefill_uusd,
            window_tokens=meter.window_tokens if meter is not None else 0,
            window_uusd=meter.window_uusd if meter is not None else 0,
            accepted_at_ms=now.wall_ms,
            extensions=(),
        )
        proof = meter.side.voucher if meter is not None else None
        accepted = self._say(run, now, encode_message(JobAccept(sign_record(acceptance, self._signer), proof)))
        return accepted + self._go_on(run, now)

    # ------------------------------------------------------------ being paid

    def on_voucher(self, run: Run, message: Voucher, now: Now) -> list[Effect]:
        """The payer has signed for more. Raises RemoteProtocolError."""
        meter = run.meter
        if meter is None or not run.accepted_at_ms:
            raise RemoteProtocolError("a voucher for what was not accepted, or costs nothing")
        kept = self._till.took(meter.side) if meter.take(message.voucher, now.monotonic_s) else []
        return kept + self._go_on(run, now)

    def _go_on(self, run: Run, now: Now) -> list[Effect]:
        """Do what is paid for by now."""
        if run.state is JobState.CANCELLING:
            return []
        effects: list[Effect] = []
        if run.engine_holds and (run.meter is None or run.meter.is_prompt_paid):
            run.engine_holds = False
            effects.append(ContinueEngine(run.run))
        effects += self._flush(run, now)
        if run.ending is not None and not run.pending:
            effects += self._close(run, run.ending, now)
        return effects

    def _watch_payment(self, run: Run, now: Now) -> None:
        """Whoever does not pay for what waits is not waited for for long."""
        if not run.engine_holds and not run.pending:
            self._timers.cancel(("unpaid", run.run))
        elif run.meter is not None and not self._timers.is_set(("unpaid", run.run)):
            self._timers.set(("unpaid", run.run), now.monotonic_s + c.UNPAID_DEADLINE_S)

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
        piece = Piece(ChunkBody(event.text, token_ids=event.token_ids), event.output_tokens)
        run.pending += [piece] if run.meter is None else _cut(piece, run.output_tokens)
        run.output_tokens = event.output_tokens
        # SPEC 05: The provider MUST send the first token at once, and later ones after at most 16 tokens or 20 ms.
        due_s = run.said_at_s + c.CHUNK_DELAY_S if run.chunks else now.monotonic_s
        if now.monotonic_s >= due_s or run.output_tokens - run.sent_tokens >= c.CHUNK_TOKENS_MAX:
            return self._flush(run, now)
        if not self._timers.is_set(("flush", run.run)):
            self._timers.set(("flush", run.run), due_s)
        return []

    def _flush(self, run: Run, now: Now) -> list[Effect]:
        """Send what is pending, as far as it is paid for: as one chunk (text) or one chunk each (vectors)."""
        self._timers.cancel(("flush", run.run))
        if run.stream is None:
            run.pending.clear()
        pieces = self._due(run)
        self._watch_payment(run, now)
        if not pieces:
            return []
        self._timers.cancel(("unpaid", run.run))
        self._watch_payment(run, now)
        if run.state is JobState.ACCEPTED:
            run.state = advance(run.state, JobState.RUNNING)
        elapsed_ms = round((now.monotonic_s - run.accepted_at_s) * 1000)
        if run.chunks == 0:
            run.first_token_ms = elapsed_ms
        run.last_token_ms = elapsed_ms
        run.sent_tokens = pieces[-1].output_tokens
        if run.meter is not None:
            run.meter.measure(run.output_tokens, (elapsed_ms - run.first_token_ms) / 1000)
        bodies = [piece.body for piece in pieces]
        if run.order.kind is not Kind.EMBEDDING:
            bodies = self._text_bodies(run, bodies)
        return self._say(run, now, b"".join(self._chunk(run, body, now) for body in bodies))

    @staticmethod
    def _due(run: Run) -> list[Piece]:
        """What of the pending pieces may be sent now; they are pending no more."""
        meter, order = run.meter, run.order
        if meter is None:
            pieces, run.pending = run.pending, []
            return pieces
        # SPEC 06: The provider MUST NOT let what it has delivered exceed what is paid by more than the window,
        count = 0
        for piece in run.pending:
            if not meter.may_send(cost_uusd(order, run.prompt_tokens, piece.output_tokens)):
                break
            count += 1
        pieces, run.pending = run.pending[:count], run.pending[count:]
        if not run.pending:
            return pieces
        # Several tokens whose text came at once do not fit: some are counted and paid before it is sent. Also after
        # others that did fit, for nobody signs for less than half a window.
        sent_tokens = pieces[-1].output_tokens if pieces else run.sent_tokens
        wanted = run.pending[0].output_tokens - 1
        tokens = meter.tokens_that_fit(run.prompt_tokens, sent_tokens, max(sent_tokens, wanted))
        return [*pieces, Piece(ChunkBody(), tokens)] if tokens > sent_tokens else pieces

    @staticmethod
    def _text_bodies(run: Run, pending: list[ChunkBody]) -> list[ChunkBody]:
        """What is pending as few chunks as hold it, and with the last of them the tokens that spell it."""
        texts = _pieces("".join(body.text for body in pending))
        token_ids = b"".join(body.token_ids for body in pending)
        # Tokens after a gap would spell something else.
        run.spells = run.spells and len(token_ids) <= CHUNK_TOKEN_IDS_BYTES_MAX
        return [*map(ChunkBody, texts[:-1]), ChunkBody(texts[-1], token_ids=token_ids if run.spells else b"")]

    def _chunk(self, run: Run, body: ChunkBody, now: Now) -> bytes:
        assert run.cipher is not None
        # SPEC 05: The provider MUST number the chunks from 1 without a gap, and use a number once.
        run.chunks += 1
        owed = cost_uusd(run.order, run.prompt_tokens, run.sent_tokens)
        sealed = run.cipher.seal(run.chunks, run.sent_tokens, owed, body)
        run.running_hash = running_hash(run.running_hash, run.chunks, run.sent_tokens, owed, sealed)
        if run.meter is not None:
            run.meter.sent(run.chunks, run.running_hash, run.sent_tokens, owed, now.monotonic_s)
        return encode_message(Chunk(run.order.job, run.order.attempt, run.chunks, run.sent_tokens, owed, sealed))

    # ------------------------------------------------------------ ending

    def _engine_ended(self, run: Run, event: EngineFinished | EngineFailed, now: Now) -> list[Effect]:
        """The slot is free: account for the run and forget it."""
        # SPEC 05: The provider MUST NOT count the slot as free before the engine has left it.
        run.engine_runs = run.engine_holds = False
        self._freed(run, now)
        return self._conclude(run, event, now)

    def _close(self, run: Run, event: EngineFinished | EngineFailed, now: Now) -> list[Effect]:
        """Say the last word, and forget the run."""
        self._leave(run)
        effects = self._end(run, event, now)
        self._ended(run, now)
        return effects

    def _conclude(self, run: Run, event: EngineFinished | EngineFailed, now: Now) -> list[Effect]:
        """Send what is left, as far as it is paid for: the receipt comes after all of it."""
        if run.meter is None or run.state not in (JobState.ACCEPTED, JobState.RUNNING):
            return self._close(run, event, now)
        self._count_all(run, event)
        effects = self._flush(run, now)
        if not run.pending:
            return effects + self._close(run, event, now)
        run.ending = event
        return effects

    @staticmethod
    def _count_all(run: Run, event: EngineFinished | EngineFailed) -> None:
        """All tokens that were drawn are counted, those without text as well."""
        if not isinstance(event, EngineFinished) or run.order.kind is Kind.EMBEDDING:
            return
        run.output_tokens = event.output_tokens
        if run.pending:
            run.pending[-1] = run.pending[-1]._replace(output_tokens=event.output_tokens)
        elif run.output_tokens != run.sent_tokens:
            # Tokens without text, those of a stop string above all, are counted in a last chunk of their own.
            run.pending.append(Piece(ChunkBody(), event.output_tokens))

    def _end(self, run: Run, event: EngineFinished | EngineFailed, now: Now) -> list[Effect]:
        if isinstance(event, EngineFinished) and (
            run.state is JobState.OFFERED or event.outcome not in (Outcome.STOP, Outcome.LENGTH)
        ):
            # It ended what it never started, or what nobody cancelled.
            event = EngineFailed(event.run, Refusal.ENGINE_FAILED, "the engine dropped the job")
        if run.state is JobState.OFFERED:
            assert isinstance(event, EngineFailed)
            run.state = advance(run.state, JobState.FAILED)
            self._count_end(run, Outcome.FAILED)
            return self._refused(run, event.code, event.text, now)
        if run.state is JobState.CANCELLING:
            code = run.cancel_code or Refusal.CANCELLED
            outcome = {Refusal.CANCELLED: Outcome.CANCELLED, Refusal.UNPAID: Outcome.UNPAID}.get(code, Outcome.FAILED)
            return self._receipt(run, outcome, code, now)
        if isinstance(event, EngineFailed):
            return [*self._flush(run, now), *self._receipt(run, Outcome.FAILED, event.code, now)]
        self._count_all(run, event)
        return [*self._flush(run, now), *self._receipt(run, event.outcome, None, now)]

    def _count_end(self, run: Run, outcome: Outcome) -> None:
        # SPEC 05: A node MUST NOT count its own orders as jobs of others,
        if not run.is_own:
            self.counting.ended(outcome, run.prompt_tokens, run.sent_tokens)

    def _receipt(self, run: Run, outcome: Outcome, code: Refusal | None, now: Now) -> list[Effect]:
        ended = {
            Outcome.CANCELLED: JobState.CANCELLED,
            Outcome.FAILED: JobState.FAILED,
            Outcome.UNPAID: JobState.FAILED,
        }.get(outcome, JobState.DONE)
        run.state = advance(run.state, ended)
        self._count_end(run, outcome)
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
            paid_before_uusd=run.meter.base_uusd if run.meter is not None else 0,
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
        signed = sign_record(receipt, self._signer)
        kept = self._till.receipt(run.meter.side, receipt, signed) if run.meter is not None else []
        return [Send(run.stream, encode_message(Receipt(signed))), FinishStream(run.stream), *kept]

    def stop(self, run: Run, code: Refusal, now: Now) -> list[Effect]:
        """Stop a run for this reason; its receipt follows when the slot is free."""
        if run.state is JobState.CANCELLING:
            return []
        run.cancel_code = code
        run.state = advance(run.state, JobState.CANCELLING)
        # SPEC 05: The provider MUST send nothing but the receipt after a `Cancel`;
        run.pending.clear()
        for name in ("flush", "unpaid"):
            self._timers.cancel((name, run.run))
        if run.ending is not None:
            return self._close(run, run.ending, now)
        self._timers.set(("cancel", run.run), now.monotonic_s + c.CANCEL_DEADLINE_S)
        # SPEC 05: The provider MUST stop its engine within 1 second of a `Cancel`, and of the loss of the stream.
        return [CancelEngine(run.run)]

    def _leave(self, run: Run) -> None:
        del self._runs[run.run]
        for name in ("expires", "sign", "flush", "cancel", "unpaid"):
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
            elif name == "unpaid":
                # SPEC 06: The provider MUST end a job whose payer lets it wait for 10 seconds, with `UNPAID`,
                effects += self.stop(run, Refusal.UNPAID, now)
                if run.meter is not None:
                    self._till.distrust(run.meter.side)
            elif name == "cancel":
                # The engine's supervisor restarts an engine that does not stop; here it is only told.
                effects.append(Note("engine.slow_cancel", run.order.asker, f"run {run_id}"))
        return effects


def _cut(piece: Piece, before_tokens: int) -> list[Piece]:
    """What the engine wrote at once, in pieces whose text need not wait until too many tokens are paid."""
    # SPEC 06: a text of more than 128 tokens is cut into such of no more.
    tokens, text = piece.output_tokens - before_tokens, piece.body.text
    count = max(1, -(-tokens // TOKENS_AT_ONCE_MAX))
    ends = [(len(text) * number // count, before_tokens + tokens * number // count) for number in range(count + 1)]
    cut = [Piece(ChunkBody(text[start:end]), counted) for (start, _), (end, counted) in pairwise(ends)]
    # The tokens spell all of it.
    cut[-1] = cut[-1]._replace(body=ChunkBody(cut[-1].body.text, token_ids=piece.body.token_ids))
    return cut


def _pieces(text: str) -> list[str]:
    """Cut a text to what chunks can hold; an engine that hands over everything at once is no reason to fail."""
    return [text[start : start + CHUNK_CHARACTERS_MAX] for start in range(0, len(text), CHUNK_CHARACTERS_MAX)] or [""]
