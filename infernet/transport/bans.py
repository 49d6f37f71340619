"""Who is refused because of what they did, and the line that says so.

The rules are in `protocol/behaviour.py`. Here they get a clock, and exceptions: those whom the owner knows are never
refused, nor is anybody at an address where one of them was seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Final

import structlog
import trio

from infernet.transport.crowd import Origin
from protocol.behaviour import Ban, Behaviour
from protocol.formats.text import clean_line
from protocol.ids import NodeId, peer_id
from protocol.networks import IpAddress, Prefix, host_of

log = structlog.get_logger(__name__)

# Addresses at which somebody was seen whom the owner knows.
SPARED_MAX: Final = 256
REASON_CHARACTERS_MAX: Final = 80


class Bans:
    """The state of one transport. `wall_s` is Unix time in seconds, for the log."""

    def __init__(self, *, exempt_loopback: bool, wall_s: Callable[[], float] = time.time) -> None:
        self._exempt_loopback = exempt_loopback
        self._wall_s = wall_s
        self._behaviour = Behaviour()
        self._trusted: frozenset[NodeId] = frozenset()
        self._spared: dict[Prefix, None] = {}

    def trust(self, peers: Collection[NodeId]) -> None:
        """These the owner knows, and no others: whatever they did or do, they are let in."""
        self._trusted = frozenset(peers)
        for peer in self._trusted:
            self._behaviour.forgive(peer)

    def is_trusted(self, peer: NodeId) -> bool:
        """Whether the owner knows this peer."""
        return peer in self._trusted

    def seen(self, peer: NodeId, origin: Origin | None) -> None:
        """A peer has proven itself from there."""
        if peer in self._trusted and origin is not None and origin.ip is not None:
            self.spare(origin.ip)

    def spare(self, ip: IpAddress) -> None:
        """Refuse nobody at this address: somebody is there whom the owner knows."""
        host = host_of(ip)
        self._spared.pop(host, None)
        self._spared[host] = None
        self._behaviour.forgive(host)
        if len(self._spared) > SPARED_MAX:
            del self._spared[next(iter(self._spared))]

    def of_origin(self, origin: Origin) -> Ban | None:
        """The ban of whoever comes from there, if they are to be refused unheard."""
        now_s = trio.current_time()
        found = (self._behaviour.ban_of(culprit, now_s) for culprit in self._answerable(origin))
        return next((ban for ban in found if ban is not None), None)

    def of_peer(self, peer: NodeId) -> Ban | None:
        """The ban of a key."""
        return None if peer in self._trusted else self._behaviour.ban_of(peer, trio.current_time())

    def blame(self, peer: NodeId | None, origin: Origin | None, weight: float, reason: str) -> bool:
        """Hold an offence against a key, its host and its network, as far as they are known.

        Says whether the key is banned for it. Whoever is banned anew is logged, on one line each.
        """
        if peer in self._trusted:
            return False
        for culprit in (*((peer,) if peer is not None else ()), *self._answerable(origin)):
            ban = self._behaviour.blame(culprit, weight, reason, trio.current_time())
            if ban is not None:
                self._log(ban, peer, origin)
        return peer is not None and self.of_peer(peer) is not None

    def _answerable(self, origin: Origin | None) -> Sequence[Prefix]:
        """Against whom an offence from there may be held; through a relay it would be the relay."""
        if origin is None or isinstance(origin.host, str) or isinstance(origin.network, str):
            return ()
        is_exempt = origin.is_loopback and self._exempt_loopback
        return () if is_exempt or origin.host in self._spared else (origin.host, origin.network)

    def count(self) -> int:
        """How many bans hold now."""
        return len(self._behaviour.bans(trio.current_time()))

    def _log(self, ban: Ban, peer: NodeId | None, origin: Origin | None) -> None:
        until = datetime.fromtimestamp(self._wall_s() + ban.until_s - trio.current_time(), UTC)
        # The canonical line: README.md shows the filter that reads it, and a test holds the two together.
        log.warning(
            "peer.banned",
            peer=peer_id(peer) if peer is not None else "-",
            ip=str(origin.ip) if origin is not None and origin.ip is not None else "-",
            reason=clean_line(ban.reason, REASON_CHARACTERS_MAX),
            score=round(ban.points),
            until=until.isoformat(timespec="seconds"),
            banned="peer" if isinstance(ban.culprit, bytes) else str(ban.culprit),
        )
