"""Payouts at work, where only the disk and the gateway remember: backups that are older, disks that fail."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.core.money import MoneyRefused
from coordinator.payments.gateway import GatewayUnclear, Payout, PayoutListing, PayoutRequest
from coordinator.payments.payout_rules import PayoutState
from coordinator.store import payouts
from coordinator.store.db import open_database
from protocol.formats.coins import find_pair
from tests.helpers_gateway_double import Crash, Rates
from tests.helpers_money_in_and_out import MoneyHouse, free, nodes

pytestmark = pytest.mark.anyio

MINUTE_MS = 60_000
(NODE,) = nodes(1)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[MoneyHouse]:
    house = MoneyHouse(open_database(tmp_path))
    await house.fund([NODE], 10_000_000)
    await house.work()
    yield house
    await house.database.close()


async def ordered(house: MoneyHouse, number: str = "one") -> bytes:
    return (await house.payouts.request(NODE, number, 4_000_000, None, free)).intent


async def state_of(house: MoneyHouse, intent: bytes) -> str:
    return str((await house.read("SELECT status FROM payout_intents WHERE intent = ?", intent))[0][0])


async def frozen(house: MoneyHouse) -> str:
    rows = await house.read("SELECT text FROM payments WHERE name = 'payouts_frozen_ms'")
    return str(rows[0][0]) if rows else ""


def sends(house: MoneyHouse, intent: bytes) -> int:
    return house.gateway.book.summary()["sends_of_intent"].get(intent.hex(), 0)


async def test_a_row_that_is_older_than_what_the_gateway_has_done_is_not_sent_again(house: MoneyHouse) -> None:
    intent = await ordered(house)
    before = (await house.read("SELECT * FROM payout_intents"))[0]
    await house.work()
    assert (await state_of(house, intent), sends(house, intent)) == ("confirmed", 1)

    def restore(tx: sqlite3.Connection) -> None:
        # A backup of the moment before, and no journal that tells of the rest.
        tx.execute("DELETE FROM payout_intents")
        tx.execute(f"INSERT INTO payout_intents VALUES ({', '.join('?' * len(before))})", before)
        tx.execute("UPDATE payouts SET is_resolved = 0")

    await house.database.write(restore)
    house.restart()
    await house.work()
    await house.work()
    assert (await state_of(house, intent), sends(house, intent)) == ("queued", 1)
    assert "nobody here has ordered" in await frozen(house)


async def test_what_the_ledger_has_resolved_is_not_sent(house: MoneyHouse) -> None:
    intent = await ordered(house)
    await house.work()
    await house.database.write(lambda tx: tx.execute("DROP TRIGGER payout_intents_end_once"))
    await house.database.write(
        lambda tx: tx.execute("UPDATE payout_intents SET status = 'queued', ended_ms = NULL, next_ms = 0")
    )
    house.now_ms += 1
    await house.work()
    assert sends(house, intent) == 1
    assert "not set aside" in await frozen(house)


@pytest.mark.parametrize(("decision", "left"), [("return", 10_000_000), ("sent", 6_000_000)])
async def test_money_set_aside_for_nobodys_order_waits_for_a_person(
    house: MoneyHouse, decision: str, left: int
) -> None:
    intent = await ordered(house)
    await house.database.write(lambda tx: tx.execute("DELETE FROM payout_intents"))
    house.restart()
    await house.work()
    assert "was a backup restored" in await frozen(house)
    with pytest.raises(MoneyRefused, match="nobody knows any more"):
        await house.payouts.decide(intent, "resend")
    await house.payouts.decide(intent, decision)
    await house.payouts.unfreeze()
    await house.work()
    assert await house.available_to(NODE) == left
    assert await frozen(house) == ""
    with pytest.raises(MoneyRefused):
        await house.payouts.decide(intent, decision)


async def test_nothing_is_sent_before_the_gateways_list_was_seen(house: MoneyHouse) -> None:
    house.restart()
    intent = await ordered(house)
    house.gateway.rates = Rates(list_fails=1.0)
    await house.work()
    assert (await state_of(house, intent), sends(house, intent)) == ("queued", 0)
    house.gateway.rates = Rates()
    await house.work()
    assert (await state_of(house, intent), sends(house, intent)) == ("confirmed", 1)


async def test_a_disk_that_fails_after_the_gateway_has_sent_leaves_it_unknown(
    house: MoneyHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent = await ordered(house)
    real = payouts.update

    def full(tx: sqlite3.Connection, row: payouts.Intent) -> None:
        if row.status is not PayoutState.SENDING:
            raise sqlite3.OperationalError("database or disk is full")
        real(tx, row)

    with monkeypatch.context() as broken:
        broken.setattr(payouts, "update", full)
        with pytest.raises(sqlite3.OperationalError):
            await house.payouts.work()
    assert (await state_of(house, intent), sends(house, intent)) == ("sending", 1)
    await house.work()
    assert (await state_of(house, intent), sends(house, intent)) == ("confirmed", 1)
    assert await house.available_to(NODE) == 6_000_000


@pytest.mark.parametrize("is_answered", [True, False])
async def test_a_number_that_the_gateway_gives_twice_stops_payouts_and_not_the_ledger(
    house: MoneyHouse, is_answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await ordered(house)
    await house.work()
    taken = (await house.read("SELECT gateway_id FROM payout_intents"))[0][0]
    create, listing = house.gateway.create_payout, house.gateway.list_payouts

    async def create_payout(request: PayoutRequest) -> Payout:
        answer = replace(await create(request), gateway_id=taken)
        if not is_answered:
            raise GatewayUnclear("timeout")
        return answer

    async def list_payouts(**how: int) -> PayoutListing:
        told = await listing(**how)
        rows = [replace(row, gateway_id=taken) if row.intent_id != first.hex() else row for row in told.payouts]
        return replace(told, payouts=tuple(rows))

    monkeypatch.setattr(house.gateway, "create_payout", create_payout)
    monkeypatch.setattr(house.gateway, "list_payouts", list_payouts)
    second = await ordered(house, "two")
    for _ in range(3):
        await house.payouts.work()
        house.now_ms += 61 * MINUTE_MS
    assert house.broken == []
    assert (await state_of(house, second), sends(house, second)) == ("unknown", 1)
    assert "the number of another payout" in await frozen(house)
    assert await house.read("SELECT needs_person, ended_ms FROM payout_intents WHERE intent = ?", second) == [(1, None)]
    assert await house.available_to(NODE) == 2_000_000
    # And a person ends it.
    await house.payouts.decide(second, "sent")
    await house.payouts.unfreeze()
    assert await state_of(house, second) == "confirmed"
    assert await house.available_to(NODE) == 2_000_000


@pytest.mark.parametrize(
    ("outcome", "status", "decision"), [("completed", "queued", "sent"), ("failed", "sent", "return")]
)
async def test_a_row_that_is_older_than_its_end_in_the_ledger_is_ended_by_a_person(
    house: MoneyHouse, outcome: str, status: str, decision: str
) -> None:
    """A backup of the time before, and a journal that has brought the ledger forward."""
    house.gateway.rates = Rates(failed=float(outcome == "failed"))
    intent = await ordered(house)
    await house.work()
    left = await house.available_to(NODE)
    await house.database.write(lambda tx: tx.execute("DROP TRIGGER payout_intents_end_once"))
    await house.database.write(
        lambda tx: tx.execute("UPDATE payout_intents SET status = ?, ended_ms = NULL, next_ms = 0", (status,))
    )
    # The gateway says now what the ledger does not have.
    next(iter(house.gateway.book.payouts.values())).status = "completed"
    house.restart()
    house.now_ms += MINUTE_MS
    for _ in range(3):
        await house.payouts.work()
        house.now_ms += 61 * MINUTE_MS
    assert house.broken == [], "the ledger is in order, and money goes on"
    assert await frozen(house)
    assert await state_of(house, intent) == ("queued" if status == "queued" else "unknown")
    for other in {"sent", "return", "resend"} - {decision}:
        with pytest.raises(MoneyRefused, match=f"can be decided is `{decision}`"):
            await house.payouts.decide(intent, other)
    await house.payouts.decide(intent, decision)
    for _ in range(2):  # that it was sent after its money had been given back is one more thing to look at
        await house.payouts.strays()
        await house.payouts.unfreeze()
        await house.payouts.work()
    assert await frozen(house) == "" or decision == "return"
    await house.payouts.strays()
    await house.payouts.unfreeze()
    assert await state_of(house, intent) == ("confirmed" if decision == "sent" else "failed")
    assert await house.available_to(NODE) == left
    # The key may be paid out again.
    house.gateway.rates = Rates()
    second = await ordered(house, "two")
    await house.work()
    assert sends(house, second) == (await state_of(house, second) == "confirmed")


@pytest.mark.parametrize("is_done", [False, True])
async def test_a_crash_while_it_is_sent_is_looked_for(
    house: MoneyHouse, is_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent, real = await ordered(house), house.gateway.create_payout

    async def crash(request: PayoutRequest) -> Payout:
        if is_done:
            await real(request)
        raise Crash

    with monkeypatch.context() as broken:
        broken.setattr(house.gateway, "create_payout", crash)
        with pytest.raises(Crash):
            await house.payouts.work()
    house.restart()
    await house.work()
    assert sends(house, intent) == (1 if is_done else 0)
    for _ in range(5):
        house.now_ms += 11 * MINUTE_MS
        await house.work()
    assert (await state_of(house, intent), sends(house, intent)) == ("confirmed", 1)


async def test_an_address_may_change_while_a_payout_waits_and_it_goes_where_it_was_ordered_to(
    house: MoneyHouse,
) -> None:
    intent = await ordered(house)
    await house.database.write(lambda tx: tx.execute("DELETE FROM payout_addresses"))
    await house.work()
    assert await state_of(house, intent) == "confirmed"
    with pytest.raises(MoneyRefused, match="no address"):
        await ordered(house, "two")


async def test_one_that_the_gateway_refuses_day_after_day_is_given_back_once(house: MoneyHouse) -> None:
    house.gateway.rates = Rates(refused=1.0)
    intent = await ordered(house)
    for _ in range(3):
        await house.work()
        house.now_ms += 24 * 60 * MINUTE_MS
    assert (await state_of(house, intent), await house.available_to(NODE)) == ("queued", 6_000_000)
    for decision in ("sent", "resend"):
        with pytest.raises(MoneyRefused, match="this payout is queued"):
            await house.payouts.decide(intent, decision)
    await house.payouts.decide(intent, "return")
    assert (await state_of(house, intent), await house.available_to(NODE)) == ("failed", 10_000_000)
    house.gateway.rates = Rates()
    await house.work()
    with pytest.raises(MoneyRefused, match="this payout is failed"):
        await house.payouts.decide(intent, "return")
    assert (sends(house, intent), await house.available_to(NODE)) == (0, 10_000_000)


async def test_one_is_not_given_back_while_it_is_being_sent(house: MoneyHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    intent, real = await ordered(house), house.gateway.create_payout
    decisions: list[asyncio.Task[object]] = []

    async def decided_meanwhile(request: PayoutRequest) -> Payout:
        decisions.append(asyncio.ensure_future(house.payouts.decide(intent, "return")))
        await asyncio.sleep(0)
        return await real(request)

    monkeypatch.setattr(house.gateway, "create_payout", decided_meanwhile)
    await house.payouts.work()
    with pytest.raises(MoneyRefused, match="this payout is confirmed"):
        await decisions[0]
    assert (sends(house, intent), await house.available_to(NODE)) == (1, 6_000_000)


async def test_another_payout_under_the_same_number_is_a_conflict(house: MoneyHouse) -> None:
    base, bitcoin = find_pair("USDC", "base"), find_pair("BTC")
    first = await house.payouts.request(NODE, "one", 4_000_000, base, free)
    for amount, pair in ((None, None), (4_000_000, base), (4_000_000, None), (None, base)):
        assert await house.payouts.request(NODE, "one", amount, pair, free) == first
    for amount, pair in (
        (4_000_001, base),
        (4_000_000, bitcoin),
        (None, bitcoin),
        (None, find_pair("USDC", "polygon")),
    ):
        with pytest.raises(MoneyRefused, match="another payout"):
            await house.payouts.request(NODE, "one", amount, pair, free)
    assert await house.available_to(NODE) == 6_000_000


async def test_whoever_cannot_be_paid_out_just_now_keeps_nobody_from_it(
    house: MoneyHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has had its share of the day, one has an address that does not hold yet; one at a time is paid out."""
    _, waiting, other = nodes(3)
    await house.fund([waiting, other], 10_000_000)
    await house.database.write(
        lambda tx: tx.execute(
            "UPDATE payout_addresses SET active_from_ms = ?, default_from_ms = ? WHERE node = ?",
            (house.now_ms + MINUTE_MS * 600, house.now_ms + MINUTE_MS * 600, waiting),
        )
    )
    monkeypatch.setattr("coordinator.payments.payouts.AUTOMATIC_AT_ONCE_MAX", 1)
    house.payouts._limits = replace(house.payouts._limits, automatic=1_000_000, per_day_and_key=5_000_000)
    for _ in range(3):
        await house.payouts.work()
        house.now_ms += 61 * MINUTE_MS
    left = [await house.available_to(node) for node in (NODE, waiting, other)]
    assert left == [5_000_000, 10_000_000, 5_000_000]


async def test_what_comes_after_a_person_has_looked_is_not_taken_for_looked_at(house: MoneyHouse) -> None:
    house.gateway.book.move(1, house.now_ms // 1000)
    house.now_ms += 61 * MINUTE_MS
    await house.work()
    (first,) = await house.payouts.strays()
    house.gateway.book.move(1, house.now_ms // 1000)
    house.now_ms += 61 * MINUTE_MS
    await house.work()
    with pytest.raises(MoneyRefused, match="nobody has looked at"):
        await house.payouts.unfreeze()
    assert await frozen(house)
    (second,) = await house.payouts.strays()
    assert first.gateway_id != second.gateway_id
    # Nor does a restart forget what is to be looked at.
    house.restart()
    with pytest.raises(MoneyRefused, match="nobody has looked at"):
        await house.payouts.unfreeze()
    assert await house.payouts.strays() == [second]
    await house.payouts.unfreeze()
    house.now_ms += 61 * MINUTE_MS
    await house.work()
    assert (await frozen(house), await house.payouts.strays()) == ("", [])
