"""`/api/chat`: ask, read the answer over SSE, resume, look, cancel. The shapes are those of the existing API."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct
from quart import Blueprint, Response, request

from coordinator.core.chats import Chat
from coordinator.core.core import DAY_MS, Core
from coordinator.core.feed import sse_frame
from coordinator.core.http import RETRY_AFTER_S, ApiError, BadRequest, json_response, read_json
from coordinator.core.limits import Client, client_of, too_many
from coordinator.core.specs import clean_text
from coordinator.core.sponsor import BUDGET_SPENT, SPENT_HINT, SPENT_TEXT
from coordinator.core.views import iso_time
from coordinator.store import jobs
from protocol import constants as c
from protocol.errors import LocalProtocolError, Refusal
from protocol.ids import JobId
from protocol.jobs import default_sampling, prompt_tokens_bound
from protocol.records import ChatMessage, JobRequest, Kind
from protocol.routing import Exclusion, RouteRequest

MESSAGES_MAX: Final = 256
TEMPERATURE_DEFAULT: Final = 0.7
PING_INTERVAL_S: Final = 15.0
PING: Final = b": ping\n\n"
# EventSource waits three seconds by default before it reconnects, half of the grace that it has.
RETRY: Final = b"retry: 1000\n\n"
# Of one chat; a page has one reader, and another one for a moment when it reconnects.
READERS_MAX: Final = 8
# How long the answer to the question waits for a provider to accept, so that it can name it, or say why not.
ACCEPT_WAIT_S: Final = 1.0
ANY_MODEL: Final = ("", "(any available)", "any", "auto")
START_ONE: Final = "start one with `infernet start` on a machine of yours, or try again in a moment"

# Refusals that will not last.
_PASSING: Final = frozenset({Refusal.BUSY, Refusal.RATE_LIMITED, Refusal.DRAINING})
# Refusals that are about the question, not about the provider.
_BAD_QUESTION: Final = frozenset(
    {Refusal.CONTEXT_EXCEEDED, Refusal.BAD_REQUEST, Refusal.TOO_LARGE, Refusal.UNSUPPORTED}
)


class ChatTurn(Struct):
    """One message of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatBody(Struct, rename="camel"):
    """A question."""

    messages: Annotated[list[ChatTurn], Meta(max_length=MESSAGES_MAX)] = []
    model_name: Annotated[str, Meta(max_length=c.MODEL_NAME_CHARACTERS_MAX)] | None = None
    max_tokens: int | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None


def chat_api(core: Core) -> Blueprint:
    """The routes."""
    api = Blueprint("chat_api", __name__, url_prefix="/api/chat")

    @api.post("")
    async def ask() -> Response:
        body = await read_json(ChatBody)
        question = _question(body, core.config.chat_prompt_bytes_max)
        model = None if body.model_name is None or body.model_name in ANY_MODEL else body.model_name
        tokens_most = core.config.chat_output_tokens_max
        tokens_max = max(1, min(body.max_tokens, tokens_most)) if body.max_tokens is not None else tokens_most
        temperature = TEMPERATURE_DEFAULT if body.temperature is None else body.temperature
        sampling = default_sampling(secrets.randbits(63), temperature=temperature)
        client = client_of(request, core.config)
        _require_room(core, client)
        spend_uusd = core.sponsor.spend_uusd_max
        _require_provider(core, model, question, tokens_max, spend_uusd)
        core.chat_rate.take(client)
        try:
            chat = core.chats.start(client, model, question, sampling, tokens_max, spend_uusd)
        except LocalProtocolError as error:
            raise BadRequest(str(error)) from None
        await _until_accepted(chat)
        if chat.failure is not None and chat.row.provider is None:
            if chat.failure.code is Refusal.LEASE and core.sponsor.is_spent:
                raise _budget_spent(core)
            raise _refusal(chat.failure.code, chat.failure.text, chat.failure.retry_after_ms)
        return json_response(
            {
                "jobId": chat.row.job.hex(),
                "status": chat.row.status,
                "source": "p2p",
                "provider": core.chats.provider_view(chat),
                "streamUrl": f"/api/chat/stream/{chat.row.job.hex()}",
            }
        )

    @api.get("/stream/<job>")
    async def stream(job: str) -> Response:
        if request.method == "HEAD":
            return Response(b"", content_type="text/event-stream")
        chat = core.chats.get(_job_id(job))
        if chat is not None and chat.readers >= READERS_MAX:
            raise too_many("this chat has too many readers", RETRY_AFTER_S)
        events = _farewell(await _row(core, job)) if chat is None else _events(core, chat, _last_event_id())
        response = Response(events, content_type="text/event-stream; charset=utf-8")
        response.timeout = None  # it ends when the job does, or when its reader stalls
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Accel-Buffering"] = "no"  # proxies that know this header pass tokens on at once
        return response

    @api.get("/<job>/status")
    async def status(job: str) -> Response:
        chat = core.chats.get(_job_id(job))
        row = chat.row if chat is not None else await _row(core, job)
        text = clean_text(chat.failure.text, c.TEXT_CHARACTERS_MAX) if chat and chat.failure else row.outcome
        return json_response(_status_view(row, text))

    @api.post("/<job>/cancel")
    async def cancel(job: str) -> Response:
        chat = core.chats.get(_job_id(job))
        if chat is not None:
            core.chats.cancel(chat)
        row = chat.row if chat is not None else await _row(core, job)
        return json_response({"id": row.job.hex(), "status": row.status})

    return api


