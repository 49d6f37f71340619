"""Bytes that all connections together make us hold."""

from __future__ import annotations

import random

from infernet.transport.budget import Budget


class Holder:
    def __init__(self) -> None:
        self.cuts = 0

    def cut(self) -> None:
        self.cuts += 1


def test_within_the_budget_nobody_is_cut() -> None:
    budget = Budget(100)
    left, right = Holder(), Holder()
    budget.set(left, 60)
    budget.set(right, 40)
    budget.set(left, 10)
    budget.set(right, 90)
    assert (left.cuts, right.cuts, budget.total_bytes) == (0, 0, 100)


def test_the_greediest_is_cut_first_and_only_as_many_as_must_be() -> None:
    budget = Budget(100)
    holders = [Holder() for _ in range(4)]
    for holder, held in zip(holders, (10, 50, 30, 10), strict=True):
        budget.set(holder, held)
    budget.set(holders[0], 20)
    assert [holder.cuts for holder in holders] == [0, 1, 0, 0]
    assert (budget.total_bytes, budget.cuts) == (60, 1)


def test_whoever_holds_more_than_everything_is_cut_too() -> None:
    budget = Budget(100)
    small, large = Holder(), Holder()
    budget.set(small, 1)
    budget.set(large, 101)
    assert (small.cuts, large.cuts, budget.total_bytes) == (0, 1, 1)


def test_the_total_is_the_sum_and_never_above_the_limit() -> None:
    rng = random.Random(1)
    budget = Budget(1000)
    held: dict[Holder, int] = {}
    holders = [Holder() for _ in range(20)]
    for _ in range(2000):
        holder = rng.choice(holders)
        before = [each.cuts for each in holders]
        held[holder] = rng.randrange(200)
        budget.set(holder, held[holder])
        for each, count in zip(holders, before, strict=True):
            if each.cuts > count:
                held[each] = 0
        assert budget.total_bytes == sum(held.values()) <= 1000
