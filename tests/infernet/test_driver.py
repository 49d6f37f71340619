"""The driver alone: what is queued, in which order, and who has to wait."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from infernet.driver import EVENTS_WAITING_MAX, Driver
from protocol import events as e
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

    def handle(self, event: e.Event, now: e.Now) -> list[e.Effect]:
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
