"""Reaching a peer of many addresses, on a virtual clock."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
import trio.testing

from infernet.transport import dialer
from infernet.transport.addresses import CircuitAddress, TcpAddress
from infernet.transport.contract import DialFailed
from infernet.transport.dialer import (
    ADDRESS_TIMEOUT_S,
    ADDRESSES_MAX,
    ATTEMPTS_MAX,
    BACKOFF_FIRST_S,
    BACKOFF_JITTER,
    BACKOFF_MAX_S,
    CIRCUIT_ATTEMPTS_MAX,
    CIRCUIT_DELAY_S,
    STAGGER_S,
    AttemptFailed,
    Dialer,
)
from protocol.ids import NodeId, peer_id
from tests.helpers_transport import identity

pytestmark = pytest.mark.anyio

PEER = identity(2)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Time passes only while everybody waits."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


def at(port: int) -> str:
    """The address whose behaviour a test sets by its port."""
    return f"/ip4/198.51.100.1/tcp/{port}"


def through(port: int) -> str:
    """The address of a circuit whose relay is at that port, with the behaviour of the port above it."""
    return f"{at(port - 1)}/p2p/{peer_id(identity(9))}/p2p-circuit/p2p/{peer_id(PEER)}"


def port_of(address: TcpAddress | CircuitAddress) -> int:
    """What a test set the behaviour of an address by."""
    if isinstance(address, TcpAddress):
        return address.port
    return int(address.relay_address.split("/")[4]) + 1


class Connected:
    def __init__(self, port: int) -> None:
        self.port = port
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True


class Network:
    """Each port answers after a delay, or fails after it; ports that are not set never answer."""

    def __init__(self) -> None:
        self.answers: dict[int, float] = {}
        self.failures: dict[int, float] = {}
        self.begun: list[tuple[float, int]] = []
        self.made: list[Connected] = []
        self.gated: set[int] = set()
        self.gate = trio.Event()
        self.on_made: Callable[[], None] = lambda: None
        self.under_way = 0
        self.most_under_way = 0
        self.start_s = trio.current_time()
        self.dialer = Dialer[Connected](self.attempt, random.Random(1))

    async def attempt(self, peer: NodeId, address: TcpAddress | CircuitAddress) -> Connected:
        port = port_of(address)
        self.begun.append((trio.current_time() - self.start_s, port))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if port in self.failures:
                await trio.sleep(self.failures[port])
                raise AttemptFailed(f"port {port} refuses")
            if port in self.gated:
                await self.gate.wait()
            else:
                await trio.sleep(self.answers.get(port, 1e6))
        finally:
            self.under_way -= 1
        self.made.append(Connected(port))
        self.on_made()
        return self.made[-1]

    async def dial(self, *ports: int, at_once: bool = False) -> int:
        return (await self.dialer.dial(PEER, [at(port) for port in ports], at_once=at_once)).port

    async def reasons(self, *texts: str) -> dict[str, str]:
        with pytest.raises(DialFailed) as failure:
            await self.dialer.dial(PEER, texts)
        assert failure.value.peer == PEER
        return failure.value.reasons


async def test_addresses_start_one_after_the_other() -> None:
    network = Network()
    network.answers[3] = 1.0
    assert await network.dial(1, 2, 3) == 3
    assert network.begun == [(0, 1), (STAGGER_S, 2), (2 * STAGGER_S, 3)]
    assert network.under_way == 0, "those that were slower are cancelled"


async def test_an_address_that_answers_at_once_is_the_only_one_tried() -> None:
    network = Network()
    network.answers[1] = 0.01
    assert await network.dial(1, 2) == 1
    assert [port for _, port in network.begun] == [1]
    assert trio.current_time() - network.start_s == pytest.approx(0.01)


async def test_a_failure_starts_the_next_address_at_once() -> None:
    network = Network()
    network.failures[1] = 0.01
    network.answers[2] = 0.01
    assert await network.dial(1, 2) == 2
    assert network.begun == [(0, 1), (pytest.approx(0.01), 2)]


async def test_an_earlier_address_can_still_win() -> None:
    network = Network()
    network.answers.update({1: 0.4, 2: 5.0})
    assert await network.dial(1, 2) == 1


async def test_two_that_answer_in_the_same_moment_give_one_connection() -> None:
    network = Network()
    network.gated = {1, 2}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.dial, 1, 2)
        await trio.sleep(1)
        network.gate.set()
    assert [connected.closed for connected in network.made] == [False, True]


async def test_an_address_that_never_answers_has_a_deadline() -> None:
    network = Network()
    assert await network.reasons(at(1)) == {at(1): "no answer within 10 s"}
    assert trio.current_time() - network.start_s == pytest.approx(ADDRESS_TIMEOUT_S)


async def test_every_address_has_its_reason() -> None:
    network = Network()
    network.failures[1] = 0
    other = f"{at(2)}/p2p/{peer_id(identity(3))}"
    assert await network.reasons(at(1), "nonsense", other) == {
        at(1): "port 1 refuses",
        "nonsense": "not an address of the form /ip4/HOST/tcp/PORT, /ip6/... or /dns/...",
        other: "the address names another peer",
    }
    assert await network.reasons() == {}


async def test_an_address_is_tried_once_and_not_too_many_are() -> None:
    network = Network()
    network.failures.update(dict.fromkeys(range(1, 100), 0.0))
    reasons = await network.reasons(at(1), *[at(port) for port in range(1, 100)])
    assert reasons[at(1)] == "port 1 refuses"
    assert [port for _, port in network.begun] == list(range(1, ADDRESSES_MAX + 1))


async def test_a_failed_address_is_left_alone_for_a_time_that_doubles() -> None:
    network = Network()
    network.failures[1] = 0
    waits: list[float] = []
    for failures in range(14):
        assert await network.reasons(at(1)) == {at(1): "port 1 refuses"}
        told = (await network.reasons(at(1)))[at(1)]
        wait_s = float(told.removeprefix("failed before; the next attempt is in ").removesuffix(" s"))
        expected_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**failures)
        assert wait_s == pytest.approx(expected_s, rel=BACKOFF_JITTER, abs=1)
        waits.append(wait_s / expected_s)
        await trio.sleep(wait_s + 1)
    assert len(network.begun) == 14
    assert max(waits[5:]) - min(waits[5:]) > BACKOFF_JITTER / 2, "the waits are jittered"


async def test_success_forgives() -> None:
    network = Network()
    network.failures[1] = 0
    for _ in range(5):
        await network.reasons(at(1))
        await trio.sleep(BACKOFF_MAX_S)
    del network.failures[1]
    network.answers[1] = 0
    await network.dial(1)
    network.failures[1] = 0
    await network.reasons(at(1))
    await trio.sleep(BACKOFF_FIRST_S * 2)
    del network.failures[1]
    await network.dial(1)


async def test_whoever_waits_does_not_wait_for_what_failed_long_ago() -> None:
    """Again and again it is tried, but never sooner than it would have been after its first failure."""
    network = Network()
    network.failures[1] = 0
    for _ in range(5):
        await network.reasons(at(1))
        await trio.sleep(BACKOFF_MAX_S)
    await network.reasons(at(1))
    failed_s = trio.current_time()
    with pytest.raises(DialFailed) as failure:
        await network.dial(1)
    assert failure.value.left_out
    del network.failures[1]
    network.answers[1] = 0
    assert await network.dial(1, at_once=True) == 1
    assert trio.current_time() == pytest.approx(failed_s + BACKOFF_FIRST_S)
    network.failures[1] = 0
    with pytest.raises(DialFailed) as failure:
        await network.dial(1, at_once=True)
    assert not failure.value.left_out


async def test_whoever_waits_for_a_circuit_waits_for_its_relay_no_longer_either() -> None:
    network = Network()
    relay = identity(9)
    of_relay = f"{at(1)}/p2p/{peer_id(relay)}"
    for _ in range(5):
        network.failures[1] = 0
        with pytest.raises(DialFailed):
            await network.dialer.dial(relay, [of_relay])
        await trio.sleep(BACKOFF_MAX_S)
    with pytest.raises(DialFailed):
        await network.dialer.dial(relay, [of_relay])
    del network.failures[1]
    network.answers.update({1: 0, 2: 0})
    await network.dialer.dial(PEER, [through(2)], at_once=True)
    assert (await network.dialer.dial(relay, [of_relay])).port == 1


async def test_another_address_of_the_peer_is_not_left_alone() -> None:
    network = Network()
    network.failures[1] = 0
    network.answers[2] = 0
    await network.reasons(at(1))
    assert await network.dial(1, 2) == 2


async def test_what_failed_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer, "BACKOFF_ENTRIES_MAX", 8)
    network = Network()
    network.failures.update(dict.fromkeys(range(1, 30), 0.0))
    for port in range(1, 30):
        await network.reasons(at(port))
    assert len(network.dialer._backoffs) == 8


async def test_attempts_over_all_peers_are_bounded_and_waiting_has_a_deadline() -> None:
    network = Network()
    async with trio.open_nursery() as nursery:
        for port in range(1, 3 * ATTEMPTS_MAX):
            nursery.start_soon(network.reasons, at(port))
    assert network.most_under_way == ATTEMPTS_MAX
    assert trio.current_time() - network.start_s <= 2 * ADDRESS_TIMEOUT_S + 1


async def test_a_cancelled_dial_leaves_nothing() -> None:
    network = Network()
    with trio.move_on_after(1):
        await network.dial(1, 2)
    assert network.under_way == 0
    network.answers[1] = 0
    assert await network.dial(1) == 1, "being cancelled is no failure of the address"


async def test_a_connection_made_in_the_moment_of_cancelling_is_closed() -> None:
    network = Network()
    network.answers[1] = 1
    with trio.CancelScope() as scope:
        network.on_made = scope.cancel
        await network.dial(1, 2)
    assert scope.cancelled_caught
    assert [connected.closed for connected in network.made] == [True]


@pytest.mark.parametrize("deadline_s", [STAGGER_S, 0.3, 1.0])
async def test_a_deadline_in_the_moment_of_winning_leaves_no_connection_to_nobody(deadline_s: float) -> None:
    """The caller's deadline may pass while the slower attempts are being ended."""
    network = Network()
    network.answers.update({1: deadline_s, 2: deadline_s, 3: deadline_s - STAGGER_S})
    given: list[int] = []
    with trio.move_on_after(deadline_s):
        given.append(await network.dial(1, 2, 3))
    open_ = [connected.port for connected in network.made if not connected.closed]
    assert open_ == given
    assert network.under_way == 0


