"""Why a request about money is refused, as HTTP and the link say it: a status, a sentence, a stable code."""

from __future__ import annotations

from typing import Final

from coordinator.core.http import RETRY_AFTER_S, ApiError
from protocol.errors import BadSignature, RemoteProtocolError, Stale
from protocol.ledger import MoneyRefusal, Refused

BAD_RECORD: Final = "bad_record"
BAD_SIGNATURE: Final = "bad_signature"
STALE: Final = "stale"
STOPPED: Final = "ledger_stopped"
BUSY: Final = "busy"
INTERNAL: Final = "internal"
INTERNAL_TEXT: Final = "internal error; it has been logged"
WRONG_SENDER: Final = "wrong_sender"
CONFLICTING_REQUEST: Final = MoneyRefusal.CONFLICT.value
TOO_MANY_LEASES: Final = "too_many_leases"
TOO_MANY_COMPLAINTS: Final = "too_many_complaints"

_STATUS: Final = {
    MoneyRefusal.INSUFFICIENT: 402,
    MoneyRefusal.CONFLICT: 409,
    MoneyRefusal.UNKNOWN_LEASE: 404,
    MoneyRefusal.WRONG_PROVIDER: 403,
    MoneyRefusal.LEASE_CLOSED: 409,
    MoneyRefusal.NOT_YET: 409,
    MoneyRefusal.UNKNOWN_PAYOUT: 404,
    MoneyRefusal.PAYOUT_RESOLVED: 409,
    MoneyRefusal.BAD_AMOUNT: 400,
    MoneyRefusal.UNKNOWN_HOLD: 404,
}


class MoneyRefused(ApiError):
    """No money moved, and this is why."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        headers = {"Retry-After": str(retry_after_s)} if retry_after_s is not None else {}
        super().__init__(status, message, headers=headers, code=code)
        self.code = code


def of_verdict(refused: Refused) -> MoneyRefused:
    """What the ledger refused."""
    return MoneyRefused(_STATUS[refused.code], refused.code.value, refused.text)


def of_protocol(error: RemoteProtocolError) -> MoneyRefused:
    """What was wrong with a signed record."""
    if isinstance(error, BadSignature):
        return MoneyRefused(403, BAD_SIGNATURE, str(error))
    if isinstance(error, Stale):
        return MoneyRefused(400, STALE, str(error))
    return MoneyRefused(400, BAD_RECORD, str(error))


def unknown_lease() -> MoneyRefused:
    """There is no such lease, or it is none of the business of who asks."""
    return of_verdict(Refused(MoneyRefusal.UNKNOWN_LEASE, "this coordinator has issued no such lease"))


def wrong_sender(who: str) -> MoneyRefused:
    """The record is good, and somebody else has sent it."""
    return MoneyRefused(403, WRONG_SENDER, f"only the {who} itself may send this")


def stopped() -> MoneyRefused:
    """The ledger does not agree with itself, and nothing moves until somebody has looked."""
    text = "the ledger has been stopped for a check; nothing is lost, and claims keep their time"
    return MoneyRefused(503, STOPPED, text, retry_after_s=60)


def busy() -> MoneyRefused:
    """More waits than may."""
    return MoneyRefused(503, BUSY, "too much waits to be settled; try again soon", retry_after_s=RETRY_AFTER_S)
