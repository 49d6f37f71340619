"""`/api/v1/node/leases`, `claims`, `complaints`, `wallet`: what nodes say and ask about money; and the ledger's head.

All but the head are POST, signed by the node with `X-Infernet-Auth` version 2, which names its audience: version 1
could be repeated at another coordinator. What moves money is a signed record in MessagePack, what is asked about it
JSON. Every refusal has a stable `code` beside its sentence.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct
from quart import Blueprint, Response, request

from coordinator.core.core import Core
from coordinator.core.http import ApiError, json_response, read_body, read_json
from coordinator.core.money import BAD_RECORD, MoneyRefused
from coordinator.core.money_requests import authenticate_money, mark_of
from coordinator.store import heads, leases, wallet
from coordinator.store.leases import ListedLease
from protocol import codec
from protocol import constants as c
from protocol.envelope import open_record
from protocol.errors import RemoteProtocolError
from protocol.ledger import read_entry_body
from protocol.money_records import LedgerHeadRecord
from protocol.records import Signed

MSGPACK_TYPES: Final = ("application/msgpack", "application/x-msgpack")
LIST_MAX: Final = 100

Limit = Annotated[int, Meta(ge=1, le=LIST_MAX)]
Before = Annotated[int, Meta(ge=1, le=c.INTEGER_MAX)]


# SPEC 07: The coordinator MUST refuse JSON with a key that it does not know on these routes and those of payments,
class ListBody(Struct, forbid_unknown_fields=True):
    """Whose leases: those that this node is paid by, or pays."""

    role: Literal["client", "provider"]
    open: bool = True
    limit: Limit = LIST_MAX


class HistoryBody(Struct, forbid_unknown_fields=True):
    """Entries below the number `before`; the next page begins before the last one of this."""

    before: Before = c.INTEGER_MAX
    limit: Limit = LIST_MAX


class NoBody(Struct, forbid_unknown_fields=True):
    """Nothing more to say."""


def settlement_api(core: Core) -> Blueprint:
    """The routes."""
    api = Blueprint("settlement_api", __name__, url_prefix="/api/v1")

    @api.post("/node/leases/open")
    async def open_lease() -> Response:
        authenticated = await authenticate_money(core)
        signed = await _read_record("lease-request")
        return _record(
            await core.settlement.open_lease(authenticated.node, signed, mark_of(core, authenticated)), "lease"
        )

    @api.post("/node/claims")
    async def claim() -> Response:
        authenticated = await authenticate_money(core)
        signed = await _read_record("claim")
        acknowledgement = await core.settlement.claim(authenticated.node, signed, mark_of(core, authenticated))
        return _record(acknowledgement, "claim-ack")

    @api.post("/node/leases/close")
    async def close() -> Response:
        authenticated = await authenticate_money(core)
        signed = await _read_record("close")
        lease = await core.settlement.wish_closed(authenticated.node, signed, mark_of(core, authenticated))
        return json_response({"data": _lease(ListedLease(lease, signed), core)})

    @api.post("/node/complaints")
    async def complain() -> Response:
        authenticated = await authenticate_money(core)
        signed = await _read_record("complaint")
        await core.settlement.complain(authenticated.node, signed, mark_of(core, authenticated))
        return json_response({"data": {"recorded": True}})

    @api.post("/node/leases/list")
    async def list_leases() -> Response:
        authenticated = await authenticate_money(core)
        body = await read_json(ListBody)
        await core.database.write(mark_of(core, authenticated))
        async with core.database.reader() as reader:
            found = await leases.list_of(
                reader,
                authenticated.node,
                as_provider=body.role == "provider",
                is_closed=not body.open,
                limit=body.limit,
            )
        return json_response({"data": [_lease(each, core) for each in found]})

    @api.post("/node/wallet")
    async def read_wallet() -> Response:
        authenticated = await authenticate_money(core)
        await read_json(NoBody)
        await core.database.write(mark_of(core, authenticated))
        async with core.database.reader() as reader:
            return json_response({"data": await wallet.read(reader, authenticated.node)})

    @api.post("/node/wallet/history")
    async def history() -> Response:
        authenticated = await authenticate_money(core)
        body = await read_json(HistoryBody)
        await core.database.write(mark_of(core, authenticated))
        async with core.database.reader() as reader:
            rows = await wallet.history(reader, authenticated.node, body.before, body.limit)
        return json_response({"data": [_history_row(row) for row in rows]})

    @api.get("/ledger/head")
    async def head() -> Response:
        async with core.database.reader() as reader:
            signed = core.settlement_upkeep.head or await heads.select_newest(reader)
        if signed is None:
            raise ApiError(404, "no head has been signed yet", code="no_head")
        record = open_record(signed, LedgerHeadRecord)
        return json_response(
            {
                "entry": record.entry,
                "head": record.head.hex(),
                "signed_at_ms": record.signed_at_ms,
                "coordinator": record.coordinator.hex(),
                "record": codec.encode_value(signed),  # base64 in JSON
            }
        )

    return api


# ---------------------------------------------------------------- what


async def _read_record(name: str) -> Signed:
    if request.mimetype not in (*MSGPACK_TYPES, f"application/vnd.infernet.{name}"):
        raise ApiError(415, f"send MessagePack with Content-Type: application/vnd.infernet.{name}", code="bad_type")
    try:
        return codec.decode_struct(await read_body(), Signed, codec.CONTROL_LIMITS)
    except RemoteProtocolError as error:
        raise MoneyRefused(400, BAD_RECORD, f"the body is no signed record: {error}") from None


def _record(signed: Signed, name: str) -> Response:
    return Response(codec.encode_value(signed), content_type=f"application/vnd.infernet.{name}")


def _lease(listed: ListedLease, core: Core) -> dict[str, Any]:
    lease = listed.lease
    return {
        "lease": lease.lease.hex(),
        "provider": lease.provider.hex(),
        "payer": lease.payer.hex(),
        "relay": lease.relay.hex() if lease.relay is not None else None,
        "relay_bps": lease.relay_bps,
        "fee_bps": lease.fee_bps,
        "state": "closed" if lease.is_closed else "open",
        "cap_uusd": lease.cap_uusd,
        "claimed_uusd": lease.claimed_uusd,
        "serve_until_ms": lease.serve_until_ms,
        "claim_by_ms": lease.grace_until_ms(core.settlement.downtime_ms),
        "close_wish": codec.encode_value(listed.close_wish) if listed.close_wish is not None else None,
    }


def _history_row(row: wallet.HistoryRow) -> dict[str, Any]:
    _, _, command, _ = read_entry_body(row.body)
    named = {name: getattr(command, name, None) for name in ("lease", "intent", "payment")}
    return {
        "entry": row.entry,
        "at_ms": row.at_ms,
        "kind": row.kind,
        "amount_uusd": row.amount_uusd,
        **{name: value.hex() if isinstance(value, bytes) else value for name, value in named.items() if value},
    }
