"""What a webhook's body says, and what it cannot make anybody believe."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.payments.status import PaymentStatus
from coordinator.payments.webhook_events import BadWebhook, WebhookEvent, parse_event

CONFIRMED = WebhookEvent("pay_1", PaymentStatus.CONFIRMED)


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "event",
    [
        body(id="evt_pay_1_1", type="payment.confirmed", data={"payment_id": "pay_1", "status": "confirmed"}),
        body(event="payment.confirmed", type="payment.confirmed", payment_id="pay_1", status="confirmed"),
        body(event="payment.confirmed", payment_id="pay_1", status="confirmed", data=None),
        body(payment_id="pay_1", invoice_id="pay_1", status="confirmed", unknown=[{"a": 1}], amount=1.5),
        b'{"invoice_id":"pay_1","status":"confirmed"}',
        # JavaScript writes small numbers so; nothing here reads it, so the hint is taken all the same.
        b'{"payment_id":"pay_1","status":"confirmed","platform_fee":1e-7}',
    ],
)
def test_every_published_shape_is_read(event: bytes) -> None:
    assert parse_event(event) == CONFIRMED


@pytest.mark.parametrize("kind", ["test.webhook", "escrow.funded", "business_collection.forwarded", ""])
def test_events_of_something_else_are_of_no_payment(kind: str) -> None:
    assert parse_event(body(type=kind, data={"payment_id": "pay_1", "status": "confirmed"})) == WebhookEvent(None, None)


@pytest.mark.parametrize("status", ["refunded", "paid", "", "CONFIRMED", "confirmed ", "c\u043enfirmed"])
def test_a_word_that_is_not_listed_is_no_status(status: str) -> None:
    assert parse_event(body(payment_id="pay_1", status=status)) == WebhookEvent("pay_1", None)


def test_no_status_is_still_a_payment_to_ask_about() -> None:
    assert parse_event(body(payment_id="pay_1")) == WebhookEvent("pay_1", None)


@pytest.mark.parametrize(
    "event",
    [
        b"",
        b"{",
        b"[]",
        b'"pay_1"',
        b"null",
        b'\xef\xbb\xbf{"payment_id":"pay_1"}',
        '{"payment_id":"pay_1"}'.encode("utf-16"),
        b'{"payment_id":"pay_1\xff"}',
        b'{"payment_id":"pay_1","x":NaN}',
        b'{"payment_id":"pay_1","x":-Infinity}',
        b'{"payment_id":"pay_1","status":"pending","status":"confirmed"}',
        b'{"payment_id":"pay_2","payment_id":"pay_1"}',
        b'{"data":{"payment_id":"pay_1","metadata":{"a":1,"a":2}}}',
        b'{"payment_id":"pay_1","invoice_id":"pay_2"}',
        b'{"payment_id":"pay_1","event":"payment.confirmed","type":"payment.expired"}',
        b'{"payment_id":1}',
        b'{"payment_id":["pay_1"]}',
        b'{"payment_id":"pay_1","status":1}',
        b'{"payment_id":"pay_1","status":["confirmed"]}',
        b'{"payment_id":"pay_1","status":{"confirmed":true}}',
        b'{"payment_id":""}',
        b'{"payment_id":"../businesses/x/payouts"}',
        b'{"payment_id":"pay_1\\n"}',
        b'{"payment_id":"\\ud800"}',
        b'{"payment_id":"' + b"p" * 129 + b'"}',
        b'{"data":[]}',
        b'{"data":"pay_1"}',
        b'{"payment_id":"pay_1","x":' + b"[" * 17 + b"]" * 17 + b"}",
        b'{"payment_id":"pay_1","x":' + b"[" * 20_000,
        b'{"a":' * 10_000,
        b'{"payment_id":"pay_1","x":"' + b"x" * 65_536 + b'"}',
        b'{"payment_id":"pay_1","x":"' + b'\\"' * 32_000,
    ],
    ids=lambda event: f"{len(event)} {event[:24]!r}{event[-12:]!r}",
)
def test_what_says_nothing_that_can_be_used_is_refused(event: bytes) -> None:
    with pytest.raises(BadWebhook):
        parse_event(event)


def test_brackets_in_texts_are_no_depth() -> None:
    assert parse_event(body(payment_id="pay_1", status="confirmed", note='[[\\"[' * 100)) == CONFIRMED


@given(st.binary(max_size=300))
def test_bytes_are_an_event_or_refused(event: bytes) -> None:
    with contextlib.suppress(BadWebhook):
        parse_event(event)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner))
VALUES = JSON | st.dictionaries(st.sampled_from(["payment_id", "status", "x"]), JSON)
NAMES = ["data", "type", "event", "payment_id", "invoice_id", "status", "x"]


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_objects_of_any_kind_are_an_event_or_refused(fields: dict[str, Any]) -> None:
    try:
        event = parse_event(json.dumps(fields).encode())
    except BadWebhook:
        return
    assert event.status is None or isinstance(event.payment_id, str)
