"""protocol/formats/addresses/bitcoin.py: every form of BIP-173 and BIP-350, and only those that somebody can keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import bech32
from protocol.formats.addresses import AddressFault, check_address
from protocol.formats.addresses.base58check import encode_check
from protocol.formats.coins import find_pair
from tests.helpers_payments import BECH32_ALPHABET, bech32_text, fault_of, refused, segwit, typed_wrong, words_of

BTC = find_pair("BTC")


@given(st.sampled_from([(0, 20), (0, 32), (1, 32)]), st.data())
def test_programs_that_somebody_can_spend_are_taken_and_no_mistyped_one_is(
    form: tuple[int, int], draw: st.DataObject
) -> None:
    version, size_bytes = form
    program = draw.draw(st.binary(min_size=size_bytes, max_size=size_bytes).filter(lambda data: any(data[:16])))
    text = segwit(program, version)
    address = check_address(BTC, text.upper())
    assert (address.text, address.account, address.warnings) == (text, text, ())
    at = draw.draw(st.integers(3, len(text) - 1))
    letter = draw.draw(st.sampled_from([letter for letter in BECH32_ALPHABET if letter != text[at]]))
    wrong = f"{text[:at]}{letter}{text[at + 1 :]}"
    assert fault_of("BTC", wrong) is AddressFault.BAD_CHECKSUM


@given(st.integers(0, 16), st.binary(min_size=2, max_size=40))
def test_all_other_programs_are_refused_with_their_reason(version: int, program: bytes) -> None:
    fault = fault_of("BTC", segwit(program, version))
    if version == 0:
        known = AddressFault.NOBODYS if not any(program[:16]) else None
        assert fault is (known if len(program) in (20, 32) else AddressFault.BAD_LENGTH)
    elif version == 1 and len(program) == 32:
        assert fault in (None, AddressFault.NOBODYS)
    else:
        assert fault is AddressFault.UNSUPPORTED_TYPE


@pytest.mark.parametrize("version", range(17))
def test_each_version_is_valid_under_its_own_checksum_only(version: int) -> None:
    words = [version, *words_of(bytes(range(1, 33)))]
    wrong = bech32_text("bc", words, bech32.BECH32M if version == 0 else bech32.BECH32)
    refused("BTC", wrong, AddressFault.BAD_CHECKSUM, "the checksum of this address is wrong")


def test_versions_past_16_and_no_data_at_all() -> None:
    for words in ([17, *words_of(bytes(32))], [31], []):
        text = bech32_text("bc", words, bech32.BECH32M)
        assert fault_of("BTC", text) in (AddressFault.UNSUPPORTED_TYPE, AddressFault.BAD_CHECKSUM)


@pytest.mark.parametrize("prefix", ["tb", "bcrt", "TB"])
def test_test_networks_are_named(prefix: str) -> None:
    text = segwit(bytes(range(1, 21)), 0, prefix.lower())
    refused("BTC", text.upper() if prefix.isupper() else text, AddressFault.TESTNET, "of a test network")


@pytest.mark.parametrize(("version", "fault"), [(0x6F, AddressFault.TESTNET), (0xC4, AddressFault.TESTNET)])
def test_the_older_form_on_test_networks(version: int, fault: AddressFault) -> None:
    assert fault_of("BTC", encode_check(bytes([version]) + bytes(range(1, 21)))) is fault
    assert fault_of("DOGE", encode_check(bytes([0x71]) + bytes(range(1, 21)))) is AddressFault.TESTNET


@given(st.integers(0, 255), st.integers(0, 40))
def test_only_four_version_bytes_and_one_length_are_addresses(version: int, size_bytes: int) -> None:
    text = encode_check(bytes([version]) + bytes(range(1, 1 + size_bytes)))
    for asset, live in (("BTC", (0x00, 0x05)), ("DOGE", (0x1E, 0x16))):
        assert (fault_of(asset, text) is None) is (size_bytes == 20 and version in live)


@given(st.data())
def test_a_mistyped_address_of_the_older_form_is_found(draw: st.DataObject) -> None:
    text = "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    assert fault_of("BTC", typed_wrong(draw.draw, text, alphabet)) is AddressFault.BAD_CHECKSUM


def test_mixed_case_and_too_much_are_refused() -> None:
    text = segwit(bytes(range(1, 21)), 0)
    refused(
        "BTC",
        f"{text[:-1]}{text[-1].upper()}" if text[-1].isalpha() else text.title(),
        AddressFault.BAD_CHARACTERS,
        "case",
    )
    refused("BTC", "bc1" + "q" * 88, AddressFault.BAD_LENGTH, "too long")
