"""Vectors of payments: names of coins and networks, and amounts."""

from __future__ import annotations

from collections.abc import Iterator

from _vectors_common import Vector, file, invalid, valid
from protocol.formats.amounts import BadAmount, Rounding, format_amount, parse_amount
from protocol.formats.coins import PAIRS, UnknownPair, find_pair, pair_of_asset

# ---------------------------------------------------------------- coins


def coins() -> Vector:
    """coins.json."""
    return file(
        "A coin's name, perhaps with a network's, as somebody wrote it: which pair of the table is meant, or which "
        "fault it has.",
        [*_rows(), *_names(), *_no_names()],
    )


def _rows() -> Iterator[Vector]:
    for pair in PAIRS:
        yield valid("a row of the table", coin=pair.code, given_network=pair.network, pair=pair)
        yield valid("what the payment gateway calls it", coin=pair.gateway_code, given_network=None, pair=pair)


def _names() -> Iterator[Vector]:
    for coin, network in (
        ("usdc", None),
        ("USDT", None),
        ("USDC_BASE", "base"),
        ("usdc-erc20", None),
        ("usdt", "ERC-20"),
        ("USDT", "spl"),
        ("usdc", "polygon_pos"),
        ("USDT-polygon-pos", None),
        ("MATIC", None),
        ("matic", "pol"),
        ("BSC", None),
        ("bnb", "BEP20"),
        ("bnb", "Binance Smart Chain"),
        ("xrp", "xrpl"),
        ("Bitcoin Cash", None),
        ("bitcoin", "BTC"),
        ("ETH_ETH", None),
    ):
        yield valid("another name", coin=coin, given_network=network, pair=find_pair(coin, network))


def _no_names() -> Iterator[Vector]:
    for comment, coin, network in (
        ("a coin that is not paid", "LTC", None),
        ("a token of another issuer", "USDC.e", None),
        ("nothing", "", None),
        ("a space at the end", "BTC ", None),
        ("a line break", "BTC\n", None),
        ("a letter that lower-cases into ASCII", "\u212aTC", None),
        ("a digit of another script", "ERC\u0662\u0660", None),
        ("33 characters", "b" * 33, None),
        ("a network that is not offered for it", "BTC", "ethereum"),
        ("a stablecoin on a network where it is not paid", "USDT", "base"),
        ("the same, in one name", "ETH_BASE", None),
        ("Tron", "USDT_TRC20", None),
        ("Tron, apart", "USDT", "tron"),
        ("Lightning", "BTC_LN", None),
        ("no name of a network", "USDC", "\x1b[2J"),
        ("a name that contradicts the network", "USDC_BASE", "solana"),
    ):
        yield invalid(comment, coin=coin, given_network=network, fault=_pair_fault(coin, network))


def _pair_fault(coin: str, network: str | None) -> str:
    try:
        find_pair(coin, network)
    except UnknownPair as error:
        return error.fault
    raise AssertionError(coin)


# ---------------------------------------------------------------- amounts


def amounts() -> Vector:
    """amounts.json."""
    return file(
        "An amount of a coin as text: how many units of the ledger it is, and the text that these are written as, or "
        "which fault it has. Without `rounding`, what is finer than the ledger is refused.",
        [*_good_amounts(), *_bad_amounts()],
    )


def _good_amounts() -> Iterator[Vector]:
    for asset, text, rounding in (
        ("BTC", "0", None),
        ("BTC", "0.05", None),
        ("BTC", "21000000.00000000", None),
        ("BTC", "0.00000001", None),
        ("ETH", "9223372036.854775807", None),
        ("ETH", "1.000000000000000001", Rounding.DOWN),
        ("ETH", "1.000000000000000001", Rounding.UP),
        ("ETH", "1.000000000000000000", Rounding.UP),
        ("ETH", "0.999999999999999999", Rounding.UP),
        ("USDC-base", "1.5", None),
        ("SOL", "0.000000001", None),
    ):
        pair = pair_of_asset(asset)
        units = parse_amount(pair, text, rounding)
        yield valid(
            "an amount", asset=asset, text=text, rounding=rounding, units=units, written=format_amount(pair, units)
        )


def _bad_amounts() -> Iterator[Vector]:
    for comment, asset, text, rounding in (
        ("nothing", "BTC", "", None),
        ("a sign", "BTC", "+1", None),
        ("less than nothing", "BTC", "-1", None),
        ("less than nothing by nothing", "BTC", "-0", None),
        ("an exponent", "BTC", "1e3", None),
        ("no number", "BTC", "NaN", None),
        ("no number either", "BTC", "Infinity", None),
        ("a space", "BTC", " 1", None),
        ("a line break", "BTC", "1\n", None),
        ("an underscore", "BTC", "1_000", None),
        ("a comma", "BTC", "1,5", None),
        ("two points", "BTC", "1.2.3", None),
        ("no digit before the point", "BTC", ".5", None),
        ("no digit after the point", "BTC", "5.", None),
        ("a zero too many", "BTC", "00.5", None),
        ("hexadecimal", "BTC", "0x10", None),
        ("Arabic digits", "BTC", "\u0661\u0662", None),
        ("full-width digits", "BTC", "\uff11", None),
        ("21 digits", "ETH", "100.000000000000000001", Rounding.DOWN),
        ("finer than the ledger, without rounding", "ETH", "0.0000000001", None),
        ("finer than the chain", "USDC-base", "0.0000001", Rounding.DOWN),
        ("finer than the ledger by nothing", "BTC", "0.000000000", None),
        ("more than 63 bits", "ETH", "9223372036.854775808", None),
        ("more than 63 bits after rounding", "ETH", "9223372036.8547758071", Rounding.UP),
    ):
        pair = pair_of_asset(asset)
        try:
            parse_amount(pair, text, rounding)
        except BadAmount as error:
            yield invalid(comment, asset=asset, text=text, rounding=rounding, fault=error.fault)
        else:
            raise AssertionError(text)
