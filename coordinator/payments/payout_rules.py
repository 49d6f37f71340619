"""What becomes of a payout. Pure: a row and what was heard in, a row and a command for the ledger out.

    queued -> sending -> sent -> confirmed          it has left for good
                 |         `---> failed             the gateway says for certain that it has not: the money comes back
                 `-> unknown                        nobody knows; it is looked for in the gateway's own list

The gateway takes no key that would make a second request harmless, so what is unknown is never sent again blindly:
our number of the payout travels in its metadata, and only three complete lists without it, over half an hour, make it
one that was never sent. Above a limit even then a person decides. Several rows with one number can exist, because a
person may let the gateway try a failed one once more; more than one that has not failed is money sent twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from coordinator.payments.amounts import BadAmount, RawAmount
from coordinator.payments.gateway import GatewayRefused, Payout, PayoutListing, PayoutStatus
from protocol.formats.coins import Pair, find_pair
from protocol.ids import NodeId
from protocol.ledger import AMOUNT_MAX, ReturnPayout, SettlePayout

MINUTE_MS: Final = 60_000
ABSENCES_MIN: Final = 3
ABSENT_MS_MIN: Final = 30 * MINUTE_MS
LIST_PAUSE_MS: Final = 10 * MINUTE_MS
# The longer one waits for a person, the more pages lie before it in the list.
PERSON_PAUSE_MS: Final = 60 * MINUTE_MS
SENT_PAUSE_MS: Final = 2 * MINUTE_MS
# The gateway sends within one request, and a chain may be slow.
SENDING_MS_MAX: Final = 6 * 60 * MINUTE_MS
REFUSED_PAUSE_MS: Final = 5 * MINUTE_MS
ATTEMPTS_MAX: Final = 3
# The gateway's clock is not ours.
LIST_MARGIN_MS: Final = 60 * MINUTE_MS
# Refusals of the payout itself; every other is about keys, limits or the weather, and passes.
_REFUSED_FOR_GOOD: Final = "bad_request"


class PayoutState(StrEnum):
    """How far a payout has come."""

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Intent:
    """A row. `absences`: complete lists without it since it became unknown, the first at `absent_since_ms`."""

    intent: bytes
    node: NodeId
    request: str
    amount_uusd: int
    code: str
    network: str
    address: str
    status: PayoutState
    attempts: int = 0
    gateway_id: str | None = None
    tx_hash: str | None = None
    amount_raw: str | None = None
    created_ms: int = 0
    tried_ms: int | None = None
    next_ms: int = 0
    ended_ms: int | None = None
    absences: int = 0
    absent_since_ms: int | None = None
    needs_person: bool = False
    reason: str = ""

    @property
    def pair(self) -> Pair:
        """The coin and its network."""
        return find_pair(self.code, self.network)


@dataclass(frozen=True, slots=True)
class Step:
    """The row afterwards, what the ledger is to do, and why nothing may be sent any more until somebody has looked."""

    intent: Intent
    command: SettlePayout | ReturnPayout | None = None
    freeze: str | None = None


def begin(intent: Intent, now_ms: int) -> Intent:
    """From now on it may have been sent. To be on disk before it is."""
    assert intent.status is PayoutState.QUEUED
    return replace(
        intent,
        status=PayoutState.SENDING,
        attempts=intent.attempts + 1,
        tried_ms=now_ms,
        absences=0,
        absent_since_ms=None,
        reason="",
    )


def answered(intent: Intent, payout: Payout, now_ms: int) -> Step:
    """The gateway answers, and says how it stands."""
    return _told(intent, payout, now_ms)


def refused(intent: Intent, error: GatewayRefused, now_ms: int) -> Step:
    """It has certainly not been sent: the money comes back, or it is tried again where that may help."""
    if error.reason == _REFUSED_FOR_GOOD:
        return _failed(intent, f"the gateway refuses it: {error.detail or error.reason}", now_ms)
    pause_ms = max(REFUSED_PAUSE_MS, 1000 * (error.retry_after_s or 0))
    after = replace(intent, status=PayoutState.QUEUED, next_ms=now_ms + pause_ms, reason=error.reason)
    return Step(replace(after, attempts=intent.attempts - 1))  # it was none


def impossible(intent: Intent, why: str, now_ms: int) -> Step:
    """Our own client refuses to send it."""
    return _failed(intent, why, now_ms)


def unclear(intent: Intent, reason: str, now_ms: int) -> Step:
    """No answer, half an answer, a crash, a fault of the server: it may have been sent."""
    # SPEC 06: The coordinator MUST NOT send a payout again whose fate it does not know: it looks for the payout's
    #   number in the gateway's own list.
    return Step(replace(intent, status=PayoutState.UNKNOWN, next_ms=now_ms, reason=reason))


def listed(intent: Intent, listing: PayoutListing, now_ms: int, resend_uusd_max: int) -> Step:
    """What the gateway's list says of a payout that was sent, or may have been. The list began after the attempt."""
    number = intent.intent.hex()
    rows = [row for row in listing.payouts if row.intent_id == number or row.gateway_id == intent.gateway_id]
    if any(difference(intent, row) for row in rows):
        return _for_person(intent, "the gateway lists it with another amount, coin or address", now_ms, freeze=True)
    going = [row for row in rows if row.status is not PayoutStatus.FAILED]
    if len(going) > 1:
        return _for_person(intent, "the gateway lists it more than once", now_ms, freeze=True)
    if going:
        return _told(intent, going[0], now_ms)
    if not listing.complete:
        return Step(replace(intent, next_ms=now_ms + LIST_PAUSE_MS))
    if rows:
        return _failed(replace(intent, gateway_id=rows[-1].gateway_id), "the gateway could not send it", now_ms)
    if intent.gateway_id is not None:
        return _for_person(intent, "the gateway had it, and lists it no more", now_ms, freeze=True)
    return _absent(intent, now_ms, resend_uusd_max)


