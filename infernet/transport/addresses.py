"""The multiaddrs that we speak: TCP over IPv4, IPv6 or a DNS name, with or without the peer at the end.

    /ip4/203.0.113.7/tcp/46337/p2p/16Uiu2HA...      /dns/node.example.org/tcp/46337

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


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A parsed multiaddr; `host` is a literal IP address or a DNS name."""

    host: str
    port: int
    peer: NodeId | None


def parse(text: str) -> TcpAddress:
    """Read a multiaddr of a form that we speak. Raises ValueError with a reason for people."""
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
    try:
        peer = node_id_from_peer_id(match["peer"]) if match["peer"] else None
    except LocalProtocolError as error:
        raise ValueError(str(error)) from None
    return TcpAddress(host, port, peer)


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
