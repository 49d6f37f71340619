"""protocol/formats/addresses/cash.py: CashAddr of two types and one size, against an encoder of the tests' own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.formats.addresses import AddressFault, check_address
from protocol.formats.addresses.base58check import encode_check
from protocol.formats.coins import find_pair
from tests.helpers_payments import HASHES, cashaddr, fault_of, refused

BCH = find_pair("BCH")
SIZES_BYTES = (20, 24, 28, 32, 40, 48, 56, 64)


@given(st.sampled_from([0, 8]), HASHES)
def test_every_spelling_becomes_the_one_with_its_prefix_in_lower_case(type_byte: int, data: bytes) -> None:
    text = cashaddr(type_byte, data)
    for spelling in (text, text.upper(), text.removeprefix("bitcoincash:"), text.removeprefix("bitcoincash:").upper()):
        address = check_address(BCH, spelling)
        assert (address.text, address.account, address.warnings) == (text, text, ())


@given(st.integers(0, 255), st.sampled_from(SIZES_BYTES))
def test_only_keys_and_scripts_of_20_bytes_are_paid(type_byte: int, size_bytes: int) -> None:
    text = cashaddr(type_byte, bytes(range(1, 1 + size_bytes)))
    fault = fault_of("BCH", text)
    if len(text) > 128 or size_bytes != SIZES_BYTES[type_byte & 7]:
        assert fault is AddressFault.BAD_LENGTH
    else:
        assert fault is (None if type_byte in (0, 8) else AddressFault.UNSUPPORTED_TYPE)


def test_the_token_aware_form_is_told_apart() -> None:
    refused(
        "BCH", cashaddr(0x10, bytes(range(1, 21))), AddressFault.UNSUPPORTED_TYPE, "give the plain one, with q or p"
    )


@pytest.mark.parametrize("prefix", ["bchtest", "bchreg"])
def test_test_networks_are_named_with_their_prefix_and_without(prefix: str) -> None:
    text = cashaddr(0, bytes(range(1, 21)), prefix)
    for spelling in (text, text.upper(), text.removeprefix(f"{prefix}:")):
        refused("BCH", spelling, AddressFault.TESTNET, "of a test network")


@pytest.mark.parametrize("version", [0x00, 0x05])
def test_the_old_form_is_not_guessed_at(version: int) -> None:
    text = encode_check(bytes([version]) + bytes(range(1, 21)))
    refused("BCH", text, AddressFault.UNSUPPORTED_TYPE, "give the form that begins with bitcoincash:")
    assert fault_of("BTC", text) is None


def test_mixed_case_two_prefixes_and_nobody_are_refused() -> None:
    text = cashaddr(0, bytes(range(1, 21)))
    refused("BCH", text.title(), AddressFault.BAD_CHARACTERS, "mixes upper and lower case")
    refused("BCH", f"bitcoincash:{text}", AddressFault.UNRECOGNISED, "no Bitcoin Cash address")
    refused("BCH", cashaddr(0, bytes(20)), AddressFault.NOBODYS, "nobody's")
    refused("BCH", "bitcoincash:", AddressFault.BAD_CHECKSUM, "checksum")
