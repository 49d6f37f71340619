"""protocol/formats/addresses/checking.py: each pair takes its own addresses, names others, and never breaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.formats.addresses import AddressFault, BadAddress, check_address
from protocol.formats.addresses.checking import CHARACTERS_MAX
from protocol.formats.coins import PAIRS, Pair, find_pair
from tests.helpers_payments import CHECKED, every_pair, fault_of, given_addresses, refused, typed_wrong

ROOT = Path(__file__).resolve().parents[4]
OWNERS = {
    "bitcoin": "a Bitcoin",
    "bitcoin-cash": "a Bitcoin Cash",
    "ethereum": "an Ethereum-style",
    "polygon": "an Ethereum-style",
    "bsc": "an Ethereum-style",
    "base": "an Ethereum-style",
    "solana": "a Solana",
    "ripple": "an XRP",
    "cardano": "a Cardano",
    "dogecoin": "a Dogecoin",
}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.asset)
@pytest.mark.parametrize("network", OWNERS)
def test_an_address_is_taken_by_its_own_network_and_named_by_every_other(pair: Pair, network: str) -> None:
    addresses = given_addresses(network)
    assert addresses
    for text in addresses:
        if OWNERS[network] == OWNERS[pair.network]:
            check_address(pair, text)
        elif pair.network == "bitcoin-cash" and text[0] in "13":
            assert fault_of(pair.asset, text) is AddressFault.UNSUPPORTED_TYPE
        else:
            reason = f"this is {OWNERS[network]} address; {pair.code} on {pair.network} needs one"
            refused(pair.asset, text, AddressFault.WRONG_COIN, reason)


def test_the_sentence_says_what_is_needed() -> None:
    bitcoin = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
    with pytest.raises(BadAddress) as caught:
        check_address(find_pair("ETH"), bitcoin)
    assert str(caught.value) == "this is a Bitcoin address; ETH on ethereum needs one that begins with 0x"


@pytest.mark.parametrize("asset", CHECKED)
@given(st.data())
def test_no_mistyped_character_passes_where_there_is_a_checksum(asset: str, draw: st.DataObject) -> None:
    alphabet, addresses = CHECKED[asset]
    text = draw.draw(addresses)
    assert fault_of(asset, text) is None
    assert fault_of(asset, typed_wrong(draw.draw, text, alphabet)) is not None


@given(every_pair(), st.text(max_size=CHARACTERS_MAX + 20))
@example(find_pair("BTC"), "bc1")
@example(find_pair("BTC"), "bc1\u212a")
@example(find_pair("BCH"), ":")
@example(find_pair("BCH"), "bitcoincash::::")
@example(find_pair("ADA"), "addr1addr1")
@example(find_pair("ETH"), "0x\x00")
def test_any_text_is_an_address_or_one_kind_of_error(pair: Pair, text: str) -> None:
    try:
        address = check_address(pair, text)
    except BadAddress as error:
        message = str(error)
    else:
        message = ""
        assert check_address(pair, address.text).text == address.text
    assert message.isprintable()


@given(
    every_pair(),
    st.sampled_from(["", "1", "3", "bc1q", "bc1p", "bitcoincash:q", "0x", "r", "X", "addr1", "Ae2", "Ddz", "D", "tb1"]),
    st.text("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:_", max_size=CHARACTERS_MAX),
)
def test_any_text_that_looks_like_one_is_too(pair: Pair, beginning: str, rest: str) -> None:
    message = ""
    try:
        check_address(pair, beginning + rest)
    except BadAddress as error:
        message = str(error)
    assert message.isprintable()


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.asset)
def test_a_normal_form_is_its_own(pair: Pair) -> None:
    for text in given_addresses(pair.network):
        address = check_address(pair, text)
        again = check_address(pair, address.text)
        assert (again.text, again.account, again.destination_tag) == (
            address.text,
            address.account,
            address.destination_tag,
        )


@pytest.mark.parametrize(
    ("text", "fault", "reason"),
    [
        ("", AddressFault.BAD_LENGTH, "1 to 128 characters"),
        ("q" * (CHARACTERS_MAX + 1), AddressFault.BAD_LENGTH, "1 to 128 characters"),
        ("q" * 1_000_000, AddressFault.BAD_LENGTH, "1 to 128 characters"),
        ("bc1q\x1b[2J", AddressFault.BAD_CHARACTERS, "letters and digits only"),
        ("bc1q w508", AddressFault.BAD_CHARACTERS, "without spaces"),
        ("\u202ebc1q", AddressFault.BAD_CHARACTERS, "letters and digits only"),
        ("name.eth", AddressFault.BAD_CHARACTERS, "names are not looked up"),
        ("bitcoin:1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", AddressFault.BAD_CHARACTERS, "leave out what stands before"),
    ],
)
@pytest.mark.parametrize("asset", ["BTC", "BCH", "ETH", "SOL"])
def test_what_is_no_text_of_an_address_is_refused_before_it_is_read(
    asset: str, text: str, fault: AddressFault, reason: str
) -> None:
    refused(asset, text, fault, reason)


@pytest.mark.parametrize("text", [None, b"bc1q", 7, 1.5, True, ["bc1q"]])
def test_an_address_is_a_text(text: object) -> None:
    with pytest.raises(BadAddress):
        check_address(find_pair("BTC"), text)  # type: ignore[arg-type]  # what JSON may hold instead


def test_keccak_is_loaded_only_for_who_needs_it() -> None:
    program = (
        "import sys\n"
        "from protocol.formats.addresses import check_address\n"
        "from protocol.formats.coins import find_pair\n"
        "check_address(find_pair('BTC'), '1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa')\n"
        "print('Crypto' in sys.modules)\n"
        "check_address(find_pair('ETH'), '0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed')\n"
        "print('Crypto' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]
