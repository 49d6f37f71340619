"""How the head of a cluster reaches its workers: what it may ask of the node's network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from infernet.transport.contract import DialFailed, NotConnected, Stream, Transport
from protocol.clusters import CLUSTER_PROTOCOL
from protocol.ids import NodeId
from protocol.locality import is_circuit


class Network(Protocol):
    """The node's network, as far as a cluster goes."""

    async def open_stream(self, peer: NodeId) -> Stream:
        """A stream of CLUSTER_PROTOCOL to a peer, which is dialled if need be. Raises TransportError."""


class TransportNetwork:
    """`Network` over a transport. `addresses_of` gives what is known of where a peer is."""

    def __init__(self, transport: Transport, addresses_of: Callable[[NodeId], Sequence[str]]) -> None:
        self._transport = transport
        self._addresses_of = addresses_of

    async def open_stream(self, peer: NodeId) -> Stream:
        """As `Network.open_stream`."""
        try:
            return await self._transport.open_stream(peer, CLUSTER_PROTOCOL)
        except NotConnected:
            pass
        # A relay carries a prompt and an answer, and no model of gigabytes.
        addresses = [address for address in self._addresses_of(peer) if not is_circuit(address)]
        if not addresses:
            raise DialFailed(peer, {})
        await self._transport.dial(peer, addresses)
        return await self._transport.open_stream(peer, CLUSTER_PROTOCOL)


class NeedsNetwork(Protocol):
    """An engine that works with other nodes. Others need not have this."""

    def use_network(self, network: Network) -> None:
        """Called once, before `run`."""
