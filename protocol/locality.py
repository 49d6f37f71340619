"""What a multiaddr says about where its other end is."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable


def is_loopback(address: str | None) -> bool:
    """Whether the other end is a process of this machine.

    Not so for a circuit: there the address is the relay's.
    """
    # SPEC 08: A node MUST NOT treat whoever comes through a circuit as a process of its own machine, whatever the
    #   address of the relay.
    ip = ip_of(address)
    return ip is not None and ip.is_loopback and not is_circuit(address)


def is_circuit(address: str | None) -> bool:
    """Whether the address leads through a relay."""
    return "/p2p-circuit" in (address or "")


def direct(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those that do not lead through a relay."""
    return tuple(address for address in addresses if not is_circuit(address))


def ip_of(address: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address in a multiaddr, an IPv4 one that is mapped into IPv6 as itself; of a circuit, its relay's."""
    parts = (address or "").split("/")
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return None
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def network_of(address: str | None) -> str:
    """Whose hands the other end is in, as far as an address tells: an IPv4 /16, an IPv6 /32, or a host name.

    Two addresses of one network may be one owner's; of a circuit it is the network of the relay. Empty for none.
    """
    ip = ip_of(address)
    if ip is None:
        parts = (address or "").split("/")
        return parts[2].lower() if len(parts) > 2 else ""
    return str(ipaddress.ip_network((ip, 16 if ip.version == 4 else 32), strict=False))
