"""Every judge of leases can find somebody guilty, and an honest course of things guiltless."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol.codec import encode_message
from protocol.effects import ResetStream, Send, StoreVoucher
from protocol.envelope import sign_record
from protocol.events import DEADLINE, CloseLease, PeerDisconnected, SetOffer, StreamBroken
from protocol.ids import LeaseId, StreamId
from protocol.ledger import Claim, Entry, OpenLease, Resume
from protocol.messages import JobAccept, JobOpen, Receipt
from protocol.money_records import LeaseRequestRecord
from protocol.records import Signed
from protocol.sim.bank import Bank
from protocol.sim.checkers import Checker, Crashed, Ending, Seen
from protocol.sim.claim_checkers import (
    AllClaimed,
    Closed,
    FreshKeys,
    Granted,
    OneAtATime,
    Redeemable,
    lease_checkers,
)
from protocol.sim.money_checkers import LedgerChanged
from tests.helpers_machines import offer
from tests.helpers_records import ASKER, NOW_MS, PROVIDER, receipt, signing_key
from tests.protocol.test_leases import BANK, LEASE, PAYER, PRICED, accepted, lease, paid_order, voucher

ASKED, SERVED = StreamId(1), StreamId(2)
REQUEST = LeaseRequestRecord(
    *(1, BANK.node, bytes(16), ASKER.node, PAYER.node, PROVIDER.node, None, 0, 1_000),
    *(PRICED.name, PRICED.fingerprint, PRICED.price_in_uusd, PRICED.price_out_uusd, 0, 3_600, NOW_MS, ()),
)
OFFERED = SetOffer(offer(models=(PRICED,), coordinators=(BANK.node,)))


def grant(lease_id: LeaseId = LEASE, **changes: Any) -> LedgerChanged:
    """The coordinator has locked a thousand."""
    command = OpenLease(
        *(lease_id, ASKER.node, None, PAYER.node, PROVIDER.node, None, 0, 0, 1_000),
        *(NOW_MS + 1_000, NOW_MS + 2_000, sign_record(REQUEST, ASKER)),
    )
    return LedgerChanged(Entry(replace(command, **changes), ()), NOW_MS)


def gives_up(lease_id: LeaseId = LEASE) -> LedgerChanged:
    return LedgerChanged(Entry(Claim(lease_id, PROVIDER.node, 0, 1, None), ()), NOW_MS)


def opens(stream: StreamId = ASKED, **changes: Any) -> Send:
    message = JobOpen(sign_record(paid_order(**changes), PAYER), b"x", sign_record(lease(), BANK))
    return Send(stream, encode_message(message))


def accepts(stream: StreamId = SERVED, **changes: Any) -> Send:
    return Send(stream, encode_message(JobAccept(sign_record(accepted(**changes), PROVIDER))))


def judge(checker: Checker, *items: Any, ending: Ending | None = None) -> str:
    """Show the items in order, a long time apart where `...` stands between them; what was found."""
    at_s = 1.0
    for item in items:
        if item is ...:
            at_s += 1_000
            continue
        is_asker = getattr(item, "stream", SERVED) == ASKED
        seen = Seen(at_s, 0, ASKER.node if is_asker else PROVIDER.node, 0, item)
        if callback := checker.interests().get(type(item)):
            callback(seen)
    if ending is not None:
        checker.finish(ending)
    return "\n".join(checker.violations)


def test_each_judge_is_called() -> None:
    names = [Granted, OneAtATime, FreshKeys, Redeemable, AllClaimed, Closed]
    assert [type(judge) for judge in lease_checkers()] == names


def test_a_job_under_an_open_lease_on_its_terms_is_right() -> None:
    assert judge(Granted(), OFFERED, grant(), opens(), accepts()) == ""


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ((OFFERED, opens()), "that nobody granted"),
        ((OFFERED, grant(), opens(price_out_uusd=1)), "other terms"),
        ((OFFERED, grant(), opens(fingerprint=bytes(32))), "other terms"),
        ((OFFERED, grant(), gives_up(), opens(), accepts()), "not open"),
        ((OFFERED, grant(payer=ASKER.node), opens(), accepts()), "between others"),
        ((OFFERED, grant(provider=ASKER.node), opens(), accepts()), "between others"),
        ((SetOffer(offer(models=(PRICED,))), grant(), opens(), accepts()), "coordinator that is not used"),
        (
            (
                SetOffer(offer(models=(replace(PRICED, price_in_uusd=1_000_001),), coordinators=(BANK.node,))),
                *(grant(), opens(), accepts()),
            ),
            "less than is asked",
        ),
    ],
)
def test_a_job_that_no_lease_allows_is_found(items: tuple[Any, ...], text: str) -> None:
    assert text in judge(Granted(), *items)


@pytest.mark.parametrize(
    "between",
    [
        Send(SERVED, encode_message(Receipt(sign_record(receipt(lease=LEASE), PROVIDER)))),
        ResetStream(SERVED, ""),
        StreamBroken(SERVED, ""),
        PeerDisconnected(ASKER.node),
        Crashed(),
    ],
)
def test_one_job_of_a_lease_is_served_after_the_other(between: Any) -> None:
    other = StreamId(4)
    first, second = (opens(), accepts()), (opens(attempt=2), accepts(other, attempt=2))
    assert judge(OneAtATime(), *first, between, *second) == ""
    assert "two jobs" in judge(OneAtATime(), *first, *second)
    assert "two jobs" in judge(OneAtATime(), *first, StreamBroken(other, ""), *second)


def test_each_lease_has_a_key_of_its_own() -> None:
    second = LeaseId(bytes(32))
    assert judge(FreshKeys(), grant(), grant(second, payer=signing_key("other").node)) == ""
    assert "known by its key" in judge(FreshKeys(), grant(), grant(second))
    assert "known by its key" in judge(FreshKeys(), grant(payer=ASKER.node))


def keeps(paid_uusd: int, kept: Signed | None) -> StoreVoucher:
    return StoreVoucher(LEASE, sign_record(lease(), BANK), kept, None, paid_uusd)


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (keeps(0, None), ""),
        (keeps(1_000, voucher(1_000)), ""),
        (keeps(1_001, voucher(1_001)), "taken for paid"),
        (keeps(6, voucher(5)), "taken for paid"),
        (keeps(5, voucher(5, lease=LeaseId(bytes(32)))), "not of its lease"),
        (keeps(5, Signed(voucher(5).body, bytes(64))), "does not hold"),
    ],
)
def test_what_is_kept_can_be_redeemed(stored: StoreVoucher, text: str) -> None:
    found = judge(Redeemable(), grant(), stored)
    assert text in found
    assert bool(text) is bool(found)


def bank_of(claimed_uusd: int) -> Ending:
    """A coordinator that has credited so much of the lease."""
    bank = Bank(BANK)
    bank.deposit(ASKER.node, 1_000_000, NOW_MS)
    command = grant().entry.command
    assert isinstance(command, OpenLease)
    bank.command(replace(command, serve_until_ms=NOW_MS + 1_000, claim_by_ms=NOW_MS + 2_000), NOW_MS)
    if claimed_uusd:
        bank.command(Claim(LEASE, PROVIDER.node, claimed_uusd, 0, None), NOW_MS)
    return Ending([], 0, 0, bank=bank)


def test_what_was_on_disk_is_claimed_in_the_end() -> None:
    stored = keeps(40, voucher(40))
    assert judge(AllClaimed(), stored, ..., DEADLINE, ending=bank_of(40)) == ""
    assert "40 on disk and 39 claimed" in judge(AllClaimed(), stored, ..., DEADLINE, ending=bank_of(39))
    assert judge(AllClaimed(), stored, DEADLINE, ending=bank_of(39)) == ""
    assert judge(AllClaimed(), stored, ..., grant(), DEADLINE, ending=bank_of(40)) == ""
    back = LedgerChanged(Entry(Resume(5), ()), NOW_MS)
    assert judge(AllClaimed(), stored, ..., back, DEADLINE, ending=bank_of(39)) == ""


def test_what_was_not_on_disk_yet_or_is_not_back_need_not_be_claimed() -> None:
    stored = keeps(40, voucher(40))
    assert judge(AllClaimed(), stored, Crashed(), OFFERED, ..., DEADLINE, ending=bank_of(0)) == ""
    assert judge(AllClaimed(), stored, ..., Crashed(), ..., DEADLINE, ending=bank_of(0)) == ""
    found = judge(AllClaimed(), stored, ..., Crashed(), OFFERED, ..., DEADLINE, ending=bank_of(0))
    assert "40 on disk and 0 claimed" in found


def test_a_lease_that_was_given_up_is_closed_in_the_end() -> None:
    ending = bank_of(0)
    assert "open that its payer" in judge(Closed(), CloseLease(LEASE), ..., DEADLINE, ending=ending)
    assert judge(Closed(), CloseLease(LEASE), DEADLINE, ending=ending) == ""
    assert ending.bank is not None
    ending.bank.command(Claim(LEASE, PROVIDER.node, 0, 1, None), NOW_MS)
    assert judge(Closed(), CloseLease(LEASE), ..., DEADLINE, ending=ending) == ""
