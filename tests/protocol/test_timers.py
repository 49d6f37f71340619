"""Deadlines by key: the same answers as a plain dictionary gives, at any history of sets and cancels."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.timers import Timers

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 5), st.integers(0, 20)),
        st.tuples(st.just("cancel"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("pop"), st.just(0), st.integers(0, 20)),
    ),
    max_size=300,
)


@given(STEPS)
def test_timers_agree_with_a_dictionary(steps: list[tuple[str, int, int]]) -> None:
    timers: Timers[int] = Timers()
    model: dict[int, int] = {}
    for name, key, at_s in steps:
        if name == "set":
            timers.set(key, at_s)
            model[key] = at_s
        elif name == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            due = timers.pop_due(at_s)
            assert sorted(due) == sorted(key for key, at in model.items() if at <= at_s)
            assert [model[key] for key in due] == sorted(model[key] for key in due)
            for key in due:
                del model[key]
        assert timers.next_deadline() == min(model.values(), default=None)
        assert all(timers.is_set(key) == (key in model) for key in range(6))


def test_equal_deadlines_come_in_the_order_in_which_they_were_set() -> None:
    timers: Timers[str] = Timers()
    for key in ("b", "a", "c"):
        timers.set(key, 1.0)
    timers.set("b", 1.0)
    assert timers.pop_due(1.0) == ["a", "c", "b"]


def test_a_deadline_that_moves_for_ever_takes_no_memory() -> None:
    timers: Timers[str] = Timers()
    for step in range(10_000):
        timers.set("moves", float(step))
    assert len(timers._heap) < 100
    assert timers.next_deadline() == 9_999.0
