"""Whether a webhook comes from the gateway: pure, over the bytes that came.

    X-CoinPay-Signature: t=<unix seconds>,v1=<64 hexadecimal digits>

with HMAC-SHA256(secret, t + "." + body) (packages/sdk/src/webhooks.js of the gateway). Several `v1` may stand there,
as when the sender is changing its secret; one of them has to hold. An older form, `x-cpp-signature: [name=]<hex>` with
the HMAC over the body alone, knows no time, so anybody who has recorded one can send it again; it is refused unless
the configuration wants it. Even a true webhook is a hint only: what is credited is asked for at the gateway.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

SIGNATURE_HEADER: Final = "X-CoinPay-Signature"
OLD_SIGNATURE_HEADER: Final = "X-Cpp-Signature"

BODY_BYTES_MAX: Final = 64 * 1024
HEADER_CHARACTERS_MAX: Final = 512
SIGNATURES_MAX: Final = 4
# The tolerance that the gateway itself publishes.
WINDOW_S: Final = 300
SECRETS_MAX: Final = 2

# fullmatch and explicit digits: `$` would let a line break pass, and `\d` the digits of every script.
_TIME: Final = re.compile(r"[0-9]{1,11}")
_HEXADECIMAL: Final = re.compile(r"[0-9a-fA-F]{64}")
_OLD: Final = re.compile(r"(?:[A-Za-z0-9_-]{1,16}=)?([0-9a-fA-F]{64})")


class WebhookRefused(Exception):
    """This webhook is not believed. There is one text for every reason, so that a forger learns nothing from it."""

    def __init__(self) -> None:
        super().__init__("the webhook's signature does not hold")


@dataclass(frozen=True, slots=True)
class WebhookSecrets:
    """What the gateway signs with: one secret, or two while it is being changed.

    Raises ValueError for no secret, an empty one, or more than two.
    """

    values: tuple[bytes, ...] = field(repr=False)
    accept_old_form: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.values) <= SECRETS_MAX or not all(self.values):
            raise ValueError("one or two webhook secrets, none of them empty")


def verify(
    signatures: Sequence[str], old_signatures: Sequence[str], body: bytes, now_s: int, secrets: WebhookSecrets
) -> None:
    """Return if this body was signed with one of these secrets. Raises WebhookRefused.

    `signatures` and `old_signatures` are all values of the two headers, `now_s` the wall clock in Unix seconds. Where
    the newer header is present the older one is not looked at, so that nobody can choose the weaker form.
    """
    if len(body) > BODY_BYTES_MAX:
        raise WebhookRefused
    if signatures:
        holds = len(signatures) == 1 and _holds(signatures[0], body, now_s, secrets.values)
    else:
        old_allowed = secrets.accept_old_form and len(old_signatures) == 1
        holds = old_allowed and _old_holds(old_signatures[0], body, secrets.values)
    if not holds:
        raise WebhookRefused


def _holds(header: str, body: bytes, now_s: int, secrets: Sequence[bytes]) -> bool:
    parsed = _parse(header)
    if parsed is None:
        return False
    time, given = parsed
    if abs(now_s - int(time)) > WINDOW_S:
        return False
    return _any_equal(given, time.encode("ascii") + b"." + body, secrets)


def _old_holds(header: str, body: bytes, secrets: Sequence[bytes]) -> bool:
    match = _OLD.fullmatch(header)
    return match is not None and _any_equal([bytes.fromhex(match[1])], body, secrets)


def _parse(header: str) -> tuple[str, list[bytes]] | None:
    """The one time and the signatures of a header, or None when it is not of that form."""
    if len(header) > HEADER_CHARACTERS_MAX:
        return None
    times, signatures = [], []
    for part in header.split(","):
        name, _, value = part.strip(" ").partition("=")
        if name == "t":
            times.append(value)
        elif name == "v1":
            signatures.append(value)
    if len(times) != 1 or _TIME.fullmatch(times[0]) is None or not 1 <= len(signatures) <= SIGNATURES_MAX:
        return None
    if not all(_HEXADECIMAL.fullmatch(signature) for signature in signatures):
        return None
    return times[0], [bytes.fromhex(signature) for signature in signatures]


def _any_equal(given: Sequence[bytes], signed: bytes, secrets: Sequence[bytes]) -> bool:
    """Compare every pair, so that the time taken does not say which of them came close."""
    wanted = [hmac.new(secret, signed, hashlib.sha256).digest() for secret in secrets]
    equal = [hmac.compare_digest(one, other) for one in given for other in wanted]
    return any(equal)
