"""The asker's side of jobs: find a provider, order, check every chunk, end with a receipt or a reason.

A job goes through attempts, one provider each. A failed attempt is followed by the next candidate: until the first
piece of the answer has arrived it starts over, unseen; afterwards it continues from the text so far with the same
weights, and the user hears of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from msgspec.structs import replace

from protocol import constants as c
from protocol.asked import Job, Stage, check_ask, is_above_limit, served_by
from protocol.attempt import Attempt
from protocol.codec import encode_message
from protocol.directory import Directory, Entry
from protocol.effects import (
    Effect,
    FinishStream,
    JobAccepted,
    JobDone,
    JobFailed,
    JobQueued,
    JobResumed,
    JobText,
    JobVector,
    Note,
    RecordLearnt,
    ResetStream,
    Send,
)
from protocol.envelope import Signer
from protocol.errors import LocalProtocolError, Refusal, RemoteProtocolError, SealError, refusal_from_code
from protocol.events import Ask, DialFailed, LeaseDenied, LeaseGranted, MarkStored, Now, StopAsking
from protocol.formats.amounts import say_usd
from protocol.ids import JobId, NodeId, StreamId, short
from protocol.jobs import queue_wait_ms
from protocol.leases import PayerSide
from protocol.messages import Cancel, Chunk, JobAccept, JobReject, Message, Progress, Queued, Receipt, Voucher
from protocol.ordering import Ordering
from protocol.purse import Purse
from protocol.records import Heartbeat, Kind, ModelOffer, Outcome
from protocol.reserving import reservation_for
from protocol.router import Router
from protocol.sealing import Sealer
from protocol.searching import Outcomes, Search, Searching
from protocol.timers import Timers


class Asking:
    """The state machine.

    `connected` and `addresses` are the peer's knowledge of the network, `aggregators` the connected peers that forward
    jobs, `search` asks peers for providers, and `next_stream` numbers the streams we
    open.
    """

    def __init__(
        self,
        signer: Signer,
        sealer: Sealer,
        directory: Directory,
        rng: random.Random,
        router: Router,
        purse: Purse,
        *,
        connected: Callable[[NodeId], bool],
        addresses: Callable[[NodeId], tuple[str, ...]],
        aggregators: Callable[[], list[NodeId]],
        search: Search,
        next_stream: Callable[[], StreamId],
        connected_only: bool = False,
    ) -> None:
        self._node = signer.node
        self._directory = directory
        self._router = router
        self._purse = purse
        self._ordering = Ordering(signer, sealer, rng, next_stream)
        self._searching = Searching(
            signer.node,
            directory,
            router,
            connected=connected,
            addresses=addresses,
            aggregators=aggregators,
            search=search,
            coordinator=lambda: purse.coordinator,
            funded=lambda job, now: purse.funded(now) if job.is_paid else [],
            connected_only=connected_only,
            outcomes=Outcomes(self._offer, self._attempt_failed, self._give_up),
        )
        self._jobs: dict[JobId, Job] = {}
        self._by_stream: dict[StreamId, JobId] = {}
        # Until the stream is gone, for what a provider sends after the end of its job is not the aggregator's either.
        self._forwarded: set[StreamId] = set()
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

    def is_forwarded(self, stream: StreamId) -> bool:
        """Whether what comes on this stream is from a provider, and not from the peer that it comes by way of."""
        return stream in self._forwarded

    def on_stream_dropped(self, stream: StreamId) -> None:
        """Nothing comes on this stream any more."""
        self._forwarded.discard(stream)

    # ------------------------------------------------------------ commands

    def ask(self, ask: Ask, now: Now) -> list[Effect]:
        """Begin a job. Raises LocalProtocolError for a request that no provider could run."""
        if ask.job in self._jobs:
            raise LocalProtocolError("this job id is in use")
        check_ask(ask)
        if ask.via == self._node:
            ask = replace(ask, via=None)
        if ask.provider == self._node:
            # SPEC 05: A node MUST ask nothing for an order of its own, and needs no lease for it: it is free by every
            #   rule.
            ask = replace(ask, spend_uusd_max=0)
        job = Job(ask, Stage.SEARCHING, now.monotonic_s + ask.timeout_s)
        job.measure()
        if job.sealed_bytes > c.SEALED_BYTES_MAX:
            raise LocalProtocolError(f"the prompt takes {job.sealed_bytes} bytes sealed; shorten it")
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
            self._purse.abandon(job.ask.job)
            self._forget(job)
            return [failed]
        job.stage = Stage.CANCELLING
        self._timers.cancel(("total", job.ask.job))
        self._timers.cancel(("silence", job.ask.job))
        self._timers.set(("stage", job.ask.job), now.monotonic_s + c.CANCEL_GRACE_S)
        # SPEC 05: The asker MUST send `Cancel`, or reset the stream, as soon as it no longer wants an answer.
        cancel = Cancel(job.ask.job, attempt.order.attempt, int(Refusal.CANCELLED))
        return [Send(attempt.stream, encode_message(cancel)), failed]

    # ------------------------------------------------------------ what happens in the network

    def on_record(self, heartbeat: Heartbeat, now: Now) -> list[Effect]:
        """The directory learnt something: jobs that look for a provider may go on."""
        return self._searching.on_record(heartbeat, now)

    def on_connected(self, peer: NodeId, now: Now) -> list[Effect]:
        return self._searching.on_connected(peer, now)

    def on_dial_failed(self, event: DialFailed, now: Now) -> list[Effect]:
        return self._searching.on_dial_failed(event, now)

    def on_unreachable(self, peer: NodeId, reason: str, now: Now) -> list[Effect]:
        """The connection went away while we waited for the peer's record."""
        return self._searching.on_unreachable(peer, reason, now)

    # ------------------------------------------------------------ ordering

    def _offer(self, job: Job, entry: Entry, offer: ModelOffer, now: Now) -> list[Effect]:
        """Order from a provider that is reached, with money where it wants some and we have it."""
        side: PayerSide | None = None
        if job.is_paid and not offer.is_free:
            needed_uusd = job.cost_bound_uusd(offer)
            if needed_uusd > job.spend_uusd_left:
                return self._not_funded(job, _too_dear(job, needed_uusd), now)
            # SPEC 06: The asker MUST NOT order at a price above its user's limits, nor ask for a lease at one:
            # It may have risen since the provider was chosen, or the user has named the provider.
            if is_above_limit(job.ask, offer):
                return self._not_funded(job, "the provider asks for more than the limit by now", now, Refusal.PRICE)
            side = self._lease_for(job, entry.heartbeat.node, offer, now)
            if side is None:
                return self._get_lease(job, entry.heartbeat, offer, now)
        try:
            attempt, effects = self._ordering.order(job, entry, offer, side, now)
        except SealError as error:
            return self._attempt_failed(job, Refusal.CANNOT_OPEN_SEAL, str(error), now)
        self._router.ordered(job.ask, attempt.order.provider, attempt.order.model, now)
        if side is not None:
            self._purse.begin(side, attempt.order)
        job.attempt = attempt
        job.stage = Stage.OFFERED
        self._by_stream[attempt.stream] = job.ask.job
        if attempt.via is not None:
            self._forwarded.add(attempt.stream)
        # The answer can come only once the whole prompt has arrived, over however slow a line.
        self._await(job, c.ACCEPT_DEADLINE_S + attempt.transfer_s + attempt.reach_s, now)
        if attempt.acknowledges:
            # Whoever was too slow before, and is the last one left, gets more time.
            patience_s = c.ACCEPT_DEADLINE_S if job.provider in job.retried else c.ACK_DEADLINE_S
            first_s = min(attempt.transfer_s, c.SEALED_INLINE_BYTES_MAX / c.PROMPT_BYTES_PER_S_MIN)
            self._timers.set(("silence", job.ask.job), now.monotonic_s + patience_s + first_s + attempt.reach_s)
        return effects

    # ------------------------------------------------------------ paying

    def _lease_for(self, job: Job, provider: NodeId, offer: ModelOffer, now: Now) -> PayerSide | None:
        until_ms = now.wall_ms + round((job.deadline_s - now.monotonic_s) * 1000)
        return self._purse.find(provider, offer, job.cost_bound_uusd(offer), until_ms, now)

    def _get_lease(self, job: Job, heartbeat: Heartbeat, offer: ModelOffer, now: Now) -> list[Effect]:
        """Money is to be locked for this provider first."""
        coordinator, needed_uusd = self._purse.coordinator, job.cost_bound_uusd(offer)
        if coordinator is None or coordinator not in heartbeat.coordinators:
            return self._not_funded(job, "the provider takes no leases of our coordinator", now)
        if job.leases_asked >= c.ORDERS_MAX:
            return self._not_funded(job, "no lease fitted what the providers wanted by then", now)
        job.leases_asked += 1
        job.stage, job.model = Stage.FUNDING, offer.name
        self._await(job, c.LEASE_DEADLINE_S, now)
        return self._purse.request(job.ask.job, heartbeat.node, offer, needed_uusd, now)

    def on_lease_granted(self, event: LeaseGranted, now: Now) -> list[Effect]:
        """The coordinator has locked what we asked for."""
        waiting = self._jobs.get(self._purse.waits_for(event.request) or JobId(b""))
        try:
            job = self._jobs.get(self._purse.on_granted(event, now) or JobId(b""))
        except RemoteProtocolError as error:
            note = Note("lease.bad", self._purse.coordinator, str(error))
            if waiting is None or waiting.stage is not Stage.FUNDING:
                return [note]
            return [note, *self._not_funded(waiting, "the coordinator gave another lease than was asked for", now)]
        if job is None or job.stage is not Stage.FUNDING or job.provider is None:
            return []
        self._timers.cancel(("stage", job.ask.job))
        entry = self._directory.get(job.provider)
        offer = entry.offer(job.model) if entry is not None and job.model is not None else None
        if entry is None or offer is None:
            return self._not_funded(job, "the provider went away while money was locked for it", now)
        return self._offer(job, entry, offer, now)

    def on_lease_denied(self, event: LeaseDenied, now: Now) -> list[Effect]:
        """No lease: this provider is not paid, and another one may be cheaper, or have one already."""
        waiting, effects = self._purse.on_denied(event, now)
        job = self._jobs.get(waiting or JobId(b""))
        if job is None or job.stage is not Stage.FUNDING:
            return effects
        return effects + self._not_funded(job, event.text, now)

    def _offer_anew(self, job: Job, code: Refusal, text: str, now: Now) -> list[Effect]:
        """Our lease is of no more use to the provider: try once with another one, at its present price."""
        assert job.provider is not None
        self._router.withdraw(job.ask.job)
        entry = self._directory.get(job.provider)
        offer = entry.offer(job.model) if entry is not None and job.model is not None else None
        if entry is None or offer is None:
            return self._attempt_failed(job, code, text, now, had_order=True)
        return self._offer(job, entry, offer, now)

    def _not_funded(self, job: Job, text: str, now: Now, code: Refusal = Refusal.LEASE) -> list[Effect]:
        """The provider is not to blame."""
        assert job.provider is not None
        self._timers.cancel(("stage", job.ask.job))
        self._purse.abandon(job.ask.job)
        job.fail(job.provider, code, text, 0, had_order=True)
        self._router.withdraw(job.ask.job)
        if not job.may_go_on(code):
            return self._give_up(job)
        return self._searching.begin(job, now)

    def on_mark_stored(self, event: MarkStored) -> list[Effect]:
        """What waited for the disk can be signed."""
        job = self._jobs.get(self._purse.on_mark_stored(event) or JobId(b""))
        if job is None or job.attempt is None or job.stage is Stage.CANCELLING:
            return []
        return self._pay(job.attempt)

    @staticmethod
    def _pay(attempt: Attempt, *, is_last: bool = False) -> list[Effect]:
        voucher = attempt.voucher(is_last=is_last)
        return [Send(attempt.stream, encode_message(Voucher(voucher)))] if voucher is not None else []

    def _await(self, job: Job, seconds: float, now: Now) -> None:
        """What comes next must come within this long."""
        self._timers.set(("stage", job.ask.job), now.monotonic_s + seconds)

    # ------------------------------------------------------------ messages of a job stream

    def on_message(self, stream: StreamId, message: Message, now: Now) -> list[Effect]:
        """Take a message of a job stream that we opened. Raises RemoteProtocolError; the attempt has then failed."""
        job = self._jobs.get(self._by_stream.get(stream, JobId(b"")))
        if job is None or job.attempt is None:
            self.zombie_chunks += isinstance(message, Chunk)
            return []
        attempt = job.attempt
        attempt.is_heard = True
        effects = self._take(job, attempt, message, now)
        if attempt.acknowledges and job.attempt is attempt and job.stage is not Stage.CANCELLING:
            quiet_s = 0.0 if attempt.is_accepted else attempt.transfer_s
            self._timers.set(("silence", job.ask.job), now.monotonic_s + c.SILENCE_DEADLINE_S + quiet_s)
        return effects

    def _take(self, job: Job, attempt: Attempt, message: Message, now: Now) -> list[Effect]:
        if isinstance(message, Chunk):
            return self._on_chunk(job, attempt, message, now)
        if isinstance(message, Queued):
            return self._on_queued(job, attempt, message, now)
        if isinstance(message, JobAccept):
            return self._on_accept(job, attempt, message, now)
        if isinstance(message, Progress):
            return self._on_progress(job, attempt, message, now)
        if isinstance(message, JobReject):
            return self._on_reject(job, attempt, message, now)
        if isinstance(message, Receipt):
            return self._on_receipt(job, attempt, message, now)
        raise RemoteProtocolError(f"{type(message).__name__} does not come from a provider")

    def on_stream_lost(self, stream: StreamId, code: Refusal, text: str, now: Now) -> list[Effect]:
        """The stream broke, ended early or carried nonsense."""
        job = self._jobs.get(self._by_stream.pop(stream, JobId(b"")))
        if job is None:
            return []
        if job.stage is Stage.CANCELLING:
            self._forget(job)
            return []
        attempt = job.attempt
        if attempt is None:
            return []
        # SPEC 08: The asker MUST treat a `Fault` with a code below 64, before anything of the provider's has come, as
        #   the aggregator's refusal and not as the provider's.
        if attempt.via is not None and not attempt.is_heard and code < Refusal.ENGINE_FAILED:
            text = f"the aggregator {short(attempt.via)} does not pass it on ({code.name.lower()}): {text}"
            code = Refusal.NO_ROUTE
        self._leave(job, attempt)
        return self._attempt_failed(job, code, text, now, had_order=True)

    def _on_accept(self, job: Job, attempt: Attempt, message: JobAccept, now: Now) -> list[Effect]:
        # SPEC 05: The asker MUST treat a second acceptance, a chunk before the acceptance, or a refusal after it, as a
        #   broken protocol.
        if attempt.is_accepted:
            raise RemoteProtocolError("a second acceptance")
        before_uusd = attempt.signed_before_uusd
        record = attempt.accept(message.acceptance, message.voucher)
        if attempt.side is not None and attempt.signed_before_uusd > before_uusd:
            # More was signed before a crash than we remembered, and our mark lies too low for this job.
            self._purse.begin(attempt.side, attempt.order)
        self._router.accepted(job.ask.job)
        if job.stage is Stage.CANCELLING:
            return []
        order = attempt.order
        job.stage = Stage.ACCEPTED
        self._await(job, c.FIRST_CHUNK_DEADLINE_S, now)
        # SPEC 05: The asker MUST tell its user, and MUST account for the tokens of each provider apart.
        if job.has_begun:
            before = job.served[-1]
            tokens = record.prompt_tokens
            resumed = JobResumed(order.job, order.provider, order.attempt, tokens, job.output_tokens, before.provider)
            return [resumed, *self._pay(attempt)]
        tokens = record.prompt_tokens
        accepted = JobAccepted(order.job, order.provider, order.attempt, order.model, tokens, attempt.via)
        return [accepted, *self._pay(attempt)]

    def _on_queued(self, job: Job, attempt: Attempt, message: Queued, now: Now) -> list[Effect]:
        attempt.check_named(message.job, message.attempt)
        if job.stage is Stage.CANCELLING:
            return []
        # SPEC 05: The asker MUST treat a `Queued` for an order that does not allow it, or after the acceptance, as a
        #   broken protocol.
        if job.stage not in (Stage.OFFERED, Stage.QUEUED) or not queue_wait_ms(attempt.order):
            raise RemoteProtocolError("a place in a queue that was not asked for")
        job.stage = Stage.QUEUED
        self._router.waits(job.ask.job, now)
        self._await(job, c.ACCEPT_DEADLINE_S, now)
        return [JobQueued(job.ask.job, attempt.order.provider, message.position, message.wait_ms)]

    def _on_progress(self, job: Job, attempt: Attempt, message: Progress, now: Now) -> list[Effect]:
        moved = attempt.progress(message)
        if job.stage is Stage.QUEUED or (job.stage is Stage.OFFERED and not attempt.is_acknowledged):
            # It has the order, or the order has its slot.
            job.stage = Stage.OFFERED
            attempt.is_acknowledged = True
            self._await(job, c.ACCEPT_DEADLINE_S + attempt.transfer_s, now)
        # SPEC 05: The asker MUST prolong its wait for the first chunk only when the figures of `Progress` have grown.
        elif job.stage is Stage.ACCEPTED and moved:
            self._await(job, c.FIRST_CHUNK_DEADLINE_S, now)
        return []

    def _on_chunk(self, job: Job, attempt: Attempt, chunk: Chunk, now: Now) -> list[Effect]:
        if job.stage is Stage.CANCELLING:
            # SPEC 05: The asker MUST drop chunks that arrive after it cancelled.
            self.zombie_chunks += 1
            attempt.drop(chunk)
            return []
        if job.stage not in (Stage.ACCEPTED, Stage.RUNNING):
            raise RemoteProtocolError("a chunk before the acceptance")
        body = attempt.take(chunk)
        self._router.heard(job.ask.job, chunk.output_tokens, now)
        job.stage = Stage.RUNNING
        self._await(job, c.NEXT_CHUNK_DEADLINE_S, now)
        job.take_text(body, attempt)
        paid = self._pay(attempt)
        if job.ask.kind is Kind.EMBEDDING:
            return [*paid, JobVector(job.ask.job, body.index, body.vector)]
        return [*paid, JobText(job.ask.job, body.text, job.output_tokens + chunk.output_tokens)]

    def _on_reject(self, job: Job, attempt: Attempt, message: JobReject, now: Now) -> list[Effect]:
        attempt.check_named(message.job, message.attempt)
        if job.stage is Stage.CANCELLING:
            return self._close(job, attempt)
        if job.stage not in (Stage.OFFERED, Stage.QUEUED):
            raise RemoteProtocolError("a refusal after the acceptance")
        better: list[Effect] = []
        for record in message.better:
            try:
                heartbeat = self._directory.add(record, now.wall_ms)
            except RemoteProtocolError:
                continue  # a hint that does not hold is no hint
            if heartbeat is not None:
                better.append(RecordLearnt(heartbeat, record))
        is_lease_void = attempt.side is not None and message.code in (Refusal.LEASE, Refusal.PRICE)
        if attempt.side is not None and is_lease_void:
            attempt.side.is_closing = True  # it will not take it the next time either
        self._leave(job, attempt)
        if message.reservation is not None:
            job.reservation = reservation_for(attempt.order, message.reservation, now)
        code = refusal_from_code(message.code)
        if is_lease_void and attempt.order.provider not in job.releases:
            job.releases.add(attempt.order.provider)
            return [FinishStream(attempt.stream), *better, *self._offer_anew(job, code, message.text, now)]
        if code is Refusal.CANNOT_OPEN_SEAL and attempt.order.provider not in job.resealed:
            job.resealed.add(attempt.order.provider)
            job.stale_key = attempt.sealing_key
            self._router.withdraw(job.ask.job)
            return [FinishStream(attempt.stream), *better, *self._searching.fetch_key(job, now)]
        failed = self._attempt_failed(
            job, code, message.text, now, retry_after_ms=message.retry_after_ms, had_order=True
        )
        return [FinishStream(attempt.stream), *better, *failed]

    def _on_receipt(self, job: Job, attempt: Attempt, message: Receipt, now: Now) -> list[Effect]:
        record = attempt.check_receipt(message.receipt)
        # SPEC 06: The asker MUST pay for what has come however the job ended,
        paid = self._pay(attempt, is_last=True)
        if job.stage is Stage.CANCELLING:
            return [*paid, *self._close(job, attempt)]
        if record.outcome in (Outcome.STOP, Outcome.LENGTH):
            attempt.check_complete()
            # Others could not check that a receipt of a payer's key is one of ours.
            self._router.done(job.ask.job, message.receipt if attempt.side is None else None, now)
            closed = self._close(job, attempt)
            served = job.served if attempt.started else [*job.served, served_by(attempt)]
            return [*paid, *closed, JobDone(attempt.order.job, record, tuple(served))]
        # SPEC 05: The asker MUST treat an outcome other than `STOP` and `LENGTH` as a failure, and show its code.
        self._leave(job, attempt)
        code = refusal_from_code(record.code)
        text = f"the provider ended the job: {code.name.lower()}"
        failed = self._attempt_failed(job, code, text, now, had_order=True)
        return [*paid, FinishStream(attempt.stream), *failed]

    def _close(self, job: Job, attempt: Attempt) -> list[Effect]:
        self._forget(job)
        return [FinishStream(attempt.stream)]

    def _leave(self, job: Job, attempt: Attempt) -> None:
        self._by_stream.pop(attempt.stream, None)
        for name in ("stage", "silence"):
            self._timers.cancel((name, job.ask.job))
        job.settle(attempt)
        if attempt.side is not None:
            self._purse.end(attempt.side)

    # ------------------------------------------------------------ failing

    def _attempt_failed(
        self,
        job: Job,
        code: Refusal,
        text: str,
        now: Now,
        *,
        retry_after_ms: int = 0,
        had_order: bool = False,
    ) -> list[Effect]:
        """This provider did not do it: try the next one, or tell the user."""
        assert job.provider is not None
        job.fail(job.provider, code, text, retry_after_ms, had_order=had_order)
        # Whether the provider or the aggregator went silent, only the aggregator could say.
        is_doubtful = job.via is not None and code in (Refusal.PEER_LOST, Refusal.DEADLINE)
        blamed = Refusal.NO_ROUTE if is_doubtful else code
        self._router.failed(job.ask.job, job.provider, job.model, blamed, now, retry_after_ms=retry_after_ms)
        note = Note("job.attempt_failed", job.provider, code.name.lower())
        if job.has_begun:
            job.measure()
        if not job.may_go_on(code):
            return [note, *self._give_up(job)]
        return [note, *self._searching.begin(job, now)]

    def _give_up(self, job: Job) -> list[Effect]:
        code, text, retry_after_ms = job.last_failure or (Refusal.NO_PROVIDER, self._nobody(job), 0)
        if code is Refusal.BUSY:
            retry_after_ms = min(job.busy.values(), default=retry_after_ms)
        self._forget(job)
        return [JobFailed(job.ask.job, code, text, retry_after_ms)]

    def _nobody(self, job: Job) -> str:
        what = f"model {job.ask.model!r}" if job.ask.model else "any model"
        if job.is_paid:
            what += f" at a cost of at most {say_usd(job.spend_uusd_left)}"
        text = f"no provider of {what} for {job.ask.kind.name.lower()} jobs is known or turned up"
        objection = self._router.objection(job.ask.job)
        return f"{text}; of {objection[1]} known: {objection[0]}" if objection is not None else text

    def _forget(self, job: Job) -> None:
        del self._jobs[job.ask.job]
        self._router.forget(job.ask.job)
        self._searching.leave(job)
        if job.attempt is not None:
            self._leave(job, job.attempt)
        for name in ("total", "stage", "silence"):
            self._timers.cancel((name, job.ask.job))

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
                effects += self._on_overdue(job, name, now)
        return effects

    def _on_overdue(self, job: Job, name: str, now: Now) -> list[Effect]:
        attempt = job.attempt
        if job.stage is Stage.FUNDING:
            return self._not_funded(job, "the coordinator did not grant a lease in time", now)
        if attempt is None or (name == "silence" and not attempt.acknowledges):
            return []  # the other deadline has ended the attempt at this very instant
        if job.stage is Stage.CANCELLING:
            self._forget(job)
            return [ResetStream(attempt.stream, "no receipt came after the cancel")]
        text = {
            Stage.OFFERED: "the provider did not answer the order in time",
            Stage.QUEUED: "the provider no longer says where the order waits",
            Stage.ACCEPTED: f"the provider accepted but sent nothing for {c.FIRST_CHUNK_DEADLINE_S:g} s",
            Stage.RUNNING: f"the provider stopped sending for {c.NEXT_CHUNK_DEADLINE_S:g} s",
        }[job.stage]
        if name == "silence" and job.stage is not Stage.OFFERED:
            text = f"the provider gave no sign of life for {c.SILENCE_DEADLINE_S:g} s"
        self._leave(job, attempt)
        reset = ResetStream(attempt.stream, text)
        return [reset, *self._attempt_failed(job, Refusal.DEADLINE, text, now, had_order=True)]


def _too_dear(job: Job, needed_uusd: int) -> str:
    return (
        f"the answer may cost up to {say_usd(needed_uusd)} and {say_usd(job.spend_uusd_left)} may be spent: "
        "raise the limit, or ask for fewer tokens"
    )
