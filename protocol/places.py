"""Places for those who choose us as a neighbour: bounded, and shared out by network when there are too few.

Whoever has many keys asks often. So a place is won by what costs something: a network that has none yet, or having
told us news. The owner of a few networks then holds a place or two for each, however many keys he has.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from protocol import constants as c
from protocol.events import Now
from protocol.ids import NodeId
from protocol.rates import Rates

TAKEN_MAX: Final = 32
# Nodes that publish no address are chosen by nobody, so public ones carry several of them each.
LEAVES_MAX: Final = 48
# Nobody makes room because it told nothing before this, nor for an urgent case before that.
PROBATION_S: Final = 30.0
URGENT_AGE_S: Final = 10.0
# All nodes of one network together may be in such need this often.
URGENT_PER_S: Final = 1 / 60
URGENT_BURST: Final = 2
# Whoever had to make room because it told nothing: newcomers of its network displace nobody for so long.
NETWORK_REST_S: Final = 600.0


@dataclass(slots=True)
class Place:
    """Who holds it: from which network, and since when."""

    network: str
    since_s: float


class Places:
    """The state: networks that rest, and how often each was in need. `told` is how much somebody has told us lately."""

    def __init__(self, rng: random.Random, told: Callable[[NodeId], int]) -> None:
        self._rng = rng
        self._told = told
        self._resting: dict[str, float] = {}
        self._urgent: Rates[str] = Rates(URGENT_PER_S, URGENT_BURST)

    def find(
        self, held: Mapping[NodeId, Place], places_max: int, network: str, now: Now, *, is_urgent: bool
    ) -> tuple[bool, NodeId | None]:
        """Whether a newcomer from this network is taken in, and who makes room for it."""
        if len(held) < places_max:
            return True, None
        crowd = Counter(place.network for place in held.values())
        most = max(crowd.values())
        # SPEC 03: A full node MUST make room for a newcomer only at the cost of the network that has most places,
        if most > crowd[network] + 1:
            victims = [node for node, place in held.items() if crowd[place.network] == most]
        elif self._resting.get(network, 0.0) > now.monotonic_s:
            victims = []
        else:
            # SPEC 03: or of a network that has more places than the newcomer's, when it told us nothing for a while, or
            #   when the newcomer's case is urgent.
            larger = {node: place for node, place in held.items() if crowd[place.network] > crowd[network]}
            victims = self._silent(larger, now)
            if not victims and is_urgent and self._urgent.take(network, now.monotonic_s):
                among = held if len(crowd) == 1 else larger
                victims = [node for node, place in among.items() if now.monotonic_s - place.since_s >= URGENT_AGE_S]
        victim = max(victims, key=lambda node: held[node].since_s, default=None)
        return victim is not None, victim

    def _silent(self, held: Mapping[NodeId, Place], now: Now) -> list[NodeId]:
        """One who makes room because it told us nothing, if there is one; its network then rests."""
        silent = [
            node
            for node, place in held.items()
            if now.monotonic_s - place.since_s >= PROBATION_S and self._told(node) == 0
        ]
        if not silent:
            return []
        victim = self._rng.choice(silent)
        if len(self._resting) >= c.DIRECTORY_RECORDS_MAX:
            self._resting = {each: until_s for each, until_s in self._resting.items() if until_s > now.monotonic_s}
        self._resting[held[victim].network] = now.monotonic_s + NETWORK_REST_S
        return [victim]
