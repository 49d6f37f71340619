"""What becomes of a payout by what is heard of it: every rule alone, and all while a gateway does as it likes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.payments.gateway import GatewayRefused, GatewayUnreachable, Payout, PayoutListing, PayoutStatus
from coordinator.payments.payout_rules import (
    ABSENT_MS_MIN,
    ATTEMPTS_MAX,
    LIST_PAUSE_MS,
    MINUTE_MS,
    SENDING_MS_MAX,
    Intent,
    PayoutState,
    Step,
    answered,
    begin,
    given_back,
    impossible,
    listed,
    refused,
    sent_again,
    strays,
    unclear,
)
from protocol.book import Book
from protocol.ids import NodeId
from protocol.ledger import Deposit, Entry, OrderPayout, ReturnPayout, SettlePayout, available

NOW_MS = 1_795_000_000_000
DAY_MS = 24 * 60 * MINUTE_MS
NODE = NodeId(bytes(31) + b"\x01")
NUMBER = b"i" * 16
LIMIT = 100_000_000


def intent(**changes: Any) -> Intent:
    """One of five dollars, being sent."""
    fields: dict[str, Any] = {
        "intent": NUMBER,
        "node": NODE,
        "request": "r",
        "amount_uusd": 5_000_000,
        "code": "USDC",
        "network": "base",
        "address": "0x1",
        "status": PayoutState.SENDING,
        "attempts": 1,
        "created_ms": NOW_MS,
        "tried_ms": NOW_MS,
        **changes,
    }
    return Intent(**fields)


def unknown(**changes: Any) -> Intent:
    return intent(**{"status": PayoutState.UNKNOWN, **changes})


def row(**changes: Any) -> Payout:
    """The gateway's own word about it."""
    fields: dict[str, Any] = {
        "gateway_id": "out_1",
        "intent_id": NUMBER.hex(),
        "code": "USDC",
        "network": "base",
        "address": "0x1",
        "amount_uusd": 5_000_000,
        "amount_raw": "5.000001",
        "status": PayoutStatus.COMPLETED,
        "status_text": "completed",
        "created_at_ms": NOW_MS,
        "tx_hash": "tx",
        **changes,
    }
    return Payout(**fields)


def listing(*rows: Payout, complete: bool = True) -> PayoutListing:
    return PayoutListing(rows, complete)


def test_it_is_begun_once() -> None:
    begun = begin(intent(status=PayoutState.QUEUED, attempts=0), NOW_MS + 5)
    assert (begun.status, begun.attempts, begun.tried_ms) == (PayoutState.SENDING, 1, NOW_MS + 5)
    for status in PayoutState:
        if status is not PayoutState.QUEUED:
            with pytest.raises(AssertionError):
                begin(intent(status=status), NOW_MS)


@pytest.mark.parametrize("status", [PayoutStatus.PENDING, PayoutStatus.PROCESSING])
def test_one_that_is_being_sent_for_ever_comes_before_a_person_and_may_still_end(status: PayoutStatus) -> None:
    """A gateway whose program is killed while it sends leaves a row that nobody changes any more."""
    sent = answered(intent(), row(status=status), NOW_MS).intent
    late_ms = NOW_MS + SENDING_MS_MAX
    assert listed(sent, listing(row(status=status)), late_ms, LIMIT).intent.status is PayoutState.SENT
    step = listed(sent, listing(row(status=status)), late_ms + 1, LIMIT)
    assert (step.intent.status, step.intent.needs_person, step.command) == (PayoutState.UNKNOWN, True, None)
    assert step.intent.gateway_id == "out_1"
    assert step.freeze is None
    ended = listed(step.intent, listing(row()), late_ms + DAY_MS, LIMIT)
    assert (ended.intent.status, ended.intent.needs_person) == (PayoutState.CONFIRMED, False)
    # One that was tried again has its time again.
    again = begin(sent_again(step.intent, late_ms).intent, late_ms)
    assert answered(again, row(status=status), late_ms + 1).intent.status is PayoutState.SENT


