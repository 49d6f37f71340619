"""The multiaddrs that we speak: TCP over IPv4, IPv6 or a DNS name, with or without the peer at the end; and circuits,
through a relay that has such an address.

    /ip4/203.0.113.7/tcp/46337/p2p/16Uiu2HA...      /dns/node.example.org/tcp/46337
    /ip4/203.0.113.9/tcp/46337/p2p/16Uiu2HB.../p2p-circuit/p2p/16Uiu2HA...

Addresses come from strangers. What is not exactly of this form is refused, not guessed at.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

import trio

from protocol.constants import ADDRESS_CHARACTERS_MAX
from protocol.errors import LocalProtocolError
from protocol.ids import NodeId, node_id_from_peer_id, peer_id

_FORM: Final = re.compile(
    r"/(?P<kind>ip4|ip6|dns|dns4|dns6)/(?P<host>[^/]+)/tcp/(?P<port>[0-9]{1,5})(/p2p/(?P<peer>[^/]+))?"
)
_HOST_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
PORT_MAX: Final = 65_535
_CIRCUIT: Final = "/p2p-circuit"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A parsed multiaddr; `host` is a literal IP address or a DNS name."""

    host: str
    port: int
    peer: NodeId | None


@dataclass(frozen=True, slots=True)
class CircuitAddress:
    """A way through a relay; `relay_address` is where the relay itself is dialled."""

    relay: NodeId
    relay_address: str
    peer: NodeId | None


def parse(text: str) -> TcpAddress | CircuitAddress:
    """Read a multiaddr of a form that we speak. Raises ValueError with a reason for people."""
    if len(text) > ADDRESS_CHARACTERS_MAX:
        raise ValueError(f"an address has at most {ADDRESS_CHARACTERS_MAX} characters")
    relay_address, separator, end = text.partition(_CIRCUIT)
    return _parse_circuit(relay_address, end) if separator else parse_tcp(text)


def _parse_circuit(relay_address: str, end: str) -> CircuitAddress:
    # SPEC 08: A node MUST refuse the address of a circuit inside a circuit.
    if _CIRCUIT in end:
        raise ValueError("a circuit inside a circuit")
    relay = parse_tcp(relay_address).peer
    if relay is None:
        raise ValueError("a circuit names its relay: /ip4/HOST/tcp/PORT/p2p/RELAY/p2p-circuit/p2p/PEER")
    if end and not end.startswith("/p2p/"):
        raise ValueError("after /p2p-circuit comes /p2p/ and the peer, or nothing")
    return CircuitAddress(relay, relay_address, _read_peer(end.removeprefix("/p2p/")) if end else None)


def parse_tcp(text: str) -> TcpAddress:
    """Read a multiaddr that is dialled directly. Raises ValueError with a reason for people."""
    match = _FORM.fullmatch(text) if len(text) <= ADDRESS_CHARACTERS_MAX else None
    if match is None:
        raise ValueError("not an address of the form /ip4/HOST/tcp/PORT, /ip6/... or /dns/...")
    host, port = match["host"], int(match["port"])
    if match["kind"] == "ip4":
        ipaddress.IPv4Address(host)
    elif match["kind"] == "ip6":
        if "%" in host:
            raise ValueError("an IPv6 zone means nothing on another machine")
        ipaddress.IPv6Address(host)
    elif not _HOST_NAME.fullmatch(host):
        raise ValueError("not a host name")
    if not 0 < port <= PORT_MAX:
        raise ValueError(f"there is no TCP port {port}")
    return TcpAddress(host, port, _read_peer(match["peer"]) if match["peer"] else None)


def _read_peer(text: str) -> NodeId:
    try:
        return node_id_from_peer_id(text)
    except LocalProtocolError as error:
        raise ValueError(str(error)) from None


def circuit_multiaddr(relay_address: str | None, relay: NodeId) -> str:
    """The address of whoever is reached through a relay, without who that is. The relay's own may be unknown."""
    return f"{with_peer(relay_address or '', relay)}{_CIRCUIT}"


def tcp_multiaddr(host: str, port: int) -> str:
    """The multiaddr of a TCP endpoint given by a literal IP address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return f"/ip{address.version}/{address}/tcp/{port}"


def with_peer(address: str, peer: NodeId) -> str:
    """An address of a peer, complete with who answers there."""
    return f"{address}/p2p/{peer_id(peer)}"


def remote_multiaddr(stream: trio.SocketStream) -> str | None:
    """Where a TCP connection comes from or goes to; None when it is gone already."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return None
    return tcp_multiaddr(host, port)
