"""The provider's leases: what is taken, what is kept, and when it is redeemed."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import till as till_module
from protocol.codec import decode_record
from protocol.effects import Effect, Note, SendClaim, StoreClosing, StoreVoucher
from protocol.envelope import sign_record
from protocol.errors import Refusal, RemoteProtocolError
from protocol.events import ClaimAnswered, CloseLease, ClosingStored, RestoreProvider
from protocol.ids import JobId, LeaseId, StreamId
from protocol.leases import Meter, ProviderSide, most_uusd
from protocol.messages import Voucher
from protocol.money_records import ClaimRecord, Credited
from protocol.records import Signed
from protocol.till import (
    CLAIM_ANSWER_S,
    CLAIM_DELAY_S,
    CLAIM_INTERVAL_S,
    CLAIM_RETRY_S_MAX,
    GIVEN_UP_MAX,
    LAST_VOUCHER_S,
    LEASES_MAX,
    UNCLAIMED_UUSD_MAX,
    Till,
)
from tests.helpers_claims import acknowledged
from tests.helpers_machines import now, offer
from tests.helpers_records import NOW_MS, PROVIDER, receipt
from tests.protocol.test_leases import BANK, HASH, LEASE, PRICED, lease, paid_order, voucher

STREAM = StreamId(2)
SENT = b"\x5e" * 32
OFFERED = offer(models=(PRICED,), coordinators=(BANK.node,))


def signed_lease(**changes: Any) -> Signed:
    return sign_record(lease(**changes), BANK)


class Bench:
    """A till with a lease, and what it wanted done."""

    def __init__(self) -> None:
        self.till = Till(PROVIDER)
        self.at_s = 0.0
        self.disk_hangs = False
        self.effects: list[Effect] = []

    def refusal(self, signed: Signed | None = None, offered: Any = OFFERED, **ordered: Any) -> Refusal | None:
        why = self.till.refusal(paid_order(**ordered), signed or signed_lease(), offered, PRICED, now(self.at_s))
        return why[0] if why is not None else None

    def begin(self, **leased: Any) -> ProviderSide:
        """An order is taken up."""
        assert self.refusal(signed_lease(**leased)) is None
        side, self.effects = self.till.begin(paid_order(), now(self.at_s))
        return side

    def end(self, side: ProviderSide, stream: StreamId | None, total_uusd: int) -> None:
        """A job ends that brings the lease to this total, with one chunk of 7 tokens."""
        made = Meter(side, paid_order(), base_uusd=0)
        made.accept(0, HASH, self.at_s)
        made.base_uusd, made.promised_uusd = 0, total_uusd
        made.sent(1, SENT, 7, total_uusd, self.at_s)
        self.till.end(made, stream, now(self.at_s))

    def last(self, paid_uusd: int, **changes: Any) -> list[Effect]:
        """The payer signs for it."""
        signed = voucher(paid_uusd, **{"chunks": 1, "output_tokens": 7, "running_hash": SENT, **changes})
        return self.till.on_last_voucher(STREAM, Voucher(signed), now(self.at_s))

    def serve(self, paid_uusd: int = 90) -> ProviderSide:
        """A whole job, paid to the end."""
        side = self.begin()
        side.take(voucher(paid_uusd))
        self.end(side, STREAM, paid_uusd)
        return side

    def wait(self, seconds: float) -> list[Effect]:
        """Everything that falls due."""
        end_s = self.at_s + seconds
        self.effects = []
        for _ in range(10_000):
            due_s = self.till.next_deadline()
            if due_s is None or due_s > end_s:
                break
            self.at_s = max(self.at_s, due_s)
            self.effects += self.keep(self.till.on_deadline(now(self.at_s)))
        self.at_s = end_s
        return self.effects

    def keep(self, effects: list[Effect]) -> list[Effect]:
        """The disk knows at once what it shall, unless it hangs."""
        for effect in [] if self.disk_hangs else list(effects):
            if isinstance(effect, StoreClosing):
                stored = ClosingStored(effect.lease, effect.paid_uusd)
                effects = effects + self.till.on_closing_stored(stored, now(self.at_s))
        return effects

    def close(self, lease_id: LeaseId = LEASE) -> list[Effect]:
        """The payer wants its rest."""
        self.effects = self.keep(self.till.on_close_wanted(CloseLease(lease_id), now(self.at_s)))
        return self.effects

    def claims(self) -> list[ClaimRecord]:
        sent = [effect for effect in self.effects if isinstance(effect, SendClaim)]
        return [decode_record(effect.claim.body, ClaimRecord) for effect in sent]

    def answer(self, claimed_uusd: int, signer: Any = BANK, **changes: Any) -> list[Effect]:
        credited = replace(Credited(LEASE, claimed_uusd, 0, 5, bytes(32), NOW_MS), **changes)
        signed = acknowledged(signer, credited)
        self.effects = self.till.on_answered(ClaimAnswered(LEASE, signed), now(self.at_s))
        return self.effects


# ---------------------------------------------------------------- orders


def test_a_good_lease_is_taken_and_kept() -> None:
    bench = Bench()
    assert bench.refusal() is None
    assert len(bench.till) == 0
    side = bench.begin()
    assert len(bench.till) == 1
    assert bench.effects == [StoreVoucher(LEASE, signed_lease(), None, None, 0)]
    assert side.in_use


@pytest.mark.parametrize(
    "signed",
    [
        Signed(signed_lease().body, signed_lease(entry=2).signature),
        sign_record(replace(lease(), coordinator=PROVIDER.node), PROVIDER),
        signed_lease(lease=LeaseId(bytes(32))),
        Signed(b"\x90", bytes(64)),
    ],
)
def test_a_lease_that_does_not_hold_is_not_taken(signed: Signed) -> None:
    bench = Bench()
    assert bench.refusal(signed) is Refusal.LEASE
    assert len(bench.till) == 0


def test_without_a_lease_or_a_coordinator_nothing_is_paid() -> None:
    bench = Bench()
    assert bench.till.refusal(paid_order(), None, OFFERED, PRICED, now()) is not None
    assert bench.refusal(lease=None) is Refusal.LEASE
    assert bench.refusal(offered=offer(models=(PRICED,))) is Refusal.LEASE


def test_a_lease_of_a_coordinator_that_the_owner_has_left_is_served_no_more() -> None:
    bench = Bench()
    bench.serve()
    left = offer(models=(PRICED,), coordinators=(PROVIDER.node,))
    assert bench.refusal(offered=left) is Refusal.LEASE
    assert bench.refusal() is None


def test_one_job_at_a_time() -> None:
    bench = Bench()
    side = bench.begin()
    assert bench.refusal() is Refusal.LEASE
    bench.end(side, None, 0)
    assert bench.refusal() is None


def test_another_lease_with_the_same_number_is_not_taken() -> None:
    bench = Bench()
    bench.begin()
    assert bench.refusal(signed_lease(cap_uusd=1)) is Refusal.LEASE


def test_a_coordinator_that_owes_too_much_is_not_trusted_with_more() -> None:
    bench = Bench()
    side = bench.begin(cap_uusd=UNCLAIMED_UUSD_MAX + 1)
    side.take(voucher(5))
    side.paid_uusd = UNCLAIMED_UUSD_MAX + 1
    bench.end(side, None, 0)
    assert bench.refusal(signed_lease(cap_uusd=UNCLAIMED_UUSD_MAX + 1)) is Refusal.LEASE
    signed, lease_id = numbered(1)
    why = bench.till.refusal(paid_order(lease=lease_id), signed, OFFERED, PRICED, now())
    assert why == (Refusal.LEASE, "the coordinator owes this node too much already: free jobs only, for now")
    side.paid_uusd = UNCLAIMED_UUSD_MAX
    assert bench.refusal(signed, lease=lease_id) is None


def test_an_order_that_can_cost_more_than_is_left_is_not_taken() -> None:
    bench = Bench()
    most = most_uusd(paid_order())
    assert bench.refusal(signed_lease(cap_uusd=most - 1)) is Refusal.LEASE
    side = bench.begin(cap_uusd=most + 9)
    side.take(voucher(9))
    bench.end(side, None, 0)
    assert bench.refusal(signed_lease(cap_uusd=most + 9)) is None
    side.take(voucher(10))
    assert bench.refusal(signed_lease(cap_uusd=most + 9)) is Refusal.LEASE


def numbered(number: int, **leased: Any) -> tuple[Signed, LeaseId]:
    """One of many leases, each issued a millisecond after the one before."""
    lease_id = LeaseId(number.to_bytes(32, "big"))
    return signed_lease(lease=lease_id, issued_at_ms=NOW_MS - 100_000 + number, **leased), lease_id


def take(bench: Bench, number: int, paid_uusd: int = 1) -> ProviderSide:
    """A job under one of many leases, over and paid."""
    signed, lease_id = numbered(number)
    assert bench.refusal(signed, lease=lease_id) is None
    side, effects = bench.till.begin(paid_order(lease=lease_id), now(bench.at_s))
    bench.effects = bench.keep(effects)
    if paid_uusd:
        side.take(voucher(paid_uusd, lease=lease_id))
    side.claimed_uusd = paid_uusd
    bench.end(side, None, paid_uusd)
    return side


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Room for a few of each kind: the figures alone are less than what is held."""
    monkeypatch.setattr(till_module, "LEASES_MAX", 8)
    monkeypatch.setattr(till_module, "GIVEN_UP_MAX", 8)
    return 8


