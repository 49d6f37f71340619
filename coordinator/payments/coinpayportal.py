"""The client of CoinPayPortal's API (docs/API.md of the gateway, and its routes where they differ), over HTTPS.

| call | request |
|---|---|
| `create_invoice` | `POST /payments/create` |
| `get_invoice` | `GET /payments/<id>` |
| `create_payout`, `list_payouts` | `POST` and `GET /businesses/<id>/payouts` |

Every call is one request on a connection of its own: a kept connection that the other side has just closed would turn
a payout into one of which nobody knows whether it was sent. Redirects are not followed, so the credentials go to the
configured host only; and no proxy of the environment gets to see them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec

from coordinator.payments.amounts import dollars
from coordinator.payments.bounded_json import BadJson, decode_object
from coordinator.payments.coinpayportal_replies import (
    ADDRESS,
    ASSETS,
    OUR_ID,
    BadReply,
    printable,
    read_invoice,
    read_payout,
    read_payouts,
    read_total,
)
from coordinator.payments.gateway import (
    GatewayError,
    GatewayRefused,
    GatewayUnclear,
    GatewayUnreachable,
    Invoice,
    InvoiceRequest,
    Payout,
    PayoutListing,
    PayoutRequest,
)
from coordinator.payments.webhook_events import GATEWAY_ID

BASE_URL: Final = "https://coinpayportal.com/api"
ANSWER_BYTES_MAX: Final = 1024 * 1024
DETAIL_CHARACTERS_MAX: Final = 200
PAGE_ROWS: Final = 100
# 100 pages, a tenth of what the gateway grants for an hour. Who asks for a recent instant needs one or two.
LISTED_MAX: Final = 10_000
RETRY_AFTER_MAX_S: Final = 86_400
CONNECTIONS_MAX: Final = 8

# These come from before anything is done: authentication, validation, the rate limit. Every other answer that is not a
# success, 409 and 422 among them, may come from after it.
_NOT_DONE: Final = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "bad_request",
    413: "bad_request",
    415: "bad_request",
    429: "rate_limited",
}
_UNPROCESSABLE: Final = 422
# Raised before the first byte of a request is written.
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
_CREDENTIAL: Final = re.compile(r"[!-~]{1,4096}")
_EMAIL: Final = re.compile(r"[!-?A-~]{1,64}@[!-?A-~]{1,190}")


@dataclass(frozen=True, slots=True)
class CoinPayPortalConfig:
    """How to reach the gateway, and as whom. Raises ValueError for what could not work or would not be safe.

    The gateway takes an API key of the business for payments, and for payouts a token of the merchant who owns it;
    without `payout_token` the key is sent there too. `payout_email` is required of every payout and is not ours to
    leave out: an address of the operator.
    """

    api_key: str = field(repr=False)
    business_id: str
    base_url: str = BASE_URL
    payout_token: str | None = field(default=None, repr=False)
    payout_email: str = ""
    connect_timeout_s: float = 10.0
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not all(_CREDENTIAL.fullmatch(secret) for secret in self.credentials):
            raise ValueError("a key of the gateway is visible ASCII without spaces")
        if GATEWAY_ID.fullmatch(self.business_id) is None:
            raise ValueError("business_id is letters, digits, - and _")
        if self.payout_email and _EMAIL.fullmatch(self.payout_email) is None:
            raise ValueError("payout_email is an address with one @")
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL:
            raise ValueError("base_url is no URL") from None
        is_here = url.scheme == "http" and url.host in ("127.0.0.1", "::1", "localhost")
        if not (url.scheme == "https" or is_here) or not url.host or url.userinfo or url.query or url.fragment:
            raise ValueError("base_url is https://host/path; plain http is for this machine alone")

    @property
    def credentials(self) -> tuple[str, ...]:
        """Everything that must never be shown."""
        return (self.api_key,) if self.payout_token is None else (self.api_key, self.payout_token)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    fields: dict[str, Any] | None  # None: it was not what it should be
    retry_after_s: int | None


class CoinPayPortal:
    """See `gateway.Gateway`, which this is. Use as an asynchronous context, or call `close`."""

    def __init__(self, config: CoinPayPortalConfig) -> None:
        self._config = config
        self._base_url = config.base_url.rstrip("/")
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(config.timeout_s, connect=config.connect_timeout_s, pool=config.connect_timeout_s),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close what is open; calls that are under way end as unclear."""
        await self._http.aclose()

    async def create_invoice(self, request: InvoiceRequest) -> Invoice:
        """See `Gateway.create_invoice`. Raises GatewayRefused, GatewayUnclear, ValueError."""
        body = {
            "business_id": self._config.business_id,
            "amount": _number(request.amount_uusd),
            "currency": "USD",
            "blockchain": _word(request.code, request.network),
            "metadata": {"order_id": _our_id(request.order_id)},
        }
        answer = await self._send("POST", "/payments/create", self._config.api_key, body)
        invoice = self._invoice(answer)
        asked = (request.code, request.network, request.amount_uusd, request.order_id)
        told = (
            invoice.code,
            invoice.network,
            request.amount_uusd if invoice.amount_uusd is None else invoice.amount_uusd,
            request.order_id if invoice.order_id is None else invoice.order_id,
        )
        if asked != told:
            raise GatewayUnclear("mismatch", status=answer.status, detail="another invoice than the one asked for")
        return invoice

    async def get_invoice(self, gateway_id: str) -> Invoice:
        """See `Gateway.get_invoice`. Raises GatewayRefused, GatewayUnclear, ValueError."""
        if GATEWAY_ID.fullmatch(gateway_id) is None:
            raise ValueError("no id of a payment")
        answer = await self._send("GET", f"/payments/{gateway_id}", self._config.api_key)
        invoice = self._invoice(answer)
        if invoice.gateway_id != gateway_id:
            raise GatewayUnclear("mismatch", status=answer.status, detail="another payment than the one asked for")
        return invoice

    async def create_payout(self, request: PayoutRequest) -> Payout:
        """See `Gateway.create_payout`. Raises GatewayRefused, GatewayUnclear, ValueError."""
        if ADDRESS.fullmatch(request.address) is None:
            raise ValueError("no address")
        if not self._config.payout_email:
            raise ValueError("the gateway sends no payout without payout_email")
        body = {
            "recipient_email": self._config.payout_email,
            "recipient_wallet": request.address,
            "cryptocurrency": _word(request.code, request.network),
            "amount_usd": _number(request.amount_uusd),
            "metadata": {"intent_id": _our_id(request.intent_id)},
        }
        answer = await self._send("POST", self._payouts_path, self._payout_credential, body)
        payout = self._payout(answer)
        told = PayoutRequest(payout.intent_id or "", payout.amount_uusd, payout.code, payout.network, payout.address)
        if told != request:
            raise GatewayUnclear("mismatch", status=answer.status, detail="another payout than the one asked for")
        return payout

    async def list_payouts(self, *, since_ms: int = 0, at_most: int = LISTED_MAX) -> PayoutListing:
        """See `Gateway.list_payouts`. Raises GatewayRefused, GatewayUnclear, ValueError.

        Pages are counted from the newest, so payouts that come meanwhile push others onto the next page, where they
        are left out again. Each page starts with the last one of the page before it: if that is not there, something
        has vanished, and what is not on the list may be anywhere.
        """
        if not 1 <= at_most <= LISTED_MAX:
            raise ValueError(f"1 to {LISTED_MAX} payouts")
        found: dict[str, Payout] = {}
        offset = 0
        while True:
            page = await self._page(offset)
            if found and next(reversed(found)) not in {payout.gateway_id for payout in page}:
                raise GatewayUnclear("listing_moved", detail="payouts vanished while they were listed")
            there = len(found)
            for payout in page:
                found.setdefault(payout.gateway_id, payout)
            at_end = len(page) < PAGE_ROWS or (page[-1].created_at_ms or since_ms) < since_ms
            if not at_end and len(found) == there:
                raise GatewayUnclear("listing_stuck", detail="a page of payouts that were all listed before")
            if at_end or len(found) >= at_most or offset >= LISTED_MAX:
                return PayoutListing(tuple(found.values())[:at_most], complete=at_end and len(found) <= at_most)
            offset += PAGE_ROWS - 1

    # ---------------------------------------------------------------- requests

    @property
    def _payouts_path(self) -> str:
        return f"/businesses/{self._config.business_id}/payouts"

    @property
    def _payout_credential(self) -> str:
        return self._config.payout_token or self._config.api_key

    async def _page(self, offset: int) -> list[Payout]:
        target = f"{self._payouts_path}?limit={PAGE_ROWS}&offset={offset}"
        answer = await self._send("GET", target, self._payout_credential)
        try:
            fields = self._success(answer)
            page, total = read_payouts(fields, PAGE_ROWS), read_total(fields)
        except BadReply as error:
            raise GatewayUnclear("malformed_answer", status=answer.status, detail=str(error)) from None
        times = [payout.created_at_ms for payout in page if payout.created_at_ms is not None]
        if times != sorted(times, reverse=True):
            raise GatewayUnclear("contradiction", status=answer.status, detail="payouts are not the newest first")
        # A page that somebody has cut short would pass for the last one, and what comes after it for never sent.
        if total is not None and len(page) < min(PAGE_ROWS, total - offset):
            raise GatewayUnclear("contradiction", status=answer.status, detail="fewer payouts than there are")
        return page

    async def _send(self, method: str, target: str, credential: str, body: Mapping[str, Any] | None = None) -> _Answer:
        content = None if body is None else msgspec.json.encode(body)
        headers = {"authorization": f"Bearer {credential}", "accept": "application/json", "accept-encoding": "identity"}
        if content is not None:
            headers["content-type"] = "application/json"
        try:
            # One deadline over everything, so that an answer that comes byte by byte ends as well.
            async with (
                asyncio.timeout(self._config.timeout_s),
                self._http.stream(method, self._base_url + target, content=content, headers=headers) as response,
            ):
                return await _read(response)
        except TimeoutError:
            raise GatewayUnclear("timeout") from None
        except _NEVER_SENT as error:
            raise GatewayUnreachable("unreachable", detail=type(error).__name__) from None
        except httpx.TimeoutException:
            raise GatewayUnclear("timeout") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            # The texts of these can quote what was sent; their names are enough.
            raise GatewayUnclear("connection_lost", detail=type(error).__name__) from None

    # ---------------------------------------------------------------- answers

    def _invoice(self, answer: _Answer) -> Invoice:
        try:
            invoice = read_invoice(self._success(answer))
        except BadReply as error:
            raise GatewayUnclear("malformed_answer", status=answer.status, detail=str(error)) from None
        if invoice.business_id not in (None, self._config.business_id):
            raise GatewayUnclear("mismatch", status=answer.status, detail="a payment to another business")
        return invoice

    def _payout(self, answer: _Answer) -> Payout:
        """A payout that was made, or one that was made and failed: then it comes with 422 and says how it stands."""
        failed = (answer.fields or {}).get("payout") if answer.status == _UNPROCESSABLE else None
        fields = answer.fields if failed is not None and answer.fields is not None else self._success(answer)
        data = fields.get("data")
        inner = data if isinstance(data, dict) else fields
        try:
            return read_payout(inner.get("payout", inner))
        except BadReply as error:
            raise GatewayUnclear("malformed_answer", status=answer.status, detail=str(error)) from None

    def _success(self, answer: _Answer) -> dict[str, Any]:
        """The fields of an answer that says yes. Raises GatewayRefused or GatewayUnclear for every other."""
        detail = self._said(answer.fields)
        if 200 <= answer.status < 300:
            if answer.fields is None:
                raise GatewayUnclear("malformed_answer", status=answer.status)
            if answer.fields.get("success", True) is not True:
                raise GatewayUnclear("contradiction", status=answer.status, detail=detail)
            return answer.fields
        raise self._failure(answer, detail)

    def _failure(self, answer: _Answer, detail: str) -> GatewayError:
        reason = _NOT_DONE.get(answer.status)
        if reason is not None:
            return GatewayRefused(reason, status=answer.status, detail=detail, retry_after_s=answer.retry_after_s)
        return GatewayUnclear(
            "server_error" if answer.status >= 500 else "unexpected_status", status=answer.status, detail=detail
        )

    def _said(self, fields: Mapping[str, Any] | None) -> str:
        """The gateway's own words in an error, without our credentials should it repeat them."""
        error = (fields or {}).get("error")
        text = error.get("message") if isinstance(error, dict) else error
        if not isinstance(text, str):
            return ""
        for credential in self._config.credentials:
            text = text.replace(credential, "[redacted]")
        return printable(text, DETAIL_CHARACTERS_MAX)


