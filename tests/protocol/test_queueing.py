"""Who waits for a slot, in which order, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import NodeId, RunId
from protocol.queueing import RUN_GUESS_S, Line, Pace

A, B, C = (NodeId(bytes([n]) * 32) for n in (1, 2, 3))


def line_of(*places: tuple[NodeId, int]) -> Line:
    line = Line()
    for asker, run in places:
        line.add(asker, RunId(run))
    return line


def drained(line: Line) -> list[RunId]:
    runs = []
    while (run := line.pop()) is not None:
        runs.append(run)
    return runs


def test_askers_take_turns_and_their_own_orders_go_in_order() -> None:
    line = line_of((A, 1), (A, 2), (A, 3), (B, 4), (C, 5), (B, 6))
    assert line.in_order() == [1, 4, 5, 2, 6, 3]
    assert drained(line) == [1, 4, 5, 2, 6, 3]
    assert len(line) == 0


def test_the_owner_goes_before_all_others_and_in_order() -> None:
    line = line_of((A, 1), (B, 2))
    for run in (3, 4, 5):
        line.add(C, RunId(run), is_own=True)
    line.remove(C, RunId(4))
    assert (line.in_order(), len(line)) == ([3, 5, 1, 2], 4)
    assert drained(line) == [3, 5, 1, 2]


def test_an_asker_that_has_just_had_its_turn_goes_to_the_end() -> None:
    line = line_of((A, 1), (A, 2), (B, 3))
    assert line.pop() == 1
    line.add(C, RunId(4))
    assert line.in_order() == [3, 2, 4]


def test_leaving_closes_the_gap() -> None:
    line = line_of((A, 1), (A, 2), (B, 3))
    line.remove(A, RunId(1))
    assert line.in_order() == [2, 3]
    line.remove(B, RunId(3))
    line.remove(B, RunId(3))
    line.remove(C, RunId(9))
    assert drained(line) == [2]


@given(st.lists(st.one_of(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 50)), st.none(), st.integers(0, 50))))
def test_the_order_that_is_told_is_the_order_that_comes(steps: list[tuple[NodeId, int] | int | None]) -> None:
    line = Line()
    standing: dict[int, NodeId] = {}
    for step in steps:
        expected = line.in_order()
        assert len(line) == len(expected) == len(standing)
        if step is None:
            run = line.pop()
            assert run == (expected[0] if expected else None)
            standing.pop(run if run is not None else -1, None)
        elif isinstance(step, int):
            if step in standing:
                line.remove(standing.pop(step), RunId(step))
                assert sorted(line.in_order()) == sorted(run for run in expected if run != step)
        elif step[1] not in standing:
            line.add(step[0], RunId(step[1]))
            standing[step[1]] = step[0]
    expected = line.in_order()
    assert drained(line) == expected


def test_a_free_slot_is_no_wait() -> None:
    assert Pace().waits_s(2, [3.0], 1) == [0.0]


def test_without_a_measurement_there_is_a_guess() -> None:
    assert Pace().waits_s(1, [2.0], 2) == [RUN_GUESS_S - 2.0, 2 * RUN_GUESS_S - 2.0]
    assert Pace().waits_s(0, [], 2) == [RUN_GUESS_S, RUN_GUESS_S]


def test_waits_follow_what_runs_have_really_taken() -> None:
    pace = Pace()
    for _ in range(10):
        pace.add(4.0)
    assert pace.waits_s(2, [1.0, 3.0], 4) == pytest.approx([1.0, 3.0, 5.0, 7.0])


def test_a_run_that_has_outlived_most_is_expected_to_take_as_long_as_those_that_did() -> None:
    pace = Pace()
    for taken_s in (1.0, 1.0, 1.0, 20.0):
        pace.add(taken_s)
    assert pace.waits_s(1, [2.0], 1) == [18.0]
    assert pace.waits_s(1, [30.0], 1) == [pytest.approx(23.0 / 4 / 2)]


def test_what_was_long_ago_is_forgotten() -> None:
    pace = Pace()
    pace.add(1000.0)
    for _ in range(32):
        pace.add(1.0)
    assert pace.waits_s(1, [0.0], 1) == [1.0]
