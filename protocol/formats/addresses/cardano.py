"""Addresses of Cardano: those of today in bech32 without its limit of length, and those of the Byron era (CIP-19).

Only addresses that a payment key holds are paid. What is sent to a script without the datum that it expects may never
be spent again, and pointer addresses cannot be used in new outputs since the Conway era. Stake addresses take no
payments.
"""

from __future__ import annotations

import zlib
from typing import Final

from protocol import bech32
from protocol.errors import LocalProtocolError
from protocol.formats.addresses import base58check
from protocol.formats.addresses.outcome import Address, AddressFault, BadAddress, plain_address

_PREFIX: Final = "addr"
_TEST_PREFIXES: Final = ("addr_test", "stake_test")
_HASH_BYTES: Final = 28
_LIVE_NETWORK: Final = 1
_TEST_NETWORK: Final = 0
# Header type -> bytes in all: a key with a stake key, a key with a stake script, a key alone.
_PAYABLE: Final = {0: 1 + 2 * _HASH_BYTES, 2: 1 + 2 * _HASH_BYTES, 6: 1 + _HASH_BYTES}
_CHARACTERS_MAX: Final = 128

_COPY: Final = "copy it again"


def read_cardano(text: str) -> Address:
    """A Cardano address: `addr1...`, or `Ae2...` and `Ddz...` of the Byron era. Raises BadAddress."""
    prefix, separator, data = text.lower().partition("1")
    if separator and prefix in _TEST_PREFIXES:
        raise BadAddress(AddressFault.TESTNET, "this address is of a test network: give one that begins with addr1")
    if separator and prefix == "stake":
        raise BadAddress(AddressFault.UNSUPPORTED_TYPE, "a stake address takes no payments: give the one with addr1")
    if separator and prefix == _PREFIX:
        return _read_shelley(text, data)
    return _read_byron(text)


def _read_shelley(text: str, data: str) -> Address:
    if text not in (text.lower(), text.upper()):
        raise BadAddress(AddressFault.BAD_CHARACTERS, f"this address mixes upper and lower case: {_COPY}")
    if len(text) > _CHARACTERS_MAX:
        raise BadAddress(AddressFault.BAD_LENGTH, f"this address is too long: {_COPY}")
    try:
        words = bech32.decode_words(_PREFIX, data, bech32.BECH32, "address")
    except LocalProtocolError as error:
        fault = AddressFault.BAD_CHECKSUM if "checksum" in str(error) else AddressFault.BAD_CHARACTERS
        raise BadAddress(fault, f"{error}: {_COPY}") from None
    try:
        _check_shelley(bech32.bytes_of(words, "address"))
    except LocalProtocolError as error:
        raise BadAddress(AddressFault.BAD_LENGTH, f"{error}: {_COPY}") from None
    return plain_address(text.lower())


def _check_shelley(payload: bytes) -> None:
    header = payload[0] if payload else 0xFF
    kind, network = header >> 4, header & 15
    if network == _TEST_NETWORK:
        raise BadAddress(AddressFault.TESTNET, "this address is of a test network: give one of the real network")
    if kind not in _PAYABLE or network != _LIVE_NETWORK:
        raise BadAddress(
            AddressFault.UNSUPPORTED_TYPE,
            "this is the address of a script or of a stake, not of a wallet: give the one that your wallet shows",
        )
    if len(payload) != _PAYABLE[kind]:
        raise BadAddress(AddressFault.BAD_LENGTH, f"this address is too long or too short: {_COPY}")


# ---------------------------------------------------------------- Byron

# CBOR [tag 24 (payload), CRC-32 of the payload], and the payload is [root, {attribute: bytes}, type]. The shape is
# fixed, so it is read as what it is: a general reader of CBOR would let strangers choose among all that CBOR can say.
_OUTER: Final = b"\x82\xd8\x18"
_ROOT: Final = b"\x83\x58\x1c"
_BYTE_STRING: Final = 2
_UNSIGNED: Final = 0
_MAP: Final = 5
_PATH: Final = 1
_NETWORK_MAGIC: Final = 2
_KEY_TYPE: Final = 0


class _Reader:
    """Takes CBOR apart from left to right, shortest form only (RFC 8949, 4.2.1). Raises ValueError where it is none."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise ValueError("too short")
        self._at += count
        return taken

    def expect(self, data: bytes) -> None:
        """Go past bytes that must be these."""
        if self.take(len(data)) != data:
            raise ValueError("another shape")

    def number(self, major: int) -> int:
        """The number of an item of this major type, of at most 32 bits."""
        first = self.take(1)[0]
        if first >> 5 != major or first & 31 > 26:
            raise ValueError("another type")
        if first & 31 < 24:
            return first & 31
        width = 1 << (first & 31) - 24
        value = int.from_bytes(self.take(width), "big")
        if value < (24 if width == 1 else 1 << 4 * width):
            raise ValueError("not the shortest form")
        return value

    def end(self) -> None:
        """Nothing may follow."""
        if self._at != len(self._data):
            raise ValueError("too long")


def _read_byron(text: str) -> Address:
    data = base58check.decode(text)
    try:
        reader = _Reader(data)
        reader.expect(_OUTER)
        payload = reader.take(reader.number(_BYTE_STRING))
        checksum = reader.number(_UNSIGNED)
        reader.end()
    except ValueError:
        raise _no_byron(text) from None
    if zlib.crc32(payload) != checksum:
        raise BadAddress(
            AddressFault.BAD_CHECKSUM, f"the checksum of this address is wrong, a character is mistyped: {_COPY}"
        )
    try:
        kind, attributes = _root_and_attributes(payload)
    except ValueError:
        raise BadAddress(
            AddressFault.UNSUPPORTED_TYPE, "this is no address that wallets make: give another one"
        ) from None
    if _NETWORK_MAGIC in attributes:
        raise BadAddress(AddressFault.TESTNET, "this address is of a test network: give one of the real network")
    if kind != _KEY_TYPE or attributes - {_PATH}:
        raise BadAddress(
            AddressFault.UNSUPPORTED_TYPE, "this is no address of a wallet: give one that begins with addr1"
        )
    return plain_address(text)


def _no_byron(text: str) -> BadAddress:
    """What to say of a text whose bytes have another shape: a mistyped address mostly has."""
    if text.startswith(("Ae2", "Ddz")):
        return BadAddress(AddressFault.BAD_CHECKSUM, f"this address is mistyped: {_COPY}")
    return BadAddress(AddressFault.UNRECOGNISED, "this is no Cardano address: one begins with addr1")


def _root_and_attributes(payload: bytes) -> tuple[int, set[int]]:
    """The type of a Byron address and the keys of its attributes, each of which is bytes. Raises ValueError."""
    reader = _Reader(payload)
    reader.expect(_ROOT)
    reader.take(_HASH_BYTES)
    keys: list[int] = []
    for _ in range(reader.number(_MAP)):
        keys.append(reader.number(_UNSIGNED))
        reader.take(reader.number(_BYTE_STRING))
    kind = reader.number(_UNSIGNED)
    reader.end()
    if len(set(keys)) != len(keys):
        raise ValueError("the same attribute twice")
    return kind, set(keys)
