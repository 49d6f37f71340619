"""Only exact words mean paid; and news in any order, any number of times, comes to the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.payments.status import PaymentState, PaymentStatus, Progress, join, payment_status

PAID = {"confirmed", "forwarding", "forwarded"}
NOT_PAID = {"pending", "detected", "confirming", "expired", "failed"}
STATUSES = list(PaymentStatus)


def look_alikes() -> list[str]:
    """Two hundred words that hold, resemble or surround one that means paid."""
    stems = ["paid", "confirmed", "success", "successful", "completed", "forwarded", "settled"]
    before = ["un", "under", "not_", "not ", "partially_", "semi-", "pre", "over", "re", "never ", "to_be_", "is", "a"]
    after = ["_not", " not", "_failed", "?", " ", "\n", "\x00", "less", "0", "_pending", ".", "!"]
    whole = [
        *(stem for stem in stems if stem not in PAID),
        *(stem.upper() for stem in stems),
        *(stem.title() for stem in stems),
    ]
    spelled = [
        "c0nfirmed",
        "c\u043enfirmed",
        "confirmed\u200b",
        "\u202econfirmed",
        "conﬁrmed",
        "forwаrded",
        "",
        "true",
        "1",
    ]
    return [*(b + s for s in stems for b in before), *(s + a for s in stems for a in after), *whole, *spelled]


def test_r3_two_hundred_look_alike_states_credit_nothing() -> None:
    """R3: a status counted as paid when it only contained `paid`, `confirmed` or `success`."""
    words = look_alikes()
    assert len(set(words)) >= 200
    assert {"unpaid", "underpaid", "unconfirmed", "unsuccessful", "partially_paid"} < set(words)
    assert not PAID & set(words)
    for word in words:
        news = join(PaymentState(), payment_status(word))
        assert not news.check_credit, word
        assert not news.state.is_paid, word


@pytest.mark.parametrize("word", sorted(PAID | NOT_PAID))
def test_listed_words_mean_what_they_say(word: str) -> None:
    news = join(PaymentState(), payment_status(word))
    assert news.check_credit == news.state.is_paid == (word in PAID)


SEVEN = ["pending", "detected", "confirmed", "confirmed", "forwarded", "expired", "failed"]


def test_r4_every_order_of_seven_events_ends_the_same_and_is_checked_once() -> None:
    """R4: a late `expired` took a confirmed payment back, and repetitions credited again."""
    ends = set()
    for order in itertools.permutations(SEVEN):
        state, checks = PaymentState(), 0
        for word in order:
            before = state
            state, check = (news := join(state, payment_status(word))).state, news.check_credit
            checks += check
            assert state.progress >= before.progress
            assert state.is_paid or not before.is_paid
        assert checks == 1
        ends.add(state)
    assert ends == {PaymentState(Progress.FORWARDED, expired=True, failed=True)}
    assert ends.pop().shown is PaymentStatus.FORWARDED


def test_what_was_confirmed_after_it_expired_counts() -> None:
    expired = join(PaymentState(), PaymentStatus.EXPIRED).state
    assert expired.shown is PaymentStatus.EXPIRED
    news = join(expired, PaymentStatus.CONFIRMED)
    assert news.check_credit
    assert news.state.shown is PaymentStatus.CONFIRMED


@pytest.mark.parametrize("end", [PaymentStatus.EXPIRED, PaymentStatus.FAILED])
def test_no_end_undoes_a_payment(end: PaymentStatus) -> None:
    confirmed = join(PaymentState(), PaymentStatus.CONFIRMED).state
    news = join(confirmed, end)
    assert news.state.shown is PaymentStatus.CONFIRMED
    assert not news.check_credit


@given(st.lists(st.sampled_from([*STATUSES, None]), max_size=12), st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(heard: list[PaymentStatus | None], rng: object) -> None:
    def joined(statuses: list[PaymentStatus | None]) -> tuple[PaymentState, int]:
        state, checks = PaymentState(), 0
        for status in statuses:
            news = join(state, status)
            state, checks = news.state, checks + news.check_credit
        return state, checks

    shuffled = heard * 2
    rng.shuffle(shuffled)  # type: ignore[attr-defined]  # Hypothesis gives random.Random
    assert joined(heard) == joined(shuffled)
    assert joined(heard)[1] <= 1
