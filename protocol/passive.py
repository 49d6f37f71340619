"""The passive view: nodes that could become neighbours, mixed so that no owner of many keys fills it.

It is bounded, and when it is full, whoever comes takes the place of one out of the network that has most of it. Who is
chosen is drawn network first: a thousand nodes in one network are no likelier than one in another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from protocol import constants as c
from protocol.ids import NodeId
from protocol.links import RECORDS_BYTES_MAX, packed
from protocol.locality import network_of as _network_of
from protocol.records import Signed

CANDIDATES_MAX: Final = 256
# Out of so many drawn at random goes the one whose network has most: as good as the most crowded of all, and cheap.
_EVICTION_SAMPLE: Final = 4
# Out of so many one is chosen: enough for all networks that matter to have a say.
_CHOICE_SAMPLE: Final = 128

network_of = lru_cache(maxsize=8192)(_network_of)


@dataclass(slots=True)
class _Candidate:
    network: str
    addresses: tuple[str, ...]
    record: Signed | None
    position: int


class Passive:
    """The state. A candidate's network is that of its first address, which it claims, until it is connected."""

    def __init__(self, rng: random.Random, candidates_max: int = CANDIDATES_MAX) -> None:
        self._rng = rng
        self._candidates_max = candidates_max
        self._candidates: dict[NodeId, _Candidate] = {}
        self._order: list[NodeId] = []
        self._crowd: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, node: NodeId) -> bool:
        return node in self._candidates

    def addresses(self, node: NodeId) -> tuple[str, ...]:
        """Where a candidate may be dialled; empty for one that is none."""
        candidate = self._candidates.get(node)
        return candidate.addresses if candidate is not None else ()

    def add(self, node: NodeId, addresses: tuple[str, ...], record: Signed | None = None) -> None:
        """Consider a node, or learn of a candidate's new addresses and record. The record is to be shuffled."""
        known = self._candidates.get(node)
        if known is not None:
            known.record = record or known.record
            if addresses and addresses != known.addresses:
                known.addresses = addresses
                self._move(known, network_of(addresses[0]))
            return
        if not addresses:
            return
        network = network_of(addresses[0])
        # SPEC 03: The passive view MUST be bounded.
        if len(self._order) >= self._candidates_max and not self._make_room(network):
            return
        self._candidates[node] = _Candidate(network, addresses, record, len(self._order))
        self._order.append(node)
        self._count(network, 1)

    def found_in(self, node: NodeId, network: str) -> None:
        """A candidate is connected, and in this network, whatever its addresses claim."""
        candidate = self._candidates.get(node)
        if candidate is not None and network:
            self._move(candidate, network)

    def has_other(self, fits: Callable[[NodeId], bool], avoided: Collection[str]) -> bool:
        """Whether some candidate that fits is in none of these networks, as far as is known."""
        return any(each.network not in avoided and fits(node) for node, each in self._candidates.items())

    def forget(self, node: NodeId) -> None:
        """This node is no candidate any more."""
        candidate = self._candidates.pop(node, None)
        if candidate is None:
            return
        last = self._order.pop()
        if last != node:
            self._order[candidate.position] = last
            self._candidates[last].position = candidate.position
        self._count(candidate.network, -1)

    def choose(self, fits: Callable[[NodeId], bool], avoided: Collection[str]) -> NodeId | None:
        """A candidate that fits, if possible in none of these networks; None when none fits."""
        fitting: dict[str, list[NodeId]] = {}
        for node in self._rng.sample(self._order, min(_CHOICE_SAMPLE, len(self._order))):
            if fits(node):
                fitting.setdefault(self._candidates[node].network, []).append(node)
        # SPEC 03: A node MUST choose its neighbours in distinct networks as long as it knows of so many,
        networks = [network for network in fitting if network not in avoided] or list(fitting)
        return self._rng.choice(fitting[self._rng.choice(networks)]) if networks else None

    def records(self, count: int, but: Iterable[NodeId] = (), bytes_max: int = RECORDS_BYTES_MAX) -> list[Signed]:
        """Up to so many records of random candidates, for others; of each network one, as long as there are so many.

        Together they fit a frame: large ones come from strangers, and whom we send too much would blame us for it.
        """
        left_out = set(but)
        drawn = self._rng.sample(self._order, min(_CHOICE_SAMPLE, len(self._order)))
        known = [self._candidates[node] for node in drawn if node not in left_out]
        shown = [each for each in known if each.record is not None]
        first = {each.network: each for each in shown}
        chosen = [*first.values(), *(each for each in shown if first[each.network] is not each)]
        records = [each.record for each in chosen if each.record is not None][: min(count, c.SHUFFLE_RECORDS_MAX)]
        # SPEC 01: The sender MUST NOT send a frame whose body is longer than 65,536 bytes,
        return list(next(iter(packed(records, c.SHUFFLE_RECORDS_MAX, bytes_max)), ()))

    def _make_room(self, network: str) -> bool:
        """Drop one of the newcomer's own network, or of one that is more crowded; False when none was drawn."""
        drawn = [self._order[int(self._rng.random() * len(self._order))] for _ in range(_EVICTION_SAMPLE)]
        victim = max(drawn, key=lambda node: self._crowd[self._candidates[node].network])
        crowded = self._candidates[victim].network
        if crowded != network and self._crowd[crowded] <= self._crowd.get(network, 0):
            return False
        self.forget(victim)
        return True

    def _move(self, candidate: _Candidate, network: str) -> None:
        self._count(candidate.network, -1)
        candidate.network = network
        self._count(network, 1)

    def _count(self, network: str, change: int) -> None:
        count = self._crowd.get(network, 0) + change
        if count:
            self._crowd[network] = count
        else:
            del self._crowd[network]
