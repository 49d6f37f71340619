"""JSON from outside: numbers stay text, and what is not plain is refused."""

from __future__ import annotations

import time

import msgspec
import pytest

from coordinator.payments.amounts import RawAmount
from coordinator.payments.bounded_json import DEPTH_MAX, BadJson, convert, decode_object


class Fields(msgspec.Struct):
    """Types as they are used on answers."""

    amount: RawAmount | None = None
    text: str | None = None


def test_numbers_stay_as_they_were_written() -> None:
    fields = decode_object(b'{"a":0.1000,"b":1e-7,"c":12345678901234567890123}', 100)
    assert [fields[name].text for name in "abc"] == ["0.1000", "1e-7", "12345678901234567890123"]
    assert not [value for value in fields.values() if isinstance(value, float | int)]


@pytest.mark.parametrize("amount", [b"0.05", b'"0.05"'])
def test_an_amount_may_be_a_number_or_text(amount: bytes) -> None:
    found = convert(decode_object(b'{"amount":' + amount + b"}", 100), Fields).amount
    assert found is not None
    assert found.text == "0.05"


@pytest.mark.parametrize("fields", [b'{"text":1}', b'{"amount":true}', b'{"amount":[]}', b'{"amount":{"text":"1"}}'])
def test_other_types_are_refused(fields: bytes) -> None:
    with pytest.raises(BadJson):
        convert(decode_object(fields, 100), Fields)


def test_bounds_hold_exactly() -> None:
    for depth, good in ((DEPTH_MAX - 1, True), (DEPTH_MAX, False)):
        body = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
        if good:
            assert decode_object(body, len(body))
        else:
            with pytest.raises(BadJson, match="nested"):
                decode_object(body, len(body))
    with pytest.raises(BadJson, match="bytes"):
        decode_object(b'{"a":1}', 6)


@pytest.mark.parametrize("body", [b'{"x":"' + b'\\"' * 500_000, b"[" * 10**6, b'"' * 10**6, b'{"x":"' + b"\\" * 10**6])
def test_hostile_bytes_cost_little(body: bytes) -> None:
    started = time.process_time()
    with pytest.raises(BadJson):
        decode_object(body, len(body))
    assert time.process_time() - started < 1.0
