"""`infernet wallet`: the money that the coordinator holds for this node, and what it has earned and spent."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from infernet.cli.command import Failure, Misuse, warn
from infernet.cli.money import (
    as_usd_text,
    ask_coordinator,
    ask_node,
    fields_of,
    no_more,
    read_amount,
    read_id,
    read_pair,
    rows_of,
    usd,
    when,
)
from infernet.cli.output import print_fields, print_json, print_table
from infernet.cli.payments import LIMIT_DEFAULT, LIMIT_MAX, read_limit
from infernet.cli.picture import draw
from infernet.config import Config, load
from infernet.host.lock import running_pid
from infernet.ipc import client as ipc
from protocol.effects import Equivocation
from protocol.formats.amounts import BadAmount, Rounding, parse_amount
from protocol.formats.coins import Pair

USAGE: Final = "[show | leases | history | deposit AMOUNT COIN | close [LEASE] | claim | proof] [OPTIONS]"
DESCRIPTION: Final = """\
Money of this node's key, in dollars. Without a word, or with show: what is available, what is locked in leases (set
aside for providers, and back when they do not need it), what was earned, and what this node holds as vouchers that it
has not redeemed yet.

leases    those that this node pays, or is paid by
history   what moved its money, the newest first; a claim is what a lease earned, or the rest of one that came back
deposit   make an invoice for AMOUNT dollars in COIN, and show where to pay
close     ask for the rest of a lease back, or of all that no question uses; its provider redeems what it has first
claim     redeem every voucher now; the node does it by itself, too, a few seconds after each job
proof     of every coordinator that has signed two different ledgers: what it has signed, to be shown to others"""
EXAMPLES: Final = """\
examples:
  infernet wallet
  infernet wallet deposit 5 USDC --network base
  infernet wallet leases --json | jq '.given[] | select(.claimed_uusd == 0)'

