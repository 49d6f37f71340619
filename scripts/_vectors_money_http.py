"""Vectors of specs/07: bodies of requests about money, and what they are answered.

Written by hand: what is answered is the page's word. A test sends each to a coordinator that is really served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from _vectors_common import PROVIDER, Vector, file, invalid, valid

BASE_ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
OTHER_BASE_ADDRESS = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"
BITCOIN_ADDRESS = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
# Account 1 to 20 in bytes, with tag 7, as an X-address.
TAGGED_ADDRESS = "X7TiBbkpU3ZqUnpEh2XKnYLRPVD1G5Mhf95H5h6BYVmmgpS"
DAY_S = 24 * 60 * 60

INVOICE = (
    *("invoiceId", "payAddress", "amount", "coin", "network", "expiresAt", "hostedUrl", "amountUsd", "status"),
    *("receivedAmount", "creditedUsd", "isManual", "createdAt"),
)
PAYMENT = (
    *("id", "direction", "coin", "network", "amount", "amount_usd", "status", "state", "address", "tx_hash"),
    *("invoice_id", "created_at", "confirmed_at"),
)
ADDRESS = (
    *("id", "coin", "network", "address", "is_default", "active_at", "default_at", "set_at", "set_by", "warnings"),
)
WALLET = (
    *("available_uusd", "locked_uusd", "spent_uusd", "earned_uusd", "fees_uusd", "relayed_uusd"),
    *("payout_pending_uusd", "withdrawn_uusd"),
)
MOVEMENT = ("entry", "at_ms", "kind", "amount_uusd", "payment")


def money_http() -> Vector:
    """money-http.json."""
    return file(
        "Bodies of POST requests below /api/v1/node/, sent in this order, `after_s` seconds after the one before, by "
        "one client that has 20 dollars at first, to a coordinator whose smallest deposit and payout are one dollar. "
        "An answer has `status`; a refusal has `code`, and changes nothing. In an answer that is none, the object at "
        "`at` (names and indices, from the whole answer) has exactly the keys `has`. With `repeats` it is of the same "
        "invoice or payout as the answer before.",
        [*_reading(), *_deposits(), *_addresses(), *_payouts()],
    )


def _sent(route: str, body: object, **more: Any) -> Vector:
    text = body if isinstance(body, str) else json.dumps(body)
    return {"route": route, "body": text, **more}


def good(
    comment: str, route: str, body: object, at: tuple[str | int, ...], has: tuple[str, ...], **more: Any
) -> Vector:
    """What is answered with an object."""
    return valid(comment, **_sent(route, body, **more), status=200, at=list(at), has=sorted(has))


def bad(comment: str, route: str, body: object, status: int, code: str, **more: Any) -> Vector:
    """What is refused."""
    return invalid(comment, **_sent(route, body, **more), status=status, code=code)


def _reading() -> Iterator[Vector]:
    yield good("the wallet", "wallet", {}, ("data",), WALLET)
    yield good("where the money came from", "wallet/history", {"limit": 1}, ("data", 0), MOVEMENT)
    yield good("no leases", "leases/list", {"role": "client", "open": False}, (), ("data",))
    for comment, route, body in (
        ("a role that has no leases", "leases/list", {"role": "relay"}),
        ("no role", "leases/list", {}),
        ("a page of nothing", "leases/list", {"role": "client", "limit": 0}),
        ("a page that is too long", "leases/list", {"role": "client", "limit": 101}),
        ("a number as text", "leases/list", {"role": "client", "limit": "5"}),
        ("a fraction", "wallet/history", {"limit": 1.5}),
        ("before the first entry", "wallet/history", {"before": 0}),
        ("more than 63 bits", "wallet/history", {"before": 2**63}),
        ("a key that is not known", "wallet", {"role": "client"}),
        ("no object", "wallet", []),
        ("no JSON", "wallet", "{"),
        ("nothing", "wallet", ""),
    ):
        yield bad(comment, route, body, 400, "bad_request")


def _deposits() -> Iterator[Vector]:
    ask = {"amount_usd": "5.00", "coin": "USDC", "network": "base", "request_id": "one"}
    yield good("an invoice", "deposits", ask, ("data",), INVOICE)
    yield good("the same invoice", "deposits", ask, ("data",), INVOICE, repeats=True)
    yield good("a coin by its name alone", "deposits", {"amount_usd": "1", "coin": "usdc_base"}, ("data",), INVOICE)
    yield bad("another amount under one number", "deposits", {**ask, "amount_usd": "6.00"}, 409, "conflict")
    yield bad("another network under one number", "deposits", {**ask, "network": "solana"}, 409, "conflict")
    for comment, amount in (
        ("a part of a cent", "5.001"),
        ("nothing", "0.00"),
        ("less than nothing", "-5"),
        ("an exponent", "5e1"),
        ("no number", "NaN"),
        ("no digit before the point", ".5"),
        ("a comma", "5,00"),
        ("less than the smallest", "0.99"),
        ("digits of another script", "\u0665"),
    ):
        yield bad(comment, "deposits", {"amount_usd": amount, "coin": "BTC"}, 400, "bad_amount")
    for comment, coin, network in (
        ("a coin that is not taken", "LTC", None),
        ("a coin that is not on this network", "BTC", "base"),
        ("a stablecoin on a network where it is not taken", "USDT", "tron"),
        ("no name", "", None),
    ):
        wanted = {"amount_usd": "5.00", "coin": coin, "network": network}
        yield bad(comment, "deposits", wanted, 400, "unsupported_coin")
    for comment, body in (
        ("an amount that is no text", {**ask, "amount_usd": 5.0}),
        ("no amount", {"coin": "BTC"}),
        ("no coin", {"amount_usd": "5.00"}),
        ("a number with a space", {**ask, "request_id": "a b"}),
        ("an empty number", {**ask, "request_id": ""}),
        ("a number of 65 characters", {**ask, "request_id": "n" * 65}),
        ("a key that is not known", {**ask, "amount_used": "5.00"}),
    ):
        yield bad(comment, "deposits", body, 400, "bad_request")
    yield good("the newest invoice", "deposits/list", {"limit": 1}, ("data", "rows", 0), INVOICE)
    yield good("it is a payment, too", "payments/list", {"role": "client", "limit": 1}, ("data", "rows", 0), PAYMENT)
    yield good("more than there can be", "payments/list", {"limit": 1_000, "other": 1}, ("data",), ("rows",))
    yield bad("a page of nothing", "deposits/list", {"limit": 0}, 400, "bad_request")


def _addresses() -> Iterator[Vector]:
    base = {"coin": "USDC", "network": "base", "address": BASE_ADDRESS}
    yield bad("a payout to nowhere", "payouts/request", {"amount_usd": "5.00"}, 409, "no_payout_address")
    for comment, body, code in (
        ("a wrong checksum", {**base, "address": BASE_ADDRESS[:-1] + "e"}, "bad_address"),
        ("an address of another coin", {"coin": "BTC", "address": BASE_ADDRESS}, "bad_address"),
        ("no address", {"coin": "BTC", "address": "mainnet"}, "bad_address"),
        ("an address with a destination tag", {"coin": "XRP", "address": TAGGED_ADDRESS}, "destination_tag"),
        ("a coin that is not paid", {**base, "coin": "LTC"}, "unsupported_coin"),
        ("a key that is none", {**base, "key": "x"}, "bad_request"),
        ("a key in upper case", {**base, "key": PROVIDER.node.hex().upper()}, "bad_request"),
        ("an address that is too long", {**base, "address": "0" * 257}, "bad_request"),
        ("no network's name but a number", {**base, "network": 1}, "bad_request"),
        ("a key that is not known", {**base, "adress": OTHER_BASE_ADDRESS}, "bad_request"),
    ):
        yield bad(comment, "payouts/set", body, 400, code)
    somebody = {**base, "key": PROVIDER.node.hex()}
    yield bad("an address of somebody else", "payouts/set", somebody, 403, "wrong_payout_key")
    lower = {**base, "address": BASE_ADDRESS.lower()}
    yield good("an address in lower case, which has no checksum", "payouts/set", lower, ("data", "row"), ADDRESS)
    yield good("what is listed", "payouts/list", {"other": 1}, ("data",), ("rows", "payout_key"))
    yield bad("another payout key, afterwards", "payouts/key", {"payout_key": PROVIDER.node.hex()}, 409, "conflict")
    yield bad("a payout key that is none", "payouts/key", {"payout_key": "0" * 63}, 400, "bad_request")
    unknown = {"coin": "BTC", "address": BITCOIN_ADDRESS}
    yield bad("an address that is not there", "payouts/remove", unknown, 404, "unknown_address")


def _payouts() -> Iterator[Vector]:
    ask = {"amount_usd": "4.00", "request_id": "one"}
    yield bad("an hour too early", "payouts/request", ask, 409, "no_payout_address", after_s=DAY_S - 3_600)
    yield bad(
        "more than there is", "payouts/request", {"amount_usd": "20.01"}, 402, "insufficient_funds", after_s=3_660
    )
    for comment, body, status, code in (
        ("a part of a cent", {"amount_usd": "5.001"}, 400, "bad_amount"),
        ("less than the smallest", {"amount_usd": "0.99"}, 400, "bad_amount"),
        ("more than leaves in a day", {"amount_usd": "501.00"}, 429, "payout_limit"),
        ("in a coin without an address", {"amount_usd": "5.00", "coin": "BTC"}, 409, "no_payout_address"),
        ("an amount that is no text", {"amount_usd": 5}, 400, "bad_request"),
        ("a key that is not known", {"amount_used": "5.00"}, 400, "bad_request"),
    ):
        yield bad(comment, "payouts/request", body, status, code)
    yield good("a payout", "payouts/request", ask, ("data", "payout"), PAYMENT)
    yield good("the same payout", "payouts/request", ask, ("data", "payout"), PAYMENT, repeats=True)
    yield bad("another amount under one number", "payouts/request", {**ask, "amount_usd": "5.00"}, 409, "conflict")
    base = {"coin": "USDC", "network": "base", "address": BASE_ADDRESS}
    yield good("an address that is removed", "payouts/remove", base, ("data",), ("row", "deleted"))
