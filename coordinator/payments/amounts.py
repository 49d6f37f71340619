"""Amounts as gateways write them, as exact integers. No float is made anywhere between the bytes and the integer.

A number of JSON stays the text that was sent. It becomes an integer here or nowhere, always rounded down: what is
credited must not be more than what came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

UUSD_DECIMALS: Final = 6
UUSD_PER_CENT: Final = 10_000
# Gateways keep dollars with two decimals; what they would round is not sent to them.
USD_DECIMALS: Final = 2
DIGITS_MAX: Final = 20
# What SQLite keeps as an integer; sums of more than that would turn into floating point there.
UNITS_MAX: Final = 2**63 - 1

# No sign, no exponent, no NaN, and only the digits of ASCII.
_DECIMAL: Final = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))?")


class BadAmount(ValueError):
    """The text is no amount that we take: signed, with an exponent, too long, too large, or no number at all."""


@dataclass(frozen=True, slots=True)
class RawAmount:
    """An amount exactly as it was sent, as a number or as text."""

    text: str

    def units(self, decimals: int) -> int:
        """In units of 10^-decimals, rounded down. Raises BadAmount."""
        match = _DECIMAL.fullmatch(self.text)
        if match is None:
            raise BadAmount("not a plain decimal number")
        whole, fraction = match[1], match[2] or ""
        if len(whole) + len(fraction) > DIGITS_MAX:
            raise BadAmount(f"more than {DIGITS_MAX} digits")
        units = int(whole + fraction[:decimals].ljust(decimals, "0"))
        if units > UNITS_MAX:
            raise BadAmount("more than 64 bits hold")
        return units

    def exact_units(self, decimals: int) -> int:
        """As `units`, where nothing may be lost by it. Raises BadAmount."""
        units = self.units(decimals)
        if self.text.partition(".")[2][decimals:].strip("0"):
            raise BadAmount(f"more than {decimals} decimals")
        return units


def dollars(amount_uusd: int) -> str:
    """Whole cents as a decimal number. Raises BadAmount for anything that is not a positive number of cents."""
    if type(amount_uusd) is not int or not 0 < amount_uusd <= UNITS_MAX or amount_uusd % UUSD_PER_CENT:
        raise BadAmount("dollars go to the gateway as a positive number of whole cents")
    cents = amount_uusd // UUSD_PER_CENT
    return f"{cents // 100}.{cents % 100:02}"
