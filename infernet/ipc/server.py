"""Talking to the node that runs here: the node's side. `infernet/ipc/client.py` says what goes over the socket.

The socket lies in a folder that only this user can enter, and has mode 0600 itself: who can connect may do anything.
Every connection has deadlines, a longest line, and there is a most of them, so that a mistake cannot hurt the node.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import structlog
import trio
from msgspec import Meta, Struct, structs

from infernet.answers import AnswerEvent, Payment
from infernet.coordinator_client import CoordinatorError, CoordinatorRefused
from infernet.draining import JobsLeft
from infernet.host.files import FilesError, reason_of, require_private_directory
from infernet.ipc.client import LINE_BYTES_MAX
from infernet.ipc.why import WhyRequest
from infernet.store import StoreError
from protocol import constants as c
from protocol.effects import JobAccepted, JobDone, JobFailed, JobQueued, JobResumed, JobText, JobVector
from protocol.errors import LocalProtocolError, Refusal
from protocol.formats.text import clean_line

log = structlog.get_logger(__name__)

CONNECTIONS_MAX: Final = 32
# From the connection, or from the last reply, to the next whole line.
REQUEST_TIMEOUT_S: Final = 30.0
# A terminal that was paused gets this long before its chat is cancelled.
WRITE_TIMEOUT_S: Final = 60.0
# Longer than nearly all answers take, and shorter than the patience of whoever shuts a machine down.
DRAIN_LIMIT_S: Final = 30.0
# Each costs the node a look at all its peers, and the fastest four of them a second.
SUBSCRIBERS_MAX: Final = 8
SUBSCRIBER_INTERVAL_S_MIN: Final = 0.25
SUBSCRIBER_TIMEOUT_S: Final = 5.0
_DRAIN_REPORT_S: Final = 1.0
_READ_BYTES: Final = 64 * 1024
_BACKLOG: Final = 16


class ChatTurn(Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: str
    content: str

    def __repr__(self) -> str:  # a prompt must never reach a log by way of a repr
        return f"ChatTurn({self.role})"


class ChatRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of `chat`. `provider` is a public key in any form, `peer` a multiaddr of the one to ask, and `via`
    either, of the aggregator that is to pass it on.
    """

    messages: Annotated[tuple[ChatTurn, ...], Meta(min_length=1, max_length=c.ARRAY_ITEMS_MAX)]
    model: str | None = None
    provider: str | None = None
    peer: str | None = None
    via: str | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=c.OUTPUT_TOKENS_MAX)] = 512
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: tuple[str, ...] = ()
    seed: Annotated[int, Meta(ge=0, le=c.INTEGER_MAX)] | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 600.0
    #: Micro-USD; None: what this node is configured to spend.
    spend_uusd_max: Annotated[int, Meta(ge=0, le=c.LEASE_CAP_UUSD_MAX)] | None = None


class JoinRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of `join`: full multiaddrs of nodes to keep connections to."""

    peers: Annotated[tuple[str, ...], Meta(min_length=1, max_length=c.ARRAY_ITEMS_MAX)]


class MoneyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of `money`: what the coordinator is asked, by one of the names of `money.client.TARGETS`."""

    ask: Annotated[str, Meta(max_length=32)]
    fields: dict[str, str | int | bool]


class CloseLeaseRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of `close-leases`: one lease of ours by its id, or all that no question uses."""

    lease: Annotated[bytes, Meta(min_length=32, max_length=32)] | None = None


@dataclass(frozen=True)
class Handlers:
    """What the node does when it is asked. `chat` may raise LocalProtocolError; leaving its context cancels.

    `join` gives, for each node, why it is not connected, or "" when it is; it may raise LocalProtocolError, too.
    `drain` takes after how many seconds the node stops although jobs run, and returns at once.
    `pause` takes whether to take no new jobs until told, or to go on; it may raise LocalProtocolError.
    `money`, `claim` and `close_leases` may raise LocalProtocolError, CoordinatorError or StoreError.
    """

    status: Callable[[], dict[str, Any]]
    peers: Callable[[], list[dict[str, Any]]]
    live: Callable[[], dict[str, Any]]
    shutdown: Callable[[], None]
    drain: Callable[[float], None]
    pause: Callable[[bool], None]
    jobs_left: Callable[[], JobsLeft]
    chat: Callable[[ChatRequest], AbstractAsyncContextManager[AsyncIterator[AnswerEvent]]]
    join: Callable[[JoinRequest], Awaitable[dict[str, str]]]
    why: Callable[[WhyRequest], dict[str, Any]]
    money: Callable[[MoneyRequest], Awaitable[Any]]
    claim: Callable[[], dict[str, Any]]
    close_leases: Callable[[CloseLeaseRequest], Awaitable[list[dict[str, Any]]]]
    metrics: Callable[[], Awaitable[str]]


async def serve(
    path: Path, handlers: Handlers, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Listen on the socket until cancelled. Whoever calls holds the node's lock, so a socket left there is stale.

    Raises FilesError when the folder is not this user's alone, OSError when the socket cannot be made.
    """
    with _bound(path) as bound:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound))
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, _Server(handlers).connection, [listener])
            task_status.started()


