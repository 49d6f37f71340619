"""HTTP to the coordinator: its key, registration, its list of peers; what it is asked about money is in `money.client`.

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

from infernet.proxy import Proxy
from protocol import codec
from protocol.envelope import AUTH_HEADER, AUTH_WINDOW_S, SigningKey, sign_request
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.ids import NodeId, node_id_from_text
from protocol.link import SERVER_TIME_HEADER, decode_server_time
from protocol.records import Signed

REQUEST_TIMEOUT_S: Final = 15.0
# A circuit of Tor may take its time.
PROXIED_TIMEOUT_S: Final = 60.0
RESPONSE_BYTES_MAX: Final = 4 * 1024 * 1024


class CoordinatorError(Exception):
    """The coordinator cannot be used; one line for people: what happened, why, what to do."""


class CoordinatorUnreachable(CoordinatorError):
    """No answer: it is down, or the network is."""


class CoordinatorRefused(CoordinatorError):
    """It answered, and refused. `code` is the stable name of the reason, empty where it gave none."""

    def __init__(self, status: int, text: str, code: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.code = code


class RequestSigner:
    """Signs requests of one node to one coordinator; the counter starts at the clock, so it grows over restarts."""

    def __init__(self, key: SigningKey, coordinator: NodeId, clock_ms: Callable[[], int]) -> None:
        self.coordinator = coordinator
        self.node = key.node
        self._key = key
        self._clock_ms = clock_ms
        self._boot = secrets.randbits(62)
        self._counter = clock_ms()

    def sign(self, method: str, target: str, body: bytes = b"", *, ahead_s: float = 0.0) -> str:
        """The value of `X-Infernet-Auth` for one request, by a clock that is known to be so far ahead."""
        self._counter += 1
        now_ms = self._clock_ms() - round(ahead_s * 1000)
        return sign_request(self._key, self.coordinator, method, target, body, now_ms, self._counter, self._boot)

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


class ProxiedClient(httpx.AsyncClient):
    """Asks by way of a proxy alone: neither the environment's proxies nor its exceptions from them count."""

    def __init__(self, through: Proxy, timeout_s: float) -> None:
        super().__init__(timeout=timeout_s, proxy=through.for_httpx(), trust_env=False)
        self.through = through


def new_client(proxy: Proxy | None, timeout_s: float | None = None) -> httpx.AsyncClient:
    """What asks a coordinator."""
    if proxy is None:
        return httpx.AsyncClient(timeout=timeout_s or REQUEST_TIMEOUT_S)
    return ProxiedClient(proxy, timeout_s or PROXIED_TIMEOUT_S)


async def fetch_key(url: str, proxy: Proxy | None = None) -> NodeId:
    """The key that the coordinator at this URL shows to anyone. Raises CoordinatorError."""
    async with new_client(proxy) as http:
        answer = await request(http, "GET", url.rstrip("/") + "/api/v1/coordinator")
    fields = read_json(answer)
    try:
        return node_id_from_text(str(fields.get("key")))
    except LocalProtocolError:
        raise CoordinatorError(f"{url} does not answer like an Infernet coordinator: no key in its answer") from None


async def fetch_peers(url: str, limit: int = 100, proxy: Proxy | None = None) -> list[Signed]:
    """Signed heartbeats of the peers that a coordinator lists: hints, to be verified. Raises CoordinatorError."""
    async with new_client(proxy) as http:
        answer = await request(http, "GET", f"{url.rstrip('/')}/api/peers?limit={limit}")
    rows = read_json(answer).get("data")
    records = (_record(row) for row in (rows[:limit] if isinstance(rows, list) else []))
    return [record for record in records if record is not None]


class CoordinatorClient:
    """The HTTP side of one node's relation with its coordinator."""

    def __init__(self, url: str, signer: RequestSigner, proxy: Proxy | None = None) -> None:
        self.url = url.rstrip("/")
        self._signer = signer
        self._proxy = proxy

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
        async with new_client(self._proxy) as http:
            try:
                return read_json(await request(http, "POST", self.url + target, content=body, headers=headers))
            except Unauthorized as error:
                raise error.explained(self._signer, auth) from None


