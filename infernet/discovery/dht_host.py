"""The stock py-libp2p host and its Kademlia DHT, as hard as they can be made without a fork: for the DHT process alone.

The transport of the node is our own because the stock host has faults that let a stranger kill it, pose as others or
fill it up. Here it is used nevertheless, because its DHT needs it: in a process of its own, with a throw-away key,
Noise as the only encryption, a guard around each of its known faults, and limits on what strangers may store. What is
left (a peer can make it hold memory, and the process then dies of its limit) costs a restart of this process.
"""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
import trio
from libp2p import new_host
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.rcmgr import new_resource_manager
from libp2p.rcmgr.connection_limits import ConnectionLimits
from libp2p.rcmgr.manager import ResourceLimits
from libp2p.records.utils import InvalidRecordType
from libp2p.records.validator import NamespacedValidator, Validator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils.varint import encode_uvarint, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from infernet.discovery.dht_frames import ADDRESSES_MAX
from infernet.discovery.dht_records import KAD_PROTOCOL, NAMESPACE, TTL_S, check_heartbeat, is_newer
from infernet.host.files import reason_of
from infernet.transport.addresses import parse_tcp
from protocol import constants as c
from protocol.envelope import SigningKey
from protocol.errors import RemoteProtocolError
from protocol.networks import is_globally_routable, read_ip

log = structlog.get_logger(__name__)

CONNECTIONS_MAX: Final = 64
STREAMS_MAX: Final = 512
# Handshakes at one time: when there are more, the oldest goes. Honest ones take some round trips.
HANDSHAKES_MAX: Final = 16
HANDSHAKE_TIMEOUT_S: Final = 5.0
# Of multistream-select, before and after the handshake.
NEGOTIATION_BYTES_MAX: Final = 1024
PORT_MIN: Final = 1024
KEY_BYTES: Final = 32
# What is held for others. Keys cost nothing, and the oldest value makes room; a new provider of a new key does not get
# in when all places are taken.
KEYS_MAX: Final = 1024
VALUES_MAX: Final = 1024

# What the library takes from its own constants, and not from us.
_SETTINGS: Final[dict[str, object]] = {
    "PROTOCOL_ID": KAD_PROTOCOL,
    # Twenty peers with their addresses and signed records.
    "MAX_DHT_MESSAGE_SIZE": 64 * 1024,
    "MAX_RECORD_SIZE": c.RECORD_BYTES_MAX + 1024,
    "MAX_VALUE_STORE_SIZE": VALUES_MAX,
    "MAX_RECORD_AGE": TTL_S,
    "DEFAULT_TTL": TTL_S,
    "PROVIDER_RECORD_EXPIRATION_INTERVAL": TTL_S,
    # We say ourselves when.
    "PROVIDER_RECORD_REPUBLISH_INTERVAL": float("inf"),
    "REPUBLISH_INTERVAL": float("inf"),
}


class HostUnavailable(Exception):
    """The DHT cannot begin; one line for people."""


def configure_library() -> None:
    """Set what the library has constants for, in this whole process. Raises HostUnavailable for another version."""
    modules = (common, kad_dht, peer_routing, provider_store, value_store)
    for name, value in _SETTINGS.items():
        holders = [module for module in modules if hasattr(module, name)]
        if not holders:
            raise HostUnavailable(f"this version of libp2p has no setting {name}: install the one that is pinned")
        for module in holders:
            setattr(module, name, value)
    for owner, name, method in (
        (TrioTCPStream, "get_remote_address", _remote_address),
        (MultiselectCommunicator, "read", _read_negotiation),
    ):
        setattr(owner, name, method)
    # It says in English what strangers cause, at every level, and some of that to the root logger.
    logging.getLogger().addHandler(logging.NullHandler())
    logging.disable(logging.CRITICAL)


def _remote_address(self: Any) -> tuple[str, int] | None:
    """As the library's own, for IPv6, too: there a name has four parts."""
    try:
        host, port = self.stream.socket.getpeername()[:2]
    except OSError:
        return None
    return str(host), int(port)


async def _read_negotiation(self: Any) -> str:
    """As the library's own; but what is no text, or endless, is a broken negotiation and not the end of the host."""
    try:
        line: bytes = await read_varint_prefixed_bytes_limited(self.read_writer, NEGOTIATION_BYTES_MAX)
        if not line.endswith(b"\n"):
            raise ValueError("no line")
        return line[:-1].decode()
    except (ValueError, BaseLibp2pError) as error:
        raise MultiselectCommunicatorError("a bad message of multistream-select") from error


