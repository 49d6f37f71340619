"""What a multiaddr says about where its other end is."""

from __future__ import annotations

import ipaddress


def is_loopback(address: str | None) -> bool:
    """Whether the other end is a process of this machine.

    Not so for a circuit: there the address is the relay's.
    """
    parts = (address or "").split("/")
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6") or "p2p-circuit" in parts:
        return False
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