--json, all amounts in micro-USD (millionths of a dollar):
  show     available_uusd, locked_uusd, spent_uusd, earned_uusd, fees_uusd, payout_pending_uusd, withdrawn_uusd as
           the coordinator says; unclaimed_uusd and unclaimed_leases (vouchers held here); coordinator_url
  leases   {"held": [...], "given": [...]}: lease, provider, payer, state, cap_uusd, claimed_uusd, claim_by_ms
  history  {"rows": [...]}: entry, at_ms, kind, amount_uusd
  deposit  {"invoice": {...}}: invoiceId, payAddress, amount, coin, network, expiresAt, hostedUrl
  close    {"rows": [...]} of leases; claim: leases, unclaimed_uusd
  proof    {"rows": [...]}: coordinator_key, entry, first and second, each {"body", "signature"}; all in hex digits"""

ACTIONS: Final = ("show", "leases", "history", "deposit", "close", "claim", "proof")
# No coin's is half as long.
ADDRESS_CHARACTERS_MAX: Final = 200
#: What a wallet program takes out of a picture, by network (BIP 21 and its likes). Elsewhere the address alone.
_SCHEMES: Final = {"bitcoin": "bitcoin", "dogecoin": "dogecoin"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with what."""
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="show", help="what to do (default: show)")
    parser.add_argument("words", nargs="*", metavar="WORD", help="AMOUNT and COIN, or LEASE")
    parser.add_argument("--network", help="with deposit, where a coin has several: ethereum, polygon, solana, base ...")
    parser.add_argument(
        "--limit",
        metavar="N",
        help=f"with history: 1 to {LIMIT_MAX} (default: {LIMIT_DEFAULT})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    if arguments.network is not None and arguments.action != "deposit":
        raise Misuse("--network goes with deposit")
    if arguments.limit is not None and arguments.action != "history":
        raise Misuse("--limit goes with history")
    if arguments.action in ("show", "leases", "history", "claim", "proof"):
        no_more(arguments.words, f"infernet wallet {arguments.action}")
    act = {
        "show": _show,
        "leases": _leases,
        "history": _history,
        "deposit": _deposit,
        "close": _close,
        "claim": _claim,
        "proof": _proof,
    }[arguments.action]
    act(arguments)
    return 0


# ---------------------------------------------------------------- looking


def _coordinator_of(config: Config) -> str | None:
    """Where the money is: a node that runs may have been told otherwise than the file says."""
    if running_pid(config.pid_file) is None:
        return config.coordinator_url
    url: str | None = ipc.call(config.socket_path, "status").get("coordinator_url")
    return url or config.coordinator_url


def _show(arguments: argparse.Namespace) -> None:
    config = load().config
    held = vouchers(config)
    wallet = fields_of(ask_coordinator("wallet"))
    url = _coordinator_of(config)
    if arguments.json:
        # What we know ourselves is not for the coordinator to say.
        print_json(wallet | {"coordinator_url": url} | held)
        return
    print(f"At {url}:")
    print_fields(
        [
            ("available", usd(wallet.get("available_uusd"))),
            ("locked in leases", usd(wallet.get("locked_uusd"))),
            ("spent", usd(wallet.get("spent_uusd"))),
            ("earned", usd(wallet.get("earned_uusd"))),
            # Beside what was earned, where somebody takes any of it.
            ("fees taken", usd(wallet["fees_uusd"]) if wallet.get("fees_uusd") else ""),
            ("for relaying", usd(wallet["relayed_uusd"]) if wallet.get("relayed_uusd") else ""),
            ("on its way out", usd(wallet.get("payout_pending_uusd"))),
            ("paid out", usd(wallet.get("withdrawn_uusd"))),
        ]
    )
    leases = held["unclaimed_leases"]
    print(f"Held here, not redeemed yet: {usd(held['unclaimed_uusd'])} in {leases} lease{'' if leases == 1 else 's'}")


def vouchers(config: Config) -> dict[str, int]:
    """What this node holds in vouchers: the running node's word, or what its file says. Raises Failure, StoreError."""
    if running_pid(config.pid_file) is not None:
        money = ipc.call(config.socket_path, "status").get("money") or {}
        if money.get("trouble"):
            warn(str(money["trouble"]))
        return {
            "unclaimed_uusd": int(money.get("unclaimed_uusd", 0)) + int(money.get("unclaimed_elsewhere_uusd", 0)),
            "unclaimed_leases": int(money.get("unclaimed_leases", 0)),
        }
    if not config.money_file.exists():
        return {"unclaimed_uusd": 0, "unclaimed_leases": 0}
    from contextlib import closing

    from infernet.money.store import MoneyStore, accusation

    with closing(MoneyStore(config.money_file, read_only=True)) as store:
        totals = store.totals()
        proof = store.proof_against(config.coordinator_key) if config.coordinator_key is not None else None
    if proof is not None:
        warn(accusation(proof))
    return {"unclaimed_uusd": totals.unclaimed_uusd, "unclaimed_leases": totals.unclaimed_leases}


def _leases(arguments: argparse.Namespace) -> None:
    held = rows_of(ask_coordinator("leases", role="client", open=True, limit=100))
    given = rows_of(ask_coordinator("leases", role="provider", open=True, limit=100))
    if arguments.json:
        print_json({"held": held, "given": given})
        return
    columns = ("lease", "with", "locked", "redeemed", "redeem by (UTC)")
    for title, rows, other in (
        ("This node pays", held, "provider"),
        ("This node is paid by", given, "payer"),
    ):
        if rows:
            print(f"{title}:")
            print_table(columns, [_lease_row(row, other) for row in rows])
    if not held and not given:
        print("No open leases. One is made when a paid question is asked.")


def _lease_row(row: dict[str, Any], other: str) -> list[object]:
    amounts = [usd(row.get("cap_uusd")), usd(row.get("claimed_uusd"))]
    return [row.get("lease"), str(row.get(other))[:8], *amounts, when(row.get("claim_by_ms"))]


def _history(arguments: argparse.Namespace) -> None:
    limit = LIMIT_DEFAULT if arguments.limit is None else read_limit(arguments.limit)
    rows = rows_of(ask_coordinator("history", limit=limit))
    if arguments.json:
        print_json({"rows": rows})
    elif not rows:
        print("Nothing has moved yet. `infernet wallet deposit 5 USDC` puts money in.")
    else:
        columns = ("entry", "when (UTC)", "what", "amount", "for")
        print_table(columns, [_history_row(row) for row in rows])


def _history_row(row: dict[str, Any]) -> list[object]:
    of = row.get("lease") or row.get("payment") or row.get("intent") or "-"
    return [row.get("entry"), when(row.get("at_ms")), row.get("kind"), usd(row.get("amount_uusd")), str(of)[:16]]


# ---------------------------------------------------------------- putting money in


def _deposit(arguments: argparse.Namespace) -> None:
    if len(arguments.words) != 2:
        raise Misuse("how much, and in what: infernet wallet deposit 5 USDC [--network base]")
    uusd = read_amount(arguments.words[0])
    pair = read_pair(arguments.words[1], arguments.network)
    config = load().config
    accused = {proof.coordinator for proof in _proofs(config)}
    if _key_of_coordinator(config) in accused:
        raise Failure(
            "this coordinator has signed two different ledgers, and would owe you what you give it: see "
            "`infernet wallet proof`, and use another one"
        )
    answer = fields_of(ask_coordinator("deposit", amount_usd=as_usd_text(uusd), coin=pair.code, network=pair.network))
    invoice = fields_of(answer.get("invoice", answer))
    if (invoice.get("coin"), invoice.get("network")) != (pair.code, pair.network):
        raise Failure("the coordinator's invoice is for another coin or network than was asked: pay nothing on it")
    address = invoice.get("payAddress")
    if not isinstance(address, str) or not address.isascii() or not address.isprintable() or not address:
        raise Failure("the coordinator's invoice names no address: pay nothing on it")
    if len(address) > ADDRESS_CHARACTERS_MAX or not _is_amount(pair, invoice.get("amount")):
        raise Failure(
            "the coordinator's invoice has no amount, or no address, that anybody could pay: pay nothing on it"
        )
    if arguments.json:
        print_json({"invoice": invoice})
        return
    print(f"Pay exactly this, once, for {usd(uusd)} of credit:")
    print_fields(
        [
            ("amount", f"{invoice.get('amount')} {pair.code}"),
            ("coin", f"{pair.name} ({pair.code} on {pair.network})"),
            ("to", address),
            ("before", f"{when(invoice.get('expiresAt'))} UTC"),
            ("invoice", invoice.get("invoiceId")),
            ("page", invoice.get("hostedUrl")),
        ]
    )
    if pair.is_manual:
        warn(f"payments in {pair.code} are credited by hand, which may take a day")
    if sys.stdout.isatty():
        draw([_payment_text(address, pair.network, invoice.get("amount")), address])


def _is_amount(pair: Pair, amount: object) -> bool:
    """Whether it is some of a coin. How much a dollar is of that only the gateway says."""
    try:
        return isinstance(amount, str) and parse_amount(pair, amount, Rounding.UP) > 0
    except BadAmount:
        return False


def _payment_text(address: str, network: str, amount: object) -> str:
    scheme = _SCHEMES.get(network)
    return f"{scheme}:{address}?amount={amount}" if scheme is not None and isinstance(amount, str) else address


# ---------------------------------------------------------------- closing and claiming


def _close(arguments: argparse.Namespace) -> None:
    if len(arguments.words) > 1:
        raise Misuse("one lease, or none for all: infernet wallet close [LEASE]")
    payload = {"lease": read_id("a lease", arguments.words[0])} if arguments.words else {}
    rows = rows_of(ask_node("close-leases", payload))
    if arguments.json:
        print_json({"rows": rows})
    elif not rows:
        print("There is no lease to close: none is open that this node holds and no question uses.")
    else:
        closed = sum(row.get("state") == "closed" for row in rows)
        print(f"Asked for the rest of {len(rows)} lease{'' if len(rows) == 1 else 's'}; {closed} closed already.")
        print("The others come back when their provider has redeemed what it has, or at the end of their time.")


def _claim(arguments: argparse.Namespace) -> None:
    answer = fields_of(ask_node("claim"))
    if arguments.json:
        print_json(answer)
    elif not answer.get("unclaimed_uusd"):
        print("There is nothing to redeem.")
    else:
        print(f"{usd(answer['unclaimed_uusd'])} is being redeemed; `infernet wallet` shows what is left.")


# ---------------------------------------------------------------- coordinators that cheat


def _proofs(config: Config) -> list[Equivocation]:
    """What the file says, also beside a node that runs. Raises StoreError."""
    if not config.money_file.exists():
        return []
    from contextlib import closing

    from infernet.money.store import MoneyStore

    with closing(MoneyStore(config.money_file, read_only=True)) as store:
        return store.proofs()


def _key_of_coordinator(config: Config) -> bytes | None:
    """Who holds the money: a node that runs may have been told otherwise than the file says."""
    if running_pid(config.pid_file) is None:
        return config.coordinator_key
    told = (ipc.call(config.socket_path, "status").get("money") or {}).get("coordinator_key")
    return bytes.fromhex(told) if told else config.coordinator_key


def _proof(arguments: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = [
        {
            "coordinator_key": proof.coordinator.hex(),
            "entry": proof.entry,
            "first": {"body": proof.first.body.hex(), "signature": proof.first.signature.hex()},
            "second": {"body": proof.second.body.hex(), "signature": proof.second.signature.hex()},
        }
        for proof in _proofs(load().config)
    ]
    if arguments.json:
        print_json({"rows": rows})
        return
    if not rows:
        print("No coordinator is known to have signed two different ledgers.")
    for row in rows:
        print(f"Coordinator {row['coordinator_key']} has signed two different ledgers, both of {row['entry']} entries:")
        print_fields([(f"{which} {part}", row[which][part]) for which in ("first", "second") for part in row[which]])