@pytest.mark.parametrize(
    ("status", "state", "command"),
    [
        (PayoutStatus.COMPLETED, PayoutState.CONFIRMED, SettlePayout(NUMBER, "USDC-base", 5_000_001)),
        (PayoutStatus.PENDING, PayoutState.SENT, None),
        (PayoutStatus.PROCESSING, PayoutState.SENT, None),
        (PayoutStatus.FAILED, PayoutState.FAILED, ReturnPayout(NUMBER)),
        (PayoutStatus.INDETERMINATE, PayoutState.UNKNOWN, None),
        (None, PayoutState.UNKNOWN, None),
    ],
)
def test_an_answer_means_what_its_status_says(status: PayoutStatus | None, state: PayoutState, command: object) -> None:
    step = answered(intent(), row(status=status, status_text="what?"), NOW_MS)
    assert (step.intent.status, step.command, step.intent.gateway_id) == (state, command, "out_1")
    assert (step.intent.ended_ms is not None) == (step.command is not None)


def test_an_amount_in_no_exact_form_is_settled_without_units() -> None:
    for raw in ("1e-7", None, "9" * 30):
        step = answered(intent(), row(amount_raw=raw), NOW_MS)
        assert step.command == SettlePayout(NUMBER, "USDC-base", 0)


def test_a_refusal_has_had_no_effect() -> None:
    step = refused(intent(), GatewayRefused("bad_request", status=400, detail="too little"), NOW_MS)
    assert (step.intent.status, step.command) == (PayoutState.FAILED, ReturnPayout(NUMBER))
    for error in (
        GatewayUnreachable("unreachable"),
        GatewayRefused("rate_limited", status=429, retry_after_s=3600),
        GatewayRefused("unauthorized", status=401),
    ):
        step = refused(intent(), error, NOW_MS)
        assert (step.intent.status, step.intent.attempts, step.command) == (PayoutState.QUEUED, 0, None)
        assert step.intent.next_ms >= NOW_MS + max(MINUTE_MS, 1000 * (error.retry_after_s or 0))


def test_what_our_own_client_will_not_send_comes_back() -> None:
    assert impossible(intent(), "no address", NOW_MS).command == ReturnPayout(NUMBER)


def test_whatever_is_unclear_is_unknown_and_not_sent_again() -> None:
    step = unclear(intent(), "timeout", NOW_MS)
    assert (step.intent.status, step.command) == (PayoutState.UNKNOWN, None)


# ---------------------------------------------------------------- the list


def test_it_is_found_by_its_number() -> None:
    others = row(gateway_id="out_2", intent_id="e" * 32)
    step = listed(unknown(), listing(others, row(), complete=False), NOW_MS, LIMIT)
    assert step.intent.status is PayoutState.CONFIRMED


def absent(step: Intent, times: int, pause_ms: int, limit: int = LIMIT) -> Intent:
    for at in range(times):
        step = listed(step, listing(), NOW_MS + at * pause_ms, limit).intent
    return step


