"""M6: many thousand webhooks, doubled, late, lost, forged and in any order: what is credited is what was paid."""

from __future__ import annotations

import asyncio
import contextlib
import random
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from coordinator.core.money import MoneyRefused
from coordinator.payments.call_budget import CallBudget, Purpose
from coordinator.payments.gateway import Invoice
from coordinator.payments.webhook import WebhookRefused
from coordinator.store.db import open_database
from coordinator.store.ledger_check import check_file
from protocol.formats.coins import PAIRS
from tests.fake_gateway import SECRET
from tests.helpers_fake_gateway_book import plain
from tests.helpers_fake_gateway_webhooks import sign
from tests.helpers_money_in_and_out import MoneyHouse, free, nodes

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000
# A key may have twenty invoices a day that were not paid.
INVOICES_PER_KEY = 10
COPIES = 5
AT_ONCE = 200
STEPS = ("detected", "confirmed", "forwarded", "expired")


def webhook(payment: str, status: str, number: int) -> bytes:
    body = {"type": f"payment.{status}", "data": {"payment_id": payment, "status": status, "n": number}}
    return msgspec.json.encode(body)


async def deliver(house: MoneyHouse, letters: list[tuple[str, bytes]]) -> int:
    """Bring them all, many at once; how many were refused."""

    async def one(signature: str, body: bytes) -> bool:
        try:
            await house.deposits.receive([signature], [], body)
        except WebhookRefused:
            return True
        return False

    refused = 0
    for start in range(0, len(letters), AT_ONCE):
        refused += sum(await asyncio.gather(*(one(*letter) for letter in letters[start : start + AT_ONCE])))
    return refused


async def live(home: Path, payments: int, seed: int) -> tuple[int, int]:
    """Make invoices, pay some of them somehow, tell of it badly, ask by the clock; returns letters and refusals."""
    dice = random.Random(seed)
    house = MoneyHouse(open_database(home), seed)
    try:
        return await _live(house, payments, dice)
    finally:
        await house.database.close()
        check_file(house.database.path)


