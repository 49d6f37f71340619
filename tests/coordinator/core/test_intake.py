"""Claims in batches: each gets its own answer, whatever else is in its batch, and the writer is not asked for each."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest

from coordinator.core import claim_checks, intake
from coordinator.core.http import ApiError
from coordinator.store.db import StoreClosed
from coordinator.store.ledger import LedgerTransaction
from protocol.claims import CheckedClaim, check_claim
from protocol.envelope import open_record
from protocol.ids import LeaseId
from protocol.ledger import available
from protocol.money_records import ClaimAckRecord
from protocol.records import Signed
from tests.helpers_claims import credited_in
from tests.helpers_coordinator import Served
from tests.helpers_money import Market, balance

pytestmark = pytest.mark.anyio


def claimed(outcome: Signed | ApiError, lease: LeaseId) -> int | str:
    return outcome.fields["code"] if isinstance(outcome, ApiError) else credited_in(outcome, lease).claimed_uusd


async def test_each_claim_of_a_batch_has_its_own_outcome_in_order(served: Served) -> None:
    market = await Market.opened(served)
    first, second = await market.lease(), await market.lease()
    forged = Signed(market.claim_of(first, 99).body, secrets.token_bytes(64))
    claims = [market.claim_of(first, 5), forged, market.claim_of(second, 7), market.claim_of(first, 6)]
    outcomes = await served.app.core.settlement.claim_many(market.provider.key.node, claims)
    # The word for the first lease is the last one that there is.
    leases = (first, first, second, first)
    found = [claimed(outcome, lease) for outcome, lease in zip(outcomes, leases, strict=True)]
    assert found == [6, "bad_signature", 7, 6]
    words = {outcome for outcome in outcomes if isinstance(outcome, Signed)}
    assert [credited.lease for credited in open_record(words.pop(), ClaimAckRecord).credited] == [first, second]
    assert words == set(), "one signature for all of them"
    assert await balance(served, available(market.provider.key.node)) == 13


async def test_many_claims_take_few_transactions(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    writes = 0
    write = served.app.core.database.write

    async def counted(closure: Any) -> Any:
        nonlocal writes
        writes += 1
        return await write(closure)

    served.app.core.database.write = counted  # type: ignore[method-assign]  # counts, and does the real thing
    claims = [market.claim_of(lease, paid) for paid in range(1, 301)]
    single = [served.app.core.settlement.claim(market.provider.key.node, claim) for claim in claims[:100]]
    await asyncio.gather(*single)
    assert writes <= 10
    outcomes = await served.app.core.settlement.claim_many(market.provider.key.node, claims)
    assert writes <= 14
    assert claimed(outcomes[-1], lease) == 300


async def test_one_that_breaks_an_invariant_takes_no_other_with_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = await Market.opened(served)
    lease, poisoned = await market.lease(), await market.lease()
    command = LedgerTransaction.command

    def broken(self: LedgerTransaction, asked: Any, at_ms: int) -> Any:
        verdict = command(self, asked, at_ms)
        assert asked.lease != poisoned, "a bug of ours"
        return verdict

    monkeypatch.setattr(LedgerTransaction, "command", broken)
    claims = [market.claim_of(lease, 5), market.claim_of(poisoned, 5), market.claim_of(lease, 6)]
    outcomes = await served.app.core.settlement.claim_many(market.provider.key.node, claims)
    assert [claimed(outcome, lease) for outcome in outcomes] == [6, "internal", 6]
    assert await balance(served, available(market.provider.key.node)) == 6
    monkeypatch.undo()
    assert (await market.claim(poisoned, 5)).claimed_uusd == 5


async def test_one_that_cannot_be_checked_for_a_fault_of_ours_takes_no_other_with_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    claims = [market.claim_of(lease, paid) for paid in (5, 6, 7)]

    def broken(signed: Signed) -> CheckedClaim:
        assert signed != claims[1], "a bug of ours"
        return check_claim(signed)

    monkeypatch.setattr(claim_checks, "check_claim", broken)
    outcomes = await served.app.core.settlement.claim_many(market.provider.key.node, claims)
    assert [claimed(outcome, lease) for outcome in outcomes] == [7, "internal", 7]


async def test_more_than_may_wait_is_refused_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    monkeypatch.setattr(intake, "WAITING_CLAIMS_MAX", 10)
    claims = [market.claim_of(lease, paid) for paid in range(1, 12)]
    with pytest.raises(ApiError) as refused:
        await served.app.core.settlement.claim_many(market.provider.key.node, claims)
    assert (refused.value.status, refused.value.fields["code"]) == (503, "busy")
    outcomes = await served.app.core.settlement.claim_many(market.provider.key.node, claims[:10])
    assert claimed(outcomes[-1], lease) == 10


async def test_a_caller_that_gives_up_leaves_the_claim_settled(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    settled = asyncio.Event()
    write = served.app.core.database.write

    async def watched(closure: Any) -> Any:
        done = await write(closure)
        settled.set()
        return done

    served.app.core.database.write = watched  # type: ignore[method-assign]  # tells, and does the real thing
    task = asyncio.create_task(served.app.core.settlement.claim(market.provider.key.node, market.claim_of(lease, 5)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(10):
        await settled.wait()
    assert await balance(served, available(market.provider.key.node)) == 5
    assert (await market.claim(lease, 6)).claimed_uusd == 6


async def test_when_it_is_closed_nobody_waits_for_an_answer_that_will_not_come(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    settlement, node = served.app.core.settlement, market.provider.key.node
    claims = [market.claim_of(lease, paid) for paid in range(1, 1001)]
    tasks = [asyncio.create_task(settlement.claim_many(node, claims[at : at + 100])) for at in range(0, 1000, 100)]
    await asyncio.sleep(0)
    settlement.close()
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, StoreClosed) for outcome in outcomes)
    with pytest.raises(StoreClosed):
        await settlement.claim(node, claims[0])


async def test_claims_of_one_provider_share_a_word_and_those_of_two_never_do(served: Served) -> None:
    markets = [await Market.opened(served) for _ in range(2)]
    leases = [[await market.lease() for _ in range(8)] for market in markets]
    settlement = served.app.core.settlement
    wanted = [(at, lease) for pair in zip(*leases, strict=True) for at, lease in enumerate(pair)]
    claims = (
        settlement.claim(markets[at].provider.key.node, markets[at].claim_of(lease, paid))
        for paid, (at, lease) in enumerate(wanted, 1)
    )
    words = await asyncio.gather(*claims)
    named = {word: {credited.lease for credited in open_record(word, ClaimAckRecord).credited} for word in words}
    assert len(named) < len(words), "the last of them came while others were on their way"
    for paid, (word, (at, lease)) in enumerate(zip(words, wanted, strict=True), 1):
        assert claimed(word, lease) == paid
        assert named[word] <= set(leases[at])


async def test_more_leases_than_one_word_can_name_get_several(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "CLAIMS_MAX", 2)
    market = await Market.opened(served)
    leases = [await market.lease() for _ in range(5)]
    claims = [market.claim_of(lease, paid) for paid, lease in enumerate(leases, 1)]
    outcomes = await served.app.core.settlement.claim_many(market.provider.key.node, claims)
    for paid, (lease, outcome) in enumerate(zip(leases, outcomes, strict=True), 1):
        assert claimed(outcome, lease) == paid
    assert len(set(outcomes)) == 3
