"""Addresses of Bitcoin (base58check, BIP-173, BIP-350) and of Dogecoin, which has the older form only.

BIP-350 asks senders to pay to witness versions that nobody has defined yet. That is for wallets, whose user types
another person's address; here people name their own, and what such an output holds anybody could take. So versions
from 2 on are refused, and version 1 with anything but the 32 bytes of a taproot key (BIP-341).
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from protocol import bech32
from protocol.errors import LocalProtocolError
from protocol.formats.addresses import base58check
from protocol.formats.addresses.outcome import Address, AddressFault, BadAddress, plain_address, refuse_nobodys


class _Versions(Struct, frozen=True):
    """The first byte of a base58check address: pay to a key's hash or to a script's, on the network that counts."""

    live: tuple[int, ...]
    test: tuple[int, ...]


# "List of address prefixes", Bitcoin Wiki; chainparams.cpp of Bitcoin Core and of Dogecoin Core.
BITCOIN_VERSIONS: Final = _Versions((0x00, 0x05), (0x6F, 0xC4))
DOGECOIN_VERSIONS: Final = _Versions((0x1E, 0x16), (0x71, 0xC4))

_HASH_BYTES: Final = 20
_CHARACTERS_MAX: Final = 90
_WITNESS_VERSION_MAX: Final = 16
_PROGRAM_BYTES: Final = range(2, 41)
_PROGRAM_BYTES_V0: Final = (20, 32)
_PROGRAM_BYTES_V1: Final = 32


def read_bitcoin(text: str) -> Address:
    """A Bitcoin address: `1...`, `3...`, `bc1q...`, `bc1p...`. Raises BadAddress."""
    prefix = text.lower().partition("1")[0]
    if prefix in ("tb", "bcrt"):
        raise BadAddress(AddressFault.TESTNET, "this address is of a test network: give one that begins with bc1")
    return _read_segwit(text) if prefix == "bc" else read_base58(text, BITCOIN_VERSIONS)


def read_dogecoin(text: str) -> Address:
    """A Dogecoin address: `D...`, `A...`, `9...`. Raises BadAddress."""
    return read_base58(text, DOGECOIN_VERSIONS)


def read_base58(text: str, versions: _Versions) -> Address:
    """An address of version byte and hash. Raises BadAddress."""
    payload = base58check.decode_check(text)
    if len(payload) != 1 + _HASH_BYTES:
        raise BadAddress(AddressFault.UNRECOGNISED, "this is no address but something else with a checksum")
    if payload[0] in versions.test:
        raise BadAddress(AddressFault.TESTNET, "this address is of a test network: give one of the real network")
    if payload[0] not in versions.live:
        raise BadAddress(AddressFault.UNRECOGNISED, "this is an address of another coin")
    refuse_nobodys(payload[1:])
    return plain_address(text)


def _read_segwit(text: str) -> Address:
    # BIP-173: "Decoders MUST NOT accept strings where some characters are uppercase and some are lowercase".
    if text not in (text.lower(), text.upper()):
        raise BadAddress(AddressFault.BAD_CHARACTERS, "this address mixes upper and lower case: copy it again")
    if len(text) > _CHARACTERS_MAX:
        raise BadAddress(AddressFault.BAD_LENGTH, "this address is too long: copy it again")
    normal = text.lower()
    version, program = _program(normal.removeprefix("bc1"))
    if len(program) not in _PROGRAM_BYTES or (version == 0 and len(program) not in _PROGRAM_BYTES_V0):
        raise BadAddress(
            AddressFault.BAD_LENGTH, "this address has a length that no Bitcoin address has: copy it again"
        )
    if version > 1 or (version == 1 and len(program) != _PROGRAM_BYTES_V1):
        raise BadAddress(
            AddressFault.UNSUPPORTED_TYPE,
            "nobody could keep what is sent to this form of address: give one that begins with bc1q or bc1p",
        )
    refuse_nobodys(program)
    return plain_address(normal)


def _program(data: str) -> tuple[int, bytes]:
    """The witness version and program behind the characters after `bc1`."""
    try:
        first = bech32.words_of(data[:1], "address")
        # BIP-350: version 0 is written in bech32, every later one in bech32m; each with the other's checksum is wrong.
        words = bech32.decode_words("bc", data, bech32.BECH32M if first != [0] else bech32.BECH32, "address")
    except LocalProtocolError as error:
        fault = AddressFault.BAD_CHECKSUM if "checksum" in str(error) else AddressFault.BAD_CHARACTERS
        raise BadAddress(fault, f"{error}: copy it again") from None
    if not words or words[0] > _WITNESS_VERSION_MAX:
        raise BadAddress(AddressFault.UNSUPPORTED_TYPE, "there is no Bitcoin address of this version: copy it again")
    try:
        return words[0], bech32.bytes_of(words[1:], "address")
    except LocalProtocolError as error:
        raise BadAddress(AddressFault.BAD_LENGTH, f"{error}: copy it again") from None
