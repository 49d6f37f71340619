"""Every shape in which a payment or a payout is told, published or of the older contract, is read to the unit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.payments.bounded_json import decode_object
from coordinator.payments.coinpayportal_replies import (
    ASSETS,
    BadReply,
    printable,
    read_invoice,
    read_payout,
    read_payouts,
)
from coordinator.payments.gateway import PayoutStatus
from coordinator.payments.status import PaymentStatus

PUBLISHED: dict[str, Any] = {
    "id": "pay_1",
    "amount": 100.0,
    "currency": "USD",
    "blockchain": "ETH",
    "crypto_amount": "0.0456",
    "payment_address": "0x52908400098527886E0F7030069857D2E4169EE7",
    "status": "confirmed",
    "expires_at": "2026-11-18T11:06:40.250Z",
    "tx_hash": "0xabc",
    "metadata": {"order_id": "dep-1"},
}
# The names of the older contract; there `amount` is of the coin.
OLDER: dict[str, Any] = {
    "invoice_id": "pay_1",
    "pay_address": "0x52908400098527886E0F7030069857D2E4169EE7",
    "amount": "0.0456",
    "coin": "ETH",
    "network": "ethereum",
    "payment_status": "confirmed",
    "txid": "0xabc",
}
PAYOUT: dict[str, Any] = {
    "id": "out_1",
    "recipient_wallet": "0x52908400098527886E0F7030069857D2E4169EE7",
    "cryptocurrency": "USDT_POL",
    "amount_usd": 12.34,
    "amount_crypto": 1e-7,
    "status": "completed",
    "metadata": {"intent_id": "intent-1"},
}


def decoded(reply: dict[str, Any]) -> dict[str, Any]:
    return decode_object(json.dumps(reply).encode(), 10**6)


def changed(base: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {name: value for name, value in {**base, **fields}.items() if value is not ...}


@pytest.mark.parametrize("fields", [PUBLISHED, OLDER], ids=["published", "older"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda fields: fields,
        lambda fields: {"success": True, "payment": fields, "usage": {"current": 45}},
        lambda fields: {"success": True, "data": {"payment": fields}},
        lambda fields: {"success": True, "data": fields, "error": None},
        lambda fields: {"invoice": fields},
        lambda fields: {"data": {"invoice": fields}},
    ],
    ids=["flat", "payment", "data.payment", "data", "invoice", "data.invoice"],
)
def test_one_payment_in_every_shape(fields: dict[str, Any], wrap: Any) -> None:
    invoice = read_invoice(decoded(wrap(fields)))
    assert (invoice.gateway_id, invoice.code, invoice.network) == ("pay_1", "ETH", "ethereum")
    assert (invoice.amount, invoice.amount_raw) == (45_600_000, "0.0456")
    assert (invoice.status, invoice.tx_hash) == (PaymentStatus.CONFIRMED, "0xabc")
    assert invoice.address == PUBLISHED["payment_address"]
    assert invoice.received is None


def test_what_only_the_published_shape_tells() -> None:
    invoice = read_invoice(decoded({"payment": changed(PUBLISHED, customer_paid_amount="0.04560000000999")}))
    assert (invoice.amount_uusd, invoice.order_id) == (100_000_000, "dep-1")
    assert (invoice.received, invoice.received_raw) == (45_600_000, "0.04560000000999")
    assert invoice.expires_at_ms == 1_795_000_000_250


def test_names_that_say_the_same_in_two_ways_agree() -> None:
    invoice = read_invoice(decoded(changed(PUBLISHED, customer_paid_amount="0.0500", received_amount=0.05)))
    assert invoice.received == 50_000_000


@pytest.mark.parametrize(
    "fields",
    [
        {"payment_id": "pay_2"},
        {"pay_address": "0x0"},
        {"pay_amount": "0.0457"},
        {"payment_status": "expired"},
        {"customer_paid_amount": "0.05", "received_amount": 0.06},
        {"txid": "0xabd"},
        {"id": ...},
        {"payment_address": ...},
        {"crypto_amount": ...},
        {"status": ...},
        {"blockchain": ...},
        {"blockchain": "eth"},
        {"blockchain": "ETH "},
        {"id": 1},
        {"id": ["pay_1"]},
        {"crypto_amount": True},
        {"crypto_amount": "0x1"},
        {"customer_paid_amount": "-0.05"},
        {"amount": 100.0000001},
        {"expires_at": 1_795_000_000},
        {"tx_hash": "<script>"},
        {"business_id": "a b"},
        {"metadata": []},
    ],
    ids=str,
)
def test_what_contradicts_itself_or_lacks_something_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadReply):
        read_invoice(decoded({"payment": changed(PUBLISHED, **fields)}))


@pytest.mark.parametrize(
    "fields", [{"coin": "USDX"}, {"network": "tron"}, {"coin": ...}, {"network": "solana"}], ids=str
)
def test_a_coin_on_a_network_where_it_is_not_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadReply):
        read_invoice(decoded(changed(OLDER, **fields)))


@pytest.mark.parametrize("asset", ASSETS, ids=str)
def test_every_asset_is_one_word_of_the_gateway_and_back(asset: tuple[str, str]) -> None:
    word, decimals = ASSETS[asset]
    invoice = read_invoice(decoded(changed(PUBLISHED, blockchain=word, crypto_amount="1.5")))
    assert (invoice.code, invoice.network) == asset
    assert invoice.amount == 15 * 10 ** (decimals - 1)


def test_words_without_a_network_are_those_of_ethereum() -> None:
    for code in ("USDT", "USDC"):
        assert read_invoice(decoded(changed(PUBLISHED, blockchain=code))).network == "ethereum"


@pytest.mark.parametrize("order", ["x y", "", 7, None, ["dep-1"], "a" * 129, {"a": 1}])
def test_metadata_of_others_is_not_ours(order: object) -> None:
    invoice = read_invoice(decoded(changed(PUBLISHED, metadata={"order_id": order})))
    assert invoice.order_id is None


def test_a_payout_is_read_and_its_coins_stay_text() -> None:
    payout = read_payout(decoded(PAYOUT))
    assert (payout.gateway_id, payout.intent_id, payout.status) == ("out_1", "intent-1", PayoutStatus.COMPLETED)
    assert (payout.code, payout.network, payout.amount_uusd) == ("USDT", "polygon", 12_340_000)
    # As JavaScript writes it; for the records only, so it need not be an amount.
    assert payout.amount_raw == "1e-07"


@pytest.mark.parametrize(
    "fields",
    [
        {"id": ...},
        {"amount_usd": ...},
        {"amount_usd": 1e-7},
        {"amount_usd": "0.0000001"},
        {"amount_usd": -1},
        {"status": ...},
        {"status": 3},
        {"cryptocurrency": "USDT_TRON"},
        {"recipient_wallet": ""},
        {"metadata": "intent-1"},
    ],
    ids=str,
)
def test_a_payout_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadReply):
        read_payout(decoded(changed(PAYOUT, **fields)))


def test_a_list_is_read_in_both_shapes_and_never_longer_than_asked() -> None:
    rows = {"payouts": [PAYOUT, PAYOUT], "total": 2}
    assert len(read_payouts(decoded(rows), 2)) == len(read_payouts(decoded({"data": rows}), 2)) == 2
    for reply in (decoded(rows), {}, {"payouts": {}}, {"payouts": None}):
        with pytest.raises(BadReply):
            read_payouts(reply, 1)


@given(st.text())
def test_shown_texts_are_visible_and_short(text: str) -> None:
    shown = printable(text, 20)
    assert len(shown) <= 20
    assert all(" " <= each <= "~" for each in shown)


@given(st.dictionaries(st.sampled_from([*PUBLISHED, *OLDER]), st.none() | st.integers() | st.text() | st.just("ETH")))
def test_any_fields_are_a_payment_or_refused(fields: dict[str, Any]) -> None:
    try:
        invoice = read_invoice(decoded({**PUBLISHED, **fields}))
    except BadReply:
        return
    assert type(invoice.amount) is int
    assert invoice.amount >= 0
