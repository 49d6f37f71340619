"""Deposits at work, where only the disk and the gateway remember: crashes, disks that fail, a gateway that repeats."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.core.money import MoneyRefused
from coordinator.payments.deposit_rules import Deposit, Limits, Stage
from coordinator.payments.gateway import Invoice
from coordinator.store import deposits
from coordinator.store.db import open_database
from protocol.formats.coins import PAIRS
from protocol.ledger import Deposit as Command
from tests.helpers_coordinator import until
from tests.helpers_gateway_double import Crash, Rates
from tests.helpers_money_in_and_out import MoneyHouse, free, nodes

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000
(NODE,) = nodes(1)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[MoneyHouse]:
    house = MoneyHouse(open_database(tmp_path))
    yield house
    await house.database.close()


async def made(house: MoneyHouse, number: str = "one") -> Deposit:
    return await house.deposits.create(NODE, number, 5_000_000, PAIRS[0], free)


async def paid(house: MoneyHouse, number: str = "one") -> Deposit:
    deposit = await made(house, number)
    assert deposit.gateway_id is not None
    payment = house.gateway.book.payments[deposit.gateway_id]
    if not payment.received:
        house.gateway.book.pay(payment.id, "exact")
    payment.status = "confirmed"
    return deposit


@pytest.mark.parametrize("point", range(12))
async def test_a_crash_at_any_commit_credits_once_in_the_end(house: MoneyHouse, point: int) -> None:
    """Each write may be gone before or after its commit; what comes after starts anew."""
    disk = house._disk
    calls = 0

    class At:
        def random(self) -> float:
            nonlocal calls
            calls += 1
            return 0.0 if calls - 1 == point else 1.0

    disk._dice, disk.rate = At(), 0.5  # type: ignore[assignment]  # dice that fall as they must
    for _ in range(6):
        try:
            deposit = await paid(house)
            house.now_ms += HOUR_MS
            await house.deposits.poll_due()
        except Crash:
            house.restart()
    assert await house.available_to(NODE) == 5_000_000
    assert (await made(house)).deposit == deposit.deposit


async def test_a_disk_that_fails_credits_nothing_and_later_once(
    house: MoneyHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await paid(house)
    house.now_ms += HOUR_MS
    real = deposits.update

    def full(tx: sqlite3.Connection, row: Deposit) -> None:
        if row.stage is Stage.CREDITED:
            raise sqlite3.OperationalError("database or disk is full")
        real(tx, row)

    with monkeypatch.context() as broken:
        broken.setattr(deposits, "update", full)
        with pytest.raises(sqlite3.OperationalError):
            await house.deposits.poll_due()
    assert await house.available_to(NODE) == 0
    await house.deposits.poll_due()
    assert await house.available_to(NODE) == 5_000_000


async def test_a_deposit_that_the_ledger_has_credited_is_not_credited_after_an_older_backup(house: MoneyHouse) -> None:
    await paid(house)
    before = (await house.read("SELECT * FROM deposits"))[0]
    house.now_ms += HOUR_MS
    await house.deposits.poll_due()
    # The journal has brought back the entry, and not the row.
    await house.database.write(lambda tx: tx.execute("DELETE FROM deposits"))
    places = ", ".join("?" * len(before))
    await house.database.write(lambda tx: tx.execute(f"INSERT INTO deposits VALUES ({places})", before))
    house.restart()
    await house.deposits.poll_due()
    assert await house.available_to(NODE) == 5_000_000
    assert await house.read("SELECT stage FROM deposits") == [("credited",)]


@pytest.mark.parametrize("was_held", [True, False])
async def test_a_deposit_that_was_held_or_not_is_as_it_was_after_an_older_backup(
    house: MoneyHouse, was_held: bool
) -> None:
    """What an hour may bring unseen has changed since, or what came within it."""
    deposit = await paid(house)
    before = (await house.read("SELECT * FROM deposits"))[0]
    limits = Limits(1, 1), house.deposits._limits
    house.deposits._limits = limits[not was_held]
    house.now_ms += HOUR_MS
    await house.deposits.poll_due()
    stage, there = ("held", 0) if was_held else ("credited", 5_000_000)
    assert await house.read("SELECT stage FROM deposits") == [(stage,)]
    await house.database.write(lambda tx: tx.execute("DELETE FROM deposits"))
    places = ", ".join("?" * len(before))
    await house.database.write(lambda tx: tx.execute(f"INSERT INTO deposits VALUES ({places})", before))
    house.restart()
    house.deposits._limits = limits[was_held]
    await house.deposits.poll_due()
    assert await house.read("SELECT stage, credited_uusd FROM deposits") == [(stage, 5_000_000)]
    assert await house.available_to(NODE) == there
    if was_held:
        await house.deposits.release(deposit.deposit)
    assert await house.available_to(NODE) == 5_000_000
    assert await house.read("SELECT count(*) FROM entries WHERE kind = 'deposit'") == [(1,)]


async def test_another_amount_than_the_ledger_has_goes_to_a_person(house: MoneyHouse) -> None:
    deposit = await paid(house)
    await house.database.write(
        lambda tx: house.deposits._ledger.command(
            tx, Command(deposit.gateway_id or "", NODE, deposit.pair.asset, 1, 1, 0), house.now_ms
        )
    )
    house.now_ms += HOUR_MS
    await house.deposits.poll_due()
    assert await house.read("SELECT stage, credited_uusd FROM deposits") == [("review", 0)]
    assert await house.available_to(NODE) == 1


async def test_a_payment_that_the_gateway_gives_twice_is_taken_once(house: MoneyHouse) -> None:
    first = await made(house)
    assert first.gateway_id is not None
    again = house.gateway._invoice(first.gateway_id)

    async def same(_request: object) -> object:
        return again

    house.gateway.create_invoice = same  # type: ignore[method-assign, assignment]  # a gateway that repeats itself
    with pytest.raises(MoneyRefused, match="twice"):
        await made(house, "two")


async def test_an_invoice_that_is_just_being_made_is_not_made_twice(house: MoneyHouse) -> None:
    deposit = await made(house)
    await house.database.write(
        lambda tx: tx.execute(
            "UPDATE deposits SET stage = 'new', gateway_id = NULL, address = NULL, expected_units = NULL"
        )
    )
    house.deposits._creating.add(deposit.deposit)
    with pytest.raises(MoneyRefused, match="just being made"):
        await made(house)
    house.deposits._creating.clear()
    assert (await made(house)).stage is Stage.OPEN


async def test_a_gateway_that_cannot_be_asked_is_asked_again_and_again(house: MoneyHouse) -> None:
    await paid(house)
    house.gateway.rates = Rates(silent=1.0)
    for _ in range(10):
        house.now_ms += HOUR_MS
        await house.deposits.poll_due()
    assert await house.available_to(NODE) == 0
    house.gateway.rates = Rates()
    house.now_ms += HOUR_MS
    await house.deposits.poll_due()
    assert await house.available_to(NODE) == 5_000_000


async def test_while_the_ledger_stands_still_nothing_is_credited_and_the_disk_is_left_alone(
    house: MoneyHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await paid(house)
    house.now_ms += HOUR_MS
    house.stopped = True
    house.restart()
    waits: list[float] = []
    real, real_wait = house.gateway.get_invoice, house.deposits._wait_s

    async def wait_s() -> float:
        waits.append(await real_wait())
        return waits[-1]

    monkeypatch.setattr(house.deposits, "_wait_s", wait_s)
    house.deposits.start()
    await until(lambda: waits)
    await house.deposits.stop()
    assert waits[0] >= 1, "what is due and cannot be asked about is no reason to turn without a pause"
    assert house.gateway.gets == 0

    async def stops_meanwhile(gateway_id: str) -> Invoice:
        house.stopped = True
        return await real(gateway_id)

    house.stopped = False
    monkeypatch.setattr(house.gateway, "get_invoice", stops_meanwhile)
    assert await house.deposits.poll_due() == 1
    assert await house.available_to(NODE) == 0
    house.stopped = False
    monkeypatch.setattr(house.gateway, "get_invoice", real)
    assert await house.deposits.poll_due() == 1
    assert await house.available_to(NODE) == 5_000_000
