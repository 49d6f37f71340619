"""specs/vectors of page 03: invites, packets of the local network, what lies in the DHT."""

from __future__ import annotations

import pytest

from infernet.discovery import dht_records
from infernet.discovery.mdns_packets import NOTHING, Packet, read
from protocol import codec
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.formats.invites import decode_invite, encode_invite
from tests.helpers_vectors import Vector, each, plain


@each("invites")
def test_invite(vector: Vector) -> None:
    if not vector["valid"]:
        with pytest.raises(LocalProtocolError):
            decode_invite(vector["line"])
        return
    invite = decode_invite(vector["line"])
    assert plain(invite) == vector["invite"]
    assert codec.encode_value(invite) == bytes.fromhex(vector["payload"])
    assert encode_invite(invite) == "".join(vector["line"].split()).lower()


@each("mdns")
def test_packet(vector: Vector) -> None:
    packet = read(bytes.fromhex(vector["packet"]))
    if vector["valid"]:
        assert packet == Packet(bool(vector["asks"]), tuple(vector["addresses"]))
    else:
        assert packet == NOTHING


@each("dht")
def test_what_lies_in_the_dht(vector: Vector) -> None:
    if "model" in vector:
        assert dht_records.model_key(vector["model"]).hex() == vector["key"]
        return
    value, wall_ms = bytes.fromhex(vector["value"]), vector["at_ms"]
    if vector["valid"]:
        assert dht_records.check_heartbeat(vector["key"], value, wall_ms).sequence == vector["sequence"]
    else:
        with pytest.raises(RemoteProtocolError):
            dht_records.check_heartbeat(vector["key"], value, wall_ms)
