"""The driver alone: what is queued, in which order, and who has to wait."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from infernet.driver import EVENTS_WAITING_MAX, Driver
from protocol import events as e
from protocol.effects import Effect
from protocol.ids import StreamId
from protocol.peer import Peer, PeerConfig
from protocol.sealing import HpkeSealer
from tests.helpers_node import key_of, virtual_wall_ms

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})


class FedPeer(Peer):
    """A peer that only remembers what it was fed."""

    def __init__(self) -> None:
        now = e.Now(0.0, virtual_wall_ms())
        super().__init__(PeerConfig("test"), key_of(1), HpkeSealer(), random.Random(1), now)
        self.fed: list[int] = []

    def handle(self, event: e.Event, now: e.Now) -> list[Effect]:
        assert isinstance(event, e.StreamFinished)
        self.fed.append(event.stream)
        return []

    def next_deadline(self) -> float | None:
        return None


def driver_of(peer: Peer) -> Driver:
    return Driver(peer, engine=None, observe=lambda effect: None, clock_ms=virtual_wall_ms)


def event(number: int) -> e.StreamFinished:
    return e.StreamFinished(StreamId(number))


async def test_who_can_wait_waits_while_the_queue_is_full_and_is_served_in_order() -> None:
    peer = FedPeer()
    driver = driver_of(peer)
    posted: list[int] = []

    async def reader(number: int) -> None:
        await driver.post_with_backpressure(event(number))
        posted.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3 * EVENTS_WAITING_MAX):
            nursery.start_soon(reader, number)
            if number % 100 == 0:
                await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert len(posted) == EVENTS_WAITING_MAX, "nothing of the others is held here"
        nursery.start_soon(driver.run)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(posted) == sorted(peer.fed) == list(range(3 * EVENTS_WAITING_MAX))
        nursery.cancel_scope.cancel()


async def test_who_cannot_wait_is_taken_at_once_and_takes_nobodys_place() -> None:
    peer = FedPeer()
    driver = driver_of(peer)
    for number in range(2 * EVENTS_WAITING_MAX):
        driver.post(event(number))
    with trio.fail_after(1):
        await driver.post_with_backpressure(event(-1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert peer.fed == [*range(2 * EVENTS_WAITING_MAX), -1]


class SlowPeer(FedPeer):
    """A peer that takes a fifth of a second over every event, in which the next one comes."""

    def __init__(self, clock: trio.testing.MockClock, events: int) -> None:
        super().__init__()
        self.driver: Driver | None = None
        self.pressure: list[tuple[float, bool]] = []
        self._clock = clock
        self._left = events

    def handle(self, event: e.Event, now: e.Now) -> list[Effect]:
        if isinstance(event, e.Pressure):
            self.pressure.append((round(now.monotonic_s, 1), event.is_high))
            return []
        self._clock.jump(0.2)
        self._left -= 1
        if self._left and self.driver is not None:
            self.driver.post(event)
        return []


@pytest.mark.parametrize(("events", "expected"), [(3, []), (10, [(0.8, True), (2.0, False)])])
async def test_a_queue_that_is_not_caught_up_with_is_told_to_the_peer(
    events: int, expected: list[tuple[float, bool]]
) -> None:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    peer = SlowPeer(clock, events)
    driver = peer.driver = driver_of(peer)
    driver.post(event(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert peer.pressure == expected
