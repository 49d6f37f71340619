"""protocol/formats/addresses/base58check.py: what was encoded comes back, in both alphabets, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.formats.addresses.base58check import (
    BITCOIN_ALPHABET,
    CHARACTERS_MAX,
    RIPPLE_ALPHABET,
    decode,
    decode_check,
    encode_check,
)
from protocol.formats.addresses.outcome import AddressFault, BadAddress


@given(st.binary(max_size=60), st.sampled_from([BITCOIN_ALPHABET, RIPPLE_ALPHABET]))
def test_what_was_encoded_comes_back(data: bytes, alphabet: str) -> None:
    text = encode_check(data, alphabet)
    assert decode_check(text, alphabet) == data
    assert decode(text, alphabet)[:-4] == data


@given(st.text(max_size=CHARACTERS_MAX + 9))
def test_any_text_is_decoded_or_one_kind_of_error(text: str) -> None:
    try:
        data = decode_check(text)
    except BadAddress:
        return
    assert encode_check(data) == text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", AddressFault.BAD_LENGTH),
        ("1" * (CHARACTERS_MAX + 1), AddressFault.BAD_LENGTH),
        ("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa ", AddressFault.BAD_CHARACTERS),
        ("0", AddressFault.BAD_CHARACTERS),
        ("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb", AddressFault.BAD_CHECKSUM),
        ("11", AddressFault.BAD_CHECKSUM),
    ],
)
def test_what_is_none(text: str, fault: AddressFault) -> None:
    with pytest.raises(BadAddress) as caught:
        decode_check(text)
    assert caught.value.fault is fault