def test_a_lease_that_never_paid_makes_room_for_another_one(few: int) -> None:
    bench = Bench()
    sides = [take(bench, number, 0 if number == 5 else 1) for number in range(few)]
    take(bench, 99)
    assert bench.claims() == []
    assert sides[5] not in bench.till.sides()
    assert len(bench.till) == few


def test_where_all_have_paid_the_one_that_has_paid_least_is_redeemed_and_given_up(few: int) -> None:
    bench = Bench()
    sides = [take(bench, number, 20 - number) for number in range(few)]
    sides[7].claimed_uusd = 1
    take(bench, 99)
    (claim,) = bench.claims()
    assert (claim.lease, claim.is_final, claim.voucher) == (sides[7].record.lease, 1, sides[7].voucher)
    signed, lease_id = numbered(7)
    assert bench.refusal(signed, lease=lease_id) is Refusal.LEASE, "it is remembered"
    signed, lease_id = numbered(0)
    assert bench.refusal(signed, lease=lease_id) is None


def test_a_lease_with_a_debt_is_not_forgotten_for_another_one(few: int) -> None:
    bench = Bench()
    owing = take(bench, 0, 0)
    owing.owed_uusd = 16
    for number in range(1, few + 1):
        take(bench, number)
    assert owing in bench.till.sides()
    assert owing.is_final_wanted


