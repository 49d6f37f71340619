"""Amounts as gateways write them, as exact integers. No float is made anywhere between the bytes and the integer.

A number of JSON stays the text that was sent. It becomes an integer here or nowhere, always rounded down: what is
credited must not be more than what came. Amounts that people and clients write are read by `protocol.formats.amounts`,
which is stricter: it refuses what has more decimals than a chain, and JavaScript writes such numbers.
"""

from __future__ import annotations

import re
from typing import Final

from protocol.formats.amounts import AMOUNT_LIMIT, USD_DECIMALS

UUSD_DECIMALS: Final = USD_DECIMALS
UUSD_PER_CENT: Final = 10_000
# Significant ones: 0.000012345678901234567 is how JavaScript writes a number, and none too many.
DIGITS_MAX: Final = 20
# What SQLite keeps as an integer; sums of more than that would turn into floating point there.
UNITS_MAX: Final = AMOUNT_LIMIT - 1

# No sign, no exponent, no NaN, and only the digits of ASCII.
_DECIMAL: Final = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,30}))?")


class BadAmount(ValueError):
    """The text is no amount that we take: signed, with an exponent, too long, too large, or no number at all."""


class RawAmount:
    """An amount exactly as it was sent, as a number or as text. Not a dataclass: msgspec would look for its fields."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"RawAmount({self.text!r})"

    def units(self, decimals: int) -> int:
        """In units of 10^-decimals, rounded down. Raises BadAmount."""
        whole, fraction = self.digits()
        units = int((whole or "0") + fraction[:decimals].ljust(decimals, "0"))
        if units > UNITS_MAX:
            raise BadAmount("more than 64 bits hold")
        return units

    def digits(self) -> tuple[str, str]:
        """The digits before and after the point, without zeros that say nothing. Raises BadAmount."""
        match = _DECIMAL.fullmatch(self.text)
        if match is None:
            raise BadAmount("not a plain decimal number")
        whole, fraction = match[1].lstrip("0"), (match[2] or "").rstrip("0")
        if len((whole + fraction).lstrip("0")) > DIGITS_MAX:
            raise BadAmount(f"more than {DIGITS_MAX} digits")
        return whole, fraction

    def exact_units(self, decimals: int) -> int:
        """As `units`, where nothing may be lost by it. Raises BadAmount."""
        if len(self.digits()[1]) > decimals:
            raise BadAmount(f"more than {decimals} decimals")
        return self.units(decimals)


def dollars(amount_uusd: int) -> str:
    """Whole cents as a decimal number. Raises BadAmount for anything that is not a positive number of cents."""
    if type(amount_uusd) is not int or not 0 < amount_uusd <= UNITS_MAX or amount_uusd % UUSD_PER_CENT:
        raise BadAmount("dollars go to the gateway as a positive number of whole cents")
    cents = amount_uusd // UUSD_PER_CENT
    return f"{cents // 100}.{cents % 100:02}"
