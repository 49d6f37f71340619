"""`/api/v1/admin/*`: what the operator looks at and decides, signed with the coordinator's own key.

Whoever has that key can sign leases, so it gives nobody a power that he had not; and there is no second secret to
keep. `infernet-coordinator payouts` and `deposits` speak it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct
from quart import Blueprint, Response

from coordinator.core.auth import authenticate, unauthenticated, use_once
from coordinator.core.core import Core
from coordinator.core.http import json_response
from coordinator.core.money import MoneyRefused
from coordinator.core.money_requests import read_money_json
from coordinator.core.payment_views import deposit_row, payout_row, usd
from coordinator.core.views import iso_time
from coordinator.payments.deposit_rules import Deposit
from coordinator.payments.payout_rules import Intent
from coordinator.store import deposits, payouts
from protocol.formats.amounts import BadAmount, parse_amount

LIST_MAX: Final = 500
_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)

Word = Annotated[str, Meta(max_length=64)]


class ListBody(Struct, forbid_unknown_fields=True):
    """What waits, or all."""

    all: bool = False


class DecideBody(Struct, forbid_unknown_fields=True):
    """What becomes of a payout of which nobody knows."""

    intent: Word
    decision: Literal["sent", "return", "resend"]


class DepositBody(Struct, forbid_unknown_fields=True):
    """A deposit that was looked at; `received` in coins, where a person has seen them on the chain."""

    deposit: Word
    received: Word | None = None


class NoBody(Struct, forbid_unknown_fields=True):
    """Nothing more to say."""


def admin_api(core: Core) -> Blueprint:
    """The routes."""
    api = Blueprint("admin_api", __name__, url_prefix="/api/v1/admin")

    @api.post("/payouts/list")
    async def list_payouts() -> Response:
        await _authenticate(core)
        body = await read_money_json(ListBody)
        machine = core.payments.payouts
        async with core.database.reader() as reader:
            rows = await payouts.list_all(reader, LIST_MAX, is_open=not body.all)
        strays, frozen = await machine.strays(), machine.frozen
        return json_response(
            {
                "data": {
                    "frozen": {"since": iso_time(frozen.since_ms), "reason": frozen.reason} if frozen else None,
                    "rows": [_intent(intent) for intent in rows],
                    "strays": [
                        {"gateway_id": each.gateway_id, "reason": each.reason, "seen_at": iso_time(each.seen_ms)}
                        for each in strays
                    ],
                }
            }
        )

    @api.post("/payouts/decide")
    async def decide() -> Response:
        await _authenticate(core)
        body = await read_money_json(DecideBody)
        intent = await core.payments.payouts.decide(_read_id(body.intent), body.decision)
        return json_response({"data": {"row": _intent(intent)}})

    @api.post("/payouts/unfreeze")
    async def unfreeze() -> Response:
        await _authenticate(core)
        await read_money_json(NoBody)
        await core.payments.payouts.unfreeze()
        return json_response({"data": {"frozen": None}})

    @api.post("/deposits/list")
    async def list_deposits() -> Response:
        await _authenticate(core)
        await read_money_json(NoBody)
        _ = core.payments.deposits
        async with core.database.reader() as reader:
            rows = await deposits.list_to_review(reader, LIST_MAX)
        return json_response({"data": {"rows": [_deposit(deposit) for deposit in rows]}})

    @api.post("/deposits/release")
    async def release() -> Response:
        await _authenticate(core)
        body = await read_money_json(DepositBody)
        deposit = await core.payments.deposits.release(_read_id(body.deposit))
        return json_response({"data": {"row": _deposit(deposit)}})

    @api.post("/deposits/credit")
    async def credit() -> Response:
        await _authenticate(core)
        body = await read_money_json(DepositBody)
        number = _read_id(body.deposit)
        async with core.database.reader() as reader:
            found = await deposits.read_one(reader, number)
        if found is None:
            raise MoneyRefused(404, "unknown_deposit", "there is no such deposit")
        try:
            received = parse_amount(found.pair, body.received or "")
        except BadAmount as error:
            raise MoneyRefused(400, "bad_amount", f"received, in {found.code}: {error}") from None
        return json_response({"data": {"row": _deposit(await core.payments.deposits.credit(number, received))}})

    return api


async def _authenticate(core: Core) -> None:
    """Only the coordinator's own key, version 2, once. Raises ApiError, the same for everybody else."""
    authenticated = await authenticate(core)
    # SPEC 07: The coordinator MUST take requests of its operator from its own key alone.
    if authenticated.node != core.key.node or authenticated.version != 2:
        raise unauthenticated(core, "")
    await core.database.write(lambda tx: use_once(core, tx, authenticated))
    core.settlement.check_running()


def _read_id(text: str) -> bytes:
    if _ID.fullmatch(text) is None:
        raise MoneyRefused(400, "bad_request", "an id is 32 hexadecimal digits in lower case")
    return bytes.fromhex(text)


def _intent(intent: Intent) -> dict[str, Any]:
    return {
        **payout_row(intent),
        "key": intent.node.hex(),
        "attempts": intent.attempts,
        "gateway_id": intent.gateway_id,
        "absences": intent.absences,
        "needs_person": intent.needs_person,
        "reason": intent.reason,
    }


def _deposit(deposit: Deposit) -> dict[str, Any]:
    return {
        **deposit_row(deposit),
        "key": deposit.node.hex(),
        "gateway_id": deposit.gateway_id,
        "quoted_usd": usd(deposit.amount_uusd),
        "reason": deposit.reason,
    }
