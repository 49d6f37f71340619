"""What a refusal says: why, when to come again, and who else may do the job."""

from __future__ import annotations

import random
from typing import Any

import pytest

from protocol import constants as c
from protocol.codec import JOB_LIMITS, FrameReader, encode_value
from protocol.directory import Directory
from protocol.effects import Effect, FinishStream, Note, Send
from protocol.envelope import sign_record
from protocol.errors import Refusal, RemoteProtocolError
from protocol.handing_off import Unwanted
from protocol.ids import StreamId
from protocol.jobs import order_extensions
from protocol.messages import JobReject
from protocol.records import Signed
from protocol.refusing import Refusing
from tests.helpers_machines import ADDRESS, now, provider_record, record_of
from tests.helpers_records import NOW_MS, order, signing_key

STREAM = StreamId(2)
OWN = record_of("us")


def refusing(*names: str, connected: bool = False, **changes: Any) -> Refusing:
    """What a provider refuses with that knows these others."""
    directory = Directory()
    for name in names:
        directory.add(provider_record(name, **{"addresses": (ADDRESS,), **changes}), NOW_MS)
    return Refusing(
        signing_key("us").node,
        directory,
        random.Random(1),
        connected=lambda _: connected,
        addresses=lambda _: (),
        next_stream=lambda: StreamId(1),
        own_record=lambda: OWN,
    )


def unwanted(code: Refusal, text: str = "because", **changes: Any) -> Unwanted:
    record = order(**changes)
    return Unwanted(STREAM, record, sign_record(record, signing_key("asker")), (code, text), 1_500)


def said(effects: list[Effect]) -> JobReject:
    (send,) = [effect for effect in effects if isinstance(effect, Send)]
    assert FinishStream(STREAM) in effects
    (message,) = FrameReader(JOB_LIMITS).feed(send.data)
    assert isinstance(message, JobReject)
    return message


def test_a_refusal_names_its_order_and_says_why_and_when_to_come_again() -> None:
    effects = refusing().refuse(unwanted(Refusal.BUSY), None, now())
    answer = said(effects)
    assert (answer.job, answer.attempt) == (order().job, order().attempt)
    assert (answer.code, answer.text, answer.retry_after_ms) == (Refusal.BUSY, "because", 1_500)
    (note,) = [effect for effect in effects if isinstance(effect, Note)]
    assert (note.event, note.peer, note.detail) == ("job.refused", order().asker, "busy")


def test_a_long_explanation_is_cut_to_what_the_wire_holds() -> None:
    answer = said(refusing().refuse(unwanted(Refusal.BUSY, "x" * 1000), None, now()))
    assert len(answer.text) == c.TEXT_CHARACTERS_MAX


@pytest.mark.parametrize("code", [Refusal.BUSY, Refusal.DRAINING, Refusal.NO_MODEL, Refusal.ENGINE_UNAVAILABLE])
def test_others_that_can_be_dialled_are_named_but_neither_we_nor_the_asker(code: Refusal) -> None:
    machine = refusing("us", "asker", "b", "c", "d", "e", "f")
    answer = said(machine.refuse(unwanted(code), None, now()))
    others = [provider_record(name, addresses=(ADDRESS,)) for name in "bcdef"]
    assert len(answer.better) == c.BETTER_PEERS_MAX
    assert set(answer.better) <= set(others)
    assert not said(refusing("b", addresses=()).refuse(unwanted(code), None, now())).better


@pytest.mark.parametrize("code", [Refusal.NOT_FREE, Refusal.STALE, Refusal.CONTEXT_EXCEEDED])
def test_nobody_is_named_where_it_would_be_the_same_elsewhere(code: Refusal) -> None:
    assert not said(refusing("b").refuse(unwanted(code), None, now())).better


def test_a_seal_that_does_not_open_is_answered_with_our_newest_key() -> None:
    assert said(refusing("b").refuse(unwanted(Refusal.CANNOT_OPEN_SEAL), None, now())).better == (OWN,)


def test_who_agrees_waits_for_a_handoff() -> None:
    machine = refusing("b", connected=True)
    consent = order_extensions(may_hand_off=True, queue_wait_ms=0)
    effects = machine.refuse(unwanted(Refusal.BUSY, extensions=consent), None, now())
    assert FinishStream(STREAM) not in effects
    assert machine.handing_off.is_pending(STREAM)


def test_an_order_of_a_later_version_is_refused_by_name() -> None:
    fields = [2, order().job, 7, "whatever comes later"]
    answer = said(Refusing.refuse_unknown(STREAM, Signed(encode_value(fields), bytes(64)), "later"))
    assert (answer.job, answer.attempt, answer.code) == (order().job, 7, Refusal.UNSUPPORTED)
    with pytest.raises(RemoteProtocolError):
        Refusing.refuse_unknown(STREAM, Signed(encode_value([2, "no job"]), bytes(64)), "later")
