"""Wishes: a run that holds waits until it may go on, or is to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from infernet.engines.wishes import Wishes

TIMEOUT_S = 10.0


def test_a_run_that_does_not_hold_goes_on_at_once() -> None:
    assert Wishes().wait()


def test_a_run_that_is_cancelled_before_it_waits_stops() -> None:
    wishes = Wishes()
    wishes.cancel()
    assert not wishes.wait()
    assert wishes.cancelled.is_set()


@pytest.mark.parametrize(("wish", "goes_on"), [(Wishes.proceed, True), (Wishes.cancel, False)])
def test_a_run_that_holds_waits_for_a_word(wish: Callable[[Wishes], None], goes_on: bool) -> None:
    wishes = Wishes(holds=True)
    heard: list[bool] = []
    thread = threading.Thread(target=lambda: heard.append(wishes.wait()), daemon=True)
    thread.start()
    assert not heard
    wish(wishes)
    thread.join(TIMEOUT_S)
    assert heard == [goes_on]
