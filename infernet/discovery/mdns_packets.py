"""The packets of multicast DNS (RFC 6762, RFC 6763, libp2p's mDNS specification): what we say, and what we read.

    question    PTR _infernet._udp.local
    answer      PTR _infernet._udp.local  ->  <random name>._infernet._udp.local
                TXT <random name>._infernet._udp.local  "dnsaddr=/ip4/192.168.1.5/tcp/46337/p2p/16Uiu2HA..."

Everything on the local network may send packets, so reading ends in what was found, or in nothing. Pure: no socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import dns.rrset

from protocol import constants as c

# Ours have less than half of this; what is larger than one Ethernet frame is none of ours.
PACKET_BYTES_MAX: Final = 1500
ADDRESSES_MAX: Final = c.HEARTBEAT_ADDRESSES_MAX
# How long others may remember an answer; 0 takes it back. Source: RFC 6762, section 10.
LIFETIME_S: Final = 120

_SERVICE: Final = dns.name.from_text("_infernet._udp.local.")
# Whoever means us writes this out at least once: names are compressed only after their first use. Nearly all packets of
# a busy network end here.
_SERVICE_BYTES: Final = _SERVICE.to_digestable()
_KEY: Final = b"dnsaddr="


@dataclass(frozen=True, slots=True)
class Packet:
    """What a packet says to us: whether it asks who is here, and multiaddrs at which somebody is."""

    asks: bool = False
    addresses: tuple[str, ...] = ()


NOTHING: Final = Packet()


def question() -> bytes:
    """Who is here?"""
    # SPEC 03: A node MUST write the service name out, in lower case, at least once in each packet.
    message = dns.message.make_query(_SERVICE, dns.rdatatype.PTR, id=0, flags=0)
    return message.to_wire()


def answer(name: str, address: str, lifetime_s: int = LIFETIME_S) -> bytes:
    """A node is at this full multiaddr. `name` is a random label that tells nothing of it."""
    instance = dns.name.from_text(name, _SERVICE)
    message = dns.message.Message(id=0)
    message.flags = dns.flags.Flag(dns.flags.QR | dns.flags.AA)
    message.answer.append(dns.rrset.from_text(_SERVICE, lifetime_s, "IN", "PTR", instance.to_text()))
    text = f'"{_KEY.decode()}{address}"'
    message.additional.append(dns.rrset.from_text(instance, lifetime_s, "IN", "TXT", text))
    return message.to_wire()


def read(data: bytes) -> Packet:
    """What a packet says to us; `NOTHING` for whatever is not about us or is broken."""
    # SPEC 03: The receiver MUST ignore packets of more than 1,500 bytes, and records with a lifetime of 0.
    if len(data) > PACKET_BYTES_MAX or _SERVICE_BYTES not in data:
        return NOTHING
    try:
        message = dns.message.from_wire(data, ignore_trailing=True, one_rr_per_rrset=True)
    # It has a dozen exceptions for bad packets, all of one family; strangers may find one that is not.
    except (dns.exception.DNSException, ValueError, IndexError, RecursionError):
        return NOTHING
    if message.opcode() != dns.opcode.QUERY:
        return NOTHING
    if not message.flags & dns.flags.QR:
        return Packet(asks=any(_is_for_us(asked) for asked in message.question))
    found = dict.fromkeys(_addresses([*message.answer, *message.additional]))
    return Packet(addresses=tuple(found)[:ADDRESSES_MAX])


def _is_for_us(asked: dns.rrset.RRset) -> bool:
    return asked.name == _SERVICE and asked.rdtype in (dns.rdatatype.PTR, dns.rdatatype.ANY)


def _addresses(records: Iterable[dns.rrset.RRset]) -> Iterator[str]:
    for record in records:
        # One that lives no longer is somebody who says goodbye.
        if record.rdtype != dns.rdatatype.TXT or record.ttl == 0 or not record.name.is_subdomain(_SERVICE):
            continue
        for text in record:
            if isinstance(text, dns.rdtypes.ANY.TXT.TXT):
                yield from _addresses_in(text.strings)


def _addresses_in(strings: Iterable[bytes]) -> Iterator[str]:
    for string in strings:
        if string.startswith(_KEY) and string.isascii() and len(string) <= len(_KEY) + c.ADDRESS_CHARACTERS_MAX:
            yield string.removeprefix(_KEY).decode("ascii")
