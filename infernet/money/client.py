"""What a node asks its coordinator about money and its own entry, over HTTP. Claims go over the link where one stands.

Everything is signed with `X-Infernet-Auth` version 2. A request that is refused for its time is signed once more by the
coordinator's clock: a machine whose clock is wrong can still redeem what it earned. Asking twice is safe everywhere.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable
from typing import Any, Final

import httpx
import msgspec

from infernet.coordinator_client import (
    CoordinatorClient,
    CoordinatorError,
    CoordinatorRefused,
    RequestSigner,
    Unauthorized,
    new_client,
    read_json,
    request,
)
from infernet.proxy import Proxy
from protocol import codec
from protocol.envelope import AUTH_HEADER, AUTH_WINDOW_S
from protocol.errors import RemoteProtocolError
from protocol.records import Signed

#: Refusals of a request for a lease that asking again does not change. Any other may be the weather, an old coordinator
#: or something in between.
FINAL_CODES: Final = frozenset(
    {
        "insufficient_funds",
        "bad_signature",
        "wrong_provider",
        "wrong_sender",
        "unknown_lease",
        "conflict",
        "lease_closed",
        "bad_record",
        "bad_amount",
    }
)
# SPEC 06: The provider MUST take a claim for refused for good only where the coordinator says `lease_closed` or
#   `wrong_provider`, and try again after any other answer.
# A coordinator that was put back from a backup does not know a lease yet, one with a fault takes no signature: a claim
# that is given up for such a reason would be money thrown away.
FINAL_CLAIM_CODES: Final = frozenset({"lease_closed", "wrong_provider"})
NOT_REGISTERED: Final = "not_registered"

#: What may be asked in JSON: short names, for the socket and the commands, and where they lead.
TARGETS: Final = {
    "wallet": "/api/v1/node/wallet",
    "history": "/api/v1/node/wallet/history",
    "leases": "/api/v1/node/leases/list",
    "deposit": "/api/v1/node/deposits",
    "payments": "/api/v1/node/payments/list",
    "payout-list": "/api/v1/node/payouts/list",
    "payout-set": "/api/v1/node/payouts/set",
    "payout-remove": "/api/v1/node/payouts/remove",
    "payout-request": "/api/v1/node/payouts/request",
    "me": "/api/v1/node/me",
    "register": "/api/v1/node/register",
    "remove": "/api/v1/node/remove",
}


def is_final(error: CoordinatorError, codes: frozenset[str] = FINAL_CODES) -> bool:
    """Whether the same request would be refused for ever, as these codes say."""
    return isinstance(error, CoordinatorRefused) and 400 <= error.status < 500 and error.code in codes


class MoneyClient:
    """The HTTP side. `registration` gives the fields with which a node registers that is not known yet; without it,
    none is entered.
    """

    def __init__(
        self,
        url: str,
        signer: RequestSigner,
        registration: Callable[[], dict[str, object]] | None,
        proxy: Proxy | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._proxy = proxy
        self._signer = signer
        self._registration = registration
        self._http: httpx.AsyncClient | None = None

    async def open_lease(self, signed: Signed) -> Signed:
        """Have money locked; gives the lease, which is not checked here. Raises CoordinatorError."""
        return await self._record("/api/v1/node/leases/open", "lease-request", signed)

    async def claim(self, signed: Signed) -> Signed:
        """Redeem a voucher; gives the acknowledgement, which is not checked here. Raises CoordinatorError."""
        return await self._record("/api/v1/node/claims", "claim", signed)

    async def close_lease(self, signed: Signed) -> dict[str, Any]:
        """Say that the payer wants no more of a lease; gives the lease. Raises CoordinatorError."""
        return _object(read_json(await self._post("/api/v1/node/leases/close", codec.encode_value(signed), "close")))

    async def ask(self, name: str, fields: dict[str, Any]) -> Any:
        """What stands under `data` in the answer to one of `TARGETS`. Raises CoordinatorError."""
        if name == "register" and self._registration is not None:
            # What is published of this node follows from its settings, whatever whoever asks has in mind.
            fields = fields | self._registration()
        answer = read_json(await self._post(TARGETS[name], msgspec.json.encode(fields), None))
        if "data" not in answer:
            raise CoordinatorError("the coordinator's answer has no data: is the URL right?")
        return answer["data"]

    async def open_wishes(self) -> list[dict[str, Any]]:
        """The newest open leases that were given to this node. Raises CoordinatorError."""
        rows = await self.ask("leases", {"role": "provider", "open": True, "limit": 100})
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    async def head(self) -> Signed | None:
        """The signed head of its ledger, not checked; None while it has none. Raises CoordinatorError."""
        try:
            answer = read_json(await request(self._client(), "GET", f"{self.url}/api/v1/ledger/head"))
        except CoordinatorRefused:
            return None
        return read_signed(answer.get("record"))

    async def aclose(self) -> None:
        """Close what connections there are."""
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()

    # ------------------------------------------------------------ one request

    async def _record(self, target: str, name: str, signed: Signed) -> Signed:
        answer = await self._post(target, codec.encode_value(signed), name)
        try:
            return codec.decode_struct(answer.content, Signed, codec.CONTROL_LIMITS)
        except RemoteProtocolError as error:
            raise CoordinatorError(f"the coordinator's answer is no signed record: {error}") from None

    async def _post(self, target: str, body: bytes, record: str | None) -> httpx.Response:
        content_type = f"application/vnd.infernet.{record}" if record is not None else "application/json"
        try:
            return await self._post_by_its_clock(target, body, content_type)
        except CoordinatorRefused as error:
            if error.code != NOT_REGISTERED or self._registration is None:
                raise
        await CoordinatorClient(self.url, self._signer, self._proxy).register(self._registration())
        return await self._post_by_its_clock(target, body, content_type)

    async def _post_by_its_clock(self, target: str, body: bytes, content_type: str) -> httpx.Response:
        auth = self._signer.sign("POST", target, body)
        try:
            return await self._send(target, body, content_type, auth)
        except Unauthorized as error:
            ahead_s = self._signer.clock_error_s(error.time_header, auth)
        # Also where the clock is right: one that another request has overtaken is refused as if it came twice.
        auth = self._signer.sign("POST", target, body, ahead_s=ahead_s if abs(ahead_s) > AUTH_WINDOW_S else 0.0)
        try:
            return await self._send(target, body, content_type, auth)
        except Unauthorized as error:
            raise error.explained(self._signer, auth) from None

    async def _send(self, target: str, body: bytes, content_type: str, auth: str) -> httpx.Response:
        headers = {AUTH_HEADER: auth, "content-type": content_type}
        return await request(self._client(), "POST", self.url + target, content=body, headers=headers)

    def _client(self) -> httpx.AsyncClient:
        # One for all: each would read the system's certificates again.
        if self._http is None:
            self._http = new_client(self._proxy)
        return self._http


def read_signed(encoded: object) -> Signed | None:
    """A signed record out of JSON, where it is base64 of MessagePack; None for what is none."""
    if not isinstance(encoded, str):
        return None
    try:
        return codec.decode_struct(b64decode(encoded, validate=True), Signed, codec.CONTROL_LIMITS)
    except (binascii.Error, ValueError, RemoteProtocolError):
        return None


def _object(answer: dict[str, Any]) -> dict[str, Any]:
    data = answer.get("data")
    if not isinstance(data, dict):
        raise CoordinatorError("the coordinator's answer has no data: is the URL right?")
    return data