def _absent(intent: Intent, now_ms: int, resend_uusd_max: int) -> Step:
    """A complete list without it."""
    since_ms = now_ms if intent.absent_since_ms is None else intent.absent_since_ms
    after = replace(intent, absences=intent.absences + 1, absent_since_ms=since_ms, next_ms=now_ms + LIST_PAUSE_MS)
    # SPEC 07: The coordinator MUST NOT send a payout again before three complete lists over 30 minutes were without it.
    if after.absences < ABSENCES_MIN or now_ms - since_ms < ABSENT_MS_MIN:
        return Step(after)
    if intent.amount_uusd > resend_uusd_max or intent.attempts >= ATTEMPTS_MAX:
        return _for_person(after, "the gateway does not list it; send it again, or give the money back", now_ms)
    return Step(replace(after, status=PayoutState.QUEUED, next_ms=now_ms, reason="it was never sent"))


def _told(intent: Intent, row: Payout, now_ms: int) -> Step:
    after = replace(
        intent,
        gateway_id=row.gateway_id,
        tx_hash=row.tx_hash or intent.tx_hash,
        amount_raw=row.amount_raw or intent.amount_raw,
    )
    match row.status:
        case PayoutStatus.COMPLETED:
            return confirmed(after, now_ms)
        case PayoutStatus.FAILED:
            return _failed(after, "the gateway could not send it", now_ms)
        case PayoutStatus.PENDING | PayoutStatus.PROCESSING:
            if now_ms - (intent.tried_ms or intent.created_ms) > SENDING_MS_MAX:
                # Its program ended in the middle of it, it seems. Nobody else would ever look.
                return _for_person(after, "the gateway has been sending it for hours", now_ms)
            sent = replace(after, status=PayoutState.SENT, next_ms=now_ms + SENT_PAUSE_MS, reason="")
            return Step(sent)
    # Indeterminate, or a word that we do not know: it is there, and nobody says whether it left.
    return Step(
        replace(
            after,
            status=PayoutState.UNKNOWN,
            next_ms=now_ms + LIST_PAUSE_MS,
            needs_person=True,
            reason=f"the gateway does not know: {row.status_text}",
        )
    )


