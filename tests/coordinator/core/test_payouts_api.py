"""Payouts over real HTTP, beside a fake gateway over real HTTP: where money goes, and that it goes once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coordinator.store import payout_addresses
from coordinator.store.payout_addresses import ADDRESSES_PER_KEY_MAX
from protocol.formats.addresses import Address
from protocol.formats.addresses.base58check import RIPPLE_ALPHABET, encode_check
from protocol.formats.coins import find_pair
from protocol.ids import NodeId
from tests.helpers_coordinator import NodeClient, WallClock, make_key, until
from tests.helpers_fake_gateway import FakeGatewayProcess, fake_gateway
from tests.helpers_money import balance, deposit, refused
from tests.helpers_payments import x_address
from tests.helpers_payments_served import (
    BTC_ADDRESS,
    DAY_MS,
    EVM_ADDRESS,
    HOUR_MS,
    OTHER_ADDRESS,
    Paid,
    paid_serving,
)

pytestmark = pytest.mark.anyio

MINUTE_MS = 60_000
XRP_ADDRESS = encode_check(b"\x00" + bytes(range(1, 21)), RIPPLE_ALPHABET)


@pytest.fixture
def fake() -> Iterator[FakeGatewayProcess]:
    with fake_gateway() as running:
        yield running


@pytest.fixture
async def paid(tmp_path: Path, fake: FakeGatewayProcess, clock: WallClock) -> AsyncIterator[Paid]:
    async with paid_serving(tmp_path, fake, clock) as running:
        yield running


def held(payout: dict[str, Any]) -> str:
    return f"payout:{payout['id']}"


# ---------------------------------------------------------------- addresses


async def test_an_address_holds_after_a_day_and_the_old_one_until_then(paid: Paid) -> None:
    first = await paid.data("payouts/set", coin="usdc", network="base", address=EVM_ADDRESS.lower())
    assert (first["row"]["address"], first["row"]["is_default"]) == (EVM_ADDRESS, False)
    paid.pass_time(DAY_MS + 1000)
    await paid.data("payouts/set", coin="BTC", address=BTC_ADDRESS)
    rows = (await paid.data("payouts/list"))["rows"]
    assert [(row["coin"], row["is_default"]) for row in rows] == [("USDC", True), ("BTC", False)]
    paid.pass_time(DAY_MS + 1000)
    rows = (await paid.data("payouts/list"))["rows"]
    assert [(row["coin"], row["is_default"]) for row in rows] == [("BTC", True), ("USDC", False)]
    # One that holds already is chosen at once.
    await paid.data("payouts/set", coin="USDC", network="base", address=EVM_ADDRESS)
    rows = (await paid.data("payouts/list"))["rows"]
    assert [row["coin"] for row in rows if row["is_default"]] == ["USDC"]


async def test_an_address_is_removed_at_once_and_the_one_before_it_is_the_default(paid: Paid) -> None:
    for address in (EVM_ADDRESS, OTHER_ADDRESS):
        await paid.data("payouts/set", coin="USDC", network="base", address=address)
        paid.pass_time(DAY_MS + 1000)
    removed = await paid.data("payouts/remove", coin="USDC", network="base", address=OTHER_ADDRESS)
    assert removed["row"]["address"] == OTHER_ADDRESS
    rows = (await paid.data("payouts/list"))["rows"]
    assert [(row["address"], row["is_default"]) for row in rows] == [(EVM_ADDRESS, True)]
    gone = await paid.post("payouts/remove", coin="USDC", network="base", address=OTHER_ADDRESS)
    assert refused(gone) == (404, "unknown_address")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"coin": "BTC", "address": "mainnet"}, "bad_address"),
        ({"coin": "USDC", "network": "base", "address": EVM_ADDRESS[:-1] + "e"}, "bad_address"),
        ({"coin": "BTC", "address": EVM_ADDRESS}, "bad_address"),
        ({"coin": "XRP", "address": x_address(bytes(range(1, 21)), 1, 7)}, "destination_tag"),
        ({"coin": "LTC", "address": EVM_ADDRESS}, "unsupported_coin"),
        ({"coin": "USDC", "network": "base", "address": EVM_ADDRESS, "key": "x"}, "bad_request"),
    ],
)
async def test_what_cannot_be_paid_to_is_no_address(paid: Paid, body: dict[str, str], code: str) -> None:
    answer = await paid.client.post("payouts/set", body)
    assert refused(answer) == (400, code)
    assert (await paid.data("payouts/list"))["rows"] == []


async def test_warnings_come_with_the_address(paid: Paid) -> None:
    row = (await paid.data("payouts/set", coin="XRP", address=XRP_ADDRESS))["row"]
    assert row["warnings"] == ["tag_missing"]


async def test_only_the_payout_key_changes_an_address_and_it_is_named_once(paid: Paid) -> None:
    node, cold = paid.client.key.node.hex(), NodeClient(paid.served, make_key(77))
    await paid.data("payouts/key", payout_key=cold.key.node.hex())
    body = {"coin": "USDC", "network": "base", "address": EVM_ADDRESS}
    assert refused(await paid.client.post("payouts/set", body)) == (403, "wrong_payout_key")
    thief = NodeClient(paid.served)
    await thief.register()
    assert refused(await thief.post("payouts/set", {**body, "key": node})) == (403, "wrong_payout_key")
    # The payout key itself need not be registered.
    assert (await cold.post("payouts/set", {**body, "key": node})).status_code == 200
    again = await paid.post("payouts/key", payout_key=thief.key.node.hex())
    assert refused(again) == (409, "conflict")
    listed = await paid.data("payouts/list")
    assert listed["payout_key"] == cold.key.node.hex()
    assert [row["set_by"] for row in listed["rows"]] == [cold.key.node.hex()]
    assert refused(await cold.post("payouts/remove", body)) == (403, "wrong_payout_key")


async def test_the_first_address_fixes_the_node_key_as_payout_key(paid: Paid) -> None:
    await paid.data("payouts/set", coin="USDC", network="base", address=EVM_ADDRESS)
    answer = await paid.post("payouts/key", payout_key=make_key(77).node.hex())
    assert refused(answer) == (409, "conflict")


async def test_what_is_refused_fixes_no_payout_key(paid: Paid) -> None:
    body = {"coin": "USDC", "network": "base", "address": EVM_ADDRESS}
    assert refused(await paid.client.post("payouts/remove", body)) == (404, "unknown_address")
    for number in range(ADDRESSES_PER_KEY_MAX):
        await paid.served.app.core.database.write(partial(_put_address, paid.client.key.node, number))
    assert refused(await paid.client.post("payouts/set", body)) == (409, "too_many_addresses")
    cold = make_key(77).node.hex()
    assert (await paid.data("payouts/key", payout_key=cold))["payout_key"] == cold


def _put_address(node: NodeId, number: int, tx: sqlite3.Connection) -> None:
    address = Address(f"address {number}", f"account {number}")
    payout_addresses.put(tx, node, find_pair("BTC", None), address, node, 0, 0)


async def test_a_payout_key_with_which_nobody_can_sign_is_refused(paid: Paid) -> None:
    address = {"coin": "USDC", "network": "base", "address": EVM_ADDRESS}
    for key in ("00" * 32, "ff" * 32, "00" * 31 + "05", "0" * 63, "A" * 64, ""):
        assert refused(await paid.post("payouts/key", payout_key=key)) == (400, "bad_request")
        assert refused(await paid.client.post("payouts/set", {**address, "key": key})) == (400, "bad_request")
    cold = make_key(77).node.hex()
    assert (await paid.data("payouts/key", payout_key=cold))["payout_key"] == cold


async def test_r8_version_1_changes_no_address_and_orders_no_payout(paid: Paid) -> None:
    """R8: what was signed named no coordinator, and was good at every one."""
    await paid.with_address()
    old = NodeClient(paid.served, paid.client.key, version=1)
    address = {"coin": "USDC", "network": "base", "address": EVM_ADDRESS}
    for route, body in (
        ("payouts/set", {**address, "address": OTHER_ADDRESS}),
        ("payouts/remove", address),
        ("payouts/key", {"payout_key": old.key.node.hex()}),
        ("payouts/request", {"amount_usd": "5.00"}),
    ):
        assert refused(await old.post(route, body)) == (401, "auth_version")
    rows = (await old.post("payouts/list", {})).json()["data"]["rows"]
    assert [row["address"] for row in rows] == [EVM_ADDRESS]
    assert await paid.available() == 100_000_000


@pytest.mark.parametrize("route", ["set", "remove", "key", "request"])
async def test_a_word_that_is_not_known_is_no_payout_of_everything(paid: Paid, route: str) -> None:
    await paid.with_address()
    address = {"coin": "USDC", "network": "base", "address": EVM_ADDRESS}
    key = {"payout_key": paid.client.key.node.hex()}
    good: dict[str, dict[str, str]] = {"set": address, "remove": address, "key": key, "request": {}}
    answer = await paid.client.post(f"payouts/{route}", {**good[route], "amount_used": "5.00"})
    assert refused(answer) == (400, "bad_request")
    assert [row["address"] for row in (await paid.data("payouts/list"))["rows"]] == [EVM_ADDRESS]
    assert await paid.available() == 100_000_000


# ---------------------------------------------------------------- orders


async def test_a_payout_leaves_the_wallet_first_and_the_gateway_once(paid: Paid) -> None:
    await paid.with_address(10_000_000)
    payout = await paid.payout("4.00", request_id="one")
    assert await paid.available() == 6_000_000
    await paid.work()
    assert (await paid.state_of(payout), paid.sends_of(payout)) == ("confirmed", 1)
    assert await balance(paid.served, held(payout)) == 0
    again = await paid.payout("4.00", request_id="one")
    assert again["id"] == payout["id"]
    await paid.work(HOUR_MS)
    assert paid.sends_of(payout) == 1
    assert await paid.available() == 6_000_000
    assert (await paid.data("wallet"))["withdrawn_uusd"] == 4_000_000
    rows = (await paid.data("payments/list"))["rows"]
    assert [(row["direction"], row["status"], row["amount_usd"]) for row in rows] == [("outbound", "confirmed", "4.00")]
    assert rows[0]["tx_hash"]


async def test_r1_a_request_that_comes_a_hundred_times_at_once_is_one_payout(paid: Paid) -> None:
    """R1: each repetition made another payment."""
    await paid.with_address(10_000_000)
    answers = await asyncio.gather(
        *(paid.post("payouts/request", amount_usd="1.00", request_id="same") for _ in range(100))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["data"]["payout"]["id"] for answer in answers}) == 1
    await paid.work()
    await paid.work(HOUR_MS)
    assert list(paid.fake.book()["sends_of_intent"].values()) == [1]
    assert await paid.available() == 9_000_000


async def test_without_an_amount_all_whole_cents_leave_and_the_rest_stays(paid: Paid) -> None:
    await paid.with_address(7_654_321)
    payout = (await paid.data("payouts/request"))["payout"]
    assert payout["amount_usd"] == "7.65"
    assert await paid.available() == 4_321


async def test_what_cannot_be_paid_out_is_refused_and_moves_nothing(paid: Paid) -> None:
    await deposit(paid.served, paid.client.key.node, 20_000_000)
    assert refused(await paid.post("payouts/request", amount_usd="5.00")) == (409, "no_payout_address")
    await paid.data("payouts/set", coin="USDC", network="base", address=EVM_ADDRESS)
    assert refused(await paid.post("payouts/request", amount_usd="5.00")) == (409, "no_payout_address")
    paid.pass_time(DAY_MS + 1000)
    for body, expected in (
        ({"amount_usd": "5.001"}, (400, "bad_amount")),
        ({"amount_usd": "0.99"}, (400, "bad_amount")),
        ({"amount": "5.00"}, (400, "bad_request")),
        ({"amount_usd": "20.01"}, (402, "insufficient_funds")),
        ({"amount_usd": "501.00"}, (429, "payout_limit")),
        ({"amount_usd": "5.00", "coin": "BTC"}, (409, "no_payout_address")),
        ({"amount_usd": "5.00", "network": "bitcoin"}, (400, "bad_request")),
    ):
        assert refused(await paid.client.post("payouts/request", body)) == expected
    assert await paid.available() == 20_000_000


async def test_a_key_has_one_payout_on_its_way_and_so_much_a_day(tmp_path: Path, fake: FakeGatewayProcess) -> None:
    async with paid_serving(tmp_path, fake, payouts_per_day_and_key_uusd=8_000_000) as paid:
        await paid.with_address()
        await paid.payout("5.00")
        assert refused(await paid.post("payouts/request", amount_usd="1.00")) == (409, "payout_in_flight")
        await paid.work()
        assert refused(await paid.post("payouts/request", amount_usd="4.00")) == (429, "payout_limit")
        rest = (await paid.data("payouts/request"))["payout"]
        assert rest["amount_usd"] == "3.00"
        await paid.work(DAY_MS + HOUR_MS)
        await paid.payout("8.00")


async def test_all_keys_together_are_paid_so_much_a_day(tmp_path: Path, fake: FakeGatewayProcess) -> None:
    async with paid_serving(tmp_path, fake, payouts_per_day_uusd=6_000_000) as paid:
        other = Paid(paid.served, fake, NodeClient(paid.served))
        await other.client.register()
        await deposit(paid.served, other.client.key.node, 100_000_000)
        await other.data("payouts/set", coin="USDC", network="base", address=OTHER_ADDRESS)
        await paid.with_address()
        await paid.payout("4.00")
        assert refused(await other.post("payouts/request", amount_usd="2.01")) == (429, "payout_limit")
        await other.payout("2.00")


async def test_who_has_enough_is_paid_without_asking_where_that_is_configured(
    tmp_path: Path, fake: FakeGatewayProcess
) -> None:
    async with paid_serving(tmp_path, fake, payout_automatic_uusd=10_000_000) as paid:
        await paid.with_address(12_345_678)
        await paid.work(HOUR_MS)
        assert await paid.available() == 5_678
        rows = (await paid.data("payments/list"))["rows"]
        assert [(row["amount_usd"], row["status"]) for row in rows] == [("12.34", "confirmed")]


# ---------------------------------------------------------------- when the gateway fails


async def test_a_definite_refusal_gives_the_money_back(paid: Paid) -> None:
    await paid.with_address(10_000_000)
    paid.fake.fault("create_payout", "refuse", status=400)
    payout = await paid.payout()
    await paid.work()
    assert await paid.state_of(payout) == "failed"
    assert await paid.available() == 10_000_000
    assert paid.sends_of(payout) == 0


async def test_a_payout_that_failed_at_the_gateway_comes_back(paid: Paid) -> None:
    await paid.with_address(10_000_000)
    paid.fake.fault("create_payout", "outcome", status="failed")
    payout = await paid.payout()
    await paid.work()
    assert (await paid.state_of(payout), await paid.available()) == ("failed", 10_000_000)


@pytest.mark.parametrize("kind", ["error_after", "close", "cut", "malformed"])
async def test_an_unclear_answer_is_looked_for_and_never_sent_again(paid: Paid, kind: str) -> None:
    await paid.with_address(10_000_000)
    paid.fake.fault("create_payout", kind)
    payout = await paid.payout()
    await paid.work()
    assert (await paid.state_of(payout), paid.sends_of(payout)) == ("confirmed", 1)
    assert await paid.available() == 5_000_000


async def test_one_that_was_never_sent_is_sent_after_three_lists_over_half_an_hour(paid: Paid) -> None:
    await paid.with_address(10_000_000)
    paid.fake.fault("create_payout", "error_before")
    payout = await paid.payout()
    await paid.work()
    for _ in range(2):
        assert (await paid.state_of(payout), paid.sends_of(payout)) == ("unknown", 0)
        await paid.work(11 * MINUTE_MS)
    assert (await paid.state_of(payout), paid.sends_of(payout)) == ("unknown", 0)
    await paid.work(11 * MINUTE_MS)
    await paid.work()
    assert (await paid.state_of(payout), paid.sends_of(payout)) == ("confirmed", 1)


async def test_above_the_limit_a_person_decides(tmp_path: Path, fake: FakeGatewayProcess) -> None:
    async with paid_serving(tmp_path, fake, payout_resend_uusd_max=4_999_999) as paid:
        await paid.with_address(10_000_000)
        fake.fault("create_payout", "error_before")
        payout = await paid.payout()
        for _ in range(8):
            await paid.work(11 * MINUTE_MS)
        assert (await paid.state_of(payout), paid.sends_of(payout)) == ("unknown", 0)
        await paid.payouts.decide(bytes.fromhex(payout["id"]), "return")
        assert (await paid.state_of(payout), await paid.available()) == ("failed", 10_000_000)


async def test_what_the_gateway_does_not_know_is_confirmed_by_its_list_later(paid: Paid) -> None:
    await paid.with_address(10_000_000)
    paid.fake.fault("create_payout", "outcome", status="indeterminate")
    payout = await paid.payout()
    await paid.work()
    assert await paid.state_of(payout) == "unknown"
    identity = next(event["payout_id"] for event in paid.fake.history("payout"))
    paid.fake.tell("payout", payout_id=identity, status="completed", sent=True)
    await paid.work(11 * MINUTE_MS)
    assert (await paid.state_of(payout), paid.sends_of(payout)) == ("confirmed", 1)


async def test_a_row_that_nobody_ordered_stops_payouts_and_not_deposits(paid: Paid) -> None:
    await paid.with_address(10_000_000)
    await paid.work()
    paid.fake.fault("list_payouts", "grow", times=1)
    await paid.work(HOUR_MS)
    await paid.work(HOUR_MS)
    assert refused(await paid.post("payouts/request", amount_usd="5.00")) == (503, "payouts_frozen")
    health = (await paid.served.http.get("/api/health")).json()["payments"]
    assert "nobody here has ordered" in health["payouts_frozen"]
    await paid.invoice()
    await paid.payouts.strays()
    await paid.payouts.unfreeze()
    payout = await paid.payout()
    await paid.work(HOUR_MS)
    assert await paid.state_of(payout) == "confirmed"


async def test_a_payout_that_vanishes_from_the_list_stops_payouts(paid: Paid) -> None:
    await paid.with_address(10_000_000)
    await paid.payout()
    await paid.work()
    paid.fake.fault("list_payouts", "forget", times=1)
    await paid.work(HOUR_MS)
    await paid.work(HOUR_MS)
    assert refused(await paid.post("payouts/request", amount_usd="1.00")) == (503, "payouts_frozen")


async def test_what_was_interrupted_while_it_was_sent_is_unknown_after_the_restart(
    tmp_path: Path, fake: FakeGatewayProcess
) -> None:
    clock, key = WallClock(), make_key()
    async with paid_serving(tmp_path, fake, clock, key) as paid:
        await paid.with_address(10_000_000)
        fake.fault("create_payout", "timeout")
        payout = await paid.payout()
        work = asyncio.create_task(paid.work())
        await until(lambda: fake.history("payout"), "the gateway has sent it")
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    async with paid_serving(tmp_path, fake, clock, key) as paid:
        await paid.work()
        assert (await paid.state_of(payout), paid.sends_of(payout)) == ("confirmed", 1)
        assert await paid.available() == 5_000_000