# ---------------------------------------------------------------- through relays


async def test_a_circuit_waits_until_a_direct_address_has_had_its_chance() -> None:
    network = Network()
    network.answers = {1: CIRCUIT_DELAY_S - 0.1, 41: 0.01}
    connected = await network.dialer.dial(PEER, [through(41), at(1)])
    assert connected.port == 1
    assert [port for _, port in network.begun] == [1]


async def test_a_circuit_is_tried_beside_a_direct_address_that_takes_too_long() -> None:
    network = Network()
    network.answers = {41: 0.5}
    connected = await network.dialer.dial(PEER, [through(41), at(1)])
    assert connected.port == 41
    [(first_s, first), (second_s, second)] = network.begun
    assert (first, second) == (1, 41)
    assert second_s - first_s == pytest.approx(CIRCUIT_DELAY_S + STAGGER_S, abs=0.01)


async def test_a_circuit_is_tried_at_once_when_there_is_no_other_way_or_none_is_left() -> None:
    network = Network()
    network.answers = {41: 0.0}
    await network.dialer.dial(PEER, [through(41)])
    assert network.begun == [(0.0, 41)]
    network.failures = {1: 0.1}
    await network.dialer.dial(PEER, [through(41), at(1)])
    assert network.begun[-1] == (pytest.approx(0.1), 41)


