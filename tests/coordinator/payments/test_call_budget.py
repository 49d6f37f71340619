"""How many calls are made: never more than a minute and an hour grant, and some are left for what is urgent."""

from __future__ import annotations

import random

from coordinator.payments.call_budget import KEPT_FROM_PAYOUTS, KEPT_FROM_POLLS, CallBudget


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
        if budget.take(KEPT_FROM_PAYOUTS):
            called.append(clock.now_s)
        assert sum(at_s > clock.now_s - 60 for at_s in called[-100:]) <= 9
        assert sum(at_s > clock.now_s - 3600 for at_s in called[-100:]) <= 90
    assert len(called) > 0.9 * 90 * clock.now_s / 3600


def test_what_is_urgent_finds_some_left() -> None:
    clock = Clock()
    budget = CallBudget(clock, 10, 100)
    polls = sum(budget.take(KEPT_FROM_POLLS) for _ in range(20))
    assert polls == 7
    assert sum(budget.take(KEPT_FROM_PAYOUTS) for _ in range(20)) == 3
    clock.now_s += 61
    assert budget.take(KEPT_FROM_POLLS)


def test_who_is_refused_waits_a_little() -> None:
    clock = Clock()
    budget = CallBudget(clock, 1, 10)
    assert budget.wait_s() == 0
    budget.take(0)
    assert budget.wait_s() > 0
