"""`infernet peers`: whom the running node knows."""

from __future__ import annotations

import argparse
from typing import Any, Final

from infernet.cli.output import duration, print_json, print_table
from infernet.cli.running_node import STATUS_TIMEOUT_S, node_status
from infernet.cli.said import all_in_words
from infernet.config import places
from infernet.ipc import client as ipc

USAGE: Final = "[--all] [--json]"
DESCRIPTION: Final = """\
The nodes whose signed record the running node holds: what they serve, how loaded they are, whether they are connected.
Names are what those nodes call themselves, and nobody has checked what they say of their models (form of the weights,
engine, speed); only the node id is proven."""
EXAMPLES: Final = """\
examples:
  infernet peers
  infernet peers --json | jq -r '.peers[] | select(.models != []) | .addresses[0]'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom to show."""
    parser.add_argument("--all", action="store_true", help="show this node too")


def run(arguments: argparse.Namespace) -> int:
    """Ask the node and print what it says."""
    config = places()
    try:
        known: list[dict[str, Any]] = ipc.call(config.socket_path, "peers", timeout_s=STATUS_TIMEOUT_S)
    except ipc.NotRunning:
        node_status(config)  # says whether it is starting
        raise
    peers = [peer for peer in known if arguments.all or not peer.get("ourselves")]
    peers.sort(key=lambda peer: (not peer.get("connected"), str(peer.get("name"))))
    if arguments.json:
        print_json({"peers": peers})
    elif not peers:
        print("No peers yet. Nodes are found on the local network, through the coordinator (`infernet init --url`) and")
        print("through each other; `infernet join INVITE` connects to somebody who has run `infernet invite`.")
    else:
        columns = ("name", "node", "role", "connected", "models", "says", "load", "seen", "address")
        print_table(columns, [_row(peer) for peer in peers])
    return 0


def _row(peer: dict[str, Any]) -> list[object]:
    addresses = peer.get("addresses") or []
    return [
        peer.get("name"),
        str(peer.get("node_id"))[:8],
        peer.get("role"),
        peer.get("connected"),
        peer.get("models"),
        all_in_words(peer.get("says"), peer.get("models") or []) or "-",
        # Without a model it runs no jobs.
        f"{peer.get('load', 0)}/8" if peer.get("models") else "-",
        f"{duration(float(peer.get('age_s', 0)))} ago",
        addresses[0] if addresses else "-",
    ]
