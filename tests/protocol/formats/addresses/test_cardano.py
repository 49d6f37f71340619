"""protocol/formats/addresses/cardano.py: keys of wallets in both eras; Byron addresses made with a CBOR library."""

from __future__ import annotations

import zlib
from typing import Any

import base58
import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.formats.addresses import AddressFault, check_address
from protocol.formats.coins import find_pair
from tests.helpers_payments import fault_of, refused, shelley

ADA = find_pair("ADA")
ROOT = bytes(range(28))


def byron(payload: Any, *, checksum: int | None = None) -> str:
    """A Byron address around any payload."""
    data = payload if type(payload) is bytes else cbor2.dumps(payload)
    crc = zlib.crc32(data) if checksum is None else checksum
    return base58.b58encode(cbor2.dumps([cbor2.CBORTag(24, data), crc])).decode()


@given(st.integers(0, 255), st.sampled_from([28, 29, 55, 56, 57]))
def test_only_addresses_of_keys_on_the_real_network_are_taken(header: int, size_bytes: int) -> None:
    fault = fault_of("ADA", shelley(header, b"\x07" * size_bytes))
    kind, network = header >> 4, header & 15
    if network == 0:
        assert fault is AddressFault.TESTNET
    elif network != 1 or kind not in (0, 2, 6):
        assert fault is AddressFault.UNSUPPORTED_TYPE
    else:
        assert fault is (None if size_bytes == (28 if kind == 6 else 56) else AddressFault.BAD_LENGTH)


def test_the_normal_form_is_lower_case_and_mixed_case_is_refused() -> None:
    text = shelley(0x61, ROOT)
    assert check_address(ADA, text.upper()).text == text
    refused("ADA", text[:-1].upper() + text[-1:].lower() + "q", AddressFault.BAD_CHARACTERS, "case")
    refused("ADA", "addr1", AddressFault.BAD_CHECKSUM, "checksum")


@given(st.binary(min_size=28, max_size=28), st.none() | st.binary(min_size=1, max_size=34))
def test_byron_addresses_of_keys_are_taken_as_they_are(root: bytes, path: bytes | None) -> None:
    text = byron([root, {} if path is None else {1: path}, 0])
    address = check_address(ADA, text)
    assert (address.text, address.account, address.warnings) == (text, text, ())


@given(st.integers(0, 2**32 - 1))
def test_only_its_own_checksum_is_right(checksum: int) -> None:
    payload = [ROOT, {}, 0]
    right = zlib.crc32(cbor2.dumps(payload)) == checksum
    assert (fault_of("ADA", byron(payload, checksum=checksum)) is None) is right


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        ([ROOT, {2: cbor2.dumps(1097911063)}, 0], AddressFault.TESTNET),
        ([ROOT, {1: b"path", 2: cbor2.dumps(1)}, 0], AddressFault.TESTNET),
        ([ROOT, {}, 2], AddressFault.UNSUPPORTED_TYPE),
        ([ROOT, {}, 1], AddressFault.UNSUPPORTED_TYPE),
        ([ROOT, {0: b"stake"}, 0], AddressFault.UNSUPPORTED_TYPE),
        ([ROOT, {3: b"new"}, 0], AddressFault.UNSUPPORTED_TYPE),
        ([ROOT, {1: "text"}, 0], AddressFault.UNSUPPORTED_TYPE),
        ([ROOT, [], 0], AddressFault.UNSUPPORTED_TYPE),
        ([ROOT, {}, -1], AddressFault.UNSUPPORTED_TYPE),
        ([ROOT, {}], AddressFault.UNSUPPORTED_TYPE),
        ([ROOT[:-1], {}, 0], AddressFault.UNSUPPORTED_TYPE),
        (cbor2.dumps([ROOT, {}, 0]) + b"\x00", AddressFault.UNSUPPORTED_TYPE),
        # The same key twice, and a number that is not in its shortest form.
        (b"\x83\x58\x1c" + ROOT + b"\xa2\x01\x40\x01\x40\x00", AddressFault.UNSUPPORTED_TYPE),
        (b"\x83\x58\x1c" + ROOT + b"\xa0\x18\x00", AddressFault.UNSUPPORTED_TYPE),
        # More attributes than there are bytes: nothing is made room for.
        (b"\x83\x58\x1c" + ROOT + b"\xba\xff\xff\xff\xff\x00", AddressFault.UNSUPPORTED_TYPE),
        (b"", AddressFault.UNSUPPORTED_TYPE),
    ],
)
def test_other_byron_addresses_are_refused(payload: Any, fault: AddressFault) -> None:
    assert fault_of("ADA", byron(payload)) is fault


@given(st.binary(max_size=60))
def test_any_bytes_behind_the_first_ones_are_refused_in_one_way(data: bytes) -> None:
    text = base58.b58encode(b"\x82\xd8\x18" + data).decode()
    assert fault_of("ADA", text) in (AddressFault.UNRECOGNISED, AddressFault.BAD_CHECKSUM, AddressFault.SECRET_KEY)


@given(st.data())
def test_a_mistyped_byron_address_is_found(draw: st.DataObject) -> None:
    text = "Ae2tdPwUPEZFRbyhz3cpfC2CumGzNkFBN2L42rcUc2yjQpEkxDbkPodpMAi"
    at = draw.draw(st.integers(0, len(text) - 1))
    letter = draw.draw(st.sampled_from("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"))
    if letter != text[at]:
        assert fault_of("ADA", f"{text[:at]}{letter}{text[at + 1 :]}") in (
            AddressFault.BAD_CHECKSUM,
            AddressFault.UNRECOGNISED,
        )
