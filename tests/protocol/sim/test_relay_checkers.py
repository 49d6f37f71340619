"""The judges of what goes by way of others see what they are there for."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import encode_message
from protocol.effects import FinishStream, OpenStream, RunEngine, Send
from protocol.envelope import sign_record
from protocol.events import BytesReceived, EngineFinished, SetOffer, StreamFinished, StreamOpened
from protocol.ids import JobId, RunId, StreamId
from protocol.jobs import order_extensions
from protocol.messages import Forward, JobOpen, JobReject, Progress, Reserve, Reserved
from protocol.records import Outcome, ReservationRecord
from protocol.sim.checkers import Checker, Crashed, Ending, Seen
from protocol.sim.relay_checkers import Handoffs, PassedOn, Slots
from tests.helpers_machines import chat, offer
from tests.helpers_records import JOB, NOW_MS, OFFER, order, signing_key

ASKER, PROVIDER, OTHER = signing_key("asker"), signing_key("provider"), signing_key("other")
AGGREGATOR = signing_key("aggregator").node
ASK = chat()


def judge(checker: Checker, *items: Any, node: bytes = PROVIDER.node) -> list[str]:
    for item in items:
        checker.interests()[type(item)](Seen(1.0, 0, node, 0, item))  # type: ignore[arg-type]  # plain bytes
    checker.finish(Ending([], 0, 0))
    return checker.violations


def say(message: Any) -> Send:
    return Send(StreamId(2), encode_message(message))


# ---------------------------------------------------------------- slots


def run(number: int) -> RunEngine:
    return RunEngine(RunId(number), ASK.kind, OFFER.name, ASK.request, ASK.sampling, 1, 1)


def test_more_runs_than_slots_are_seen() -> None:
    assert OFFER.concurrency == 2
    full = (SetOffer(offer()), run(1), run(2))
    assert judge(Slots(), *full) == []
    assert judge(Slots(), *full, EngineFinished(RunId(1), Outcome.STOP, 0), run(3)) == []
    assert judge(Slots(), *full, Crashed(), run(1), run(2)) == []
    assert len(judge(Slots(), *full, run(3))) == 1


# ---------------------------------------------------------------- handoffs


def reserve(**changes: Any) -> Send:
    fields = {"extensions": order_extensions(may_hand_off=True, queue_wait_ms=0), **changes}
    return say(Reserve(sign_record(order(**fields), ASKER)))


def test_an_order_that_may_not_be_shown_is_seen() -> None:
    assert judge(Handoffs(), reserve()) == []
    assert len(judge(Handoffs(), reserve(extensions=()))) == 1
    assert len(judge(Handoffs(), reserve(provider=OTHER.node))) == 1


def test_a_slot_that_is_asked_for_twice_or_by_others_is_seen() -> None:
    record = ReservationRecord(
        *(1, JobId(b"\x07" * 16), PROVIDER.node, ASKER.node, JOB, OFFER.name, NOW_MS, NOW_MS + 10_000, ())
    )
    held = say(Reserved(JOB, sign_record(record, PROVIDER), 0))

    def opening(**changes: Any) -> Send:
        fields = {"reservation": record.reservation, **changes}
        return say(JobOpen(sign_record(order(**fields), ASKER), b""))

    refused = say(JobReject(JOB, 1, 1, 0, "", (), sign_record(record, PROVIDER)))
    checker = Handoffs()
    assert judge(checker, held, refused, opening(), node=ASKER.node) == []
    expected = {"held": 1, "refusals": 1, "refusals with a slot": 1, "orders with a slot": 1}
    assert dict(checker.counts) == expected
    assert len(judge(Handoffs(), held, opening(), opening(attempt=2), node=ASKER.node)) == 1
    assert len(judge(Handoffs(), held, opening(job=JobId(bytes(16))), node=ASKER.node)) == 1
    assert len(judge(Handoffs(), opening(), node=ASKER.node)) == 1
    assert judge(Handoffs(), opening(), node=AGGREGATOR) == []  # it only passes it on


# ---------------------------------------------------------------- passing on

ORDER = encode_message(JobOpen(sign_record(order(), ASKER), b"x"))
FORWARD = encode_message(Forward(PROVIDER.node))
MORE = encode_message(Progress(JOB, 1, 0, 0))
IN, OUT = StreamId(2), StreamId(1)
OPENED = (
    StreamOpened(IN, ASKER.node, c.JOB_PROTOCOL),
    BytesReceived(IN, FORWARD + ORDER),
    OpenStream(OUT, PROVIDER.node, c.JOB_PROTOCOL),
)
HONEST = (
    *OPENED,
    Send(OUT, ORDER),
    BytesReceived(OUT, MORE),
    Send(IN, MORE),
    StreamFinished(OUT),
    FinishStream(IN),
    StreamFinished(IN),
    FinishStream(OUT),
)


def passed_on() -> PassedOn:
    return PassedOn(lambda: frozenset({AGGREGATOR}))


def test_an_honest_aggregator_is_not_blamed() -> None:
    checker = passed_on()
    assert judge(checker, *HONEST, node=AGGREGATOR) == []
    assert (checker.jobs, checker.bytes) == (1, len(ORDER) + len(MORE))
    replayed = [replace(item, stream=StreamId(item.stream + 2)) for item in HONEST]
    assert judge(passed_on(), *HONEST, *replayed, node=AGGREGATOR) == []


@pytest.mark.parametrize(
    "lies",
    [
        (Send(OUT, ORDER + b"more"),),
        (Send(OUT, ORDER), BytesReceived(OUT, MORE), Send(IN, MORE[:-1] + b"\x09")),
        (Send(OUT, ORDER), BytesReceived(OUT, MORE), Send(IN, MORE), FinishStream(IN)),
        (Send(OUT, ORDER), BytesReceived(OUT, MORE), StreamFinished(OUT), FinishStream(IN)),
        (Send(OUT, ORDER), FinishStream(OUT)),
        (Send(OUT, encode_message(JobOpen(sign_record(order(attempt=9), ASKER), b"x"))),),
    ],
    ids=["more", "changed", "an end that was none", "an end too early", "an end of the asker", "made up"],
)
def test_what_an_aggregator_does_wrong_is_seen(lies: tuple[Any, ...]) -> None:
    assert len(judge(passed_on(), *OPENED, *lies, node=AGGREGATOR)) == 1
