"""What a node signs about itself."""

from __future__ import annotations

import pytest

from protocol import constants as c
from protocol.announcing import EXTENSION_DHT, Announcing
from protocol.details import Said, said_of
from protocol.directory import Directory
from protocol.envelope import open_record
from protocol.errors import LocalProtocolError
from protocol.events import Now
from protocol.records import Heartbeat, Role
from tests.helpers_machines import now, offer, sealer_of
from tests.helpers_records import NOW_MS, OFFER, signing_key


def announcing() -> Announcing:
    return Announcing(signing_key("me"), sealer_of("me"), (1,))


def test_a_heartbeat_says_what_the_offer_says_and_is_good_for_others() -> None:
    entry = announcing().sign(offer(name="mine"), 3, now())
    heartbeat = open_record(entry.record, Heartbeat)
    assert heartbeat == entry.heartbeat
    assert (heartbeat.node, heartbeat.name, heartbeat.load, heartbeat.features) == (
        signing_key("me").node,
        "mine",
        3,
        (1,),
    )
    assert heartbeat.expires_at_ms - heartbeat.issued_at_ms == c.HEARTBEAT_LIFETIME_MS_MAX
    assert Directory().add(entry.record, NOW_MS) is not None


def test_only_a_provider_publishes_a_key_to_seal_for() -> None:
    machine = announcing()
    assert machine.sign(offer(), 0, now()).heartbeat.sealing_key == sealer_of("me").public_key(NOW_MS)
    assert machine.sign(offer(role=Role.CLIENT), 0, now()).heartbeat.sealing_key is None


def test_a_place_in_the_dht_is_an_extension_that_others_may_ignore() -> None:
    heartbeat = announcing().sign(offer(dht_address="/ip4/203.0.113.7/tcp/46338/p2p/x"), 0, now()).heartbeat
    assert heartbeat.extensions == ((EXTENSION_DHT, b"/ip4/203.0.113.7/tcp/46338/p2p/x"),)
    assert EXTENSION_DHT % 2 == 1
    assert announcing().sign(offer(), 0, now()).heartbeat.extensions == ()


def test_what_is_said_of_models_follows_the_place_in_the_dht_and_the_offer() -> None:
    machine = announcing()
    first = offer(dht_address="/ip4/203.0.113.7/tcp/46338/p2p/x", said={OFFER.name: Said("F16", aliases=("tiny",))})
    heartbeat = machine.sign(first, 0, now()).heartbeat
    assert [kind for kind, _ in heartbeat.extensions] == [EXTENSION_DHT, 3, 5]
    assert machine.sign(first, 1, now()).heartbeat.extensions == heartbeat.extensions
    second = machine.sign(offer(said={OFFER.name: Said("Q8_0")}), 0, now()).heartbeat
    assert said_of(second, OFFER.name) == Said("Q8_0")
    assert machine.sign(offer(), 0, now()).heartbeat.extensions == ()


def test_the_sequence_grows_however_the_clock_goes() -> None:
    machine = announcing()
    walls = [NOW_MS, NOW_MS, NOW_MS - 5000, NOW_MS + 1, NOW_MS + 100, NOW_MS + 50]
    sequences = [machine.sign(offer(), 0, Now(0.0, wall)).heartbeat.sequence for wall in walls]
    assert sequences == sorted(set(sequences))
    assert sequences[0] == NOW_MS


def test_after_a_restart_the_sequence_is_higher_than_before() -> None:
    before = announcing().sign(offer(), 0, now(0.0)).heartbeat.sequence
    assert announcing().sign(offer(), 0, now(0.002)).heartbeat.sequence > before


@pytest.mark.parametrize("changes", [{"name": "x" * 49}, {"addresses": ("",)}, {"addresses": ("/a",) * 9}])
def test_what_others_would_refuse_is_not_signed(changes: dict[str, object]) -> None:
    machine = announcing()
    with pytest.raises(LocalProtocolError):
        machine.sign(offer(**changes), 0, now())
    assert machine.sign(offer(), 0, now()).heartbeat.sequence == NOW_MS
