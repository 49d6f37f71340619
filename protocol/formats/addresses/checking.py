"""The one door: which kind of address a pair wants, and what to say of one that is another's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from protocol.formats.addresses import foreign
from protocol.formats.addresses.bitcoin import read_bitcoin, read_dogecoin
from protocol.formats.addresses.cardano import read_cardano
from protocol.formats.addresses.cash import PREFIX, TEST_PREFIXES, read_bitcoin_cash
from protocol.formats.addresses.evm import read_evm
from protocol.formats.addresses.outcome import Address, AddressFault, BadAddress
from protocol.formats.addresses.ripple import read_xrp
from protocol.formats.addresses.solana import read_solana
from protocol.formats.coins import Pair

#: Longer than any address: the longest that are in use have 114 characters.
CHARACTERS_MAX: Final = 128


class _Kind(Struct, frozen=True):
    """A form of address: whose it is, how to know it, and who reads it."""

    owner: str
    form: str
    read: Callable[[str], Address]


_BITCOIN: Final = _Kind("a Bitcoin", "that begins with bc1, 1 or 3", read_bitcoin)
_BITCOIN_CASH: Final = _Kind("a Bitcoin Cash", f"that begins with {PREFIX}:, q or p", read_bitcoin_cash)
_EVM: Final = _Kind("an Ethereum-style", "that begins with 0x", read_evm)
_SOLANA: Final = _Kind("a Solana", "of 32 to 44 letters and digits", read_solana)
_XRP: Final = _Kind("an XRP", "that begins with r or X", read_xrp)
_CARDANO: Final = _Kind("a Cardano", "that begins with addr1", read_cardano)
_DOGECOIN: Final = _Kind("a Dogecoin", "that begins with D, A or 9", read_dogecoin)
_KIND_OF_NETWORK: Final = {
    "bitcoin": _BITCOIN,
    "bitcoin-cash": _BITCOIN_CASH,
    "ethereum": _EVM,
    "solana": _SOLANA,
    "polygon": _EVM,
    "bsc": _EVM,
    "ripple": _XRP,
    "cardano": _CARDANO,
    "dogecoin": _DOGECOIN,
    "base": _EVM,
}
# Solana's comes last, because it has no checksum that could tell it from another base58 text.
_KINDS: Final = (_BITCOIN, _BITCOIN_CASH, _EVM, _XRP, _CARDANO, _DOGECOIN, _SOLANA)
# What another coin's address may turn out to be; every other fault is one of an address of the right kind.
_STRANGE: Final = (
    AddressFault.UNRECOGNISED,
    AddressFault.BAD_CHARACTERS,
    AddressFault.BAD_CHECKSUM,
    AddressFault.BAD_LENGTH,
)
_CHARACTERS: Final = re.compile("[A-Za-z0-9_:]+", re.ASCII)


def check_address(pair: Pair, text: str) -> Address:
    """The address that `pair` can be paid to, in normal form, from what somebody wrote. Raises BadAddress."""
    if type(text) is not str:
        raise BadAddress(AddressFault.BAD_CHARACTERS, "an address is a text")
    foreign.refuse_secret(text)
    _check_characters(text)
    kind = _KIND_OF_NETWORK[pair.network]
    try:
        return kind.read(text)
    except BadAddress as error:
        owner = _owner(kind, text) if error.fault in _STRANGE else None
        if owner is None:
            raise
    raise BadAddress(
        AddressFault.WRONG_COIN,
        f"this is {owner} address; {pair.code} on {pair.network} needs one {kind.form}",
    )


def _check_characters(text: str) -> None:
    if not 0 < len(text) <= CHARACTERS_MAX:
        raise BadAddress(AddressFault.BAD_LENGTH, f"an address has 1 to {CHARACTERS_MAX} characters: copy it again")
    if text.isascii() and "." in text:
        raise BadAddress(
            AddressFault.BAD_CHARACTERS, "names are not looked up: give the address that this name stands for"
        )
    if not _CHARACTERS.fullmatch(text):
        raise BadAddress(
            AddressFault.BAD_CHARACTERS, "an address has letters and digits only: copy it again, without spaces"
        )
    if ":" in text and text.lower().partition(":")[0] not in (PREFIX, *TEST_PREFIXES):
        raise BadAddress(AddressFault.BAD_CHARACTERS, "leave out what stands before the colon, and the colon")


def _owner(wanted: _Kind, text: str) -> str | None:
    """Whose address this is, if it is one: "a Bitcoin", "a Tron"."""
    for kind in _KINDS:
        if kind is not wanted and _is_one(kind, text):
            return kind.owner
    return foreign.other_coin(text)


def _is_one(kind: _Kind, text: str) -> bool:
    try:
        kind.read(text)
    except BadAddress as error:
        return error.fault in (AddressFault.NOBODYS, AddressFault.TESTNET)
    return True
