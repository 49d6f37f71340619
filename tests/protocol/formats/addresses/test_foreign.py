"""protocol/formats/addresses/foreign.py: whoever pastes a secret key hears so, and other coins are called by name."""

from __future__ import annotations

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.formats.addresses import AddressFault
from protocol.formats.addresses.base58check import RIPPLE_ALPHABET, encode_check
from protocol.formats.addresses.foreign import other_coin
from tests.helpers_payments import refused

SECRET = bytes(range(1, 33))
WORDS = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"


@pytest.mark.parametrize(
    "text",
    [
        encode_check(b"\x80" + SECRET),
        encode_check(b"\x80" + SECRET + b"\x01"),
        encode_check(b"\x9e" + SECRET + b"\x01"),
        encode_check(b"\xef" + SECRET),
        "xprv9s21ZrQH143K3QTDL4LXw2F7HEK3wJUD2nW2nRk4stbPy6cq3jPPqjiChkVvvNKmPGJxWUtg6LnF5kejMRNNU3TGtRBeJgk33yuGBxrMPHi",
        SECRET.hex(),
        f"0x{SECRET.hex().upper()}",
        encode_check(b"\x21" + SECRET[:16], RIPPLE_ALPHABET),
        encode_check(b"\x01\xe1\x4b" + SECRET[:16], RIPPLE_ALPHABET),
        base58.b58encode(SECRET * 2).decode(),
        "nsec1qqqsyqcyq5rqwzqf",
        WORDS,
        WORDS.upper(),
        f"  {WORDS}\n",
        f"{WORDS} {WORDS}".replace(" ", "\n"),
    ],
)
@pytest.mark.parametrize("asset", ["BTC", "ETH", "SOL", "XRP", "ADA"])
def test_secret_keys_are_recognised_for_every_coin(asset: str, text: str) -> None:
    refused(asset, text, AddressFault.SECRET_KEY, "show it to nobody")


def test_a_public_key_is_not_called_a_secret() -> None:
    refused("BTC", "xpub661MyMwAqRbcFtXgS5sYJABqqG9YLmC4Q1Rdap9gSE8N", AddressFault.UNSUPPORTED_TYPE, "a public key")


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("TR7NHqjeKQxGTCi8q8ZY4pL8otSzgjLj6t", "a Tron"),
        ("ltc1qw508d6qejxtdg4y5r3zarvary0c5xw7kgmn4n9", "a Litecoin"),
        (encode_check(b"\x30" + SECRET[:20]), "a Litecoin"),
        (encode_check(b"\x4c" + SECRET[:20]), "a Dash"),
        (encode_check(b"\x30" + SECRET[:21]), None),
        ("TR7NHqjeKQxGTCi8q8ZY4pL8otSzgjLj6u", None),
        ("", None),
    ],
)
def test_other_coins_are_called_by_name(text: str, owner: str | None) -> None:
    assert other_coin(text) == owner


@given(st.text(max_size=600))
def test_any_text_is_looked_at_in_peace(text: str) -> None:
    assert other_coin(text) is None or text
