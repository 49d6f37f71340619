"""What one answer of the gateway does to one deposit: every rule alone, and all of them in any order."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from coordinator.payments.deposit_rules import (
    DAY_MS,
    HOUR_MS,
    NEVER_ENDING_MS,
    SETTLED,
    TOLD_PAID_MS,
    Deposit,
    Limits,
    Stage,
    by_hand,
    failed_to_ask,
    hinted,
    judge,
    opened,
    with_hint,
)
from coordinator.payments.gateway import Invoice
from coordinator.payments.status import PaymentStatus
from protocol.book import Book
from protocol.formats.amounts import BadAmount, credited_uusd
from protocol.ids import NodeId
from protocol.ledger import AMOUNT_MAX, Entry, available

NOW_MS = 1_795_000_000_000
NODE = NodeId(bytes(31) + b"\x01")
LIMITS = Limits(500_000_000, 2_000_000_000)
EXPECTED = 5_000_001


def invoice(**changes: Any) -> Invoice:
    """What the gateway answers about the payment below."""
    fields: dict[str, Any] = {
        "gateway_id": "pay_1",
        "code": "USDC",
        "network": "base",
        "address": "0x1",
        "status": PaymentStatus.PENDING,
        "status_text": "pending",
        "amount": EXPECTED,
        "amount_raw": "5.000001",
        "received": None,
        "received_raw": None,
        "amount_uusd": 5_000_000,
        "business_id": "biz",
        "order_id": (b"d" * 16).hex(),
        "expires_at_ms": NOW_MS + 900_000,
        "tx_hash": None,
        **changes,
    }
    return Invoice(**fields)


def deposit(**changes: Any) -> Deposit:
    """An open one of five dollars."""
    new = Deposit(b"d" * 16, NODE, "r", 5_000_000, "USDC", "base", Stage.NEW, created_ms=NOW_MS)
    return replace(opened(new, invoice(), NOW_MS), **changes)


def confirmed(**changes: Any) -> Invoice:
    return invoice(status=PaymentStatus.CONFIRMED, received=EXPECTED, received_raw="5.000001", **changes)


def test_what_was_received_is_credited_once_by_the_quote_rounded_down() -> None:
    for received in (1, EXPECTED - 1, EXPECTED, 2 * EXPECTED, 3):
        judged = judge(deposit(), replace(confirmed(), received=received), NOW_MS, 0, LIMITS)
        assert judged.deposit.credited_uusd == received * 5_000_000 // EXPECTED
        if judged.deposit.credited_uusd:
            assert judged.command is not None
            assert (judged.command.payment, judged.command.units) == ("pay_1", received)
            assert judge(judged.deposit, confirmed(), NOW_MS, 0, LIMITS).command is None
        else:
            assert judged.deposit.stage is Stage.REVIEW


@pytest.mark.parametrize("status", [None, *(each for each in PaymentStatus if each not in ("confirmed", "forwarded"))])
def test_nothing_is_credited_before_it_is_confirmed(status: PaymentStatus | None) -> None:
    judged = judge(deposit(), replace(confirmed(), status=status), NOW_MS, 0, LIMITS)
    assert judged.command is None
    assert judged.deposit.stage is Stage.OPEN
    assert judged.deposit.received_units == EXPECTED


def test_a_confirmed_payment_of_an_unknown_amount_waits_for_a_person() -> None:
    judged = judge(deposit(), replace(confirmed(), received=None, received_raw=None), NOW_MS, 0, LIMITS)
    assert (judged.command, judged.deposit.stage, judged.deposit.next_poll_ms) == (None, Stage.REVIEW, None)
    assert "does not say how much" in judged.deposit.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"gateway_id": "pay_2"},
        {"code": "USDT"},
        {"network": "polygon"},
        {"address": "0x2"},
        {"amount": EXPECTED - 1},
        {"amount_uusd": 4_990_000},
        {"order_id": "e" * 32},
    ],
)
def test_an_answer_about_something_else_is_not_credited(changes: dict[str, Any]) -> None:
    judged = judge(deposit(), replace(confirmed(), **changes), NOW_MS, 0, LIMITS)
    assert (judged.command, judged.deposit.stage) == (None, Stage.REVIEW)
    assert "another" in judged.deposit.reason


def test_what_the_gateway_does_not_tell_differs_in_nothing() -> None:
    judged = judge(deposit(), confirmed(amount_uusd=None, order_id=None, business_id=None), NOW_MS, 0, LIMITS)
    assert judged.deposit.stage is Stage.CREDITED


def test_large_amounts_are_held_alone_and_within_an_hour() -> None:
    for limits, hour_uusd, is_held in (
        (Limits(5_000_000, 10_000_000), 0, False),
        (Limits(4_999_999, 10_000_000), 0, True),
        (Limits(5_000_000, 10_000_000), 5_000_000, False),
        (Limits(5_000_000, 10_000_000), 5_000_001, True),
    ):
        judged = judge(deposit(), confirmed(), NOW_MS, hour_uusd, limits)
        assert judged.command is not None
        assert (judged.command.is_held == 1) is is_held
        assert judged.deposit.stage is (Stage.HELD if is_held else Stage.CREDITED)


def test_more_than_a_ledger_holds_waits_for_a_person() -> None:
    judged = judge(deposit(), replace(confirmed(), received=AMOUNT_MAX + 1), NOW_MS, 0, LIMITS)
    assert (judged.command, judged.deposit.stage) == (None, Stage.REVIEW)


# ---------------------------------------------------------------- R4: every order of seven events


EVENTS = (
    ("pending", None),
    ("detected", None),
    ("confirmed", EXPECTED),
    ("forwarded", EXPECTED),
    ("expired", EXPECTED),
    ("failed", None),
    (None, EXPECTED),
)


def test_r4_no_order_of_events_credits_twice_or_takes_back() -> None:
    """R4: a late `expired` took a confirmed payment back, and repetitions credited again."""
    for order in itertools.permutations(EVENTS):
        row, times, credited_at = deposit(), 0, None
        for at, (word, received) in enumerate(order):
            status = PaymentStatus(word) if word else None
            told = replace(confirmed(), status=status, received=received)
            judged = judge(row, told, NOW_MS + at, 0, LIMITS)
            row, times = judged.deposit, times + (judged.command is not None)
            if credited_at is None and times:
                credited_at = at
            if credited_at is not None:
                assert row.stage is Stage.CREDITED
        assert times == 1 or row.stage is Stage.REVIEW
        assert times <= 1


# ---------------------------------------------------------------- asking again


def test_an_open_invoice_is_asked_about_until_it_is_closed() -> None:
    row, now_ms, asked = deposit(), NOW_MS, 0
    while row.next_poll_ms is not None:
        assert row.next_poll_ms > now_ms
        now_ms = row.next_poll_ms
        status = PaymentStatus.EXPIRED if now_ms > NOW_MS + HOUR_MS else PaymentStatus.PENDING
        row, asked = judge(row, invoice(status=status), now_ms, 0, LIMITS).deposit, asked + 1
    assert row.stage is Stage.CLOSED
    assert now_ms >= NOW_MS + HOUR_MS + DAY_MS
    assert asked < 60


def test_one_that_nobody_answers_about_is_closed_too() -> None:
    row, now_ms = deposit(), NOW_MS
    while row.next_poll_ms is not None:
        now_ms = row.next_poll_ms
        row = failed_to_ask(row, now_ms)
    assert (row.stage, now_ms >= NOW_MS + NEVER_ENDING_MS) == (Stage.CLOSED, True)


def test_less_than_was_asked_for_ends_with_a_person() -> None:
    row, now_ms = deposit(), NOW_MS
    while row.next_poll_ms is not None:
        now_ms = row.next_poll_ms
        row = judge(row, invoice(status=PaymentStatus.EXPIRED, received=5), now_ms, 0, LIMITS).deposit
    assert row.stage is Stage.REVIEW


def test_a_closed_one_is_credited_when_it_is_paid_after_all() -> None:
    closed = deposit(stage=Stage.CLOSED, next_poll_ms=None, is_expired=True, ended_ms=NOW_MS)
    judged = judge(closed, confirmed(), NOW_MS + 9 * DAY_MS, 0, LIMITS)
    assert judged.deposit.stage is Stage.CREDITED


def test_a_hint_opens_a_closed_one_for_a_day() -> None:
    closed = deposit(stage=Stage.CLOSED, next_poll_ms=None, is_expired=True, ended_ms=NOW_MS)
    now_ms = NOW_MS + 9 * DAY_MS
    row = hinted(closed, PaymentStatus.DETECTED, now_ms)
    assert row.next_poll_ms == now_ms
    # Though the gateway cannot be asked just then.
    row = failed_to_ask(row, now_ms)
    assert (row.stage, row.next_poll_ms) == (Stage.OPEN, now_ms + HOUR_MS)
    assert judge(row, confirmed(), now_ms + HOUR_MS, 0, LIMITS).deposit.stage is Stage.CREDITED
    assert failed_to_ask(row, now_ms + DAY_MS).stage is Stage.CLOSED
    assert hinted(deposit(), None, NOW_MS + 5).next_poll_ms == NOW_MS + 5


@pytest.mark.parametrize("stage", [Stage.OPEN, Stage.CLOSED])
def test_one_that_is_said_to_be_paid_is_asked_about_first_and_no_other_hint_delays_it(stage: Stage) -> None:
    for told in (PaymentStatus.CONFIRMED, PaymentStatus.FORWARDED):
        row = hinted(deposit(stage=stage, next_poll_ms=NOW_MS + HOUR_MS), told, NOW_MS)
        assert (row.stage, row.next_poll_ms) == (Stage.OPEN, TOLD_PAID_MS)
        assert hinted(row, PaymentStatus.EXPIRED, NOW_MS + 5).next_poll_ms == TOLD_PAID_MS
        # Asked once; after that it is one of many.
        assert failed_to_ask(row, NOW_MS).next_poll_ms not in (None, TOLD_PAID_MS)
        assert judge(row, invoice(), NOW_MS, 0, LIMITS).deposit.next_poll_ms not in (None, TOLD_PAID_MS)


def test_a_hint_that_comes_while_the_gateway_is_asked_is_not_lost() -> None:
    asked = deposit(next_poll_ms=NOW_MS)
    told = hinted(asked, PaymentStatus.CONFIRMED, NOW_MS)
    late = judge(told, invoice(), NOW_MS, 0, LIMITS).deposit
    assert with_hint(asked, told, late, NOW_MS).next_poll_ms == TOLD_PAID_MS
    assert with_hint(asked, asked, late, NOW_MS) == late
    assert with_hint(told, told, late, NOW_MS) == late, "the question was asked after the hint"
    # Not even where the answer was to be the last one.
    over = replace(asked, is_expired=True, ended_ms=NOW_MS)
    now_ms = NOW_MS + 2 * DAY_MS
    told = hinted(over, PaymentStatus.CONFIRMED, now_ms)
    row = with_hint(over, told, failed_to_ask(told, now_ms), now_ms)
    assert (row.stage, row.next_poll_ms) == (Stage.OPEN, TOLD_PAID_MS)
    # And one that has been credited is not asked about.
    credited = judge(told, confirmed(), now_ms, 0, LIMITS).deposit
    assert with_hint(over, told, credited, now_ms) == credited


def test_a_late_end_of_a_closed_one_opens_it_for_a_day() -> None:
    now_ms = NOW_MS + NEVER_ENDING_MS
    closed = failed_to_ask(deposit(created_ms=NOW_MS), now_ms)
    assert (closed.stage, closed.ended_ms) == (Stage.CLOSED, None)
    row = judge(closed, invoice(status=PaymentStatus.EXPIRED), now_ms, 0, LIMITS).deposit
    assert (row.stage, row.next_poll_ms) == (Stage.OPEN, now_ms + HOUR_MS)
    assert judge(row, invoice(status=PaymentStatus.EXPIRED), now_ms + DAY_MS, 0, LIMITS).deposit.stage is Stage.CLOSED


def test_a_person_credits_what_is_not_settled_and_nothing_else() -> None:
    for stage in (Stage.OPEN, Stage.REVIEW, Stage.CLOSED):
        judged = by_hand(deposit(stage=stage), EXPECTED, NOW_MS)
        assert judged.command is not None
        assert (judged.command.credit_uusd, judged.command.is_held) == (5_000_000, 0)
    for stage in (Stage.NEW, Stage.CREDITED, Stage.HELD):
        with pytest.raises(ValueError, match="settled"):
            by_hand(deposit(stage=stage), EXPECTED, NOW_MS)
    with pytest.raises(BadAmount):
        by_hand(deposit(), AMOUNT_MAX + 1, NOW_MS)
    # An entry of nothing would settle it for good.
    for units in (0, 1):
        with pytest.raises(BadAmount, match="nothing to credit"):
            by_hand(deposit(expected_units=10**9, amount_uusd=10_000), units, NOW_MS)


# ---------------------------------------------------------------- I8, whatever is said in whatever order


class Deposits(RuleBasedStateMachine):
    """I8: what is credited is what was received when it was first confirmed, once for each payment."""

    rows = Bundle("rows")

    @initialize()
    def begin(self) -> None:
        self.book = Book(keeps_entries=False)
        self.deposits: dict[str, Deposit] = {}
        self.wanted: dict[str, int] = {}
        self.now_ms = NOW_MS

    @rule(target=rows, uusd=st.sampled_from((10_000, 5_000_000, 70_000)), units=st.integers(1, 10**9))
    def make(self, uusd: int, units: int) -> str:
        number = len(self.deposits)
        identity = f"pay_{number}"
        new = Deposit(number.to_bytes(16, "big"), NODE, str(number), uusd, "USDC", "base", Stage.NEW)
        new = replace(new, created_ms=self.now_ms)
        told = invoice(gateway_id=identity, amount=units, order_id=new.deposit.hex(), amount_uusd=uusd)
        self.deposits[identity] = opened(new, told, self.now_ms)
        return identity

    @rule(
        identity=rows,
        status=st.none() | st.sampled_from(PaymentStatus),
        received=st.none() | st.integers(0, 2 * 10**9),
        passed_ms=st.sampled_from((0, 1, HOUR_MS, DAY_MS)),
    )
    def hear(self, identity: str, status: PaymentStatus | None, received: int | None, passed_ms: int) -> None:
        self.now_ms += passed_ms
        row = self.deposits[identity]
        told = invoice(
            gateway_id=identity,
            amount=row.expected_units,
            amount_uusd=row.amount_uusd,
            order_id=row.deposit.hex(),
            status=status,
            received=received,
        )
        judged = judge(row, told, self.now_ms, 0, LIMITS)
        if judged.command is not None:
            assert isinstance(self.book.command(judged.command, self.now_ms), Entry)
            assert identity not in self.wanted
            assert received is not None
            assert row.expected_units is not None
            self.wanted[identity] = credited_uusd(received, row.expected_units, row.amount_uusd)
        self.deposits[identity] = judged.deposit

    @rule(identity=rows)
    def hear_nothing(self, identity: str) -> None:
        row = self.deposits[identity]
        if row.stage not in SETTLED:
            self.deposits[identity] = failed_to_ask(row, self.now_ms)

    @invariant()
    def credited_is_what_was_received(self) -> None:
        held = sum(amount for name, amount in self.book.accounts.items() if name.startswith("suspense:"))
        assert self.book.balance(available(NODE)) + held == sum(self.wanted.values())
        for identity, row in self.deposits.items():
            assert (row.stage in (Stage.CREDITED, Stage.HELD)) == (identity in self.wanted)
            assert row.credited_uusd == self.wanted.get(identity, 0)
            assert (row.next_poll_ms is None) == (row.stage in (*SETTLED, Stage.CLOSED))


TestDeposits = Deposits.TestCase
