"""The asker's leases: found, asked for, used, restored."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import decode_record
from protocol.effects import Note, RequestLease, StoreMark
from protocol.envelope import sign_record
from protocol.errors import RemoteProtocolError
from protocol.events import LeaseDenied, LeaseGranted, MarkStored, RestorePayer
from protocol.ids import JobId
from protocol.leases import PayerSide
from protocol.money_records import LeaseRecord, LeaseRequestRecord, VoucherRecord
from protocol.purse import LEASE_SERVE_S, LEASE_UUSD, LEASES_MAX, Purse
from protocol.sim.bank import Bank
from tests.helpers_machines import now
from tests.helpers_records import ASKER, JOB, NOW_MS, OFFER, PROVIDER, order, signing_key

PRICED = replace(OFFER, price_in_uusd=1_000_000, price_out_uusd=2_000_000)
UNTIL_MS = NOW_MS + 60_000


class Bench:
    """A purse and a coordinator with money for it."""

    def __init__(self, deposit_uusd: int = 1_000_000) -> None:
        self.bank = Bank(signing_key("bank"))
        self.bank.deposit(ASKER.node, deposit_uusd, NOW_MS)
        self.purse = Purse(ASKER, random.Random(1))
        self.purse.coordinator = self.bank.node

    def ask(self, needed_uusd: int = 100, job: JobId = JOB, **changes: Any) -> RequestLease:
        (effect,) = self.purse.request(job, PROVIDER.node, replace(PRICED, **changes), needed_uusd, now())
        assert isinstance(effect, RequestLease)
        return effect

    def grant(self, effect: RequestLease | None = None) -> PayerSide:
        answer = self.bank.open_lease(effect or self.ask(), NOW_MS)
        assert isinstance(answer, LeaseGranted)
        self.purse.on_granted(answer, now())
        self.purse.take_effects()
        return self.purse.sides()[-1]

    def find(self, needed_uusd: int = 100, until_ms: int = UNTIL_MS, **changes: Any) -> PayerSide | None:
        return self.purse.find(PROVIDER.node, replace(PRICED, **changes), needed_uusd, until_ms, now())


def test_a_lease_is_asked_for_with_a_key_of_its_own_and_found_afterwards() -> None:
    bench = Bench()
    effect = bench.ask()
    request = decode_record(effect.signed.body, LeaseRequestRecord)
    assert request.payer == ASKER.payer(effect.request).node != ASKER.node
    assert request.cap_uusd == LEASE_UUSD == 20_000
    assert request.serve_s == 7_200
    assert bench.find() is None
    side = bench.grant(effect)
    assert bench.find() is side
    assert side.signer.node == request.payer


def test_a_job_waits_until_its_request_is_answered() -> None:
    bench = Bench()
    effect = bench.ask()
    assert bench.purse.waits_for(effect.request) == JOB
    assert bench.purse.waits_for(bytes(16)) is None
    bench.grant(effect)
    assert bench.purse.waits_for(effect.request) is None


def test_a_lease_is_kept_before_anything_is_signed_on_it() -> None:
    bench = Bench()
    effect = bench.ask()
    granted = bench.bank.open_lease(effect, NOW_MS)
    assert isinstance(granted, LeaseGranted)
    bench.purse.on_granted(granted, now())
    (side,) = bench.purse.sides()
    assert bench.purse.take_effects() == [StoreMark(side.record.lease, effect.request, granted.signed, 0, None)]


def test_two_leases_have_two_keys() -> None:
    bench = Bench()
    assert bench.grant().signer.node != bench.grant().signer.node


@pytest.mark.parametrize(
    "changes", [{"name": "other"}, {"fingerprint": bytes(32)}, {"price_in_uusd": 1}, {"price_job_uusd": 1}]
)
def test_a_lease_is_for_one_offer(changes: dict[str, Any]) -> None:
    bench = Bench()
    bench.grant()
    assert bench.find(**changes) is None


def test_a_lease_that_is_used_empty_closing_or_too_short_is_not_found() -> None:
    bench = Bench()
    side = bench.grant()
    assert bench.find(needed_uusd=LEASE_UUSD) is side
    assert bench.find(needed_uusd=LEASE_UUSD + 1) is None
    assert bench.find(until_ms=side.record.serve_until_ms) is side
    assert bench.find(until_ms=side.record.serve_until_ms + 1) is None
    bench.purse.begin(side, order())
    assert bench.find() is None
    bench.purse.end(side)
    assert bench.find() is side
    bench.purse.close(side.record.lease)
    assert bench.find() is None


def test_a_lease_is_the_job_s_that_waited_for_it_unless_that_is_over() -> None:
    bench = Bench()
    first, second = bench.ask(), bench.ask(job=JobId(b"2" * 16))
    bench.purse.abandon(JobId(b"2" * 16))
    answers = [bench.bank.open_lease(effect, NOW_MS) for effect in (first, second)]
    assert isinstance(answers[0], LeaseGranted)
    assert isinstance(answers[1], LeaseGranted)
    assert bench.purse.on_granted(answers[0], now()) == JOB
    assert bench.purse.on_granted(answers[1], now()) == JobId(b"")
    assert len(bench.purse) == 2
    assert bench.purse.on_granted(answers[0], now()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"payer": ASKER.node},
        {"provider": ASKER.node},
        {"cap_uusd": LEASE_UUSD - 1},
        {"model": "other"},
        {"fingerprint": bytes(32)},
        {"price_out_uusd": 1},
        {"relay": PROVIDER.node},
        {"relay_bps": 1},
        {"cap_uusd": LEASE_UUSD + 1},
        {"lease": bytes(32)},
        {"serve_until_ms": 0},
        {"serve_until_ms": NOW_MS},
        {"serve_until_ms": NOW_MS + 1000 * LEASE_SERVE_S + c.CLOCK_SKEW_MS_MAX + 1, "claim_by_ms": c.INTEGER_MAX},
        {"serve_until_ms": c.INTEGER_MAX, "claim_by_ms": c.INTEGER_MAX},
        {"claim_by_ms": 0},
        {"claim_by_ms": NOW_MS + 1},
    ],
)
def test_a_lease_that_is_not_what_was_asked_for_is_refused(changes: dict[str, Any]) -> None:
    bench = Bench()
    effect = bench.ask()
    answer = bench.bank.open_lease(effect, NOW_MS)
    assert isinstance(answer, LeaseGranted)
    altered = sign_record(replace(decode_record(answer.signed.body, LeaseRecord), **changes), signing_key("bank"))
    with pytest.raises(RemoteProtocolError):
        bench.purse.on_granted(LeaseGranted(effect.request, altered), now())
    assert len(bench.purse) == 0


def test_a_lease_of_another_coordinator_is_refused() -> None:
    bench = Bench()
    effect = bench.ask()
    answer = bench.bank.open_lease(effect, NOW_MS)
    assert isinstance(answer, LeaseGranted)
    other = signing_key("other bank")
    record = replace(decode_record(answer.signed.body, LeaseRecord), coordinator=other.node)
    with pytest.raises(RemoteProtocolError):
        bench.purse.on_granted(LeaseGranted(effect.request, sign_record(record, other)), now())


def test_who_has_too_little_asks_once_more_for_what_is_needed() -> None:
    bench = Bench(deposit_uusd=200)
    effect = bench.ask(needed_uusd=150)
    denied = bench.bank.open_lease(effect, NOW_MS)
    assert isinstance(denied, LeaseDenied)
    job, effects = bench.purse.on_denied(denied, now())
    assert job is None
    (again,) = effects
    assert isinstance(again, RequestLease)
    assert decode_record(again.signed.body, LeaseRequestRecord).cap_uusd == 150
    assert isinstance(bench.bank.open_lease(again, NOW_MS), LeaseGranted)


def test_one_lease_is_not_granted_in_place_of_another() -> None:
    """Its number is that of a lease that a job is paid from: what was signed on that is not forgotten."""
    bench = Bench()
    used = bench.grant()
    used.signed_uusd = 500
    effect = bench.ask()
    answer = bench.bank.open_lease(effect, NOW_MS)
    assert isinstance(answer, LeaseGranted)
    record = replace(decode_record(answer.signed.body, LeaseRecord), lease=used.record.lease)
    with pytest.raises(RemoteProtocolError):
        bench.purse.on_granted(LeaseGranted(effect.request, sign_record(record, signing_key("bank"))), now())
    assert bench.purse.sides() == [used]


def test_a_lease_may_last_as_long_as_was_asked_by_either_clock() -> None:
    bench = Bench()
    effect = bench.ask()
    answer = bench.bank.open_lease(effect, NOW_MS + c.CLOCK_SKEW_MS_MAX)
    assert isinstance(answer, LeaseGranted)
    assert bench.purse.on_granted(answer, now()) == JOB


def test_who_has_no_coordinator_any_more_does_not_ask_again() -> None:
    """It was found to keep two ledgers while it was asked."""
    bench = Bench(deposit_uusd=200)
    effect = bench.ask(needed_uusd=150)
    denied = bench.bank.open_lease(effect, NOW_MS)
    assert isinstance(denied, LeaseDenied)
    bench.purse.coordinator = None
    assert bench.purse.on_denied(denied, now()) == (JOB, [])


@pytest.mark.parametrize("coordinator", [None, ASKER.node])
def test_a_lease_of_a_coordinator_that_is_not_ours_any_more_is_not_used(coordinator: Any) -> None:
    bench = Bench()
    side = bench.grant()
    assert bench.find() is side
    bench.purse.on_denied(LeaseDenied(bench.ask().request, "away", is_final=False), now())
    assert bench.purse.funded(now()) == [PROVIDER.node]
    bench.purse.coordinator = coordinator
    assert bench.find() is None
    assert bench.purse.funded(now()) == []
    assert bench.purse.sides() == [side], "what is locked there is still ours"


def test_what_costs_nothing_is_leased_for_the_least_that_there_is() -> None:
    bench = Bench(deposit_uusd=1)
    effect = bench.ask(needed_uusd=0)
    denied = bench.bank.open_lease(effect, NOW_MS)
    assert isinstance(denied, LeaseDenied)
    (again,) = bench.purse.on_denied(denied, now())[1]
    assert isinstance(again, RequestLease)
    assert isinstance(bench.bank.open_lease(again, NOW_MS), LeaseGranted)


def test_a_coordinator_that_is_away_is_not_asked_again_at_once() -> None:
    bench = Bench()
    effect = bench.ask()
    assert bench.purse.on_denied(LeaseDenied(effect.request, "away", is_final=False), now()) == (JOB, [])


def test_what_a_job_can_cost_is_on_disk_before_and_what_it_cost_after() -> None:
    bench = Bench()
    side = bench.grant()
    bench.purse.begin(side, order(prepay_max_uusd=30, output_tokens_max=10, price_out_uusd=2_000_000))
    (mark,) = bench.purse.take_effects()
    assert isinstance(mark, StoreMark)
    assert mark.mark_uusd == 50
    assert side.mark_uusd == 0
    assert bench.purse.on_mark_stored(MarkStored(mark.lease, mark.mark_uusd)) == JOB
    assert side.mark_uusd == 50
    side.signed_uusd = 20
    bench.purse.end(side)
    (after,) = bench.purse.take_effects()
    assert isinstance(after, StoreMark)
    assert after.mark_uusd == side.mark_uusd == 20
    assert bench.purse.take_effects() == []


def test_a_mark_that_comes_after_its_job_raises_nothing() -> None:
    bench = Bench()
    side = bench.grant()
    assert bench.purse.on_mark_stored(MarkStored(side.record.lease, 50)) is None
    assert side.mark_uusd == 0


def test_a_lease_is_restored_with_what_was_signed_and_higher_numbers() -> None:
    bench = Bench()
    side = bench.grant()
    side.mark_uusd = 1_000
    paid = side.pay(order(asker=side.signer.node), 70, 1, 1, bytes(32))
    bench.purse.begin(side, order())
    (mark,) = bench.purse.take_effects()
    assert isinstance(mark, StoreMark)
    fresh = Purse(ASKER, random.Random(2))
    assert fresh.restore(RestorePayer(mark.request, mark.signed, mark.mark_uusd, paid)) == []
    (restored,) = fresh.sides()
    assert (restored.signed_uusd, restored.voucher) == (70, paid)
    assert restored.sequence == side.sequence + 1_048_576
    assert restored.signer.node == side.signer.node


def test_no_two_totals_have_one_number_after_two_crashes() -> None:
    bench = Bench()
    side = bench.grant()
    lives = [side]
    numbers = []
    for total in (70, 80, 90):
        lives[-1].mark_uusd = 1_000
        paid = lives[-1].pay(order(asker=side.signer.node), total, 1, 1, bytes(32))
        lost = lives[-1].pay(order(asker=side.signer.node), total + 5, 1, 1, bytes(32))
        assert paid is not None
        assert lost is not None
        numbers += [decode_record(each.body, VoucherRecord).sequence for each in (paid, lost)]
        fresh = Purse(ASKER, random.Random(2))
        number = next(iter(bench.purse._numbers.values()))
        # The disk has the first of the two; the second one, and what the next life signs, its provider has as well.
        assert fresh.restore(RestorePayer(number, side.signed, 0, paid)) == []
        lives += fresh.sides()
    assert len(set(numbers)) == len(numbers)


def test_a_voucher_of_another_lease_is_not_restored() -> None:
    bench = Bench()
    side, other = bench.grant(), bench.grant()
    other.mark_uusd = 1_000
    paid = other.pay(order(asker=other.signer.node), 70, 1, 1, bytes(32))
    number = bench.purse._numbers[side.record.lease]
    fresh = Purse(ASKER, random.Random(2))
    (note,) = fresh.restore(RestorePayer(number, side.signed, 0, paid))
    assert isinstance(note, Note)
    assert note.event == "lease.not_restored"
    assert len(fresh) == 0


def test_what_is_not_ours_is_not_restored() -> None:
    bench = Bench()
    side = bench.grant()
    stranger = Purse(PROVIDER, random.Random(2))
    damaged = replace(side.signed, body=side.signed.body[:-1])
    for signed in (side.signed, damaged):
        (note,) = stranger.restore(RestorePayer(bytes(16), signed, 0, None))
        assert isinstance(note, Note)
        assert note.event == "lease.not_restored"
        assert len(stranger) == 0


def test_a_denied_request_that_nobody_made_changes_nothing() -> None:
    bench = Bench()
    bench.grant()
    assert bench.purse.on_denied(LeaseDenied(bytes(16), "away", is_final=False), now()) == (None, [])
    assert bench.purse.funded(now()) == []


def test_without_the_coordinator_those_can_be_paid_at_whom_a_lease_is_free() -> None:
    bench = Bench()
    first, second = bench.grant(), bench.grant()
    assert bench.purse.funded(now()) == []
    effect = bench.ask()
    bench.purse.on_denied(LeaseDenied(effect.request, "away", is_final=False), now(10))
    assert bench.purse.funded(now(10)) == [PROVIDER.node]
    assert bench.purse.funded(now(69.9)) == [PROVIDER.node]
    assert bench.purse.funded(now(70)) == []
    first.job, second.is_closing = JOB, True
    assert bench.purse.funded(now(10)) == []
    second.is_closing = False
    assert bench.purse.funded(now(10)) == [PROVIDER.node]


@pytest.mark.parametrize("is_granted", [True, False])
def test_a_coordinator_that_answers_is_not_away(is_granted: bool) -> None:
    bench = Bench()
    away, answered = bench.ask(), bench.ask(needed_uusd=LEASE_UUSD)
    bench.purse.on_denied(LeaseDenied(away.request, "away", is_final=False), now(10))
    if is_granted:
        bench.grant(answered)
    else:
        bench.grant()
        bench.purse.on_denied(LeaseDenied(away.request, "away", is_final=False), now(10))
        denied = bench.purse.on_denied(LeaseDenied(answered.request, "no", is_final=True), now(11))
        assert denied == (JOB, [])  # what was asked for is what is needed: to ask again is of no use
    assert bench.purse.funded(now(12)) == []


def test_leases_that_cannot_be_used_any_more_are_forgotten() -> None:
    bench = Bench()
    side = bench.grant()
    late_s = (side.record.serve_until_ms - NOW_MS + c.CLOCK_SKEW_MS_MAX) / 1000
    bench.purse.find(PROVIDER.node, PRICED, 1, UNTIL_MS, now(late_s))
    assert len(bench.purse) == 1
    bench.purse.find(PROVIDER.node, PRICED, 1, UNTIL_MS, now(late_s + 0.001))
    assert len(bench.purse) == 0
    assert bench.purse._numbers == {}


def test_the_number_of_leases_is_bounded() -> None:
    bench = Bench()
    side = bench.grant()
    for number in range(LEASES_MAX + 10):
        record = replace(side.record, lease=number.to_bytes(32, "big"))
        bench.purse._leases[record.lease] = PayerSide(record, side.signed, side.signer)
    bench.grant()
    assert len(bench.purse) == LEASES_MAX == 4_096
