"""Circuits in the simulated network: slower, bound to a place, gone with the relay, cut with either half."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from protocol.effects import Dial, DialBack, HangUp, OpenStream, ReleaseRelay, ReserveRelay, Send
from protocol.events import (
    BytesReceived,
    DialedBack,
    DialFailed,
    Event,
    PeerConnected,
    PeerDisconnected,
    RelayLost,
    RelayReserved,
    StreamBroken,
)
from protocol.ids import NodeId, StreamId
from protocol.records import Reachability
from protocol.sim.network import Network
from protocol.sim.scenario import Faults
from protocol.sim.schedule import Schedule

RELAY, HIDDEN, ASKER = 0, 1, 2
STREAM = StreamId(1)


class Machine:
    """A machine that writes down what it receives."""

    def __init__(self, index: int, schedule: Schedule, *, is_hidden: bool) -> None:
        self.node = NodeId(bytes([index + 1]) * 32)
        self.address = None if is_hidden else f"/ip4/10.0.0.{index}/tcp/46337"
        self.observed_address = f"/ip4/10.0.0.{index}/tcp/50000"
        self.relays = index == RELAY
        self.events: list[Event] = []
        self.times: list[float] = []
        self._schedule = schedule
        self._inbound = 0

    def receive(self, event: Event) -> None:
        self.events.append(event)
        self.times.append(self._schedule.now_s)

    def next_inbound_stream(self) -> StreamId:
        self._inbound += 2
        return StreamId(self._inbound)

    def of(self, cls: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, cls)]


class Net:
    """A relay, a machine that nobody can dial and holds a place there, and one that dials."""

    def __init__(self, **faults: Any) -> None:
        self.schedule = Schedule()
        calm = {"split": 0.0, "jitter_s": 0.0, "latency_s_min": 0.1, "latency_s_mean": 0.1, **faults}
        self.network = Network(Faults(**calm), self.schedule, random.Random(1))
        self.machines = [Machine(index, self.schedule, is_hidden=index == HIDDEN) for index in range(3)]
        self.relay, self.hidden, self.asker = self.machines
        for machine in self.machines:
            self.network.start(self.network.attach(machine))
        assert self.relay.address is not None
        self.network.perform(HIDDEN, Dial(self.relay.node, (self.relay.address,)))
        self.run(2.0)
        self.network.perform(HIDDEN, ReserveRelay(self.relay.node))
        self.run(2.0)
        self.addresses: tuple[str, ...] = self.hidden.of(RelayReserved)[0].addresses

    def run(self, seconds: float) -> None:
        self.schedule.run_until(self.schedule.now_s + seconds)

    def dial(self) -> None:
        self.network.perform(ASKER, Dial(self.hidden.node, self.addresses))
        self.run(30.0)

    def is_connected(self) -> bool:
        return len(self.asker.of(PeerConnected)) > len(self.asker.of(PeerDisconnected))


def test_a_circuit_connects_and_both_ends_see_that_it_is_one() -> None:
    net = Net()
    net.dial()
    [outward], [inward] = net.asker.of(PeerConnected), net.hidden.of(PeerConnected)[1:]
    assert (outward.inbound, inward.inbound) == (False, True)
    assert "/p2p-circuit" in outward.address
    assert "/p2p-circuit" in inward.address
    assert net.relay.of(PeerConnected) == [PeerConnected(net.hidden.node, net.hidden.observed_address, True)]


def test_what_goes_through_it_takes_two_hops() -> None:
    net = Net()
    net.dial()
    started_s = net.schedule.now_s
    net.network.perform(ASKER, OpenStream(STREAM, net.hidden.node, "/infernet/find/1"))
    net.network.perform(ASKER, Send(STREAM, b"hello"))
    net.run(5.0)
    [data] = net.hidden.of(BytesReceived)
    assert data.data == b"hello"
    assert net.hidden.times[net.hidden.events.index(data)] - started_s == pytest.approx(0.2)


def crash(net: Net) -> None:
    net.network.crash(RELAY, silent=False)


def hang_up(net: Net) -> None:
    net.network.perform(HIDDEN, HangUp(net.relay.node, "enough"))


def cut_off(net: Net) -> None:
    net.network.partition([RELAY])


@pytest.mark.parametrize("how", [crash, hang_up, cut_off])
def test_a_circuit_ends_with_its_relay_for_both_ends_and_the_place_is_lost(how: Callable[[Net], None]) -> None:
    net = Net()
    net.dial()
    net.network.perform(ASKER, OpenStream(STREAM, net.hidden.node, "/infernet/find/1"))
    net.run(1.0)
    how(net)
    net.run(120.0)
    assert not net.is_connected()
    assert len(net.asker.of(StreamBroken)) == 1
    assert len(net.hidden.of(PeerDisconnected)) == 2
    assert [event.relay for event in net.hidden.of(RelayLost)] == [net.relay.node]
    net.dial()
    assert net.asker.of(DialFailed)
    assert not net.is_connected()


def test_a_silent_relay_is_noticed_when_nothing_was_heard_for_too_long() -> None:
    net = Net(silence_s=20.0)
    net.dial()
    net.network.crash(RELAY, silent=True)
    net.run(19.0)
    assert net.is_connected()
    net.run(2.0)
    assert not net.is_connected()


def test_a_cut_between_the_ends_does_not_matter_as_long_as_the_relay_sees_both() -> None:
    net = Net()
    assert net.network.partition([]) == frozenset()
    net.dial()
    assert net.is_connected()


def test_without_a_place_nobody_is_reached() -> None:
    net = Net()
    net.network.perform(HIDDEN, ReleaseRelay(net.relay.node))
    net.dial()
    assert net.asker.of(DialFailed)


def test_who_does_not_relay_or_is_not_connected_gives_no_place() -> None:
    net = Net()
    net.network.perform(ASKER, ReserveRelay(net.relay.node))
    net.run(2.0)
    assert len(net.asker.of(RelayLost)) == 1
    net.relay.relays = False
    net.network.perform(HIDDEN, ReserveRelay(net.relay.node))
    net.run(2.0)
    assert len(net.hidden.of(RelayLost)) == 1


def test_a_relay_that_crashes_during_the_handshake_leaves_nobody_waiting() -> None:
    for delay_s in (0.05, 0.3, 0.65, 1.0):
        net = Net()
        net.network.perform(ASKER, Dial(net.hidden.node, net.addresses))
        net.run(delay_s)
        net.network.crash(RELAY, silent=False)
        net.run(60.0)
        assert not net.is_connected()
        assert net.asker.of(DialFailed) or net.asker.of(PeerDisconnected)


def test_dial_backs_find_who_is_there_and_who_is_not() -> None:
    net = Net()
    assert net.relay.address is not None
    tries = [
        (net.relay.node, net.relay.address, Reachability.REACHED),
        (net.hidden.node, "/ip4/10.0.0.1/tcp/46337", Reachability.NOT_REACHED),
        (net.relay.node, "/ip4/10.0.0.0/tcp/1", Reachability.NOT_REACHED),
        (NodeId(bytes(32)), "/ip4/10.0.0.0/tcp/46337", Reachability.NOT_REACHED),
    ]
    for probe, (node, address, _) in enumerate(tries):
        net.network.perform(ASKER, DialBack(probe, node, address))
    net.run(10.0)
    found = {event.probe: event.reachability for event in net.asker.of(DialedBack)}
    assert found == {probe: expected for probe, (_, _, expected) in enumerate(tries)}
