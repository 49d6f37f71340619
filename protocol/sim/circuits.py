"""Relays and dial-backs in the simulated network: who holds a place where, and what leads through it.

A circuit is a connection whose lines go by way of a relay: slower, cut when either half is cut, and gone when the relay
is gone or no longer connected with the one who holds the place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from protocol.effects import DialBack
from protocol.events import DialedBack, Event, RelayLost, RelayReserved
from protocol.ids import NodeId, peer_id
from protocol.records import Reachability
from protocol.sim.schedule import Schedule
from protocol.sim.wiring import Connection, Port

# How long a dial-back waits for nobody.
DIAL_BACK_S: Final = 3.0


def circuit_address(relay_address: str, relay: NodeId, node: NodeId) -> str:
    """The address of a machine through a relay."""
    return f"{relay_address}/p2p/{peer_id(relay)}/p2p-circuit/p2p/{peer_id(node)}"


class Circuits:
    """Places at relays. `latency_s`, `is_separated` and `end` are the network's: `end` breaks a connection."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        latency_s: Callable[[Port, Port], float],
        is_separated: Callable[[Port, Port], bool],
        end: Callable[[Connection, str], None],
        tell: Callable[[Port, Event], None],
    ) -> None:
        self._schedule = schedule
        self._latency_s = latency_s
        self._is_separated = is_separated
        self._end = end
        self._tell = tell
        # Who holds a place, and where; in order of taking.
        self._places: dict[tuple[int, int], tuple[Port, Port]] = {}

    def relay_to(self, dialler: Port, target: Port, addresses: tuple[str, ...]) -> Port | None:
        """A relay at which the target holds a place, among these addresses."""
        for holder, relay in self._places.values():
            address = relay.machine.address
            if holder is not target or relay is dialler or address is None or not relay.is_up:
                continue
            if circuit_address(address, relay.machine.node, target.machine.node) in addresses and _direct(
                target, relay
            ):
                return relay
        return None

    def reserve(self, port: Port, relay: Port) -> None:
        """A machine asks a relay for a place."""
        at_s = self._schedule.now_s + 2 * self._latency_s(port, relay)
        self._schedule.at(at_s, partial(self._reserved, port, relay, port.life))

    def _reserved(self, port: Port, relay: Port, life: int) -> None:
        if port.life != life or not port.is_up:
            return
        address = relay.machine.address
        if address is None or not relay.machine.relays or not _direct(port, relay):
            port.machine.receive(RelayLost(relay.machine.node, "it gives no place, or is not connected"))
            return
        self._places[port.index, relay.index] = (port, relay)
        addresses = (circuit_address(address, relay.machine.node, port.machine.node),)
        port.machine.receive(RelayReserved(relay.machine.node, addresses))

    def release(self, port: Port, relay: Port) -> bool:
        """A place is of no more use; says whether there was one."""
        return self._places.pop((port.index, relay.index), None) is not None

    def on_disconnected(self, port: Port, relay: Port, connections: list[Connection]) -> None:
        """A machine and another, perhaps its relay, have one connection less."""
        if _direct(port, relay):
            return
        if self.release(port, relay):
            self._tell(port, RelayLost(relay.machine.node, "the connection to the relay is lost"))
        self._break([each for each in connections if each.relay is relay and port in each.machines], 0.0)

    def on_crash(self, port: Port, connections: list[Connection], delay_s: float) -> None:
        """A machine is gone; others notice what went through it after a while."""
        # Those who hold a place there hear of it when they notice that they are no longer connected.
        for holder, relay in list(self._places):
            if port.index == holder:
                del self._places[holder, relay]
        self._break([each for each in connections if each.relay is port], delay_s)

    def _break(self, circuits: list[Connection], delay_s: float) -> None:
        for circuit in circuits:
            self._schedule.at(self._schedule.now_s + delay_s, partial(self._end, circuit, "the relay is gone"))

    def dial_back(self, port: Port, effect: DialBack, target: Port | None) -> None:
        """A machine tries whether another one is reached."""
        if target is None or target.machine.address != effect.address or not self._answers(port, target):
            found, delay_s = Reachability.NOT_REACHED, DIAL_BACK_S
        else:
            found, delay_s = Reachability.REACHED, 4 * self._latency_s(port, target)
        tell = partial(self._dialled_back, port, DialedBack(effect.probe, found, ""), port.life)
        self._schedule.at(self._schedule.now_s + delay_s, tell)

    def _answers(self, port: Port, target: Port) -> bool:
        return target.is_up and not target.is_silent and not self._is_separated(port, target)

    @staticmethod
    def _dialled_back(port: Port, event: DialedBack, life: int) -> None:
        if port.life == life and port.is_up:
            port.machine.receive(event)


def _direct(port: Port, other: Port) -> bool:
    """Whether two machines hold a connection without a relay between them."""
    held = port.connections.get(other.machine.node, ())
    return any(connection.relay is None and all(connection.is_up) for connection in held)