class Unauthorized(CoordinatorRefused):
    """It does not take the signature, the time or the number of a request, and says what its own clock shows."""

    def __init__(self, text: str, code: str, time_header: str | None) -> None:
        super().__init__(httpx.codes.UNAUTHORIZED, text, code)
        self.time_header = time_header

    def explained(self, signer: RequestSigner, auth: str) -> CoordinatorRefused:
        """The same for people; `auth` is what the request was signed with."""
        ahead_s = signer.clock_error_s(self.time_header, auth)
        if abs(ahead_s) <= AUTH_WINDOW_S:
            # It is signed for the pinned key, and a request for another coordinator looks like a bad one.
            text = f"the coordinator refused this node's signature ({self}): is --coordinator-key its key?"
        else:
            direction = "ahead of" if ahead_s > 0 else "behind"
            text = (
                f"this machine's clock is {abs(ahead_s):.0f} s {direction} the coordinator's, so nobody accepts what "
                "it signs: set it (timedatectl set-ntp true)"
            )
        return CoordinatorRefused(self.status, text, self.code)


async def request(http: httpx.AsyncClient, method: str, url: str, **options: Any) -> httpx.Response:
    """One request, its answer read to a bound. Raises CoordinatorError."""
    try:
        async with http.stream(method, url, **options) as answer:
            content = bytearray()
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > RESPONSE_BYTES_MAX:
                    raise CoordinatorError(f"{url} answers with more than {RESPONSE_BYTES_MAX} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        detail = str(error) or type(error).__name__
        base = url.partition("/api/")[0]
        if isinstance(http, ProxiedClient):
            text = (
                f"the coordinator at {base} cannot be reached through the proxy at {http.through} ({detail}), and "
                "nothing was sent around it: is the proxy running, and the URL right?"
            )
        else:
            text = (
                f"the coordinator at {base} cannot be reached ({detail}): it may be down, or the URL or the network "
                "wrong"
            )
        raise CoordinatorUnreachable(text) from error
    headers = answer.headers.copy()
    headers.pop("Content-Encoding", None)  # the content is decoded already
    response = httpx.Response(answer.status_code, headers=headers, content=bytes(content))
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise Unauthorized(*_error_of(response), response.headers.get(SERVER_TIME_HEADER))
    if response.is_error:
        text, code = _error_of(response)
        raise CoordinatorRefused(response.status_code, f"the coordinator refused: {text}", code)
    return response


def read_json(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer. Raises CoordinatorError."""
    try:
        fields = json.loads(response.content)
    except (ValueError, RecursionError):
        raise CoordinatorError("the coordinator's answer is not JSON: is the URL right?") from None
    if not isinstance(fields, dict):
        raise CoordinatorError("the coordinator's answer is not a JSON object: is the URL right?")
    return fields


def _error_of(response: httpx.Response) -> tuple[str, str]:
    """The sentence and the code of a refusal."""
    try:
        fields = json.loads(response.content)
    except (ValueError, RecursionError):
        fields = None
    text, code = (fields.get("error"), fields.get("code")) if isinstance(fields, dict) else (None, None)
    return text if isinstance(text, str) else f"HTTP status {response.status_code}", code if isinstance(
        code, str
    ) else ""


def _record(row: object) -> Signed | None:
    """The signed heartbeat in a row of the peer list, or None when there is none that could be one."""
    encoded = row.get("record") if isinstance(row, dict) else None
    if not isinstance(encoded, str):
        return None
    try:
        return codec.decode_struct(base64.b64decode(encoded, validate=True), Signed, codec.CONTROL_LIMITS)
    except (binascii.Error, ValueError, RemoteProtocolError):
        return None
