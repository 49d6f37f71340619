"""Addresses of every kind for the tests: made from any bytes, so that Hypothesis can make as many as it likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import strategies as st

from protocol import bech32
from protocol.formats.addresses import AddressFault, BadAddress, check_address
from protocol.formats.addresses.base58check import RIPPLE_ALPHABET, encode_check
from protocol.formats.coins import PAIRS, Pair, pair_of_asset
from tests.helpers_vectors import load

BECH32_ALPHABET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
BASE58_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
#: Hashes that no address of nobody's begins with.
HASHES: Final = st.binary(min_size=20, max_size=20).filter(lambda hash_: any(hash_[:16]))


def fault_of(asset: str, text: str) -> AddressFault | None:
    """Why this is no address for the asset; None when it is one."""
    try:
        check_address(pair_of_asset(asset), text)
    except BadAddress as error:
        return error.fault
    return None


def refused(asset: str, text: str, fault: AddressFault, reason: str) -> None:
    """Assert that an address is refused for this reason, in one line that does not repeat it."""
    with pytest.raises(BadAddress, match=reason) as caught:
        check_address(pair_of_asset(asset), text)
    assert caught.value.fault is fault
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 200
    assert len(text) < 16 or text not in message


def given_addresses(network: str) -> list[str]:
    """The published addresses of a network that are valid, as they were published."""
    pairs = {pair.asset for pair in PAIRS if pair.network == network}
    return [vector["given"] for vector in load("addresses") if vector["valid"] and vector["asset"] in pairs]


def words_of(data: bytes) -> list[int]:
    """Bytes in words of five bits, the last one filled with zeros; by another way than the code's."""
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 5)
    return [int(bits[at : at + 5], 2) for at in range(0, len(bits), 5)]


def segwit(program: bytes, version: int, prefix: str = "bc") -> str:
    """A Bitcoin address with the right checksum around any program."""
    constant = bech32.BECH32M if version else bech32.BECH32
    return bech32_text(prefix, [version, *words_of(program)], constant)


def bech32_text(prefix: str, words: list[int], constant: int) -> str:
    """Any words under a prefix, with the checksum of the code itself, which published strings hold to BIP-173."""
    values = [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix), *words, *[0] * 6]
    checksum = bech32._polymod(values) ^ constant
    letters = [*words, *((checksum >> shift) & 31 for shift in range(25, -1, -5))]
    return f"{prefix}1{''.join(BECH32_ALPHABET[word] for word in letters)}"


def cashaddr(type_byte: int, data: bytes, prefix: str = "bitcoincash") -> str:
    """A CashAddr with the right checksum around any bytes; the checksum as the specification computes it."""
    words = words_of(bytes([type_byte]) + data)
    checksum = 1
    for value in [*(ord(c) & 31 for c in prefix), 0, *words, *[0] * 8]:
        top = checksum >> 35
        checksum = ((checksum & 0x07FFFFFFFF) << 5) ^ value
        checksum ^= 0x98F2BC8E61 * (top & 1)
        checksum ^= 0x79B76D99E2 * (top >> 1 & 1)
        checksum ^= 0xF33E5FB3C4 * (top >> 2 & 1)
        checksum ^= 0xAE2EABE2A8 * (top >> 3 & 1)
        checksum ^= 0x1E4F43E470 * (top >> 4 & 1)
    checksum ^= 1
    letters = [*words, *((checksum >> shift) & 31 for shift in range(35, -1, -5))]
    return f"{prefix}:{''.join(BECH32_ALPHABET[word] for word in letters)}"


def x_address(account: bytes, flag: int, tag: int, prefix: bytes = b"\x05\x44") -> str:
    """An X-address of any account, flag and tag."""
    return encode_check(prefix + account + bytes([flag]) + tag.to_bytes(8, "little"), RIPPLE_ALPHABET)


def shelley(header: int, data: bytes) -> str:
    """A Cardano address of any header."""
    return bech32_text("addr", words_of(bytes([header]) + data), bech32.BECH32)


#: For each asset, the alphabet of its addresses and a strategy that makes some with a checksum.
CHECKED: Final[dict[str, tuple[str, st.SearchStrategy[str]]]] = {
    "BTC": (
        BASE58_ALPHABET,
        st.one_of(
            st.builds(
                lambda version, hash_: encode_check(version + hash_), st.sampled_from([b"\x00", b"\x05"]), HASHES
            ),
        ),
    ),
    "BCH": (BECH32_ALPHABET, st.builds(cashaddr, st.sampled_from([0, 8]), HASHES)),
    "XRP": (
        RIPPLE_ALPHABET,
        st.one_of(
            st.builds(lambda account: encode_check(b"\x00" + account, RIPPLE_ALPHABET), HASHES),
            st.builds(x_address, HASHES, st.just(1), st.integers(0, 2**32 - 1)),
        ),
    ),
    "ADA": (
        BECH32_ALPHABET,
        st.one_of(
            st.builds(lambda data: shelley(0x61, data), st.binary(min_size=28, max_size=28)),
            st.builds(shelley, st.sampled_from([0x01, 0x21]), st.binary(min_size=56, max_size=56)),
        ),
    ),
    "DOGE": (
        BASE58_ALPHABET,
        st.builds(lambda version, hash_: encode_check(version + hash_), st.sampled_from([b"\x1e", b"\x16"]), HASHES),
    ),
}


def typed_wrong(draw: Callable[[st.SearchStrategy[str | int]], str | int], text: str, alphabet: str) -> str:
    """A text with one character, after the first, replaced by another of its alphabet."""
    at = draw(st.integers(text.find(":") + 1 or 1, len(text) - 1))
    assert type(at) is int
    letter = draw(st.sampled_from([letter for letter in alphabet if letter != text[at]]))
    return f"{text[:at]}{letter}{text[at + 1 :]}"


def every_pair() -> st.SearchStrategy[Pair]:
    """Any row of the table."""
    return st.sampled_from(PAIRS)