async def _read(response: httpx.Response) -> _Answer:
    """Status and fields."""
    content = await _content(response)
    retry_after = response.headers.get("retry-after", "")
    is_seconds = re.fullmatch(r"[0-9]{1,9}", retry_after) is not None
    return _Answer(
        response.status_code,
        None if content is None else _fields(content),
        min(int(retry_after), RETRY_AFTER_MAX_S) if is_seconds else None,
    )


async def _content(response: httpx.Response) -> bytes | None:
    """The body, counted as it comes over the wire; None when it is too long, or packed: nothing is unpacked."""
    if response.headers.get("content-encoding", "identity") != "identity":
        return None
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > ANSWER_BYTES_MAX:
            return None
    return bytes(content)


def _fields(content: bytes) -> dict[str, Any] | None:
    try:
        return decode_object(content, ANSWER_BYTES_MAX)
    except BadJson:
        return None


def _number(amount_uusd: int) -> msgspec.Raw:
    """Dollars as a number of JSON, digit by digit. Raises ValueError."""
    return msgspec.Raw(dollars(amount_uusd).encode("ascii"))


def _word(code: str, network: str) -> str:
    if (code, network) not in ASSETS:
        raise ValueError("a coin that the gateway does not know")
    return ASSETS[code, network][0]


def _our_id(value: str) -> str:
    if OUR_ID.fullmatch(value) is None:
        raise ValueError("our ids are 1 to 128 letters, digits and _ . : -")
    return value
