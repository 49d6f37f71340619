"""The directory keeps the newest good record of each node, no more than it may, and finds it by model and by id."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.details import Said, extensions_of
from protocol.directory import FIRST_ID, LAST_ID, Directory, Worth
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


def crowded(*names: str, **worths: Worth) -> Directory:
    """A full directory, and what the nodes are worth; the others are strangers."""
    directory = Directory(records_max=len(names), rng=random.Random(1))
    of_node = {signing_key(name).node: worth for name, worth in worths.items()}
    directory.rank_by(lambda entry: of_node.get(entry.heartbeat.node, Worth.STRANGER))
    for name in names:
        assert directory.add(record_of(name), NOW_MS) is not None
    assert directory.is_full
    return directory


def nodes_of(directory: Directory) -> set[NodeId]:
    return {entry.heartbeat.node for entry in directory.entries()}


def test_among_strangers_the_dice_say_who_makes_room() -> None:
    victims: set[NodeId] = set()
    for seed in range(40):
        directory = Directory(records_max=5, rng=random.Random(seed))
        for name in "abcde":
            directory.add(record_of(name), NOW_MS)
        before = nodes_of(directory)
        assert directory.add(record_of("newcomer"), NOW_MS) is not None
        victims |= before - nodes_of(directory)
        assert len(directory) == 5
    assert victims == {signing_key(name).node for name in "abcde"}


def test_a_stranger_displaces_nobody_of_more_worth() -> None:
    directory = crowded("a", "b", "c", a=Worth.INTERESTING, b=Worth.NEAR, c=Worth.OURSELVES)
    assert directory.add(record_of("stranger"), NOW_MS) is None
    assert nodes_of(directory) == {signing_key(name).node for name in "abc"}


def test_the_interesting_displace_strangers_first_and_then_each_other() -> None:
    newcomers = {f"n{number}": Worth.INTERESTING for number in range(6)}
    directory = crowded("a", "b", "c", "near", near=Worth.NEAR, **newcomers)
    for name in newcomers:
        assert directory.add(record_of(name), NOW_MS) is not None
    held = nodes_of(directory)
    assert signing_key("near").node in held
    assert held - {signing_key("near").node} <= {signing_key(name).node for name in newcomers}


def test_we_ourselves_never_make_room() -> None:
    names = [str(number) for number in range(4)]
    directory = crowded("me", me=Worth.OURSELVES, **dict.fromkeys(names, Worth.NEAR))
    for name in names:
        assert directory.add(record_of(name), NOW_MS) is None
    assert nodes_of(directory) == {signing_key("me").node}


def test_a_quarter_must_be_free_to_be_roomy() -> None:
    directory = Directory(records_max=4)
    seen = [(directory.is_roomy, directory.is_full)]
    for name in "abcd":
        directory.add(record_of(name), NOW_MS)
        seen.append((directory.is_roomy, directory.is_full))
    assert seen == [(True, False)] * 4 + [(False, True)]


def test_who_did_a_job_is_useful_and_the_list_is_bounded() -> None:
    directory = Directory()
    first = NodeId(bytes(32))
    directory.mark_useful(first)
    directory.mark_useful(A.node)
    for number in range(1, 511):
        directory.mark_useful(NodeId(number.to_bytes(32, "big")))
    assert directory.is_useful(first)
    directory.mark_useful(first)
    directory.mark_useful(B.node)
    assert directory.is_useful(first)
    assert not directory.is_useful(A.node)


def test_what_a_provider_says_of_its_load_outdates_its_record_until_it_says_no_more() -> None:
    directory = Directory()
    directory.add(record_of("a", load=3), NOW_MS)
    assert directory.load_of(A.node) == (3, 0)
    assert directory.load_of(B.node) == (0, 0)
    directory.set_load(A.node, 8, 1500)
    directory.set_load(B.node, 8, 1500)
    assert directory.load_of(A.node) == (8, 1500)
    assert directory.load_of(B.node) == (0, 0), "nothing is held of those who are not known"
    directory.add(record_of("a", sequence=8, load=1), NOW_MS)
    assert directory.load_of(A.node) == (8, 1500)
    directory.forget_load(A.node)
    assert directory.load_of(A.node) == (1, 0)


def test_a_load_goes_with_its_record() -> None:
    directory = Directory()
    directory.add(record_of("a", expires_at_ms=NOW_MS + 5), NOW_MS)
    directory.set_load(A.node, 8, 1500)
    directory.expire(NOW_MS + 5)
    directory.add(record_of("a", sequence=9, load=2), NOW_MS + 5)
    assert directory.load_of(A.node) == (2, 0)


def test_whom_a_dropped_model_concerned_hears_of_the_record_once_more() -> None:
    directory = Directory()
    directory.add(record_of("a"), NOW_MS)
    (entry,) = directory.add_all([record_of("a", sequence=8, models=(replace(OFFER, name="other"),))], NOW_MS)[0]
    assert entry.concerns(frozenset({OFFER.name}))
    assert entry.concerns(frozenset({"other"}))
    assert not entry.concerns(frozenset({"third"}))
    assert entry.concerns(None)
    (entry,) = directory.add_all([record_of("a", sequence=9, models=(replace(OFFER, name="other"),))], NOW_MS)[0]
    assert not entry.concerns(frozenset({OFFER.name}))


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


def test_what_is_not_admitted_costs_no_signature_check_and_blames_nobody() -> None:
    directory = directory_of("a")
    asked: list[tuple[NodeId, bool]] = []

    def admits(node: NodeId, is_new: bool) -> bool:
        asked.append((node, is_new))
        return False

    forged = Signed(record_of("b").body, bytes(64))
    assert directory.check_all([forged, record_of("a", sequence=8), record_of("a")], NOW_MS, admits) == ([], [])
    assert asked == [(B.node, True), (A.node, False)]


def test_what_is_checked_is_not_yet_kept() -> None:
    directory = Directory()
    entries, _ = directory.check_all([record_of("a")], NOW_MS)
    assert len(directory) == 0
    assert directory.keep_all(entries) == entries
    assert directory.get(A.node) == entries[0]


# ---------------------------------------------------------------- aliases


def called(*aliases: str, name: str = OFFER.name, **changes: Any) -> Signed:
    """A record of a provider that says by which other names its model is found."""
    models = (replace(OFFER, name=name),)
    return record_of("a", models=models, extensions=extensions_of(models, {name: Said(aliases=aliases)}), **changes)


def test_a_provider_is_found_by_its_aliases_as_long_as_it_has_them() -> None:
    directory = directory_of("b")
    directory.add(called("tiny", "little"), NOW_MS)
    assert directory.providers_of("tiny") == directory.providers_of("little") == [A.node]
    assert set(directory.providers_of(OFFER.name)) == {A.node, B.node}
    directory.add(called("small", "tiny", sequence=8), NOW_MS)
    assert directory.providers_of("little") == []
    assert directory.providers_of("tiny") == directory.providers_of("small") == [A.node]
    directory.add(called("little", name="tiny", sequence=9), NOW_MS)  # what was an alias is a name
    assert directory.providers_of("tiny") == [A.node]
    assert directory.expire(NOW_MS + 3_600_000)
    assert directory.models() == []


def test_whom_a_record_concerns_is_a_matter_of_names_and_not_of_aliases() -> None:
    directory = Directory()
    for sequence, aliases in enumerate((("tiny",), ())):
        directory.add(called(*aliases, sequence=sequence), NOW_MS)
        entry = directory.get(A.node)
        assert entry is not None
        assert entry.concerns(frozenset({OFFER.name}))
        assert not entry.concerns(frozenset({"tiny"}))
        assert entry.formerly == frozenset()
