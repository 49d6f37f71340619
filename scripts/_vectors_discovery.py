"""Vectors of specs/03: invites, packets of the local network, what lies in the DHT."""

from __future__ import annotations

from collections.abc import Iterator

from _vectors_common import ASKER, COORDINATOR, NOW_MS, PROVIDER, Vector, file, invalid, valid
from _vectors_identity import heartbeat
from infernet.discovery import dht_records, mdns_packets
from protocol import bech32, codec
from protocol.envelope import sign_record
from protocol.formats.invites import PREFIX, Invite, InvitedNode, encode_invite
from protocol.ids import peer_id
from protocol.records import Signed

URL = "https://coordinator.example"
HOME = "/ip4/203.0.113.7/tcp/46337"
HOME_6 = "/ip6/2001:db8::7/tcp/46337"


def invites() -> Vector:
    """invites.json."""
    return file("The line that one person gives another, and what it says.", [*_invites(), *_lines_that_are_none()])


def _invites() -> Iterator[Vector]:
    node = InvitedNode(PROVIDER.node, (HOME, HOME_6))
    relayed = InvitedNode(ASKER.node, (f"{HOME}/p2p/{peer_id(PROVIDER.node)}/p2p-circuit",))
    for comment, invite in (
        ("one node with two addresses", Invite(1, (node,), None, None)),
        ("a coordinator and no node", Invite(1, (), URL, COORDINATOR.node)),
        (
            "two nodes, one of them behind a relay, and a coordinator",
            Invite(1, (node, relayed), URL, COORDINATOR.node),
        ),
    ):
        line = encode_invite(invite)
        yield valid(comment, line=line, payload=codec.encode_value(invite), invite=invite)
    invite = Invite(1, (node,), None, None)
    line, payload = encode_invite(invite), codec.encode_value(invite)
    yield valid("in capitals, as in a picture", line=line.upper(), payload=payload, invite=invite)
    wrapped = f" {line[:30]}\r\n{line[30:60]} {line[60:]}\n"
    yield valid("wrapped on its way", line=wrapped, payload=payload, invite=invite)


def _lines_that_are_none() -> Iterator[Vector]:
    plain = [PROVIDER.node, [HOME]]
    line = encode_invite(Invite(1, (InvitedNode(PROVIDER.node, (HOME,)),), None, None))
    payload = line.removeprefix(f"{PREFIX}:")
    yield invalid("a wrong last character", line=line[:-1] + ("q" if line[-1] != "q" else "p"))
    yield invalid("two characters swapped", line=f"{PREFIX}:{payload[1]}{payload[0]}{payload[2:]}")
    yield invalid("a character missing", line=line[:-10] + line[-9:])
    yield invalid("upper and lower case mixed", line=f"INFERNET:{payload}")
    yield invalid("another prefix", line=f"inferno:{payload}")
    yield invalid("the separator of bech32", line=f"{PREFIX}1{payload}")
    data = codec.encode_value([1, [plain], None, None])
    yield invalid("the checksum of BIP-173", line=f"{PREFIX}:{bech32.encode(PREFIX, data, bech32.BECH32)}")
    for comment, value in (
        ("version 0", [0, [plain], None, None]),
        ("version 2", [2, [plain], None, None]),
        ("a field too many", [1, [plain], None, None, None]),
        ("a field too few", [1, [plain], None]),
        ("empty", [1, [], None, None]),
        ("a coordinator without its key", [1, [plain], URL, None]),
        ("a key without its coordinator", [1, [plain], None, COORDINATOR.node]),
        ("a node twice", [1, [plain, plain], None, None]),
        ("a node without address", [1, [[PROVIDER.node, []]], None, None]),
        ("nine nodes", [1, [[bytes([n]) * 32, [HOME]] for n in range(9)], None, None]),
        ("nine addresses", [1, [[PROVIDER.node, [f"{HOME}{n}" for n in range(9)]]], None, None]),
        ("a node id of 31 bytes", [1, [[PROVIDER.node[:31], [HOME]]], None, None]),
        ("an address that does not begin with a slash", [1, [[PROVIDER.node, ["203.0.113.7"]]], None, None]),
        ("an address with a control character", [1, [[PROVIDER.node, [f"{HOME}\n"]]], None, None]),
    ):
        yield invalid(comment, line=_line(codec.encode_value(value)))
    # The integer 1 in two bytes.
    yield invalid("not in canonical form", line=_line(data[:1] + b"\xcc\x01" + data[2:]))
    yield invalid("a byte after the array", line=_line(data + b"\xc0"))


