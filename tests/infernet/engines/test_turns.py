"""Turns: one at a time, first come first served, and who is cancelled does not wait."""

from __future__ import annotations

import threading
import time

from infernet.engines.turns import Turn, Turns

TIMEOUT_S = 10.0


class Waiter:
    """A thread that takes a turn and keeps it."""

    def __init__(self, turns: Turns) -> None:
        self.cancelled = threading.Event()
        self.turn: Turn | None = None
        self._thread = threading.Thread(target=self._take, args=(turns,), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + TIMEOUT_S
        # It has joined the queue once the queue is longer by one.
        while len(turns._queue) < Waiter.queued + 1 and time.monotonic() < deadline:
            time.sleep(0)
        Waiter.queued = len(turns._queue)

    queued = 0

    def _take(self, turns: Turns) -> None:
        self.turn = turns.take(self.cancelled)

    def wait(self) -> Turn | None:
        """What it got, once it waits no more."""
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        return self.turn


def waiters(turns: Turns, number: int) -> list[Waiter]:
    """Threads that queue one after the other."""
    Waiter.queued = len(turns._queue)
    return [Waiter(turns) for _ in range(number)]


def test_turns_are_taken_in_the_order_of_arrival() -> None:
    turns = Turns()
    queue = waiters(turns, 4)
    for waiter in queue:
        turn = waiter.wait()
        assert turn is not None
        later = queue[queue.index(waiter) + 1 :]
        assert all(other.turn is None for other in later)
        turn.give_back()
        turn.give_back()
    assert not turns._queue


def test_who_is_cancelled_leaves_and_the_next_one_comes() -> None:
    turns = Turns()
    first, second, third = waiters(turns, 3)
    turn = first.wait()
    assert turn is not None
    second.cancelled.set()
    assert second.wait() is None
    assert third.turn is None
    turn.give_back()
    assert third.wait() is not None


def test_a_turn_that_nobody_wants_is_had_at_once_unless_cancelled() -> None:
    turns = Turns()
    cancelled = threading.Event()
    turn = turns.take(cancelled)
    assert turn is not None
    turn.give_back()
    cancelled.set()
    assert turns.take(cancelled) is None
    assert not turns._queue


def test_whoever_waits_sees_how_those_before_it_get_on() -> None:
    turns = Turns()
    first = turns.take(threading.Event(), 100)
    assert first is not None
    seen: list[int] = []
    moved = threading.Event()

    def ahead(work: int) -> None:
        if not seen or seen[-1] != work:
            seen.append(work)
            moved.set()

    thread = threading.Thread(target=turns.take, args=(threading.Event(), 30, ahead), daemon=True)
    thread.start()
    for left in (60, 20):
        assert moved.wait(TIMEOUT_S)
        moved.clear()
        first.work_left(left)
    assert moved.wait(TIMEOUT_S)
    first.give_back()
    thread.join(TIMEOUT_S)
    assert seen == [100, 60, 20]