def test_leases_in_use_are_kept_and_then_there_is_no_room(few: int) -> None:
    bench = Bench()
    for number in range(few):
        take(bench, number).in_use = True
    signed, lease_id = numbered(99)
    assert bench.refusal(signed, lease=lease_id) is Refusal.BUSY
    assert len(bench.till) == few


def test_an_order_that_is_not_taken_drives_no_lease_out(few: int) -> None:
    bench = Bench()
    for number in range(few):
        take(bench, number, 0)
    signed, lease_id = numbered(99)
    assert bench.refusal(signed, lease=lease_id) is None
    assert len(bench.till) == few


def test_leases_that_are_thrown_away_lock_nobody_out_and_are_not_served_again(few: int) -> None:
    bench = Bench()
    honest = take(bench, 0, 50)
    for number in range(1, 5 * few):
        side = take(bench, number)
        side.is_closed = True
        assert len(bench.till) <= 2 * few + 1
    assert honest in bench.till.sides()
    assert bench.refusal() is None, "a new one is welcome"
    for number in range(1, 5 * few):
        signed, lease_id = numbered(number)
        assert bench.refusal(signed, lease=lease_id) is Refusal.LEASE, number


def test_money_is_not_forgotten_for_what_is_thrown_away_and_never_in_silence(few: int) -> None:
    bench = Bench()
    sides = [take(bench, number, 10 + number) for number in range(few)]
    for side in sides:
        side.is_final_wanted, side.claimed_uusd = True, 0
    for number in range(few, 4 * few):
        take(bench, number).is_closed = True
    assert all(side in bench.till.sides() for side in sides)
    assert not any(isinstance(effect, Note) for effect in bench.effects)
    poorer, richer = take(bench, 98, 3), take(bench, 99, 300)
    for side in (poorer, richer):
        side.is_final_wanted, side.claimed_uusd = True, 0
    take(bench, 100)
    notes = [effect for effect in bench.effects if isinstance(effect, Note)]
    assert [note.event for note in notes] == ["claim.put_off"] * 2
    assert [side in bench.till.sides() for side in (poorer, sides[0], sides[1], richer)] == [False, False, True, True]


def test_a_lease_that_was_closed_is_forgotten_in_silence_and_before_one_that_holds_the_least(few: int) -> None:
    bench = Bench()
    owed = take(bench, 0, 2)
    owed.is_final_wanted, owed.claimed_uusd = True, 1
    for number in range(1, few + 1):
        side = take(bench, number, 50)
        side.is_closed, side.claimed_uusd = True, 10
    take(bench, 99)
    assert not any(isinstance(effect, Note) for effect in bench.effects)
    assert owed in bench.till.sides()