# ---------------------------------------------------------------- asking


def _question(body: ChatBody, bytes_max: int) -> JobRequest:
    if not body.messages:
        raise BadRequest("messages[] is required")
    size = sum(len(turn.content.encode(errors="replace")) for turn in body.messages)
    if size > bytes_max:
        raise BadRequest(f"the conversation has {size} bytes; this coordinator's chat takes {bytes_max}")
    return JobRequest(messages=tuple(ChatMessage(turn.role, turn.content) for turn in body.messages))


def _require_room(core: Core, client: Client) -> None:
    """Raises ApiError 429 or 503."""
    if core.is_stopping:
        raise _unavailable("the coordinator is shutting down", "try again in a moment", RETRY_AFTER_S)
    if core.chats.running() >= core.config.chats_at_once:
        raise too_many("too many chats are running here; try again soon", RETRY_AFTER_S)
    per_client = core.config.chats_at_once_per_client
    if per_client and not client.is_local and core.chats.running(client) >= per_client:
        raise too_many(f"your network runs {per_client} chats already; wait for one to end", RETRY_AFTER_S)


def _require_provider(core: Core, model: str | None, question: JobRequest, tokens_max: int, spend_uusd: int) -> None:
    """Raises ApiError 503, or 400 for a question that is too long, when no linked node could take it."""
    size = sum(len(message.content) for message in question.messages)
    wanted = RouteRequest(
        model,
        Kind.CHAT,
        context_tokens=tokens_max,
        prompt_bytes=size,
        connected_only=True,
        output_tokens=tokens_max,
        free=not spend_uusd,
        spend_uusd_max=spend_uusd,
        prompt_tokens=prompt_tokens_bound(question),
        coordinator=core.key.node,
    )
    # A decision looks at some hundreds of nodes at most, however many are linked and whatever is asked for.
    decision = core.driver.peer.experience.router.consider(wanted, core.driver.now())
    if decision.chosen is not None:
        return
    reasons = Counter(verdict.against for verdict in decision.verdicts)
    if not len(core.links):
        raise _unavailable("no provider is online", START_ONE)
    if reasons[Exclusion.TOO_LARGE] or reasons[Exclusion.CONTEXT]:
        raise BadRequest("the conversation is too long for every provider that is online")
    if reasons[Exclusion.DRAINING]:
        raise _unavailable("every provider is busy", "try again in a moment", RETRY_AFTER_S)
    if reasons[Exclusion.NOT_FREE] and core.sponsor.is_spent:
        raise _budget_spent(core)
    if reasons[Exclusion.TOO_DEAR]:
        raise _unavailable("every provider that is online asks more than this chat may cost", START_ONE)
    if reasons[Exclusion.NOT_FREE] or reasons[Exclusion.OTHER_COORDINATOR]:
        raise _unavailable("no provider that is online answers this chat for free", START_ONE)
    what = f"serves {clean_text(model, c.MODEL_NAME_CHARACTERS_MAX)}" if model is not None else "offers a model"
    raise _unavailable(f"no provider that is online {what}", f"choose another model, or {START_ONE}")


