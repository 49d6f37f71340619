"""Who we are connected to: any number of connections to a peer count as one, from the first to the last."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from infernet.transport.contract import ConnectionInfo, Handler
from infernet.transport.noise_channel import NoiseChannel
from infernet.transport.yamux import YamuxConnection
from protocol.ids import NodeId

logger = logging.getLogger(__name__)


class Connection:
    """A secure channel to a peer and the streams in it."""

    def __init__(self, info: ConnectionInfo, channel: NoiseChannel, muxer: YamuxConnection) -> None:
        self.info = info
        self.channel = channel
        self.muxer = muxer

    async def aclose(self) -> None:
        """Close one that has not been added."""
        await self.channel.aclose()


class Connections:
    """The connections that stand, and the handler that hears of peers that come and go."""

    def __init__(self, handler: Handler, *, per_peer_max: int) -> None:
        self._handler = handler
        self._per_peer_max = per_peer_max
        # Oldest first, for each peer.
        self._by_peer: dict[NodeId, list[Connection]] = {}

    def __len__(self) -> int:
        return sum(len(connections) for connections in self._by_peer.values())

    def __iter__(self) -> Iterator[Connection]:
        for connections in self._by_peer.values():
            yield from connections

    def peers(self) -> list[NodeId]:
        """Those that have a connection."""
        return list(self._by_peer)

    def of(self, peer: NodeId) -> list[Connection]:
        """Those to one peer, newest first: an old one may be dead without knowing."""
        return self._by_peer.get(peer, [])[::-1]

    def add(self, connection: Connection) -> None:
        """A connection stands. A peer that has too many loses its oldest."""
        peer = connection.info.peer
        connections = self._by_peer.setdefault(peer, [])
        connections.append(connection)
        if len(connections) > self._per_peer_max:
            connections[0].muxer.abort("the peer has made newer connections")
        if len(connections) == 1:
            try:
                self._handler.connected(connection.info)
            except Exception:
                logger.exception("the handler failed on a new peer")

    def remove(self, connection: Connection) -> None:
        """A connection has ended."""
        peer = connection.info.peer
        connections = self._by_peer[peer]
        connections.remove(connection)
        if not connections:
            del self._by_peer[peer]
            try:
                self._handler.disconnected(peer)
            except Exception:
                logger.exception("the handler failed on a lost peer")
