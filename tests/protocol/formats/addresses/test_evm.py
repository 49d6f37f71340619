"""protocol/formats/addresses/evm.py: the checksum that is in the case of the letters, and what has none."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.formats.addresses import AddressFault, AddressWarning, check_address
from protocol.formats.addresses.evm import _CONTRACTS, checksummed
from protocol.formats.coins import PAIRS, find_pair
from tests.helpers_payments import HASHES, fault_of, refused

ETH = find_pair("ETH")
ASSETS = [pair.asset for pair in PAIRS if pair.network in ("ethereum", "polygon", "bsc", "base")]


def test_eight_of_the_sixteen_pairs_have_such_addresses() -> None:
    assert sorted(ASSETS) == sorted(
        ["ETH", "POL", "BNB", "USDT-ethereum", "USDT-polygon", "USDC-ethereum", "USDC-polygon", "USDC-base"]
    )
    assert all(fault_of(asset, "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed") is None for asset in ASSETS)


@given(HASHES)
def test_in_one_case_it_is_taken_with_a_warning_and_gets_its_checksum(data: bytes) -> None:
    normal = checksummed(data.hex())
    assert check_address(ETH, normal).warnings == ()
    for digits in {data.hex(), data.hex().upper()} - {normal[2:]}:
        address = check_address(ETH, f"0x{digits}")
        assert (address.text, address.account) == (normal, normal)
        assert address.warnings == (AddressWarning.UNCHECKED,)


@given(HASHES, st.data())
def test_a_letter_in_the_wrong_case_is_found(data: bytes, draw: st.DataObject) -> None:
    normal = checksummed(data.hex())
    letters = [at for at in range(2, 42) if normal[at].isalpha()]
    if len(letters) > 2:
        at = draw.draw(st.sampled_from(letters))
        wrong = normal[:at] + normal[at].swapcase() + normal[at + 1 :]
        if wrong[2:] not in (wrong[2:].lower(), wrong[2:].upper()):
            assert fault_of("ETH", wrong) is AddressFault.BAD_CHECKSUM


def test_of_mistyped_digits_as_few_pass_as_the_proposal_says() -> None:
    """EIP-55 has "on average 15 check bits" and lets 0.0247 % of mistyped addresses through; the rest is refused."""
    source = random.Random(55)
    tried, passed = 4_000, 0
    for _ in range(tried):
        text = checksummed(source.randbytes(20).hex())
        at = source.randrange(2, 42)
        digit = source.choice([digit for digit in "0123456789abcdefABCDEF" if digit.lower() != text[at].lower()])
        passed += fault_of("ETH", f"{text[:at]}{digit}{text[at + 1 :]}") is None
    assert passed <= tried * 0.001


@pytest.mark.parametrize("contract", sorted(_CONTRACTS))
def test_contracts_of_tokens_are_known_in_every_spelling(contract: str) -> None:
    assert checksummed(contract[2:]) == contract, "mistyped in the table"
    for spelling in (contract, contract.lower(), f"0x{contract[2:].upper()}"):
        refused("USDC-base", spelling, AddressFault.NOBODYS, "the contract of a token")


@pytest.mark.parametrize("number", [0, 1, 9, 0xDEAD, 0x1010, 2**32 - 1])
def test_zero_built_in_contracts_and_burn_addresses_are_nobodys(number: int) -> None:
    refused("ETH", f"0x{number:040x}", AddressFault.NOBODYS, "nobody's")


@pytest.mark.parametrize(
    ("text", "fault", "reason"),
    [
        ("5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", AddressFault.UNRECOGNISED, "begins with 0x"),
        ("0x", AddressFault.BAD_CHARACTERS, "only 0 to 9 and a to f"),
        ("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeg", AddressFault.BAD_CHARACTERS, "only 0 to 9 and a to f"),
        ("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed0", AddressFault.BAD_LENGTH, "40 digits, not 41"),
    ],
)
def test_what_is_none(text: str, fault: AddressFault, reason: str) -> None:
    refused("ETH", text, fault, reason)