@contextlib.contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """A socket that listens at this path, in the file system as long as the block lasts."""
    require_private_directory(path.parent, create=True)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise FilesError(f"{path} is in the way of the node's socket ({reason_of(error)}): move it away") from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(str(path))
        try:
            path.chmod(0o600)
            bound.listen(_BACKLOG)
            bound.setblocking(False)
            yield bound
        finally:
            path.unlink(missing_ok=True)


class DrainRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of `drain`: after how long to stop although jobs run."""

    limit_s: Annotated[float, Meta(ge=0, le=86_400)] = DRAIN_LIMIT_S


class SubscribeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of `subscribe`: how often to be told."""

    interval_s: Annotated[float, Meta(ge=SUBSCRIBER_INTERVAL_S_MIN, le=60)] = 1.0


class _Server:
    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._connections = 0
        self._subscribers = 0

    async def connection(self, stream: trio.SocketStream) -> None:
        """Serve one connection; nothing that goes wrong on it concerns the others."""
        self._connections += 1
        try:
            if self._connections > CONNECTIONS_MAX:
                await _send(stream, _failure("too-many-connections"))
            else:
                await self._serve(_Lines(stream), stream)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # whoever asked is gone, or does not read
        except* Exception as group:  # a mistake in one command must not end the node
            log.exception("ipc.failed", error=type(group.exceptions[0]).__name__)
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                await _send(stream, _failure("internal-error"))
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _serve(self, lines: _Lines, stream: trio.SocketStream) -> None:
        while (line := await lines.next()) is not None:
            request = _decode(line)
            if request is None:
                await _send(stream, _failure("bad-json"))
                continue
            command, payload = request
            if command == "chat":
                # A chat has the rest of the connection, so that hanging up can mean that it is cancelled.
                await self._chat(stream, payload)
                return
            if command == "join":
                await self._join(stream, payload)
                continue
            if command == "why":
                await self._why(stream, payload)
                continue
            if command in ("money", "claim", "close-leases"):
                await self._money(stream, command, payload)
                continue
            if command == "drain":
                await self._drain(stream, payload)
                return
            if command == "subscribe":
                await self._subscribe(stream, payload)
                return
            await self._answer(stream, command)
        if lines.too_long:
            await _send(stream, _failure("line-too-long", f"a line has at most {LINE_BYTES_MAX} bytes"))

    async def _answer(self, stream: trio.SocketStream, command: str) -> None:
        if command == "ping":
            await _send(stream, _success({"pong": time.time_ns() // 1_000_000}))
        elif command in ("status", "stats"):
            await _send(stream, _success(self._handlers.status()))
        elif command == "metrics":
            await _send(stream, _success({"text": await self._handlers.metrics()}))
        elif command == "peers":
            await _send(stream, _success(self._handlers.peers()))
        elif command in ("pause", "resume"):
            await self._pause(stream, until_told=command == "pause")
        elif command == "shutdown":
            await _send(stream, _success({"shuttingDown": True}))
            self._handlers.shutdown()
        else:
            await _send(stream, _failure(f"unknown-cmd: {clean_line(command, 64)}"))

    async def _pause(self, stream: trio.SocketStream, *, until_told: bool) -> None:
        try:
            self._handlers.pause(until_told)
        except LocalProtocolError as error:
            await _send(stream, _failure(str(error), "bad_request"))
        else:
            left = asdict(self._handlers.jobs_left())
            # Infinite, for nothing ends; and no JSON.
            del left["ends_in_s"]
            await _send(stream, _success({"paused": until_told, **left}))

    async def _join(self, stream: trio.SocketStream, payload: object) -> None:
        try:
            request = msgspec.convert(payload, JoinRequest)
            await _send(stream, _success(await self._handlers.join(request)))
        except msgspec.ValidationError as error:
            await _send(stream, _failure("bad-payload", clean_line(str(error))))
        except LocalProtocolError as error:
            await _send(stream, _failure(str(error), "bad_request"))

    async def _money(self, stream: trio.SocketStream, command: str, payload: object) -> None:
        """Whatever is about money: answered by the node itself, or asked of the coordinator with its key."""
        try:
            if command == "claim":
                data: object = self._handlers.claim()
            elif command == "money":
                data = await self._handlers.money(msgspec.convert(payload, MoneyRequest))
            else:
                request = msgspec.convert(hex_to_bytes(payload), CloseLeaseRequest)
                data = await self._handlers.close_leases(request)
        except msgspec.ValidationError as error:
            await _send(stream, _failure("bad-payload", clean_line(str(error))))
        except CoordinatorRefused as error:
            await _send(stream, _failure(clean_line(str(error), 400), clean_line(error.code, 64) or "refused"))
        except CoordinatorError as error:
            await _send(stream, _failure(clean_line(str(error), 400), "unreachable"))
        except (LocalProtocolError, StoreError) as error:
            await _send(stream, _failure(str(error), "bad_request"))
        else:
            await _send(stream, _success(data))

    async def _why(self, stream: trio.SocketStream, payload: object) -> None:
        try:
            request = msgspec.convert({} if payload is None else payload, WhyRequest)
        except msgspec.ValidationError as error:
            await _send(stream, _failure("bad-payload", clean_line(str(error))))
            return
        await _send(stream, _success(self._handlers.why(request)))

    async def _drain(self, stream: trio.SocketStream, payload: object) -> None:
        """Begin to stop, and say every second what is still to be done, to the end of the node."""
        try:
            request = msgspec.convert({} if payload is None else payload, DrainRequest)
        except msgspec.ValidationError as error:
            await _send(stream, _failure("bad-payload", clean_line(str(error))))
            return
        self._handlers.drain(request.limit_s)
        while True:
            await _send(stream, _success(asdict(self._handlers.jobs_left()), "draining"))
            await trio.sleep(_DRAIN_REPORT_S)

    async def _subscribe(self, stream: trio.SocketStream, payload: object) -> None:
        """Say again and again how things are, to somebody who reads it: others are left as soon as they are behind."""
        try:
            request = msgspec.convert({} if payload is None else payload, SubscribeRequest)
        except msgspec.ValidationError as error:
            await _send(stream, _failure("bad-payload", clean_line(str(error))))
            return
        if self._subscribers >= SUBSCRIBERS_MAX:
            await _send(stream, _failure("too-many-subscribers"))
            return
        self._subscribers += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at_hang_up, stream, nursery.cancel_scope)
                while True:
                    await _send(stream, _success(self._handlers.live(), "snapshot"), SUBSCRIBER_TIMEOUT_S)
                    await trio.sleep(request.interval_s)
        finally:
            self._subscribers -= 1

    async def _chat(self, stream: trio.SocketStream, payload: object) -> None:
        try:
            request = msgspec.convert(payload, ChatRequest)
        except msgspec.ValidationError as error:
            await _send(stream, _failure("bad-payload", clean_line(str(error))))
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_hang_up, stream, nursery.cancel_scope)
            try:
                async with self._handlers.chat(request) as events:
                    await _send_events(stream, events)
            except LocalProtocolError as error:
                await _send(stream, _failure(str(error), "bad_request"))
            nursery.cancel_scope.cancel()


def hex_to_bytes(payload: object) -> object:
    """Ids travel as hex digits; what is none stays as it is, and is refused by its type."""
    if isinstance(payload, dict) and isinstance(payload.get("lease"), str):
        with contextlib.suppress(ValueError):
            return payload | {"lease": bytes.fromhex(payload["lease"])}
    return {} if payload is None else payload


async def _send_events(stream: trio.SocketStream, events: AsyncIterator[AnswerEvent]) -> None:
    async for event in events:
        reply = reply_for(event)
        if reply is not None:
            await _send(stream, reply)
        if isinstance(event, (JobDone, JobFailed)):
            return
    await _send(stream, _failure("the answer was not read fast enough and was given up", "slow_reader"))


def reply_for(event: AnswerEvent) -> dict[str, Any] | None:
    """What happened to a chat, as a reply; None for what a chat has no use for."""
    match event:
        case JobAccepted():
            return _success(
                {
                    "job": event.job.hex(),
                    "provider": event.provider.hex(),
                    "attempt": event.attempt,
                    "model": event.model,
                    "prompt_tokens": event.prompt_tokens,
                    "via": event.via.hex() if event.via is not None else None,
                },
                "accepted",
            )
        case JobQueued():
            data = {"provider": event.provider.hex(), "position": event.position, "wait_ms": event.wait_ms}
            return _success(data, "queued")
        case JobResumed():
            return _success(
                {
                    "provider": event.provider.hex(),
                    "lost": event.lost.hex(),
                    "attempt": event.attempt,
                    "prompt_tokens": event.prompt_tokens,
                    "output_tokens_before": event.output_tokens_before,
                },
                "resumed",
            )
        case JobText():
            return _success({"text": event.text, "output_tokens": event.output_tokens}, "text")
        case JobDone():
            receipt = event.receipt
            return _success(
                {
                    "outcome": receipt.outcome.name.lower(),
                    "provider": receipt.provider.hex(),
                    # The question, as the first of them has read it.
                    "prompt_tokens": event.served[0].prompt_tokens,
                    "output_tokens": sum(part.output_tokens for part in event.served),
                    "paid_uusd": sum(part.paid_uusd for part in event.served),
                    "first_token_ms": receipt.first_token_ms,
                    "last_token_ms": receipt.last_token_ms,
                    "served": [structs.asdict(part) | {"provider": part.provider.hex()} for part in event.served],
                },
                "done",
            )
        case JobFailed():
            refusal = Refusal(event.code).name.lower()
            return _failure(event.text, refusal) | {"data": {"retry_after_ms": event.retry_after_ms}}
        case Payment():
            return _success(
                {
                    "provider": event.provider.hex(),
                    "lease": event.lease.hex(),
                    "voucher": event.number,
                    "paid_uusd": event.paid_uusd,
                    "signed_uusd": event.signed_uusd,
                    "cap_uusd": event.cap_uusd,
                },
                "paid",
            )
        case JobVector():
            return None


async def _cancel_at_hang_up(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Cancel when the other side closes. What it still sends is dropped."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while await stream.receive_some(_READ_BYTES):
            pass
    scope.cancel()


async def _send(stream: trio.SocketStream, reply: dict[str, Any], timeout_s: float | None = None) -> None:
    # A text may end in half a character of a broken pair; `ensure_ascii` writes it as an escape.
    with trio.fail_after(WRITE_TIMEOUT_S if timeout_s is None else timeout_s):
        await stream.send_all(json.dumps(reply).encode() + b"\n")


def _success(data: object, event: str | None = None) -> dict[str, Any]:
    return {"ok": True, "data": data} if event is None else {"ok": True, "event": event, "data": data}


def _failure(error: str, cause: str | None = None) -> dict[str, Any]:
    return {"ok": False, "error": error} if cause is None else {"ok": False, "error": error, "cause": cause}


def _decode(line: bytes) -> tuple[str, object] | None:
    """Command and payload, or None when the line is no request."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict) or not isinstance(request.get("cmd"), str):
        return None
    return request["cmd"], request.get("payload")


class _Lines:
    """The lines of one connection, each with a deadline and a limit."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self.too_long = False

    async def next(self) -> bytes | None:
        """The next line; None at the end, at the deadline, or when it would be too long."""
        searched = 0
        with trio.move_on_after(REQUEST_TIMEOUT_S):
            while (end := self._buffer.find(b"\n", searched)) < 0:
                if len(self._buffer) > LINE_BYTES_MAX:
                    self.too_long = True
                    return None
                searched = len(self._buffer)
                data = await self._stream.receive_some(_READ_BYTES)
                if not data:
                    return None
                self._buffer += data
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            return line
        return None
