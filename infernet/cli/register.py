"""`infernet register`: this node's entry at its coordinator, made or brought up to date."""

from __future__ import annotations

import argparse
from typing import Any, Final

from infernet.cli.command import Failure
from infernet.cli.money import ask_coordinator, fields_of
from infernet.cli.output import print_fields, print_json
from infernet.config import Config, load
from infernet.host.lock import running_pid
from infernet.ipc import client as ipc

USAGE: Final = "[--json]"
DESCRIPTION: Final = """\
Enter this node at its coordinator, or bring its entry up to date, and show what the coordinator then has. A node that
runs does this by itself whenever it links to the coordinator; this is for a look, or before the first start. What is
published follows from the settings alone: a node that was set to --no-advertise publishes no address here either."""
EXAMPLES: Final = """\
examples:
  infernet register
  infernet register --json | jq .row.node_id
  infernet config set --no-advertise && infernet register"""


_NOWHERE: Final = (
    "no coordinator is configured, so there is none that could have an entry of this node: `infernet login --url URL` "
    "names one"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but --json."""


def run(arguments: argparse.Namespace) -> int:
    """Register, and show the entry."""
    config = load().config
    is_running = running_pid(config.pid_file) is not None
    if is_running:
        _check_hidden(config)
        _check_coordinator(config)
        ask_coordinator("register")
    elif config.coordinator_url is None:
        raise Failure(_NOWHERE)
    else:
        # Nobody is to think that it takes jobs.
        ask_coordinator("register", status="offline")
    row = fields_of(ask_coordinator("me", role=config.role.name.lower())).get("row")
    if not isinstance(row, dict):
        raise Failure(
            "the coordinator took the registration and does not know this node: was it started with another role than "
            "its file says?"
        )
    url = config.coordinator_url
    if arguments.json:
        print_json({"registered": True, "running": is_running, "coordinator_url": url, "row": row})
        return 0
    print(f"Registered{f' at {url}' if url is not None else ''}.")
    print_fields(_fields(row))
    if not is_running:
        print("It is entered as offline: `infernet start` brings it to life.")
    return 0


def _check_coordinator(config: Config) -> None:
    """The node that runs may have been told of a coordinator, or of none, when it was started. Raises Failure."""
    status = ipc.call(config.socket_path, "status")
    if isinstance(status, dict) and "coordinator_url" in status and status["coordinator_url"] is None:
        raise Failure(f"{_NOWHERE}; for the node that runs it holds after `infernet stop` and `infernet start`")


def _check_hidden(config: Config) -> None:
    """A node that was started before it was told to hide would register with its address. Raises Failure."""
    if config.advertise:
        return
    status = ipc.call(config.socket_path, "status")
    if isinstance(status, dict) and status.get("advertised_addresses"):
        raise Failure(
            "this node is set to --no-advertise, and the one that runs was started before that and publishes its "
            "address: `infernet stop`, then `infernet start`, and try again"
        )


def _fields(row: dict[str, Any]) -> list[tuple[str, object]]:
    address, port = row.get("address"), row.get("port")
    return [
        ("entry", row.get("node_id")),
        ("name", row.get("name")),
        ("role", row.get("role")),
        ("state", row.get("status")),
        ("address", f"{address} port {port}" if address else "none is published"),
        ("gpu", row.get("gpu_model")),
        ("since", row.get("created_at")),
    ]