def _line(data: bytes) -> str:
    return f"{PREFIX}:{bech32.encode(PREFIX, data, bech32.BECH32M)}"


# ---------------------------------------------------------------- the local network

ON_LINK = f"/ip4/192.168.1.5/tcp/46337/p2p/{peer_id(PROVIDER.node)}"


def mdns() -> Vector:
    """mdns.json."""
    return file(
        "Packets of multicast DNS: whether they ask who is here, and at which addresses they say that somebody is.",
        [*_packets(), *_packets_that_say_nothing()],
    )


def _packets() -> Iterator[Vector]:
    answer = mdns_packets.answer("0123456789abcdef", ON_LINK)
    yield valid("a question", packet=mdns_packets.question(), asks=True, addresses=[])
    yield valid("an answer", packet=answer, asks=False, addresses=[ON_LINK])
    yield valid("an answer with bytes after it", packet=answer + b"\0", asks=False, addresses=[ON_LINK])


def _packets_that_say_nothing() -> Iterator[Vector]:
    answer = mdns_packets.answer("0123456789abcdef", ON_LINK)
    yield invalid("a goodbye", packet=mdns_packets.answer("0123456789abcdef", ON_LINK, lifetime_s=0))
    yield invalid("a question about other services", packet=mdns_packets.question().replace(b"_infernet", b"_internet"))
    yield invalid("an answer cut short", packet=answer[:-1])
    yield invalid("a text that is no address", packet=answer.replace(b"dnsaddr=", b"dnsname="))
    yield invalid("an operation that is no query", packet=answer[:2] + bytes([answer[2] | 0x28]) + answer[3:])
    yield invalid("a packet that is too long", packet=answer + bytes(1500))


# ---------------------------------------------------------------- the DHT


def dht() -> Vector:
    """dht.json."""
    return file(
        "Keys of the DHT, and values that may lie under them at a time, or may not.", [*_keys_of_models(), *_values()]
    )


def _keys_of_models() -> Iterator[Vector]:
    for name in ("smollm2-135m-instruct", "Größe 7b"):
        yield valid("the key of a model", model=name, key=dht_records.model_key(name))


def _values() -> Iterator[Vector]:
    record = sign_record(heartbeat(), PROVIDER)
    value = dht_records.encode_heartbeat(record)
    key = dht_records.heartbeat_key(PROVIDER.node)
    yield valid("a heartbeat", key=key, value=value, at_ms=NOW_MS, sequence=heartbeat().sequence)
    yield invalid("under the key of another node", key=dht_records.heartbeat_key(ASKER.node), value=value, at_ms=NOW_MS)
    yield invalid("under no key of ours", key=f"/other/{PROVIDER.node.hex()}", value=value, at_ms=NOW_MS)
    yield invalid("when it has expired", key=key, value=value, at_ms=NOW_MS + 60 * 60 * 1000)
    yield invalid("long before it was signed", key=key, value=value, at_ms=NOW_MS - 60 * 60 * 1000)
    forged = dht_records.encode_heartbeat(Signed(record.body, record.signature[::-1]))
    yield invalid("a signature that is none", key=key, value=forged, at_ms=NOW_MS)
    yield invalid("a byte too many", key=key, value=value + b"\0", at_ms=NOW_MS)
    yield invalid("nothing", key=key, value=b"", at_ms=NOW_MS)