async def test_circuits_and_the_dials_of_their_relays_do_not_wait_for_each_other() -> None:
    """As many circuits as may be dialled at a time, each of which first dials its relay, directly."""
    network = Network()
    inner = network.attempt
    network.answers = dict.fromkeys(range(1, 200), 0.1)

    async def attempt(peer: NodeId, address: TcpAddress | CircuitAddress) -> Connected:
        if isinstance(address, CircuitAddress):
            await network.dialer.dial(identity(9), [address.relay_address])
        return await inner(peer, address)

    network.dialer = Dialer[Connected](attempt, random.Random(1))
    async with trio.open_nursery() as nursery:
        for number in range(ATTEMPTS_MAX + CIRCUIT_ATTEMPTS_MAX):
            nursery.start_soon(network.dialer.dial, PEER, [through(2 * number + 2)])
    assert trio.current_time() - network.start_s < ADDRESS_TIMEOUT_S / 2


async def test_an_address_for_which_there_was_no_place_has_not_failed() -> None:
    network = Network()
    network.answers[1] = 0.1
    async with trio.open_nursery() as nursery:
        for _ in range(ATTEMPTS_MAX):
            nursery.start_soon(network.dialer._places.acquire_on_behalf_of, object())
        await trio.testing.wait_all_tasks_blocked()
        assert await network.reasons(at(1)) == {at(1): "too many other dials are under way"}
    network.dialer._places.total_tokens += 1
    assert await network.dial(1) == 1
