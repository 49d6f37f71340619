"""protocol/formats/addresses/solana.py: keys of wallets are taken, what no wallet can be is not."""

from __future__ import annotations

import base58
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_core_ed25519_is_valid_point, crypto_scalarmult_ed25519_base_noclamp

from protocol.formats.addresses import AddressFault, AddressWarning, check_address
from protocol.formats.addresses.solana import _NOBODYS, _is_on_curve
from protocol.formats.coins import find_pair
from tests.helpers_payments import fault_of, refused

SOL = find_pair("SOL")


@given(st.binary(min_size=32, max_size=32))
def test_the_address_of_every_key_is_taken_with_a_warning(secret: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    text = base58.b58encode(key).decode()
    address = check_address(SOL, text)
    assert (address.text, address.account, address.warnings) == (text, text, (AddressWarning.UNCHECKED,))


@given(st.integers(1, 2**250))
def test_every_point_that_libsodium_computes_is_on_the_curve(scalar: int) -> None:
    assert _is_on_curve(crypto_scalarmult_ed25519_base_noclamp(scalar.to_bytes(32, "little")))


@given(st.binary(min_size=32, max_size=32))
def test_whatever_libsodium_calls_a_point_is_one_and_what_is_none_is_refused(key: bytes) -> None:
    if crypto_core_ed25519_is_valid_point(key):
        assert _is_on_curve(key)
    if not _is_on_curve(key):
        assert not crypto_core_ed25519_is_valid_point(key)
        assert fault_of("SOL", base58.b58encode(key).decode()) in (
            AddressFault.UNSUPPORTED_TYPE,
            AddressFault.NOBODYS,
        )


def test_a_number_past_the_field_is_no_point() -> None:
    assert not _is_on_curve(b"\xff" * 32)
    assert _is_on_curve((1).to_bytes(32, "little")), "the neutral point: x is zero"


@pytest.mark.parametrize(
    "text",
    [
        *sorted(_NOBODYS),
        "1" * 32,
        "Vote111111111111111111111111111111111111111",
        "So11111111111111111111111111111111111111112",
        "1nc1nerator11111111111111111111111111111111",
        "SysvarRent111111111111111111111111111111111",
    ],
)
def test_programs_and_mints_are_nobodys(text: str) -> None:
    assert len(base58.b58decode(text)) == 32, "mistyped in the table"
    refused("USDC-solana", text, AddressFault.NOBODYS, "nobody's wallet")


@pytest.mark.parametrize(
    "text",
    [
        # solana-web3.js, the tests of createProgramAddress.
        "3gF2KMe9KiC6FNVBmfg9i267aMPvK37FewCip4eGBFcT",
        "7ytmC1nT1xY4RfxCV2ZgyA7UakC93do5ZdyhdF3EtPj7",
        "HwRVBufQ4haG5XSgpspwKtNd3PC9GM9m1196uJW36vds",
    ],
)
def test_addresses_derived_for_a_program_are_no_wallets(text: str) -> None:
    refused("SOL", text, AddressFault.UNSUPPORTED_TYPE, "give your wallet's own address")


@given(st.integers(0, 60).filter(lambda size: size not in (32, 64)))
def test_another_length_is_refused(size_bytes: int) -> None:
    text = base58.b58encode(b"\x07" * size_bytes).decode()
    assert fault_of("SOL", text) is AddressFault.BAD_LENGTH
