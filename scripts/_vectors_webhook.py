"""Vectors of webhooks: is this body, with this header at this time, from the gateway?

Signed here with the standard library, as the gateway's own SDK describes it, and not with the code that verifies.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

from _vectors_common import Vector, file, invalid, valid

SECRET = "whsecret_0123456789abcdef"
OTHER_SECRET = "whsecret_fedcba9876543210"
NOW_S = 1_795_000_000
BODY = (
    '{"id":"evt_pay_1_1795000000","type":"payment.confirmed","data":{"payment_id":"pay_1","status":"confirmed",'
    '"amount_crypto":"0.05","received_amount":0.05},"created_at":"2026-11-18T11:06:40.000Z","business_id":"biz_1"}'
)
# From the first existing implementation, which signed the body alone: its own test's secret and body.
OLD_SECRET = "whsec"
OLD_BODY = '{"invoice_id":"inv_1","status":"confirmed"}'
OLD_SIGNATURE = "bb136f8a65e6b6dd9fce0ba3aa6af7489e1c4335375e313fb592efa13067e8fa"


def webhook() -> Vector:
    """webhook.json."""
    return file(
        "X-CoinPay-Signature: HMAC-SHA256 of the time, a full stop and the body, with one of the secrets; and the "
        "older x-cpp-signature over the body alone, where it is accepted. Headers are lists of all values that came.",
        [*_good(), *_bad_times(), *_bad_headers(), *_bad_bodies(), *_old()],
    )


def _digest(text: str, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def _header(time: object = NOW_S, body: str = BODY, secret: str = SECRET) -> str:
    return f"t={time},v1={_digest(f'{time}.{body}', secret)}"


def _case(*signatures: str, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "signatures": list(signatures),
        "old_signatures": [],
        "body": BODY,
        "now_s": NOW_S,
        "secrets": [SECRET],
        "accept_old_form": False,
    }
    return {**plain, **changes}


def _good() -> Iterator[Vector]:
    right = _header()
    yield valid("as the gateway sends it", **_case(right))
    yield valid("300 seconds old", **_case(right, now_s=NOW_S + 300))
    yield valid("300 seconds ahead", **_case(right, now_s=NOW_S - 300))
    yield valid("with the second of two secrets", **_case(right, secrets=[OTHER_SECRET, SECRET]))
    yield valid("with the first of two secrets", **_case(right, secrets=[SECRET, OTHER_SECRET]))
    other = _digest(f"{NOW_S}.{BODY}", OTHER_SECRET)
    yield valid(
        "signed with both, while the sender changes its secret", **_case(f"t={NOW_S},v1={other},v1={right[-64:]}")
    )
    yield valid("the other way round, with a space", **_case(f"v1={right[-64:]}, t={NOW_S}"))
    yield valid("digits in upper case", **_case(f"t={NOW_S},v1={right[-64:].upper()}"))
    yield valid("with an element that is not known", **_case(f"{right},v0=abc"))
    yield valid("a time that starts with a zero: signed as it is written", **_case(_header(f"0{NOW_S}")))
    yield valid("an empty body", **_case(_header(body=""), body=""))
    yield valid(
        "the newer form counts where both are", **_case(right, old_signatures=["nonsense"], accept_old_form=True)
    )


def _bad_times() -> Iterator[Vector]:
    yield invalid("301 seconds old", **_case(_header(), now_s=NOW_S + 301))
    yield invalid("301 seconds ahead", **_case(_header(), now_s=NOW_S - 301))
    for comment, time in (
        ("no time", ""),
        ("a word for a time: the gateway's own SDK once took it for a time that is not too old", "abc"),
        ("NaN", "NaN"),
        ("a negative time", f"-{NOW_S}"),
        ("a time with a sign", f"+{NOW_S}"),
        ("a time with a fraction", f"{NOW_S}.0"),
        ("a time with an exponent", "1795e6"),
        ("a time in hexadecimal", hex(NOW_S)),
        ("a time in milliseconds", f"{NOW_S}000"),
        ("a time of 12 digits", f"00{NOW_S}"),
        ("a time in digits of another script", "".join(chr(0x660 + int(digit)) for digit in str(NOW_S))),
        ("a time with a line break", f"{NOW_S}\n"),
        ("a time with a space inside", f"{NOW_S // 10} 0"),
        ("a time with an underscore", "1_795_000_000"),
    ):
        yield invalid(comment, **_case(_header(time)))


def _bad_headers() -> Iterator[Vector]:
    right = _header()
    digest = right[-64:]
    for comment, header in (
        ("an empty header", ""),
        ("no signature", f"t={NOW_S}"),
        ("no time at all", f"v1={digest}"),
        ("the signature alone", digest),
        ("two times", f"t={NOW_S},{right}"),
        ("two times, of which one is too old", f"t=1,{right}"),
        ("five signatures", f"{right},v1={digest},v1={digest},v1={digest},v1={digest}"),
        ("another scheme", f"t={NOW_S},v2={digest}"),
        ("the name in upper case", f"t={NOW_S},V1={digest}"),
        ("63 digits", right[:-1]),
        ("65 digits", right + "0"),
        ("no digits", f"t={NOW_S},v1="),
        ("a letter that is no digit", right[:-1] + "g"),
        ("digits with spaces between", f"t={NOW_S},v1={digest[:32]} {digest[32:]}"),
        ("one bit less", right[:-1] + f"{int(right[-1], 16) ^ 1:x}"),
        ("zeros", f"t={NOW_S},v1={'0' * 64}"),
        ("a right signature and one that is none", f"{right},v1=abc"),
        ("another secret", _header(secret=OTHER_SECRET)),
        ("an empty secret", _header(secret="")),
        ("the body alone is signed", f"t={NOW_S},v1={_digest(BODY)}"),
        ("another time is signed", f"t={NOW_S + 1},v1={digest}"),
        ("no full stop is signed", f"t={NOW_S},v1={_digest(f'{NOW_S}{BODY}')}"),
        ("a hash without a key", f"t={NOW_S},v1={hashlib.sha256(f'{NOW_S}.{BODY}'.encode()).hexdigest()}"),
        ("513 characters", right + "," + "x" * (512 - len(right))),
    ):
        yield invalid(comment, **_case(header))
    yield invalid("no header", **_case())
    yield invalid("the header twice", **_case(right, right))


def _bad_bodies() -> Iterator[Vector]:
    right = _header()
    yield invalid("another body", **_case(right, body=BODY.replace("confirmed", "forwarded")))
    yield invalid("another amount", **_case(right, body=BODY.replace("0.05", "5.00")))
    yield invalid("a space more: what is signed are bytes, not what they mean", **_case(right, body=BODY + " "))
    yield invalid("no body", **_case(right, body=""))


def _old() -> Iterator[Vector]:
    old: dict[str, Any] = {"body": OLD_BODY, "secrets": [OLD_SECRET], "accept_old_form": True}
    yield valid("the older form, where it is accepted", **_case(old_signatures=[OLD_SIGNATURE], **old))
    yield valid("... with a name before it", **_case(old_signatures=[f"sha256={OLD_SIGNATURE}"], **old))
    yield invalid("... where it is not", **_case(old_signatures=[OLD_SIGNATURE], **{**old, "accept_old_form": False}))
    newer = _header(body=OLD_BODY, secret="other")
    yield invalid("... beside a newer one that does not hold", **_case(newer, old_signatures=[OLD_SIGNATURE], **old))
    yield invalid("... of another body", **_case(old_signatures=[OLD_SIGNATURE], **{**old, "body": OLD_BODY + "\n"}))
    yield invalid("... with another secret", **_case(old_signatures=[OLD_SIGNATURE], **{**old, "secrets": [SECRET]}))
    yield invalid("... with two names", **_case(old_signatures=[f"a=b={OLD_SIGNATURE}"], **old))
    yield invalid("... twice", **_case(old_signatures=[OLD_SIGNATURE, OLD_SIGNATURE], **old))
    yield invalid("... in the place of the newer", **_case(OLD_SIGNATURE, **old))
