"""Who we are connected to: any number of connections to a peer count as one, from the first to the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from infernet.transport.addresses import CircuitAddress
from infernet.transport.contract import ConnectionInfo, Handler
from infernet.transport.crowd import Crowd, Origin
from infernet.transport.noise_channel import NoiseChannel
from infernet.transport.yamux import YamuxConnection
from protocol.ids import NodeId

log = structlog.get_logger(__name__)

# A connection that nobody has had a stream on for so long is closed: the next question of an asker still finds it.
IDLE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections may stand.

    total_max: at this many, an inbound one is taken only at the expense of an unused one of a more crowded origin.
        How many we dial is the caller's decision.
    per_network_max, per_host_max: inbound ones from one network (/24, /48), and from one host.
    per_peer_max: both ends may dial at once, and a peer may be back before we know its old connection to be dead;
        beyond this the oldest is dropped.
    """

    total_max: int = 512
    per_network_max: int = 32
    per_host_max: int = 16
    per_peer_max: int = 3


@dataclass(frozen=True, slots=True)
class Circuit:
    """How a connection through a relay was dialled, and when to have another one in its place."""

    address: CircuitAddress
    renew_after_s: float


class Connection:
    """A secure channel to a peer and the streams in it. `origin` is None for one that we dialled.

    `circuit` is set for one that we dialled through a relay.
    """

    def __init__(
        self, info: ConnectionInfo, channel: NoiseChannel, muxer: YamuxConnection, origin: Origin | None = None
    ) -> None:
        self.info = info
        self.channel = channel
        self.muxer = muxer
        self.origin = origin
        self.circuit: Circuit | None = None

    async def aclose(self) -> None:
        """Close one that has not been added."""
        await self.channel.aclose()


class Connections:
    """The connections that stand, and the handler that hears of peers that come and go.

    With `exempt_loopback` programs of this machine are not counted by host and network.
    """

    def __init__(self, handler: Handler, limits: ConnectionLimits, *, exempt_loopback: bool) -> None:
        self._handler = handler
        self._limits = limits
        self._exempt_loopback = exempt_loopback
        # Oldest first, for each peer.
        self._by_peer: dict[NodeId, list[Connection]] = {}
        self._inbound: Crowd[Connection] = Crowd()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Connection]:
        for connections in self._by_peer.values():
            yield from connections

    def peers(self) -> list[NodeId]:
        """Those that have a connection."""
        return list(self._by_peer)

    def of(self, peer: NodeId) -> list[Connection]:
        """Those to one peer, newest first: an old one may be dead without knowing."""
        return self._by_peer.get(peer, [])[::-1]

    def has_dialled(self, peer: NodeId) -> bool:
        """Whether a connection that we dialled stands and takes new streams."""
        return any(connection.origin is None and connection.muxer.is_open() for connection in self.of(peer))

    # ------------------------------------------------------------ who may come

    def has_room(self, newcomer: Origin) -> bool:
        """Whether a connection from there would be taken now."""
        if not (newcomer.is_loopback and self._exempt_loopback):
            if self._inbound.of_host(newcomer) >= self._limits.per_host_max:
                return False
            if self._inbound.of_network(newcomer) >= self._limits.per_network_max:
                return False
        return len(self) < self._limits.total_max or self._expendable(newcomer) is not None

    def make_room(self, newcomer: Origin) -> bool:
        """Have room for a connection from there, if need be at the expense of another; False when there is none."""
        if not self.has_room(newcomer):
            return False
        if len(self) >= self._limits.total_max and (expendable := self._expendable(newcomer)) is not None:
            expendable.muxer.abort("unused, and its place was needed for somebody from elsewhere")
            self._inbound.remove(expendable)
        return True

    def _expendable(self, newcomer: Origin) -> Connection | None:
        """One that nobody uses, of an origin that has more connections than the newcomer's."""
        crowded = self._inbound.most_crowded(lambda connection, _: connection.muxer.idle_s > 0)
        return crowded if crowded is not None and self._inbound.is_less_crowded(newcomer, crowded) else None

    def idle(self) -> list[Connection]:
        """Those that nobody has used for IDLE_S."""
        return [connection for connection in self if connection.muxer.idle_s > IDLE_S]

    # ------------------------------------------------------------ coming and going

    def add(self, connection: Connection) -> None:
        """A connection stands. A peer that has too many loses its oldest."""
        peer = connection.info.peer
        connections = self._by_peer.setdefault(peer, [])
        connections.append(connection)
        self._count += 1
        if connection.origin is not None:
            self._inbound.add(connection, connection.origin)
        open_ = [each for each in connections if each.muxer.lost is None]
        for oldest in open_[: -self._limits.per_peer_max]:
            oldest.muxer.abort("the peer has made newer connections")
        if len(connections) == 1:
            try:
                self._handler.connected(connection.info)
            except Exception:
                log.exception("transport.handler_failed")

    def remove(self, connection: Connection) -> None:
        """A connection has ended."""
        peer = connection.info.peer
        connections = self._by_peer[peer]
        connections.remove(connection)
        self._count -= 1
        self._inbound.remove(connection)
        if not connections:
            del self._by_peer[peer]
            try:
                self._handler.disconnected(peer)
            except Exception:
                log.exception("transport.handler_failed")
