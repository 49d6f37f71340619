"""Amounts as text become exact integers, or nothing."""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.payments.amounts import UNITS_MAX, BadAmount, RawAmount, dollars


@pytest.mark.parametrize(
    ("text", "decimals", "units"),
    [
        ("0", 8, 0),
        ("0.05", 8, 5_000_000),
        ("0.050", 8, 5_000_000),
        ("00.5", 1, 5),
        ("1", 0, 1),
        ("0.000000019", 8, 1),
        ("0.999999999999999999", 9, 999_999_999),
        ("9223372036.854775807", 9, UNITS_MAX),
        # What JavaScript makes of 0.1 + 0.2 and of a small quotient.
        ("0.30000000000000004", 8, 30_000_000),
        ("0.000012345678901234567", 8, 1_234),
    ],
)
def test_text_becomes_units_rounded_down(text: str, decimals: int, units: int) -> None:
    assert RawAmount(text).units(decimals) == units


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "-1", "+1", "-0", "1e3", "1E3", "1e-7", "NaN", "Infinity", "0x10", "1_000", "1,5", ".5", "5.", "1.2.3",
        " 1", "1 ", "1\n", "\u0661", "1" * 21, "0." + "1" * 21, "9223372036.854775808", "1" * 999,
        "0." + "0" * 31 + "1",
    ],
)  # fmt: skip
def test_everything_else_is_no_amount(text: str) -> None:
    with pytest.raises(BadAmount):
        RawAmount(text).units(9)


@given(st.decimals(0, 10**10, places=9), st.sampled_from([6, 8, 9]))
def test_units_are_those_of_exact_arithmetic(amount: Decimal, decimals: int) -> None:
    wanted = (amount * 10**decimals).to_integral_value(ROUND_DOWN)
    if wanted <= UNITS_MAX and len(str(int(amount * 10**9))) <= 20:
        assert RawAmount(format(amount, "f")).units(decimals) == wanted


def test_exact_units_lose_nothing() -> None:
    assert RawAmount("12.340000000").exact_units(6) == 12_340_000
    with pytest.raises(BadAmount):
        RawAmount("12.3400001").exact_units(6)


@pytest.mark.parametrize(("uusd", "text"), [(10_000, "0.01"), (12_340_000, "12.34"), (10**12, "1000000.00")])
def test_cents_become_a_decimal(uusd: int, text: str) -> None:
    assert dollars(uusd) == text
    assert RawAmount(text).exact_units(6) == uusd


@pytest.mark.parametrize("uusd", [0, -10_000, 1, 10_001, 10_000.0, True, "10000", None, 2**63 + 2_192])
def test_what_is_no_number_of_cents_is_refused(uusd: object) -> None:
    with pytest.raises(BadAmount):
        dollars(uusd)  # type: ignore[arg-type]  # what must not get through
