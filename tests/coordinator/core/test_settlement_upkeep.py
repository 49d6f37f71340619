"""The ledger over time: outages extend leases, budgets come and go by the day, drift stops money and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from coordinator.core.money import MoneyRefused
from coordinator.core.settlement import DAY_MS
from coordinator.core.settlement_upkeep import GAP_MS_MAX
from coordinator.store import heads, journal
from coordinator.store.db import DATABASE_NAME
from coordinator.store.ledger_check import check_file
from protocol.envelope import open_record, sign_record
from protocol.ledger import available, sponsor
from protocol.money_records import LeaseRecord, LeaseRequestRecord, LedgerHeadRecord
from protocol.records import Signed
from tests.helpers_claims import credited_in
from tests.helpers_coordinator import Served, WallClock, make_key, serving
from tests.helpers_fake_gateway import fake_gateway
from tests.helpers_money import Market, balance, read_signed, refused
from tests.helpers_money_in_and_out import free
from tests.helpers_payments_served import paid_serving

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000
MINUTE_MS = 60_000


async def count(served: Served, kind: str) -> int:
    async with served.app.core.database.reader() as reader:
        rows = await reader.execute_fetchall("SELECT count(*) FROM entries WHERE kind = ?", (kind,))
    return int(next(iter(rows))[0])


async def test_time_in_which_the_coordinator_was_down_is_added_to_every_lease(tmp_path: Path, clock: WallClock) -> None:
    async with serving(tmp_path, clock) as served:
        market = await Market.opened(served)
        lease = await market.lease()
        before_ms = (await market.row(lease)).claim_by_ms
    clock.offset_ms += 20 * HOUR_MS
    async with serving(tmp_path, clock) as served:
        market = market.moved(served)
        row = await market.row(lease)
        assert not row.is_closed, "the outage has ended no lease"
        listed = (await market.provider.post("leases/list", {"role": "provider"})).json()["data"]
        assert 20 * HOUR_MS <= listed[0]["claim_by_ms"] - before_ms < 20 * HOUR_MS + 60_000
        assert (await market.claim(lease, 10)).claimed_uusd == 10


async def test_an_outage_before_a_lease_was_opened_does_not_prolong_it(tmp_path: Path, clock: WallClock) -> None:
    async with serving(tmp_path, clock):
        pass
    clock.offset_ms += 20 * HOUR_MS
    async with serving(tmp_path, clock) as served:
        market = await Market.opened(served)
        lease = await market.lease()
        end_ms = (await market.row(lease)).claim_by_ms
        while served.clock() <= end_ms:
            clock.offset_ms += GAP_MS_MAX - 1000
            await served.app.core.settlement_upkeep.tick()
        assert (await market.row(lease)).is_closed


async def test_a_short_pause_is_no_outage(tmp_path: Path, clock: WallClock) -> None:
    async with serving(tmp_path, clock):
        pass
    clock.offset_ms += GAP_MS_MAX - 5_000
    async with serving(tmp_path, clock) as served:
        assert await count(served, "resume") == 0


async def test_time_in_which_the_ledger_was_stopped_counts_as_outage(tmp_path: Path, clock: WallClock) -> None:
    async with serving(tmp_path, clock) as served:
        served.app.core.settlement.stop_because("a test says so")
        clock.offset_ms += HOUR_MS
        await served.app.core.settlement_upkeep.tick()
        assert await count(served, "resume") == 0
    async with serving(tmp_path, clock) as served:
        assert await count(served, "resume") == 1
        assert HOUR_MS <= served.app.core.settlement.downtime_ms < HOUR_MS + 60_000


async def test_while_the_journals_disk_is_full_money_stands_still_and_then_goes_on_without_a_restart(
    tmp_path: Path, clock: WallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, clock) as served:
        market, upkeep = await Market.opened(served), served.app.core.settlement_upkeep
        lease = await market.lease()
        full = FullDisk()
        monkeypatch.setattr(journal, "os", full)
        full.is_full = True
        # It is in the database, and yet nobody is told so before it is in the journal, too.
        claim = market.claim_of(lease, 10)
        assert (await market.send(claim)).status_code == 503
        assert refused(await market.send(claim)) == (503, "ledger_stopped")
        clock.offset_ms += HOUR_MS
        await upkeep.tick()
        assert refused(await market.send(claim)) == (503, "ledger_stopped")
        assert (await market.provider.register()).status_code == 200
        full.is_full = False
        await upkeep.tick()
        assert credited_in(read_signed(await market.send(claim))).claimed_uusd == 10
        assert await count(served, "resume") == 1
        assert served.app.core.settlement.downtime_ms >= HOUR_MS, "nobody could claim meanwhile"
        await upkeep.check()
        assert served.app.core.settlement.stopped_because is None
        entries = await count(served, "claim")
    assert entries == 1
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection:
        kept = [row[0] for row in connection.execute("SELECT head FROM entries ORDER BY number")]
    assert [head for _, head in journal.read_journal(tmp_path / "ledger.journal")] == kept


async def test_what_is_on_its_way_when_money_is_stopped_is_not_answered(served: Served) -> None:
    """A claim that came twice: the first has met the full disk, and the second must not hear that all is well."""
    market, settlement = await Market.opened(served), served.app.core.settlement
    lease = await market.lease()
    provider, claim, request = market.provider.key.node, market.claim_of(lease, 10), market.request()
    for call in (
        lambda: settlement.claim(provider, claim),
        lambda: settlement.claim_many(provider, [claim]),
        lambda: settlement.open_lease(market.client.key.node, request),
    ):
        on_its_way = asyncio.ensure_future(call())
        await asyncio.sleep(0)
        settlement.pause_because("a test says so")
        with pytest.raises(MoneyRefused, match="nothing is lost"):
            await on_its_way
        settlement.pause_because(None)
        assert await call()


async def test_nothing_is_sent_that_the_journal_does_not_know(
    tmp_path: Path, clock: WallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_gateway() as fake:
        async with paid_serving(tmp_path, fake, clock) as paid:
            await paid.with_address()
            await paid.work()
            await paid.payouts.stop()  # the test works in its place
            full = FullDisk()
            monkeypatch.setattr(journal, "os", full)
            full.is_full = True
            order = await paid.post("payouts/request", amount_usd="5.00", request_id="one")
            assert order.status_code == 503, "in the database and not in the journal, so nobody is told"
            await paid.work(MINUTE_MS)
            assert not paid.fake.history("payout_created")
            # Nor by the loop, which does not even begin.
            assert paid.payouts._is_stopped()
            assert paid.deposits._is_stopped()
            full.is_full = False
            await paid.served.app.core.settlement_upkeep.tick()
            payout = await paid.payout(request_id="one")
            await paid.work(MINUTE_MS)
            assert paid.sends_of(payout) == 1


async def test_an_order_that_the_journal_lacks_is_not_told_to_who_asks_again(tmp_path: Path, clock: WallClock) -> None:
    with fake_gateway() as fake:
        async with paid_serving(tmp_path, fake, clock) as paid:
            await paid.with_address()
            await paid.payouts.stop()
            node, settlement = paid.client.key.node, paid.served.app.core.settlement
            for number in ("one", "one"):  # a new order, and the same once more
                on_its_way = asyncio.ensure_future(paid.payouts.request(node, number, 5_000_000, None, free))
                await asyncio.sleep(0)
                settlement.pause_because("a test says so")
                with pytest.raises(MoneyRefused, match="nothing is lost"):
                    await on_its_way
                settlement.pause_because(None)
                await paid.payouts.request(node, "one", 5_000_000, None, free)


async def test_no_head_is_signed_of_what_the_journal_does_not_know(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    market, upkeep = await Market.opened(served), served.app.core.settlement_upkeep
    lease = await market.lease()
    await upkeep.sign_head()
    before, full = entry_of(upkeep.head), FullDisk()
    monkeypatch.setattr(journal, "os", full)
    full.is_full = True
    # The entry and the question for the head may share a batch, or not.
    claim = asyncio.ensure_future(market.send(market.claim_of(lease, 10)))
    while not claim.done():
        with contextlib.suppress(sqlite3.OperationalError):
            await upkeep.sign_head()
    assert claim.result().status_code == 503
    await upkeep.sign_head()
    assert entry_of(upkeep.head) == before
    async with served.app.core.database.reader() as reader:
        assert entry_of(await heads.select_newest(reader)) == before
    full.is_full = False
    await upkeep.tick()
    await upkeep.sign_head()
    assert entry_of(upkeep.head) == before + 1


def entry_of(head: Signed | None) -> int:
    assert head is not None
    return open_record(head, LedgerHeadRecord).entry


class FullDisk:
    """Stands for `os` in the journal; what it writes finds no room while `is_full`."""

    is_full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, file: int, data: bytes) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(file, data)


async def test_a_clock_that_jumps_ahead_and_back_ends_no_lease(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    for jump_ms in (HOUR_MS * 3, -HOUR_MS * 3, HOUR_MS * 3):
        served.clock.offset_ms += jump_ms
        await served.app.core.settlement_upkeep.tick()
        assert not (await market.row(lease)).is_closed


async def test_the_budget_of_the_public_chat_comes_once_a_day_and_its_rest_goes_back(
    tmp_path: Path, clock: WallClock
) -> None:
    async with serving(tmp_path, clock, sponsor_budget_uusd=1_000_000) as served:
        upkeep, today = served.app.core.settlement_upkeep, served.clock() // DAY_MS
        for _ in range(3):
            await upkeep.tick()
        assert await balance(served, sponsor(today)) == 1_000_000
        clock.offset_ms += DAY_MS
        await upkeep.tick()
        assert await balance(served, sponsor(today)) == 0
        assert await balance(served, sponsor(today + 1)) == 1_000_000
        assert await balance(served, "treasury") == -1_000_000


async def test_the_coordinators_own_leases_are_paid_by_the_budget_of_the_day(tmp_path: Path, clock: WallClock) -> None:
    async with serving(tmp_path, clock, sponsor_budget_uusd=150_000) as served:
        market, key = await Market.opened(served), served.key
        today = served.clock() // DAY_MS

        async def ask(number: int) -> LeaseRecord:
            request = open_record(market.request(), LeaseRequestRecord)
            fields = {name: getattr(request, name) for name in request.__struct_fields__}
            own = LeaseRequestRecord(**{**fields, "client": key.node, "request": number.to_bytes(16, "big")})
            signed = await served.app.core.settlement.open_lease(key.node, sign_record(own, key))
            return open_record(signed, LeaseRecord)

        lease = await ask(1)
        assert await balance(served, sponsor(today)) == 50_000
        with pytest.raises(Exception, match=r"\$0.05 is available"):
            await ask(2)
        assert (await market.row(lease.lease)).account == sponsor(today)
        # After midnight nobody waits for the upkeep, and nothing is left over of a day that is gone.
        clock.offset_ms += DAY_MS
        lease = await ask(3)
        assert (await market.row(lease.lease)).account == sponsor(today + 1)
        await served.app.core.settlement_upkeep.tick()
        assert await balance(served, sponsor(today + 1)) == 50_000
        assert await balance(served, sponsor(today)) == 0
        assert await balance(served, "treasury") == -250_000


async def test_an_invariant_that_breaks_during_upkeep_stops_the_ledger(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep = served.app.core.settlement_upkeep

    async def broken() -> None:
        raise AssertionError("I1")

    await upkeep._quietly(broken)
    assert served.app.core.settlement.stopped_because == "an invariant does not hold: I1"


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE accounts SET balance = balance + 1 WHERE name LIKE 'available:%'",
        "UPDATE leases SET cap_uusd = cap_uusd + 1",
        "UPDATE leases SET claimed_uusd = claimed_uusd + 1",
        "UPDATE leases SET provider = payer",
        "UPDATE entries SET at_ms = at_ms + 1",
        "UPDATE entries SET kind = 'deposit'",
        "UPDATE entries SET reference = reference || 'x' WHERE number = 1",
        "UPDATE entries SET body = head WHERE number = 2",
        "UPDATE entries SET head = randomblob(32) WHERE number = 1",
        "DELETE FROM entries WHERE number = 2",
        "UPDATE postings SET amount = amount * 2",
        "UPDATE postings SET amount = 9223372036854775807",
        "UPDATE accounts SET balance = 9223372036854775807",
        "DELETE FROM postings WHERE entry = 1",
        "UPDATE settlement SET value = value + 1 WHERE name = 'downtime_ms'",
    ],
)
@pytest.mark.parametrize("replays", [True, False])
async def test_whatever_differs_on_disk_is_found_at_the_start_and_stops_money_alone(
    tmp_path: Path, clock: WallClock, harm: str, replays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not replays:
        if any(word in harm for word in ("provider = payer", "downtime", "reference")):
            pytest.skip("found only by deciding everything again")
        monkeypatch.setitem(check_file.__kwdefaults__, "replayed_entries_max", 0)
    async with serving(tmp_path, clock) as served:
        market = await Market.opened(served)
        await market.claim(await market.lease(), 10)
        clock.offset_ms += HOUR_MS
        await served.app.core.settlement_upkeep.tick()
        await served.app.core.settlement_upkeep.check()
        assert served.app.core.settlement.stopped_because is None
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute(harm)
        connection.commit()
    async with serving(tmp_path, clock) as served:
        assert served.app.core.settlement.stopped_because is not None
        assert (await market.moved(served).client.post("wallet", {})).status_code == 503
        assert (await served.http.get("/api/health")).status_code == 200


async def test_heads_are_kept_one_for_each_number(served: Served) -> None:
    market = await Market.opened(served)
    upkeep = served.app.core.settlement_upkeep
    await upkeep.sign_head()
    assert upkeep.head is not None
    first = open_record(upkeep.head, LedgerHeadRecord)
    await upkeep.sign_head()
    await market.lease()
    await upkeep.sign_head()
    second = open_record(upkeep.head, LedgerHeadRecord)
    assert second.entry == first.entry + 1
    async with served.app.core.database.reader() as reader:
        rows = await reader.execute_fetchall("SELECT entry FROM heads ORDER BY entry")
    assert [row[0] for row in rows][-2:] == [first.entry, second.entry]


async def test_leases_end_a_bounded_number_at_a_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.core.settlement_upkeep.EXPIRED_AT_ONCE_MAX", 2)
    monkeypatch.setattr("coordinator.core.settlement_upkeep.GAP_MS_MAX", 2**40)
    market = await Market.opened(served)
    for _ in range(5):
        await market.lease(payer=make_key())
    served.clock.offset_ms += 5 * HOUR_MS
    for ended in (2, 4, 5, 5):
        await served.app.core.settlement_upkeep.tick()
        assert await count(served, "expire-lease") == ended
    assert await balance(served, available(market.client.key.node)) == 1_000_000
