"""The places of those who have not proven who they are yet.

A place costs us memory and a socket for a few seconds, and anybody can ask for one. So there are few, fewer for one
network and very few for one host. When none is left, the most crowded origin loses its oldest, and whoever comes from
there is refused rather than served at the expense of somebody else: 5,000 idle sockets of one machine take four places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from infernet.transport.crowd import Crowd, Origin

# Until it is this old, a handshake makes room only for somebody from a less crowded origin: three round trips to
# anywhere. So those of one origin cannot chase each other out, whoever is the fastest to come back.
GRACE_S: Final = 1.0
# A handshake is a few milliseconds of work. Begun one after the other, a thousand of them leave room for other work,
# and the last of those that have a place waits for little more than a second.
TURN_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class HandshakeLimits:
    """How many may be at their handshake at once: in all, from one network (/24, /48), from one host."""

    total_max: int = 64
    per_network_max: int = 16
    per_host_max: int = 4


@dataclass(eq=False, slots=True)
class _Place:
    since_s: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Handshakes:
    """Who is at their handshake now. With `exempt_loopback` only the total counts for programs of this machine."""

    def __init__(self, limits: HandshakeLimits, *, exempt_loopback: bool) -> None:
        self._limits = limits
        self._exempt_loopback = exempt_loopback
        self._crowd: Crowd[_Place] = Crowd()
        self._turns = trio.Lock()
        self._next_turn_s = 0.0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._crowd)

    @contextmanager
    def place(self, origin: Origin, timeout_s: float) -> Iterator[trio.CancelScope | None]:
        """A place for as long as the block lasts and at most so long; None when there is none for this origin.

        The scope is cancelled at the deadline, and when somebody else needs the place.
        """
        if not self._make_room(origin):
            yield None
            return
        place = _Place(trio.current_time())
        self._crowd.add(place, origin)
        try:
            with place.scope as scope:
                scope.deadline = place.since_s + timeout_s
                yield scope
        finally:
            self._crowd.remove(place)

    async def turn(self) -> None:
        """Wait for one's turn to be worked for: once somebody has said something, for silence costs no work."""
        # Whoever loses the place while waiting takes no turn: else those who come and go would put off everybody's.
        async with self._turns:
            await trio.sleep_until(self._next_turn_s)
            self._next_turn_s = trio.current_time() + TURN_S

    def _make_room(self, newcomer: Origin) -> bool:
        crowd, limits = self._crowd, self._limits
        if not (newcomer.is_loopback and self._exempt_loopback):
            if crowd.of_host(newcomer) >= limits.per_host_max:
                return self._evict(crowd.most_crowded(lambda _, origin: origin.host == newcomer.host), newcomer)
            if crowd.of_network(newcomer) >= limits.per_network_max:
                return self._evict(crowd.most_crowded(lambda _, origin: origin.network == newcomer.network), newcomer)
        if len(crowd) >= limits.total_max:
            return self._evict(crowd.most_crowded(), newcomer)
        return True

    def _evict(self, place: _Place | None, newcomer: Origin) -> bool:
        if place is None:
            return False
        if trio.current_time() - place.since_s < GRACE_S and not self._crowd.is_less_crowded(newcomer, place):
            return False
        place.scope.cancel()
        self._crowd.remove(place)
        self.evicted += 1
        return True
