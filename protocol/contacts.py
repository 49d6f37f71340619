"""Where peers may be reached, and which connections we want to keep: an address book with back-off."""

from __future__ import annotations

import random
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


@dataclass(slots=True)
class _Wanted:
    failures: int = 0


class Contacts:
    """The state. Addresses that the user or a saved list gave come before those that a heartbeat claims."""

    def __init__(self, directory: Directory, rng: random.Random) -> None:
        self._directory = directory
        self._rng = rng
        self._given: dict[NodeId, tuple[str, ...]] = {}
        self._wanted: dict[NodeId, _Wanted] = {}
        self._retry: Timers[NodeId] = Timers()

    def next_deadline(self) -> float | None:
        return self._retry.next_deadline()

    def addresses(self, node: NodeId) -> tuple[str, ...]:
        """Every address known of a node, given ones first, each once."""
        entry = self._directory.get(node)
        claimed = entry.heartbeat.addresses if entry else ()
        return tuple(dict.fromkeys((*self._given.get(node, ()), *claimed)))[: 2 * c.HEARTBEAT_ADDRESSES_MAX]

    def learn(self, node: NodeId, addresses: tuple[str, ...], *, connect: bool, connected: bool) -> list[Effect]:
        """Take addresses; with `connect`, keep a connection to this node from now on."""
        if node not in self._given and len(self._given) >= CONTACTS_MAX:
            # The oldest makes room, but not one that we keep dialling: that one would never be found again.
            self._given.pop(next((old for old in self._given if old not in self._wanted), next(iter(self._given))))
        self._given[node] = tuple(dict.fromkeys((*addresses, *self._given.get(node, ()))))[: c.HEARTBEAT_ADDRESSES_MAX]
        if not connect:
            return []
        self._wanted.setdefault(node, _Wanted())
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
        # Jitter keeps nodes that lost the same peer from coming back in one wave.
        self._retry.set(node, now.monotonic_s + delay_s * (0.5 + self._rng.random()))

    def on_deadline(self, now: Now) -> list[Effect]:
        return [Dial(node, self.addresses(node)) for node in self._retry.pop_due(now.monotonic_s)]
