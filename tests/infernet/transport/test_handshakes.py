"""Places for strangers: who gets one, and who loses it."""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import ip_address

import pytest
import trio
import trio.testing

from infernet.transport.crowd import Origin, origin_of_ip
from infernet.transport.handshakes import (
    GRACE_S,
    TURN_S,
    HandshakeLimits,
    Handshakes,
)

pytestmark = pytest.mark.anyio

TIMEOUT_S = 5.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Time passes only while everybody waits."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


def from_(text: str) -> Origin:
    return origin_of_ip(ip_address(text))


class Strangers:
    """Those who hold a place until they lose it, each in a task of its own."""

    def __init__(self, nursery: trio.Nursery, limits: HandshakeLimits, *, exempt_loopback: bool = False) -> None:
        self.handshakes = Handshakes(limits, exempt_loopback=exempt_loopback)
        self.lost: list[str] = []
        self._nursery = nursery

    async def come(self, text: str, timeout_s: float = TIMEOUT_S) -> bool:
        return bool(await self._nursery.start(self._stay, text, timeout_s))

    async def _stay(self, text: str, timeout_s: float, task_status: trio.TaskStatus[bool]) -> None:
        with self.handshakes.place(from_(text), timeout_s) as scope:
            task_status.started(scope is not None)
            if scope is None:
                return
            await trio.sleep_forever()
        self.lost.append(text)

    async def settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked()


LIMITS = HandshakeLimits(total_max=8, per_network_max=4, per_host_max=2)


async def test_a_host_has_few_places_and_a_network_some() -> None:
    async with trio.open_nursery() as nursery:
        strangers = Strangers(nursery, LIMITS)
        assert [await strangers.come("192.0.2.1") for _ in range(5)] == [True, True, False, False, False]
        assert [await strangers.come(f"192.0.2.{host}") for host in (2, 3, 4)] == [True, True, True]
        # The fourth of the network cost the host with two of them one.
        await strangers.settle()
        assert strangers.lost == ["192.0.2.1"]
        assert not await strangers.come("192.0.2.5")
        assert await strangers.come("198.51.100.1")
        assert len(strangers.handshakes) == 5
        nursery.cancel_scope.cancel()


async def test_a_flood_from_one_host_throws_nobody_out_who_comes_from_elsewhere() -> None:
    async with trio.open_nursery() as nursery:
        strangers = Strangers(nursery, LIMITS)
        assert await strangers.come("203.0.113.9")
        for _ in range(1000):
            await strangers.come("192.0.2.1")
        for host in range(200):
            await strangers.come(f"192.0.2.{host}")
        await strangers.settle()
        assert "203.0.113.9" not in strangers.lost
        assert await strangers.come("203.0.113.10"), "and whoever comes from elsewhere gets in at once"
        nursery.cancel_scope.cancel()


async def test_when_all_are_taken_the_most_crowded_network_makes_room() -> None:
    async with trio.open_nursery() as nursery:
        strangers = Strangers(nursery, LIMITS)
        for text in ("203.0.113.1", *["192.0.2.1"] * 2, *["192.0.2.2"] * 2, "198.51.100.1", "198.51.100.2"):
            assert await strangers.come(text)
        assert await strangers.come("198.51.100.3")
        assert len(strangers.handshakes) == 8
        assert await strangers.come("203.0.113.2")
        await strangers.settle()
        assert strangers.lost == ["192.0.2.1"], "the oldest of its most crowded host, and at once"
        assert strangers.handshakes.evicted == 1
        nursery.cancel_scope.cancel()


async def test_those_of_one_origin_cannot_chase_each_other_out() -> None:
    async with trio.open_nursery() as nursery:
        strangers = Strangers(nursery, LIMITS)
        assert await strangers.come("192.0.2.1")
        await trio.sleep(GRACE_S * 0.9)
        assert await strangers.come("192.0.2.1")
        assert not await strangers.come("192.0.2.1"), "nobody has had their time yet"
        await trio.sleep(GRACE_S * 0.2)
        assert await strangers.come("192.0.2.1"), "the first one has"
        assert not await strangers.come("192.0.2.1"), "the second one has not"
        nursery.cancel_scope.cancel()


async def test_with_a_place_for_each_of_many_networks_nobody_is_thrown_out_in_their_first_moments() -> None:
    async with trio.open_nursery() as nursery:
        strangers = Strangers(nursery, LIMITS)
        assert all([await strangers.come(f"10.{network}.0.1") for network in range(8)])
        assert not await strangers.come("10.99.0.1")
        await trio.sleep(GRACE_S)
        assert await strangers.come("10.99.0.1")
        await strangers.settle()
        assert strangers.lost == ["10.0.0.1"]
        nursery.cancel_scope.cancel()


async def test_work_is_begun_for_one_after_the_other() -> None:
    handshakes = Handshakes(HandshakeLimits(), exempt_loopback=False)
    begun_s: list[float] = []

    async def shake() -> None:
        await handshakes.turn()
        begun_s.append(trio.current_time() - start_s)

    for _ in range(2):
        await trio.sleep(10)
        start_s = trio.current_time()
        begun_s.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(shake)
        assert begun_s == [pytest.approx(number * TURN_S) for number in range(20)]


async def test_a_place_has_a_deadline_and_is_free_again_afterwards() -> None:
    start_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        strangers = Strangers(nursery, LIMITS)
        await strangers.come("192.0.2.1")
    assert strangers.lost == ["192.0.2.1"]
    assert trio.current_time() - start_s == pytest.approx(TIMEOUT_S)
    assert len(strangers.handshakes) == 0


async def test_a_place_is_free_again_whatever_happens_in_it() -> None:
    handshakes = Handshakes(LIMITS, exempt_loopback=False)
    with pytest.raises(RuntimeError), handshakes.place(from_("192.0.2.1"), TIMEOUT_S):
        raise RuntimeError("a bug")
    assert len(handshakes) == 0


@pytest.mark.parametrize(("exempt", "placed"), [(True, 8), (False, 2)])
async def test_programs_of_this_machine_share_one_address_where_that_is_allowed(exempt: bool, placed: int) -> None:
    handshakes = Handshakes(LIMITS, exempt_loopback=exempt)
    with ExitStack() as stack:
        places = [stack.enter_context(handshakes.place(from_("127.0.0.1"), TIMEOUT_S)) for _ in range(12)]
    assert sum(place is not None for place in places) == placed


async def test_whoever_loses_the_place_while_waiting_takes_no_turn() -> None:
    handshakes = Handshakes(LIMITS, exempt_loopback=False)
    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(handshakes.turn)
        await trio.sleep(2.5 * TURN_S)
        nursery.cancel_scope.cancel()
    began_s = trio.current_time()
    await handshakes.turn()
    assert trio.current_time() - began_s <= TURN_S
