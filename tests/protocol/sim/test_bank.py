"""The simulated coordinator: it answers as the real one does, and not at all while it is away."""

from __future__ import annotations

from protocol.effects import SendClaim
from protocol.envelope import sign_record
from protocol.events import ClaimAnswered, ClaimFailed, LeaseDenied, LeaseGranted
from protocol.ids import LeaseId
from protocol.ledger import Entry, available
from protocol.money_records import ClaimRecord
from protocol.records import Signed
from tests.helpers_claims import credited_in
from tests.helpers_machines import now
from tests.helpers_records import ASKER, NOW_MS, PROVIDER, order
from tests.protocol.test_purse import Bench


def claim(bench: Bench, paid_uusd: int, *, is_final: int = 0, damage: bool = False) -> SendClaim:
    side = bench.purse.sides()[-1]
    side.mark_uusd = 10_000
    voucher = side.pay(order(asker=side.signer.node), paid_uusd, 1, 1, bytes(32))
    assert voucher is not None
    if damage:
        voucher = Signed(voucher.body, bytes(64))
    record = ClaimRecord(1, PROVIDER.node, side.record.lease, voucher, None, is_final, NOW_MS, ())
    return SendClaim(side.record.lease, bench.bank.node, sign_record(record, PROVIDER))


def test_a_claim_is_credited_and_the_same_lease_granted_again() -> None:
    bench = Bench()
    effect = bench.ask()
    first, again = bench.bank.open_lease(effect, NOW_MS), bench.bank.open_lease(effect, NOW_MS)
    assert isinstance(first, LeaseGranted)
    assert first == again
    bench.purse.on_granted(first, now())
    answer = bench.bank.claim(claim(bench, 70, is_final=1), NOW_MS)
    assert isinstance(answer, ClaimAnswered)
    credited = credited_in(answer.acknowledgement)
    assert (credited.claimed_uusd, credited.is_closed, credited.head) == (70, 1, bench.bank.book.head)
    assert bench.bank.book.balance(available(PROVIDER.node)) == 70
    assert bench.bank.book.balance(available(ASKER.node)) == 1_000_000 - 70


def test_a_request_that_does_not_hold_is_refused_for_good_and_of_claims_those_after_the_end() -> None:
    bench = Bench(deposit_uusd=60_000)
    side = bench.grant()
    denied = bench.bank.open_lease(bench.ask(needed_uusd=60_000), NOW_MS)
    assert isinstance(denied, LeaseDenied)
    assert denied.is_final
    forged = bench.bank.claim(claim(bench, 70, damage=True), NOW_MS)
    assert isinstance(forged, ClaimFailed)
    assert not forged.is_final
    good = claim(bench, 70)
    record = ClaimRecord(1, PROVIDER.node, LeaseId(bytes(32)), None, None, 0, NOW_MS, ())
    unknown = bench.bank.claim(SendClaim(good.lease, good.coordinator, sign_record(record, PROVIDER)), NOW_MS)
    assert isinstance(unknown, ClaimFailed)
    assert not unknown.is_final
    bench.bank.expire(side.record.claim_by_ms + 1)
    late = bench.bank.claim(good, NOW_MS)
    assert isinstance(late, ClaimFailed)
    assert late.is_final


def test_while_it_is_away_nothing_happens() -> None:
    bench = Bench()
    bench.grant()
    bench.bank.is_away = True
    head = bench.bank.book.head
    denied = bench.bank.open_lease(bench.ask(), NOW_MS)
    failed = bench.bank.claim(claim(bench, 70), NOW_MS)
    assert isinstance(denied, LeaseDenied)
    assert isinstance(failed, ClaimFailed)
    assert (denied.is_final, failed.is_final, bench.bank.book.head) == (False, False, head)


def test_leases_expire_after_their_time_and_what_was_added_to_it() -> None:
    bench = Bench()
    side = bench.grant()
    bench.bank.resume(10_000, NOW_MS)
    bench.bank.expire(side.record.claim_by_ms + 10_000)
    assert not bench.bank.book.leases[side.record.lease].is_closed
    bench.bank.expire(side.record.claim_by_ms + 10_001)
    assert bench.bank.book.leases[side.record.lease].is_closed
    assert bench.bank.book.balance(available(ASKER.node)) == 1_000_000


def test_a_copy_knows_the_same_and_goes_its_own_way() -> None:
    bench = Bench()
    heard: list[Entry] = []
    bench.bank.on_entry = lambda entry, _at_ms: heard.append(entry)
    bench.grant()
    other = bench.bank.copy()
    before = len(heard)
    other.deposit(ASKER.node, 5, NOW_MS)
    assert len(heard) == before
    assert other.book.head != bench.bank.book.head
    assert len(other.book.entries) == len(bench.bank.book.entries) + 1
