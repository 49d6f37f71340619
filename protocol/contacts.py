"""Where peers may be reached and when they are dialled again: an address book with back-off."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from protocol import constants as c
from protocol.directory import Directory
from protocol.effects import Dial, Effect
from protocol.events import LearnAddresses, Now
from protocol.ids import NodeId
from protocol.timers import Timers

# A peer that is away is tried again after 1 s, 2 s, 4 s ... up to five minutes, with jitter.
RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 300.0
# A connection that did not last this long was none: a peer that comes and goes is not dialled every second for ever.
LASTING_S: Final = 60.0
CONTACTS_MAX: Final = 1024


@dataclass(slots=True)
class _Trial:
    """How it went with a node so far."""

    failures: int = 0
    not_before_s: float = 0.0
    connected_s: float | None = None


class Contacts:
    """The state. Addresses that the owner gave come first, then what sources told, then what a heartbeat claims."""

    def __init__(self, directory: Directory, rng: random.Random) -> None:
        self._directory = directory
        self._rng = rng
        self._given: dict[NodeId, tuple[str, ...]] = {}
        # Whom the owner wants a connection to, and where: hints of others never take the place of that.
        self._wanted: dict[NodeId, tuple[str, ...]] = {}
        self._trials: dict[NodeId, _Trial] = {}
        self._retry: Timers[NodeId] = Timers()

    def next_deadline(self) -> float | None:
        return self._retry.next_deadline()

    def addresses(self, node: NodeId) -> tuple[str, ...]:
        """Every address known of a node, given ones first, each once."""
        entry = self._directory.get(node)
        claimed = entry.heartbeat.addresses if entry else ()
        known = (*self._wanted.get(node, ()), *self._given.get(node, ()), *claimed)
        return tuple(dict.fromkeys(known))[: 2 * c.HEARTBEAT_ADDRESSES_MAX]

    def given(self) -> tuple[NodeId, ...]:
        """Whose addresses somebody gave us, in that order: not a claim of their own."""
        return tuple(self._given)

    def is_wanted(self, node: NodeId) -> bool:
        """Whether somebody asked for a lasting connection to this node."""
        return node in self._wanted

    def learn(self, event: LearnAddresses, *, connected: bool) -> list[Effect]:
        """Take addresses; with `connect`, keep a connection to this node from now on."""
        node, addresses = event.peer, event.addresses
        if node not in self._given and len(self._given) >= CONTACTS_MAX:
            # The oldest makes room, but not one that we keep dialling: that one would never be found again.
            self._given.pop(next((old for old in self._given if old not in self._wanted), next(iter(self._given))))
        self._given[node] = _merged(addresses, self._given.get(node, ()))
        if not event.connect:
            return []
        self._wanted[node] = _merged(addresses, self._wanted.get(node, ()))
        self._retry.cancel(node)
        return [] if connected else [Dial(node, self.addresses(node), event.at_once)]

    # ------------------------------------------------------------ how it went

    def on_connected(self, node: NodeId, now: Now) -> None:
        self._trial(node).connected_s = now.monotonic_s
        self._retry.cancel(node)

    def on_unreachable(self, node: NodeId, now: Now) -> None:
        """A dial failed or the connection went away: wait longer each time, and try again if we want this node."""
        trial = self._trial(node)
        if trial.connected_s is not None and now.monotonic_s - trial.connected_s >= LASTING_S:
            trial.failures = 0
        trial.connected_s = None
        delay_s = min(RETRY_S_MAX, RETRY_S_MIN * 2.0 ** min(trial.failures, 16))
        trial.failures += 1
        trial.not_before_s = now.monotonic_s + self._jittered(delay_s)
        if node in self._wanted:
            self._retry.set(node, trial.not_before_s)

    def is_due(self, node: NodeId, now: Now) -> bool:
        """Whether a node may be dialled: it is not away, as far as we know, or it is time to try again."""
        trial = self._trials.get(node)
        return trial is None or trial.not_before_s <= now.monotonic_s

    def failures(self, node: NodeId) -> int:
        """How often in a row a node was not to be reached, or did not stay."""
        trial = self._trials.get(node)
        return trial.failures if trial is not None else 0

    def on_deadline(self, now: Now) -> list[Effect]:
        """Dial the wanted whose time has come."""
        return [Dial(node, self.addresses(node)) for node in self._retry.pop_due(now.monotonic_s)]

    def _trial(self, node: NodeId) -> _Trial:
        trial = self._trials.pop(node, None) or _Trial()
        self._trials[node] = trial
        if len(self._trials) > CONTACTS_MAX:
            del self._trials[next(iter(self._trials))]
        return trial

    def _jittered(self, delay_s: float) -> float:
        # Nodes that lost the same peer must not come in one wave.
        return delay_s * (0.5 + self._rng.random())


def _merged(newer: tuple[str, ...], older: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*newer, *older)))[: c.HEARTBEAT_ADDRESSES_MAX]
