"""M7: thousands of payouts, a gateway that does not answer three times in ten, crashes between any two steps.

No intent leaves the gateway more than once, and every one of them ends. Where a person has to decide, the test looks
into the gateway's book, as the person would.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.store.db import open_database
from coordinator.store.ledger_check import check_file
from tests.helpers_fake_gateway import FakeGatewayProcess, fake_gateway
from tests.helpers_gateway_double import Crash, Rates
from tests.helpers_money_in_and_out import MoneyHouse, free, nodes
from tests.helpers_payments_served import Paid, paid_serving

pytestmark = pytest.mark.anyio

MINUTE_MS = 60_000
CRASHES = 0.01
AMOUNT_UUSD = 1_000_000


def rates(crashes: float) -> Rates:
    """Three calls in ten get no answer, and half of those have had their effect."""
    return Rates(silent=0.15, lost=0.15, refused=0.05, failed=0.05, crash=crashes, list_fails=0.1)


async def live(home: Path, keys: int, rounds: int, seed: int, crashes: float = CRASHES) -> MoneyHouse:
    """Each key orders one payout a round; work goes on until all have ended."""
    house = MoneyHouse(open_database(home), seed, crash_rate=crashes)
    dice = random.Random(seed)
    try:
        everybody = nodes(keys)
        await house.fund(everybody, rounds * AMOUNT_UUSD)
        house.gateway.rates = rates(crashes)
        for number in range(rounds):
            for node in everybody:
                await _order(house, node, str(number))
            await _work_until_ended(house, dice)
        await _assert_all_left_once(house, keys * rounds)
    finally:
        await house.database.close()
    check_file(house.database.path)
    return house


async def _order(house: MoneyHouse, node: object, number: str) -> None:
    while True:
        try:
            await house.payouts.request(node, number, AMOUNT_UUSD, None, free)  # type: ignore[arg-type]  # a NodeId
        except Crash:
            house.restart()
        else:
            return


async def _work_until_ended(house: MoneyHouse, dice: random.Random) -> None:
    for _ in range(600):
        house.now_ms += dice.choice((1, MINUTE_MS, 11 * MINUTE_MS))
        await house.work()
        await _let_a_person_decide(house)
        if await house.read("SELECT count(*) FROM payout_intents WHERE ended_ms IS NULL") == [(0,)]:
            return
    raise AssertionError(f"some payouts have not ended: {await house.read('SELECT * FROM payout_intents')}")


async def _let_a_person_decide(house: MoneyHouse) -> None:
    waiting = "SELECT intent FROM payout_intents WHERE needs_person = 1 AND status = 'unknown'"
    for (intent,) in await house.read(waiting):
        sends = house.gateway.book.summary()["sends_of_intent"]
        try:
            await house.payouts.decide(intent, "sent" if sends.get(intent.hex()) else "return")
        except Crash:
            house.restart()
    assert await house.read("SELECT text FROM payments WHERE name = 'payouts_frozen_ms'") == []


async def _assert_all_left_once(house: MoneyHouse, payouts: int) -> None:
    sends = house.gateway.book.summary()["sends_of_intent"]
    assert max(sends.values()) == 1
    rows = await house.read("SELECT intent, status FROM payout_intents")
    assert len(rows) == payouts
    for intent, status in rows:
        assert sends.get(intent.hex(), 0) == (1 if status == "confirmed" else 0), (intent.hex(), status)
    left = sum(status == "confirmed" for _, status in rows)
    back = await house.read("SELECT coalesce(sum(balance), 0) FROM accounts WHERE name LIKE 'available:%'")
    assert back == [((payouts - left) * AMOUNT_UUSD,)]
    assert await house.read("SELECT count(*) FROM accounts WHERE name LIKE 'payout:%' AND balance <> 0") == [(0,)]
    assert house.broken == []


@pytest.mark.slow
async def test_m7_every_payout_leaves_once_or_comes_back(tmp_path: Path) -> None:
    house = await live(tmp_path, 40, 5, 1)
    assert house.crashes > 3


@pytest.mark.nightly
async def test_m7_ten_thousand_payouts(tmp_path: Path) -> None:
    # Each start looks through all of the list, so that as many crashes as above would take an hour.
    await live(tmp_path, 400, 25, 2, crashes=0.002)


# ---------------------------------------------------------------- a sample over real HTTP


@pytest.fixture
def fake() -> Iterator[FakeGatewayProcess]:
    with fake_gateway("--seed", "7") as running:
        yield running


@pytest.mark.slow
async def test_m7_over_http_with_a_gateway_that_fails(tmp_path: Path, fake: FakeGatewayProcess) -> None:
    async with paid_serving(tmp_path, fake, payouts_per_day_and_key_uusd=1_000_000_000) as paid:
        await paid.with_address()
        faults = {"error_before": 0.15, "error_after": 0.1, "close": 0.1, "malformed": 0.05}
        fake.tell("rates", rates={"create_payout": faults}, seed=3)
        ordered = []
        for _ in range(25):
            payout = await paid.payout("1.00")
            ordered.append(payout)
            await _until_ended(paid, payout)
        sends = [paid.sends_of(payout) for payout in ordered]
        assert set(sends) <= {0, 1}
        states = [await paid.state_of(payout) for payout in ordered]
        assert [state == "confirmed" for state in states] == [bool(count) for count in sends]
        assert await paid.available() == 100_000_000 - 1_000_000 * sum(sends)


async def _until_ended(paid: Paid, payout: dict[str, object]) -> None:
    for _ in range(20):
        state = await paid.state_of(payout)
        if state in ("confirmed", "failed"):
            return
        await paid.work(11 * MINUTE_MS)
    raise AssertionError(f"{payout['id']} is still {state}")
