"""protocol/formats/coins.py: one table, and every name in use leads to exactly one row of it or is refused."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.formats import coins
from protocol.formats.coins import PAIRS, Pair, PairFault, UnknownPair, default_pair, find_pair, pair_of_asset

# The list of the system that existed before, in its order; and the ledger's scales with their reason beside them.
KNOWN = {
    ("BTC", "bitcoin"): (8, 8),
    ("BCH", "bitcoin-cash"): (8, 8),
    ("ETH", "ethereum"): (18, 9),
    ("SOL", "solana"): (9, 9),
    ("POL", "polygon"): (18, 9),
    ("BNB", "bsc"): (18, 9),
    ("XRP", "ripple"): (6, 6),
    ("ADA", "cardano"): (6, 6),
    ("DOGE", "dogecoin"): (8, 8),
    ("USDT", "ethereum"): (6, 6),
    ("USDT", "polygon"): (6, 6),
    ("USDT", "solana"): (6, 6),
    ("USDC", "ethereum"): (6, 6),
    ("USDC", "polygon"): (6, 6),
    ("USDC", "solana"): (6, 6),
    ("USDC", "base"): (6, 6),
}


def test_the_table_is_the_sixteen_pairs_in_order() -> None:
    assert {(pair.code, pair.network): (pair.chain_decimals, pair.ledger_decimals) for pair in PAIRS} == KNOWN
    assert [(pair.code, pair.network) for pair in PAIRS] == list(KNOWN)


@pytest.mark.parametrize("column", ["asset", "gateway_code", "name"])
def test_names_of_the_table_are_each_used_once(column: str) -> None:
    assert len({getattr(pair, column) for pair in PAIRS}) == len(PAIRS)


def test_only_dogecoin_needs_a_person() -> None:
    assert [pair.code for pair in PAIRS if pair.is_manual] == ["DOGE"]


def test_native_coins_are_named_by_their_code_in_the_ledger_and_tokens_by_their_network_too() -> None:
    assert pair_of_asset("BTC") == find_pair("BTC")
    assert pair_of_asset("USDC-base") == find_pair("USDC", "base")
    assert all(pair_of_asset(pair.asset) is pair for pair in PAIRS)
    for text in ("btc", "USDC", "", "USDC_BASE"):
        with pytest.raises(UnknownPair):
            pair_of_asset(text)


@pytest.mark.parametrize(("code", "network"), [("USDT", "ethereum"), ("USDC", "ethereum"), ("BTC", "bitcoin")])
def test_without_a_network_it_is_the_first_row(code: str, network: str) -> None:
    assert default_pair(code).network == network
    assert find_pair(code) == default_pair(code)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.asset)
def test_every_spelling_of_a_row_leads_to_it(pair: Pair) -> None:
    for code, network in product(coins._CODES[pair.code], coins._NETWORKS[pair.network]):
        for spell in (str.upper, str.lower, str.title, lambda text: text.replace("-", "_")):
            assert find_pair(spell(code), spell(network)) is pair
            assert find_pair(spell(f"{code}-{network}")) is pair
            assert find_pair(spell(f"{code}-{network}"), network) is pair


def test_no_name_means_two_things() -> None:
    for names in (coins._CODES, coins._NETWORKS):
        aliases = [alias for of_one in names.values() for alias in of_one]
        assert len(set(aliases)) == len(aliases)
        assert all(name.lower() in of_one for name, of_one in names.items())


@pytest.mark.parametrize(
    ("coin", "network", "fault", "reason"),
    [
        ("BTC", "ethereum", PairFault.NOT_OFFERED, "BTC is not offered on ethereum; there is BTC on bitcoin"),
        ("USDT", "base", PairFault.NOT_OFFERED, "there is USDT on ethereum, polygon and solana"),
        ("USDC_BASE", "solana", PairFault.CONTRADICTION, "the coin's name says base, the network solana"),
        ("USDC_TRX", None, PairFault.UNKNOWN_NETWORK, "no such network for USDC; there is USDC on"),
        ("USDC", "tron", PairFault.UNKNOWN_NETWORK, "no such network; there is USDC on"),
        ("LTC", None, PairFault.UNKNOWN_COIN, "there are BTC on bitcoin, BCH on bitcoin-cash"),
        ("b" * 33, None, PairFault.UNKNOWN_COIN, "that is no name of a coin"),
        ("BTC\x1b[2J", None, PairFault.UNKNOWN_COIN, "that is no name of a coin"),
        ("USDC", "ba\nse", PairFault.UNKNOWN_NETWORK, "that is no name of a network"),
    ],
)
def test_what_is_no_pair_is_refused_with_what_there_is(
    coin: str, network: str | None, fault: PairFault, reason: str
) -> None:
    with pytest.raises(UnknownPair, match=reason) as caught:
        find_pair(coin, network)
    assert caught.value.fault is fault
    assert str(caught.value).isprintable()


@given(st.text(max_size=60), st.none() | st.text(max_size=60))
def test_any_text_is_a_pair_or_one_kind_of_error(coin: str, network: str | None) -> None:
    message = ""
    try:
        assert find_pair(coin, network) in PAIRS
    except UnknownPair as error:
        message = str(error)
    assert message.isprintable()


@given(
    st.sampled_from([alias for aliases in coins._CODES.values() for alias in aliases]),
    st.sampled_from([alias for aliases in coins._NETWORKS.values() for alias in aliases]),
)
def test_a_coin_is_never_found_on_another_network_than_the_one_named(code: str, network: str) -> None:
    offered = {pair.network for pair in PAIRS if code in coins._CODES[pair.code]}
    named = next(name for name, aliases in coins._NETWORKS.items() if network in aliases)
    if named in offered:
        pair = find_pair(code, network)
        assert pair.network == named
        assert code in coins._CODES[pair.code]
        return
    with pytest.raises(UnknownPair) as caught:
        find_pair(code, network)
    assert caught.value.fault is PairFault.NOT_OFFERED


@pytest.mark.parametrize("name", [b"BTC", 7, None, 1.0, True])
def test_a_name_is_a_text(name: object) -> None:
    with pytest.raises(UnknownPair):
        find_pair(name)  # type: ignore[arg-type]  # what JSON may hold instead
