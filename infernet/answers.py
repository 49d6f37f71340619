"""Answers to the questions of this node's user: each is a job, and what becomes of it comes to whoever asked."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio
from msgspec import structs

from infernet.driver import Driver
from protocol.effects import JobDone, JobEvent, JobFailed
from protocol.errors import LocalProtocolError, Refusal
from protocol.events import Ask, StopAsking
from protocol.ids import JobId, LeaseId, NodeId
from protocol.jobs import default_sampling
from protocol.leases import PayerSide
from protocol.records import ChatMessage, JobRequest, Kind, Sampling

# What an asker has not read yet; a terminal or a page that stands still this long loses its job, nobody else's.
ANSWER_EVENTS_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class AskOptions:
    """One question. Exactly one of `messages` (chat), `prompt` (completion) and `inputs` (embedding) is given."""

    messages: tuple[ChatMessage, ...] = ()
    prompt: str = field(default="", repr=False)
    inputs: tuple[str, ...] = field(default=(), repr=False)
    model: str | None = None
    provider: NodeId | None = None
    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    timeout_s: float = 600.0
    #: The aggregator that is to pass the order on.
    via: NodeId | None = None
    #: What the whole answer may cost, in micro-USD; 0: nothing, so only those who do it for nothing are asked.
    spend_uusd_max: int = 0

    @property
    def kind(self) -> Kind:
        if self.messages:
            return Kind.CHAT
        return Kind.COMPLETION if self.prompt else Kind.EMBEDDING

    def sampling(self) -> Sampling:
        """Raises LocalProtocolError for a temperature or top_p that the protocol does not know."""
        # SPEC 05: The asker MUST draw the sampling seed itself when its user gives none.
        seed = secrets.randbits(62) if self.seed is None else self.seed
        sampling = default_sampling(seed, temperature=self.temperature)
        if self.top_p is None:
            return sampling
        if not 0 <= self.top_p <= 1:
            raise LocalProtocolError(f"top_p lies between 0 and 1, not at {self.top_p}")
        return structs.replace(sampling, top_p_milli=round(self.top_p * 1000))


@dataclass(frozen=True, slots=True)
class Payment:
    """A voucher that was signed for an answer on its way.

    `number` counts the vouchers of this answer from 1; `paid_uusd` is what it has cost so far, whoever gave it.
    `signed_uusd` is what the lease has been signed for in all, of its `cap_uusd`.
    """

    job: JobId
    provider: NodeId
    lease: LeaseId
    number: int
    paid_uusd: int
    signed_uusd: int
    cap_uusd: int


#: What whoever asks is told, in order.
AnswerEvent = JobEvent | Payment


@dataclass(slots=True)
class _Waiting:
    """Whoever waits for an answer; `paying` is the lease that pays for it now, and up to which voucher they know."""

    send: trio.MemorySendChannel[AnswerEvent]
    is_paid: bool
    vouchers: int = 0
    paying: tuple[PayerSide, int] | None = None
    #: What each attempt has cost.
    paid_uusd: dict[int, int] = field(default_factory=dict)


class Answers:
    """Those that are awaited."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._waiting: dict[JobId, _Waiting] = {}

    @asynccontextmanager
    async def ask(self, options: AskOptions) -> AsyncIterator[AsyncIterator[AnswerEvent]]:
        """As `Node.ask`."""
        job = JobId(secrets.token_bytes(16))
        ask = Ask(
            job,
            options.kind,
            JobRequest(options.messages, options.prompt, options.inputs, "", options.stop),
            options.sampling(),
            options.max_tokens,
            options.model,
            options.provider,
            options.timeout_s,
            options.via,
            spend_uusd_max=options.spend_uusd_max,
        )
        send, receive = trio.open_memory_channel[AnswerEvent](ANSWER_EVENTS_MAX)
        self._waiting[job] = _Waiting(send, options.spend_uusd_max > 0)
        try:
            self._driver.command(ask)
            async with receive:
                yield receive
        finally:
            if self._waiting.pop(job, None) is not None:
                self._driver.post(StopAsking(job))

    def deliver(self, event: JobEvent) -> None:
        """Something happened to a job: tell whoever asked, if they are still there."""
        waiting = self._waiting.get(event.job)
        if waiting is None:
            return
        payment = self._payment(event.job, waiting) if waiting.is_paid else None
        for each in (event,) if payment is None else (payment, event):
            try:
                waiting.send.send_nowait(each)
            except trio.WouldBlock:
                # The reader stands still: its job is stopped, and its iterator ends where the queue does.
                del self._waiting[event.job]
                self._driver.post(StopAsking(event.job, Refusal.SLOW_READER))
                waiting.send.close()
                return
        if isinstance(event, (JobDone, JobFailed)):
            del self._waiting[event.job]
            waiting.send.close()

    def _payment(self, job: JobId, waiting: _Waiting) -> Payment | None:
        """What was signed for this job since the last time, if anything was."""
        sides = self._driver.peer.purse.sides()
        found = [side for side in sides if side.voucher_job is not None and side.voucher_job[0] == job]
        if not found:
            return None
        # Where one has taken over from another, the later attempt is the one that goes on.
        side = max(found, key=_attempt)
        if waiting.paying is None or waiting.paying[0] is not side:
            # Its first voucher for this job, or one of the first few: there is one event at least for every two.
            waiting.paying = (side, side.sequence - 1)
        known = waiting.paying[1]
        if side.sequence == known:
            return None
        waiting.vouchers += side.sequence - known
        waiting.paid_uusd[_attempt(side)] = side.signed_uusd - side.base_uusd
        waiting.paying = (side, side.sequence)
        return Payment(
            job,
            NodeId(side.record.provider),
            LeaseId(side.record.lease),
            waiting.vouchers,
            sum(waiting.paid_uusd.values()),
            side.signed_uusd,
            side.record.cap_uusd,
        )


def _attempt(side: PayerSide) -> int:
    assert side.voucher_job is not None
    return side.voucher_job[1]
