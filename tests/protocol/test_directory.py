"""The directory keeps the newest good record of each node, no more than it may, and finds it by model and by id."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.directory import FIRST_ID, LAST_ID, Directory
from protocol.envelope import sign_record
from protocol.errors import BadFrame, BadSignature, Stale, UnknownVersion
from protocol.ids import NodeId
from protocol.records import Signed
from tests.helpers_machines import record_of
from tests.helpers_records import NOW_MS, OFFER, PROVIDER, heartbeat, signing_key

A, B = signing_key("a"), signing_key("b")


def directory_of(*names: str) -> Directory:
    directory = Directory()
    for name in names:
        assert directory.add(record_of(name), NOW_MS) is not None
    return directory


def test_the_highest_sequence_wins_in_either_order() -> None:
    for sequences in ((1, 2), (2, 1), (2, 2)):
        directory = Directory()
        for sequence in sequences:
            directory.add(record_of("a", sequence=sequence), NOW_MS)
        held = directory.get(A.node)
        assert held is not None
        assert held.heartbeat.sequence == 2
        assert len(directory) == 1


def test_old_news_is_nobodys_fault_and_no_news() -> None:
    directory = directory_of("a")
    assert directory.add(record_of("a"), NOW_MS) is None
    assert directory.add(record_of("a", sequence=1), NOW_MS) is None


def test_a_forged_record_is_refused_even_when_it_claims_to_be_newer() -> None:
    directory = directory_of("a")
    genuine = record_of("a", sequence=100)
    with pytest.raises(BadSignature):
        directory.add(Signed(genuine.body, bytes(64)), NOW_MS)
    other = sign_record(heartbeat(node=B.node, sequence=100), B)
    with pytest.raises(BadSignature):
        directory.add(Signed(genuine.body, other.signature), NOW_MS)
    held = directory.get(A.node)
    assert held is not None
    assert held.heartbeat.sequence == 7


@pytest.mark.parametrize(
    "changes",
    [
        {"expires_at_ms": NOW_MS},
        {"issued_at_ms": NOW_MS + c.CLOCK_SKEW_MS_MAX + 1, "expires_at_ms": NOW_MS + c.CLOCK_SKEW_MS_MAX + 2},
        {"expires_at_ms": NOW_MS + c.HEARTBEAT_LIFETIME_MS_MAX + 1},
        {"issued_at_ms": NOW_MS + 1000, "expires_at_ms": NOW_MS + 1000},
    ],
)
def test_a_record_that_is_expired_or_from_the_future_or_lives_too_long_is_stale(changes: dict[str, int]) -> None:
    with pytest.raises(Stale):
        Directory().add(record_of("a", **changes), NOW_MS)


def test_the_limits_of_age_themselves_are_allowed() -> None:
    skewed = NOW_MS + c.CLOCK_SKEW_MS_MAX
    record = record_of("a", issued_at_ms=skewed, expires_at_ms=skewed + c.HEARTBEAT_LIFETIME_MS_MAX)
    assert Directory().add(record, NOW_MS) is not None


def test_records_expire_by_the_wall_clock() -> None:
    directory = directory_of("a")
    directory.add(record_of("b", expires_at_ms=NOW_MS + 5), NOW_MS)
    assert directory.expire(NOW_MS + 4) == []
    assert directory.expire(NOW_MS + 5) == [B.node]
    assert directory.get(B.node) is None
    assert directory.providers_of(OFFER.name) == [A.node]


def test_a_newer_record_moves_the_expiry_and_the_models() -> None:
    directory = Directory()
    directory.add(record_of("a", expires_at_ms=NOW_MS + 5), NOW_MS)
    directory.add(record_of("a", sequence=8, models=(replace(OFFER, name="other"),)), NOW_MS)
    assert directory.expire(NOW_MS + 5) == []
    assert directory.models() == ["other"]
    assert directory.providers_of(OFFER.name) == []


def test_what_was_dropped_can_be_learnt_again() -> None:
    directory = Directory(records_max=1)
    assert directory.add(record_of("a", expires_at_ms=NOW_MS + 10), NOW_MS) is not None
    assert directory.add(record_of("b", expires_at_ms=NOW_MS + 20), NOW_MS) is not None
    directory.expire(NOW_MS + 20)
    assert directory.add(record_of("a", expires_at_ms=NOW_MS + 10), NOW_MS) is not None


def test_a_model_that_is_named_twice_is_indexed_once() -> None:
    directory = Directory()
    directory.add(record_of("a", models=(OFFER, OFFER)), NOW_MS)
    assert directory.providers_of(OFFER.name) == [A.node]
    directory.add(record_of("a", sequence=8, models=()), NOW_MS)
    assert directory.models() == []


def test_a_full_directory_drops_what_expires_first_be_it_the_new_one() -> None:
    directory = Directory(records_max=2)
    directory.add(record_of("a", expires_at_ms=NOW_MS + 30), NOW_MS)
    directory.add(record_of("b", expires_at_ms=NOW_MS + 20), NOW_MS)
    assert directory.add(record_of("c", expires_at_ms=NOW_MS + 10), NOW_MS) is None
    assert {e.heartbeat.node for e in directory.entries()} == {A.node, B.node}
    assert directory.add(record_of("d", expires_at_ms=NOW_MS + 40), NOW_MS) is not None
    assert {e.heartbeat.node for e in directory.entries()} == {A.node, signing_key("d").node}


def test_a_renewal_in_a_full_directory_drops_nobody() -> None:
    directory = Directory(records_max=2)
    directory.add(record_of("a"), NOW_MS)
    directory.add(record_of("b"), NOW_MS)
    assert directory.add(record_of("b", sequence=8), NOW_MS) is not None
    assert len(directory) == 2


def test_ranges_are_in_order_of_node_id() -> None:
    names = [str(number) for number in range(20)]
    directory = directory_of(*names)
    nodes = sorted(signing_key(name).node for name in names)
    assert [e.heartbeat.node for e in directory.entries()] == nodes
    assert [e.heartbeat.node for e in directory.range(FIRST_ID, 5)] == nodes[:5]
    assert [e.heartbeat.node for e in directory.range(nodes[4], 3)] == nodes[4:7]
    assert [e.heartbeat.node for e in directory.between(nodes[2], nodes[4], 10)] == nodes[2:5]
    assert [e.heartbeat.node for e in directory.between(FIRST_ID, LAST_ID, 100)] == nodes


def test_a_sample_holds_each_node_once_and_never_more_than_there_are() -> None:
    directory = directory_of("a", "b", "c")
    assert len(set(directory.sample(2, random.Random(1)))) == 2
    assert set(directory.sample(9, random.Random(1))) == {signing_key(name).node for name in "abc"}


# ---------------------------------------------------------------- the records of one message


def test_a_message_with_one_forgery_teaches_nothing() -> None:
    directory = Directory()
    good, bad = record_of("a"), Signed(record_of("b").body, bytes(64))
    for records in ([good, bad], [bad, good]):
        with pytest.raises(BadSignature):
            directory.add_all(records, NOW_MS)
    with pytest.raises(BadFrame):
        directory.add_all([good, Signed(b"\xc1", bytes(64))], NOW_MS)
    assert len(directory) == 0


def test_what_nobody_is_to_blame_for_is_skipped_and_the_rest_kept() -> None:
    directory = Directory()
    newer = sign_record(PROVIDER_BEAT, PROVIDER)
    unknown = Signed(newer.body.replace(b"\x01", b"\x02", 1), newer.signature)
    with pytest.raises(UnknownVersion):
        directory.add(unknown, NOW_MS)
    entries, skipped = directory.add_all([record_of("a", expires_at_ms=NOW_MS), unknown, record_of("b")], NOW_MS)
    assert [entry.heartbeat.node for entry in entries] == [B.node]
    assert len(skipped) == 2


def test_only_the_newest_of_several_records_of_a_node_in_one_message_stays() -> None:
    directory = Directory()
    entries, _ = directory.add_all([record_of("a", sequence=9), record_of("a", sequence=8)], NOW_MS)
    assert [entry.heartbeat.sequence for entry in entries] == [9]
    held = directory.get(NodeId(A.node))
    assert held is not None
    assert held.heartbeat.sequence == 9


PROVIDER_BEAT = heartbeat(node=PROVIDER.node)
