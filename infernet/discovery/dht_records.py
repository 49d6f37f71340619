"""What lies in the DHT: who provides a model, under the hash of its name; and heartbeats, under their nodes' ids.

Both are hints. Pure: used by the node, and by its DHT process for what it stores for others.
"""

from __future__ import annotations

import hashlib
from typing import Final

from infernet.transport.addresses import parse_tcp
from protocol import codec
from protocol import constants as c
from protocol.announcing import EXTENSION_DHT
from protocol.codec import Limits
from protocol.directory import Directory
from protocol.errors import BadFrame, RemoteProtocolError
from protocol.ids import NodeId
from protocol.records import Heartbeat, Signed

#: The protocol ID of our DHT: not that of the public one, so that the two never mix.
KAD_PROTOCOL: Final = "/infernet/kad/1.0.0"
NAMESPACE: Final = "infernet"
#: A provider is forgotten this long after it said last that it is one, and says it this often.
TTL_S: Final = 3600.0
REPUBLISH_S: Final = 600.0

_MODEL_TAG: Final = b"infernet/model/1:"
_LIMITS: Final = Limits(c.RECORD_BYTES_MAX + 256, c.RECORD_BYTES_MAX, array_items=2, depth=2, values=3)


def model_key(name: str) -> bytes:
    """The key under which the providers of a model are found."""
    return hashlib.sha256(_MODEL_TAG + name.encode()).digest()


def heartbeat_key(node: NodeId) -> str:
    """The key under which the heartbeat of a node is found."""
    return f"/{NAMESPACE}/{node.hex()}"


def encode_heartbeat(record: Signed) -> bytes:
    """The value for `heartbeat_key`."""
    return codec.encode_value(record)


def decode_heartbeat(value: bytes) -> Signed:
    """The record in a value, unverified. Raises BadFrame."""
    return codec.decode_struct(value, Signed, _LIMITS)


def check_heartbeat(key: str, value: bytes, wall_ms: int) -> Heartbeat:
    """The heartbeat in a value: its own signature, its own key, and not expired. Raises RemoteProtocolError."""
    # SPEC 03: A node MUST refuse a value that is not a heartbeat under its own node's key, with a good signature, not
    #   expired
    # A directory of one applies the rules that hold for every heartbeat.
    heartbeat = Directory(records_max=1).add(decode_heartbeat(value), wall_ms)
    if heartbeat is None or heartbeat_key(heartbeat.node) != key:
        raise BadFrame("the heartbeat of another node")
    return heartbeat


def is_newer(value: bytes, than: bytes) -> bool:
    """Whether the heartbeat in one value was signed after that in another one; a broken one is never newer."""
    return _sequence(value) > _sequence(than)


def dht_address_of(heartbeat: Heartbeat) -> str | None:
    """Where in the DHT a node says that it is, if that is a place of its own."""
    told = next((value for kind, value in heartbeat.extensions if kind == EXTENSION_DHT), b"")
    try:
        address = told.decode("ascii")
        place = parse_tcp(address)
        hosts = {parse_tcp(own).host for own in heartbeat.addresses if "/p2p-circuit" not in own}
    except ValueError:
        return None
    # SPEC 03: The receiver MUST ignore the address of a place in the DHT whose host is not in one of the addresses of
    #   the same heartbeat.
    return address if place.peer is not None and place.host in hosts else None


def _sequence(value: bytes) -> int:
    try:
        return codec.decode_record(decode_heartbeat(value).body, Heartbeat).sequence
    except RemoteProtocolError:
        return -1
