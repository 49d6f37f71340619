"""The port on which Prometheus asks: GET /metrics and GET /healthz, and nothing else. Off unless it is set.

Whoever can reach the port is a stranger: there are few connections, each for one request, with a longest head and a
deadline for everything. A page in a browser of this machine must not read it either, so that over loopback the request
has to be meant for loopback (against names that are bound to it after the fact). Where others may reach it, a token
is set that they must show. h11 reads and writes the HTTP.
"""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final, Protocol

import h11
import structlog
import trio

from infernet.config import ConfigError
from infernet.host.files import reason_of
from infernet.metrics.exposition import CONTENT_TYPE
from infernet.metrics.token import Token

log = structlog.get_logger(__name__)

CONNECTIONS_MAX: Final = 16
HEAD_BYTES_MAX: Final = 8 * 1024
# From the connection to the whole head; and from there to the last byte of the answer.
REQUEST_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 10.0
# Whoever has more to say than was asked may do so for this long after the answer.
LINGER_S: Final = 1.0
LINGER_BYTES_MAX: Final = 64 * 1024
_READ_BYTES: Final = 4 * 1024
_LOOPBACK_NAMES: Final = ("localhost", "localhost.")


class Source(Protocol):
    """What is served."""

    async def text(self) -> str: ...

    def health(self, wall_ms: int) -> dict[str, object]: ...


@dataclass(frozen=True)
class Answer:
    """What a request gets."""

    status: HTTPStatus
    content: str
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


@asynccontextmanager
async def open_door(host: str, port: int, token: Token | None = None) -> AsyncIterator[MetricsDoor]:
    """Listen on an IP address of this machine, to the end of the block; where there is a token, for those who show it.

    Raises ConfigError.
    """
    try:
        [listener] = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        reason = reason_of(error)
        what = (
            "another program has it: choose another one with --metrics-port"
            if error.errno == errno.EADDRINUSE
            else f"{reason}: --metrics-host must be an address of this machine, and --metrics-port one that you may use"
        )
        raise ConfigError(f"cannot serve metrics on {host} port {port}: {what}") from None
    async with listener:
        yield MetricsDoor(listener, host, token)


class MetricsDoor:
    """A port that is open; whoever connects waits until `serve` is called."""

    def __init__(self, listener: trio.SocketListener, host: str, token: Token | None) -> None:
        self._listener = listener
        self._host = host
        self._token = token
        self.port: int = listener.socket.getsockname()[1]

    async def serve(self, source: Source, wall_ms: Callable[[], int]) -> None:
        """Answer until cancelled."""
        server = _Server(source, wall_ms, self._token, is_loopback=ip_address(self._host).is_loopback)
        log.info("metrics.serving", host=self._host, port=self.port)
        await trio.serve_listeners(server.connection, [self._listener])


class _Server:
    def __init__(self, source: Source, wall_ms: Callable[[], int], token: Token | None, *, is_loopback: bool) -> None:
        self._source = source
        self._wall_ms = wall_ms
        self._token = token
        self._is_loopback = is_loopback
        self._connections = 0

    async def connection(self, stream: trio.SocketStream) -> None:
        """Serve one request; nothing that goes wrong with it concerns the node."""
        self._connections += 1
        try:
            if self._connections <= CONNECTIONS_MAX:
                await self._serve(stream)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # whoever asked is gone
        except* Exception as group:
            log.exception("metrics.failed", error=type(group.exceptions[0]).__name__)
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        request: h11.Request | None = None
        answer: Answer | None = None
        with trio.move_on_after(REQUEST_TIMEOUT_S) as waiting:
            try:
                request = await _read_head(http, stream)
            except h11.RemoteProtocolError as error:
                answer = _refusal(HTTPStatus(error.error_status_hint), "this is no HTTP request that is served here")
        if waiting.cancelled_caught:
            answer = _refusal(HTTPStatus.REQUEST_TIMEOUT, f"no request came within {REQUEST_TIMEOUT_S:g} s")
        if answer is None and request is None:
            return  # it went away without a word
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            if answer is None:
                assert request is not None
                answer = await self._answer(request)
            await _send(http, stream, request, answer)

    async def _answer(self, request: h11.Request) -> Answer:
        headers = dict(request.headers)
        if b"content-length" in headers or b"transfer-encoding" in headers:
            return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a request here has no content")
        if self._is_loopback and not _means_loopback(headers.get(b"host", b"")):
            return _refusal(HTTPStatus.FORBIDDEN, "ask for this by its IP address or as localhost")
        if self._token is not None and not self._token.is_in(headers.get(b"authorization", b"")):
            refusal = _refusal(HTTPStatus.UNAUTHORIZED, "show the token of this node: Authorization: Bearer TOKEN")
            return Answer(refusal.status, refusal.content, headers=(("WWW-Authenticate", "Bearer"),))
        give = self._pages().get(request.target.partition(b"?")[0])
        if give is None:
            return _refusal(HTTPStatus.NOT_FOUND, "there are /metrics and /healthz")
        if request.method not in (b"GET", b"HEAD"):
            refusal = _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")
            return Answer(refusal.status, refusal.content, headers=(("Allow", "GET, HEAD"),))
        return await give()

    def _pages(self) -> dict[bytes, Callable[[], Awaitable[Answer]]]:
        return {b"/metrics": self._metrics, b"/healthz": self._health}

    async def _metrics(self) -> Answer:
        return Answer(HTTPStatus.OK, await self._source.text(), CONTENT_TYPE)

    async def _health(self) -> Answer:
        content = json.dumps(self._source.health(self._wall_ms())) + "\n"
        return Answer(HTTPStatus.OK, content, "application/json", (("Cache-Control", "no-store"),))


async def _read_head(http: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """The request without its content; None when the connection ends before. Raises h11.RemoteProtocolError."""
    while True:
        event = http.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        http.receive_data(await stream.receive_some(_READ_BYTES))


def _means_loopback(host: bytes) -> bool:
    """Whether a Host header names this machine as it names itself. A name that leads here by its DNS does not."""
    text = host.decode("ascii", "replace").lower()
    name = text.partition("]")[0].removeprefix("[") if text.startswith("[") else text.partition(":")[0]
    try:
        return name in _LOOPBACK_NAMES or ip_address(name).is_loopback
    except ValueError:
        return False


def _refusal(status: HTTPStatus, text: str) -> Answer:
    return Answer(status, text + "\n")


async def _send(http: h11.Connection, stream: trio.SocketStream, request: h11.Request | None, answer: Answer) -> None:
    content = answer.content.encode()
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(content))),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *answer.headers,
    ]
    data = http.send(h11.Response(status_code=answer.status, headers=headers, reason=answer.status.phrase.encode()))
    assert data is not None
    # The answer to HEAD is the same without its content.
    if request is None or request.method != b"HEAD":
        data += http.send(h11.Data(data=content)) or b""
    data += http.send(h11.EndOfMessage()) or b""
    await stream.send_all(data)
    await stream.send_eof()
    # Closing over what was not read resets the connection, and the answer may be lost with it.
    left = LINGER_BYTES_MAX
    with trio.move_on_after(LINGER_S):
        while left > 0 and (data := await stream.receive_some(_READ_BYTES)):
            left -= len(data)