def test_it_is_sent_again_after_three_complete_lists_over_half_an_hour_and_not_before() -> None:
    assert absent(unknown(), 3, ABSENT_MS_MIN // 2).status is PayoutState.QUEUED
    assert absent(unknown(), 2, ABSENT_MS_MIN).status is PayoutState.UNKNOWN
    assert absent(unknown(), 30, MINUTE_MS).status is PayoutState.UNKNOWN
    assert absent(unknown(), 31, MINUTE_MS).status is PayoutState.QUEUED


def test_lists_that_are_not_complete_do_not_count() -> None:
    step = unknown()
    for at in range(50):
        step = listed(step, listing(complete=False), NOW_MS + at * LIST_PAUSE_MS, LIMIT).intent
    assert (step.status, step.absences) == (PayoutState.UNKNOWN, 0)


def test_above_the_limit_or_after_too_many_attempts_a_person_decides() -> None:
    for changes, limit in (({}, 4_999_999), ({"attempts": ATTEMPTS_MAX}, LIMIT)):
        step = absent(unknown(**changes), 9, ABSENT_MS_MIN, limit)
        assert (step.status, step.needs_person) == (PayoutState.UNKNOWN, True)
    assert given_back(unknown(), NOW_MS).command == ReturnPayout(NUMBER)
    assert sent_again(unknown(), NOW_MS).intent.status is PayoutState.QUEUED


def test_a_new_attempt_counts_its_lists_from_none() -> None:
    again = begin(absent(unknown(), 3, ABSENT_MS_MIN), NOW_MS + 10 * ABSENT_MS_MIN)
    assert (again.absences, again.absent_since_ms) == (0, None)


def test_several_rows_of_one_number() -> None:
    failed = row(gateway_id="out_0", status=PayoutStatus.FAILED)
    # Tried once more by a person at the gateway: it has left once.
    assert listed(unknown(), listing(row(), failed), NOW_MS, LIMIT).intent.status is PayoutState.CONFIRMED
    twice = listed(unknown(), listing(row(), row(gateway_id="out_2")), NOW_MS, LIMIT)
    assert (twice.command, twice.intent.needs_person) == (None, True)
    assert twice.freeze is not None
    assert "more than once" in twice.freeze


def test_failed_counts_only_on_a_complete_list() -> None:
    failed = row(status=PayoutStatus.FAILED)
    assert listed(unknown(), listing(failed, complete=False), NOW_MS, LIMIT).command is None
    assert listed(unknown(), listing(failed), NOW_MS, LIMIT).command == ReturnPayout(NUMBER)


@pytest.mark.parametrize("changes", [{"amount_uusd": 4}, {"code": "USDT"}, {"network": "polygon"}, {"address": "0x2"}])
def test_another_payout_under_its_number_settles_nothing(changes: dict[str, Any]) -> None:
    step = listed(unknown(), listing(row(**changes)), NOW_MS, LIMIT)
    assert (step.command, step.intent.needs_person) == (None, True)
    assert step.freeze is not None


def test_one_that_the_gateway_had_and_lists_no_more_stops_everything() -> None:
    sent = intent(status=PayoutState.SENT, gateway_id="out_1")
    step = listed(sent, listing(), NOW_MS, LIMIT)
    assert (step.command, step.intent.needs_person, step.freeze is not None) == (None, True, True)


# ---------------------------------------------------------------- both lists side by side


def test_lists_that_agree_have_no_strays() -> None:
    ours = {NUMBER.hex(): intent(status=PayoutState.CONFIRMED, gateway_id="out_1")}
    assert strays(listing(row(), row(gateway_id="x", status=PayoutStatus.FAILED)), ours, NOW_MS) == {}
    old = row(gateway_id="old", intent_id=None, created_at_ms=NOW_MS - 1)
    assert strays(listing(row(), old), ours, NOW_MS) == {}


@pytest.mark.parametrize(
    ("rows", "ours", "words"),
    [
        ([row(intent_id=None)], {}, "nobody here has ordered"),
        ([row()], {"status": PayoutState.QUEUED, "attempts": 0}, "nobody here has ordered"),
        ([row(amount_uusd=6_000_000)], {"status": PayoutState.SENT}, "another amount"),
        ([row()], {"status": PayoutState.FAILED}, "given back"),
        ([row(), row(gateway_id="out_2")], {"status": PayoutState.CONFIRMED, "gateway_id": "out_1"}, "twice"),
        ([row(gateway_id="out_2")], {"status": PayoutState.CONFIRMED, "gateway_id": "out_1"}, "twice"),
        ([], {"status": PayoutState.CONFIRMED, "gateway_id": "out_1"}, "lists no more"),
    ],
)
def test_lists_that_differ_say_where(rows: list[Payout], ours: dict[str, Any], words: str) -> None:
    mine = {NUMBER.hex(): intent(**ours)} if ours else {}
    found = strays(listing(*rows), mine, NOW_MS)
    assert any(words in reason for reason in found.values()), found


# ---------------------------------------------------------------- I9, whatever happens


class Payouts(RuleBasedStateMachine):
    """I9: no payout leaves twice unless its first attempt was shown to be absent; money is nowhere lost.

    The gateway here may have had an effect or not, whatever it answered; what it has taken, it lists.
    """

    @initialize(amount=st.sampled_from((5_000_000, 200_000_000)))
    def begin(self, amount: int) -> None:
        self.book = Book(keeps_entries=False)
        self.book.command(Deposit("p", NODE, "BTC", 1, amount, 0), NOW_MS)
        assert isinstance(self.book.command(OrderPayout(NUMBER, NODE, amount), NOW_MS), Entry)
        self.row = intent(status=PayoutState.QUEUED, attempts=0, amount_uusd=amount)
        self.amount = amount
        self.taken: list[PayoutStatus] = []
        self.now_ms = NOW_MS

    def _apply(self, step: Step) -> None:
        if step.command is not None:
            assert isinstance(self.book.command(step.command, self.now_ms), Entry)
        self.row = step.intent

    def _rows(self) -> list[Payout]:
        return [
            row(gateway_id=f"out_{at}", status=status, amount_uusd=self.amount) for at, status in enumerate(self.taken)
        ]

    @precondition(lambda self: self.row.status is PayoutState.QUEUED)
    @rule(
        effect=st.none() | st.sampled_from((PayoutStatus.COMPLETED, PayoutStatus.PENDING, PayoutStatus.FAILED)),
        is_heard=st.booleans(),
        is_crash=st.booleans(),
    )
    def send(self, effect: PayoutStatus | None, is_heard: bool, is_crash: bool) -> None:
        self.row = begin(self.row, self.now_ms)
        if effect is not None:
            self.taken.append(effect)
        if is_heard and effect is not None:
            self._apply(answered(self.row, self._rows()[-1], self.now_ms))
        else:
            self._apply(unclear(self.row, "crash" if is_crash else "timeout", self.now_ms))

    @precondition(lambda self: self.row.status in (PayoutState.UNKNOWN, PayoutState.SENT))
    @rule(complete=st.booleans(), passed_ms=st.sampled_from((0, MINUTE_MS, LIST_PAUSE_MS, ABSENT_MS_MIN)))
    def look(self, complete: bool, passed_ms: int) -> None:
        self.now_ms += passed_ms
        rows = self._rows() if complete else []
        self._apply(listed(self.row, listing(*rows, complete=complete), self.now_ms, LIMIT))

    @precondition(lambda self: bool(self.taken))
    @rule()
    def the_gateway_goes_on(self) -> None:
        self.taken = [PayoutStatus.COMPLETED if each is PayoutStatus.PENDING else each for each in self.taken]

    @invariant()
    def it_leaves_once(self) -> None:
        gone = [each for each in self.taken if each is not PayoutStatus.FAILED]
        assert len(gone) <= 1
        if self.row.status is PayoutState.FAILED:
            assert not gone

    @invariant()
    def its_money_is_in_one_place(self) -> None:
        left = self.book.balance(f"payout:{NUMBER.hex()}")
        back = self.book.balance(available(NODE))
        expected = {PayoutState.CONFIRMED: (0, 0), PayoutState.FAILED: (0, self.amount)}
        assert (left, back) == expected.get(self.row.status, (self.amount, 0))


TestPayouts = Payouts.TestCase


def test_a_row_that_has_ended_is_begun_by_nobody() -> None:
    for status in (PayoutState.CONFIRMED, PayoutState.FAILED):
        with pytest.raises(AssertionError):
            begin(replace(intent(), status=status), NOW_MS)
