"""What the ledger takes for no amount, whoever says so, and the assertions behind its rules."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.accounts import apply, check_entry
from protocol.book import Book
from protocol.ledger import (
    AMOUNT_MAX,
    CREDIT,
    FEE,
    TREASURY,
    AnyCommand,
    Budget,
    Entry,
    ExpireLease,
    MoneyRefusal,
    Posting,
    Refused,
    ReleaseHold,
    Resume,
    ReturnPayout,
    SettlePayout,
    SweepBudget,
    available,
    sponsor,
)
from tests.helpers_ledger import (
    CAP_UUSD,
    CLIENT,
    INTENT,
    LEASE,
    OTHER,
    PAYER,
    book_with,
    carried_out,
    claim,
    deposit,
    of,
    open_lease,
    order_payout,
    refuses,
)
from tests.helpers_records import NOW_MS

HELD = f"lease:{LEASE.hex()}"
SET_ASIDE = f"payout:{INTENT.hex()}"
DAY = 20_800


def leased() -> Book:
    return book_with(deposit(), open_lease())


# ---------------------------------------------------------------- what is no amount

COMMANDS = [
    (deposit(), "units"),
    (deposit(), "credit_uusd"),
    (ReleaseHold("payment-1", CLIENT.node, 1), "credit_uusd"),
    (Budget(DAY, 1), "day"),
    (Budget(DAY, 1), "amount_uusd"),
    (SweepBudget(DAY), "day"),
    (open_lease(), "relay_bps"),
    (open_lease(), "fee_bps"),
    (open_lease(), "cap_uusd"),
    (open_lease(), "serve_until_ms"),
    (open_lease(), "claim_by_ms"),
    (open_lease(), "day"),
    (claim(1), "paid_uusd"),
    (Resume(1), "gap_ms"),
    (order_payout(), "amount_uusd"),
    (SettlePayout(INTENT, "USDC-base", 1), "units"),
]
AMOUNTS = [pytest.param(*pair, id=f"{type(pair[0]).__name__} {pair[1]}") for pair in COMMANDS]


def some_amounts(*exceptions: str) -> list[Any]:
    """Amounts but for those of a name, `command.field` or `field`."""
    names = [(f"{type(command).__name__}.{name}", name) for command, name in COMMANDS]
    return [amount for amount, pair in zip(AMOUNTS, names, strict=True) if not set(pair) & set(exceptions)]


NO_AMOUNTS = [True, False, 1.0, 0.0, float("nan"), float("inf"), -1, -AMOUNT_MAX, c.INTEGER_MAX + 1, "1", b"1", [1]]


@pytest.mark.parametrize("value", NO_AMOUNTS, ids=repr)
@pytest.mark.parametrize(("command", "name"), AMOUNTS)
def test_nothing_but_a_whole_number_from_zero_up_is_an_amount(command: AnyCommand, name: str, value: object) -> None:
    refused = refuses(leased(), replace(command, **{name: value}), MoneyRefusal.BAD_AMOUNT)
    assert refused.text.startswith(f"{name} is no whole number from 0 to ")


@pytest.mark.parametrize(("command", "name"), some_amounts("OpenLease.day"))
def test_nothing_is_no_amount(command: AnyCommand, name: str) -> None:
    refuses(leased(), replace(command, **{name: None}), MoneyRefusal.BAD_AMOUNT)


@pytest.mark.parametrize(("command", "name"), some_amounts("paid_uusd"))
def test_no_amount_exceeds_what_can_be_added_up(command: AnyCommand, name: str) -> None:
    refuses(leased(), replace(command, **{name: AMOUNT_MAX + 1}), MoneyRefusal.BAD_AMOUNT)


def test_the_largest_amount_is_one() -> None:
    assert of(book_with(deposit(credit_uusd=AMOUNT_MAX, units=AMOUNT_MAX)), CLIENT) == AMOUNT_MAX


# ---------------------------------------------------------------- the assertions behind the rules


def entry_of(command: AnyCommand, *postings: tuple[str, int], **fields: Any) -> Entry:
    return Entry(command, tuple(Posting(account, CREDIT, amount) for account, amount in postings), **fields)


def test_deciding_changes_nothing() -> None:
    book = book_with(deposit())
    before = (dict(book.accounts), book.head)
    assert isinstance(apply(book, open_lease(), NOW_MS), Entry)
    assert (dict(book.accounts), book.head) == before


def test_every_decision_is_checked_against_the_state() -> None:
    book = leased()
    book.accounts[HELD] = 699  # as if somebody had taken the rest
    with pytest.raises(AssertionError, match="I2"):
        apply(book, claim(700), NOW_MS)


def test_an_entry_that_makes_money_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="I1"):
        check_entry(Book(), entry_of(Resume(0), (TREASURY, -1), (available(CLIENT.node), 2)), NOW_MS)


def test_an_entry_that_balances_only_across_assets_is_a_bug() -> None:
    postings = (Posting(TREASURY, CREDIT, -1), Posting(available(CLIENT.node), "BTC", 1))
    with pytest.raises(AssertionError, match="I1"):
        check_entry(Book(), Entry(Resume(0), postings), NOW_MS)


@pytest.mark.parametrize("account", [available(CLIENT.node), FEE, HELD, SET_ASIDE, sponsor(DAY), "suspense:x"])
def test_an_entry_that_takes_what_is_not_there_is_a_bug(account: str) -> None:
    with pytest.raises(AssertionError, match="I2"):
        check_entry(Book(), entry_of(Resume(0), (account, -1), (TREASURY, 1)), NOW_MS)


@pytest.mark.parametrize("account", [TREASURY, "gateway:BTC", "fx:credit"])
def test_the_world_outside_may_owe(account: str) -> None:
    check_entry(Book(), entry_of(Resume(0), (account, -1), (FEE, 1)), NOW_MS)


def test_an_account_may_pass_on_what_the_same_entry_brings() -> None:
    check_entry(Book(), entry_of(Resume(0), (FEE, -1), (TREASURY, -1), (FEE, 1), (available(CLIENT.node), 1)), NOW_MS)


def test_an_entry_with_a_fraction_is_a_bug() -> None:
    postings = (Posting(TREASURY, CREDIT, -1.0), Posting(FEE, CREDIT, 1.0))
    with pytest.raises(AssertionError, match="whole"):
        check_entry(Book(), Entry(Resume(0), postings), NOW_MS)


@pytest.mark.parametrize("claimed_uusd", [699, CAP_UUSD + 1])
def test_an_entry_with_a_claim_that_falls_or_exceeds_the_cap_is_a_bug(claimed_uusd: int) -> None:
    book = leased()
    carried_out(book.command(claim(700), NOW_MS))
    lease = replace(book.leases[LEASE], claimed_uusd=claimed_uusd)
    with pytest.raises(AssertionError, match="I3"):
        check_entry(book, Entry(claim(AMOUNT_MAX), (), lease=lease), NOW_MS)


def test_a_new_lease_with_a_claim_below_zero_is_a_bug() -> None:
    lease = replace(leased().leases[LEASE], claimed_uusd=-1)
    with pytest.raises(AssertionError, match="I3"):
        check_entry(Book(), Entry(open_lease(), (), lease=lease), NOW_MS)


def test_an_entry_that_changes_a_closed_lease_is_a_bug() -> None:
    book = leased()
    carried_out(book.command(claim(700, is_final=1), NOW_MS))
    with pytest.raises(AssertionError, match="I12"):
        check_entry(book, Entry(claim(700), (), lease=replace(book.leases[LEASE], is_closed=False)), NOW_MS)


def test_an_entry_with_more_than_was_signed_is_a_bug() -> None:
    book = leased()
    with pytest.raises(AssertionError, match="I4"):
        check_entry(book, Entry(claim(700), (), lease=replace(book.leases[LEASE], claimed_uusd=701)), NOW_MS)


def test_an_entry_for_a_claim_of_somebody_else_is_a_bug() -> None:
    book = leased()
    with pytest.raises(AssertionError, match="I10"):
        check_entry(book, Entry(claim(700, provider=OTHER.node), (), lease=book.leases[LEASE]), NOW_MS)


def test_an_entry_that_says_nothing_new_is_a_bug() -> None:
    book = leased()
    carried_out(book.command(claim(700), NOW_MS))
    with pytest.raises(AssertionError, match="I7"):
        check_entry(book, Entry(claim(700), (), lease=book.leases[LEASE]), NOW_MS)


def test_a_second_entry_under_one_number_is_a_bug() -> None:
    book = leased()
    with pytest.raises(AssertionError, match="I7"):
        check_entry(book, Entry(SweepBudget(DAY), (), f"lease:{LEASE.hex()}"), NOW_MS)


def test_an_entry_that_credits_a_payment_and_leaves_no_number_is_a_bug() -> None:
    entry = entry_of(deposit(credit_uusd=9), ("fx:credit", -9), (available(CLIENT.node), 9))
    with pytest.raises(AssertionError, match="I8"):
        check_entry(Book(), entry, NOW_MS)


@pytest.mark.parametrize(
    "command", [deposit(credit_uusd=10), deposit(credit_uusd=9, is_held=1), ReleaseHold("payment-1", CLIENT.node, 10)]
)
def test_an_entry_with_another_credit_than_was_confirmed_is_a_bug(command: AnyCommand) -> None:
    moves = (("fx:credit", -9), (available(CLIENT.node), 9))
    with pytest.raises(AssertionError, match="I8"):
        check_entry(Book(), entry_of(command, *moves, reference="deposit:payment-1"), NOW_MS)


def test_an_entry_for_a_payout_that_nobody_ordered_is_a_bug() -> None:
    payout = carried_out(apply(book_with(deposit()), order_payout(), NOW_MS)).payout
    with pytest.raises(AssertionError, match="I9"):
        check_entry(book_with(deposit()), Entry(ReturnPayout(INTENT), (), payout=payout), NOW_MS)


def test_an_entry_that_orders_a_payout_again_is_a_bug() -> None:
    book = book_with(deposit(), order_payout())
    with pytest.raises(AssertionError, match="I9"):
        check_entry(book, Entry(order_payout(), (), payout=book.payouts[INTENT]), NOW_MS)


def test_an_entry_that_resolves_a_payout_again_is_a_bug() -> None:
    book = book_with(deposit(), order_payout(), SettlePayout(INTENT, "USDC-base", 999))
    with pytest.raises(AssertionError, match="I9"):
        check_entry(book, Entry(ReturnPayout(INTENT), (), payout=book.payouts[INTENT]), NOW_MS)


def test_an_entry_that_closes_a_lease_before_its_time_is_a_bug() -> None:
    book = leased()
    carried_out(book.command(Resume(5_000), NOW_MS))
    closed = Entry(ExpireLease(LEASE), (), lease=replace(book.leases[LEASE], is_closed=True))
    over_ms = book.leases[LEASE].claim_by_ms + 5_000
    check_entry(book, closed, over_ms + 1)
    with pytest.raises(AssertionError, match="I11"):
        check_entry(book, closed, over_ms)


def test_refusals_are_one_sentence_for_people() -> None:
    verdict = Book().command(claim(1), NOW_MS)
    assert isinstance(verdict, Refused)
    assert verdict.text
    assert "\n" not in verdict.text
    assert PAYER.node.hex() not in verdict.text
