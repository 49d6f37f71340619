"""`/api/v1/node/deposits*`, `payments/list` and `/api/payments/*`: money in, and what came and went.

The invoice route and the webhook keep the shapes of existing clients and of the gateway. What an existing client calls
a job is paid for by leases here, so all that can be paid by an invoice is a deposit.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Final

from msgspec import Meta, Struct
from quart import Blueprint, Response, request

from coordinator.core.core import Core
from coordinator.core.http import BadRequest, json_response, read_body
from coordinator.core.limits import client_of
from coordinator.core.money import MoneyRefused
from coordinator.core.money_requests import authenticate_money, authenticate_reader, mark_of, read_money_json
from coordinator.core.payment_views import invoice_view, payment_rows
from coordinator.payments.amounts import UUSD_PER_CENT
from coordinator.payments.deposit_rules import Stage
from coordinator.payments.webhook import OLD_SIGNATURE_HEADER, SIGNATURE_HEADER, WebhookRefused
from coordinator.store import deposits, jobs, payouts
from protocol.formats.amounts import BadAmount, format_usd, parse_usd
from protocol.formats.coins import Pair, UnknownPair, find_pair
from protocol.ids import JobId

LIST_MAX: Final = 100
LIST_DEFAULT: Final = 20
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)
_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)

Word = Annotated[str, Meta(max_length=64)]
Limit = Annotated[int, Meta(ge=1, le=LIST_MAX)]


# SPEC 07: The coordinator MUST refuse JSON with a key that it does not know on these routes and those of payments,
class DepositBody(Struct, forbid_unknown_fields=True):
    """So many dollars, paid in this coin. The same `request_id` again gets the same invoice."""

    amount_usd: Word
    coin: Word
    network: Word | None = None
    request_id: Word | None = None


class DepositListBody(Struct, forbid_unknown_fields=True):
    """The newest, or one."""

    limit: Limit = LIST_DEFAULT
    invoice_id: Word | None = None


class PaymentListBody(Struct):
    """The newest. Existing clients name their role, and a key is one account in every role."""

    limit: int = LIST_DEFAULT
    role: Word = ""


class InvoiceBody(Struct, rename="camel"):
    """What an existing client sends."""

    job_id: Word = ""
    coin: Word = ""
    network: Word | None = None


def payments_api(core: Core) -> Blueprint:
    """The routes."""
    api = Blueprint("payments_api", __name__)

    @api.post("/api/v1/node/deposits")
    async def create() -> Response:
        machine = core.payments.deposits
        authenticated = await authenticate_money(core)
        body = await read_money_json(DepositBody)
        pair = read_pair(body.coin, body.network)
        amount_uusd = read_cents(body.amount_usd)
        config = core.config
        if not config.deposit_uusd_min <= amount_uusd <= config.deposit_uusd_max:
            least, most = format_usd(config.deposit_uusd_min), format_usd(config.deposit_uusd_max)
            raise MoneyRefused(400, "bad_amount", f"a deposit is {least} to {most} here")
        core.deposits.take(client_of(request, config))
        mark, number = mark_of(core, authenticated), read_request_id(body.request_id)
        deposit = await machine.create(authenticated.node, number, amount_uusd, pair, mark)
        return json_response({"data": invoice_view(deposit)})

    @api.post("/api/v1/node/deposits/list")
    async def list_deposits() -> Response:
        _ = core.payments.deposits
        authenticated = await authenticate_money(core)
        body = await read_money_json(DepositListBody)
        if body.invoice_id is not None and _ID.fullmatch(body.invoice_id) is None:
            raise BadRequest("an invoice_id is 32 hexadecimal digits in lower case")
        await core.database.write(mark_of(core, authenticated))
        async with core.database.reader() as reader:
            found = await deposits.list_of(reader, authenticated.node, LIST_MAX)
            if body.invoice_id is not None:
                one = await deposits.read_one(reader, bytes.fromhex(body.invoice_id))
                found = [one] if one is not None and one.node == authenticated.node else []
        rows = [invoice_view(deposit) for deposit in found if deposit.stage is not Stage.NEW]
        return json_response({"data": {"rows": rows[: body.limit]}})

    @api.post("/api/v1/node/payments/list")
    async def list_payments() -> Response:
        _ = core.payments.deposits
        # Nothing moves by it, so existing clients may ask with version 1.
        authenticated = await authenticate_reader(core)
        body = await read_money_json(PaymentListBody)
        await core.database.write(mark_of(core, authenticated))
        limit = max(1, min(LIST_MAX, body.limit))
        async with core.database.reader() as reader:
            came = await deposits.list_of(reader, authenticated.node, limit)
            went = await payouts.list_of(reader, authenticated.node, limit)
        rows = payment_rows(came, went, limit)
        return json_response({"data": {"rows": rows}})

    @api.post("/api/payments/invoice")
    async def invoice() -> Response:
        _ = core.payments.deposits
        core.node_requests.take(client_of(request, core.config))
        core.settlement.check_running()
        body = await read_money_json(InvoiceBody)
        if not body.job_id:
            raise BadRequest("jobId is required")
        if not body.coin:
            raise BadRequest("coin is required")
        return json_response(await _invoice_of(core, body.job_id, read_pair(body.coin, body.network)))

    @api.post("/api/payments/webhook")
    async def webhook() -> Response:
        machine = core.payments.deposits
        body = await read_body()
        signatures = request.headers.getlist(SIGNATURE_HEADER)
        try:
            await machine.receive(signatures, request.headers.getlist(OLD_SIGNATURE_HEADER), body)
        except WebhookRefused as refused:
            # SPEC 07: The coordinator MUST answer every webhook that it does not believe in the same way.
            raise MoneyRefused(401, "unauthenticated", str(refused)) from None
        return json_response({"ok": True})

    return api


async def _invoice_of(core: Core, identity: str, pair: Pair) -> dict[str, Any]:
    """The invoice of a deposit that was made before. Raises MoneyRefused: for a job there is nothing to pay."""
    if _ID.fullmatch(identity):
        async with core.database.reader() as reader:
            deposit = await deposits.read_one(reader, bytes.fromhex(identity))
            job = await jobs.select_one(reader, JobId(bytes.fromhex(identity)))
        if deposit is not None and deposit.stage is not Stage.NEW:
            if (deposit.code, deposit.network) != (pair.code, pair.network):
                text = f"this invoice is in {deposit.code} on {deposit.network}; make another deposit for another coin"
                raise MoneyRefused(400, "unsupported_coin", text)
            return invoice_view(deposit)
        # The row of a chat is written beside it, so the youngest are in memory alone.
        if job is not None or core.chats.get(JobId(bytes.fromhex(identity))) is not None:
            # SPEC 07: The coordinator MUST NOT make an invoice for a job: what a job costs is paid from a lease.
            raise MoneyRefused(400, "nothing_to_pay", "this chat costs whoever asks nothing; there is nothing to pay")
    raise MoneyRefused(404, "not_found", "there is no deposit or job of this id")


# ---------------------------------------------------------------- what people write


def read_pair(coin: str, network: str | None) -> Pair:
    """The coin and network that are meant. Raises MoneyRefused."""
    try:
        return find_pair(coin, network)
    except UnknownPair as error:
        raise MoneyRefused(400, "unsupported_coin", str(error)) from None


def read_cents(text: str) -> int:
    """Dollars in whole cents, as micro-USD. Raises MoneyRefused."""
    try:
        amount_uusd = parse_usd(text)
    except BadAmount as error:
        raise MoneyRefused(400, "bad_amount", str(error)) from None
    # SPEC 07: The coordinator MUST take amounts of deposits and payouts in whole cents only: the gateway has no others.
    if amount_uusd % UUSD_PER_CENT or not amount_uusd:
        raise MoneyRefused(400, "bad_amount", "an amount here is a positive number of whole cents")
    return amount_uusd


def read_request_id(text: str | None) -> str:
    """The client's own number of a request, or one that nobody repeats. Raises BadRequest."""
    if text is None:
        return secrets.token_hex(16)
    if REQUEST_ID.fullmatch(text) is None:
        raise BadRequest("request_id is 1 to 64 letters, digits and _ . : -")
    return text
