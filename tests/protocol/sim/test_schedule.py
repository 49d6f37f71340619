"""Virtual time."""

from __future__ import annotations

from protocol.sim.schedule import Schedule


def test_things_happen_in_order_and_ties_in_the_order_of_planning() -> None:
    schedule, seen = Schedule(), []
    for at_s, name in ((2.0, "c"), (1.0, "a"), (1.0, "b"), (3.0, "d")):
        schedule.at(at_s, lambda name=name: seen.append((schedule.now_s, name)))
    schedule.run_until(2.5)
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c")]
    assert schedule.now_s == 2.5
    schedule.run_until(3.0)
    assert seen[-1] == (3.0, "d")


def test_what_is_planned_for_the_past_or_soon_happens_now_and_last() -> None:
    schedule, seen = Schedule(), []

    def first() -> None:
        schedule.at(0.0, lambda: seen.append("past"))
        schedule.soon(lambda: seen.append("soon"))
        seen.append("first")

    schedule.at(5.0, first)
    schedule.at(5.0, lambda: seen.append("second"))
    schedule.run_until(5.0)
    assert seen == ["first", "second", "past", "soon"]
