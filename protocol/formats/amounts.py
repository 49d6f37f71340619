"""Amounts of money as people and other programs write them, and as the ledger counts them: integers of small units.

No float comes in or goes out. A text is digits with at most one point, nothing else: no sign, no exponent, no spaces,
no grouping (a comma is a thousand to some and a point to others), no digits of other scripts. What has more decimals
than the ledger keeps is refused, unless the caller says which way to round: down when crediting, up when charging.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from protocol.formats.coins import Pair

#: Amounts are below this in every ledger and message: they are signed 64-bit integers there.
AMOUNT_LIMIT: Final = 2**63
DIGITS_MAX: Final = 20
USD_DECIMALS: Final = 6

_AMOUNT: Final = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?", re.ASCII)
_CENTS: Final = 2


class Rounding(StrEnum):
    """Which way to round what is finer than the ledger: down when crediting, up when charging."""

    DOWN = "down"
    UP = "up"


class AmountFault(StrEnum):
    """Why a text is no amount."""

    NOT_TEXT = "not_text"
    NOT_A_NUMBER = "not_a_number"
    TOO_MANY_DIGITS = "too_many_digits"
    TOO_MANY_DECIMALS = "too_many_decimals"
    TOO_LARGE = "too_large"


class BadAmount(Exception):
    """A text is no amount that could be kept; the message is one line for people and never repeats the text."""

    def __init__(self, fault: AmountFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def parse_amount(pair: Pair, text: str, rounding: Rounding | None = None) -> int:
    """An amount of a coin, such as "0.05", in ledger units of 10^-`pair.ledger_decimals`.

    `rounding` is for what other programs report of a chain that counts finer than the ledger; what a person typed is
    taken exactly or not at all. Raises BadAmount.
    """
    decimals_max = pair.ledger_decimals if rounding is None else pair.chain_decimals
    whole, fraction = _digits(text, decimals_max, pair.code)
    kept, finer = fraction[: pair.ledger_decimals], fraction[pair.ledger_decimals :]
    units = int(whole + kept.ljust(pair.ledger_decimals, "0"))
    if rounding is Rounding.UP and finer.strip("0"):
        units += 1
    return _bounded(units)


def format_amount(pair: Pair, units: int) -> str:
    """Ledger units as the shortest text that `parse_amount` reads back. Raises BadAmount for what no ledger holds."""
    return _text(units, pair.ledger_decimals, 0)


def parse_usd(text: str) -> int:
    """US dollars in µUSD: "0.05", "$1.50"; a dollar sign may stand before the number. Raises BadAmount."""
    number = text[1:] if type(text) is str and text.startswith("$") else text
    whole, fraction = _digits(number, USD_DECIMALS, "USD")
    return _bounded(int(whole + fraction.ljust(USD_DECIMALS, "0")))


def format_usd(uusd: int) -> str:
    """µUSD as dollars with cents, and as many more decimals as it takes: "$1.50", "$0.000123". Raises BadAmount."""
    return f"${_text(uusd, USD_DECIMALS, _CENTS)}"


def say_usd(uusd: int) -> str:
    """The same in a sentence about any number at all, which is never an error."""
    text = f"${_text(min(abs(uusd), AMOUNT_LIMIT - 1), USD_DECIMALS, _CENTS)}"
    return f"-{text}" if uusd < 0 else text


def credited_uusd(received_units: int, expected_units: int, quoted_uusd: int) -> int:
    """What a payment of `received_units` is worth in µUSD where `expected_units` were quoted at `quoted_uusd`.

    Rounded down, as every credit is; the quote holds for less and for more than was expected. Raises BadAmount.
    """
    for amount in (received_units, expected_units, quoted_uusd):
        _bounded(amount)
    if expected_units == 0:
        raise BadAmount(AmountFault.NOT_A_NUMBER, "a quote for nothing says no price")
    return _bounded(received_units * quoted_uusd // expected_units)


def _digits(text: str, decimals_max: int, code: str) -> tuple[str, str]:
    """The digits before and after the point of a well-formed amount."""
    if type(text) is not str:
        raise BadAmount(AmountFault.NOT_TEXT, "an amount is given as text, so that no digit of it is rounded")
    # A few digits too many are answered by what is wrong with them; what is longer still is not looked at.
    match = _AMOUNT.fullmatch(text) if len(text) <= 4 * DIGITS_MAX else None
    if match is None:
        raise BadAmount(AmountFault.NOT_A_NUMBER, "an amount is written in digits with one point, such as 12 or 0.05")
    whole, fraction = match[1], match[2] or ""
    if len(whole) + len(fraction) > DIGITS_MAX:
        raise BadAmount(AmountFault.TOO_MANY_DIGITS, f"an amount has at most {DIGITS_MAX} digits")
    if len(fraction) > decimals_max:
        raise BadAmount(AmountFault.TOO_MANY_DECIMALS, f"{code} is counted with at most {decimals_max} decimals")
    return whole, fraction


def _bounded(units: int) -> int:
    if type(units) is not int:
        raise BadAmount(AmountFault.NOT_A_NUMBER, "an amount is counted in whole units")
    if not 0 <= units < AMOUNT_LIMIT:
        raise BadAmount(AmountFault.TOO_LARGE, "an amount lies between 0 and what 63 bits can count")
    return units


def _text(units: int, decimals: int, decimals_min: int) -> str:
    digits = str(_bounded(units)).rjust(decimals + 1, "0")
    whole, fraction = digits[:-decimals], digits[-decimals:].rstrip("0").ljust(decimals_min, "0")
    return f"{whole}.{fraction}" if fraction else whole
