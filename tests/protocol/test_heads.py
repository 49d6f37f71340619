"""Heads of ledgers: kept, passed on once, and told where two contradict."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import Equivocation, Note
from protocol.envelope import sign_record
from protocol.errors import RemoteProtocolError
from protocol.heads import CHECKED_BURST, Heads
from protocol.ids import LeaseId
from protocol.messages import Heads as HeadsMessage
from protocol.money_records import Credited, LedgerHeadRecord
from protocol.records import Signed
from tests.helpers_claims import acknowledged
from tests.helpers_machines import now
from tests.helpers_records import ASKER, NOW_MS, signing_key

BANK = signing_key("bank")
OTHER = signing_key("another bank")


def head(entry: int, byte: int = 0, signer: Any = BANK, **changes: Any) -> Signed:
    record = LedgerHeadRecord(1, signer.node, entry, bytes([byte]) * 32, NOW_MS, ())
    return sign_record(replace(record, **changes), signer)


@pytest.fixture
def heads() -> Heads:
    made = Heads()
    made.use([BANK.node])
    return made


def test_what_is_new_is_kept_and_passed_on_once(heads: Heads) -> None:
    assert heads.take(ASKER.node, [head(5)], now()) == ([BANK.node], [])
    assert heads.take(ASKER.node, [head(5)], now()) == ([], [])
    assert heads.record(BANK.node) == head(5)
    assert heads.sequence(BANK.node) == 5
    assert heads.take(ASKER.node, [head(4)], now()) == ([], [])
    assert heads.record(BANK.node) == head(5)
    assert heads.take(ASKER.node, [head(6)], now()) == ([BANK.node], [])


def test_heads_of_others_are_passed_over(heads: Heads) -> None:
    assert heads.take(ASKER.node, [head(5, signer=OTHER)], now()) == ([], [])
    assert heads.record(OTHER.node) is None
    assert heads.sequence(OTHER.node) == -1


def test_two_heads_with_one_number_are_proof(heads: Heads) -> None:
    heads.take(ASKER.node, [head(5, 1)], now())
    news, effects = heads.take(ASKER.node, [head(5, 2)], now())
    assert news == []
    assert effects == [Equivocation(BANK.node, 5, head(5, 1), head(5, 2))]
    assert heads.take(ASKER.node, [head(5, 3)], now()) == ([], [])


def test_an_old_head_still_contradicts(heads: Heads) -> None:
    for entry in range(10):
        heads.take(None, [head(entry)], now())
    assert heads.take(None, [head(3, 9)], now())[1] == [Equivocation(BANK.node, 3, head(3), head(3, 9))]


@pytest.mark.parametrize("entry", [4, 5])
def test_the_answer_to_claims_is_a_head_for_each_of_them(heads: Heads, entry: int) -> None:
    first = Credited(LeaseId(bytes(32)), 9, 0, 4, b"w" * 32, NOW_MS)
    second = Credited(LeaseId(b"2" * 32), 9, 0, 5, b"x" * 32, NOW_MS)
    signed = acknowledged(BANK, first, second)
    assert heads.acknowledged(signed) == []
    assert heads.take(None, [head(entry)], now())[1] == [Equivocation(BANK.node, entry, signed, head(entry))]
    assert heads.acknowledged(Signed(signed.body, bytes(64))) == []
    assert heads.acknowledged(acknowledged(OTHER, first, second)) == []


def test_an_answer_that_contradicts_itself_is_proof_by_itself(heads: Heads) -> None:
    first = Credited(LeaseId(bytes(32)), 9, 0, 4, b"w" * 32, NOW_MS)
    signed = acknowledged(BANK, first, replace(first, lease=LeaseId(b"2" * 32), head=b"x" * 32))
    assert heads.acknowledged(signed) == [Equivocation(BANK.node, 4, signed, signed)]
    assert heads.acknowledged(signed) == [], "said once"


def test_a_bad_signature_is_its_sender_s_fault(heads: Heads) -> None:
    with pytest.raises(RemoteProtocolError):
        heads.take(ASKER.node, [Signed(head(5).body, bytes(64))], now())


def test_a_proof_is_not_hidden_behind_a_bad_signature(heads: Heads) -> None:
    """What one message holds is looked at as a whole: or somebody could have a node see the proof and not tell."""
    heads.take(ASKER.node, [head(5, 1)], now())
    with pytest.raises(RemoteProtocolError):
        heads.take(OTHER.node, [head(6), head(5, 2), Signed(head(7).body, bytes(64))], now())
    assert heads.sequence(BANK.node) == 5
    news, effects = heads.take(ASKER.node, [head(6), head(5, 2)], now())
    assert news == [BANK.node]
    assert effects == [Equivocation(BANK.node, 5, head(5, 1), head(5, 2))]


def test_a_head_from_the_future_is_noted_and_not_kept(heads: Heads) -> None:
    late = head(5, signed_at_ms=NOW_MS + c.CLOCK_SKEW_MS_MAX + 1)
    news, (note,) = heads.take(ASKER.node, [late], now())
    assert news == []
    assert isinstance(note, Note)
    assert heads.record(BANK.node) is None


def test_what_one_peer_has_checked_is_bounded(heads: Heads) -> None:
    for entry in range(CHECKED_BURST + 5):
        heads.take(ASKER.node, [head(entry)], now())
    assert heads.sequence(BANK.node) == CHECKED_BURST - 1
    heads.take(None, [head(100)], now())
    assert heads.sequence(BANK.node) == 100


def test_heads_are_packed_into_as_few_messages_as_hold_them(heads: Heads) -> None:
    records = [head(entry) for entry in range(c.HEADS_MAX + 1)]
    messages = heads.pack(records)
    assert [len(message.records) for message in messages if isinstance(message, HeadsMessage)] == [c.HEADS_MAX, 1]
    assert heads.concerns(BANK.node, None)
    assert not heads.is_repaired