def _budget_spent(core: Core) -> ApiError:
    """Today's money is gone, and nobody answers for nothing. Tomorrow begins at midnight UTC."""
    wait_s = (DAY_MS - core.wall_ms() % DAY_MS) // 1000 + 1
    headers = {"Retry-After": str(wait_s)}
    text = f"{SPENT_TEXT}, and no provider that is online answers for free"
    return ApiError(503, text, headers=headers, hint=SPENT_HINT, source="none", code=BUDGET_SPENT)


async def _until_accepted(chat: Chat) -> None:
    try:
        async with asyncio.timeout(ACCEPT_WAIT_S):
            await chat.accepted_or_ended.wait()
    except TimeoutError:
        pass  # the stream will tell


def _refusal(code: Refusal, text: str, retry_after_ms: int) -> ApiError:
    message = clean_text(text, c.TEXT_CHARACTERS_MAX)
    if code in _BAD_QUESTION:
        return BadRequest(message)
    hint = "try again in a moment" if code in _PASSING else START_ONE
    return _unavailable(message, hint, max(RETRY_AFTER_S, retry_after_ms / 1000))


def _unavailable(message: str, hint: str, retry_after_s: float | None = None) -> ApiError:
    headers = {"Retry-After": str(math.ceil(retry_after_s))} if retry_after_s is not None else {}
    return ApiError(503, message, headers=headers, hint=hint, source="none")


# ---------------------------------------------------------------- reading


async def _events(core: Core, chat: Chat, after: int) -> AsyncIterator[bytes]:
    """The feed from a number on, as SSE. Several events that wait leave in one piece.

    A reader who takes nothing is cut off by the server's deadline for writing.
    """
    with core.chats.reading(chat):
        yield RETRY
        while True:
            if not await chat.feed.wait(after, PING_INTERVAL_S):
                yield PING
                continue
            entries = chat.feed.read(after)
            if not entries:
                return
            after = entries[-1][0]
            yield b"".join(map(sse_frame, entries))


async def _farewell(row: jobs.Job) -> AsyncIterator[bytes]:
    """What a reader hears who asks for a job that is no longer in memory."""
    if row.outcome == jobs.COORDINATOR_RESTARTED:
        message = "the coordinator restarted while this answer was being written; ask again"
    else:
        message = "this answer is no longer in memory, and answers are never stored; ask again"
    yield sse_frame((1, "error", msgspec.json.encode({"message": message, "code": row.outcome or row.status})))


def _last_event_id() -> int:
    """Up to which event the reader has read: `Last-Event-ID`, as EventSource sends it when it reconnects."""
    text = request.headers.get("Last-Event-ID", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0


def _job_id(text: str) -> JobId:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != 16 or text != data.hex():
        raise _unknown_job()
    return JobId(data)


async def _row(core: Core, job: str) -> jobs.Job:
    async with core.database.reader() as reader:
        row = await jobs.select_one(reader, _job_id(job))
    if row is None:
        raise _unknown_job()
    return row


def _unknown_job() -> ApiError:
    return ApiError(404, "there is no such job")


def _status_view(row: jobs.Job, error_text: str | None) -> dict[str, Any]:
    has_failed = row.status in ("failed", "cancelled")
    return {
        "id": row.job.hex(),
        "status": row.status,
        "model_name": row.model,
        "provider_id": row.provider.hex() if row.provider else None,
        "error": row.outcome if has_failed else None,
        "latest_error_message": error_text if has_failed else None,
        "completed_at": iso_time(row.ended_ms) if row.ended_ms is not None else None,
        "updated_at": iso_time(row.ended_ms if row.ended_ms is not None else row.created_ms),
        "output_tokens": row.output_tokens,
    }
