"""What CoinPayPortal answers, as what it means: typed, exact, and refused where it contradicts itself or the question.

The published shapes (docs/API.md; the code beside it differs in places): a payment under `payment`, under
`data.payment`, under `data`, or flat; payouts under `payout` and `payouts`. An older contract has other names for the
same fields. Where several names of one field are present they have to agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec

from coordinator.payments.amounts import UUSD_DECIMALS, BadAmount, RawAmount
from coordinator.payments.bounded_json import BadJson, convert
from coordinator.payments.gateway import Invoice, Payout, PayoutStatus
from coordinator.payments.status import payment_status
from coordinator.payments.webhook_events import GATEWAY_ID
from protocol.formats.coins import PAIRS

T = TypeVar("T")

# (code, network) -> the gateway's word for it, and the decimals of our ledger.
ASSETS: Final[dict[tuple[str, str], tuple[str, int]]] = {
    (pair.code, pair.network): (pair.gateway_code, pair.ledger_decimals) for pair in PAIRS
}
# The two that the gateway knows without a network are those of Ethereum.
_ASSET_OF_WORD: Final = {word: asset for asset, (word, _) in ASSETS.items()} | {
    "USDT": ("USDT", "ethereum"),
    "USDC": ("USDC", "ethereum"),
}

ADDRESS: Final = re.compile(r"[A-Za-z0-9:_.?=+/-]{1,256}")
OUR_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TX_HASH: Final = re.compile(r"[A-Za-z0-9_-]{1,160}")
_STATUS_CHARACTERS_MAX: Final = 32


class BadReply(ValueError):
    """An answer that cannot be right. The message quotes none of it."""


class _Payment(msgspec.Struct, frozen=True):
    id: str | None = None
    payment_id: str | None = None
    invoice_id: str | None = None
    invoice_id_camel: str | None = msgspec.field(default=None, name="invoiceId")
    payment_address: str | None = None
    pay_address: str | None = None
    pay_address_camel: str | None = msgspec.field(default=None, name="payAddress")
    address: str | None = None
    crypto_amount: RawAmount | None = None
    pay_amount: RawAmount | None = None
    amount: RawAmount | None = None
    customer_paid_amount: RawAmount | None = None
    received_amount: RawAmount | None = None
    currency: str | None = None
    blockchain: str | None = None
    coin: str | None = None
    pay_currency: str | None = None
    network: str | None = None
    pay_network: str | None = None
    status: str | None = None
    payment_status: str | None = None
    tx_hash: str | None = None
    txid: str | None = None
    transaction_id: str | None = None
    business_id: str | None = None
    expires_at: str | None = None
    metadata: dict[str, Any] | None = None


class _Payout(msgspec.Struct, frozen=True):
    id: str
    recipient_wallet: str
    cryptocurrency: str
    amount_usd: RawAmount
    status: str
    amount_crypto: RawAmount | None = None
    tx_hash: str | None = None
    created_at: str | None = None
    metadata: dict[str, Any] | None = None


def read_invoice(reply: Mapping[str, Any]) -> Invoice:
    """The payment in an answer. Raises BadReply."""
    try:
        fields = convert(_payment_in(reply), _Payment)
        return _invoice(fields)
    except (BadJson, BadAmount) as error:
        raise BadReply(str(error)) from None


def _payment_in(reply: Mapping[str, Any]) -> object:
    data = reply.get("data")
    inner = data if isinstance(data, dict) else reply
    return next((inner[name] for name in ("payment", "invoice") if inner.get(name) is not None), inner)


def _invoice(fields: _Payment) -> Invoice:
    asset = _asset(fields)
    amount = _coin_amount(fields)
    received = _one_amount(fields.customer_paid_amount, fields.received_amount)
    decimals = ASSETS[asset][1]
    is_dollars = fields.currency == "USD" and fields.amount is not None
    status = _required(_one(fields.status, fields.payment_status), "status")
    return Invoice(
        gateway_id=_matching(
            GATEWAY_ID, _one(fields.id, fields.payment_id, fields.invoice_id, fields.invoice_id_camel), "id"
        ),
        code=asset[0],
        network=asset[1],
        address=_matching(
            ADDRESS,
            _one(fields.payment_address, fields.pay_address, fields.pay_address_camel, fields.address),
            "address",
        ),
        status=payment_status(status),
        status_text=printable(status, _STATUS_CHARACTERS_MAX),
        amount=amount.units(decimals),
        amount_raw=amount.text,
        received=None if received is None else received.units(decimals),
        received_raw=None if received is None else received.text,
        amount_uusd=fields.amount.exact_units(UUSD_DECIMALS) if is_dollars and fields.amount else None,
        business_id=_optional(OUR_ID, fields.business_id),
        order_id=_of_metadata(fields.metadata, "order_id"),
        expires_at_ms=_instant_ms(fields.expires_at),
        tx_hash=_optional(_TX_HASH, _one(fields.tx_hash, fields.txid, fields.transaction_id)),
    )


def _coin_amount(fields: _Payment) -> RawAmount:
    """How many coins are asked for. `amount` is dollars wherever `currency` says so, and coins where it does not."""
    amount = _one_amount(fields.crypto_amount, fields.pay_amount)
    if amount is None and fields.currency != "USD":
        amount = fields.amount
    return _required(amount, "amount")


def _asset(fields: _Payment) -> tuple[str, str]:
    currency = None if fields.currency == "USD" else fields.currency
    if fields.blockchain is not None:
        return _of_word(fields.blockchain)
    code = _required(_one(fields.coin, fields.pay_currency, currency), "coin")
    network = _one(fields.network, fields.pay_network)
    if network is None:
        return _of_word(code)
    if (code, network) not in ASSETS:
        raise BadReply("a coin that is not known")
    return code, network


def _of_word(word: str) -> tuple[str, str]:
    asset = _ASSET_OF_WORD.get(word)
    if asset is None:
        raise BadReply("a coin that is not known")
    return asset


def read_payout(value: object) -> Payout:
    """One payout. Raises BadReply."""
    try:
        fields = convert(value, _Payout)
        amount_uusd = fields.amount_usd.exact_units(UUSD_DECIMALS)
    except (BadJson, BadAmount) as error:
        raise BadReply(str(error)) from None
    code, network = _of_word(fields.cryptocurrency)
    listed = fields.status in PayoutStatus.__members__.values()
    return Payout(
        gateway_id=_matching(GATEWAY_ID, fields.id, "id"),
        intent_id=_of_metadata(fields.metadata, "intent_id"),
        code=code,
        network=network,
        address=_matching(ADDRESS, fields.recipient_wallet, "address"),
        amount_uusd=amount_uusd,
        amount_raw=None if fields.amount_crypto is None else printable(fields.amount_crypto.text, 64),
        status=PayoutStatus(fields.status) if listed else None,
        status_text=printable(fields.status, _STATUS_CHARACTERS_MAX),
        created_at_ms=_instant_ms(fields.created_at),
        tx_hash=_optional(_TX_HASH, fields.tx_hash),
    )


def read_payouts(reply: Mapping[str, Any], rows_max: int) -> list[Payout]:
    """The payouts of one page. Raises BadReply: a row that cannot be read could be the one that is looked for."""
    data = reply.get("data")
    rows = (data if isinstance(data, dict) else reply).get("payouts")
    if not isinstance(rows, list) or len(rows) > rows_max:
        raise BadReply("no list of payouts, or a longer one than asked for")
    return [read_payout(row) for row in rows]


def read_total(reply: Mapping[str, Any]) -> int | None:
    """How many payouts there are on all pages, where the gateway says it. Raises BadReply."""
    data = reply.get("data")
    total = (data if isinstance(data, dict) else reply).get("total")
    try:
        return None if total is None else convert(total, RawAmount).exact_units(0)
    except (BadJson, BadAmount) as error:
        raise BadReply(str(error)) from None


def printable(text: str, characters_max: int) -> str:
    """A text of others, cut and made of visible ASCII, so that it can stand in a log or on a terminal."""
    return "".join(each if " " <= each <= "~" else "?" for each in text[:characters_max])


def _one(*values: T | None) -> T | None:
    """What all names of one field say that are there at all. Raises BadReply when they differ."""
    said = [value for value in values if value is not None]
    if any(value != said[0] for value in said):
        raise BadReply("two names of one field say different things")
    return said[0] if said else None


def _one_amount(first: RawAmount | None, second: RawAmount | None) -> RawAmount | None:
    """As `_one`, for what may be written in several ways. Raises BadReply or BadAmount."""
    if first is not None and second is not None and first.digits() != second.digits():
        raise BadReply("two names of one amount say different things")
    return second if first is None else first


def _required(value: T | None, what: str) -> T:
    if value is None:
        raise BadReply(f"no {what}")
    return value


def _matching(pattern: re.Pattern[str], value: str | None, what: str) -> str:
    if value is None or pattern.fullmatch(value) is None:
        raise BadReply(f"no {what}, or one that cannot be")
    return value


def _optional(pattern: re.Pattern[str], value: str | None) -> str | None:
    return None if value is None else _matching(pattern, value, "text")


def _of_metadata(metadata: Mapping[str, Any] | None, name: str) -> str | None:
    """Metadata of others can hold anything; only a text of the form of our ids is one of ours."""
    value = (metadata or {}).get(name)
    return value if isinstance(value, str) and OUR_ID.fullmatch(value) else None


def _instant_ms(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise BadReply("a time that is none") from None
    # Exact arithmetic, and UTC where no zone is stated.
    aware = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
