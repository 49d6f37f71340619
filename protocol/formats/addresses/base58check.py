"""Base58Check: bytes with four bytes of their double SHA-256, in characters that look different.

Bitcoin and its descendants write addresses so, and XRP does in an alphabet of its own ("Base58Check encoding", Bitcoin
Wiki; "base58 Encodings", xrpl.org).
"""

from __future__ import annotations

from typing import Final

import base58

from protocol.formats.addresses.outcome import AddressFault, BadAddress

BITCOIN_ALPHABET: Final = base58.BITCOIN_ALPHABET.decode()
RIPPLE_ALPHABET: Final = base58.RIPPLE_ALPHABET.decode()
#: No address is longer, and the decoder's time grows with the square of the length.
CHARACTERS_MAX: Final = 128


def decode(text: str, alphabet: str = BITCOIN_ALPHABET) -> bytes:
    """The bytes behind a text without a checksum. Raises BadAddress."""
    if not 0 < len(text) <= CHARACTERS_MAX:
        raise BadAddress(AddressFault.BAD_LENGTH, "this is too long or too short for an address: copy it again")
    if not all(character in alphabet for character in text):
        raise BadAddress(AddressFault.BAD_CHARACTERS, "this holds a character that no such address has: copy it again")
    data: bytes = base58.b58decode(text, alphabet=alphabet.encode())
    return data


def decode_check(text: str, alphabet: str = BITCOIN_ALPHABET) -> bytes:
    """The bytes before the checksum. Raises BadAddress."""
    decode(text, alphabet)
    try:
        data: bytes = base58.b58decode_check(text, alphabet=alphabet.encode())
    except ValueError:
        raise BadAddress(
            AddressFault.BAD_CHECKSUM, "the checksum of this address is wrong, a character is mistyped: copy it again"
        ) from None
    return data


def encode_check(data: bytes, alphabet: str = BITCOIN_ALPHABET) -> str:
    """The text of some bytes with their checksum."""
    text: bytes = base58.b58encode_check(data, alphabet=alphabet.encode())
    return text.decode()
