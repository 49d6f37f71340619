"""Webhooks that are not the gateway's are not believed, and all alike; see also specs/vectors/webhook.json."""

from __future__ import annotations

import hashlib
import hmac
import random
import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.payments.webhook import BODY_BYTES_MAX, WebhookRefused, WebhookSecrets, verify
from tests.helpers_fake_gateway_webhooks import sign

SECRET = "whsecret_0123456789"
NOW_S = 1_795_000_000
BODY = b'{"payment_id":"pay_1","status":"confirmed"}'
SECRETS = WebhookSecrets((SECRET.encode(),))
FORGED_BY_DEFAULT = 20_000
FORGED_NIGHTLY = 1_000_000


def accepted(
    signatures: list[str], body: bytes = BODY, *, old: list[str] | None = None, secrets: WebhookSecrets = SECRETS
) -> bool:
    try:
        verify(signatures, old or [], body, NOW_S, secrets)
    except WebhookRefused:
        return False
    return True


def test_r5_the_published_scheme_is_verified_and_the_guessed_one_is_not() -> None:
    """R5: a header that the gateway never sends, over the body alone, was all that was verified."""
    assert accepted([sign(SECRET, NOW_S, BODY)])
    over_the_body_alone = hmac.new(SECRET.encode(), BODY, hashlib.sha256).hexdigest()
    assert not accepted([], old=[over_the_body_alone])
    assert not accepted([], old=[f"sha256={over_the_body_alone}"])
    assert not accepted([over_the_body_alone])
    assert not accepted([f"t={NOW_S},v1={over_the_body_alone}"])


def test_every_refusal_reads_the_same() -> None:
    texts = set()
    for signatures, body in (([], BODY), (["x"], BODY), ([sign("other", NOW_S, BODY)], BODY), ([], b"x" * 70_000)):
        with pytest.raises(WebhookRefused) as caught:
            verify(signatures, [], body, NOW_S, SECRETS)
        texts.add((str(caught.value), caught.value.args, caught.value.__cause__))
    assert len(texts) == 1


def test_a_body_may_have_64_kib_and_no_byte_more() -> None:
    for size, good in ((BODY_BYTES_MAX, True), (BODY_BYTES_MAX + 1, False)):
        body = b"x" * size
        assert accepted([sign(SECRET, NOW_S, body)], body) is good


@pytest.mark.parametrize("values", [(), (b"",), (b"a", b""), (b"a", b"b", b"c")])
def test_secrets_that_would_let_anybody_in_are_refused(values: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError):
        WebhookSecrets(values)


def test_secrets_do_not_show() -> None:
    assert SECRET not in repr(SECRETS)


@given(st.binary(max_size=200), st.integers(-300, 300), st.integers(0, 1))
def test_what_was_signed_is_accepted(body: bytes, age_s: int, which: int) -> None:
    secrets = WebhookSecrets((SECRET.encode(), b"the next one"))
    secret = secrets.values[which].decode()
    assert accepted([sign(secret, NOW_S - age_s, body)], body, secrets=secrets)


@pytest.mark.slow
@given(st.lists(st.text(max_size=100), max_size=3), st.lists(st.text(max_size=80), max_size=2), st.booleans())
def test_no_header_whatsoever_raises_anything_else(headers: list[str], old: list[str], old_form: bool) -> None:
    secrets = WebhookSecrets((SECRET.encode(),), accept_old_form=old_form)
    assert not accepted(headers, old=old, secrets=secrets)


@given(st.data())
def test_any_other_byte_is_refused(data: st.DataObject) -> None:
    header = sign(SECRET, NOW_S, BODY)
    position = data.draw(st.integers(0, len(BODY) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    changed = bytearray(BODY)
    changed[position] ^= bit
    assert not accepted([header], bytes(changed))


# ---------------------------------------------------------------- forgeries


def forgeries(rng: random.Random) -> list[Callable[[], str]]:
    """Ways to make a header without the secret, from one that was recorded."""
    recorded = sign(SECRET, NOW_S - 301, BODY)
    old_digest, alphabet = recorded[-64:], string.hexdigits + "=,tv1. -+_\n\x00\u0661"

    def guess() -> str:
        return f"t={NOW_S + rng.randint(-299, 299)},v1={rng.randbytes(32).hex()}"

    def renewed() -> str:
        return f"t={NOW_S + rng.randint(-299, 299)},v1={old_digest}"

    def mutated() -> str:
        text = list(recorded)
        for _ in range(rng.randint(1, 4)):
            text[rng.randrange(len(text))] = rng.choice(alphabet)
        return "".join(text)

    def another_key() -> str:
        return sign(rng.choice(["", "0", SECRET[:-1], SECRET.upper(), f"{SECRET} "]), NOW_S, BODY)

    def many() -> str:
        return ",".join([f"t={NOW_S}", *(f"v1={rng.randbytes(32).hex()}" for _ in range(rng.randint(0, 5)))])

    def joined() -> str:
        parts = [f"t={NOW_S}", recorded, f"v1={old_digest}", f"t={rng.choice(['NaN', '', '9' * 12, '-1'])}"]
        rng.shuffle(parts)
        return ",".join(parts[: rng.randint(1, 4)])

    return [guess, renewed, mutated, another_key, many, joined]


def count_of_accepted_forgeries(count: int) -> int:
    rng = random.Random(6)
    kinds = forgeries(rng)
    return sum(accepted([rng.choice(kinds)()]) for _ in range(count))


@pytest.mark.parametrize(
    "count", [FORGED_BY_DEFAULT, pytest.param(FORGED_NIGHTLY, marks=pytest.mark.nightly)], ids=["sample", "million"]
)
def test_no_forged_header_is_accepted(count: int) -> None:
    assert count_of_accepted_forgeries(count) == 0


def test_the_forgeries_would_pass_a_verifier_that_does_not_look_at_the_time(monkeypatch: Any) -> None:
    """So that the test above is known to try what it says: without the window, recorded headers come through."""
    monkeypatch.setattr("coordinator.payments.webhook.WINDOW_S", 10**9)
    assert count_of_accepted_forgeries(2_000) > 0
