"""`infernet payments`: what came in and went out through the coordinator's payment gateway."""

from __future__ import annotations

import argparse
from typing import Any, Final

from infernet.cli.command import Misuse
from infernet.cli.money import ask_coordinator, rows_of, when
from infernet.cli.output import print_json, print_table
from infernet.config import load

LIMIT_DEFAULT: Final = 20
LIMIT_MAX: Final = 100

USAGE: Final = "[list] [--limit N] [--json]"
DESCRIPTION: Final = """\
Deposits and payouts of this node's key, the newest first, as the coordinator keeps them. What leases locked, gave back
and earned is in `infernet wallet history`; what an answer costs, `infernet chat` says."""
EXAMPLES: Final = """\
examples:
  infernet payments
  infernet payments list --limit 5
  infernet payments --json | jq '.rows[] | select(.status == "confirmed") | .amount_usd'

--json prints {"rows": [...]}: each row as the coordinator gives it, with created_at, direction (inbound or
outbound), coin, network, amount, amount_usd, status, tx_hash and invoice_id among its fields."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many."""
    parser.add_argument(
        "action", nargs="?", choices=["list"], default="list", help="list: the only one, and the default"
    )
    parser.add_argument(
        "--limit", default=str(LIMIT_DEFAULT), metavar="N", help=f"1 to {LIMIT_MAX} (default: {LIMIT_DEFAULT})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask the coordinator and print what it says."""
    limit = read_limit(arguments.limit)
    rows = rows_of(ask_coordinator("payments", role=load().config.role.name.lower(), limit=limit))
    if arguments.json:
        print_json({"rows": rows})
    elif not rows:
        print(
            "No payments yet. `infernet wallet deposit 5 USDC` puts money in, `infernet payout request` takes it out."
        )
    else:
        columns = ("created (UTC)", "direction", "coin", "network", "amount", "usd", "status", "tx or invoice")
        print_table(columns, [_row(row) for row in rows])
    return 0


def read_limit(word: str) -> int:
    """How many rows. Raises Misuse."""
    if not word.isascii() or not word.isdigit() or len(word) > 3 or not 1 <= int(word) <= LIMIT_MAX:
        raise Misuse(f"--limit is a whole number from 1 to {LIMIT_MAX}")
    return int(word)


def _row(row: dict[str, Any]) -> list[object]:
    return [
        when(row.get("created_at")),
        row.get("direction"),
        row.get("coin"),
        row.get("network"),
        row.get("amount"),
        row.get("amount_usd"),
        row.get("status"),
        row.get("tx_hash") or row.get("invoice_id"),
    ]
