"""The ledger's rules, one by one: what each command moves, what it refuses, and that nothing is taken for a number."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import constants as c
from protocol.accounts import cut_uusd, cuts_uusd
from protocol.book import Book
from protocol.ids import LeaseId
from protocol.ledger import (
    AMOUNT_MAX,
    CREDIT,
    FEE,
    TREASURY,
    AnyCommand,
    Budget,
    ExpireLease,
    MoneyRefusal,
    Posting,
    ReleaseHold,
    Resume,
    ReturnPayout,
    SettlePayout,
    SweepBudget,
    available,
    sponsor,
)
from protocol.records import Signed
from tests.helpers_ledger import (
    CAP_UUSD,
    CLAIM_MS,
    CLIENT,
    DEPOSIT_UUSD,
    INTENT,
    LEASE,
    OTHER,
    PROVIDER,
    RELAY,
    SERVE_MS,
    book_with,
    carried_out,
    claim,
    deposit,
    of,
    open_lease,
    order_payout,
    refuses,
    says_nothing_new,
)
from tests.helpers_records import NOW_MS

HELD = f"lease:{LEASE.hex()}"
SET_ASIDE = f"payout:{INTENT.hex()}"
CLAIM_BY_MS = NOW_MS + SERVE_MS + CLAIM_MS
DAY = 20_800


def leased(**changes: Any) -> Book:
    return book_with(deposit(), open_lease(**changes))


# ---------------------------------------------------------------- deposits


def test_a_deposit_is_credited_by_the_quote_and_its_units_are_kept() -> None:
    book = book_with(deposit())
    assert of(book, CLIENT) == DEPOSIT_UUSD
    assert book.balance("fx:credit") == -DEPOSIT_UUSD
    assert book.balance("gateway:USDC-base") == -999_000
    assert book.balance("fx:USDC-base") == 999_000


def test_a_deposit_moves_its_units_in_its_own_asset() -> None:
    entry = carried_out(Book().command(deposit(), NOW_MS))
    assert {posting.asset for posting in entry.postings if "USDC" in posting.account} == {"USDC-base"}
    assert {posting.asset for posting in entry.postings if "USDC" not in posting.account} == {CREDIT}


def test_a_payment_is_credited_once() -> None:
    book = book_with(deposit())
    says_nothing_new(book, deposit())


@pytest.mark.parametrize(
    "change", [{"credit_uusd": 5}, {"key": OTHER.node}, {"units": 1}, {"asset": "BTC"}, {"is_held": 1}]
)
def test_a_payment_that_says_something_else_the_second_time_is_a_conflict(change: dict[str, Any]) -> None:
    refuses(book_with(deposit()), deposit(**change), MoneyRefusal.CONFLICT)


def test_two_payments_are_credited_twice() -> None:
    assert of(book_with(deposit(), deposit(payment="payment-2")), CLIENT) == 2 * DEPOSIT_UUSD


def test_a_deposit_worth_nothing_is_remembered_and_moves_nothing() -> None:
    entry = carried_out(Book().command(deposit(units=0, credit_uusd=0), NOW_MS))
    assert entry.postings == ()
    assert entry.reference == "deposit:payment-1"


def test_a_deposit_that_is_held_is_nobodys_to_spend_until_somebody_has_looked() -> None:
    book = book_with(deposit(is_held=1))
    assert of(book, CLIENT) == 0
    carried_out(book.command(ReleaseHold("payment-1", CLIENT.node, DEPOSIT_UUSD), NOW_MS))
    assert of(book, CLIENT) == DEPOSIT_UUSD
    assert book.balance(f"suspense:payment-1:{CLIENT.node.hex()}") == 0


def test_a_deposit_is_released_once() -> None:
    release = ReleaseHold("payment-1", CLIENT.node, DEPOSIT_UUSD)
    says_nothing_new(book_with(deposit(is_held=1), release), release)


def test_a_released_deposit_is_not_released_to_somebody_else_as_well() -> None:
    book = book_with(deposit(is_held=1), ReleaseHold("payment-1", CLIENT.node, DEPOSIT_UUSD))
    refuses(book, ReleaseHold("payment-1", OTHER.node, DEPOSIT_UUSD), MoneyRefusal.CONFLICT)


@pytest.mark.parametrize(
    "release",
    [
        ReleaseHold("payment-2", CLIENT.node, DEPOSIT_UUSD),
        ReleaseHold("payment-1", OTHER.node, DEPOSIT_UUSD),
        ReleaseHold("payment-1", CLIENT.node, DEPOSIT_UUSD - 1),
        ReleaseHold("payment-1", CLIENT.node, DEPOSIT_UUSD + 1),
        ReleaseHold("payment-2", CLIENT.node, 0),
    ],
)
def test_only_a_deposit_that_is_held_is_released_whole_and_to_whom_it_belongs(release: ReleaseHold) -> None:
    refuses(book_with(deposit(is_held=1)), release, MoneyRefusal.UNKNOWN_HOLD)


def test_a_deposit_that_was_never_held_cannot_be_released() -> None:
    refuses(book_with(deposit()), ReleaseHold("payment-1", CLIENT.node, DEPOSIT_UUSD), MoneyRefusal.UNKNOWN_HOLD)


# ---------------------------------------------------------------- leases


def test_a_lease_locks_its_whole_cap() -> None:
    book = leased()
    assert of(book, CLIENT) == DEPOSIT_UUSD - CAP_UUSD
    assert book.balance(HELD) == CAP_UUSD


def test_a_lease_is_kept_as_it_was_asked_for() -> None:
    command = open_lease(relay=RELAY.node, relay_bps=300, fee_bps=100)
    lease = book_with(deposit(), Resume(7), command).leases[LEASE]
    for name in (
        *("lease", "payer", "provider", "relay", "relay_bps", "fee_bps", "cap_uusd"),
        *("serve_until_ms", "claim_by_ms"),
    ):
        assert getattr(lease, name) == getattr(command, name), name
    assert (lease.account, lease.claimed_uusd, lease.is_closed) == (available(CLIENT.node), 0, False)
    assert lease.downtime_ms == 7


def test_a_lease_may_take_everything_and_not_one_more() -> None:
    refuses(book_with(deposit()), open_lease(cap_uusd=DEPOSIT_UUSD + 1), MoneyRefusal.INSUFFICIENT)
    assert of(book_with(deposit(), open_lease(cap_uusd=DEPOSIT_UUSD)), CLIENT) == 0


def test_a_refusal_for_want_of_money_says_how_much_there_is() -> None:
    refused = refuses(book_with(deposit()), open_lease(cap_uusd=DEPOSIT_UUSD + 1), MoneyRefusal.INSUFFICIENT)
    assert "$1.000001 is wanted and $1.00 is available" in refused.text


def test_what_is_locked_cannot_be_locked_again() -> None:
    book = leased(cap_uusd=DEPOSIT_UUSD)
    refuses(book, open_lease(lease=LeaseId(b"\x0c" * 32), cap_uusd=1), MoneyRefusal.INSUFFICIENT)


def test_the_same_lease_asked_for_again_locks_nothing_more() -> None:
    says_nothing_new(leased(), open_lease())


@pytest.mark.parametrize(
    "change",
    [
        {"serve_until_ms": NOW_MS + SERVE_MS + 1, "claim_by_ms": CLAIM_BY_MS + 1},
        {"fee_bps": 50},
        {"request": Signed(b"\x00", b"\x01" * 64)},
    ],
    ids=["a second later", "when the fee has changed", "signed anew"],
)
def test_it_is_the_same_lease_when_it_is_asked_for_again_later(change: dict[str, Any]) -> None:
    says_nothing_new(leased(), open_lease(**change))


def test_it_is_the_same_lease_when_it_was_closed_in_between() -> None:
    book = leased()
    carried_out(book.command(claim(0, is_final=1), NOW_MS))
    says_nothing_new(book, open_lease())


@pytest.mark.parametrize(
    "change",
    [
        {"cap_uusd": CAP_UUSD + 1},
        {"provider": OTHER.node},
        {"payer": OTHER.node},
        {"client": OTHER.node},
        {"relay": RELAY.node},
        {"request": Signed(b"\x01", bytes(64))},
    ],
)
def test_another_lease_under_the_same_number_is_a_conflict(change: dict[str, Any]) -> None:
    refuses(leased(), open_lease(**change), MoneyRefusal.CONFLICT)


def test_cuts_of_more_than_the_whole_are_refused() -> None:
    book = book_with(deposit())
    refuses(book, open_lease(relay=RELAY.node, relay_bps=6_000, fee_bps=4_001), MoneyRefusal.BAD_AMOUNT)
    carried_out(book.command(open_lease(relay=RELAY.node, relay_bps=6_000, fee_bps=4_000), NOW_MS))


def test_a_cut_for_no_relay_is_refused() -> None:
    refuses(book_with(deposit()), open_lease(relay=None, relay_bps=1), MoneyRefusal.BAD_AMOUNT)


def test_a_lease_needs_time_for_claims_after_it_was_served() -> None:
    book = book_with(deposit())
    for claim_by_ms in (NOW_MS + SERVE_MS, NOW_MS + SERVE_MS - 1):
        refuses(book, open_lease(claim_by_ms=claim_by_ms), MoneyRefusal.BAD_AMOUNT)
    carried_out(book.command(open_lease(claim_by_ms=NOW_MS + SERVE_MS + 1), NOW_MS))


# ---------------------------------------------------------------- claims


def test_a_claim_credits_the_provider() -> None:
    book = leased()
    carried_out(book.command(claim(700), NOW_MS))
    assert of(book, PROVIDER) == 700
    assert book.balance(HELD) == CAP_UUSD - 700
    assert book.leases[LEASE].claimed_uusd == 700


def test_a_claim_is_a_total_so_only_what_is_new_is_credited() -> None:
    book = leased()
    for paid_uusd in (700, 900):
        carried_out(book.command(claim(paid_uusd), NOW_MS))
    assert of(book, PROVIDER) == 900


@pytest.mark.parametrize("paid_uusd", [700, 699, 0])
def test_a_claim_that_says_nothing_new_changes_nothing(paid_uusd: int) -> None:
    book = leased()
    carried_out(book.command(claim(700), NOW_MS))
    says_nothing_new(book, claim(paid_uusd))


@pytest.mark.parametrize("paid_uusd", [CAP_UUSD, CAP_UUSD + 1, AMOUNT_MAX + 1, c.INTEGER_MAX])
def test_a_voucher_for_more_than_the_cap_is_worth_the_cap(paid_uusd: int) -> None:
    book = leased()
    carried_out(book.command(claim(paid_uusd), NOW_MS))
    assert of(book, PROVIDER) == CAP_UUSD
    assert book.leases[LEASE].claimed_uusd == CAP_UUSD


def test_a_claim_on_a_lease_that_nobody_issued_is_refused() -> None:
    refuses(book_with(deposit()), claim(1), MoneyRefusal.UNKNOWN_LEASE)


def test_a_claim_of_another_provider_is_refused() -> None:
    refuses(leased(), claim(700, provider=OTHER.node), MoneyRefusal.WRONG_PROVIDER)
    refuses(leased(), claim(0, provider=OTHER.node, is_final=1), MoneyRefusal.WRONG_PROVIDER)


def test_a_final_claim_gives_the_rest_back() -> None:
    book = leased()
    carried_out(book.command(claim(700, is_final=1), NOW_MS))
    assert of(book, CLIENT) == DEPOSIT_UUSD - 700
    assert book.balance(HELD) == 0
    assert book.leases[LEASE].is_closed is True


def test_a_claim_that_is_not_final_leaves_the_lease_open() -> None:
    book = leased()
    carried_out(book.command(claim(700), NOW_MS))
    assert book.leases[LEASE].is_closed is False


def test_a_provider_may_give_a_lease_up_without_a_voucher() -> None:
    book = leased()
    carried_out(book.command(claim(0, is_final=1, voucher=None), NOW_MS))
    assert (of(book, PROVIDER), of(book, CLIENT)) == (0, DEPOSIT_UUSD)


def test_a_final_claim_of_less_than_was_claimed_takes_nothing_back() -> None:
    book = leased()
    carried_out(book.command(claim(700), NOW_MS))
    carried_out(book.command(claim(0, is_final=1), NOW_MS))
    assert (of(book, PROVIDER), of(book, CLIENT)) == (700, DEPOSIT_UUSD - 700)


def test_a_lease_that_is_claimed_in_full_can_still_be_closed() -> None:
    book = leased()
    carried_out(book.command(claim(CAP_UUSD), NOW_MS))
    entry = carried_out(book.command(claim(CAP_UUSD, is_final=1), NOW_MS))
    assert entry.postings == ()
    assert book.leases[LEASE].is_closed


def test_a_closed_lease_pays_no_more_and_answers_the_old_claim_as_before() -> None:
    book = leased()
    carried_out(book.command(claim(700, is_final=1), NOW_MS))
    refuses(book, claim(701), MoneyRefusal.LEASE_CLOSED)
    refuses(book, claim(701, is_final=1), MoneyRefusal.LEASE_CLOSED)
    says_nothing_new(book, claim(700, is_final=1))
    says_nothing_new(book, claim(600))


def test_the_rest_of_the_sponsors_lease_goes_back_to_its_day() -> None:
    book = book_with(Budget(DAY, 1_000_000), open_lease(day=DAY), claim(700, is_final=1))
    assert book.balance(sponsor(DAY)) == 1_000_000 - 700


# ---------------------------------------------------------------- cuts


def test_fee_and_relay_get_their_cuts_of_a_claim() -> None:
    book = leased(relay=RELAY.node, relay_bps=2_000, fee_bps=500)
    carried_out(book.command(claim(10_000), NOW_MS))
    assert (book.balance(FEE), of(book, RELAY), of(book, PROVIDER)) == (500, 2_000, 7_500)


def test_cuts_do_not_depend_on_how_often_one_claims() -> None:
    terms = {"relay": RELAY.node, "relay_bps": 1_234, "fee_bps": 77}
    at_once, in_steps = leased(**terms), leased(**terms)
    carried_out(at_once.command(claim(9_999), NOW_MS))
    for paid_uusd in range(11, 10_000, 11):
        carried_out(in_steps.command(claim(paid_uusd), NOW_MS))
    assert {name: at_once.balance(name) for name in at_once.accounts} == {
        name: in_steps.balance(name) for name in at_once.accounts
    }


def test_no_claim_takes_from_a_provider_that_has_withdrawn_everything() -> None:
    """Where both cuts grow by one as the total does, there is nothing left for a third to pay them from."""
    book = leased(relay=RELAY.node, relay_bps=2_000, fee_bps=100)
    carried_out(book.command(claim(9_999), NOW_MS))
    carried_out(book.command(order_payout(key=PROVIDER.node, amount_uusd=of(book, PROVIDER)), NOW_MS))
    carried_out(book.command(claim(10_000), NOW_MS))
    assert of(book, PROVIDER) in (0, 1)


def test_a_fee_of_the_whole_leaves_nothing_for_others() -> None:
    book = leased(fee_bps=10_000)
    entry = carried_out(book.command(claim(700), NOW_MS))
    assert book.balance(FEE) == 700
    assert {posting.account for posting in entry.postings} == {HELD, FEE}


def test_a_fee_of_the_whole_leaves_a_relay_nothing() -> None:
    assert cuts_uusd(700, 10_000, 0) == (700, 0)


def test_a_provider_that_gets_nothing_of_a_claim_is_not_in_its_entry() -> None:
    book = leased(relay=RELAY.node, relay_bps=5_000, fee_bps=5_000)
    entry = carried_out(book.command(claim(2), NOW_MS))
    assert {posting.account for posting in entry.postings} == {HELD, FEE, available(RELAY.node)}


def test_a_claim_too_small_for_a_cut_posts_none() -> None:
    book = leased(relay=RELAY.node, relay_bps=100, fee_bps=100)
    entry = carried_out(book.command(claim(1), NOW_MS))
    assert entry.postings == (Posting(HELD, CREDIT, -1), Posting(available(PROVIDER.node), CREDIT, 1))


@pytest.mark.parametrize(("total", "bps", "cut"), [(0, 500, 0), (19, 500, 0), (20, 500, 1), (10_000, 10_000, 10_000)])
def test_a_cut_is_rounded_down(total: int, bps: int, cut: int) -> None:
    assert cut_uusd(total, bps) == cut


@given(st.integers(0, 10**12), st.integers(0, 10_000), st.data())
def test_cuts_are_what_was_agreed_to_the_unit_and_never_fall(total: int, fee_bps: int, data: st.DataObject) -> None:
    relay_bps = data.draw(st.integers(0, 10_000 - fee_bps))
    fee, relay = cuts_uusd(total, fee_bps, relay_bps)
    next_fee, next_relay = cuts_uusd(total + 1, fee_bps, relay_bps)
    assert fee == total * fee_bps // 10_000
    assert total * relay_bps // 10_000 <= relay <= -(-total * relay_bps // 10_000)
    assert fee + relay <= total
    assert next_fee >= fee
    assert next_relay >= relay
    assert next_fee + next_relay <= fee + relay + 1


# ---------------------------------------------------------------- the end of a lease


def test_a_lease_ends_when_the_time_for_claims_is_over_and_not_before() -> None:
    book = leased()
    carried_out(book.command(claim(700), NOW_MS))
    refuses(book, ExpireLease(LEASE), MoneyRefusal.NOT_YET, CLAIM_BY_MS)
    carried_out(book.command(ExpireLease(LEASE), CLAIM_BY_MS + 1))
    assert (of(book, PROVIDER), of(book, CLIENT), book.balance(HELD)) == (700, DEPOSIT_UUSD - 700, 0)
    assert book.leases[LEASE].is_closed
    assert book.leases[LEASE].claimed_uusd == 700


def test_a_lease_ends_once() -> None:
    book = leased()
    carried_out(book.command(ExpireLease(LEASE), CLAIM_BY_MS + 1))
    says_nothing_new(book, ExpireLease(LEASE), CLAIM_BY_MS + 2)


def test_no_claim_after_the_end() -> None:
    book = leased()
    carried_out(book.command(ExpireLease(LEASE), CLAIM_BY_MS + 1))
    refuses(book, claim(700), MoneyRefusal.LEASE_CLOSED)


def test_a_late_claim_is_good_as_long_as_nobody_has_ended_the_lease() -> None:
    book = leased()
    carried_out(book.command(claim(700), CLAIM_BY_MS + 10**9))
    assert of(book, PROVIDER) == 700


def test_time_in_which_the_coordinator_was_away_is_added_to_the_time_for_claims() -> None:
    book = leased()
    carried_out(book.command(Resume(1_000), NOW_MS))
    carried_out(book.command(Resume(500), NOW_MS))
    refuses(book, ExpireLease(LEASE), MoneyRefusal.NOT_YET, CLAIM_BY_MS + 1_500)
    carried_out(book.command(ExpireLease(LEASE), CLAIM_BY_MS + 1_501))


def test_time_before_a_lease_was_issued_is_not_added_to_it() -> None:
    book = book_with(deposit(), Resume(1_000), open_lease())
    carried_out(book.command(ExpireLease(LEASE), CLAIM_BY_MS + 1))


def test_a_lease_that_nobody_issued_does_not_end() -> None:
    refuses(Book(), ExpireLease(LEASE), MoneyRefusal.UNKNOWN_LEASE, CLAIM_BY_MS + 1)


# ---------------------------------------------------------------- the public chat


def test_the_public_chat_gets_its_budget_once_a_day() -> None:
    book = book_with(Budget(DAY, 1_000_000))
    says_nothing_new(book, Budget(DAY, 1_000_000))
    says_nothing_new(book, Budget(DAY, 2_000_000))
    assert (book.balance(sponsor(DAY)), book.balance(TREASURY)) == (1_000_000, -1_000_000)
    carried_out(book.command(Budget(DAY + 1, 2_000_000), NOW_MS))
    assert book.balance(sponsor(DAY + 1)) == 2_000_000


def test_the_public_chat_spends_no_more_than_its_budget() -> None:
    book = book_with(deposit(), Budget(DAY, CAP_UUSD - 1))
    refuses(book, open_lease(day=DAY), MoneyRefusal.INSUFFICIENT)


def test_a_lease_of_the_public_chat_is_paid_by_its_day_and_by_no_client() -> None:
    book = book_with(deposit(), Budget(DAY, 1_000_000), open_lease(day=DAY))
    assert (book.balance(sponsor(DAY)), of(book, CLIENT)) == (1_000_000 - CAP_UUSD, DEPOSIT_UUSD)


def test_what_is_left_of_a_day_goes_back() -> None:
    book = book_with(Budget(DAY, 1_000_000), open_lease(day=DAY), SweepBudget(DAY))
    assert (book.balance(sponsor(DAY)), book.balance(TREASURY)) == (0, -CAP_UUSD)
    says_nothing_new(book, SweepBudget(DAY))
    says_nothing_new(book, Budget(DAY, 1_000_000))


def test_what_a_lease_gives_back_after_its_day_can_be_swept_too() -> None:
    book = book_with(Budget(DAY, 1_000_000), open_lease(day=DAY), SweepBudget(DAY), claim(700, is_final=1))
    carried_out(book.command(SweepBudget(DAY), NOW_MS))
    assert book.balance(TREASURY) == -700


# ---------------------------------------------------------------- payouts


def test_the_money_of_a_payout_is_set_aside_first() -> None:
    book = book_with(deposit(), order_payout())
    assert (of(book, CLIENT), book.balance(SET_ASIDE)) == (DEPOSIT_UUSD - 1_000, 1_000)
    payout = book.payouts[INTENT]
    assert (payout.intent, payout.amount_uusd, payout.is_resolved) == (INTENT, 1_000, False)


def test_everything_available_can_leave_and_not_one_more() -> None:
    refuses(book_with(deposit()), order_payout(amount_uusd=DEPOSIT_UUSD + 1), MoneyRefusal.INSUFFICIENT)
    assert of(book_with(deposit(), order_payout(amount_uusd=DEPOSIT_UUSD)), CLIENT) == 0


def test_what_is_locked_in_a_lease_cannot_leave() -> None:
    refuses(leased(), order_payout(amount_uusd=DEPOSIT_UUSD - CAP_UUSD + 1), MoneyRefusal.INSUFFICIENT)


def test_a_payout_of_nothing_is_refused() -> None:
    refuses(book_with(deposit()), order_payout(amount_uusd=0), MoneyRefusal.BAD_AMOUNT)


def test_the_same_payout_ordered_again_sets_nothing_more_aside() -> None:
    book = book_with(deposit(), order_payout())
    says_nothing_new(book, order_payout())
    refuses(book, order_payout(amount_uusd=999), MoneyRefusal.CONFLICT)


def test_a_payout_that_was_sent_has_left() -> None:
    book = book_with(deposit(), order_payout(), SettlePayout(INTENT, "USDC-base", 998))
    assert book.balance(SET_ASIDE) == 0
    assert book.balance("fx:credit") == 1_000 - DEPOSIT_UUSD
    assert (book.balance("gateway:USDC-base"), book.balance("fx:USDC-base")) == (998 - 999_000, 999_000 - 998)
    assert book.payouts[INTENT].is_resolved is True


def test_a_payout_that_was_not_sent_is_its_owners_again() -> None:
    book = book_with(deposit(), order_payout(), ReturnPayout(INTENT))
    assert (of(book, CLIENT), book.balance(SET_ASIDE)) == (DEPOSIT_UUSD, 0)
    assert book.payouts[INTENT].is_resolved is True


@pytest.mark.parametrize("resolution", [SettlePayout(INTENT, "USDC-base", 998), ReturnPayout(INTENT)])
def test_a_payout_is_resolved_once(resolution: AnyCommand) -> None:
    book = book_with(deposit(), order_payout(), resolution)
    says_nothing_new(book, resolution)
    says_nothing_new(book, order_payout())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (SettlePayout(INTENT, "USDC-base", 998), ReturnPayout(INTENT)),
        (ReturnPayout(INTENT), SettlePayout(INTENT, "USDC-base", 998)),
    ],
)
def test_a_payout_has_left_or_come_back_and_never_both(first: AnyCommand, second: AnyCommand) -> None:
    refuses(book_with(deposit(), order_payout(), first), second, MoneyRefusal.PAYOUT_RESOLVED)


def test_a_payout_that_left_as_something_else_is_a_conflict() -> None:
    book = book_with(deposit(), order_payout(), SettlePayout(INTENT, "USDC-base", 998))
    refuses(book, SettlePayout(INTENT, "USDC-base", 997), MoneyRefusal.CONFLICT)


@pytest.mark.parametrize("resolution", [SettlePayout(INTENT, "USDC-base", 998), ReturnPayout(INTENT)])
def test_a_payout_that_nobody_ordered_is_not_resolved(resolution: AnyCommand) -> None:
    refuses(book_with(deposit()), resolution, MoneyRefusal.UNKNOWN_PAYOUT)


# ---------------------------------------------------------------- the coordinator's absences


def test_absences_add_up() -> None:
    assert book_with(Resume(3), Resume(4)).downtime_ms == 7


def test_an_absence_moves_nothing_and_is_an_entry() -> None:
    book = book_with(Resume(3))
    assert not any(book.accounts.values())
    assert len(book.entries) == 1
