"""The relays through which a node is reached that nobody can dial: at least two, in different networks, kept and
replaced.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from protocol.directory import Directory
from protocol.effects import Dial, Effect, OwnAddresses, ReleaseRelay, ReserveRelay
from protocol.events import Now, RelayLost, RelayReserved
from protocol.ids import NodeId
from protocol.locality import is_circuit, network_of
from protocol.reaching import Link
from protocol.records import Heartbeat

FEATURE_RELAYS: Final = 2

RELAYS_MIN: Final = 2
# One more where the first two have the same owner, as far as their addresses tell.
RELAYS_MAX: Final = 3
# While some are missing, others are looked for this often; a new one may have come by gossip.
LOOK_S: Final = 5.0
# ... and while only their networks are not different enough.
LOOK_SELDOM_S: Final = 120.0
# A relay that failed is left alone: 10 s, doubling, up to half an hour.
RETRY_S_MIN: Final = 10.0
RETRY_S_MAX: Final = 1800.0
# Dial, handshake, reservation.
TAKING_S_MAX: Final = 40.0
# Relays that failed and are remembered; the oldest is forgotten first.
FAILURES_MAX: Final = 256


class _State(Enum):
    DIALLING = 1
    ASKING = 2
    HELD = 3


@dataclass(slots=True)
class _Relay:
    state: _State
    network: str
    since_s: float
    addresses: tuple[str, ...] = ()


@dataclass(slots=True)
class _Failure:
    count: int
    until_s: float


class Relays:
    """The state. `addresses` are those under which this node is reached through the relays that it holds."""

    def __init__(self, node: NodeId, directory: Directory, links: Mapping[NodeId, Link], rng: random.Random) -> None:
        self._node = node
        self._directory = directory
        self._links = links
        self._rng = rng
        self._is_wanted = False
        self._relays: dict[NodeId, _Relay] = {}
        self._failures: dict[NodeId, _Failure] = {}
        self._look_at_s: float | None = None
        self.addresses: tuple[str, ...] = ()

    @property
    def held(self) -> int:
        """Relays that hold a place for this node."""
        return sum(relay.state is _State.HELD for relay in self._relays.values())

    def next_deadline(self) -> float | None:
        return self._look_at_s

    def want(self, is_wanted: bool, now: Now) -> list[Effect]:
        """Whether this node is to be reached through relays."""
        if is_wanted == self._is_wanted:
            return []
        self._is_wanted = is_wanted
        if is_wanted:
            return self._look(now)
        released: list[Effect] = [
            ReleaseRelay(node) for node, relay in self._relays.items() if relay.state is not _State.DIALLING
        ]
        self._relays.clear()
        self._look_at_s = None
        return released + self._publish()

    # ------------------------------------------------------------ events

    def on_link(self, peer: NodeId, now: Now) -> list[Effect]:
        """A peer is connected, or has said what it can do."""
        relay = self._relays.get(peer)
        if relay is None:
            is_news = self._is_wanted and self._is_lacking() and FEATURE_RELAYS in self._links[peer].features
            return self._look(now) if is_news else []
        if relay.state is _State.DIALLING and self._links[peer].is_direct:
            # Until now its network was what the first of its addresses claims.
            relay.network = network_of(self._links[peer].address)
            return self._reserve(peer, relay, now)
        return []

    def on_unreachable(self, peer: NodeId, now: Now) -> list[Effect]:
        """A peer could not be dialled."""
        relay = self._relays.get(peer)
        return self._lose(peer, now) if relay is not None and relay.state is _State.DIALLING else []

    def on_reserved(self, event: RelayReserved, now: Now) -> list[Effect]:
        """A relay holds a place for us, or goes on holding it."""
        relay = self._relays.get(event.relay)
        if relay is None:
            return [ReleaseRelay(event.relay)]  # it is wanted no more
        self._failures.pop(event.relay, None)
        relay.state, relay.addresses = _State.HELD, event.addresses
        return [*self._publish(), *self._look(now)]

    def on_lost(self, event: RelayLost, now: Now) -> list[Effect]:
        """A relay gave no place, or holds it no longer."""
        return self._lose(event.relay, now)

    def on_deadline(self, now: Now) -> list[Effect]:
        """Give up what takes too long, and look for what is missing."""
        if self._look_at_s is None or self._look_at_s > now.monotonic_s:
            return []
        effects: list[Effect] = []
        for node, relay in list(self._relays.items()):
            if relay.state is not _State.HELD and now.monotonic_s - relay.since_s >= TAKING_S_MAX:
                effects += [ReleaseRelay(node)] if relay.state is _State.ASKING else []
                effects += self._lose(node, now)
        return effects + self._look(now)

    def _lose(self, node: NodeId, now: Now) -> list[Effect]:
        if self._relays.pop(node, None) is None:
            return []
        failure = self._failures.pop(node, None) or _Failure(0, 0.0)
        delay_s = min(RETRY_S_MAX, RETRY_S_MIN * 2.0 ** min(failure.count, 16))
        failure.count += 1
        failure.until_s = now.monotonic_s + delay_s * (0.5 + self._rng.random())
        self._failures[node] = failure
        if len(self._failures) > FAILURES_MAX:
            del self._failures[next(iter(self._failures))]
        return [*self._publish(), *self._look(now)]

    def _publish(self) -> list[Effect]:
        addresses = tuple(dict.fromkeys(address for relay in self._relays.values() for address in relay.addresses))
        if addresses == self.addresses:
            return []
        self.addresses = addresses
        return [OwnAddresses(addresses)]

    # ------------------------------------------------------------ looking

    def _is_lacking(self) -> bool:
        # SPEC 08: A node that cannot be dialled and serves jobs SHOULD hold places at two relays or more, in networks
        #   of different owners where there are such
        return len(self._relays) < RELAYS_MIN or (len(self._relays) < RELAYS_MAX and len(self._networks()) < 2)

    def _networks(self) -> set[str]:
        return {relay.network for relay in self._relays.values()}

    def _look(self, now: Now) -> list[Effect]:
        """Begin to take what is missing."""
        effects: list[Effect] = []
        while self._is_wanted and self._is_lacking() and (chosen := self._choose(now)) is not None:
            node, network, addresses = chosen
            relay = self._relays[node] = _Relay(_State.DIALLING, network, now.monotonic_s)
            link = self._links.get(node)
            if link is None:
                effects.append(Dial(node, addresses))
            else:
                effects += self._reserve(node, relay, now)
        self._look_at_s = self._next_look_s(now)
        return effects

    def _next_look_s(self, now: Now) -> float | None:
        if not self._is_wanted:
            return None
        if self.held < max(RELAYS_MIN, len(self._relays)):
            return now.monotonic_s + LOOK_S
        return now.monotonic_s + LOOK_SELDOM_S if self._is_lacking() else None

    def _reserve(self, node: NodeId, relay: _Relay, now: Now) -> list[Effect]:
        relay.state, relay.since_s = _State.ASKING, now.monotonic_s
        return [ReserveRelay(node)]

    def _choose(self, now: Now) -> tuple[NodeId, str, tuple[str, ...]] | None:
        """A relay of a new network if there is one, connected before known, else any as long as two are missing."""
        used = self._networks()
        candidates = [
            (network in used, node not in self._links, self._rng.random(), node, network, addresses)
            for node, network, addresses in self._candidates(now)
        ]
        if not candidates:
            return None
        is_used, _, _, node, network, addresses = min(candidates)
        return (node, network, addresses) if not is_used or len(self._relays) < RELAYS_MIN else None

    def _candidates(self, now: Now) -> list[tuple[NodeId, str, tuple[str, ...]]]:
        known: dict[NodeId, tuple[str, tuple[str, ...]]] = {
            node: (network_of(link.address), ())
            for node, link in self._links.items()
            if FEATURE_RELAYS in link.features and link.is_direct
        }
        # Seldom, and only while a relay is missing.
        for entry in self._directory.entries():
            node, addresses = entry.heartbeat.node, _direct(entry.heartbeat)
            if FEATURE_RELAYS not in entry.heartbeat.features:
                continue
            link = self._links.get(node)
            if link is None and addresses:
                known[node] = (network_of(addresses[0]), addresses)
            elif link is not None and link.is_direct:
                known[node] = (network_of(link.address), ())  # it has begun to relay since it said hello
        return [
            (node, network, addresses)
            for node, (network, addresses) in known.items()
            if node != self._node and node not in self._relays and not self._is_resting(node, now)
        ]

    def _is_resting(self, node: NodeId, now: Now) -> bool:
        failure = self._failures.get(node)
        return failure is not None and failure.until_s > now.monotonic_s


def _direct(heartbeat: Heartbeat) -> tuple[str, ...]:
    return tuple(address for address in heartbeat.addresses if not is_circuit(address))
