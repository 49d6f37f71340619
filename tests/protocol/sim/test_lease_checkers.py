"""Every judge of paid jobs can find somebody guilty, and an honest course of things guiltless."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol.codec import encode_message
from protocol.effects import ContinueEngine, FinishStream, RunEngine, Send, StoreVoucher
from protocol.envelope import sign_record
from protocol.events import MarkStored
from protocol.ids import RunId, StreamId
from protocol.jobs import order_hash, running_hash
from protocol.messages import Chunk, JobAccept, JobOpen, Receipt, Voucher
from protocol.records import JobRequest, Kind, Outcome
from protocol.sim.checkers import Checker, Seen
from protocol.sim.lease_checkers import CoSigned, Delivered, PaidInFull, Prepaid, Spent, Stored, job_checkers
from tests.helpers_machines import chat
from tests.helpers_records import ASKER, JOB, PROVIDER, receipt
from tests.protocol.test_leases import LEASE, PAYER, accepted, paid_order, voucher

ASKED, SERVED = StreamId(1), StreamId(2)
ORDER = paid_order()
SIGNED_ORDER = sign_record(ORDER, PAYER)
OPEN = Send(ASKED, encode_message(JobOpen(SIGNED_ORDER, b"x")))


def judge(checker: Checker, *items: Any) -> str:
    """Show the items in order, each as what its side did."""
    for item in items:
        is_providers = isinstance(item, (StoreVoucher, RunEngine, ContinueEngine)) or is_served(item)
        seen = Seen(1.0, 0, PROVIDER.node if is_providers else ASKER.node, 0, item)
        if callback := checker.interests().get(type(item)):
            callback(seen)
    return "\n".join(checker.violations)


def is_served(item: Any) -> bool:
    """Whether it is on the provider's end of the stream."""
    return getattr(item, "stream", ASKED) == SERVED


def accept(**changes: Any) -> Send:
    message = JobAccept(sign_record(accepted(**changes), PROVIDER))
    return Send(SERVED, encode_message(message))


def chunk(owed_uusd: int, number: int = 1) -> Send:
    message = Chunk(JOB, 1, number, number, owed_uusd, bytes(80))
    return Send(SERVED, encode_message(message))


def ends(owed_uusd: int, **changes: Any) -> Send:
    record = receipt(lease=LEASE, owed_uusd=owed_uusd, paid_before_uusd=0, asker=PAYER.node, **changes)
    message = Receipt(sign_record(record, PROVIDER))
    return Send(SERVED, encode_message(message))


def signs(paid_uusd: int, **changes: Any) -> Send:
    return Send(ASKED, encode_message(Voucher(voucher(paid_uusd, **changes))))


def keeps(paid_uusd: int) -> StoreVoucher:
    return StoreVoucher(LEASE, voucher(0), voucher(paid_uusd), None, paid_uusd)


def test_each_judge_is_called() -> None:
    assert [type(judge) for judge in job_checkers()] == [Stored, Delivered, Spent, Prepaid, PaidInFull, CoSigned]


def test_nothing_is_signed_above_the_mark() -> None:
    assert judge(Stored(), MarkStored(LEASE, 17), signs(17)) == ""
    assert "17 signed, and 0 on disk" in judge(Stored(), signs(17))
    assert "18 signed, and 17 on disk" in judge(Stored(), MarkStored(LEASE, 17), signs(18))


def test_no_more_is_signed_on_a_lease_than_was_delivered() -> None:
    assert judge(Delivered(), OPEN, accept(), signs(17), chunk(30), signs(30)) == ""
    assert "31 signed" in judge(Delivered(), OPEN, accept(), chunk(30), signs(31))
    assert "1017 signed" in judge(Delivered(), OPEN, accept(paid_before_uusd=1_000), signs(1_017))


def test_a_job_costs_no_more_than_its_user_allowed() -> None:
    asked = replace(chat(), job=JOB, spend_uusd_max=30)
    assert judge(Spent(), asked, OPEN, accept(paid_before_uusd=100), signs(130)) == ""
    assert "31 signed" in judge(Spent(), asked, OPEN, accept(paid_before_uusd=100), signs(131))
    again = Send(ASKED, encode_message(JobOpen(sign_record(paid_order(attempt=2), PAYER), b"x")))
    twice = (asked, OPEN, accept(), signs(17), again, accept(attempt=2), signs(17, attempt=2))
    assert "34 signed" in judge(Spent(), *twice)


def engine_run(*, holds: bool) -> RunEngine:
    return RunEngine(RunId(1), Kind.CHAT, ORDER.model, JobRequest(), ORDER.sampling, 100, 100, holds)


def test_a_prompt_is_read_when_it_is_paid() -> None:
    held, go_on = engine_run(holds=True), ContinueEngine(RunId(1))
    assert judge(Prepaid(), OPEN, held, accept(), keeps(17), go_on) == ""
    assert "before all of it" in judge(Prepaid(), OPEN, held, accept(), keeps(16), go_on)
    assert "before it is paid" in judge(Prepaid(), OPEN, engine_run(holds=False))
    assert judge(Prepaid(), engine_run(holds=False)) == ""


def test_whoever_has_the_receipt_has_signed_for_it() -> None:
    course = (MarkStored(LEASE, 100), OPEN, accept(), chunk(30), ends(30))
    assert judge(PaidInFull(), *course, signs(30), FinishStream(ASKED)) == ""
    assert "29 signed and 30 received" in judge(PaidInFull(), *course, signs(29), FinishStream(ASKED))
    assert judge(PaidInFull(), *course, signs(29)) == ""
    assert judge(PaidInFull(), *course[1:], FinishStream(ASKED)) == ""


@pytest.mark.parametrize("outcome", [Outcome.STOP, Outcome.LENGTH, Outcome.CANCELLED])
def test_an_answer_that_was_signed_otherwise_is_not_completed(outcome: Outcome) -> None:
    hash_ = running_hash(order_hash(SIGNED_ORDER.body), 1, 1, 19, bytes(80))
    course = (OPEN, accept(), chunk(19))
    end = ends(19, outcome=outcome)
    good = {"chunks": 1, "running_hash": hash_, "output_tokens": 1}
    assert judge(CoSigned(), *course, signs(19, **good), end) == ""
    for wrong in ({"running_hash": bytes(32)}, {"output_tokens": 2}):
        found = judge(CoSigned(), *course, signs(19, **good | wrong), end)
        assert ("signed otherwise" in found) is (outcome is not Outcome.CANCELLED)
