"""protocol/formats/addresses/ripple.py: no destination tag is ever lost on the way."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from protocol.formats.addresses import Address, AddressFault, AddressWarning, check_address
from protocol.formats.addresses.base58check import RIPPLE_ALPHABET, encode_check
from protocol.formats.coins import find_pair
from tests.helpers_payments import HASHES, fault_of, refused, x_address

XRP = find_pair("XRP")
ACCOUNT = bytes(range(1, 21))


@given(HASHES, st.integers(0, 2**32 - 1))
def test_account_and_tag_come_out_as_they_went_in(account: bytes, tag: int) -> None:
    classic = encode_check(b"\x00" + account, RIPPLE_ALPHABET)
    tagged = x_address(account, 1, tag)
    assert check_address(XRP, tagged) == Address(tagged, classic, tag, ())
    assert check_address(XRP, x_address(account, 0, 0)) == Address(classic, classic, None, ())
    assert check_address(XRP, classic) == Address(classic, classic, None, (AddressWarning.TAG_MISSING,))


def test_a_tag_of_zero_is_a_tag() -> None:
    assert check_address(XRP, x_address(ACCOUNT, 1, 0)).destination_tag == 0


@given(st.integers(0, 255), st.integers(0, 2**64 - 1))
@example(1, 2**32 - 1)
@example(1, 2**32)
@example(0, 1)
@example(2, 0)
def test_only_a_tag_of_32_bits_under_its_flag_is_one(flag: int, tag: int) -> None:
    right = (flag == 1 and tag < 2**32) or (flag == 0 and tag == 0)
    assert fault_of("XRP", x_address(ACCOUNT, flag, tag)) is (None if right else AddressFault.UNSUPPORTED_TYPE)


def test_the_test_network_nobodys_accounts_and_other_payloads_are_refused() -> None:
    refused("XRP", x_address(ACCOUNT, 0, 0, b"\x04\x93"), AddressFault.TESTNET, "of a test network")
    refused("XRP", x_address(bytes(20), 1, 7), AddressFault.NOBODYS, "nobody's")
    refused("XRP", encode_check(bytes(21), RIPPLE_ALPHABET), AddressFault.NOBODYS, "nobody's")
    refused("XRP", x_address(ACCOUNT, 0, 0, b"\x05\x45"), AddressFault.UNRECOGNISED, "begins with r or X")
    for payload in (b"", b"\x23" + ACCOUNT, b"\x00" + ACCOUNT[:-1], b"\x00" + ACCOUNT + b"\x01"):
        refused("XRP", encode_check(payload, RIPPLE_ALPHABET), AddressFault.UNRECOGNISED, "begins with r or X")
