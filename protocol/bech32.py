"""Bech32 and bech32m: bytes as text that survives being typed, with a checksum (BIP-173, BIP-350).

Here are the words and the checksum; what stands before them, and what it is separated by, is the caller's. Error
messages never quote the text, which may be a secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from protocol.errors import LocalProtocolError

#: What the checksum comes out as: in BIP-173, and in BIP-350, which mended it.
BECH32: Final = 1
BECH32M: Final = 0x2BC830A3

_ALPHABET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_WORDS: Final = 6


def encode(prefix: str, data: bytes, constant: int) -> str:
    """The characters of some bytes and of their checksum under a lower-case prefix, without the prefix."""
    words = list(_regroup(data, 8, 5, pad=True))
    checksum = _polymod([*_expand(prefix), *words, *[0] * _CHECKSUM_WORDS]) ^ constant
    words += [(checksum >> 5 * (_CHECKSUM_WORDS - 1 - i)) & 31 for i in range(_CHECKSUM_WORDS)]
    return "".join(_ALPHABET[word] for word in words)


def decode(prefix: str, text: str, constant: int, what: str) -> bytes:
    """The bytes behind lower-case characters. `what` names the text in errors. Raises LocalProtocolError."""
    return bytes_of(decode_words(prefix, text, constant, what), what)


def decode_words(prefix: str, text: str, constant: int, what: str) -> list[int]:
    """The five-bit words that `decode` makes bytes of, without their checksum. Raises LocalProtocolError."""
    words = words_of(text, what)
    if len(words) < _CHECKSUM_WORDS or _polymod([*_expand(prefix), *words]) != constant:
        raise LocalProtocolError(f"the checksum of this {what} is wrong: a character is missing or mistyped")
    return words[:-_CHECKSUM_WORDS]


def words_of(text: str, what: str) -> list[int]:
    """The five-bit words that lower-case characters stand for, their checksum as it is. Raises LocalProtocolError."""
    try:
        return [_ALPHABET.index(character) for character in text]
    except ValueError:
        raise LocalProtocolError(f"this {what} holds a character that bech32 does not have") from None


def bytes_of(words: list[int], what: str) -> bytes:
    """The bytes that were cut into these words; raises LocalProtocolError where none were."""
    data = bytes(_regroup(words, 5, 8, pad=False))
    if [*_regroup(data, 8, 5, pad=True)] != words:
        raise LocalProtocolError(f"this {what} has stray bits at its end")
    return data


def _expand(prefix: str) -> list[int]:
    return [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]


def _polymod(values: Iterable[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for i, term in enumerate(_GENERATOR):
            if (top >> i) & 1:
                checksum ^= term
    return checksum


def _regroup(values: Iterable[int], width_from: int, width_to: int, *, pad: bool) -> Iterable[int]:
    accumulator = bits = 0
    for value in values:
        accumulator = (accumulator << width_from | value) & 0xFFFF
        bits += width_from
        while bits >= width_to:
            bits -= width_to
            yield (accumulator >> bits) & ((1 << width_to) - 1)
    if pad and bits:
        yield (accumulator << (width_to - bits)) & ((1 << width_to) - 1)
