"""Deposits and payouts as clients see them. Dollars and coins are texts: no reader can round them by mistake."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from coordinator.core.views import iso_time
from coordinator.payments.deposit_rules import Deposit, Stage
from coordinator.payments.payout_rules import Intent, PayoutState
from coordinator.store.payout_addresses import PayoutAddress
from protocol.formats.addresses.outcome import AddressWarning
from protocol.formats.amounts import format_amount, format_usd

# The words of existing clients, beside our own in `state`.
_DEPOSIT_WORDS: Final = {Stage.CREDITED: "confirmed", Stage.HELD: "review", Stage.REVIEW: "review"}
_PAYOUT_WORDS: Final = {PayoutState.CONFIRMED: "confirmed", PayoutState.FAILED: "failed"}


def usd(amount_uusd: int) -> str:
    """Dollars as digits with a point."""
    return format_usd(amount_uusd).removeprefix("$")


def _time(time_ms: int | None) -> str | None:
    return iso_time(time_ms) if time_ms is not None else None


def deposit_status(deposit: Deposit) -> str:
    """One word for a client: what the gateway says until it is paid, and then what we did."""
    return _DEPOSIT_WORDS.get(deposit.stage, deposit.state.shown.value)


def invoice_view(deposit: Deposit) -> dict[str, Any]:
    """An invoice: the keys of existing clients, and what it is worth."""
    received = deposit.received_units
    return {
        "invoiceId": deposit.deposit.hex(),
        "payAddress": deposit.address,
        "amount": deposit.expected_raw,
        "coin": deposit.code,
        "network": deposit.network,
        "expiresAt": _time(deposit.expires_ms),
        "hostedUrl": None,
        "amountUsd": usd(deposit.amount_uusd),
        "status": deposit_status(deposit),
        "receivedAmount": format_amount(deposit.pair, received) if received is not None else None,
        "creditedUsd": usd(deposit.credited_uusd) if deposit.stage is Stage.CREDITED else None,
        "isManual": deposit.pair.is_manual,
        "createdAt": iso_time(deposit.created_ms),
    }


def deposit_row(deposit: Deposit) -> dict[str, Any]:
    """A deposit as a row of payments."""
    units = deposit.received_units
    shown = deposit.credited_uusd if deposit.stage in (Stage.CREDITED, Stage.HELD) else deposit.amount_uusd
    return {
        "id": deposit.deposit.hex(),
        "direction": "inbound",
        "coin": deposit.code,
        "network": deposit.network,
        "amount": format_amount(deposit.pair, units) if units is not None else deposit.expected_raw,
        "amount_usd": usd(shown),
        "status": deposit_status(deposit),
        "state": deposit.stage.value,
        "address": deposit.address,
        "tx_hash": deposit.tx_hash,
        "invoice_id": deposit.deposit.hex(),
        "created_at": iso_time(deposit.created_ms),
        "confirmed_at": _time(deposit.ended_ms) if deposit.stage is Stage.CREDITED else None,
    }


def payout_row(intent: Intent) -> dict[str, Any]:
    """A payout as a row of payments."""
    return {
        "id": intent.intent.hex(),
        "direction": "outbound",
        "coin": intent.code,
        "network": intent.network,
        "amount": intent.amount_raw,
        "amount_usd": usd(intent.amount_uusd),
        "status": _PAYOUT_WORDS.get(intent.status, "pending"),
        "state": intent.status.value,
        "address": intent.address,
        "tx_hash": intent.tx_hash,
        "invoice_id": None,
        "created_at": iso_time(intent.created_ms),
        "confirmed_at": _time(intent.ended_ms) if intent.status is PayoutState.CONFIRMED else None,
    }


def payment_rows(came: Iterable[Deposit], went: Iterable[Intent], limit: int) -> list[dict[str, Any]]:
    """Both directions, the newest first."""
    dated = [(each.created_ms, deposit_row(each)) for each in came]
    dated += [(each.created_ms, payout_row(each)) for each in went]
    dated.sort(key=lambda one: one[0], reverse=True)
    return [row for _, row in dated[:limit]]


def address_row(
    address: PayoutAddress, default: PayoutAddress | None, warnings: tuple[AddressWarning, ...] = ()
) -> dict[str, Any]:
    """An address as its owner sees it."""
    return {
        "id": address.number,
        "coin": address.code,
        "network": address.network,
        "address": address.address,
        "is_default": default is not None and default.number == address.number,
        "active_at": iso_time(address.active_from_ms),
        "default_at": iso_time(address.default_from_ms),
        "set_at": iso_time(address.set_ms),
        "set_by": address.set_by.hex(),
        "warnings": [warning.value for warning in warnings],
    }
