"""The public chat as an asker: one job per chat, its feed, who reads it, and what is kept of it.

A chat is cancelled when its last reader leaves and does not come back. What reaches the store is kind, counts, hash
and times; the texts are in the feed, in memory, until a while after the end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog

from coordinator.config import Config
from coordinator.core.driver import PeerDriver
from coordinator.core.feed import Feed, FeedFull
from coordinator.core.limits import Client
from coordinator.core.links import Links
from coordinator.core.specs import clean_name, clean_text
from coordinator.core.views import iso_time
from coordinator.store import job_events, jobs
from coordinator.store.db import Database
from protocol import events as e
from protocol.effects import JobAccepted, JobDone, JobEvent, JobFailed, JobQueued, JobResumed, JobText, JobVector
from protocol.errors import LocalProtocolError, Refusal
from protocol.ids import JobId, NodeId
from protocol.records import JobRequest, Kind, Outcome, Sampling

# 16 bytes per token is four times what text takes; below this size nobody counts.
BYTES_PER_TOKEN_MAX: Final = 16
ANSWER_BYTES_MIN: Final = 64 * 1024
ERROR_CHARACTERS_MAX: Final = 256

log = structlog.get_logger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], object]


class Chat:
    """One chat: its job's row as it stands, its feed, and how many read it."""

    def __init__(self, row: jobs.Job, client: Client, answer_bytes_max: int) -> None:
        self.row = row
        self.client = client
        self.feed = Feed(answer_bytes_max)
        self.readers = 0
        self.failure: JobFailed | None = None
        self.accepted_or_ended = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None
        self.events = 0
        # Where it waits, as its readers know.
        self.place: tuple[NodeId, int] | None = None
        # Beside the row, because it changes with every token and the row is replaced as a whole.
        self.output_tokens = 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.feed.has_ended

    def arm(self, delay_s: float, callback: Callable[[Chat], None]) -> None:
        """Call back after a delay, unless armed again or disarmed first."""
        self.disarm()
        self.timer = asyncio.get_running_loop().call_later(delay_s, callback, self)

    def disarm(self) -> None:
        """Forget the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Chats:
    """All chats of this process, running and just ended; both are bounded."""

    def __init__(
        self, config: Config, database: Database, links: Links, wall_ms: Callable[[], int], spawn: Spawn
    ) -> None:
        self._config = config
        self._database = database
        self._links = links
        self._wall_ms = wall_ms
        self._spawn = spawn
        self._chats: dict[JobId, Chat] = {}
        self._driver: PeerDriver | None = None

    def attach(self, driver: PeerDriver) -> None:
        """Say who asks. Once, before the first chat."""
        self._driver = driver

    def get(self, job: JobId) -> Chat | None:
        """The chat of this job, while it is in memory."""
        return self._chats.get(job)

    def running(self, client: Client | None = None) -> int:
        """How many chats have not ended, of one client or of all."""
        return sum(not chat.has_ended and client in (None, chat.client) for chat in self._chats.values())

    # ------------------------------------------------------------ commands

    def start(
        self,
        client: Client,
        model: str | None,
        request: JobRequest,
        sampling: Sampling,
        output_tokens_max: int,
        spend_uusd_max: int = 0,
    ) -> Chat:
        """Ask, for so much money at most. Raises LocalProtocolError for what no provider could run.

        The job's row is written beside it: nobody's first token waits for the disk.
        """
        assert self._driver is not None
        job = JobId(secrets.token_bytes(16))
        row = jobs.Job(job, "chat", "assigned", None, model, self._wall_ms())
        chat = Chat(row, client, max(ANSWER_BYTES_MIN, BYTES_PER_TOKEN_MAX * output_tokens_max))
        ask = e.Ask(
            *(job, Kind.CHAT, request, sampling, output_tokens_max, model),
            timeout_s=self._config.chat_timeout_s,
            spend_uusd_max=spend_uusd_max,
        )
        self._chats[job] = chat
        chat.feed.add("job", self.job_view(row))
        self._record(chat, "job")
        chat.arm(self._config.chat_first_reader_s, self._abandon)
        try:
            self._driver.handle(ask)
        except LocalProtocolError as error:
            self._on_failed(chat, JobFailed(job, Refusal.BAD_REQUEST, str(error)))
            raise
        return chat

    def cancel(self, chat: Chat) -> None:
        """The user wants no more of it. Does nothing when it has ended."""
        if not chat.has_ended and self._driver is not None:
            self._driver.handle(e.StopAsking(chat.row.job))

    def end_all(self, text: str) -> None:
        """Tell the readers of all running chats why there is no more; the jobs are cancelled by who calls."""
        for chat in list(self._chats.values()):
            if not chat.has_ended:
                self._on_failed(chat, JobFailed(chat.row.job, Refusal.SHUTDOWN, text))

    def _abandon(self, chat: Chat) -> None:
        if not chat.has_ended:
            log.info("chat_abandoned", job=chat.row.job.hex()[:8])
            self.cancel(chat)

    @contextmanager
    def reading(self, chat: Chat) -> Iterator[None]:
        """Count a reader; when the last one leaves, the chat is cancelled unless one comes back in time."""
        chat.readers += 1
        if not chat.has_ended:
            chat.disarm()
        try:
            yield
        finally:
            chat.readers -= 1
            if not chat.readers and not chat.has_ended:
                chat.arm(self._config.chat_grace_s, self._abandon)

    # ------------------------------------------------------------ what the peer tells

    def on_effect(self, effect: JobEvent) -> None:
        """Turn an effect of the peer into an event of the feed."""
        chat = self._chats.get(effect.job)
        if chat is None or chat.has_ended:
            return
        match effect:
            case JobText():
                self._on_text(chat, effect)
            case JobAccepted():
                self._on_accepted(chat, effect)
            case JobQueued():
                self._on_queued(chat, effect)
            case JobResumed():
                self._on_resumed(chat, effect)
            case JobDone():
                self._on_done(chat, effect)
            case JobFailed():
                self._on_failed(chat, effect)
            case JobVector():
                raise AssertionError("a chat answers with text")

    def _on_accepted(self, chat: Chat, effect: JobAccepted) -> None:
        chat.row = dataclasses.replace(
            chat.row,
            status="running",
            provider=effect.provider,
            model=clean_text(effect.model, ERROR_CHARACTERS_MAX),
            prompt_tokens=effect.prompt_tokens,
        )
        provider = self.provider_view(chat)
        assert provider is not None
        chat.feed.add(
            "meta",
            {
                "provider_node_id": provider["nodeId"],
                "provider_name": provider["name"],
                "model": chat.row.model,
                "started_at": iso_time(self._wall_ms()),
                "engine": None,
                "provider": provider,
                "prompt_tokens": effect.prompt_tokens,
                "attempt": effect.attempt,
            },
        )
        chat.accepted_or_ended.set()
        self._record(chat, "meta")

    def _on_queued(self, chat: Chat, effect: JobQueued) -> None:
        place = (effect.provider, effect.position)
        if chat.place == place:
            return  # a reader wants to see it move, and the feed keeps everything
        chat.place = place
        chat.feed.add(
            "queued",
            {
                "provider": self._node_view(effect.provider, chat.row.model),
                "position": effect.position,
                "wait_ms": effect.wait_ms,
            },
        )

    def _on_resumed(self, chat: Chat, effect: JobResumed) -> None:
        chat.row = dataclasses.replace(chat.row, provider=effect.provider)
        chat.feed.add(
            "resumed",
            {
                "provider": self._node_view(effect.provider, chat.row.model),
                "lost": self._node_view(effect.lost, chat.row.model),
                "attempt": effect.attempt,
                "prompt_tokens": effect.prompt_tokens,
                "output_tokens_before": effect.output_tokens_before,
            },
        )
        self._record(chat, "resumed")

    def _on_text(self, chat: Chat, effect: JobText) -> None:
        is_first = not chat.output_tokens
        chat.output_tokens = effect.output_tokens
        try:
            if effect.text:
                chat.feed.add_text(effect.text)
        except FeedFull:
            log.warning("answer_too_large", job=chat.row.job.hex()[:8])
            text = "the provider sent more text than its number of tokens can hold"
            self.cancel(chat)
            self._on_failed(chat, JobFailed(chat.row.job, Refusal.PROTOCOL, text))
            return
        if is_first:
            self._record(chat, "token")

    def _on_done(self, chat: Chat, effect: JobDone) -> None:
        receipt = effect.receipt
        reason = Outcome(receipt.outcome).name.lower()
        now_ms = self._wall_ms()
        # The question was read by the first of them; what the others read again is theirs to say.
        prompt_tokens = effect.served[0].prompt_tokens
        chat.output_tokens = sum(part.output_tokens for part in effect.served)
        chat.row = dataclasses.replace(chat.row, status="completed", ended_ms=now_ms, outcome=reason)
        chat.feed.end(
            "done",
            {
                "text": chat.feed.text,
                "reason": reason,
                "finished_at": iso_time(now_ms),
                "usage": {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": chat.output_tokens,
                    "total_tokens": prompt_tokens + chat.output_tokens,
                },
                "served": [
                    {
                        "provider": self._node_view(part.provider, chat.row.model),
                        "attempt": part.attempt,
                        "prompt_tokens": part.prompt_tokens,
                        "completion_tokens": part.output_tokens,
                    }
                    for part in effect.served
                ],
            },
        )
        self._end(chat, "done", receipt.running_hash)

    def _on_failed(self, chat: Chat, effect: JobFailed) -> None:
        code = effect.code.name.lower()
        status = "cancelled" if effect.code is Refusal.CANCELLED else "failed"
        chat.failure = effect
        chat.row = dataclasses.replace(chat.row, status=status, ended_ms=self._wall_ms(), outcome=code)
        chat.feed.end("error", {"message": clean_text(effect.text, ERROR_CHARACTERS_MAX), "code": code})
        self._end(chat, "error", None)

    def _end(self, chat: Chat, kind: str, running_hash: bytes | None) -> None:
        chat.accepted_or_ended.set()
        chat.arm(self._config.chat_keep_s, self._forget)
        self._record(chat, kind, running_hash)
        ended = [other for other in self._chats.values() if other.has_ended]
        if len(ended) > self._config.chats_at_once:
            self._forget(ended[0])

    def _forget(self, chat: Chat) -> None:
        chat.disarm()
        self._chats.pop(chat.row.job, None)

    # ------------------------------------------------------------ what is kept

    def _record(self, chat: Chat, kind: str, running_hash: bytes | None = None) -> None:
        chat.events += 1
        row = chat.row = dataclasses.replace(chat.row, output_tokens=chat.output_tokens)
        event = job_events.JobEvent(row.job, chat.events, kind, row.output_tokens, running_hash, self._wall_ms())
        self._spawn(self._write(row, event))

    async def _write(self, row: jobs.Job, event: job_events.JobEvent) -> None:
        def record(tx: Any) -> None:
            jobs.put(tx, row)
            job_events.insert(tx, event)

        await self._database.write(record)

    # ------------------------------------------------------------ views

    @staticmethod
    def job_view(row: jobs.Job) -> dict[str, Any]:
        """A job as clients see it: never with its texts."""
        return {
            "id": row.job.hex(),
            "status": row.status,
            "source": "p2p",
            "type": row.kind,
            "model_name": row.model,
            "provider_id": row.provider.hex() if row.provider else None,
            "created_at": iso_time(row.created_ms),
        }

    def provider_view(self, chat: Chat) -> dict[str, Any] | None:
        """Who serves a chat, as far as it is known."""
        return self._node_view(chat.row.provider, chat.row.model) if chat.row.provider is not None else None

    def _node_view(self, node: NodeId, model: str | None) -> dict[str, Any]:
        assert self._driver is not None
        entry = self._driver.peer.directory.get(node)
        gpus = entry.heartbeat.gpus if entry is not None else ()
        return {
            "id": node.hex(),
            "name": clean_name(entry.heartbeat.name) if entry is not None else "",
            "nodeId": self._links.label(node),
            "gpuModel": clean_text(gpus[0].model, ERROR_CHARACTERS_MAX) if gpus else None,
            "model": model,
        }
