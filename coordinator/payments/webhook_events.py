"""What a webhook says, read with the same distrust as any other body: which payment, and which status it claims.

Two shapes are published: `{"id", "type", "data": {"payment_id", "status", ...}}` and the same fields flat, with `event`
beside `type`. The older contract has `invoice_id`. The event's own id is not read: it carries the time of the attempt,
so a repetition has another one, and it must never serve to tell repetitions apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from coordinator.payments.bounded_json import BadJson, convert, decode_object
from coordinator.payments.status import PaymentStatus, payment_status
from coordinator.payments.webhook import BODY_BYTES_MAX

# Ids go into paths of requests, so nothing else may be in them.
GATEWAY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
PAYMENT_PREFIX: Final = "payment."


class BadWebhook(ValueError):
    """A signed body that says nothing we could use. The message quotes none of it."""


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """One claim of the gateway. `payment_id` is None where the event is about something else than a payment.

    `status` is None for a word that is not on the list; the payment is worth asking about all the same.
    """

    payment_id: str | None
    status: PaymentStatus | None


class _Fields(msgspec.Struct, frozen=True):
    event: str | None = None
    type: str | None = None
    payment_id: str | None = None
    invoice_id: str | None = None
    status: str | None = None


def parse_event(body: bytes) -> WebhookEvent:
    """What a verified body says. Raises BadWebhook."""
    try:
        outer = decode_object(body, BODY_BYTES_MAX)
        data: Any = outer.get("data")
        top = convert(outer, _Fields)
        fields = top if data is None else convert(data, _Fields)
        kind = _one(top.event, top.type)
        if kind is not None and not kind.startswith(PAYMENT_PREFIX):
            return WebhookEvent(None, None)
        payment_id = _one(fields.payment_id, fields.invoice_id)
    except BadJson as error:
        raise BadWebhook(str(error)) from None
    if payment_id is None or GATEWAY_ID.fullmatch(payment_id) is None:
        raise BadWebhook("no payment id")
    return WebhookEvent(payment_id, payment_status(fields.status or ""))


def _one(*values: str | None) -> str | None:
    """What all names of one field say that are there at all. Raises BadJson when they differ."""
    said = {value for value in values if value is not None}
    if len(said) > 1:
        raise BadJson("two names of one field say different things")
    return next(iter(said), None)
