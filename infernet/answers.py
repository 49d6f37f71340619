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
from protocol.ids import JobId, NodeId
from protocol.jobs import default_sampling
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


class Answers:
    """Those that are awaited."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._waiting: dict[JobId, trio.MemorySendChannel[JobEvent]] = {}

    @asynccontextmanager
    async def ask(self, options: AskOptions) -> AsyncIterator[AsyncIterator[JobEvent]]:
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
        )
        send, receive = trio.open_memory_channel[JobEvent](ANSWER_EVENTS_MAX)
        self._waiting[job] = send
        try:
            self._driver.command(ask)
            async with receive:
                yield receive
        finally:
            if self._waiting.pop(job, None) is not None:
                self._driver.post(StopAsking(job))

    def deliver(self, event: JobEvent) -> None:
        """Something happened to a job: tell whoever asked, if they are still there."""
        send = self._waiting.get(event.job)
        if send is None:
            return
        try:
            send.send_nowait(event)
        except trio.WouldBlock:
            # The reader stands still: its job is stopped, and its iterator ends where the queue does.
            del self._waiting[event.job]
            self._driver.post(StopAsking(event.job, Refusal.SLOW_READER))
            send.close()
            return
        if isinstance(event, (JobDone, JobFailed)):
            del self._waiting[event.job]
            send.close()