def test_of_a_lease_that_is_forgotten_nothing_is_waited_for(few: int) -> None:
    bench = Bench()
    poor = take(bench, 0, 1)
    poor.is_final_wanted, poor.claimed_uusd = True, 0
    bench.till.on_close_wanted(CloseLease(poor.record.lease), now())
    bench.effects = bench.till.on_closing_stored(ClosingStored(poor.record.lease, 1), now())
    assert len(bench.claims()) == bench.till.claims_sent == 1
    for number in range(1, few + 1):
        side = take(bench, number, 50)
        side.is_final_wanted, side.claimed_uusd = True, 0
    bench.till._timers.cancel(("claim", poor.record.lease))
    timers = {key for key in bench.till._timers if key[1] == poor.record.lease}
    assert timers == {("answer", poor.record.lease), ("served", poor.record.lease)}
    take(bench, 99)
    assert poor not in bench.till.sides()
    assert bench.till.claims_sent == 0
    assert poor.record.lease not in bench.till._keeping
    assert not {key for key in bench.till._timers if key[1] == poor.record.lease}


def test_an_order_begins_only_as_it_was_looked_at() -> None:
    bench = Bench()
    with pytest.raises(AssertionError, match="nobody has looked at"):
        bench.till.begin(paid_order(), now())
    assert bench.refusal() is None
    with pytest.raises(AssertionError, match="another lease than its own"):
        bench.till.begin(paid_order(lease=LeaseId(bytes(32))), now())


def test_a_lease_that_is_older_than_one_that_had_to_be_forgotten_is_refused_and_a_newer_one_taken(few: int) -> None:
    bench = Bench()
    for number in range(10, 10 + 2 * few):
        take(bench, number).is_closed = True
    take(bench, 90)
    (until_ms,) = bench.till._forgotten_until_ms.values()
    for issued_at_ms, code in ((until_ms - 1, Refusal.LEASE), (until_ms, Refusal.LEASE), (until_ms + 1, None)):
        other = LeaseId(b"Z" * 32)
        assert bench.refusal(signed_lease(lease=other, issued_at_ms=issued_at_ms), lease=other) is code


def test_as_many_are_taken_up_after_a_restart_as_there_is_room_for(few: int) -> None:
    bench = Bench()
    for number in range(3 * few):
        bench.till.restore(RestoreProvider(numbered(number)[0], None, None, 0, is_closed=True), now())
    assert len(bench.till) == few
    assert bench.refusal(numbered(0)[0], lease=numbered(0)[1]) is Refusal.LEASE


def test_who_lets_a_job_wait_for_money_is_served_no_more_under_that_lease() -> None:
    bench = Bench()
    side = bench.begin()
    bench.till.distrust(side)
    bench.end(side, None, 0)
    assert bench.refusal() is Refusal.LEASE


def test_as_much_as_may_be_owed_is_no_reason_to_refuse() -> None:
    bench = Bench()
    side = bench.begin(cap_uusd=4 * UNCLAIMED_UUSD_MAX)
    side.paid_uusd = UNCLAIMED_UUSD_MAX
    bench.end(side, None, 0)
    assert bench.refusal(signed_lease(cap_uusd=4 * UNCLAIMED_UUSD_MAX)) is None
    side.claimed_uusd = side.paid_uusd = 2 * UNCLAIMED_UUSD_MAX
    assert bench.refusal(signed_lease(cap_uusd=4 * UNCLAIMED_UUSD_MAX)) is None


def test_the_times_and_bounds_are_those_that_others_reckon_with() -> None:
    assert (LEASES_MAX, GIVEN_UP_MAX, UNCLAIMED_UUSD_MAX) == (4_096, 4_096, 10_000_000)
    assert (LAST_VOUCHER_S, CLAIM_DELAY_S, CLAIM_INTERVAL_S) == (5.0, 5.0, 60.0)
    assert (CLAIM_ANSWER_S, CLAIM_RETRY_S_MAX) == (30.0, 300.0)


# ---------------------------------------------------------------- the last voucher


def test_a_voucher_and_a_receipt_go_to_disk_as_they_are() -> None:
    bench = Bench()
    side = bench.begin()
    side.take(voucher(70))
    assert bench.till.took(side) == [StoreVoucher(LEASE, signed_lease(), voucher(70), None, 70)]
    account = receipt(lease=LEASE)
    signed = sign_record(account, PROVIDER)
    assert bench.till.receipt(side, account, signed) == [StoreVoucher(LEASE, signed_lease(), voucher(70), signed, 70)]


def test_a_last_voucher_that_pays_no_more_is_not_stored_again() -> None:
    bench = Bench()
    side = bench.begin()
    side.take(voucher(70))
    bench.end(side, STREAM, 90)
    assert bench.last(60) == []
    assert bench.till.settles(STREAM)


