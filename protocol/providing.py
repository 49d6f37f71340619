"""The provider's side of jobs up to the engine: check the order, gather its prompt, wait for a slot, or refuse.

One `Run` per order that was not refused at once. When it has a slot, its prompt is complete and the seal opens, it is
handed to `running`, which has it until the engine's slot is free again.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable

from protocol import constants as c
from protocol.admission import Admission, Held, Why
from protocol.codec import encode_message
from protocol.counting import JobCounts, JobNow
from protocol.effects import Effect, Send
from protocol.envelope import Signer, open_record
from protocol.errors import BadFrame, Refusal, RemoteProtocolError, SealError, UnknownVersion
from protocol.events import Now, Offer
from protocol.handing_off import Unwanted
from protocol.ids import JobId, NodeId, RunId, StreamId
from protocol.jobs import JobState, advance, check_request, is_own, order_hash, queue_wait_ms
from protocol.leases import Meter
from protocol.messages import Cancel, JobOpen, Message, Part, Progress, Queued, Reserve, Voucher
from protocol.queueing import Line, Pace
from protocol.records import Availability, JobOpenRecord, ModelOffer, Signed
from protocol.refusing import Refusing
from protocol.reserving import Reserving
from protocol.running import EngineEvent, Run, Running
from protocol.sealing import Sealer, open_prompt, seal_context
from protocol.till import Till
from protocol.timers import Timers

# As many places as a message can name.
QUEUE_MAX = 2**16
# The timer that is nobody's: those who wait hear where they stand.
_TELL = ("tell", RunId(0))


class Providing:
    """The state machine. While `is_overloaded` is set, new orders are refused at once."""

    def __init__(
        self,
        signer: Signer,
        sealer: Sealer,
        rng: random.Random,
        started_at_ms: int,
        refusing: Refusing,
        network_of: Callable[[NodeId], str],
    ) -> None:
        """`network_of` says from which network a connected peer is."""
        self._sealer = sealer
        self._network_of = network_of
        self._refusing = refusing
        self.till = Till(signer)
        self._admission = Admission(signer.node, started_at_ms, self.till.refusal)
        self._reserving = Reserving(signer, rng, self._judge_another)
        self._running = Running(signer, self.till, refused=self._refuse, freed=self._freed, ended=self._forget_ended)
        self._runs: dict[RunId, Run] = {}
        self._by_stream: dict[StreamId, RunId] = {}
        # Until the stream is gone: whatever became of the order, what follows it is its asker's, too.
        self._forwarded: set[StreamId] = set()
        self._lines: defaultdict[str, Line] = defaultdict(Line)
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)
        self._next_run = 1
        self._timers: Timers[tuple[str, RunId]] = Timers()
        self.is_overloaded = False

    # ------------------------------------------------------------ what others ask of it

    def set_offer(self, offer: Offer, now: Now) -> list[Effect]:
        """Take what we offer from now on; more slots may come with it for those who wait, or none at all."""
        self._admission.offer = offer
        # Nothing comes of waiting where no job is begun any more.
        sent_away = [] if offer.availability is Availability.AVAILABLE else self.drain(now)
        return sent_away + self._fill_slots(now)

    def allow(self, nodes: frozenset[NodeId]) -> None:
        self._admission.allowed = nodes

    def next_deadline(self) -> float | None:
        deadlines = (
            self._timers.next_deadline(),
            self._running.next_deadline(),
            self._reserving.next_deadline(),
            self.till.next_deadline(),
            self._refusing.handing_off.next_deadline(),
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @property
    def active(self) -> int:
        """Orders that hold a slot of the engine or wait for one."""
        return len(self._runs)

    @property
    def counts(self) -> JobCounts:
        """What became of all orders of others so far."""
        return self._running.counting.snapshot()

    def jobs_now(self, now: Now) -> list[JobNow]:
        """The orders of others that hold a slot of the engine or wait for one, in the order in which they came."""
        return [run.described(now.monotonic_s) for run in self._runs.values() if not run.is_own]

    @property
    def own(self) -> int:
        """Orders of this node's owner that hold a slot or wait for one."""
        return sum(run.is_own for run in self._runs.values())

    @property
    def waiting(self) -> int:
        """Orders that wait for a slot."""
        return sum(run.waits for run in self._runs.values())

    @property
    def others_waiting(self) -> int:
        """Those of others among them."""
        return sum(run.waits and not run.is_own for run in self._runs.values())

    def load(self) -> int:
        """Slots taken of slots offered, in coarse steps of 0 to 8."""
        slots = self._slots()
        if slots == 0:
            return 0
        return min(c.LOAD_STEPS, -(-(self.active + len(self._reserving)) * c.LOAD_STEPS // slots))

    def wait_ms(self, now: Now) -> int:
        """How long an order that came now would wait for a slot of the model that is soonest free."""
        offer = self._admission.offer
        waits = [self._wait_ms(model.name, now) for model in offer.models] if offer is not None else []
        return min(waits, default=0)

    def job_streams_max(self, peer: NodeId) -> int:
        """How many job streams of this peer are held at once."""
        if not self._admission.knows(peer, peer, local=False):
            return c.JOB_STREAMS_PER_PEER_MAX
        # Whom the owner knows, the coordinator above all, may fill every slot and the queue while streams of ended jobs
        # close.
        return max(c.JOB_STREAMS_PER_PEER_MAX, (2 + c.QUEUE_PER_SLOT) * self._slots())

    def _slots(self) -> int:
        offer = self._admission.offer
        return sum(model.concurrency for model in offer.models) if offer else 0

    def owns(self, stream: StreamId) -> bool:
        """Whether an order came on this stream that has not ended."""
        return stream in self._by_stream or self._refusing.handing_off.is_pending(stream)

    def is_forwarded(self, stream: StreamId) -> bool:
        """Whether the order on this stream is, or was, by somebody else than the peer that sent it."""
        return stream in self._forwarded

    def on_stream_dropped(self, stream: StreamId) -> None:
        """Nothing comes on this stream any more."""
        self._forwarded.discard(stream)
        self.till.on_stream_dropped(stream)

    # ------------------------------------------------------------ messages of a job stream

    def on_message(self, stream: StreamId, peer: NodeId, local: bool, message: Message, now: Now) -> list[Effect]:
        """Take a message of an inbound job stream. Raises RemoteProtocolError; the peer then resets the stream.

        `local` says that the connection comes from this machine.
        """
        run = self._runs.get(self._by_stream.get(stream, RunId(0)))
        if isinstance(message, JobOpen):
            if self.owns(stream):
                raise RemoteProtocolError("a second order on one job stream")
            effects = self._on_open(stream, peer, local, message, now)
        elif isinstance(message, Reserve) and not self.owns(stream):
            effects = self._reserving.on_reserve(stream, peer, message, now)
        elif self._refusing.handing_off.is_pending(stream):
            effects = self._refusing.on_message(stream, message)
        elif isinstance(message, Voucher):
            effects = self._on_voucher(stream, run, message, now)
        elif run is None:
            raise RemoteProtocolError(f"{type(message).__name__} before any order")
        elif isinstance(message, Part):
            self._check_belongs(run, message.job, message.attempt)
            effects = self._on_part(run, message, now)
        elif isinstance(message, Cancel):
            self._check_belongs(run, message.job, message.attempt)
            effects = self._stop(run, Refusal.CANCELLED, now)
        else:
            raise RemoteProtocolError(f"{type(message).__name__} does not come from an asker")
        return effects + self._fill_slots(now)

    def _on_voucher(self, stream: StreamId, run: Run | None, message: Voucher, now: Now) -> list[Effect]:
        if run is not None:
            return self._running.on_voucher(run, message, now)
        # One that comes too late, or for a job that was refused, is of no use and does no harm.
        return self.till.on_last_voucher(stream, message, now) if self.till.settles(stream) else []

    def on_stream_lost(self, stream: StreamId, code: Refusal, now: Now) -> list[Effect]:
        """The asker is gone or reads too slowly: stop its run and free the slot."""
        run = self._runs.get(self._by_stream.pop(stream, RunId(0)))
        if run is None:
            return self._refusing.handing_off.on_asker_lost(stream)
        run.stream = None
        return self._stop(run, code, now) + self._fill_slots(now)

    def on_engine(self, event: EngineEvent, now: Now) -> list[Effect]:
        """Take what the engine reports. Reports for runs that are over are dropped."""
        return self._running.on_engine(event, now) + self._fill_slots(now)

    def drain(self, now: Now) -> list[Effect]:
        """Send those who wait elsewhere; those who hold a slot stay, and the owner, who has nowhere else to go. The
        offer says that no new ones are taken.
        """
        effects: list[Effect] = []
        for run in [run for run in self._runs.values() if run.waits and not run.is_own]:
            text = "this node is finishing its jobs, and yours had not begun"
            effects += self._fail_offer(run, Refusal.DRAINING, text, now)
        return effects

    def shut_down(self, now: Now) -> list[Effect]:
        """Stop every run; each ends with its receipt."""
        effects: list[Effect] = []
        # SPEC 05: A provider that drains MUST finish the orders that have a slot, or end them with a receipt with the
        #   code `SHUTDOWN`.
        for run in list(self._runs.values()):
            effects += self._stop(run, Refusal.SHUTDOWN, now)
        return effects + self._refusing.handing_off.shut_down((Refusal.SHUTDOWN, "this node is shutting down"))

    @staticmethod
    def _check_belongs(run: Run, job: JobId, attempt: int) -> None:
        if (job, attempt) != (run.order.job, run.order.attempt):
            raise RemoteProtocolError("a message for another job on this stream")

    # ------------------------------------------------------------ taking an order

    def _on_open(self, stream: StreamId, peer: NodeId, local: bool, message: JobOpen, now: Now) -> list[Effect]:
        # SPEC 05: The provider MUST check the signature of an order before anything else about it.
        try:
            order = open_record(message.order, JobOpenRecord)
        except UnknownVersion as error:
            return self._refusing.refuse_unknown(stream, message.order, str(error))
        if len(message.sealed) > order.sealed_bytes:
            raise RemoteProtocolError("more sealed bytes than the order states")
        if order.asker != peer:
            self._forwarded.add(stream)
        offer = self._admission.admit(order, message.lease, peer, local, self._held(order), now)
        if not isinstance(offer, ModelOffer):
            self._count_refused(order)
            return self._reject(stream, order, message.order, offer, now)
        effects = self._fence(order, now)
        is_known = self._admission.knows(order.asker, peer, local)
        goes_first = self._reserving.is_expected(order) or not self._lines.get(offer.name)
        has_slot = self._slots_free(offer.name, order) > 0 and goes_first
        why = self._full() or (None if has_slot else self._queue_refusal(order, offer, is_known))
        why = why or self._admission.remember(order, "" if is_known else self._network_of(peer), now)
        if why is not None:
            self._count_refused(order)
            return effects + self._reject(stream, order, message.order, why, now)
        self._reserving.use(order)
        hash_ = order_hash(message.order.body)
        run = Run(
            *(RunId(self._next_run), stream, peer, order, message.order, hash_, offer, is_known, has_slot),
            running_hash=hash_,
            came_at_s=now.monotonic_s,
        )
        self._next_run += 1
        self._runs[run.run] = run
        self._by_stream[stream] = run.run
        if order.lease is not None:
            side, stored = self.till.begin(order, now)
            run.meter = Meter(side, order)
            effects += stored
        run.sealed += message.sealed
        if len(run.sealed) < order.sealed_bytes:
            # SPEC 05: The provider MUST reject an order whose prompt is not complete within 20 seconds, with
            #   `DEADLINE`.
            self._timers.set(("parts", run.run), now.monotonic_s + c.PARTS_DEADLINE_S)
        return effects + (self._begin(run, now) if has_slot else self._enqueue(run, now))

    def _count_refused(self, order: JobOpenRecord) -> None:
        # SPEC 05: A node MUST NOT count its own orders as jobs of others,
        if not is_own(order):
            self._running.counting.refused()

    def _held(self, order: JobOpenRecord) -> list[Held]:
        """What all orders here hold or wait for, and what is kept for others than this one."""
        running = [Held(run.order.asker, run.peer, run.offer.name) for run in self._runs.values()]
        return running + self._reserving.held(order)

    def _judge_another(self, order: JobOpenRecord, peer: NodeId, now: Now) -> ModelOffer | Why:
        """Whether a slot can be kept for an order that another provider cannot take."""
        offer = self._admission.judge_another(order, peer, self._held(order), now)
        if isinstance(offer, ModelOffer) and (self._lines.get(offer.name) or not self._slots_free(offer.name)):
            return Refusal.BUSY, "all slots of this model are taken"
        return self._full() or offer

    def _fence(self, order: JobOpenRecord, now: Now) -> list[Effect]:
        """An asker has one attempt of a job open at a time: a higher one ends those before it."""
        # SPEC 05: The provider MUST end every lower attempt of a job when it admits a higher one by the same asker.
        effects: list[Effect] = []
        for run in list(self._runs.values()):
            if (run.order.asker, run.order.job) == (order.asker, order.job):
                effects += self._stop(run, Refusal.CANCELLED, now)
        return effects

    def _full(self) -> Why | None:
        """What keeps this node from looking at any order at all."""
        if self.is_overloaded:
            return Refusal.BUSY, "this node is overloaded"
        if sum(run.order.sealed_bytes for run in self._runs.values() if not run.engine_runs) > c.ORDERS_BYTES_MAX:
            return Refusal.BUSY, "this node holds as many prompts as it can"
        return None

    def _queue_refusal(self, order: JobOpenRecord, offer: ModelOffer, is_known: bool) -> Why | None:
        """Why this order may not wait for a slot."""
        # SPEC 05: The provider MUST NOT let an order wait that does not allow it, or for longer than it allows.
        if not queue_wait_ms(order):
            return Refusal.BUSY, f"all {offer.concurrency} slots of this model are taken"
        # SPEC 05: The provider MUST bound its queue, and MUST keep half of it from askers that its owner does not know.
        places = min(c.QUEUE_PER_SLOT * offer.concurrency, QUEUE_MAX)
        waiting = [run for run in self._runs.values() if run.waits and run.offer.name == offer.name]
        strangers = sum(not run.is_known for run in waiting)
        # SPEC 05: The provider SHOULD let its own orders go before all others that wait, in as many places as those
        #   have.
        if is_own(order):
            waiting = [run for run in waiting if run.is_own]
        if len(waiting) >= places or (not is_known and strangers >= places // 2):
            return Refusal.BUSY, "all slots of this model are taken, and all places in its queue"
        return None

    def _begin(self, run: Run, now: Now) -> list[Effect]:
        """The order has a slot: say so, and run it as soon as the prompt is complete."""
        run.slot_since_s = run.said_at_s = now.monotonic_s
        assert run.stream is not None
        # SPEC 05: A provider with feature 5 MUST answer an order that it admits with `Progress` at once, of 0 and 0,
        acknowledgement = Send(run.stream, encode_message(Progress(run.order.job, run.order.attempt, 0, 0)))
        return [acknowledgement, *self._start_if_complete(run, now)]

    def _on_part(self, run: Run, part: Part, now: Now) -> list[Effect]:
        # SPEC 05: The provider MUST treat a `Part` that is not the next one, and bytes beyond the length in the order,
        #   as a bad frame.
        if run.engine_runs or part.index != run.next_part:
            raise RemoteProtocolError("a part of the prompt that is not the next one")
        run.next_part += 1
        run.sealed += part.sealed
        if len(run.sealed) > run.order.sealed_bytes:
            raise RemoteProtocolError("more sealed bytes than the order states")
        if len(run.sealed) == run.order.sealed_bytes:
            self._timers.cancel(("parts", run.run))
        return self._start_if_complete(run, now) if run.has_slot else []

    def _start_if_complete(self, run: Run, now: Now) -> list[Effect]:
        if len(run.sealed) < run.order.sealed_bytes:
            return []
        order = run.order
        context = seal_context(order.job, order.attempt, order.asker, order.provider, order.lease)
        sealed = bytes(run.sealed)
        run.sealed.clear()
        # SPEC 05: The provider MUST refuse a prompt whose SHA-256 is not the one in the order, with `BAD_REQUEST`.
        if order.sealed_hash != hashlib.sha256(sealed).digest():
            text = "the sealed prompt is not the one that was ordered"
            return self._fail_offer(run, Refusal.BAD_REQUEST, text, now)
        try:
            prompt = open_prompt(sealed, self._sealer, context)
        except SealError:
            # SPEC 05: The provider MUST answer with `CANNOT_OPEN_SEAL` when no key that it holds opens the seal.
            text = "the prompt is sealed for a key that this node no longer holds: here is its new heartbeat"
            return self._fail_offer(run, Refusal.CANNOT_OPEN_SEAL, text, now)
        except BadFrame as error:
            return self._fail_offer(run, Refusal.BAD_REQUEST, str(error), now)
        wrong = check_request(order.kind, prompt.request)
        if wrong is not None:
            return self._fail_offer(run, Refusal.BAD_REQUEST, wrong, now)
        return self._running.start(run, prompt, now)

    # ------------------------------------------------------------ waiting for a slot

    def _enqueue(self, run: Run, now: Now) -> list[Effect]:
        run.state = advance(run.state, JobState.QUEUED)
        model = run.offer.name
        self._lines[model].add(run.order.asker, run.run, is_own=run.is_own)
        wait_ms = min(queue_wait_ms(run.order), run.order.expires_at_ms - now.wall_ms)
        self._timers.set(("wait", run.run), now.monotonic_s + wait_ms / 1000)
        self._tell_soon(now)
        return self._tell(model, now, run)

    def _fill_slots(self, now: Now) -> list[Effect]:
        """Give the slots that are free to those who wait."""
        effects: list[Effect] = []
        for model in list(self._lines):
            line = self._lines[model]
            while line and self._slots_free(model) and (run_id := line.pop()) is not None:
                run = self._runs[run_id]
                self._timers.cancel(("wait", run_id))
                run.state = advance(run.state, JobState.OFFERED)
                run.has_slot = True
                self._tell_soon(now)
                effects += self._begin(run, now)
            if not line:
                del self._lines[model]
        return effects

    def _slots_free(self, model: str, order: JobOpenRecord | None = None) -> int:
        """Slots that nobody has, and that are kept for nobody but this order."""
        taken = sum(run.has_slot and run.offer.name == model for run in self._runs.values())
        taken += sum(held.model == model for held in self._reserving.held(order))
        return max(0, self._admission.slots(model) - taken)

    def _waits_ms(self, model: str, places: int, now: Now) -> list[int]:
        elapsed_s = [
            now.monotonic_s - run.slot_since_s
            for run in self._runs.values()
            if run.has_slot and run.offer.name == model
        ]
        slots = max(len(elapsed_s), self._admission.slots(model))
        waits_s = self._paces[model].waits_s(slots, elapsed_s, places)
        return [min(c.RETRY_AFTER_MS_MAX, round(wait_s * 1000)) for wait_s in waits_s]

    def _wait_ms(self, model: str, now: Now) -> int:
        """How long one who came now would wait behind everybody else."""
        return self._waits_ms(model, len(self._lines.get(model, ())) + 1, now)[-1]

    def _tell_soon(self, now: Now) -> None:
        """Places change: those who wait hear of it, but not of every step when many move at once."""
        self._timers.set(_TELL, now.monotonic_s + c.QUEUED_CHANGE_S)

    def _tell(self, model: str, now: Now, only: Run | None = None) -> list[Effect]:
        """Tell those who wait for this model where they stand, if it is news or long ago; or tell only one."""
        # SPEC 05: The provider MUST say `Queued` at once, soon after a place has changed, and every 2 seconds.
        effects: list[Effect] = []
        ordered = self._lines[model].in_order()
        for position, (run_id, wait_ms) in enumerate(
            zip(ordered, self._waits_ms(model, len(ordered), now), strict=True)
        ):
            run = self._runs[run_id]
            is_due = run.position != position or now.monotonic_s - run.said_at_s >= c.QUEUED_INTERVAL_S
            if run.stream is None or not is_due or only not in (None, run):
                continue
            run.position, run.said_at_s = position, now.monotonic_s
            queued = Queued(run.order.job, run.order.attempt, position, wait_ms)
            effects.append(Send(run.stream, encode_message(queued)))
        return effects

    # ------------------------------------------------------------ ending

    def _stop(self, run: Run, code: Refusal, now: Now) -> list[Effect]:
        """Stop a run for this reason. With the engine at work the receipt follows when the slot is free."""
        if run.engine_runs or run.ending is not None:
            return self._running.stop(run, code, now)
        # SPEC 05: The provider MUST give up an order that waits when its asker cancels or is gone.
        return self._fail_offer(run, code, "the job was stopped", now)

    def _freed(self, run: Run, now: Now) -> None:
        """The engine has left its slot, which is free for the next one."""
        self._paces[run.offer.name].add(now.monotonic_s - run.slot_since_s)
        run.has_slot = False

    def _forget_ended(self, run: Run, now: Now) -> None:
        """The last word has been said to the asker."""
        self._forget(run, now)

    def _fail_offer(self, run: Run, code: Refusal, text: str, now: Now) -> list[Effect]:
        """An order that the engine never got ends with a refusal."""
        run.state = advance(run.state, JobState.FAILED)
        self._count_refused(run.order)
        self._forget(run, now)
        return self._refuse(run, code, text, now)

    def _refuse(self, run: Run, code: Refusal, text: str, now: Now) -> list[Effect]:
        return self._reject(run.stream, run.order, run.signed, (code, text), now) if run.stream is not None else []

    def _reject(self, stream: StreamId, order: JobOpenRecord, signed: Signed, why: Why, now: Now) -> list[Effect]:
        comes_again = why[0] in (Refusal.BUSY, Refusal.RATE_LIMITED)
        retry_after_ms = self._retry_after_ms(order.model, now) if comes_again else 0
        unwanted = Unwanted(stream, order, signed, why, retry_after_ms)
        return self._refusing.refuse(unwanted, self._admission.model(order.model), now)

    def _retry_after_ms(self, model: str, now: Now) -> int:
        """When a slot should be free for one who comes again then. Never 0, which would mean: do not."""
        # SPEC 05: The provider MUST say in `retry_after_ms` of a refusal with `BUSY` or `RATE_LIMITED` when it expects
        #   a slot to be free for one who comes then;
        least_ms = c.OVERLOADED_RETRY_MS if self.is_overloaded else 1
        return max(least_ms, self._wait_ms(model, now))

    def _forget(self, run: Run, now: Now) -> None:
        del self._runs[run.run]
        if run.stream is not None:
            self._by_stream.pop(run.stream, None)
        line = self._lines.get(run.offer.name)
        if line is not None and run.waits:
            line.remove(run.order.asker, run.run)
            self._tell_soon(now)
        for name in ("parts", "wait"):
            self._timers.cancel((name, run.run))
        if run.meter is not None:
            # Whoever has a receipt answers it with the last voucher.
            meter, stream = run.meter, run.stream if run.accepted_at_ms else None
            self.till.end(meter, stream, now)

    # ------------------------------------------------------------ time

    def on_deadline(self, now: Now) -> list[Effect]:
        self._reserving.on_deadline(now)
        effects = self.till.on_deadline(now)
        effects += self._running.on_deadline(now) + self._refusing.handing_off.on_deadline(now)
        for name, run_id in self._timers.pop_due(now.monotonic_s):
            run = self._runs.get(run_id)
            if name == "tell":
                effects += self._tell_all(now)
            elif run is None:
                continue  # its other deadline has ended it at this very instant
            elif name == "parts":
                text = "the rest of the prompt did not arrive"
                effects += self._fail_offer(run, Refusal.DEADLINE, text, now)
            else:
                text = "no slot came free as long as the order waits"
                effects += self._fail_offer(run, Refusal.BUSY, text, now)
        return effects + self._fill_slots(now)

    def _tell_all(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for model in list(self._lines):
            effects += self._tell(model, now)
        if any(self._lines.values()):
            self._timers.set(_TELL, now.monotonic_s + c.QUEUED_INTERVAL_S)
        return effects
