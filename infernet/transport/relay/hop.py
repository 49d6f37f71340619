"""The relay's side: places for nodes that nobody can dial, and circuits to them, all of it bounded.

What passes through a circuit is encrypted between its ends; the relay counts it and looks at none of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from infernet.transport.channel import ByteReader, ChannelBroken
from infernet.transport.contract import NotConnected, Stream, StreamBroken
from infernet.transport.relay import wire
from infernet.transport.relay.pace import Pace
from infernet.transport.relay.reservations import Reservations
from infernet.transport.relay.splice import splice
from infernet.transport.relay.wire import ConnectRequest, Limit, MalformedMessage, Status
from protocol.ids import NodeId, short
from protocol.locality import is_circuit, network_of
from protocol.rates import Rates

log = structlog.get_logger(__name__)

# A client that opens a stream says at once what it wants.
REQUEST_TIMEOUT_S: Final = 5.0
# The reached node is connected already: two round trips, with a packet lost in each.
STOP_TIMEOUT_S: Final = 5.0
# The longest job takes an hour; a large answer and its prompt are a few megabytes.
CIRCUIT_LIMIT: Final = Limit(duration_s=2 * 3600, data_bytes=128 * 1024 * 1024)


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """How much of itself a relay gives to others.

    places_max, places_per_network_max: reservations, in all and for one network (an IPv4 /16 or an IPv6 /32).
    place_s: how long a reservation lasts unless it is made anew.
    circuits_max, circuits_from_peer_max, circuits_to_peer_max: circuits in all, those that one peer opened, and those
        that lead to one peer.
    circuits_per_network_per_s, circuits_per_network_burst: how often those of one network may ask for a circuit.
    circuit: what one circuit may last and carry.
    idle_s: a circuit in which nothing moves ends; its two ends ask each other for signs of life more often.
    bytes_per_s, bytes_per_circuit_per_s: speed in all, and of one circuit. A prompt of a megabyte takes a second.
    """

    places_max: int = 256
    places_per_network_max: int = 32
    place_s: float = 3600.0
    circuits_max: int = 128
    circuits_from_peer_max: int = 16
    circuits_to_peer_max: int = 32
    circuits_per_network_per_s: float = 2.0
    circuits_per_network_burst: int = 60
    circuit: Limit = CIRCUIT_LIMIT
    idle_s: float = 120.0
    bytes_per_s: float = 4 * 1024 * 1024
    bytes_per_circuit_per_s: float = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """Reservations and circuits of this moment; the others count since the start."""

    places: int
    circuits: int
    circuits_refused: int
    bytes_carried: int


class HopHost(Protocol):
    """What the relay needs of the transport below it."""

    def open_direct_stream(self, peer: NodeId, protocol: str) -> Stream:
        """Open a stream over a connection that is no circuit. Raises NotConnected."""

    def addresses(self) -> list[str]:
        """As `Transport.addresses`."""


class HopService:
    """Serves HOP_PROTOCOL. One instance for the life of a transport; `wall_s` is Unix time in seconds."""

    def __init__(self, host: HopHost, limits: RelayLimits, wall_s: Callable[[], float]) -> None:
        self._host = host
        self._limits = limits
        self._wall_s = wall_s
        self._places = Reservations(places_max=limits.places_max, places_per_network_max=limits.places_per_network_max)
        self._asked: Rates[str] = Rates(limits.circuits_per_network_per_s, limits.circuits_per_network_burst)
        self._pace = Pace(limits.bytes_per_s)
        self._from: Counter[NodeId] = Counter()
        self._to: Counter[NodeId] = Counter()
        self._circuits_refused = 0
        self._bytes_carried = 0

    def statistics(self) -> RelayStatistics:
        """Counts of this moment and since the start."""
        return RelayStatistics(len(self._places), self._from.total(), self._circuits_refused, self._bytes_carried)

    def stop(self) -> None:
        """Take back all reservations; circuits that stand go on to their end."""
        self._places.clear()

    def holds_place(self, peer: NodeId) -> bool:
        """Whether we hold a place for a peer."""
        return self._places.holds(peer, trio.current_time())

    def lost(self, peer: NodeId) -> None:
        """The last direct connection to a peer is gone."""
        # SPEC 08: A relay MUST free the place of a node whose last connection to it has ended.
        self._places.free(peer)

    async def serve(self, stream: Stream, remote: str | None) -> None:
        """Serve one stream that a peer opened to ask for a place or a circuit; returns when that is over.

        Raises StreamBroken.
        """
        reader = ByteReader(stream.receive)
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                request = wire.decode_hop_request(await wire.read_message(reader))
        except MalformedMessage as error:
            log.debug("relay.bad_request", peer=short(stream.peer), error=str(error))
            await stream.send(wire.encode_hop_answer(Status.MALFORMED_MESSAGE))
            return
        except ChannelBroken as error:
            raise StreamBroken(str(error)) from error
        except trio.TooSlowError:
            raise StreamBroken("nothing was asked of the relay in time") from None
        if is_circuit(remote):
            # SPEC 08: A relay MUST refuse places and circuits to whoever asks through a circuit.
            await stream.send(wire.encode_hop_answer(Status.PERMISSION_DENIED))
        elif isinstance(request, ConnectRequest):
            await self._connect(stream, reader, request.peer, network_of(remote))
        else:
            await self._reserve(stream, remote)

    async def _reserve(self, stream: Stream, remote: str | None) -> None:
        limits, now_s = self._limits, trio.current_time()
        if not self._places.take(stream.peer, network_of(remote), now_s + limits.place_s, now_s):
            await stream.send(wire.encode_hop_answer(Status.RESERVATION_REFUSED))
            return
        log.debug("relay.reserved", peer=short(stream.peer))
        answer = wire.encode_hop_answer(
            Status.OK,
            limit=limits.circuit,
            expires_at_s=int(self._wall_s() + limits.place_s),
            addresses=self._host.addresses(),
        )
        await stream.send(answer)

    # ------------------------------------------------------------ circuits

    async def _connect(self, near: Stream, reader: ByteReader, target: NodeId, network: str) -> None:
        refusal = self._refusal(near.peer, target, network)
        if refusal is not None:
            self._circuits_refused += 1
            await near.send(wire.encode_hop_answer(refusal))
            return
        with self._counted(near.peer, target):
            try:
                with trio.fail_after(STOP_TIMEOUT_S):
                    far, received = await self._reach(near.peer, target)
            except (NotConnected, StreamBroken, ChannelBroken, MalformedMessage, trio.TooSlowError) as error:
                log.debug("relay.no_circuit", peer=short(near.peer), node=short(target), error=str(error))
                await near.send(wire.encode_hop_answer(Status.CONNECTION_FAILED))
                return
            try:
                await near.send(wire.encode_hop_answer(Status.OK, limit=self._limits.circuit))
                await self._splice(near, far, reader.rest(), received)
            finally:
                # Nothing when it has ended already.
                far.reset()

    def _refusal(self, source: NodeId, target: NodeId, network: str) -> Status | None:
        """Why there is no circuit from one peer to another, or None."""
        limits, now_s = self._limits, trio.current_time()
        if not self._asked.take(network, now_s):
            return Status.RESOURCE_LIMIT_EXCEEDED
        if source == target:
            return Status.PERMISSION_DENIED
        # SPEC 08: A relay MUST connect nobody with a node that has no place with it, and MUST NOT dial anybody on
        #   behalf of others.
        if not self._places.holds(target, now_s):
            return Status.NO_RESERVATION
        # SPEC 08: A relay MUST bound places, circuits, and what it buffers for a circuit.
        is_full = (
            self._from.total() >= limits.circuits_max
            or self._from[source] >= limits.circuits_from_peer_max
            or self._to[target] >= limits.circuits_to_peer_max
        )
        return Status.RESOURCE_LIMIT_EXCEEDED if is_full else None

    @contextmanager
    def _counted(self, source: NodeId, target: NodeId) -> Iterator[None]:
        self._from[source] += 1
        self._to[target] += 1
        try:
            yield
        finally:
            for counter, peer in ((self._from, source), (self._to, target)):
                counter[peer] -= 1
                if not counter[peer]:
                    del counter[peer]

    async def _reach(self, source: NodeId, target: NodeId) -> tuple[Stream, bytes]:
        """Ask the reached node whether it takes the circuit; gives its stream and what came after its answer."""
        far = self._host.open_direct_stream(target, wire.STOP_PROTOCOL)
        try:
            await far.send(wire.encode_stop_connect(source, self._limits.circuit))
            reader = ByteReader(far.receive)
            answer = wire.decode_stop_answer(await wire.read_message(reader))
            if answer.status != Status.OK:
                raise StreamBroken(f"the node answers with status {answer.status}")
        except BaseException:
            far.reset()
            raise
        return far, reader.rest()

    async def _splice(self, near: Stream, far: Stream, from_near: bytes, from_far: bytes) -> None:
        limits = self._limits

        def count(size: int) -> None:
            self._bytes_carried += size

        await splice(
            near,
            far,
            from_near=from_near,
            from_far=from_far,
            limit=limits.circuit,
            idle_s=limits.idle_s,
            paces=(Pace(limits.bytes_per_circuit_per_s), self._pace),
            count=count,
        )
