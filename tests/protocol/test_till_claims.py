"""The provider's leases: when they are redeemed, and what becomes of them over a restart."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import Note, SendClaim, StoreClaimed, StoreClosing
from protocol.envelope import sign_record
from protocol.errors import Refusal
from protocol.events import ClaimAnswered, ClaimFailed, ClosingStored, RestoreProvider
from protocol.ids import LeaseId, StreamId
from protocol.money_records import ClaimRecord, Credited
from protocol.records import Signed
from protocol.till import (
    CLAIM_ANSWER_S,
    CLAIM_DELAY_S,
    CLAIM_INTERVAL_S,
    CLAIM_RETRY_S_MAX,
    LAST_VOUCHER_S,
)
from tests.helpers_claims import acknowledged
from tests.helpers_machines import now
from tests.helpers_records import NOW_MS, PROVIDER, receipt
from tests.protocol.test_leases import BANK, LEASE, PRICED, lease, paid_order, voucher
from tests.protocol.test_till import OFFERED, STREAM, Bench, signed_lease

# ---------------------------------------------------------------- claims


def test_what_a_job_was_paid_is_claimed_a_moment_later_with_its_receipt() -> None:
    bench = Bench()
    side = bench.begin()
    side.take(voucher(90))
    account = receipt(lease=LEASE)
    signed = sign_record(account, PROVIDER)
    bench.till.receipt(side, account, signed)
    bench.end(side, STREAM, 90)
    assert bench.wait(CLAIM_DELAY_S - 0.1) == []
    bench.wait(0.2)
    (claim,) = bench.claims()
    assert (claim.voucher, claim.receipt, claim.is_final) == (voucher(90), signed, 0)


def test_nothing_new_is_not_claimed() -> None:
    bench = Bench()
    bench.serve(0)
    assert bench.wait(10 * CLAIM_INTERVAL_S) == []


def test_a_long_job_is_claimed_while_it_runs() -> None:
    bench = Bench()
    side = bench.begin()
    side.take(voucher(50))
    bench.wait(CLAIM_INTERVAL_S)
    assert len(bench.claims()) == 1
    assert bench.claims()[0].is_final == 0


def test_an_answer_is_kept_and_not_asked_for_again() -> None:
    bench = Bench()
    bench.serve()
    bench.wait(CLAIM_DELAY_S)
    (stored,) = bench.answer(90)
    assert isinstance(stored, StoreClaimed)
    assert (stored.claimed_uusd, stored.is_closed) == (90, False)
    assert bench.wait(CLAIM_ANSWER_S + CLAIM_RETRY_S_MAX) == []


@pytest.mark.parametrize(
    ("claimed_uusd", "changes"), [(89, {}), (90, {"lease": LeaseId(bytes(32))}), (90, {"signer": PROVIDER})]
)
def test_an_answer_that_credits_less_or_is_not_the_coordinator_s_is_none(
    claimed_uusd: int, changes: dict[str, Any]
) -> None:
    bench = Bench()
    bench.serve()
    bench.wait(CLAIM_DELAY_S)
    (note,) = bench.answer(claimed_uusd, **changes)
    assert isinstance(note, Note)
    bench.wait(CLAIM_RETRY_S_MAX)
    assert bench.claims()


def test_without_an_answer_it_is_claimed_again_ever_later() -> None:
    bench = Bench()
    bench.serve()
    bench.wait(CLAIM_DELAY_S)
    times = []
    for _ in range(12):
        bench.till.on_failed(ClaimFailed(LEASE, "away", is_final=False), now(bench.at_s))
        before_s = bench.at_s
        for _ in range(2 * round(CLAIM_RETRY_S_MAX)):
            if bench.claims():
                break
            bench.wait(1)
        times.append(bench.at_s - before_s)
        bench.effects = []
    assert times == sorted(times)
    assert times[-1] == CLAIM_RETRY_S_MAX


def test_a_claim_that_hears_nothing_is_sent_again() -> None:
    bench = Bench()
    bench.serve()
    bench.wait(CLAIM_DELAY_S)
    bench.wait(CLAIM_ANSWER_S + 2.1)
    assert len(bench.claims()) == 1


def test_a_claim_that_is_refused_for_good_is_not_repeated() -> None:
    bench = Bench()
    bench.serve()
    bench.wait(CLAIM_DELAY_S)
    effects = bench.till.on_failed(ClaimFailed(LEASE, "unknown lease", is_final=True), now(bench.at_s))
    assert StoreClaimed(LEASE, 0, True, None) in effects
    assert bench.wait(600) == []
    assert bench.refusal() is Refusal.LEASE


def test_a_lease_that_is_served_no_more_is_given_up_and_then_forgotten() -> None:
    bench = Bench()
    bench.serve()
    bench.wait(CLAIM_DELAY_S)
    bench.answer(90)
    bench.wait((lease().serve_until_ms - NOW_MS + c.LEASE_SKEW_MS) / 1000)
    (claim,) = bench.claims()
    assert claim.is_final == 1
    bench.answer(90, is_closed=1)
    assert len(bench.till) == 0


def test_a_payer_that_wants_its_rest_gets_it_after_the_job() -> None:
    bench = Bench()
    side = bench.begin()
    side.take(voucher(90))
    assert bench.close() == []
    bench.end(side, STREAM, 90)
    assert bench.refusal() is Refusal.LEASE
    bench.wait(CLAIM_DELAY_S)
    (claim,) = bench.claims()
    assert (claim.is_final, claim.voucher) == (1, voucher(90))


def test_money_that_was_not_claimed_in_time_is_said_to_be_lost() -> None:
    bench = Bench()
    side = bench.serve()
    bench.wait(CLAIM_DELAY_S)
    side.take(voucher(95))
    effects = bench.answer(90, is_closed=1)
    assert any(isinstance(effect, Note) and effect.event == "claim.lost" for effect in effects)


def test_an_answer_to_nothing_that_was_asked_changes_nothing() -> None:
    bench = Bench()
    side = bench.serve()
    assert bench.answer(90) == []
    assert side.claimed_uusd == 0
    assert bench.till.on_failed(ClaimFailed(LEASE, "?", is_final=True), now()) == []


def test_what_a_claim_says() -> None:
    bench = Bench()
    bench.serve()
    bench.wait(CLAIM_DELAY_S)
    (sent,) = [effect for effect in bench.effects if isinstance(effect, SendClaim)]
    assert (sent.lease, sent.coordinator) == (LEASE, BANK.node)
    (claim,) = bench.claims()
    assert claim == ClaimRecord(1, PROVIDER.node, LEASE, voucher(90), None, 0, NOW_MS + 5_000, ())


def test_what_is_claimed_already_is_not_claimed_again_before_the_answer() -> None:
    bench = Bench()
    bench.serve()
    assert len(bench.till.claim_now(now())) == 1
    assert bench.till.claim_now(now()) == []
    assert bench.wait(CLAIM_ANSWER_S - 0.1) == []
    (note,) = bench.wait(0.1)
    assert isinstance(note, Note)
    assert note.event == "claim.failed"


def test_what_was_paid_since_the_claim_is_claimed_after_the_answer() -> None:
    bench = Bench()
    side = bench.serve()
    bench.wait(CLAIM_DELAY_S)
    side.take(voucher(95))
    assert len(bench.answer(90)) == 1
    bench.wait(CLAIM_DELAY_S - 0.1)
    assert bench.claims() == []
    bench.wait(0.1)
    assert [claim.voucher for claim in bench.claims()] == [voucher(95)]


def test_of_an_answer_that_names_many_leases_its_own_is_taken_and_the_newest_of_it() -> None:
    bench = Bench()
    side = bench.serve()
    bench.wait(CLAIM_DELAY_S)
    others = [Credited(LeaseId(bytes([number]) * 32), 10_000, 1, 8, bytes(32), NOW_MS) for number in (1, 2)]
    mine = [Credited(LEASE, 90, 0, entry, bytes(32), NOW_MS) for entry in (5, 7)]
    word = acknowledged(BANK, others[0], replace(mine[1], claimed_uusd=91), others[1], mine[0])
    (stored,) = bench.till.on_answered(ClaimAnswered(LEASE, word), now(bench.at_s))
    assert isinstance(stored, StoreClaimed)
    assert (stored.claimed_uusd, stored.is_closed, stored.acknowledgement) == (91, False, word)
    assert (side.claimed_uusd, side.is_closed) == (91, False)


def test_the_second_try_comes_two_seconds_later_and_after_an_answer_all_begins_anew() -> None:
    bench = Bench()
    side = bench.serve()
    bench.wait(CLAIM_DELAY_S)
    for delay_s in (2, 4):
        (note,) = bench.till.on_failed(ClaimFailed(LEASE, "away", is_final=False), now(bench.at_s))
        assert isinstance(note, Note)
        assert note.event == "claim.failed"
        assert bench.wait(delay_s - 0.1) == []
        bench.wait(0.1)
        assert len(bench.claims()) == 1
    bench.answer(90)
    side.take(voucher(95))
    bench.till.claim_now(now(bench.at_s))
    bench.till.on_failed(ClaimFailed(LEASE, "away", is_final=False), now(bench.at_s))
    bench.wait(2)
    assert len(bench.claims()) == 1


def test_a_claim_that_failed_is_tried_for_ever() -> None:
    bench = Bench()
    bench.serve()
    bench.till._tries[LEASE] = 10_000
    bench.wait(CLAIM_DELAY_S)
    bench.till.on_failed(ClaimFailed(LEASE, "away", is_final=False), now(bench.at_s))
    bench.wait(CLAIM_RETRY_S_MAX)
    assert len(bench.claims()) == 1


def test_an_answer_for_less_than_is_known_lowers_nothing() -> None:
    bench = Bench()
    side = bench.serve()
    bench.wait(CLAIM_DELAY_S)
    side.claimed_uusd = 100
    (stored,) = bench.answer(90)
    assert isinstance(stored, StoreClaimed)
    assert stored.claimed_uusd == 100


def test_a_refusal_for_good_is_said_and_the_lease_remembered_while_it_could_be_ordered_under() -> None:
    bench = Bench()
    bench.serve()
    bench.wait(CLAIM_DELAY_S)
    note, _ = bench.till.on_failed(ClaimFailed(LEASE, "unknown lease", is_final=True), now(bench.at_s))
    assert isinstance(note, Note)
    assert note.event == "claim.refused"
    assert len(bench.till) == 1
    left_s = (lease().serve_until_ms + c.LEASE_SKEW_MS - NOW_MS) / 1000 - bench.at_s
    bench.wait(left_s - 0.1)
    assert len(bench.till) == 1
    bench.wait(0.1)
    assert len(bench.till) == 0
    assert bench.till.next_deadline() is None
    assert bench.till._tries == bench.till._sent == {}


def test_a_lease_that_is_served_no_more_is_given_up_when_its_job_is_over() -> None:
    bench = Bench()
    side = bench.begin()
    side.take(voucher(50))
    bench.wait((lease().serve_until_ms + c.LEASE_SKEW_MS - NOW_MS) / 1000)
    assert [claim.is_final for claim in bench.claims()] == [0] * len(bench.claims())
    assert side.is_final_wanted
    bench.till._sent.clear()
    bench.end(side, None, 50)
    bench.wait(CLAIM_DELAY_S)
    assert [claim.is_final for claim in bench.claims()] == [1]


def test_a_wish_to_close_is_fulfilled_at_once_between_jobs_and_forgotten_for_strangers() -> None:
    bench = Bench()
    bench.serve()
    bench.close()
    assert [claim.is_final for claim in bench.claims()] == [1]
    assert bench.close(LeaseId(bytes(32))) == []


def test_a_lease_that_is_closed_with_all_claimed_says_nothing() -> None:
    bench = Bench()
    bench.serve()
    bench.wait(CLAIM_DELAY_S)
    (stored,) = bench.answer(90, is_closed=1)
    assert isinstance(stored, StoreClaimed)
    assert stored.is_closed
    assert bench.wait(600) == []


def test_a_long_job_is_claimed_every_minute() -> None:
    bench = Bench()
    side = bench.begin()
    side.take(voucher(50))
    bench.wait(CLAIM_INTERVAL_S)
    bench.answer(50)
    side.take(voucher(70))
    bench.wait(CLAIM_INTERVAL_S)
    assert [claim.voucher for claim in bench.claims()] == [voucher(70)]


@pytest.mark.parametrize("stream", [None, STREAM])
def test_a_closed_lease_is_forgotten_when_its_last_job_is_over(stream: StreamId | None) -> None:
    bench = Bench()
    side = bench.begin()
    bench.wait((lease().serve_until_ms + c.LEASE_SKEW_MS - NOW_MS) / 1000)
    side.is_closed = True
    bench.end(side, stream, 90)
    if stream is not None:
        assert len(bench.till) == 1
        bench.till.on_stream_dropped(stream)
    assert len(bench.till) == 0
    assert bench.till.next_deadline() is None


def test_a_claim_that_is_refused_for_good_after_its_time_is_forgotten() -> None:
    bench = Bench()
    bench.serve()
    bench.wait(CLAIM_DELAY_S)
    bench.till.on_failed(ClaimFailed(LEASE, "away", is_final=False), now(bench.at_s))
    bench.wait((lease().serve_until_ms + c.LEASE_SKEW_MS - NOW_MS) / 1000 - bench.at_s)
    bench.till._sent[LEASE] = 90
    bench.till.on_failed(ClaimFailed(LEASE, "unknown lease", is_final=True), now(bench.at_s))
    assert len(bench.till) == 0
    assert bench.till._tries == {}
    assert bench.till.next_deadline() is None


# ---------------------------------------------------------------- restarts


def test_what_a_restart_takes_up() -> None:
    bench = Bench()
    kept = sign_record(receipt(lease=LEASE), PROVIDER)
    assert bench.till.restore(RestoreProvider(signed_lease(), voucher(90), kept, 40), now()) == []
    (side,) = bench.till.sides()
    assert (side.paid_uusd, side.claimed_uusd, side.receipt, side.is_closed) == (90, 40, kept, False)
    assert bench.wait(CLAIM_DELAY_S - 0.1) == []
    assert len(bench.wait(0.1)) == 1


def test_a_lease_from_before_that_is_served_no_more_is_given_up() -> None:
    bench = Bench()
    bench.at_s = (lease().serve_until_ms + c.LEASE_SKEW_MS - NOW_MS) / 1000 + 60
    bench.till.restore(RestoreProvider(signed_lease(), voucher(90), None, 90), now(bench.at_s))
    bench.wait(0)
    assert [claim.is_final for claim in bench.claims()] == [1]


def test_a_lease_that_was_given_up_before_a_restart_is_redeemed_and_not_served() -> None:
    bench = Bench()
    bench.till.restore(RestoreProvider(signed_lease(), voucher(90), None, 40, is_closing=True), now())
    assert bench.refusal() is Refusal.LEASE
    bench.wait(CLAIM_DELAY_S)
    assert [claim.is_final for claim in bench.claims()] == [1]
    (stored,) = bench.answer(90, is_closed=1)
    assert isinstance(stored, StoreClaimed)
    assert bench.wait(600) == []


def test_a_closed_lease_stays_closed_after_a_restart_until_nobody_can_order_under_it() -> None:
    bench = Bench()
    bench.till.restore(RestoreProvider(signed_lease(), voucher(90), None, 40, is_closed=True), now())
    assert bench.refusal() is Refusal.LEASE
    assert bench.wait(600) == []
    bench.wait((lease().serve_until_ms - NOW_MS + c.LEASE_SKEW_MS) / 1000)
    assert bench.claims() == []
    assert len(bench.till) == 0


def test_that_a_lease_is_given_up_is_on_disk_before_its_coordinator_hears_of_it() -> None:
    bench = Bench()
    bench.serve()
    bench.disk_hangs = True
    assert bench.close() == [StoreClosing(LEASE, 90)]
    (sent,) = bench.till.on_closing_stored(ClosingStored(LEASE, 90), now())
    assert isinstance(sent, SendClaim)


def test_while_the_disk_hangs_what_is_paid_is_claimed_and_not_the_end() -> None:
    bench = Bench()
    bench.serve()
    bench.disk_hangs = True
    bench.close()
    bench.wait(CLAIM_DELAY_S)
    assert [claim.is_final for claim in bench.claims()] == [0]
    bench.answer(90)
    assert bench.wait(60) == []
    bench.effects = bench.till.on_closing_stored(ClosingStored(LEASE, 90), now(bench.at_s))
    assert [claim.is_final for claim in bench.claims()] == [1]


def test_while_the_disk_hangs_what_nobody_would_claim_is_claimed_a_moment_later() -> None:
    bench = Bench()
    side = bench.serve()
    bench.wait(CLAIM_DELAY_S)
    bench.answer(90)
    bench.wait(600)
    side.take(voucher(95))
    bench.disk_hangs = True
    assert bench.close() == [StoreClosing(LEASE, 95)]
    assert bench.wait(CLAIM_DELAY_S - 0.1) == []
    bench.wait(0.2)
    assert [claim.is_final for claim in bench.claims()] == [0]


@pytest.mark.parametrize("is_closing", [False, True])
def test_after_a_restart_the_disk_knows_of_those_alone_that_were_given_up(is_closing: bool) -> None:
    bench = Bench()
    bench.disk_hangs = True
    bench.till.restore(RestoreProvider(signed_lease(), voucher(90), None, 40, is_closing=is_closing), now())
    effects = bench.close()
    assert any(isinstance(effect, StoreClosing) for effect in effects) is not is_closing
    assert any(isinstance(effect, SendClaim) for effect in effects) is is_closing


def test_the_last_claim_waits_for_the_best_voucher_to_be_on_disk() -> None:
    """It came after the disk was told that the lease is given up."""
    bench = Bench()
    side = bench.begin()
    side.take(voucher(70))
    bench.end(side, STREAM, 90)
    bench.wait(LAST_VOUCHER_S)
    bench.disk_hangs = True
    bench.till._sent.clear()
    assert bench.close() == [StoreClosing(LEASE, 70)]
    bench.last(90)
    assert bench.till.on_closing_stored(ClosingStored(LEASE, 70), now()) == [StoreClosing(LEASE, 90)]
    (sent,) = bench.till.on_closing_stored(ClosingStored(LEASE, 90), now())
    assert isinstance(sent, SendClaim)


def test_what_the_disk_says_of_a_lease_that_is_not_given_up_changes_nothing() -> None:
    bench = Bench()
    bench.serve()
    assert bench.till.on_closing_stored(ClosingStored(LEASE, 90), now()) == []
    assert bench.till.on_closing_stored(ClosingStored(LeaseId(bytes(32)), 90), now()) == []


def test_what_was_kept_is_claimed_after_a_restart() -> None:
    bench = Bench()
    bench.till.restore(RestoreProvider(signed_lease(), voucher(90), None, 40), now())
    bench.wait(CLAIM_DELAY_S)
    (claim,) = bench.claims()
    assert claim.voucher == voucher(90)


@pytest.mark.parametrize(
    ("signed", "kept"),
    [(Signed(signed_lease().body, bytes(64)), None), (signed_lease(), Signed(voucher(90).body, bytes(64)))],
)
def test_what_does_not_hold_is_not_restored(signed: Signed, kept: Signed | None) -> None:
    bench = Bench()
    (note,) = bench.till.restore(RestoreProvider(signed, kept, None, 0), now())
    assert isinstance(note, Note)
    assert note.event == "lease.not_restored"
    assert len(bench.till) == 0


def test_a_lease_for_another_key_than_ours_is_left_alone() -> None:
    bench = Bench()
    others = signed_lease(provider=BANK.node)
    (note,) = bench.till.restore(RestoreProvider(others, voucher(90), None, 0), now())
    assert isinstance(note, Note)
    assert note.event == "lease.not_restored"
    assert bench.wait(600) == []
    assert len(bench.till) == 0


def test_more_credited_than_was_paid_is_no_debt_of_ours() -> None:
    """A store was put back from a backup, or a coordinator says what is not true."""
    bench = Bench()
    side = bench.serve(90)
    bench.wait(CLAIM_DELAY_S)
    bench.answer(c.INTEGER_MAX)
    assert side.unclaimed_uusd == 0
    assert bench.wait(10 * CLAIM_RETRY_S_MAX) == []
    dear = bench.till.refusal(paid_order(), signed_lease(), OFFERED, PRICED, now(bench.at_s))
    assert dear is not None
    assert dear[0] is Refusal.LEASE, "nothing is left of it by its coordinator's own word"


def test_a_lease_that_was_closed_is_not_opened_by_another_word() -> None:
    bench = Bench()
    side = bench.serve(90)
    bench.wait(CLAIM_DELAY_S)
    side.is_closed = True
    bench.answer(90, is_closed=0)
    assert side.is_closed


def test_a_lease_with_all_claimed_is_not_claimed_after_a_restart() -> None:
    bench = Bench()
    bench.till.restore(RestoreProvider(signed_lease(), voucher(90), None, 90), now())
    assert bench.wait(600) == []
