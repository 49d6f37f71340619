"""protocol/formats/amounts.py: text to integer and back without losing a unit, and nothing but integers in between."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.formats.amounts import (
    AMOUNT_LIMIT,
    AmountFault,
    BadAmount,
    Rounding,
    credited_uusd,
    format_amount,
    format_usd,
    parse_amount,
    parse_usd,
    say_usd,
)
from protocol.formats.coins import Pair, find_pair
from tests.helpers_payments import every_pair

BTC = find_pair("BTC")
ETH = find_pair("ETH")
UNITS = st.integers(0, AMOUNT_LIMIT - 1)


@given(every_pair(), UNITS)
def test_what_was_written_is_read_back(pair: Pair, units: int) -> None:
    text = format_amount(pair, units)
    assert parse_amount(pair, text) == units
    assert format_amount(pair, parse_amount(pair, text)) == text
    assert "e" not in text.lower()


@given(UNITS)
def test_dollars_are_read_back(uusd: int) -> None:
    text = format_usd(uusd)
    assert text.startswith("$")
    assert parse_usd(text) == parse_usd(text[1:]) == uusd


@pytest.mark.parametrize(
    ("text", "uusd", "written"),
    [
        ("0.05", 50_000, "$0.05"),
        ("$1.50", 1_500_000, "$1.50"),
        ("2", 2_000_000, "$2.00"),
        ("0.000123", 123, "$0.000123"),
        ("$0", 0, "$0.00"),
        ("9223372036854.775807", AMOUNT_LIMIT - 1, "$9223372036854.775807"),
    ],
)
def test_dollars(text: str, uusd: int, written: str) -> None:
    assert parse_usd(text) == uusd
    assert format_usd(uusd) == written
    assert (say_usd(uusd), say_usd(-uusd)) == (written, f"-{written}" if uusd else written)


@given(st.integers())
def test_a_sentence_says_any_number(uusd: int) -> None:
    assert say_usd(uusd).removeprefix("-").startswith("$")


@pytest.mark.parametrize(
    "text", ["$$1", "1$", "$", "$ 1", "1,50", "1,000.00", "-$1", "$-1", "€1", "1 USD", "0.0000001"]
)
def test_what_are_no_dollars(text: str) -> None:
    with pytest.raises(BadAmount):
        parse_usd(text)


@given(st.integers(0, 10**19), st.sampled_from([ETH, find_pair("POL"), find_pair("BNB")]))
def test_what_is_finer_than_the_ledger_is_rounded_as_asked(wei: int, pair: Pair) -> None:
    """Against decimal arithmetic with more digits than any amount has."""
    with localcontext(prec=60):
        text = f"{Decimal(wei).scaleb(-18):f}"
        exact = Decimal(wei).scaleb(-9)
        if sum(character.isdigit() for character in text) <= 20:
            down, up = parse_amount(pair, text, Rounding.DOWN), parse_amount(pair, text, Rounding.UP)
            assert down == int(exact.to_integral_value(ROUND_FLOOR))
            assert up == int(exact.to_integral_value(ROUND_CEILING))


def test_without_a_direction_nothing_is_rounded() -> None:
    with pytest.raises(BadAmount, match="ETH is counted with at most 9 decimals") as caught:
        parse_amount(ETH, "0.0000000001")
    assert caught.value.fault is AmountFault.TOO_MANY_DECIMALS
    with pytest.raises(BadAmount, match="at most 18 decimals"):
        parse_amount(ETH, "0.0000000000000000001", Rounding.UP)
    with pytest.raises(BadAmount, match="at most 8 decimals"):
        parse_amount(BTC, "0.000000001", Rounding.DOWN)


@pytest.mark.parametrize("amount", [1.0, 0.05, 1, True, None, Decimal(1), b"11", float("nan"), float("inf")])
def test_nothing_but_text_is_an_amount(amount: object) -> None:
    for parse in (lambda: parse_amount(BTC, amount), lambda: parse_usd(amount)):  # type: ignore[arg-type]  # on purpose
        with pytest.raises(BadAmount) as caught:
            parse()
        assert caught.value.fault is AmountFault.NOT_TEXT


class Number(int):
    """An integer that is not exactly one."""


@pytest.mark.parametrize("units", [1.0, True, False, None, "1", Decimal(1), Number(2), -1, AMOUNT_LIMIT, float("nan")])
def test_nothing_but_an_integer_is_counted(units: object) -> None:
    for count in (
        lambda: format_amount(BTC, units),  # type: ignore[arg-type]  # on purpose
        lambda: format_usd(units),  # type: ignore[arg-type]  # on purpose
        lambda: credited_uusd(units, 1, 1),  # type: ignore[arg-type]  # on purpose
        lambda: credited_uusd(1, units, 1),  # type: ignore[arg-type]  # on purpose
        lambda: credited_uusd(1, 1, units),  # type: ignore[arg-type]  # on purpose
    ):
        with pytest.raises(BadAmount):
            count()


@given(every_pair(), st.text(max_size=100), st.none() | st.sampled_from(Rounding))
def test_any_text_is_an_amount_or_one_kind_of_error(pair: Pair, text: str, rounding: Rounding | None) -> None:
    try:
        units = parse_amount(pair, text, rounding)
    except BadAmount:
        pass
    else:
        assert type(units) is int
        assert 0 <= units < AMOUNT_LIMIT


@given(st.from_regex(r"[-+]?[0-9_, .]{0,24}([eE][-+]?[0-9]{1,3})?", fullmatch=True))
def test_only_digits_with_one_point_are_a_number(text: str) -> None:
    try:
        parse_amount(BTC, text)
    except BadAmount:
        return
    assert text.replace(".", "", 1).isdigit()
    assert text[0] != "." != text[-1]
    assert text == "0" or not text.startswith("0") or text.startswith("0.")


def test_a_long_text_is_not_looked_at() -> None:
    for text in ("1" * 81, "9" * 1_000_000):
        with pytest.raises(BadAmount):
            parse_amount(BTC, text)


@pytest.mark.parametrize(
    ("received", "expected", "quoted", "credited"),
    [
        (100, 100, 1_000_000, 1_000_000),
        (99, 100, 1_000_000, 990_000),
        (1, 3, 1_000_000, 333_333),
        (2, 3, 1_000_000, 666_666),
        (150, 100, 1_000_001, 1_500_001),
        (0, 100, 1_000_000, 0),
        (AMOUNT_LIMIT - 1, AMOUNT_LIMIT - 1, AMOUNT_LIMIT - 1, AMOUNT_LIMIT - 1),
    ],
)
def test_a_credit_is_the_quote_in_proportion(received: int, expected: int, quoted: int, credited: int) -> None:
    assert credited_uusd(received, expected, quoted) == credited


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=8), st.integers(1, 10**12), st.integers(0, 10**9))
def test_parts_are_never_worth_more_than_the_whole(parts: list[int], expected: int, quoted: int) -> None:
    whole = credited_uusd(sum(parts), expected, quoted)
    split = sum(credited_uusd(part, expected, quoted) for part in parts)
    assert whole - len(parts) < split <= whole
    assert whole * expected <= sum(parts) * quoted


def test_a_quote_for_nothing_and_a_credit_past_counting_are_refused() -> None:
    with pytest.raises(BadAmount, match="says no price"):
        credited_uusd(1, 0, 1)
    with pytest.raises(BadAmount) as caught:
        credited_uusd(AMOUNT_LIMIT - 1, 1, 2)
    assert caught.value.fault is AmountFault.TOO_LARGE
