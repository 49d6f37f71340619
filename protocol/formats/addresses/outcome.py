"""What comes out of a check of an address: the address, what its owner should know, or why it is none."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct


class AddressFault(StrEnum):
    """Why a text is no address to pay to."""

    BAD_LENGTH = "bad_length"
    BAD_CHARACTERS = "bad_characters"
    BAD_CHECKSUM = "bad_checksum"
    UNRECOGNISED = "unrecognised"
    WRONG_COIN = "wrong_coin"
    TESTNET = "testnet"
    #: Well formed, but of a form that payouts do not go to, because not every receiver could spend them.
    UNSUPPORTED_TYPE = "unsupported_type"
    #: Well formed, but nobody holds a key to it: a burn address, a program, the contract of a token.
    NOBODYS = "nobodys"
    SECRET_KEY = "secret_key"  # noqa: S105 - the name of a fault, not a secret


class AddressWarning(StrEnum):
    """What the owner of an address should look at before money goes there."""

    #: Nothing in the text tells a typing mistake from the right address.
    UNCHECKED = "unchecked"
    #: An account of an exchange is shared by its customers: without the tag the payment is nobody's.
    TAG_MISSING = "tag_missing"


#: The same for people, one sentence each.
WARNINGS: Final = {
    AddressWarning.UNCHECKED: "a mistyped character cannot be noticed here: compare every character with your wallet's",
    AddressWarning.TAG_MISSING: "if this account is an exchange's, it needs a destination tag too: give the X-address",
}


class Address(Struct, frozen=True):
    """An address that can be paid.

    `text` is its one normal form, to be stored and compared. `account` is what to name to the chain: the same, but
    where the text carries a destination tag (XRP). A payment to an address with a tag carries the tag or is not made.
    """

    text: str
    account: str
    destination_tag: int | None = None
    warnings: tuple[AddressWarning, ...] = ()


class BadAddress(Exception):
    """A text is no address to pay to. The message is one line for people and never repeats the text."""

    def __init__(self, fault: AddressFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def plain_address(text: str, *warnings: AddressWarning) -> Address:
    """An address that is named to the chain as it is written."""
    return Address(text, text, None, warnings)


def refuse_nobodys(payload: bytes) -> None:
    """Raise BadAddress for a hash that is nearly all zeros: nobody has its key, and it is used to burn money."""
    if not any(payload[:16]):
        raise BadAddress(AddressFault.NOBODYS, "this address is nobody's, money sent there is burnt: give your own")
