"""Addresses of Solana: a 32-byte Ed25519 key in base58, and nothing else.

There is no checksum, no version and no mark of the network. So of typing mistakes only those are noticed that change
the length, and half of the rest, because only every other number is a point of the curve; an address of Solana's test
network looks like any other; and whether an account has ever been used only the chain knows. Hence the warning on
every one.

An address off the curve is a program's (a token account, a vault): it has no key, and not every sender can pay it.
"""

from __future__ import annotations

from typing import Final

from protocol.formats.addresses import base58check
from protocol.formats.addresses.outcome import Address, AddressFault, AddressWarning, BadAddress, plain_address

_KEY_BYTES: Final = 32
_CHARACTERS: Final = range(32, 45)
# Built-in programs, system variables and the wrapped coin are named by words padded with ones.
_PADDING: Final = "1" * 10
# Programs and mints of the tokens that are paid out here, as solana.com, circle.com and tether.to list them.
_NOBODYS: Final = frozenset(
    {
        "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA",
        "TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb",
        "ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL",
        "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v",  # USDC
        "Es9vMFrzaCERmJfrF4H2FYD4KCoNkY11McCe8BenwNYB",  # USDT
    }
)
# RFC 8032, 5.1: the prime of the field, and the constant of the curve.
_PRIME: Final = 2**255 - 19
_CONSTANT: Final = -121665 * pow(121666, -1, _PRIME) % _PRIME


def read_solana(text: str) -> Address:
    """An address of a wallet on Solana, always with a warning. Raises BadAddress."""
    key = base58check.decode(text)
    if len(text) not in _CHARACTERS or len(key) != _KEY_BYTES:
        raise BadAddress(AddressFault.BAD_LENGTH, "this is too long or too short for a Solana address: copy it again")
    if _PADDING in text or text in _NOBODYS:
        raise BadAddress(
            AddressFault.NOBODYS, "this is a program or a token, nobody's wallet: give your wallet's address"
        )
    if not _is_on_curve(key):
        raise BadAddress(
            AddressFault.UNSUPPORTED_TYPE,
            "this is no wallet: it is mistyped, or a token account or a program's; give your wallet's own address",
        )
    return plain_address(text, AddressWarning.UNCHECKED)


def _is_on_curve(key: bytes) -> bool:
    """Whether an x belongs to this y of the curve -x² + y² = 1 + d·x²·y² (RFC 8032, 5.1.3)."""
    y = int.from_bytes(key, "little") & ((1 << 255) - 1)
    if y >= _PRIME:
        return False
    square = (y * y - 1) * pow(_CONSTANT * y * y + 1, -1, _PRIME) % _PRIME
    return square == 0 or pow(square, (_PRIME - 1) // 2, _PRIME) == 1
