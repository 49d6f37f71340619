"""Addresses that must not be dialled: what a stranger could put into a record to have us knock at doors inside."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from protocol.ids import NodeId, peer_id

# One of each block that the Internet does not route, and those that attackers like best.
INSIDE_4 = (
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.254",
    "100.64.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.254",
    "192.0.0.8",
    "192.0.2.1",
    "192.168.0.1",
    "192.168.1.254",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.251",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
)
INSIDE_6 = (
    "::",
    "::1",
    "0:0:0:0:0:0:0:1",
    "0000:0000:0000:0000:0000:0000:0000:0001",
    "fe80::1",
    "FE80::1",
    "febf::1",
    "fc00::1",
    "fd00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "ff05::2",
    "ff0e::1",
    "2001:db8::1",
    "2001:2::1",
    "2001:10::1",
    "3fff::1",
    "100::1",
    "5f00::1",
    "64:ff9b:1::1",
    "8000::1",
)
GLOBAL = ("8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450::5")
PORT = 46337


def inside_6_of(text: str) -> Iterator[str]:
    """The IPv6 addresses that hide an IPv4 address."""
    v4 = int(IPv4Address(text))
    mapped = IPv6Address(0xFFFF << 32 | v4)
    yield f"::ffff:{text}"
    yield mapped.exploded
    yield mapped.exploded.upper()
    yield f"::{text}"
    yield f"::ffff:0:{text}"
    yield f"64:ff9b::{text}"
    yield str(IPv6Address(0x2002 << 112 | v4 << 80))
    yield str(IPv6Address(0x2002 << 112 | v4 << 80 | 1))
    yield str(IPv6Address(0x2001 << 112 | int(IPv4Address("8.8.8.8")) << 64 | v4 ^ 0xFFFF_FFFF))
    yield str(IPv6Address(0x2001 << 112 | v4 << 64 | 0xF7F7_F7F7))
    yield str(IPv6Address(int(IPv6Address("2606:4700::")) | 0x5EFE << 32 | v4))


def spellings_4(text: str) -> Iterator[str]:
    """How C programs, and people, also write an IPv4 address."""
    octets = text.split(".")
    number = int(IPv4Address(text))
    yield str(number)
    yield hex(number)
    yield f"0{number:o}"
    yield ".".join(hex(int(octet)) for octet in octets)
    yield ".".join(f"0{int(octet):o}" for octet in octets)
    yield ".".join(octet.zfill(3) for octet in octets)
    yield f"{octets[0]}.{number & 0xFFFFFF}"
    yield f"{octets[0]}.{octets[1]}.{number & 0xFFFF}"
    yield text + "."


def _meant(spelling: str) -> bytes:
    try:
        return socket.inet_aton(spelling)
    except OSError:
        return b""


class Names:
    """Test double: a resolver without a network. Knows names that lead inside, and reads numbers as the system does."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._turn = 0

    async def __call__(self, name: str) -> list[str]:
        self.asked.append(name)
        name = name.rstrip(".").lower()
        if name == "rebinding.example":
            # Once harmless, and once not.
            self._turn += 1
            return [GLOBAL[0] if self._turn % 2 else "127.0.0.1"]
        if name == "both.example":
            return ["192.168.1.1", GLOBAL[1], "::1"]
        if name.endswith(".inside.example"):
            return [name.removesuffix(".inside.example").replace("-", ":").replace("_", ".")]
        if name in ("localhost", "metadata.example"):
            return ["::1", "127.0.0.1", "169.254.169.254"]
        try:
            return [socket.inet_ntoa(socket.inet_aton(name))]
        except OSError:
            raise socket.gaierror(socket.EAI_NONAME, "no such name") from None


def forbidden(peer: NodeId, relay: NodeId) -> list[str]:
    """Multiaddrs none of which may lead to a connection."""
    hosts = [f"/ip4/{text}" for text in INSIDE_4]
    hosts += [f"/ip6/{text}" for text in INSIDE_6]
    hosts += [f"/ip6/{hidden}" for text in INSIDE_4 for hidden in inside_6_of(text)]
    hosts += [f"/ip4/{spelt}" for text in INSIDE_4 for spelt in spellings_4(text)]
    # As a number with leading zeros is octal, some of these mean another address, which may be on the Internet.
    spelt_4 = [spelt for text in INSIDE_4[:8] for spelt in spellings_4(text) if socket.inet_aton(text) == _meant(spelt)]
    hosts += [f"/{kind}/{spelt}" for kind in ("dns", "dns4") for spelt in spelt_4]
    hosts += [f"/dns/{text.replace('.', '_')}.inside.example" for text in INSIDE_4]
    hosts += [f"/dns6/{text.replace(':', '-')}.inside.example" for text in INSIDE_6]
    hosts += ["/dns/localhost", "/dns4/LOCALHOST", "/dns6/localhost.", "/dns/metadata.example", "/dnsaddr/localhost"]
    found = [f"{host}/tcp/{PORT}" for host in hosts]
    # Doors of the Internet that are no node's.
    found += [f"/ip4/8.8.8.8/tcp/{port}" for port in (0, 1, 22, 25, 53, 80, 443, 1023, "00080", "+80", "1e3", "65536")]
    found += [f"/ip4/8.8.8.8/tcp/{port}" for port in ("０", "４４３", " 4001", "4001 ", "-1", "4001\n", "")]
    found += [f"/ip6/fe80::1%{zone}/tcp/{PORT}" for zone in ("eth0", "1", "lo", "25lo")]
    found += [f"/ip4/{text}/tcp/{PORT}" for text in ("١٢٧.0.0.1", "127。0。0。1", "127.0.0.1%00", "8.8.8.8@127.0.0.1")]
    found += [f"/dns/{text}/tcp/{PORT}" for text in ("[::1]", "::1", "127.0.0.1#", "a b", "x" * 300, "..", "\x00")]
    found += ["/unix/tmp/sock", f"/ip4/127.0.0.1/udp/{PORT}/quic-v1", f"/ip4/127.0.0.1/tcp/{PORT}/ws", "", "/", "x"]
    found += [f"/ip4/127.0.0.1/tcp/{PORT}/p2p/{peer_id(peer)}", f"ip4/127.0.0.1/tcp/{PORT}"]
    through = [f"{address}/p2p/{peer_id(relay)}/p2p-circuit" for address in found[:60]]
    found += [f"{circuit}/p2p/{peer_id(peer)}" for circuit in through] + through[:3]
    return list(dict.fromkeys(found))


def allowed() -> list[str]:
    """Multiaddrs that lead to one connection each: were these refused as well, the others would prove nothing."""
    literals = [f"/ip{6 if ':' in text else 4}/{text}/tcp/{port}" for text in GLOBAL for port in (1024, PORT, 65535)]
    return [*literals, f"/dns/both.example/tcp/{PORT}", f"/ip6/64:ff9b::8.8.4.4/tcp/{PORT}"]
