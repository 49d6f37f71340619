"""The transport over TCP: listens, dials, and serves what connected peers open.

A connection is TCP, Noise and yamux, so libp2p programs of any language can talk to us. What strangers and peers may
cost us is the business of `guards.py`, and of `connections.py` and `yamux.py` once they have proven an identity.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn

import structlog
import trio

from infernet.transport.addresses import (
    CircuitAddress,
    TcpAddress,
    circuit_multiaddr,
    remote_multiaddr,
    tcp_multiaddr,
    with_peer,
)
from infernet.transport.bans import Bans
from infernet.transport.budget import HELD_BYTES_MAX, Budget
from infernet.transport.channel import ChannelBroken
from infernet.transport.connections import Circuit, Connection, ConnectionLimits, Connections
from infernet.transport.contract import (
    ConnectionInfo,
    DialFailed,
    Handler,
    NotConnected,
    Stream,
    StreamBroken,
    TransportError,
    TransportStatistics,
)
from infernet.transport.crowd import Origin, origin_of, origin_of_circuit
from infernet.transport.dial_back import dial_back
from infernet.transport.dial_guard import AddressRefused, Connect, DialGuard
from infernet.transport.dialer import AttemptFailed, Dialer
from infernet.transport.guards import BAD_CONNECTION, Guards
from infernet.transport.handshakes import HandshakeLimits
from infernet.transport.libp2p_library import (
    IDENTIFY_PROTOCOL,
    PING_PROTOCOL,
    HandshakeFailed,
    Identity,
    check_library,
    identify_message,
)
from infernet.transport.libp2p_services import serve_ping
from infernet.transport.libp2p_stream import agree, propose
from infernet.transport.listener import listening_addresses, open_listeners
from infernet.transport.multistream import MultistreamError
from infernet.transport.noise_channel import NoiseChannel, secure_inbound, secure_outbound
from infernet.transport.relay.hop import RelayLimits, RelayStatistics
from infernet.transport.relay.renewing import renew
from infernet.transport.relay.service import Relaying
from infernet.transport.serving import serve_stream
from infernet.transport.yamux import YamuxConnection, YamuxStream
from infernet.transport.yamux_session import YamuxConfig
from protocol.constants import CONTROL_DEADLINE_S, P2P_PORT
from protocol.ids import NodeId, short
from protocol.locality import is_circuit
from protocol.networks import read_ip
from protocol.records import Reachability

log = structlog.get_logger(__name__)

DUAL_STACK: Final = ("0.0.0.0", "::")  # noqa: S104 - a node is there to be reached

# SPEC 01: A node MUST close a connection that has not proven a key within 5 seconds, or within 69,632 bytes.
HANDSHAKE_TIMEOUT_S: Final = 5.0
# How often connections are looked at that nobody uses.
IDLE_LOOK_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class HostLimits:
    """How much of us others may use.

    held_bytes_max: what all connections together make us hold, unread and unsent.
    """

    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    handshakes: HandshakeLimits = field(default_factory=HandshakeLimits)
    held_bytes_max: int = HELD_BYTES_MAX
    yamux: YamuxConfig = field(default_factory=YamuxConfig)
    relay: RelayLimits = field(default_factory=RelayLimits)


@dataclass(slots=True)
class _Counts:
    """See TransportStatistics; streams refused and bytes here are those of connections that have ended."""

    streams_in: int = 0
    streams_out: int = 0
    handshakes_in: int = 0
    handshakes_out: int = 0
    handshakes_failed: int = 0
    connections_refused: int = 0
    streams_refused: int = 0
    dials_failed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class Libp2pTransport:
    """See `contract.Transport`. One instance runs once.

    secret: 32 bytes, normalised so that the public key has even Y.
    agent: what we call ourselves in identify, as `infernet/0.1.0`.
    protocols: those whose inbound streams go to the handler; others are refused.
    listen_hosts: literal IP addresses; none means that we only dial.
    port: 0 takes any free one, the same for all hosts.
    allow_private: dial wherever strangers say, and do not count programs of this machine by their address.
    proxy: connects by way of a proxy; then nothing is dialled without it.
    watched: protocols on whose streams somebody waits; a connection with one of them is looked after more closely.
    dial_guard: another one than `allow_private` asks for; for tests.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        agent: str,
        protocols: Sequence[str],
        randomness: random.Random,
        listen_hosts: Sequence[str] = DUAL_STACK,
        port: int = P2P_PORT,
        limits: HostLimits | None = None,
        allow_private: bool = False,
        proxy: Connect | None = None,
        watched: Sequence[str] = (),
        dial_guard: DialGuard | None = None,
    ) -> None:
        self._identity = Identity(secret)
        self.node_id = self._identity.node_id
        self._agent = agent
        self._listen_hosts = tuple(listen_hosts)
        self._port = port
        self._limits = limits or HostLimits()
        self._protocols = frozenset((*protocols, IDENTIFY_PROTOCOL, PING_PROTOCOL))
        self._relaying = Relaying(self, self._identity, self._limits.relay)
        self._dialer = Dialer[Connection](self._attempt, randomness)
        self._dialling: dict[tuple[NodeId, tuple[str, ...]], trio.Lock] = {}
        self._watched = frozenset(watched)
        self._guards = Guards(
            bans=Bans(exempt_loopback=allow_private),
            handshakes=self._limits.handshakes,
            budget=Budget(self._limits.held_bytes_max),
            dials=dial_guard or DialGuard(allow_private=allow_private, proxy=proxy),
            exempt_loopback=allow_private,
        )
        self._counts = _Counts()
        self._listeners: list[trio.SocketListener] = []
        self._running: _Running | None = None

    # ------------------------------------------------------------ the contract

    async def run(self, handler: Handler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As `Transport.run`; TransportError too when the installed libp2p is not the one we are built on."""
        await check_library()
        listeners = await open_listeners(self._listen_hosts, self._port)
        self._listeners = listeners
        connections = Connections(handler, self._limits.connections, exempt_loopback=self._guards.exempt_loopback)
        try:
            async with trio.open_nursery() as nursery:
                running = self._running = _Running(nursery, handler, connections)
                if listeners:
                    serve = partial(trio.serve_listeners, handler_nursery=nursery)
                    await nursery.start(serve, self._accept, listeners)
                task_status.started()
                try:
                    await self._close_idle_connections(running)
                finally:
                    # Whoever dials now, or has a connection only now, comes too late for this nursery.
                    running.is_ending = True
        finally:
            self._running = None
            self._listeners = []
            for listener in listeners:
                listener.socket.close()

    async def dial(self, peer: NodeId, addresses: Sequence[str], *, at_once: bool = False) -> None:
        """As `Transport.dial`. Two dials of the same peer at the same addresses wait for each other."""
        running = self._require_running()
        if peer == self.node_id:
            raise DialFailed(peer, {"this node": "a node does not dial itself"})
        if (ban := self._guards.bans.of_peer(peer)) is not None:
            raise DialFailed(peer, {"this node": f"that peer is banned for a while: {ban.reason}"})
        # Not those at other addresses: that of a relay comes from whoever says that he is reached through it, and a
        # dead one would keep us from the relay itself.
        key = (peer, tuple(addresses))
        lock = self._dialling.setdefault(key, trio.Lock())
        try:
            async with lock:
                if any(connection.muxer.is_open() for connection in running.connections.of(peer)):
                    return
                connection = await self._dialer.dial(peer, addresses, at_once=at_once)
                if running.connections.has_dialled(peer):
                    await connection.aclose()  # at other addresses it was faster
                elif running.is_ending:
                    await connection.aclose()
                    raise DialFailed(peer, {"this node": "it is ending"})
                else:
                    self._add_dialled(running, connection)
        except DialFailed:
            self._counts.dials_failed += 1
            raise
        finally:
            if not (lock.locked() or lock.statistics().tasks_waiting):
                self._dialling.pop(key, None)

    def _add_dialled(self, running: _Running, connection: Connection) -> None:
        self._counts.handshakes_out += 1
        running.connections.add(connection)
        running.nursery.start_soon(self._serve, running, connection)
        if connection.circuit is not None:
            add = partial(self._add_dialled, running)
            running.nursery.start_soon(renew, connection, connection.circuit, self._attempt, add)

    async def open_stream(self, peer: NodeId, protocol: str) -> Stream:
        """As `Transport.open_stream`; over the newest of several connections."""
        return self._open_stream(self._require_running().connections.of(peer), peer, protocol)

    def _open_stream(self, connections: Sequence[Connection], peer: NodeId, protocol: str) -> Stream:
        for connection in connections:
            try:
                stream = propose(connection.muxer, peer, protocol)
            except ChannelBroken:
                continue
            if protocol in self._watched:
                stream.watch()
            self._counts.streams_out += 1
            return stream
        raise NotConnected(peer)

    async def disconnect(self, peer: NodeId) -> None:
        """As `Transport.disconnect`."""
        async with trio.open_nursery() as nursery:
            for connection in self._require_running().connections.of(peer):
                nursery.start_soon(connection.muxer.aclose)

    def trust(self, peers: Collection[NodeId]) -> None:
        """As `Transport.trust`."""
        self._guards.bans.trust(peers)

    def permit(self, address: str) -> None:
        """As `Transport.permit`."""
        self._guards.dials.permit(address)

    def misbehaved(self, peer: NodeId, reason: str, weight: float) -> None:
        """As `Transport.misbehaved`."""
        connections = self._running.connections.of(peer) if self._running else []
        origin = next((connection.origin for connection in connections if connection.origin is not None), None)
        if self._guards.bans.blame(peer, origin, weight, reason):
            for connection in connections:
                connection.muxer.abort("the peer is banned")

    @property
    def relays_connections(self) -> bool:
        """As `Transport.relays_connections`."""
        return self._relaying.enabled

    @relays_connections.setter
    def relays_connections(self, value: bool) -> None:
        self._relaying.enabled = value

    async def reserve_relay(self, relay: NodeId, reserved: Callable[[tuple[str, ...]], None]) -> NoReturn:
        """As `Transport.reserve_relay`."""
        self._require_running()
        await self._relaying.reserve(relay, reserved)

    async def dial_back(self, peer: NodeId, address: str) -> tuple[Reachability, str]:
        """As `Transport.dial_back`."""
        return await dial_back(self._identity, self._guards.dials, peer, address)

    def relay_statistics(self) -> RelayStatistics:
        """What this node relays for others."""
        return self._relaying.statistics()

    def peers(self) -> list[NodeId]:
        """As `Transport.peers`."""
        return self._running.connections.peers() if self._running else []

    def round_trip_s(self, peer: NodeId) -> float | None:
        """As `Transport.round_trip_s`; of the newest connection that knows it."""
        connections = self._running.connections.of(peer) if self._running else []
        return next((s for each in connections if (s := each.muxer.round_trip_s) is not None), None)

    def addresses(self) -> list[str]:
        """As `Transport.addresses`; a wildcard stands for the addresses that this machine's interfaces have now."""
        # While the transport stops, its listeners are closed one after the other.
        listening = [listener for listener in self._listeners if listener.socket.fileno() >= 0]
        return [with_peer(address, self.node_id) for address in listening_addresses(listening)]

    def statistics(self) -> TransportStatistics:
        """As `Transport.statistics`."""
        counts = self._counts
        live = list(self._running.connections) if self._running else []
        return TransportStatistics(
            connections=len(live),
            streams=sum(len(each.muxer.session.streams) for each in live),
            streams_in=counts.streams_in,
            streams_out=counts.streams_out,
            handshakes_in=counts.handshakes_in,
            handshakes_out=counts.handshakes_out,
            handshakes_failed=counts.handshakes_failed,
            connections_refused=counts.connections_refused,
            streams_refused=counts.streams_refused + sum(each.muxer.session.streams_refused for each in live),
            dials_failed=counts.dials_failed,
            bytes_in=counts.bytes_in + sum(each.channel.bytes_in for each in live),
            bytes_out=counts.bytes_out + sum(each.channel.bytes_out for each in live),
            handshakes_open=len(self._guards.handshakes),
            handshakes_evicted=self._guards.handshakes.evicted,
            held_bytes=self._guards.budget.total_bytes,
            connections_cut=self._guards.budget.cuts,
            bans=self._guards.bans.count(),
        )

    def _require_running(self) -> _Running:
        if self._running is None:
            raise TransportError("the transport does not run")
        return self._running

    # ------------------------------------------------------------ connections

    async def _attempt(self, peer: NodeId, address: TcpAddress | CircuitAddress) -> Connection:
        """Connect to one address, for the dialer."""
        if isinstance(address, CircuitAddress):
            channel, limit = await self._relaying.dial(peer, address)
            remote = circuit_multiaddr(address.relay_address.partition("/p2p/")[0], address.relay)
            connection = self._connection(channel, remote)
            # Half of its time is left for the streams that it then has.
            connection.circuit = Circuit(address, limit.duration_s / 2 if limit.duration_s else math.inf)
            return connection
        try:
            stream = await self._guards.dials.connect(address)
        except AddressRefused as error:
            raise AttemptFailed(str(error)) from error
        except OSError as error:
            raise AttemptFailed(_plain(error)) from error
        try:
            channel = await secure_outbound(stream, self._identity, peer)
        except (HandshakeFailed, ChannelBroken) as error:
            self._counts.handshakes_failed += 1
            await trio.aclose_forcefully(stream)
            raise AttemptFailed(str(error)) from error
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if not self._guards.dials.is_direct:
            # The other end of the socket is the proxy, of whom nothing is to be said or held against.
            return self._connection(channel, _told_address(address))
        self._guards.bans.seen(peer, origin_of(stream))
        return self._connection(channel, remote_multiaddr(stream))

    async def _accept(self, stream: trio.SocketStream) -> None:
        """Serve one inbound TCP connection to its end; the listener closes it afterwards."""
        running, origin = self._require_running(), origin_of(stream)
        if origin is None or not self._may_enter(running, origin):
            return
        try:
            channel = await self._shake_inbound(stream, origin)
        except Exception:
            log.exception("transport.handshake_broken")
            return
        if channel is not None:
            await self._serve_inbound(running, channel, remote_multiaddr(stream), origin)

    def _may_enter(self, running: _Running, origin: Origin) -> bool:
        """Asked before a handshake, to save its cost."""
        if running.connections.has_room(origin) and self._guards.may_knock(origin):
            return True
        self._counts.connections_refused += 1
        return False

    async def _shake_inbound(self, stream: trio.SocketStream, origin: Origin) -> NoiseChannel | None:
        """Make the handshake within its deadline, as one of a bounded number; None when nothing came of it."""
        with self._guards.handshakes.place(origin, HANDSHAKE_TIMEOUT_S) as place:
            if place is None:
                self._counts.connections_refused += 1
                self._guards.turned_away(origin)
                return None
            try:
                await trio.lowlevel.wait_readable(stream.socket)
                await self._guards.handshakes.turn()
                return await secure_inbound(stream, self._identity)
            except (HandshakeFailed, ChannelBroken) as error:
                log.debug("transport.no_handshake", address=remote_multiaddr(stream), error=str(error))
                self._guards.handshake_failed(origin, error)
        self._counts.handshakes_failed += 1
        if place.cancelled_caught and trio.current_time() >= place.deadline:
            self._guards.handshake_timed_out(origin)
        return None

    async def _serve_inbound(
        self, running: _Running, channel: NoiseChannel, remote: str | None, origin: Origin
    ) -> None:
        """Serve somebody who has proven who they are, unless others took the last places meanwhile."""
        peer, bans = channel.peer, self._guards.bans
        is_welcome = bans.of_peer(peer) is None
        if not is_welcome or not (bans.is_trusted(peer) or running.connections.make_room(origin)):
            self._counts.connections_refused += 1
            return
        self._counts.handshakes_in += 1
        bans.seen(peer, origin)
        connection = self._connection(channel, remote, origin)
        running.connections.add(connection)
        await self._serve(running, connection)

    async def _close_idle_connections(self, running: _Running) -> NoReturn:
        """Look now and then for connections that nobody has had a use for in a while."""
        while True:
            await trio.sleep(IDLE_LOOK_S)
            for connection in running.connections.idle():
                peer = connection.info.peer
                if not (self._guards.bans.is_trusted(peer) or self._relaying.keeps(peer)):
                    running.nursery.start_soon(connection.muxer.aclose)

    def _connection(self, channel: NoiseChannel, remote: str | None, origin: Origin | None = None) -> Connection:
        """A connection that stands; with an origin when it came in."""
        info = ConnectionInfo(channel.peer, remote, inbound=origin is not None)
        muxer = YamuxConnection(
            channel,
            initiator=not info.inbound,
            config=self._limits.yamux,
            opened=partial(self._stream_opened, info),
            budget=self._guards.budget,
        )
        return Connection(info, channel, muxer, origin)

    async def _serve(self, running: _Running, connection: Connection) -> None:
        """Run a connection to its end; nothing that happens to it reaches the others."""
        try:
            await connection.muxer.run()
        except Exception:
            log.exception("transport.connection_broken")
        finally:
            running.connections.remove(connection)
            if connection.muxer.offence is not None:
                self._guards.bans.blame(
                    connection.info.peer, connection.origin, BAD_CONNECTION, connection.muxer.offence
                )
            if self.direct_connection(connection.info.peer) is None:
                self._relaying.lost(connection.info.peer)
            self._counts.streams_refused += connection.muxer.session.streams_refused
            self._counts.bytes_in += connection.channel.bytes_in
            self._counts.bytes_out += connection.channel.bytes_out
            peer = short(connection.info.peer)
            log.debug("transport.connection_ended", peer=peer, reason=str(connection.muxer.lost))

    # ------------------------------------------------------------ what relaying stands on

    def _direct(self, peer: NodeId) -> list[Connection]:
        connections = self._running.connections.of(peer) if self._running else []
        return [connection for connection in connections if not is_circuit(connection.info.remote_address)]

    def direct_connection(self, peer: NodeId) -> ConnectionInfo | None:
        """As `RelayHost.direct_connection`."""
        return next((connection.info for connection in self._direct(peer)), None)

    def open_direct_stream(self, peer: NodeId, protocol: str) -> Stream:
        """As `RelayHost.open_direct_stream`."""
        return self._open_stream(self._direct(peer), peer, protocol)

    def is_full(self) -> bool:
        """As `RelayHost.is_full`."""
        return len(self._require_running().connections) >= self._limits.connections.total_max

    async def serve_circuit(self, channel: NoiseChannel, remote: str) -> None:
        """As `RelayHost.serve_circuit`."""
        origin = origin_of_circuit(remote, channel.peer)
        await self._serve_inbound(self._require_running(), channel, remote, origin)

    # ------------------------------------------------------------ streams

    def _stream_opened(self, info: ConnectionInfo, stream: YamuxStream) -> None:
        self._counts.streams_in += 1
        running = self._require_running()
        # In the transport's nursery, not in the connection's: when that is lost, the handler is to see its stream
        # break, not to be cancelled.
        running.nursery.start_soon(self._serve_stream, running, info, stream)

    async def _serve_stream(self, running: _Running, info: ConnectionInfo, stream: YamuxStream) -> None:
        try:
            with trio.fail_after(CONTROL_DEADLINE_S):
                agreed = await agree(stream, info.peer, self._protocols | self._relaying.protocols)
            if agreed.protocol in self._watched:
                agreed.watch()
            await serve_stream(agreed, partial(self._serve_protocol, running, info))
        except (MultistreamError, ChannelBroken, StreamBroken, trio.TooSlowError) as error:
            log.debug("transport.no_protocol", peer=short(info.peer), error=str(error))
            stream.reset()
        except Exception:
            log.exception("transport.protocol_broken", peer=short(info.peer))
            stream.reset()
        finally:
            stream.release()

    async def _serve_protocol(self, running: _Running, info: ConnectionInfo, stream: Stream) -> None:
        if stream.protocol == PING_PROTOCOL:
            await serve_ping(stream)
        elif stream.protocol == IDENTIFY_PROTOCOL:
            spoken = sorted(self._protocols | self._relaying.protocols)
            await stream.send(identify_message(self._identity, self._agent, spoken, info.remote_address))
        elif stream.protocol in self._relaying.protocols:
            await self._relaying.serve(stream, info.remote_address)
        else:
            await running.handler.stream_opened(stream)


@dataclass(slots=True)
class _Running:
    """What exists only between start and stop."""

    nursery: trio.Nursery
    handler: Handler
    connections: Connections
    is_ending: bool = False


def _told_address(address: TcpAddress) -> str | None:
    """Where a connection through a proxy leads, as far as we know."""
    return tcp_multiaddr(address.host, address.port) if read_ip(address.host) is not None else None


def _plain(error: OSError) -> str:
    """What went wrong with a socket, without the wrapping of whoever tried several of them."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    inner = cause if isinstance(cause, OSError) else error
    text = inner.strerror or str(inner)
    # trio says the address once more, as Python writes a pair.
    return os.strerror(inner.errno) if inner.errno and text.startswith("Error connecting to") else text