# ---------------------------------------------------------------- the host


@asynccontextmanager
async def running_dht(
    listen_hosts: Sequence[str], port: int, announced_hosts: Sequence[str], *, allow_private: bool
) -> AsyncIterator[tuple[Any, KadDHT]]:
    """A host and its DHT; a server of the DHT when it listens somewhere and tells where. Raises HostUnavailable."""
    for name in listen_hosts:
        _check_port(name, port)
    secret = SigningKey(secrets.token_bytes(32), secrets.token_bytes).secret_bytes()
    keys = create_new_key_pair(secret)
    # Where we are is known once we listen: the port may be any free one.
    announced: list[Multiaddr] = []
    host = new_host(
        key_pair=keys,
        # The default offers plaintext, too, under which anybody can be anybody.
        sec_opt={NOISE: NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)},
        connection_config=ConnectionConfig(
            max_connections=CONNECTIONS_MAX,
            min_connections=0,
            low_watermark=0,
            high_watermark=CONNECTIONS_MAX,
            max_connections_per_peer=1,
            inbound_upgrade_timeout=HANDSHAKE_TIMEOUT_S,
            auto_connect_interval=float(24 * 60 * 60),
        ),
        resource_manager=new_resource_manager(
            limits=ResourceLimits(max_connections=2 * CONNECTIONS_MAX, max_streams=STREAMS_MAX),
            connection_limits=ConnectionLimits(max_established_per_peer=4),
            enable_metrics=False,
            enable_graceful_degradation=False,
            enable_circuit_breaker=False,
        ),
        addrs_factory=lambda _: announced,
        disable_identify_address_discovery=True,
    )
    _guard(host, allow_private=allow_private)
    async with host.run([Multiaddr(_tcp(name, port)) for name in listen_hosts]):
        ports = [parse_tcp(str(address).partition("/p2p/")[0]).port for address in host.get_transport_addrs()]
        if listen_hosts and not ports:
            raise HostUnavailable("the DHT cannot listen on its port: choose another --dht-port")
        announced += [Multiaddr(_tcp(name, ports[0])) for name in announced_hosts] if ports else []
        dht = KadDHT(
            host,
            DHTMode.SERVER if announced else DHTMode.CLIENT,
            validator=NamespacedValidator({NAMESPACE: _HeartbeatValidator()}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
        )
        dht.provider_store = Providers(host, dht.peer_routing)
        async with background_trio_service(dht):
            yield host, dht


def _check_port(host: str, port: int) -> None:
    """Raises HostUnavailable for a place that cannot be listened at: the library would not say so, or share it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((host, port))
    except OSError as error:
        reason = reason_of(error)
        raise HostUnavailable(
            f"the DHT cannot listen on {host}, port {port} ({reason}): choose another --dht-port"
        ) from None


def _tcp(host: str, port: int) -> str:
    ip = read_ip(host)
    return f"/ip{ip.version}/{ip}/tcp/{port}" if ip is not None else f"/dns/{host}/tcp/{port}"


def _guard(host: Any, *, allow_private: bool) -> None:
    """Put something between strangers and the faults of the host that they could use."""
    swarm = host.get_network()
    swarm.set_stream_handler(_surviving(host._swarm_stream_handler))
    # It dials whomever it has an address of, until it has a hundred connections.
    swarm.auto_connector.maybe_connect = _do_nothing
    swarm._do_handle_inbound_connection = _Inbound(swarm)
    dial = swarm._dial_addr_single_attempt

    async def dial_if_allowed(address: Multiaddr, peer: Any, source: object = None) -> Any:
        # SPEC 03: A node MUST NOT dial what peers of the DHT name unless it is an IP address of the Internet and a port
        #   from 1024 on.
        if not allow_private and not _is_of_the_internet(str(address)):
            raise SwarmException("no address of the Internet")
        return await dial(address, peer, source)

    swarm._dial_addr_single_attempt = dial_if_allowed


async def _do_nothing() -> None:
    pass


def _surviving(handle: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A handler of streams whose exceptions cost the stream; the library's own cost the host."""

    async def handle_and_survive(stream: Any) -> None:
        try:
            await handle(stream)
        except Exception as error:  # noqa: BLE001 - whatever a stranger can cause in there
            log.debug("dht.stream_failed", error=type(error).__name__)
            with trio.move_on_after(1):
                try:
                    await stream.reset()
                except Exception as again:  # noqa: BLE001 - it is gone already
                    log.debug("dht.reset_failed", error=type(again).__name__)

    return handle_and_survive


class _Inbound:
    """Takes inbound connections, and gives their places back when they end: the library does so when it ends itself."""

    def __init__(self, swarm: Any) -> None:
        self._swarm = swarm
        # In the order in which they began.
        self._handshakes: dict[object, trio.CancelScope] = {}

    async def __call__(self, stream: Any, address: Multiaddr, _event: object) -> None:
        raw = RawConnection(stream, False)
        connection = await self._shake_hands(raw, address)
        if connection is None:
            with trio.move_on_after(1, shield=True):
                try:
                    await raw.close()
                except Exception as error:  # noqa: BLE001 - it is gone already
                    log.debug("dht.close_failed", error=type(error).__name__)
            return
        # Whoever returns from here closes the connection.
        await connection.event_shutting_down.wait()

    async def _shake_hands(self, raw: RawConnection, address: Multiaddr) -> Any:
        key = object()
        if len(self._handshakes) >= HANDSHAKES_MAX:
            self._handshakes.pop(next(iter(self._handshakes))).cancel()
        try:
            with trio.CancelScope() as scope:
                self._handshakes[key] = scope
                return await self._swarm.upgrade_inbound_raw_conn(raw, address)
        except Exception as error:  # noqa: BLE001 - strangers' bytes raise any of a dozen types in there
            log.debug("dht.handshake_failed", error=type(error).__name__)
        finally:
            self._handshakes.pop(key, None)
        return None


def _is_of_the_internet(address: str) -> bool:
    """Whether strangers may have this dialled: an IP address of the Internet, at a port that needs no privilege."""
    try:
        parsed = parse_tcp(address.partition("/p2p/")[0])
    except ValueError:
        return False
    ip = read_ip(parsed.host)
    return ip is not None and is_globally_routable(ip) and parsed.port >= PORT_MIN


# ---------------------------------------------------------------- what is stored


class _HeartbeatValidator(Validator):
    """Values are heartbeats under the ids of their nodes, each with the node's own signature; the newest is best."""

    def validate(self, key: str, value: bytes) -> None:
        try:
            check_heartbeat(key, value, time.time_ns() // 1_000_000)
        except RemoteProtocolError as error:
            raise InvalidRecordType(str(error)) from None

    def select(self, key: str, values: list[bytes]) -> int:  # noqa: ARG002 - the library calls it with both
        best = 0
        for number, value in enumerate(values):
            if is_newer(value, values[best]):
                best = number
        return best


class Providers(ProviderStore):
    """Who provides what. The addresses of a provider are those of its node, not those of its host in the DHT."""

    def __init__(self, host: Any, routing: Any) -> None:
        super().__init__(host=host, peer_routing=routing)
        self.node_addresses: list[Multiaddr] = []

    def add_provider(self, key: bytes, provider: Any) -> None:
        """Remember a provider for others, within limits. The library has none for keys."""
        # SPEC 03: A node MUST forget a provider one hour after it was told of it last, and MUST bound how many keys and
        #   values it holds.
        if len(key) != KEY_BYTES or (key not in self.providers and len(self.providers) >= KEYS_MAX):
            return
        is_us = provider.peer_id == self.local_peer_id
        provider.addrs = (self.node_addresses if is_us else provider.addrs)[:ADDRESSES_MAX]
        super().add_provider(key, provider)

    async def _send_add_provider(self, peer: Any, key: bytes) -> bool:
        """Tell one peer that our node provides something."""
        stream = None
        try:
            stream = await self.host.new_stream(peer, [TProtocol(KAD_PROTOCOL)])
            message = Message()
            message.type = Message.MessageType.ADD_PROVIDER
            message.key = key
            message.senderRecord, _ = env_to_send_in_RPC(self.host)
            provider = message.providerPeers.add()
            provider.id = self.local_peer_id.to_bytes()
            provider.addrs.extend(address.to_bytes() for address in self.node_addresses)
            body = message.SerializeToString()
            await stream.write(encode_uvarint(len(body)) + body)
        except Exception as error:  # noqa: BLE001 - the library raises whatever a stranger's connection can cause
            log.debug("dht.not_told", error=type(error).__name__)
            return False
        else:
            return True
        finally:
            if stream is not None:
                await stream.close()
