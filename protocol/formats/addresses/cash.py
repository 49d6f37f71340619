"""Addresses of Bitcoin Cash: CashAddr, with its prefix or without (specification "CashAddr", bitcoincash.org).

The older form (`1...`, `3...`) is refused, although the chain would pay it: letter for letter it is a Bitcoin
address, so nothing tells a Bitcoin Cash address from a Bitcoin address in the wrong field. So are 32-byte script
hashes and the token-aware form (CHIP-2022-05 CashTokens), which not every sender knows; a wallet shows the plain form
of the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from protocol import bech32
from protocol.errors import LocalProtocolError
from protocol.formats.addresses import bitcoin
from protocol.formats.addresses.outcome import Address, AddressFault, BadAddress, plain_address, refuse_nobodys

PREFIX: Final = "bitcoincash"
TEST_PREFIXES: Final = ("bchtest", "bchreg")

_GENERATOR: Final = (0x98F2BC8E61, 0x79B76D99E2, 0xF33E5FB3C4, 0xAE2EABE2A8, 0x1E4F43E470)
_CHECKSUM_WORDS: Final = 8
_CHARACTERS_MAX: Final = 128
_SIZES_BYTES: Final = (20, 24, 28, 32, 40, 48, 56, 64)
# The type byte: one reserved bit, four of type, three of size. 20 bytes of a key's hash, 20 of a script's.
_PAYABLE: Final = (0x00, 0x08)


def read_bitcoin_cash(text: str) -> Address:
    """A Bitcoin Cash address: `bitcoincash:q...`, `q...`, `p...`; normal with its prefix. Raises BadAddress."""
    _refuse_old_form(text)
    if text not in (text.lower(), text.upper()):
        raise BadAddress(AddressFault.BAD_CHARACTERS, "this address mixes upper and lower case: copy it again")
    if len(text) > _CHARACTERS_MAX:
        raise BadAddress(AddressFault.BAD_LENGTH, "this address is too long: copy it again")
    prefix, separator, payload = text.lower().rpartition(":")
    if separator and prefix not in (PREFIX, *TEST_PREFIXES):
        raise BadAddress(AddressFault.UNRECOGNISED, f"this is no Bitcoin Cash address: one begins with {PREFIX}:")
    words = _words(payload)
    tests = TEST_PREFIXES if not separator else ()
    if prefix in TEST_PREFIXES or any(_is_right(other, words) for other in tests):
        raise BadAddress(
            AddressFault.TESTNET, f"this address is of a test network: give one that begins with {PREFIX}:"
        )
    if not _is_right(PREFIX, words):
        raise BadAddress(
            AddressFault.BAD_CHECKSUM, "the checksum of this address is wrong, a character is mistyped: copy it again"
        )
    _check_payload(words[:-_CHECKSUM_WORDS])
    return plain_address(f"{PREFIX}:{payload}")


def _check_payload(words: list[int]) -> None:
    try:
        data = bech32.bytes_of(words, "address")
    except LocalProtocolError as error:
        raise BadAddress(AddressFault.BAD_LENGTH, f"{error}: copy it again") from None
    if not data or len(data) != 1 + _SIZES_BYTES[data[0] & 7]:
        raise BadAddress(AddressFault.BAD_LENGTH, "this address is too long or too short: copy it again")
    if data[0] not in _PAYABLE:
        raise BadAddress(
            AddressFault.UNSUPPORTED_TYPE,
            "not every sender can pay this form of address: give the plain one, with q or p after the colon",
        )
    refuse_nobodys(data[1:])


def _words(payload: str) -> list[int]:
    try:
        return bech32.words_of(payload, "address")
    except LocalProtocolError as error:
        raise BadAddress(AddressFault.BAD_CHARACTERS, f"{error}: copy it again") from None


def _refuse_old_form(text: str) -> None:
    try:
        bitcoin.read_base58(text, bitcoin.BITCOIN_VERSIONS)
    except BadAddress:
        return
    raise BadAddress(
        AddressFault.UNSUPPORTED_TYPE,
        f"this may as well be a Bitcoin address: give the form that begins with {PREFIX}:, which every wallet shows",
    )


def _is_right(prefix: str, words: Iterable[int]) -> bool:
    checksum = 1
    for value in [*(ord(character) & 31 for character in prefix), 0, *words]:
        top = checksum >> 35
        checksum = (checksum & 0x07FFFFFFFF) << 5 ^ value
        for bit, term in enumerate(_GENERATOR):
            if (top >> bit) & 1:
                checksum ^= term
    return checksum == 1
