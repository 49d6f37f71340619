"""Where peers may be reached, and which connections we want to keep: an address book with back-off."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from protocol import constants as c
from protocol.directory import Directory
from protocol.events import Dial, Effect, Now
from protocol.ids import NodeId
from protocol.timers import Timers

# A peer that is away is tried again after 1 s, 2 s, 4 s ... up to five minutes, with jitter.
RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 300.0
CONTACTS_MAX: Final = 1024
# With fewer connections than this a node looks for company among all whom it knows: one neighbour that goes away, a
# bootstrap node above all, must not be able to take the whole network with it.
NEIGHBOURS_MIN: Final = 4
# Up to twice as many, one stranger now and then: otherwise a few nodes that lost touch together are content with each
# other's company, and stay apart from all the rest.
STRANGER_CHANCE: Final = 0.25
# Soon after the start, when saved peers are the only ones known, and then at this interval, with jitter.
FIRST_LOOK_S: Final = 5.0
LOOK_S: Final = 30.0
# Of those known, this many are considered.
LOOK_SAMPLE: Final = 16


@dataclass(slots=True)
class _Wanted:
    #: What the owner gave: hints of others never take its place.
    addresses: tuple[str, ...] = ()
    failures: int = 0


class Contacts:
    """The state. Addresses that the owner gave come first, then those that sources told, then a heartbeat's own."""

    def __init__(
        self, node: NodeId, directory: Directory, rng: random.Random, now: Now, neighbours_min: int = NEIGHBOURS_MIN
    ) -> None:
        """`neighbours_min` of 0 is for those who never dial of their own accord."""
        self._node = node
        self._directory = directory
        self._rng = rng
        self._neighbours_min = neighbours_min
        self._look_at_s = now.monotonic_s + self._jittered(FIRST_LOOK_S) if neighbours_min else None
        self._given: dict[NodeId, tuple[str, ...]] = {}
        self._wanted: dict[NodeId, _Wanted] = {}
        self._retry: Timers[NodeId] = Timers()

    def next_deadline(self) -> float | None:
        retry = self._retry.next_deadline()
        if retry is None or self._look_at_s is None:
            return self._look_at_s if retry is None else retry
        return min(retry, self._look_at_s)

    def addresses(self, node: NodeId) -> tuple[str, ...]:
        """Every address known of a node, given ones first, each once."""
        entry, wanted = self._directory.get(node), self._wanted.get(node)
        claimed = entry.heartbeat.addresses if entry else ()
        named = wanted.addresses if wanted is not None else ()
        told = self._given.get(node, ())
        return tuple(dict.fromkeys((*named, *told, *claimed)))[: 2 * c.HEARTBEAT_ADDRESSES_MAX]

    def learn(self, node: NodeId, addresses: tuple[str, ...], *, connect: bool, connected: bool) -> list[Effect]:
        """Take addresses; with `connect`, keep a connection to this node from now on."""
        if node not in self._given and len(self._given) >= CONTACTS_MAX:
            # The oldest makes room, but not one that we keep dialling: that one would never be found again.
            self._given.pop(next((old for old in self._given if old not in self._wanted), next(iter(self._given))))
        self._given[node] = tuple(dict.fromkeys((*addresses, *self._given.get(node, ()))))[: c.HEARTBEAT_ADDRESSES_MAX]
        if not connect:
            return []
        wanted = self._wanted.setdefault(node, _Wanted())
        wanted.addresses = tuple(dict.fromkeys((*addresses, *wanted.addresses)))[: c.HEARTBEAT_ADDRESSES_MAX]
        self._retry.cancel(node)
        return [] if connected else [Dial(node, self.addresses(node))]

    def on_connected(self, node: NodeId) -> None:
        if node in self._wanted:
            self._wanted[node].failures = 0
            self._retry.cancel(node)

    def on_unreachable(self, node: NodeId, now: Now) -> None:
        """A dial failed or the connection went away: try again later if we want this node."""
        wanted = self._wanted.get(node)
        if wanted is None:
            return
        delay_s = min(RETRY_S_MAX, RETRY_S_MIN * 2.0 ** min(wanted.failures, 16))
        wanted.failures += 1
        self._retry.set(node, now.monotonic_s + self._jittered(delay_s))

    def on_deadline(self, connected: Collection[NodeId], now: Now) -> list[Effect]:
        """Dial who is to be tried again, and, when its time has come, whoever keeps us from being lonely."""
        nodes = self._retry.pop_due(now.monotonic_s)
        if self._look_at_s is not None and self._look_at_s <= now.monotonic_s:
            self._look_at_s = now.monotonic_s + self._jittered(LOOK_S)
            lacking = self._neighbours_min - len(connected)
            if -self._neighbours_min < lacking <= 0 and self._rng.random() < STRANGER_CHANCE:
                lacking = 1
            nodes += self._company(connected, lacking)
        return [Dial(node, self.addresses(node)) for node in nodes]

    def _company(self, connected: Collection[NodeId], count: int) -> list[NodeId]:
        """Up to `count` nodes to connect to, drawn from those whose addresses we know."""
        if count <= 0:
            return []
        given = self._rng.sample(list(self._given), min(LOOK_SAMPLE, len(self._given)))
        known = dict.fromkeys((*given, *self._directory.sample(LOOK_SAMPLE, self._rng)))
        strangers = [node for node in known if node not in connected and node not in self._wanted]
        return [node for node in strangers if node != self._node and self.addresses(node)][:count]

    def _jittered(self, delay_s: float) -> float:
        # Nodes that start together, or lost the same peer, must not come in one wave.
        return delay_s * (0.5 + self._rng.random())
