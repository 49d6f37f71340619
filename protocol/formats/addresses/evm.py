"""Addresses of Ethereum, Polygon, BNB Smart Chain and Base: 20 bytes in hexadecimal, which are the same on all four.

The checksum is in the case of the letters (EIP-55): some fifteen bits, so that one typing mistake in four thousand
goes unnoticed. All in one case there is none. Such addresses are accepted with a warning, because exchanges show them
so and a person who must have capitals would have them made from what was mistyped already. The normal form has the
checksum.
"""

from __future__ import annotations

import re
from typing import Final

from protocol.formats.addresses.outcome import (
    Address,
    AddressFault,
    AddressWarning,
    BadAddress,
    plain_address,
    refuse_nobodys,
)

_PREFIX: Final = "0x"
_DIGITS: Final = 40
_HEXADECIMAL: Final = re.compile("[0-9A-Fa-f]+", re.ASCII)
# Contracts of the tokens that are paid out here, as circle.com and tether.to list them, and the two that wrap the coins
# they are named after or bridge a token. People copy them from explorers; what is sent there is lost.
_CONTRACTS: Final = frozenset(
    {
        "0xdAC17F958D2ee523a2206206994597C13D831ec7",  # USDT, Ethereum
        "0xc2132D05D31c914a87C6611C10748AEb04B58e8F",  # USDT, Polygon
        "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48",  # USDC, Ethereum
        "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359",  # USDC, Polygon
        "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",  # USDC, Base
        "0x2791Bca1f2de4661ED88A30C99A7a9449Aa84174",  # USDC.e, Polygon
        "0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2",  # WETH, Ethereum
    }
)


def read_evm(text: str) -> Address:
    """An address of one of the four chains, `0x...`; normal with its checksum. Raises BadAddress."""
    prefix, digits = text[:2], text[2:]
    if prefix.lower() != _PREFIX:
        raise BadAddress(AddressFault.UNRECOGNISED, f"an address on this network begins with {_PREFIX}: copy it again")
    if not _HEXADECIMAL.fullmatch(digits):
        raise BadAddress(AddressFault.BAD_CHARACTERS, f"after {_PREFIX} come only 0 to 9 and a to f: copy it again")
    if len(digits) != _DIGITS:
        raise BadAddress(
            AddressFault.BAD_LENGTH, f"after {_PREFIX} come {_DIGITS} digits, not {len(digits)}: copy it again"
        )
    normal = checksummed(digits)
    if digits not in (normal[2:], digits.lower(), digits.upper()):
        raise BadAddress(
            AddressFault.BAD_CHECKSUM, "the checksum of this address is wrong, a character is mistyped: copy it again"
        )
    refuse_nobodys(bytes.fromhex(digits))
    if normal in _CONTRACTS:
        raise BadAddress(
            AddressFault.NOBODYS, "this is the contract of a token, nobody's wallet: give your wallet's address"
        )
    return plain_address(normal) if digits == normal[2:] else plain_address(normal, AddressWarning.UNCHECKED)


def checksummed(digits: str) -> str:
    """Forty hexadecimal digits as an address whose capitals are its checksum (EIP-55)."""
    # Loading it takes tens of milliseconds, and other coins' addresses do without.
    from Crypto.Hash import keccak

    lower = digits.lower()
    hashed = keccak.new(data=lower.encode(), digest_bits=256).hexdigest()
    return _PREFIX + "".join(
        digit.upper() if nibble >= "8" else digit for digit, nibble in zip(lower, hashed, strict=False)
    )
