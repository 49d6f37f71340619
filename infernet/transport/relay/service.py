"""Relaying as the host sees it: two protocols to serve, circuits to dial, places to keep."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, Protocol

import trio

from infernet.transport.addresses import CircuitAddress, circuit_multiaddr, parse_tcp, with_peer
from infernet.transport.contract import ConnectionInfo, RelayRefused, Stream
from infernet.transport.libp2p_library import Identity
from infernet.transport.noise_channel import NoiseChannel
from infernet.transport.relay.dialing import ask_for_place, dial_circuit
from infernet.transport.relay.hop import HopService, RelayLimits, RelayStatistics
from infernet.transport.relay.stop import StopService
from infernet.transport.relay.wire import HOP_PROTOCOL, STOP_PROTOCOL, Limit
from protocol.ids import NodeId
from protocol.locality import ip_of
from protocol.networks import is_globally_routable

# A relay has two addresses that matter to others: one of each family.
CIRCUIT_ADDRESSES_MAX: Final = 2
# By our clock, a relay's own may be wrong: what it says is taken within these bounds.
PLACE_S_UNKNOWN: Final = 120.0
PLACE_S_MAX: Final = 3600.0
REFRESH_S_MIN: Final = 1.0


class RelayHost(Protocol):
    """The transport below."""

    node_id: NodeId

    async def dial(self, peer: NodeId, addresses: Sequence[str]) -> None:
        """As `Transport.dial`."""

    def open_direct_stream(self, peer: NodeId, protocol: str) -> Stream:
        """Open a stream over a connection that is no circuit. Raises NotConnected."""

    def direct_connection(self, peer: NodeId) -> ConnectionInfo | None:
        """The newest connection to a peer that is no circuit."""

    def addresses(self) -> list[str]:
        """As `Transport.addresses`."""

    def is_full(self) -> bool:
        """Whether another inbound connection would be refused."""

    async def serve_circuit(self, channel: NoiseChannel, remote: str) -> None:
        """Serve a circuit that came in, to its end."""


class Relaying:
    """One for each transport. `enabled` says whether others may use us as their relay."""

    def __init__(
        self,
        host: RelayHost,
        identity: Identity,
        limits: RelayLimits,
        *,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._identity = identity
        self._wall_s = wall_s
        self._enabled = False
        # The relays where we hold a place or ask for one; set when the connection to it is lost.
        self._lost: dict[NodeId, trio.Event] = {}
        self._hop = HopService(host, limits, wall_s)
        self._stop = StopService(identity, self._lost, is_full=host.is_full, serve_channel=host.serve_circuit)

    @property
    def enabled(self) -> bool:
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value
        if not value:
            self._hop.stop()

    @property
    def protocols(self) -> frozenset[str]:
        """What we serve now."""
        return frozenset((HOP_PROTOCOL, STOP_PROTOCOL) if self._enabled else (STOP_PROTOCOL,))

    def statistics(self) -> RelayStatistics:
        """What we relay for others."""
        return self._hop.statistics()

    async def serve(self, stream: Stream, remote: str | None) -> None:
        """Serve a stream of one of our protocols. Raises StreamBroken."""
        serve = self._hop.serve if stream.protocol == HOP_PROTOCOL else self._stop.serve
        await serve(stream, remote)

    async def dial(self, peer: NodeId, address: CircuitAddress) -> tuple[NoiseChannel, Limit]:
        """Connect through a relay. Raises AttemptFailed; the caller owns the deadline."""
        return await dial_circuit(self._host, self._identity, peer, address)

    def keeps(self, peer: NodeId) -> bool:
        """Whether a connection to this peer is of use though nobody has a stream on it."""
        return peer in self._lost or self._hop.holds_place(peer)

    def lost(self, peer: NodeId) -> None:
        """The last connection to a peer that is no circuit is gone."""
        self._hop.lost(peer)
        if peer in self._lost:
            self._lost[peer].set()

    async def reserve(self, relay: NodeId, reserved: Callable[[tuple[str, ...]], None]) -> NoReturn:
        """As `Transport.reserve_relay`."""
        if relay in self._lost:
            raise RelayRefused("a place at this relay is held already")
        lost = self._lost[relay] = trio.Event()
        try:
            while True:
                answer = await ask_for_place(self._host, relay)
                addresses = self._circuits(relay, answer.addresses)
                if not addresses:
                    raise RelayRefused("the relay has no address that others could dial")
                reserved(addresses)
                # SPEC 08: A node that holds a place MUST ask for it again when half of its time is over, if not sooner.
                with trio.move_on_after(self._refresh_in_s(answer.expires_at_s)):
                    await lost.wait()
                    raise RelayRefused("the connection to the relay is lost")
        finally:
            del self._lost[relay]

    def _refresh_in_s(self, expires_at_s: int) -> float:
        lasts_s = expires_at_s - self._wall_s()
        if lasts_s <= 0:
            lasts_s = PLACE_S_UNKNOWN
        return max(REFRESH_S_MIN, min(lasts_s, PLACE_S_MAX) / 2)

    def _circuits(self, relay: NodeId, claimed: Sequence[str]) -> tuple[str, ...]:
        """The addresses through a relay: where we dialled it, which is proven, and global ones that it claims."""
        connection = self._host.direct_connection(relay)
        found = []
        if connection is not None and not connection.inbound and connection.remote_address is not None:
            found.append(connection.remote_address)
        found += [address for text in claimed if (address := _claimed_address(text, relay)) is not None]
        return tuple(
            with_peer(circuit_multiaddr(address, relay), self._host.node_id)
            for address in dict.fromkeys(found[:CIRCUIT_ADDRESSES_MAX])
        )


def _claimed_address(text: str, relay: NodeId) -> str | None:
    """An address as a relay claims it, without the peer, if others can dial it; else None."""
    try:
        address = parse_tcp(text)
    except ValueError:
        return None
    ip = ip_of(text)
    if address.peer not in (None, relay) or ip is None or not is_globally_routable(ip):
        return None
    return text.partition("/p2p/")[0]
