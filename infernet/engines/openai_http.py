"""HTTP to an OpenAI-compatible server, which is treated like every stranger: bounded in size, time and trust.

A connection goes to the host that was named and nowhere else: no proxy, no redirect, no credentials out of `.netrc`.
The API key is in the headers of these requests alone; it has no text form that could reach a log.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Self, TypeVar

import httpx
import msgspec
import trio
from msgspec import Struct

# A list of models or a prompt as token ids; the longest prompt is 1 MiB of text.
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
ERROR_BYTES_MAX: Final = 64 * 1024
# One event: a token, with its figures. Some servers send a short answer as one.
LINE_BYTES_MAX: Final = 1024 * 1024
CONNECT_TIMEOUT_S: Final = 5.0
CONNECTIONS_MAX: Final = 512

_Body = TypeVar("_Body")


class ApiKey:
    """What a server wants to be shown; it is never printed."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "ApiKey(...)"

    def header(self) -> dict[str, str]:
        """The header that shows it."""
        return {"authorization": f"Bearer {self._value}"}


class ServerError(Exception):
    """The server did not do what it was asked for; one line for the owner, in which it is not quoted."""


class ServerGone(ServerError):
    """Nobody answers at its address."""


class ServerBroken(ServerError):
    """It answers, and not as it should: garbage, too much, too late, or an end before the end."""


class ServerRefused(ServerError):
    """It answered with an error. `kind` is its own word for it, for comparing only."""

    def __init__(self, path: str, status: int, kind: str = "") -> None:
        super().__init__(f"it answered {path} with status {status}")
        self.status = status
        self.kind = kind


class _Error(Struct, frozen=True):
    message: object = None
    type: object = None
    code: object = None


class _Refusal(Struct, frozen=True):
    error: _Error | str | None = None
    # vLLM before 0.10 had the fields of the error at the top.
    message: object = None
    type: object = None
    code: object = None


