"""The one table of coins and networks, and the many names that people and programs have for them.

Sixteen pairs of a coin and the network it moves on. Everything that needs a list of coins reads this one: the ledger
(its asset names and scales), the address checks, the payment gateway and the commands. Two lists would one day
disagree.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from msgspec import Struct

NAME_CHARACTERS_MAX: Final = 32


class Pair(Struct, frozen=True):
    """A coin on a network.

    `asset` is its name in the ledger and never changes. An amount in the ledger is an integer of units of
    10^-`ledger_decimals`, which also never changes; the chain itself may count finer (`chain_decimals`).
    `gateway_code` is what the payment gateway calls the pair. `is_manual` says that the gateway cannot be relied on to
    notice a payment in it, so that a person has to look.
    """

    code: str
    network: str
    asset: str
    name: str
    chain_decimals: int
    ledger_decimals: int
    gateway_code: str
    is_manual: bool = False


#: In the order in which they are offered; the first row of a code is that code's default network. Amounts of coins with
#: 18 decimals are kept with 9 of them, because 9 of those coins in their smallest unit fill a signed 64-bit integer.
PAIRS: Final = (
    Pair("BTC", "bitcoin", "BTC", "Bitcoin", 8, 8, "BTC"),
    Pair("BCH", "bitcoin-cash", "BCH", "Bitcoin Cash", 8, 8, "BCH"),
    Pair("ETH", "ethereum", "ETH", "Ether", 18, 9, "ETH"),
    Pair("SOL", "solana", "SOL", "Solana", 9, 9, "SOL"),
    Pair("POL", "polygon", "POL", "Polygon", 18, 9, "POL"),
    Pair("BNB", "bsc", "BNB", "BNB", 18, 9, "BNB"),
    Pair("XRP", "ripple", "XRP", "XRP", 6, 6, "XRP"),
    Pair("ADA", "cardano", "ADA", "Cardano", 6, 6, "ADA"),
    Pair("DOGE", "dogecoin", "DOGE", "Dogecoin", 8, 8, "DOGE", is_manual=True),
    Pair("USDT", "ethereum", "USDT-ethereum", "Tether on Ethereum", 6, 6, "USDT_ETH"),
    Pair("USDT", "polygon", "USDT-polygon", "Tether on Polygon", 6, 6, "USDT_POL"),
    Pair("USDT", "solana", "USDT-solana", "Tether on Solana", 6, 6, "USDT_SOL"),
    Pair("USDC", "ethereum", "USDC-ethereum", "USD Coin on Ethereum", 6, 6, "USDC_ETH"),
    Pair("USDC", "polygon", "USDC-polygon", "USD Coin on Polygon", 6, 6, "USDC_POL"),
    Pair("USDC", "solana", "USDC-solana", "USD Coin on Solana", 6, 6, "USDC_SOL"),
    Pair("USDC", "base", "USDC-base", "USD Coin on Base", 6, 6, "USDC_BASE"),
)

# Names are compared in lower case, with "-" for "_" and " ". A network's own name is one of its names.
_CODES: Final = {
    "BTC": ("btc", "xbt", "bitcoin"),
    "BCH": ("bch", "bitcoin-cash", "bitcoincash"),
    "ETH": ("eth", "ether", "ethereum"),
    "SOL": ("sol", "solana"),
    "POL": ("pol", "matic", "polygon"),
    "BNB": ("bnb", "bsc"),
    "XRP": ("xrp", "ripple"),
    "ADA": ("ada", "cardano"),
    "DOGE": ("doge", "dogecoin"),
    "USDT": ("usdt", "tether"),
    "USDC": ("usdc", "usd-coin"),
}
_NETWORKS: Final = {
    "bitcoin": ("bitcoin", "btc", "xbt"),
    "bitcoin-cash": ("bitcoin-cash", "bitcoincash", "bch"),
    "ethereum": ("ethereum", "eth", "ether", "erc20", "erc-20"),
    "solana": ("solana", "sol", "spl"),
    "polygon": ("polygon", "pol", "matic", "polygon-pos"),
    "bsc": ("bsc", "bnb", "bep20", "bep-20", "binance-smart-chain", "bnb-smart-chain", "bnb-chain"),
    "ripple": ("ripple", "xrp", "xrpl", "xrp-ledger"),
    "cardano": ("cardano", "ada"),
    "dogecoin": ("dogecoin", "doge"),
    "base": ("base",),
}
_CODE_OF: Final = {alias: code for code, aliases in _CODES.items() for alias in aliases}
_NETWORK_OF: Final = {alias: network for network, aliases in _NETWORKS.items() for alias in aliases}
_PAIR_OF: Final = {(pair.code, pair.network): pair for pair in PAIRS}
_PAIR_OF_ASSET: Final = {pair.asset: pair for pair in PAIRS}
_NAME: Final = re.compile(r"[A-Za-z0-9]+([-_ ][A-Za-z0-9]+)*", re.ASCII)


class PairFault(StrEnum):
    """Why a coin and a network are no pair."""

    UNKNOWN_COIN = "unknown_coin"
    UNKNOWN_NETWORK = "unknown_network"
    NOT_OFFERED = "not_offered"
    CONTRADICTION = "contradiction"


class UnknownPair(Exception):
    """A coin and a network that are none of the sixteen; the message is one line for people and says which exist."""

    def __init__(self, fault: PairFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def find_pair(coin: str, network: str | None = None) -> Pair:
    """The pair that these names mean: `("usdc", "base")`, `("USDC_BASE",)`, `("MATIC",)`, `("usdt", "erc20")`.

    The names are whatever a person or another program wrote. Without a network it is the one in the coin's name, or
    else the coin's default. Raises UnknownPair.
    """
    code, network_in_name = _split(_normal(coin, PairFault.UNKNOWN_COIN))
    if network is None:
        chosen = network_in_name
    else:
        chosen = _NETWORK_OF.get(_normal(network, PairFault.UNKNOWN_NETWORK))
        if chosen is None:
            raise UnknownPair(PairFault.UNKNOWN_NETWORK, f"no such network; {_offer(code)}")
        if network_in_name not in (None, chosen):
            raise UnknownPair(
                PairFault.CONTRADICTION,
                f"the coin's name says {network_in_name}, the network {chosen}: leave one of them out; {_offer(code)}",
            )
    if chosen is None:
        return default_pair(code)
    pair = _PAIR_OF.get((code, chosen))
    if pair is None:
        raise UnknownPair(PairFault.NOT_OFFERED, f"{code} is not offered on {chosen}; {_offer(code)}")
    return pair


def default_pair(code: str) -> Pair:
    """The first row of a code of the table. Raises UnknownPair for any other text, aliases included."""
    for pair in PAIRS:
        if pair.code == code:
            return pair
    raise UnknownPair(PairFault.UNKNOWN_COIN, f"no such coin; {_OFFER}")


def pair_of_asset(asset: str) -> Pair:
    """The pair behind a name of the ledger, letter for letter. Raises UnknownPair."""
    pair = _PAIR_OF_ASSET.get(asset)
    if pair is None:
        raise UnknownPair(PairFault.UNKNOWN_COIN, f"no asset of that name; there are {', '.join(_PAIR_OF_ASSET)}")
    return pair


def _normal(name: str, fault: PairFault) -> str:
    if type(name) is not str or len(name) > NAME_CHARACTERS_MAX or not _NAME.fullmatch(name):
        what = "coin" if fault is PairFault.UNKNOWN_COIN else "network"
        raise UnknownPair(fault, f"that is no name of a {what}: letters, digits and dashes; {_OFFER}")
    return name.lower().replace("_", "-").replace(" ", "-")


def _split(name: str) -> tuple[str, str | None]:
    """The code in a normalised name, and the network that may follow it: `usdc-base`, `bitcoin-cash`, `usdt-erc-20`."""
    if name in _CODE_OF:
        return _CODE_OF[name], None
    parts = name.split("-")
    for at in range(1, len(parts)):
        code, network = _CODE_OF.get("-".join(parts[:at])), _NETWORK_OF.get("-".join(parts[at:]))
        if code is not None and network is not None:
            return code, network
    known = _CODE_OF.get(parts[0])
    if known is None:
        raise UnknownPair(PairFault.UNKNOWN_COIN, f"no such coin; {_OFFER}")
    raise UnknownPair(PairFault.UNKNOWN_NETWORK, f"no such network for {known}; {_offer(known)}")


def _offer(code: str) -> str:
    networks = [pair.network for pair in PAIRS if pair.code == code]
    return f"there is {code} on {' and '.join([', '.join(networks[:-1]), networks[-1]] if networks[1:] else networks)}"


_OFFER: Final = "there are " + ", ".join(f"{pair.code} on {pair.network}" for pair in PAIRS)
