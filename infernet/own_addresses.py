"""Under which addresses this node is reached, and how the addresses of nodes are written."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

import psutil

from infernet.config import Config
from protocol.errors import LocalProtocolError
from protocol.ids import NodeId, node_id_from_peer_id, peer_id
from protocol.reaching import PORT_MIN


def advertised(config: Config, listening: Sequence[str], node: NodeId) -> list[str]:
    """The multiaddrs that the heartbeat publishes: the one the owner gave, or the public ones of this machine.

    Behind a proxy this machine's own addresses are nobody's business: then it is what the owner gave, or none.

    With a coordinator on loopback the whole market is on this machine, and loopback is where it is reached.
    """
    if not config.advertise or not listening:
        return []
    port = (config.bind_port is not None and config.p2p_port) or port_of(listening[0])
    if config.address is not None:
        return [multiaddr(config.address, port, node)]
    if config.proxy is not None:
        return []
    hosts = [host for host in interface_hosts() if ip_address(host).is_global]
    if not hosts and config.coordinator_url is not None and is_loopback_url(config.coordinator_url):
        hosts = ["127.0.0.1"]
    return [multiaddr(host, port, node) for host in hosts]


def undialled(config: Config) -> str:
    """Why nobody would dial this node although it listens, where its port is why; empty where it is not."""
    listens = config.p2p_enabled and config.advertise and config.listen_hosts
    if not listens or not 0 < config.p2p_port < PORT_MIN:
        return ""
    return f"nodes dial no port below {PORT_MIN} that others tell them, and this one is at {config.p2p_port}"


def uses_local_network(config: Config) -> bool:
    """Whether this node looks for others in the networks of this machine: not if it wants none, or has only itself."""
    is_alone = bool(config.listen_hosts) and all(ip_address(host).is_loopback for host in config.listen_hosts)
    return config.mdns and config.p2p_enabled and config.proxy is None and not is_alone


def peer_of(address: str) -> NodeId:
    """The node in the `/p2p/` part of a multiaddr. Raises LocalProtocolError, saying what a full one looks like."""
    # The last one: through a relay, the one before is the relay's.
    _, separator, rest = address.rpartition("/p2p/")
    if not separator or not address.startswith("/"):
        raise LocalProtocolError(
            f"{address[:200]!r} is no full address of a node: it looks like /ip4/192.0.2.1/tcp/46337/p2p/16Uiu2HA..."
        )
    return node_id_from_peer_id(rest.strip("/"))


def multiaddr(host: str, port: int, node: NodeId) -> str:
    """The multiaddr of a node on an IP address or a DNS name."""
    try:
        kind = f"ip{ip_address(host).version}"
    except ValueError:
        kind = "dns"
    return f"/{kind}/{host}/tcp/{port}/p2p/{peer_id(node)}"


def port_of(address: str) -> int:
    """The TCP port in a multiaddr that this node listens on."""
    return int(address.split("/")[4])


def interface_hosts() -> list[str]:
    """The IP addresses of this machine's interfaces, without scope suffixes."""
    hosts = []
    for addresses in psutil.net_if_addrs().values():
        hosts += [a.address.partition("%")[0] for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6)]
    return hosts


def is_loopback_url(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
