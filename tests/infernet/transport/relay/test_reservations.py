"""The table of places and the speed limit: bounded, fair to networks, and exact in time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from infernet.transport.relay.pace import Pace
from infernet.transport.relay.reservations import Reservations
from tests.helpers_transport import identity

pytestmark = pytest.mark.anyio

A, B, C = (identity(seed) for seed in (1, 2, 3))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Time passes only while everybody waits."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


def test_a_place_lasts_until_its_time_and_not_a_moment_longer() -> None:
    places = Reservations(places_max=4, places_per_network_max=4)
    assert places.take(A, "net", 10.0, 0.0)
    assert places.holds(A, 9.9)
    assert not places.holds(A, 10.0)
    assert len(places) == 0


def test_places_are_bounded_in_all_and_for_one_network_and_come_back() -> None:
    places = Reservations(places_max=2, places_per_network_max=1)
    assert places.take(A, "one", 10.0, 0.0)
    assert not places.take(B, "one", 10.0, 0.0), "its network has its share"
    assert places.take(B, "two", 10.0, 0.0)
    assert not places.take(C, "three", 10.0, 0.0), "all are given"
    places.free(A)
    places.free(A)
    assert places.take(C, "one", 10.0, 0.0)
    assert places.take(A, "three", 30.0, 20.0), "the others' time is over"
    assert len(places) == 1


def test_whoever_has_a_place_may_prolong_it_when_all_are_given() -> None:
    places = Reservations(places_max=1, places_per_network_max=1)
    assert places.take(A, "one", 10.0, 0.0)
    assert places.take(A, "one", 20.0, 5.0)
    assert places.holds(A, 15.0)
    assert len(places) == 1
    assert places.take(A, "two", 30.0, 16.0), "from another network, too: it is still one place"
    assert places.take(A, "two", 40.0, 17.0)
    assert len(places) == 1


async def test_a_second_s_worth_passes_at_once_and_then_so_much_a_second() -> None:
    pace = Pace(1000.0)
    started_s = trio.current_time()
    await pace.take(1000)
    assert trio.current_time() == started_s
    await pace.take(500)
    assert trio.current_time() - started_s == pytest.approx(0.5)
    await trio.sleep(100)
    later_s = trio.current_time()
    await pace.take(1000)
    assert trio.current_time() == later_s, "rest is not saved up beyond a second"
    await pace.take(1000)
    assert trio.current_time() - later_s == pytest.approx(1.0)


async def test_whoever_comes_first_goes_first() -> None:
    pace = Pace(1000.0)
    await pace.take(1000)
    done: list[int] = []

    async def take(number: int) -> None:
        await pace.take(1000)
        done.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(take, number)
            await trio.testing.wait_all_tasks_blocked()
    assert done == list(range(5))