def confirmed(intent: Intent, now_ms: int) -> Step:
    """It has left."""
    after = replace(intent, status=PayoutState.CONFIRMED, ended_ms=now_ms, needs_person=False, reason="")
    return Step(after, SettlePayout(intent.intent, intent.pair.asset, _units(intent)))


def _failed(intent: Intent, reason: str, now_ms: int) -> Step:
    after = replace(intent, status=PayoutState.FAILED, ended_ms=now_ms, needs_person=False, reason=reason)
    return Step(after, ReturnPayout(intent.intent))


def given_back(intent: Intent, now_ms: int) -> Step:
    """A person is sure that it was not sent and never will be."""
    return _failed(intent, "given back by a person", now_ms)


def sent_again(intent: Intent, now_ms: int) -> Step:
    """A person is sure that it was not sent, and wants it to be."""
    after = replace(
        intent, status=PayoutState.QUEUED, gateway_id=None, next_ms=now_ms, needs_person=False, reason="sent again"
    )
    return Step(after)


def number_of_another(intent: Intent, now_ms: int) -> Step:
    """The gateway says of it what it has said of another payout: whichever of them it is about, one is missing."""
    return _for_person(intent, "the gateway gives it the number of another payout", now_ms, freeze=True)


def resolved_before(intent: Intent, now_ms: int) -> Step:
    """The ledger has another end of it than the one that was heard of now."""
    return _for_person(intent, "the ledger has it as ended, and otherwise: was a backup restored?", now_ms, freeze=True)


def ended_before(intent: Intent, status: PayoutState, now_ms: int) -> Intent:
    """The ledger had its end already, and a person says the same."""
    return replace(intent, status=status, ended_ms=now_ms, needs_person=False, reason="as the ledger says")


def _for_person(intent: Intent, reason: str, now_ms: int, *, freeze: bool = False) -> Step:
    status = PayoutState.UNKNOWN
    after = replace(intent, status=status, needs_person=True, reason=reason, next_ms=now_ms + PERSON_PAUSE_MS)
    return Step(after, freeze=f"payout {intent.intent.hex()}: {reason}" if freeze else None)


def _units(intent: Intent) -> int:
    """How many ledger units of the coin left, as far as the gateway says it in a form that is exact; else 0."""
    try:
        return min(AMOUNT_MAX, RawAmount(intent.amount_raw or "").units(intent.pair.ledger_decimals))
    except BadAmount:
        return 0


def difference(intent: Intent, row: Payout) -> bool:
    """Whether a row of the gateway is another payout than was ordered under its number."""
    wanted = (intent.amount_uusd, intent.code, intent.network, intent.address)
    return (row.amount_uusd, row.code, row.network, row.address) != wanted


def strays(listing: PayoutListing, intents: Mapping[str, Intent], since_ms: int) -> dict[str, str]:
    """What the gateway lists since an instant and the ledger has not, or the other way round: gateway id -> why.

    `intents` are ours by their numbers: all that the list names, and all of that time that the gateway has taken.
    """
    found: dict[str, str] = {}
    going: dict[str, str] = {}
    for row in listing.payouts:
        if row.status is PayoutStatus.FAILED or (row.created_at_ms is not None and row.created_at_ms < since_ms):
            continue
        intent = intents.get(row.intent_id or "")
        if intent is None or not intent.attempts:
            found[row.gateway_id] = "a payout that nobody here has ordered"
        elif difference(intent, row):
            found[row.gateway_id] = "a payout of another amount, coin or address than was ordered"
        elif intent.status is PayoutState.FAILED:
            found[row.gateway_id] = "a payout that was sent after its money had been given back"
        elif row.intent_id in going or intent.gateway_id not in (None, row.gateway_id):
            found[row.gateway_id] = "a payout that was sent twice"
        going[row.intent_id or ""] = row.gateway_id
    if listing.complete:
        there = {row.gateway_id for row in listing.payouts}
        for intent in intents.values():
            is_taken = intent.status in (PayoutState.CONFIRMED, PayoutState.SENT) and intent.gateway_id is not None
            if is_taken and intent.created_ms >= since_ms and intent.gateway_id not in there:
                found[intent.gateway_id or ""] = "a payout that was sent, and that the gateway lists no more"
    return found
