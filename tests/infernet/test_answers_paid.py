"""infernet/answers.py: what may be paid goes into the question, and every voucher that was signed is told in order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from infernet.answers import AnswerEvent, Answers, Payment
from protocol import codec
from protocol.effects import JobFailed, JobText
from protocol.errors import Refusal
from protocol.events import Ask, StopAsking
from protocol.leases import PayerSide
from protocol.money_records import LeaseRecord
from tests.helpers_money_store import CAP_UUSD, lease, lease_of, request_of
from tests.helpers_node import question
from tests.helpers_records import ASKER, PROVIDER

pytestmark = pytest.mark.anyio


class Driver:
    """Double of a driver: it keeps what it is told, and its peer has the leases that the test gives it."""

    def __init__(self) -> None:
        self.commands: list[Any] = []
        self.posted: list[Any] = []
        self.sides: list[PayerSide] = []
        self.peer = SimpleNamespace(purse=SimpleNamespace(sides=lambda: self.sides))

    def command(self, event: Ask) -> None:
        self.commands.append(event)

    def post(self, event: StopAsking) -> None:
        self.posted.append(event)


def side(number: int = 1, **changes: Any) -> PayerSide:
    signed = lease(number)
    record = codec.decode_record(signed.body, LeaseRecord)
    made = PayerSide(record, signed, ASKER.payer(request_of(number)))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


async def test_what_an_answer_may_cost_goes_into_the_question() -> None:
    driver = Driver()
    async with Answers(driver).ask(question(spend_uusd_max=70)):  # type: ignore[arg-type]
        assert driver.commands[0].spend_uusd_max == 70
    async with Answers(driver).ask(question()):  # type: ignore[arg-type]
        assert driver.commands[1].spend_uusd_max == 0


async def test_each_voucher_is_counted_and_the_cost_is_that_of_all_who_answered() -> None:
    driver = Driver()
    answers = Answers(driver)  # type: ignore[arg-type]
    async with answers.ask(question(spend_uusd_max=1000)) as events:
        job = driver.commands[0].job
        text = JobText(job, "a", 1)
        # A lease that has paid 100 for earlier answers, and another one that pays for somebody else's.
        first = side(1, sequence=41, signed_uusd=117, base_uusd=100, voucher_job=(job, 1))
        driver.sides = [side(2, sequence=9, signed_uusd=5, voucher_job=(b"x" * 16, 1)), first]
        answers.deliver(text)
        answers.deliver(text)
        first.sequence, first.signed_uusd = 43, 190
        answers.deliver(text)
        # Another provider goes on.
        driver.sides.append(side(3, sequence=1, signed_uusd=10, base_uusd=0, voucher_job=(job, 2)))
        answers.deliver(JobFailed(job, Refusal.PEER_LOST, "gone"))
        told: list[AnswerEvent] = [event async for event in events]
    paid = [event for event in told if isinstance(event, Payment)]
    assert [(event.lease, event.number, event.paid_uusd, event.signed_uusd) for event in paid] == [
        (lease_of(1), 1, 17, 117),
        (lease_of(1), 3, 90, 190),
        (lease_of(3), 4, 100, 10),
    ]
    assert {(event.provider, event.cap_uusd) for event in paid} == {(PROVIDER.node, CAP_UUSD)}
    assert isinstance(told[0], Payment), "first that it was paid, then what came of it"
    assert isinstance(told[-1], JobFailed)


async def test_nothing_is_looked_up_for_an_answer_that_costs_nothing() -> None:
    driver = Driver()
    answers = Answers(driver)  # type: ignore[arg-type]
    async with answers.ask(question()) as events:
        job = driver.commands[0].job
        driver.sides = [side(1, sequence=1, signed_uusd=17, voucher_job=(job, 1))]
        answers.deliver(structs.replace(JobFailed(job, Refusal.PEER_LOST, "gone"), text="away"))
        assert [type(event) async for event in events] == [JobFailed]