class EventReader:
    """Bytes of an event stream in, the data of its events out. Each `data` line is an event, as all these servers do.

    Raises ServerBroken for a line that does not end.
    """

    def __init__(self) -> None:
        self._line = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; give the data that is complete."""
        *whole, rest = data.split(b"\n")
        events = []
        for piece in whole:
            self._hold(piece)
            line = bytes(self._line).rstrip(b"\r")
            self._line.clear()
            if line.startswith(b"data:"):
                events.append(line[5:].strip())
        self._hold(rest)
        return events

    def _hold(self, piece: bytes) -> None:
        if len(self._line) + len(piece) > LINE_BYTES_MAX:
            raise ServerBroken(f"it sent a line of more than {LINE_BYTES_MAX} bytes")
        self._line += piece


class Server:
    """One server. An asynchronous context manager: inside it, it can be asked."""

    def __init__(self, url: str, key: ApiKey | None = None, proxy: httpx.Proxy | None = None) -> None:
        """`url` is what its pages begin with, `/v1` left out."""
        self.url = url.rstrip("/")
        headers = {"accept-encoding": "identity", "user-agent": "infernet"} | (key.header() if key is not None else {})
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=8),
            proxy=proxy,
            trust_env=False,
            follow_redirects=False,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(CONNECT_TIMEOUT_S):
            await self._http.aclose()

    async def get(self, path: str, type_: type[_Body], timeout_s: float) -> _Body:
        """A page as this type. Raises ServerError."""
        return await self._ask("GET", path, None, type_, timeout_s)

    async def post(self, path: str, body: object, type_: type[_Body], timeout_s: float) -> _Body:
        """What it answers to this JSON, as this type. Raises ServerError."""
        return await self._ask("POST", path, body, type_, timeout_s)

    async def _ask(self, method: str, path: str, body: object, type_: type[_Body], timeout_s: float) -> _Body:
        content = bytearray()

        def take(data: bytes) -> bool:
            content.extend(data)
            if len(content) > ANSWER_BYTES_MAX:
                raise ServerBroken(f"it answered {path} with more than {ANSWER_BYTES_MAX} bytes")
            return False

        try:
            with trio.fail_after(timeout_s):
                await self._exchange(method, path, body, take, lambda: math.inf)
        except trio.TooSlowError:
            raise ServerBroken(f"it did not answer {path} within {timeout_s:.0f} s") from None
        return decode(bytes(content), type_)

    async def stream(
        self, path: str, body: object, take: Callable[[bytes], bool], patience_s: Callable[[], float]
    ) -> None:
        """Post JSON and hand each event to `take`, until that gives true or the answer ends; then hang up.

        What `take` raises ends it, too. `patience_s` is how long the next bytes may take. Raises ServerError.
        """
        reader = EventReader()
        await self._exchange("POST", path, body, lambda data: any(map(take, reader.feed(data))), patience_s)

    async def _exchange(
        self, method: str, path: str, body: object, take: Callable[[bytes], bool], patience_s: Callable[[], float]
    ) -> None:
        content = msgspec.json.encode(body) if body is not None else None
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            request = self._http.build_request(method, self.url + path, content=content, headers=headers)
            with trio.fail_after(patience_s()):
                response = await self._http.send(request, stream=True)
            try:
                await _read(response, path, take, patience_s)
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(CONNECT_TIMEOUT_S):
                    await response.aclose()
        except trio.TooSlowError:
            raise ServerBroken(f"it stopped answering {path}") from None
        except (
            httpx.ConnectError,
            httpx.ConnectTimeout,
            httpx.ProxyError,
            httpx.UnsupportedProtocol,
            httpx.InvalidURL,
        ):
            raise ServerGone(f"nobody answers at {self.url}") from None
        except httpx.HTTPError as error:
            # Its text may quote what was sent.
            raise ServerBroken(f"it broke off its answer to {path} ({type(error).__name__})") from None
        except (OSError, ValueError) as error:
            # A name that no resolver takes, above all; whatever it is, it is the server's and not the node's end.
            raise ServerBroken(f"{path} cannot be asked for ({type(error).__name__})") from None


async def _read(
    response: httpx.Response, path: str, take: Callable[[bytes], bool], patience_s: Callable[[], float]
) -> None:
    if response.status_code != httpx.codes.OK:
        raise ServerRefused(path, response.status_code, await _kind_of(response, patience_s))
    if response.headers.get("content-encoding", "identity") != "identity":
        # Unpacked, a kilobyte can be a gigabyte.
        raise ServerBroken(f"it answered {path} packed, which it was asked not to do")
    await _hear_out(response, take, patience_s)


async def _hear_out(response: httpx.Response, take: Callable[[bytes], bool], patience_s: Callable[[], float]) -> None:
    """Hand over the bytes of an answer until `take` has enough. Raises what `take` raises, and trio.TooSlowError.

    Hanging up in the middle is done by cancelling, which the generators beneath take as their end; left behind
    half-used, they would be closed by the garbage collector, much later.
    """
    failure: Exception | None = None
    has_enough = False
    with trio.CancelScope() as hearing:
        hearing.deadline = trio.current_time() + patience_s()
        async for piece in response.aiter_raw():
            if has_enough:
                continue
            try:
                has_enough = take(piece)
            except Exception as error:  # noqa: BLE001 - raised again below
                failure, has_enough = error, True
            if has_enough:
                hearing.cancel()
            else:
                hearing.deadline = trio.current_time() + patience_s()
    if failure is not None:
        raise failure
    if hearing.cancelled_caught and not has_enough:
        raise trio.TooSlowError


async def _kind_of(response: httpx.Response, patience_s: Callable[[], float]) -> str:
    """The server's word for an error, from a body of a bounded size; empty where it has none."""
    content = bytearray()

    def take(piece: bytes) -> bool:
        content.extend(piece)
        return len(content) > ERROR_BYTES_MAX

    deadline_s = trio.current_time() + CONNECT_TIMEOUT_S
    await _hear_out(response, take, lambda: min(deadline_s - trio.current_time(), patience_s()))
    return kind_of(bytes(content))


def kind_of(content: bytes) -> str:
    """The server's word for an error: code, type and what it says, in one lower-case text that nobody is shown."""
    try:
        refusal = msgspec.json.decode(content, type=_Refusal)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ""
    if isinstance(refusal.error, str):
        return refusal.error.lower()
    fields = refusal.error if refusal.error is not None else refusal
    return " ".join(str(field) for field in (fields.code, fields.type, fields.message) if field is not None).lower()


def decode(content: bytes, type_: type[_Body]) -> _Body:
    """JSON as this type. Raises ServerBroken."""
    try:
        return msgspec.json.decode(content, type=type_)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        # The error may quote the answer.
        raise ServerBroken("it sent something that is not the JSON it should be") from None
