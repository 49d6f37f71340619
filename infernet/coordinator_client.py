"""HTTP to the coordinator: its key, registration, and its list of peers. The link is in `link_carrier`.

Requests are signed with the node's key for the pinned coordinator alone. From the signed time in the coordinator's
answer to a refused request a node learns that its own clock is wrong, and says so: it never sets the system's clock,
and what it signs for other nodes would be as wrong as what it signed for the coordinator.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Callable
from typing import Any, Final

import httpx
import msgspec

from protocol import codec
from protocol.envelope import AUTH_HEADER, AUTH_WINDOW_S, SigningKey, sign_request
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.ids import NodeId, node_id_from_text
from protocol.link import SERVER_TIME_HEADER, decode_server_time
from protocol.records import Signed

REQUEST_TIMEOUT_S: Final = 15.0
RESPONSE_BYTES_MAX: Final = 4 * 1024 * 1024


class CoordinatorError(Exception):
    """The coordinator cannot be used; one line for people: what happened, why, what to do."""


class CoordinatorUnreachable(CoordinatorError):
    """No answer: it is down, or the network is."""


class CoordinatorRefused(CoordinatorError):
    """It answered, and refused."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class RequestSigner:
    """Signs requests of one node to one coordinator; the counter starts at the clock, so it grows over restarts."""

    def __init__(self, key: SigningKey, coordinator: NodeId, clock_ms: Callable[[], int]) -> None:
        self.coordinator = coordinator
        self.node = key.node
        self._key = key
        self._clock_ms = clock_ms
        self._boot = secrets.randbits(62)
        self._counter = clock_ms()

    def sign(self, method: str, target: str, body: bytes = b"") -> str:
        """The value of `X-Infernet-Auth` for one request."""
        self._counter += 1
        return sign_request(
            self._key, self.coordinator, method, target, body, self._clock_ms(), self._counter, self._boot
        )

    def clock_error_s(self, time_header: str | None, auth: str) -> float:
        """How far our clock is ahead of the coordinator's, by its signed answer to the request signed `auth`.

        0 when the answer has no time or one that is not the coordinator's.
        """
        if time_header is None:
            return 0.0
        try:
            return (self._clock_ms() - decode_server_time(time_header, self.coordinator, auth)) / 1000
        except RemoteProtocolError:
            return 0.0


async def fetch_key(url: str) -> NodeId:
    """The key that the coordinator at this URL shows to anyone. Raises CoordinatorError."""
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S) as http:
        answer = await _request(http, "GET", url.rstrip("/") + "/api/v1/coordinator")
    fields = _json(answer)
    try:
        return node_id_from_text(str(fields.get("key")))
    except LocalProtocolError:
        raise CoordinatorError(f"{url} does not answer like an Infernet coordinator: no key in its answer") from None


async def fetch_peers(url: str, limit: int = 100) -> list[Signed]:
    """Signed heartbeats of the peers that a coordinator lists: hints, to be verified. Raises CoordinatorError."""
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S) as http:
        answer = await _request(http, "GET", f"{url.rstrip('/')}/api/peers?limit={limit}")
    rows = _json(answer).get("data")
    records = (_record(row) for row in (rows[:limit] if isinstance(rows, list) else []))
    return [record for record in records if record is not None]


class CoordinatorClient:
    """The HTTP side of one node's relation with its coordinator."""

    def __init__(self, url: str, signer: RequestSigner) -> None:
        self.url = url.rstrip("/")
        self._signer = signer

    async def register(self, fields: dict[str, Any]) -> None:
        """Register this node (or renew its registration). Raises CoordinatorError."""
        await self._post("/api/v1/node/register", fields)

    async def remove(self, role: str) -> None:
        """Remove this node's registration. Raises CoordinatorError."""
        await self._post("/api/v1/node/remove", {"role": role})

    async def _post(self, target: str, fields: dict[str, Any]) -> dict[str, Any]:
        body = msgspec.json.encode(fields)
        auth = self._signer.sign("POST", target, body)
        headers = {AUTH_HEADER: auth, "content-type": "application/json"}
        async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S) as http:
            try:
                return _json(await _request(http, "POST", self.url + target, content=body, headers=headers))
            except _Unauthorized as error:
                raise CoordinatorRefused(error.status, self._explain(error, auth)) from None

    def _explain(self, error: _Unauthorized, auth: str) -> str:
        ahead_s = self._signer.clock_error_s(error.time_header, auth)
        if abs(ahead_s) <= AUTH_WINDOW_S:
            return f"the coordinator refused this node's signature: {error}"
        direction = "ahead of" if ahead_s > 0 else "behind"
        return (
            f"this machine's clock is {abs(ahead_s):.0f} s {direction} the coordinator's, so nobody accepts what it "
            "signs: set it (timedatectl set-ntp true)"
        )


class _Unauthorized(CoordinatorRefused):
    def __init__(self, text: str, time_header: str | None) -> None:
        super().__init__(httpx.codes.UNAUTHORIZED, text)
        self.time_header = time_header


async def _request(http: httpx.AsyncClient, method: str, url: str, **options: Any) -> httpx.Response:
    try:
        async with http.stream(method, url, **options) as answer:
            content = bytearray()
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > RESPONSE_BYTES_MAX:
                    raise CoordinatorError(f"{url} answers with more than {RESPONSE_BYTES_MAX} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        detail = str(error) or type(error).__name__
        raise CoordinatorUnreachable(f"the coordinator at {url} cannot be reached: {detail}") from error
    headers = answer.headers.copy()
    headers.pop("Content-Encoding", None)  # the content is decoded already
    response = httpx.Response(answer.status_code, headers=headers, content=bytes(content))
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise _Unauthorized(_error_text(response), response.headers.get(SERVER_TIME_HEADER))
    if response.is_error:
        raise CoordinatorRefused(response.status_code, f"the coordinator refused: {_error_text(response)}")
    return response


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        fields = json.loads(response.content)
    except (ValueError, RecursionError):
        raise CoordinatorError("the coordinator's answer is not JSON: is the URL right?") from None
    if not isinstance(fields, dict):
        raise CoordinatorError("the coordinator's answer is not a JSON object: is the URL right?")
    return fields


def _error_text(response: httpx.Response) -> str:
    try:
        fields = json.loads(response.content)
    except (ValueError, RecursionError):
        fields = None
    text = fields.get("error") if isinstance(fields, dict) else None
    return text if isinstance(text, str) else f"HTTP status {response.status_code}"


def _record(row: object) -> Signed | None:
    """The signed heartbeat in a row of the peer list, or None when there is none that could be one."""
    encoded = row.get("record") if isinstance(row, dict) else None
    if not isinstance(encoded, str):
        return None
    try:
        return codec.decode_struct(base64.b64decode(encoded, validate=True), Signed, codec.CONTROL_LIMITS)
    except (binascii.Error, ValueError, RemoteProtocolError):
        return None