async def _live(house: MoneyHouse, payments: int, dice: random.Random) -> tuple[int, int]:
    book, keys = house.gateway.book, nodes(payments // INVOICES_PER_KEY)
    for number in range(payments):
        pair = dice.choice(PAIRS)
        await house.deposits.create(
            keys[number % len(keys)], str(number), dice.randrange(1, 9_999) * 10_000, pair, free
        )
        house.now_ms += 24 * HOUR_MS // payments
    letters: list[tuple[str, bytes]] = []
    for number, payment in enumerate(list(book.payments.values())):
        how = dice.choice(("exact", "exact", "over", "under", "", plain(payment.amount * Decimal("0.995"))))
        if how:
            book.pay(payment.id, how)
        if payment.is_funded:
            payment.status = "forwarded"
        elif dice.random() < 0.5:
            payment.status = "expired"
        for status in STEPS:
            body = webhook(payment.id, status, number)
            signature = sign(SECRET, house.now_ms // 1000, body)
            letters += [(signature, body)] * COPIES
    letters = [letter for letter in letters if dice.random() >= 0.2]  # a fifth is lost
    forged = [_forged(dice, letter, house.now_ms) for letter in letters if dice.random() < 0.1]
    letters += forged
    dice.shuffle(letters)
    late = letters[: len(letters) // 10]
    refused = await deliver(house, letters[len(late) :])
    await house.deposits.poll_due()
    for _ in range(24):
        house.now_ms += 3 * HOUR_MS + HOUR_MS // 2
        await house.deposits.poll_due()
    # Three days later nobody believes what was signed then.
    assert await deliver(house, late) == len(late)
    for _ in range(12):
        house.now_ms += 12 * HOUR_MS
        await house.deposits.poll_due()
    assert refused == len([letter for letter in letters[len(late) :] if letter in set(forged)])
    await _assert_credited_is_paid(house)
    assert await house.read("SELECT count(*) FROM deposits WHERE next_poll_ms IS NOT NULL") == [(0,)]
    return len(letters), refused


def _forged(dice: random.Random, letter: tuple[str, bytes], now_ms: int) -> tuple[str, bytes]:
    signature, body = letter
    match dice.randrange(3):
        case 0:
            return signature, body + b" "
        case 1:
            return sign("somebody else's", now_ms // 1000, body), body
    return sign(SECRET, now_ms // 1000 - 301, body), body


async def _assert_credited_is_paid(house: MoneyHouse) -> None:
    """To the unit, for each payment, against what the gateway's own book says was paid."""
    rows = await house.read(
        """
        SELECT gateway_id, code, network, amount_uusd, expected_raw, received_units, credited_uusd, stage
        FROM deposits
        """
    )
    decimals = {(pair.code, pair.network): pair.ledger_decimals for pair in PAIRS}
    total = 0
    for gateway_id, code, network, amount_uusd, expected_raw, received_units, credited_uusd, stage in rows:
        payment, scale = house.gateway.book.payments[gateway_id], Decimal(10) ** decimals[code, network]
        received, expected = int(payment.received * scale), int(Decimal(expected_raw) * scale)
        if payment.is_funded:
            assert stage == "credited"
            assert received_units == received
            assert credited_uusd == received * amount_uusd // expected
        else:
            assert stage in ("review", "closed")
            assert credited_uusd == 0
            assert (stage == "review") == (received > 0)
        total += credited_uusd
    balances = await house.read("SELECT sum(balance) FROM accounts WHERE name LIKE 'available:%'")
    assert balances == [(total,)]
    entries = await house.read("SELECT count(*), count(DISTINCT reference) FROM entries WHERE kind = 'deposit'")
    assert entries == [(sum(row[6] > 0 for row in rows),) * 2]


@pytest.mark.slow
async def test_m6_what_is_credited_is_what_was_paid(tmp_path: Path) -> None:
    letters, refused = await live(tmp_path, 150, 1)
    assert letters > 2_000
    assert refused > 100


@pytest.mark.nightly
async def test_m6_a_hundred_thousand_webhooks(tmp_path: Path) -> None:
    letters, _ = await live(tmp_path, 5_700, 2)
    assert letters >= 100_000


async def test_without_any_webhook_nothing_is_lost(tmp_path: Path) -> None:
    house = MoneyHouse(open_database(tmp_path), 3)
    try:
        (node,) = nodes(1)
        for number in range(10):
            await house.deposits.create(node, str(number), 5_000_000, PAIRS[number], free)
        for payment in house.gateway.book.payments.values():
            house.gateway.book.pay(payment.id, "exact")
            payment.status = "confirmed"
        house.gateway.rates.silent = 0.5
        for _ in range(60):
            house.now_ms += 10 * 60_000
            await house.deposits.poll_due()
        assert await house.available_to(node) == 50_000_000
    finally:
        await house.database.close()


async def test_the_gateway_is_asked_no_more_often_than_it_takes(tmp_path: Path) -> None:
    house = MoneyHouse(open_database(tmp_path), 4)
    try:
        for number, node in enumerate(nodes(200)):
            await house.deposits.create(node, str(number), 5_000_000, PAIRS[0], free)
        await _ask_within_limits(house)
    finally:
        await house.database.close()


async def _ask_within_limits(house: MoneyHouse) -> None:
    house.deposits._calls = CallBudget(lambda: house.now_ms / 1000)
    house.gateway.gets, asked = 0, []
    for _ in range(120):
        house.now_ms += 30_000
        await house.deposits.poll_due()
        asked.append(house.gateway.gets)
    assert asked[-1] <= 0.55 * 900
    per_minute = [later - earlier for earlier, later in zip(asked, asked[2:], strict=False)]
    assert max(per_minute) <= 0.55 * 90 + 1
    waiting = await house.read("SELECT min(polls), max(polls) FROM deposits")
    assert waiting[0][0] >= 1


async def test_whoever_makes_throw_away_keys_delays_no_credit_of_which_a_webhook_tells(tmp_path: Path) -> None:
    house = MoneyHouse(open_database(tmp_path), 5)
    honest, *strangers = nodes(101)
    try:
        paid = await house.deposits.create(honest, "paid", 5_000_000, PAIRS[0], free)
        house.deposits._calls = house.payouts._calls = CallBudget(lambda: house.now_ms / 1000)
        for minute in range(15):
            for number in range(60):
                with contextlib.suppress(MoneyRefused):
                    await house.deposits.create(
                        strangers[number % 100], f"{minute}.{number}", 1_000_000, PAIRS[0], free
                    )
            await house.deposits.poll_due()
            house.now_ms += 60_000
        assert await house.read("SELECT count(*) FROM deposits WHERE next_poll_ms <= ?", house.now_ms) > [(100,)]
        await house.deposits.poll_due()
        while house.deposits._calls.take(Purpose.POLL) or house.deposits._calls.take(Purpose.INVOICE):
            pass
        assert paid.gateway_id is not None
        house.gateway.book.pay(paid.gateway_id, "exact")
        house.gateway.book.payments[paid.gateway_id].status = "confirmed"
        await house.deposits.poll_due()
        assert await house.available_to(honest) == 0, "its turn may be hours away"
        body = webhook(paid.gateway_id, "confirmed", 1)
        assert await deliver(house, [(sign(SECRET, house.now_ms // 1000, body), body)]) == 0
        await house.deposits.poll_due()
        assert await house.available_to(honest) == 5_000_000
    finally:
        await house.database.close()


async def test_a_webhook_that_comes_while_others_are_asked_about_is_next(tmp_path: Path) -> None:
    house = MoneyHouse(open_database(tmp_path), 6)
    (node,), asked, real = nodes(1), [], house.gateway.get_invoice
    try:
        rows = [await house.deposits.create(node, str(number), 5_000_000, PAIRS[0], free) for number in range(10)]
        last = rows[-1].gateway_id
        assert last is not None

        async def get_invoice(gateway_id: str) -> Invoice:
            asked.append(gateway_id)
            told = await real(gateway_id)
            if len(asked) == 2:
                house.gateway.book.pay(last, "exact")
                house.gateway.book.payments[last].status = "confirmed"
                body = webhook(last, "confirmed", 1)
                await deliver(house, [(sign(SECRET, house.now_ms // 1000, body), body)])
            return told

        house.gateway.get_invoice = get_invoice  # type: ignore[method-assign]  # a webhook comes meanwhile
        house.now_ms += HOUR_MS
        await house.deposits.poll_due()
        assert asked[2] == last
        assert await house.available_to(node) == 5_000_000
        assert len(asked) == 10
    finally:
        await house.database.close()
