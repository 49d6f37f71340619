"""What an IP address says about its host: whether it is reached over the Internet, and who its neighbours are.

Strangers tell us addresses to dial. Without a rule they could have us knock at doors inside our own network, which
are closed to them (server-side request forgery). An address may also hide another one inside it, so what a gateway or
a kernel would unwrap is unwrapped here first.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple

IpAddress = IPv4Address | IPv6Address

# Source: the IANA registries of special-purpose addresses (RFC 6890 and its updates), multicast and what is reserved.
_NOT_GLOBAL_4: Final = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
# All that has been given out for hosts lies in the first; the others are exceptions inside it.
_GLOBAL_6: Final = IPv6Network("2000::/3")
_NOT_GLOBAL_6: Final = tuple(IPv6Network(block) for block in ("2001::/23", "2001:db8::/32", "3fff::/20"))

# The last 32 bits are an IPv4 address: mapped (RFC 4291), compatible (the same, deprecated), translated (RFC 2765) and
# NAT64 (RFC 6052).
_EMBEDDING: Final = tuple(IPv6Network(block) for block in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
# An interface named after an IPv4 address (ISATAP, RFC 5214).
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)

_HOST_BYTES: Final = {4: 4, 6: 8}
_SUBNET_BYTES: Final = {4: 3, 6: 6}


def is_globally_routable(ip: IpAddress) -> bool:
    """Whether an address, and every address inside it, belongs to a host on the Internet."""
    if isinstance(ip, IPv4Address):
        return not any(ip in block for block in _NOT_GLOBAL_4)
    inside = _inside(ip)
    if not all(is_globally_routable(address) for address in inside):
        return False
    is_a_way_to_it = bool(inside) and not _is_isatap(ip)
    return is_a_way_to_it or (ip in _GLOBAL_6 and not any(ip in block for block in _NOT_GLOBAL_6))


def _inside(ip: IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that a packet for this one may end up at."""
    if ip.teredo is not None:
        return list(ip.teredo)
    if ip.sixtofour is not None:
        return [ip.sixtofour]
    if _is_isatap(ip) or any(ip in block for block in _EMBEDDING):
        return [IPv4Address(int(ip) & 0xFFFF_FFFF)]
    return []


def _is_isatap(ip: IPv6Address) -> bool:
    return (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP


def read_ip(text: str) -> IpAddress | None:
    """An IP address as a socket tells it, without its zone, and IPv4 as such; None when it is none."""
    try:
        ip = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return mapped or ip


class Prefix(NamedTuple):
    """The first bytes of addresses. Looked up for every connection of a flood, so it is nothing more than that."""

    version: int
    start: bytes

    def __str__(self) -> str:
        start = self.start.ljust(4 if self.version == 4 else 16, b"\0")
        return f"{ip_address(start)}/{8 * len(self.start)}"


def host_of(ip: IpAddress) -> Prefix:
    """What one machine can call its own: an IPv4 address, or the /64 that an IPv6 machine draws addresses from."""
    return Prefix(ip.version, ip.packed[: _HOST_BYTES[ip.version]])


def subnet_of(ip: IpAddress) -> Prefix:
    """What one customer or one small provider holds: a /24, or a /48."""
    return Prefix(ip.version, ip.packed[: _SUBNET_BYTES[ip.version]])


def is_host(prefix: Prefix) -> bool:
    """Whether a prefix is that of a host, and not of a subnet."""
    return len(prefix.start) == _HOST_BYTES[prefix.version]
