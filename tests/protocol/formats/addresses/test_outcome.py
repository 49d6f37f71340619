"""protocol/formats/addresses/outcome.py: what a warning says, and which hashes are nobody's."""

from __future__ import annotations

import pytest

from protocol.formats.addresses.outcome import (
    WARNINGS,
    AddressFault,
    AddressWarning,
    BadAddress,
    plain_address,
    refuse_nobodys,
)


def test_every_warning_has_its_sentence() -> None:
    assert set(WARNINGS) == set(AddressWarning)
    assert all(sentence.isprintable() for sentence in WARNINGS.values())


@pytest.mark.parametrize("payload", [bytes(20), bytes(32), bytes(19) + b"\x01", bytes(16) + b"\xff" * 4])
def test_a_hash_of_zeros_is_nobodys(payload: bytes) -> None:
    with pytest.raises(BadAddress) as caught:
        refuse_nobodys(payload)
    assert caught.value.fault is AddressFault.NOBODYS


@pytest.mark.parametrize("payload", [bytes(15) + b"\x01" + bytes(4), b"\x01" + bytes(19), b"\xff" * 20])
def test_any_other_hash_is_somebodys(payload: bytes) -> None:
    refuse_nobodys(payload)


def test_most_addresses_are_named_to_the_chain_as_they_are_written() -> None:
    address = plain_address("text", AddressWarning.UNCHECKED)
    assert (address.text, address.account, address.destination_tag) == ("text", "text", None)
    assert address.warnings == (AddressWarning.UNCHECKED,)
