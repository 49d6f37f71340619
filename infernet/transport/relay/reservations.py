"""The places that a relay keeps for others: how many, for whom, until when. It reads no clock and does no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

from protocol.ids import NodeId


@dataclass(frozen=True, slots=True)
class _Place:
    network: Hashable
    ends_at_s: float


class Reservations:
    """The table. A peer has one place at most; it ends with its time, or with the peer's last connection."""

    def __init__(self, *, places_max: int, places_per_network_max: int) -> None:
        self._places_max = places_max
        self._places_per_network_max = places_per_network_max
        self._places: dict[NodeId, _Place] = {}
        self._per_network: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._places)

    def take(self, peer: NodeId, network: Hashable, ends_at_s: float, now_s: float) -> bool:
        """Give a place, or give one again for longer; False when there is none for this peer."""
        self._expire(now_s)
        held = self._places.get(peer)
        if held is None or held.network != network:
            in_all = len(self._places) - (held is not None)
            if in_all >= self._places_max or self._per_network[network] >= self._places_per_network_max:
                return False
        self.free(peer)
        self._places[peer] = _Place(network, ends_at_s)
        self._per_network[network] += 1
        return True

    def holds(self, peer: NodeId, now_s: float) -> bool:
        """Whether the peer has a place now."""
        self._expire(now_s)
        return peer in self._places

    def free(self, peer: NodeId) -> None:
        """The peer's place is free again, if it had one."""
        place = self._places.pop(peer, None)
        if place is not None:
            self._per_network[place.network] -= 1
            if not self._per_network[place.network]:
                del self._per_network[place.network]

    def clear(self) -> None:
        """Nobody has a place any more."""
        self._places.clear()
        self._per_network.clear()

    def _expire(self, now_s: float) -> None:
        # There are a few hundred at most.
        for peer in [peer for peer, place in self._places.items() if place.ends_at_s <= now_s]:
            self.free(peer)