def test_a_job_that_is_paid_to_the_end_is_not_waited_for() -> None:
    bench = Bench()
    side = bench.begin()
    side.take(voucher(90))
    bench.end(side, STREAM, 90)
    assert not bench.till.settles(STREAM)
    assert not side.in_use


def test_the_last_voucher_is_waited_for_as_long_as_is_said() -> None:
    bench = Bench()
    side = bench.begin()
    bench.end(side, STREAM, 90)
    bench.wait(LAST_VOUCHER_S - 0.1)
    assert side.in_use
    bench.wait(0.1)
    assert not side.in_use


def test_the_next_job_waits_until_this_one_is_paid() -> None:
    bench = Bench()
    side = bench.begin()
    side.take(voucher(70))
    bench.end(side, STREAM, 90)
    assert bench.till.settles(STREAM)
    assert bench.refusal() is Refusal.LEASE
    assert bench.last(80) != []
    assert bench.till.settles(STREAM)
    bench.last(90)
    assert not bench.till.settles(STREAM)
    assert bench.refusal() is None


@pytest.mark.parametrize("is_dropped", [True, False])
def test_who_does_not_pay_the_rest_is_not_waited_for(is_dropped: bool) -> None:
    bench = Bench()
    side = bench.begin()
    bench.end(side, STREAM, 90)
    if is_dropped:
        bench.till.on_stream_dropped(STREAM)
    else:
        bench.wait(LAST_VOUCHER_S)
    assert bench.till.settles(STREAM) is not is_dropped
    assert not side.in_use


@pytest.mark.parametrize("is_waited_for", [True, False])
def test_who_leaves_a_debt_is_served_again_when_it_is_paid(is_waited_for: bool) -> None:
    """Or each job would bring one window for nothing."""
    bench = Bench()
    side = bench.begin()
    side.take(voucher(70))
    bench.end(side, STREAM, 90)
    if not is_waited_for:
        bench.wait(LAST_VOUCHER_S)
    assert bench.refusal() is Refusal.LEASE
    bench.last(89)
    assert bench.refusal() is Refusal.LEASE
    assert bench.last(90) == [StoreVoucher(LEASE, signed_lease(), side.voucher, None, 90)]
    assert bench.refusal() is None
    assert not bench.till.settles(STREAM)


def test_what_pays_a_debt_late_is_redeemed_soon() -> None:
    bench = Bench()
    side = bench.begin()
    side.take(voucher(70))
    bench.end(side, STREAM, 90)
    bench.wait(CLAIM_DELAY_S)
    assert len(bench.claims()) == 1
    bench.answer(70)
    bench.wait(600)
    bench.last(80)
    assert bench.wait(CLAIM_DELAY_S - 1) == []
    # More of it puts nothing off.
    bench.last(90)
    bench.wait(1)
    assert [claim.voucher for claim in bench.claims()] == [side.voucher]


def test_a_debt_outlives_its_stream_and_more_jobs_make_it_no_smaller() -> None:
    bench = Bench()
    side = bench.begin()
    side.take(voucher(70))
    bench.end(side, None, 90)
    assert bench.refusal() is Refusal.LEASE
    bench.wait(3600)
    assert bench.refusal() is Refusal.LEASE
    bench.end(side, None, 80)
    side.take(voucher(80))
    assert bench.refusal() is Refusal.LEASE


def test_a_prompt_that_was_not_paid_was_not_read_and_is_no_debt() -> None:
    bench = Bench()
    made = Meter(bench.begin(), paid_order())
    made.accept(17, HASH, 0.0)
    bench.till.end(made, None, now())
    assert bench.refusal() is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"job": JobId(bytes(16))},
        {"attempt": 2},
        {"chunks": 2},
        {"chunks": 0, "output_tokens": 0, "running_hash": SENT},
        {"output_tokens": 6},
        {"output_tokens": 8},
        {"running_hash": bytes(32)},
    ],
)
def test_a_last_voucher_states_what_the_receipt_does(wrong: dict[str, Any]) -> None:
    bench = Bench()
    side = bench.begin()
    bench.end(side, STREAM, 90)
    with pytest.raises(RemoteProtocolError):
        bench.last(90, **wrong)
    assert (side.paid_uusd, side.voucher) == (0, None)


def test_a_last_voucher_that_is_worth_nothing_is_refused() -> None:
    bench = Bench()
    side = bench.begin()
    bench.end(side, STREAM, 90)
    with pytest.raises(RemoteProtocolError):
        bench.last(90, lease=LeaseId(bytes(32)))
