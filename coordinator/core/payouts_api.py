"""`/api/v1/node/payouts/*`: where money goes, and having it sent there.

An address is changed by the payout key of its owner: the node's own key, or another one that was named once, before the
first address. A payout is asked for by the node itself; it can only go where the payout key has said.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from msgspec import Meta, Struct
from quart import Blueprint, Response

from coordinator.core.auth import use_once
from coordinator.core.core import Core
from coordinator.core.http import ApiError, json_response, read_json
from coordinator.core.money import MoneyRefused
from coordinator.core.money_requests import authenticate_money, authenticate_reader, mark_of
from coordinator.core.node_api import REGISTER_FIRST
from coordinator.core.payment_views import address_row, payout_row
from coordinator.core.payments_api import read_cents, read_pair, read_request_id
from coordinator.payments.payouts import DAY_MS, destination_tag_refused
from coordinator.store import nodes, payout_addresses
from coordinator.store.payout_addresses import ADDRESSES_PER_KEY_MAX, TooManyAddresses
from protocol.envelope import AuthenticatedRequest, is_public_key
from protocol.formats.addresses import Address, BadAddress, check_address
from protocol.formats.coins import Pair
from protocol.ids import NodeId

T = TypeVar("T")
ADDRESS_DELAY_MS: Final = DAY_MS
_KEY: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)

Word = Annotated[str, Meta(max_length=64)]
AddressText = Annotated[str, Meta(max_length=256)]


class AddressBody(Struct, forbid_unknown_fields=True):
    """An address of a key: of who signs, or of `key`, whose payout key signs."""

    coin: Word
    address: AddressText
    network: Word | None = None
    key: Word | None = None


class PayoutKeyBody(Struct, forbid_unknown_fields=True):
    """Which key may change addresses from now on."""

    payout_key: Word


# SPEC 07: The coordinator MUST ignore keys of a JSON object that it does not know, but in a body about money that
#   existing clients do not send: there it MUST refuse them, as a word that is misspelled would be left out.
class RequestBody(Struct, forbid_unknown_fields=True):
    """So many dollars, or everything; to the default address, or to the one of a coin."""

    amount_usd: Word | None = None
    coin: Word | None = None
    network: Word | None = None
    request_id: Word | None = None


class NoBody(Struct):
    """Nothing more to say."""


def payouts_api(core: Core) -> Blueprint:
    """The routes."""
    api = Blueprint("payouts_api", __name__, url_prefix="/api/v1/node/payouts")

    @api.post("/list")
    async def list_addresses() -> Response:
        _ = core.payments.payouts
        # Nothing moves by it, so existing clients may ask with version 1.
        authenticated = await authenticate_reader(core)
        await read_json(NoBody)
        node, mark = authenticated.node, mark_of(core, authenticated)

        def read(tx: sqlite3.Connection) -> dict[str, Any]:
            mark(tx)
            addresses = payout_addresses.list_of(tx, node)
            default = payout_addresses.default_of(addresses, core.wall_ms())
            rows = [address_row(each, default) for each in addresses]
            rows.sort(key=lambda row: not row["is_default"])
            key = payout_addresses.payout_key(tx, node) or node
            return {"rows": rows, "payout_key": key.hex()}

        return json_response({"data": await core.database.write(read)})

    @api.post("/set")
    async def set_address() -> Response:
        _ = core.payments.payouts
        authenticated = await authenticate_money(core)
        body = await read_json(AddressBody)
        pair = read_pair(body.coin, body.network)
        address = _read_address(pair, body.address)
        if address.destination_tag is not None:
            raise destination_tag_refused()

        def write(tx: sqlite3.Connection, node: NodeId) -> dict[str, Any]:
            now_ms = core.wall_ms()
            try:
                row = payout_addresses.put(tx, node, pair, address, authenticated.node, now_ms, ADDRESS_DELAY_MS)
            except TooManyAddresses:
                text = f"a key has {ADDRESSES_PER_KEY_MAX} addresses at most; remove one"
                raise MoneyRefused(409, "too_many_addresses", text) from None
            default = payout_addresses.default_of(payout_addresses.list_of(tx, node), now_ms)
            return {"row": address_row(row, default, address.warnings)}

        return json_response({"data": await _as_payout_key(core, authenticated, body.key, write)})

    @api.post("/remove")
    async def remove_address() -> Response:
        _ = core.payments.payouts
        authenticated = await authenticate_money(core)
        body = await read_json(AddressBody)
        pair = read_pair(body.coin, body.network)
        address = _read_address(pair, body.address)

        def write(tx: sqlite3.Connection, node: NodeId) -> dict[str, Any]:
            row = payout_addresses.find(tx, node, pair, address.text)
            if row is None:
                raise MoneyRefused(404, "unknown_address", "this key has no such address")
            payout_addresses.remove(tx, row.number)
            return {"row": address_row(row, None), "deleted": True}

        return json_response({"data": await _as_payout_key(core, authenticated, body.key, write)})

    @api.post("/key")
    async def fix_payout_key() -> Response:
        _ = core.payments.payouts
        authenticated = await authenticate_money(core)
        key = _read_key((await read_json(PayoutKeyBody)).payout_key)
        mark = mark_of(core, authenticated)

        def write(tx: sqlite3.Connection) -> NodeId:
            mark(tx)
            return payout_addresses.fix_payout_key(tx, authenticated.node, key, core.wall_ms())

        fixed = await core.database.write(write)
        if fixed != key:
            # SPEC 07: The coordinator MUST NOT change the payout key of a key once it has one.
            text = "this key has a payout key: it is named once, before the first address"
            raise MoneyRefused(409, "conflict", text)
        return json_response({"data": {"payout_key": fixed.hex()}})

    @api.post("/request")
    async def request_payout() -> Response:
        machine = core.payments.payouts
        authenticated = await authenticate_money(core)
        body = await read_json(RequestBody)
        amount_uusd = read_cents(body.amount_usd) if body.amount_usd is not None else None
        pair = read_pair(body.coin, body.network) if body.coin is not None else None
        number, mark = read_request_id(body.request_id), mark_of(core, authenticated)
        intent = await machine.request(authenticated.node, number, amount_uusd, pair, mark)
        return json_response({"data": {"payout": payout_row(intent)}})

    return api


async def _as_payout_key(
    core: Core,
    authenticated: AuthenticatedRequest,
    key: str | None,
    write: Callable[[sqlite3.Connection, NodeId], T],
) -> T:
    """Change something of a key's addresses, on the word of its payout key. Raises ApiError."""
    node = _read_key(key) if key is not None else authenticated.node

    def change(tx: sqlite3.Connection) -> T | ApiError:
        _mark_payout_key(core, tx, authenticated)
        # SPEC 07: The coordinator MUST take a change of an address from the payout key of that account alone.
        if nodes.get(tx, node) is None or (payout_addresses.payout_key(tx, node) or node) != authenticated.node:
            return MoneyRefused(403, "wrong_payout_key", "only the payout key of this account may change its addresses")
        try:
            answer = write(tx, node)
        except ApiError as error:
            return error
        # SPEC 07: The coordinator MUST fix a key as its own payout key with the first address that it sets, unless it
        #   has named another one before, and by no request that is refused.
        payout_addresses.fix_payout_key(tx, node, authenticated.node, core.wall_ms())
        return answer

    answer = await core.database.write(change)
    if isinstance(answer, ApiError):
        raise answer
    return answer


def _mark_payout_key(core: Core, tx: sqlite3.Connection, authenticated: AuthenticatedRequest) -> None:
    """As `mark_of`, for keys that are registered or were named as somebody's payout key."""
    if nodes.get(tx, authenticated.node) is None and not payout_addresses.is_payout_key(tx, authenticated.node):
        raise ApiError(404, REGISTER_FIRST, code="not_registered")
    use_once(core, tx, authenticated)


def _read_address(pair: Pair, text: str) -> Address:
    # SPEC 06: The coordinator MUST refuse an address that is not one of that coin on that network, checksum included.
    try:
        return check_address(pair, text)
    except BadAddress as error:
        raise MoneyRefused(400, "bad_address", str(error)) from None


def _read_key(text: str) -> NodeId:
    if _KEY.fullmatch(text) is None:
        raise MoneyRefused(400, "bad_request", "a key is 64 hexadecimal digits in lower case")
    key = NodeId(bytes.fromhex(text))
    # SPEC 07: The coordinator MUST refuse a payout key with which nobody can sign.
    if not is_public_key(key):
        raise MoneyRefused(400, "bad_request", "nobody can sign with this key: it is no point of secp256k1")
    return key
