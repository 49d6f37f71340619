"""An aggregator passes paid orders on, which their payer has signed and not their sender."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import OpenStream
from protocol.envelope import sign_record
from protocol.events import LearnRecord
from protocol.ids import LeaseId
from protocol.messages import Fault, Forward, JobOpen
from tests.helpers_machines import ADDRESS, Bench, provider_record
from tests.helpers_records import signing_key
from tests.protocol.test_forwarding import AGGREGATOR, PROVIDER, stream_of
from tests.protocol.test_leases import BANK, PAYER, lease, paid_order

SENDER = signing_key("asker")


@pytest.fixture
def bench() -> Bench:
    """An aggregator connected to the provider and to the sender."""
    bench = Bench(config=AGGREGATOR)
    bench.feed(LearnRecord(provider_record("p", addresses=(ADDRESS,))))
    bench.connect(SENDER.node, inbound=True)
    bench.connect(PROVIDER.node)
    return bench


def opening(*, leased: dict[str, Any] | None = None, **ordered: Any) -> JobOpen:
    order = paid_order(provider=PROVIDER.node, **ordered)
    record = replace(lease(), **{"provider": PROVIDER.node, **(leased or {})})
    return JobOpen(sign_record(order, PAYER), b"s", sign_record(record, BANK))


def test_an_order_of_its_lease_s_payer_is_passed_on(bench: Bench) -> None:
    bench.hear(stream_of(bench, SENDER), Forward(PROVIDER.node), opening())
    assert bench.one(OpenStream).protocol == c.JOB_PROTOCOL


@pytest.mark.parametrize(
    "message",
    [
        opening(leased={"payer": SENDER.node}),
        opening(leased={"provider": SENDER.node}),
        opening(leased={"lease": LeaseId(bytes(32))}),
        replace(opening(), lease=None),
        replace(opening(), lease=replace(sign_record(lease(), BANK), signature=bytes(64))),
        opening(lease=None),
    ],
)
def test_an_order_whose_lease_is_not_its_payer_s_is_not(bench: Bench, message: JobOpen) -> None:
    stream = stream_of(bench, SENDER)
    bench.hear(stream, Forward(PROVIDER.node), message)
    assert bench.none_of(OpenStream)
    assert bench.heard(stream, Fault)
