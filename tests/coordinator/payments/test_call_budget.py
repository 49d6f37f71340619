"""How many calls are made: never more than a minute and an hour grant, and some are left for what is urgent."""

from __future__ import annotations

import random

import pytest

from coordinator.payments.call_budget import SHARES, CallBudget, Purpose


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_minute_and_an_hour_are_never_exceeded() -> None:
    clock, dice = Clock(), random.Random(1)
    budget = CallBudget(clock, 9, 90)
    called: list[float] = []
    for _ in range(20_000):
        clock.now_s += dice.expovariate(0.5)
        if budget.take(dice.choice(list(Purpose))):
            called.append(clock.now_s)
        assert sum(at_s > clock.now_s - 60 for at_s in called[-100:]) <= 9
        assert sum(at_s > clock.now_s - 3600 for at_s in called[-100:]) <= 90
    assert len(called) > 0.9 * 90 * clock.now_s / 3600


def test_what_is_urgent_finds_some_left() -> None:
    clock = Clock()
    budget = CallBudget(clock, 10, 100)
    polls = sum(budget.take(Purpose.POLL) for _ in range(20))
    assert polls == 6, "its own two, and the four that are nobody's"
    for other, left in ((Purpose.INVOICE, 2), (Purpose.PAYOUT, 1), (Purpose.PAID_POLL, 1)):
        assert sum(budget.take(other) for _ in range(20)) == left
    clock.now_s += 61
    assert budget.take(Purpose.POLL)


@pytest.mark.parametrize(
    ("victim", "greedy"),
    [
        (Purpose.INVOICE, [Purpose.POLL]),
        (Purpose.POLL, [Purpose.INVOICE]),
        (Purpose.PAID_POLL, [Purpose.INVOICE, Purpose.POLL, Purpose.PAYOUT]),
        (Purpose.PAYOUT, [Purpose.INVOICE, Purpose.POLL, Purpose.PAID_POLL]),
    ],
)
def test_whoever_takes_all_that_he_can_leaves_others_their_share(victim: Purpose, greedy: list[Purpose]) -> None:
    clock, dice = Clock(), random.Random(2)
    budget = CallBudget(clock)
    for _ in range(100):
        while any(budget.take(purpose) for purpose in dice.sample(greedy, len(greedy))):
            pass
        # At least 9 in a minute and 90 in an hour are its own, whenever it wants them.
        assert budget.take(victim)
        clock.now_s += dice.choice((40.0, 60.0, 90.0))


def test_the_shares_leave_something_to_all() -> None:
    assert set(SHARES) == set(Purpose)
    assert sum(SHARES.values()) < 0.8


def test_who_is_refused_waits_a_little() -> None:
    clock = Clock()
    budget = CallBudget(clock, 1, 10)
    assert budget.wait_s() == 0
    budget.take(0)
    assert budget.wait_s() > 0
