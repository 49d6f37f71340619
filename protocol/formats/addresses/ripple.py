"""Addresses of the XRP Ledger: the classic `r...`, and the X-address, which carries a destination tag (XLS-5d).

Customers of an exchange share one account and are told apart by a 32-bit tag, so a payment without it is lost to
them. An X-address keeps both in one text with one checksum, and is the only way to give a tag here. The classic form
says nothing of tags and is accepted with a warning; it says nothing of the network either, so one of the test network
looks the same.
"""

from __future__ import annotations

from typing import Final

from protocol.formats.addresses import base58check
from protocol.formats.addresses.outcome import (
    Address,
    AddressFault,
    AddressWarning,
    BadAddress,
    plain_address,
    refuse_nobodys,
)

_ACCOUNT_BYTES: Final = 20
_CLASSIC: Final = b"\x00"
_X_LIVE: Final = b"\x05\x44"
_X_TEST: Final = b"\x04\x93"
_TAG_BYTES: Final = 8
_TAG_LIMIT: Final = 2**32
_NO_TAG: Final = 0
_WITH_TAG: Final = 1


def read_xrp(text: str) -> Address:
    """An address of the XRP Ledger. An X-address without a tag becomes its classic form. Raises BadAddress."""
    payload = base58check.decode_check(text, base58check.RIPPLE_ALPHABET)
    if len(payload) == len(_X_LIVE) + _ACCOUNT_BYTES + 1 + _TAG_BYTES:
        return _read_x(text, payload)
    if len(payload) != 1 + _ACCOUNT_BYTES or not payload.startswith(_CLASSIC):
        raise BadAddress(AddressFault.UNRECOGNISED, "this is no XRP address: one begins with r or X")
    refuse_nobodys(payload[1:])
    return plain_address(text, AddressWarning.TAG_MISSING)


def _read_x(text: str, payload: bytes) -> Address:
    prefix, account = payload[:2], payload[2 : 2 + _ACCOUNT_BYTES]
    flag, tag = payload[2 + _ACCOUNT_BYTES], int.from_bytes(payload[-_TAG_BYTES:], "little")
    if prefix == _X_TEST:
        raise BadAddress(AddressFault.TESTNET, "this address is of a test network: give one that begins with r or X")
    if prefix != _X_LIVE:
        raise BadAddress(AddressFault.UNRECOGNISED, "this is no XRP address: one begins with r or X")
    if flag not in (_NO_TAG, _WITH_TAG) or tag >= _TAG_LIMIT or (flag == _NO_TAG and tag):
        raise BadAddress(
            AddressFault.UNSUPPORTED_TYPE, "this address holds a tag that XRP does not have: make it again"
        )
    refuse_nobodys(account)
    classic = base58check.encode_check(_CLASSIC + account, base58check.RIPPLE_ALPHABET)
    return Address(text, classic, tag) if flag == _WITH_TAG else plain_address(classic)
