"""infernet/discovery/dht_records.py: what may lie in the DHT, and under which key."""

from __future__ import annotations

import hashlib

import pytest

from infernet.discovery.dht_records import (
    check_heartbeat,
    decode_heartbeat,
    dht_address_of,
    encode_heartbeat,
    heartbeat_key,
    is_newer,
    model_key,
)
from protocol.announcing import EXTENSION_DHT
from protocol.envelope import SigningKey, sign_record
from protocol.errors import BadFrame, BadSignature, RemoteProtocolError, Stale
from protocol.ids import peer_id
from protocol.records import Signed
from tests.helpers_records import ASKER, NOW_MS, PROVIDER, heartbeat

KEY = heartbeat_key(PROVIDER.node)
PLACE = f"/ip4/203.0.113.7/tcp/46338/p2p/{peer_id(ASKER.node)}"


def value(key: SigningKey = PROVIDER, **changes: object) -> bytes:
    return encode_heartbeat(sign_record(heartbeat(node=key.node, **changes), key))


def test_keys_are_those_of_the_specification() -> None:
    assert model_key("tiny-135m") == hashlib.sha256(b"infernet/model/1:tiny-135m").digest()
    assert f"/infernet/{PROVIDER.node.hex()}" == KEY


def test_a_good_heartbeat_is_found_under_its_own_key() -> None:
    assert check_heartbeat(KEY, value(), NOW_MS).node == PROVIDER.node


def test_what_is_not_the_nodes_own_word_or_no_word_of_today_is_refused() -> None:
    good = decode_heartbeat(value())
    forged = encode_heartbeat(Signed(good.body, bytes(64)))
    cases: list[tuple[str, bytes, int, type[RemoteProtocolError]]] = [
        (heartbeat_key(ASKER.node), value(), NOW_MS, BadFrame),
        (KEY.upper(), value(), NOW_MS, BadFrame),
        (KEY, forged, NOW_MS, BadSignature),
        (KEY, value(), NOW_MS + 24 * 60 * 60 * 1000, Stale),
        (KEY, value(), NOW_MS - 24 * 60 * 60 * 1000, Stale),
        (KEY, b"", NOW_MS, BadFrame),
        (KEY, b"\xc0", NOW_MS, BadFrame),
        (KEY, value() + b"\0", NOW_MS, BadFrame),
        (KEY, bytes(20_000), NOW_MS, BadFrame),
    ]
    for key, data, wall_ms, error in cases:
        with pytest.raises(error):
            check_heartbeat(key, data, wall_ms)


def test_the_newest_is_best_and_a_broken_one_never() -> None:
    assert is_newer(value(sequence=8), value(sequence=7))
    assert not is_newer(value(sequence=7), value(sequence=7))
    assert is_newer(value(), b"broken")
    assert not is_newer(b"broken", value())
    assert not is_newer(b"broken", b"broken")


@pytest.mark.parametrize(
    ("addresses", "told", "found"),
    [
        (("/ip4/203.0.113.7/tcp/46337",), PLACE, PLACE),
        (("/ip4/203.0.113.8/tcp/46337",), PLACE, None),
        ((f"/ip4/203.0.113.7/tcp/46337/p2p/{peer_id(ASKER.node)}/p2p-circuit",), PLACE, None),
        (("/ip4/203.0.113.7/tcp/46337",), "/ip4/203.0.113.7/tcp/46338", None),
        (("/ip4/203.0.113.7/tcp/46337",), "nonsense", None),
        (("/ip4/203.0.113.7/tcp/46337",), "\xff", None),
        (("nonsense",), PLACE, None),
    ],
)
def test_a_place_in_the_dht_is_believed_at_the_nodes_own_host_only(
    addresses: tuple[str, ...], told: str, found: str | None
) -> None:
    extensions = ((EXTENSION_DHT, told.encode("latin-1")),)
    assert dht_address_of(heartbeat(addresses=addresses, extensions=extensions)) == found
    assert dht_address_of(heartbeat(addresses=addresses)) is None
