"""protocol/bech32.py: the valid and invalid strings of BIP-173 and BIP-350, and that no typo passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import bech32
from protocol.bech32 import BECH32, BECH32M
from protocol.errors import LocalProtocolError

# From the two BIPs, as (prefix, rest, constant).
OFFICIAL = [
    ("a", "2uel5l", BECH32),
    ("an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio", "tt5tgs", BECH32),
    ("?", "ezyfcl", BECH32),
    ("a", "lqfn3a", BECH32M),
    ("?", "v759aa", BECH32M),
    ("split", "checkupstagehandshakeupstreamerranterredcaperredlc445v", BECH32M),
    ("split", "checkupstagehandshakeupstreamerranterredcaperred2y9e3w", BECH32),
]


@pytest.mark.parametrize(("prefix", "text", "constant"), OFFICIAL)
def test_the_official_strings_are_valid_under_their_own_constant_only(prefix: str, text: str, constant: int) -> None:
    data = bech32.decode(prefix, text, constant, "text")
    assert bech32.encode(prefix, data, constant) == text
    with pytest.raises(LocalProtocolError, match="the checksum of this text is wrong"):
        bech32.decode(prefix, text, BECH32 + BECH32M - constant, "text")


@given(st.binary(max_size=200), st.sampled_from([BECH32, BECH32M]))
def test_what_was_encoded_comes_back(data: bytes, constant: int) -> None:
    assert bech32.decode("x", bech32.encode("x", data, constant), constant, "text") == data


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_mistyped_missing_or_swapped_character_is_found(data: bytes, draw: st.DataObject) -> None:
    text = bech32.encode("x", data, BECH32M)
    at = draw.draw(st.integers(0, len(text) - 2))
    typed = draw.draw(
        st.sampled_from(
            [
                text[:at] + draw.draw(st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l")) + text[at + 1 :],
                text[:at] + text[at + 1 :],
                text[:at] + text[at + 1] + text[at] + text[at + 2 :],
            ]
        )
    )
    if typed != text:
        with pytest.raises(LocalProtocolError):
            bech32.decode("x", typed, BECH32M, "text")


def test_characters_that_are_none_and_prefixes_that_are_others_are_refused() -> None:
    text = bech32.encode("x", b"data", BECH32M)
    with pytest.raises(LocalProtocolError, match="a character that bech32 does not have"):
        bech32.decode("x", f"b{text}", BECH32M, "text")
    with pytest.raises(LocalProtocolError, match="checksum"):
        bech32.decode("y", text, BECH32M, "text")
    for short in ("", "qqqqq"):
        with pytest.raises(LocalProtocolError, match="checksum"):
            bech32.decode("x", short, BECH32M, "text")
