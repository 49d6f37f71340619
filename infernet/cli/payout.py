"""`infernet payout`: where money that was earned goes, and having it sent there."""

from __future__ import annotations

import argparse
import secrets
from typing import Any, Final

from infernet.cli.command import Failure, Misuse, warn
from infernet.cli.money import (
    UNREACHABLE,
    as_usd_text,
    ask_coordinator,
    fields_of,
    no_more,
    read_amount,
    read_pair,
    rows_of,
    usd,
    when,
)
from infernet.cli.output import print_fields, print_json, print_table
from protocol.formats.addresses import BadAddress, check_address
from protocol.formats.addresses.outcome import WARNINGS
from protocol.formats.coins import Pair, UnknownPair, find_pair

USAGE: Final = "set COIN ADDRESS [--network N] | list | remove COIN ADDRESS [--network N] | request AMOUNT"
DESCRIPTION: Final = """\
set: where this node's money is paid out to. The address is checked here (checksum, coin, network) before anything is
sent. Each one, the first one too, holds 24 hours after it was set, so that a thief of this machine cannot be quick;
from then on it is the default. Set once more, one that holds already is the default at once.
list: the addresses, the default first. remove: forget one. request: have AMOUNT dollars sent to the default."""
EXAMPLES: Final = """\
examples:
  infernet payout set BTC bc1q...
  infernet payout set USDC 0x... --network base
  infernet payout list
  infernet payout request 25

--json prints {"row": {...}} for set and remove, {"rows": [...]} for list, {"payout": {...}} for request: each as
the coordinator gives it, with coin, network, address and is_default among the fields of a row."""
WHERE: Final = "COIN ADDRESS [--network NETWORK]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with what."""
    parser.add_argument("action", choices=["set", "list", "remove", "request"], help="what to do")
    parser.add_argument(
        "words", nargs="*", default=[], metavar="WORD", help="COIN, such as BTC, and its ADDRESS; or AMOUNT"
    )
    parser.add_argument("--network", help="where a coin has several: ethereum, polygon, solana, base ...")


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    if arguments.network is not None and arguments.action not in ("set", "remove"):
        raise Misuse("--network goes with set and remove")
    act = {"set": _set, "list": _list, "remove": _remove, "request": _request}[arguments.action]
    act(arguments)
    return 0


def _set(arguments: argparse.Namespace) -> None:
    pair, address = _read_where(arguments)
    row = fields_of(ask_coordinator("payout-set", coin=pair.code, network=pair.network, address=address))
    row = fields_of(row.get("row", row))
    if arguments.json:
        print_json({"row": row})
        return
    print(f"{pair.name} ({pair.code} on {pair.network}) is paid out to {address}.")
    holds_from, default_from = row.get("active_at"), row.get("default_at")
    if holds_from is not None:
        then = "then" if default_from in (None, holds_from) else f"from {when(default_from)} UTC on"
        print(f"The address holds from {when(holds_from)} UTC on, and {then} money goes there by default.")


def _remove(arguments: argparse.Namespace) -> None:
    pair, address = _read_where(arguments)
    row = fields_of(ask_coordinator("payout-remove", coin=pair.code, network=pair.network, address=address))
    if arguments.json:
        print_json({"row": fields_of(row.get("row", row))})
    else:
        print(f"{address} is forgotten.")


def _list(arguments: argparse.Namespace) -> None:
    no_more(arguments.words, "infernet payout list")
    rows = rows_of(ask_coordinator("payout-list"))
    if arguments.json:
        print_json({"rows": rows})
    elif not rows:
        print(f"No address yet: infernet payout set {WHERE}")
    else:
        columns = ("coin", "network", "address", "default", "holds from (UTC)")
        print_table(columns, [[*(row.get(name) for name in _SHOWN), when(row.get("active_at"))] for row in rows])


_SHOWN: Final = ("coin", "network", "address", "is_default")


def _request(arguments: argparse.Namespace) -> None:
    if len(arguments.words) != 1:
        raise Misuse("how much, in dollars: infernet payout request 25")
    uusd = read_amount(arguments.words[0])
    # Asked for twice under one number, it is sent once.
    number = secrets.token_hex(16)
    try:
        answer = fields_of(ask_coordinator("payout-request", amount_usd=as_usd_text(uusd), request_id=number))
    except Failure as failure:
        if failure.details.get("code") != UNREACHABLE:
            raise
        text = f"{failure}; it may have been ordered all the same: look at `infernet payments` before you ask again"
        raise Failure(text, code=UNREACHABLE) from None
    payout: dict[str, Any] = fields_of(answer.get("payout", answer))
    if arguments.json:
        print_json({"payout": payout})
        return
    print(f"{usd(uusd)} is on its way out; `infernet payments` shows what becomes of it.")
    print_fields([(name, payout.get(name)) for name in ("id", "status", "coin", "network", "address", "amount")])


# ---------------------------------------------------------------- an address, checked before anything is sent


def _read_where(arguments: argparse.Namespace) -> tuple[Pair, str]:
    words: list[str] = arguments.words
    usage = f"infernet payout {arguments.action} {WHERE}"
    if len(words) < 2:
        raise Misuse(f"a coin and an address: {usage}")
    if len(words) > 2:
        raise Misuse(_too_many(words, usage))
    pair = read_pair(words[0], arguments.network)
    try:
        address = check_address(pair, words[1])
    except BadAddress as error:
        raise Misuse(_not_an_address(words[1], pair, str(error), usage)) from None
    # Nothing is lost where an address is removed that nobody has.
    for warning in address.warnings if arguments.action == "set" else ():
        warn(WARNINGS[warning])
    return pair, address.text


def _too_many(words: list[str], usage: str) -> str:
    """Three words are most often a coin, its network and an address, as another program wanted them."""
    coin, network = words[0], words[1]
    if len(words) == 3 and not _looks_like_address(network):
        verb = usage.partition(" COIN")[0]
        return f"the network has a flag of its own: {verb} {coin[:16]} ADDRESS --network {network[:32]}"
    return f"too many words: {usage}"


def _not_an_address(word: str, pair: Pair, why: str, usage: str) -> str:
    if _looks_like_address(word):
        return why
    return f"{word[:32]!r} stands where the address belongs ({why}): {usage}, such as --network {pair.network}"


def _looks_like_address(word: str) -> bool:
    """Whether somebody may have meant a word as an address: no name of a network is as long."""
    if word.lower() in ("mainnet", "testnet"):
        return False
    try:
        find_pair(word)
    except UnknownPair:
        return len(word) > 20
    return False
