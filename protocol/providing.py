"""The provider's side of jobs up to the engine: check the order, gather its prompt, open the seal, or refuse.

One `Run` per order that was not refused at once. When the prompt is complete and its seal opens it is handed to
`running`, which has it until the engine's slot is free again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from protocol import constants as c
from protocol.admission import Admission, Held, Why
from protocol.codec import encode_message, record_job
from protocol.envelope import Signer, open_record
from protocol.errors import BadFrame, Refusal, RemoteProtocolError, SealError, UnknownVersion
from protocol.events import (
    Effect,
    FinishStream,
    Note,
    Now,
    Offer,
    RunId,
    Send,
)
from protocol.ids import JobId, NodeId, StreamId
from protocol.jobs import JobState, advance, check_request, order_hash
from protocol.messages import Cancel, JobOpen, JobReject, Message, Part
from protocol.records import JobOpenRecord, ModelOffer, Signed
from protocol.running import EngineEvent, Run, Running
from protocol.sealing import Sealer, open_prompt, seal_context
from protocol.timers import Timers

# Told to an asker when all slots are taken: about the length of a short answer.
RETRY_AFTER_BUSY_MS = 2_000


class Providing:
    """The state machine. `better` names other providers for a refusal; it is the router's business who they are."""

    def __init__(
        self,
        signer: Signer,
        sealer: Sealer,
        started_at_ms: int,
        better: Callable[[JobOpenRecord], tuple[Signed, ...]],
    ) -> None:
        self._sealer = sealer
        self._better = better
        self._admission = Admission(signer.node, started_at_ms)
        self._running = Running(signer, refused=self._refuse, ended=self._ended)
        self._runs: dict[RunId, Run] = {}
        self._by_stream: dict[StreamId, RunId] = {}
        self._next_run = 1
        self._timers: Timers[tuple[str, RunId]] = Timers()

    # ------------------------------------------------------------ what others ask of it

    def set_offer(self, offer: Offer) -> None:
        self._admission.offer = offer

    def allow(self, nodes: frozenset[NodeId]) -> None:
        self._admission.allowed = nodes

    def next_deadline(self) -> float | None:
        deadlines = (self._timers.next_deadline(), self._running.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

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
    def _check_belongs(run: Run, job: JobId, attempt: int) -> None:
        if (job, attempt) != (run.order.job, run.order.attempt):
            raise RemoteProtocolError("a message for another job on this stream")

    def _on_open(self, stream: StreamId, peer: NodeId, local: bool, message: JobOpen, now: Now) -> list[Effect]:
        try:
            order = open_record(message.order, JobOpenRecord)
        except UnknownVersion as error:
            return self._reject_unknown(stream, message.order, str(error))
        if len(message.sealed) > order.sealed_bytes:
            raise RemoteProtocolError("more sealed bytes than the order states")
        running = [Held(run.order.asker, run.peer, run.offer.name) for run in self._runs.values()]
        offer = self._admission.admit(order, peer, local, running, now)
        if not isinstance(offer, ModelOffer):
            return self._reject(stream, order, offer)
        hash_ = order_hash(message.order.body)
        run = Run(RunId(self._next_run), stream, peer, order, hash_, offer, running_hash=hash_)
        self._next_run += 1
        self._runs[run.run] = run
        self._by_stream[stream] = run.run
        run.sealed += message.sealed
        if len(run.sealed) < order.sealed_bytes:
            self._timers.set(("parts", run.run), now.monotonic_s + c.PARTS_DEADLINE_S)
            return []
        return self._start(run, now)

    def _on_part(self, run: Run, part: Part, now: Now) -> list[Effect]:
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

    def _start(self, run: Run, now: Now) -> list[Effect]:
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
        return self._running.start(run, prompt, now)

    def on_engine(self, event: EngineEvent, now: Now) -> list[Effect]:
        """Take what the engine reports. Reports for runs that are over are dropped."""
        return self._running.on_engine(event, now)

    # ------------------------------------------------------------ ending

    def _stop(self, run: Run, code: Refusal, now: Now) -> list[Effect]:
        """Stop a run for this reason. With the engine at work the receipt follows when the slot is free."""
        if run.engine_runs:
            return self._running.stop(run, code, now)
        return self._fail_offer(run, code, "the job was stopped")

    def _ended(self, run: Run, now: Now) -> list[Effect]:  # noqa: ARG002 - nobody waits for the slot yet
        self._forget(run)
        return []

    def _fail_offer(self, run: Run, code: Refusal, text: str) -> list[Effect]:
        """An order that the engine never got ends with a refusal."""
        run.state = advance(run.state, JobState.FAILED)
        self._forget(run)
        return self._refuse(run, code, text)

    def _refuse(self, run: Run, code: Refusal, text: str) -> list[Effect]:
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

    def _forget(self, run: Run) -> None:
        del self._runs[run.run]
        if run.stream is not None:
            self._by_stream.pop(run.stream, None)
        self._timers.cancel(("parts", run.run))

    # ------------------------------------------------------------ time

    def on_deadline(self, now: Now) -> list[Effect]:
        effects = self._running.on_deadline(now)
        for _, run_id in self._timers.pop_due(now.monotonic_s):
            run = self._runs[run_id]
            effects += self._fail_offer(run, Refusal.DEADLINE, "the rest of the prompt did not arrive")
        return effects
