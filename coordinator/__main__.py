"""`infernet-coordinator`: start the thin server, or look after what it keeps."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from coordinator import admin, version
from coordinator.config import Config, ConfigRefused, load
from coordinator.printing import Parser, fail, say
from protocol.ids import NodeId, npub

DESCRIPTION: Final = """\
The coordinator of an Infernet market: the only server in it, and a thin one. It records what nodes say they can do,
keeps a link to each, and serves the public chat at /chat. Turn it off, and jobs between nodes go on.
"""

EPILOG: Final = """\
Try it:
  infernet-coordinator                         listen on http://127.0.0.1:8080
  infernet-coordinator --port 0 --json         any free port, told as one JSON line
  curl http://127.0.0.1:8080/api/v1/coordinator   its key, which `infernet init` pins
  infernet-coordinator backup ledger.backup    copy the database, also while the server runs
  infernet-coordinator payouts                 what is on its way out, and what needs a decision
  infernet-coordinator check                   decide every entry of the ledger again, and compare

Settings come from the defaults, then config.toml in --home, then the environment (INFERNET_COORDINATOR_<NAME>, for
example INFERNET_COORDINATOR_CHATS_PER_HOUR=0), then these flags. The key and the database live in --home; back up
coordinator.key, because nodes know the coordinator by it, and keep the journal (ledger.journal, or where the setting
says): with a backup, of any age, it gives back all money that was acknowledged. Logs go to stderr, as JSON lines
where that is no terminal, and never hold a prompt.
Payments need gateway_business_id, gateway_api_key and gateway_webhook_secret. Secrets never stand in a setting or on
a command line: a setting says where one is, file:<path> or env:<NAME>. They were tried with a stand-in of the gateway
only: begin with small amounts.
Behind a proxy, name it in trusted_proxies, or all its users count as one for the rate limits.
"""

BACKUP: Final = """\
Copy the database into one file. The server may run: the copy is of one moment, and nobody waits for it. Keep
coordinator.key and the journal as well.

example:
  infernet-coordinator backup "$(date +%F).backup"
"""

RESTORE: Final = """\
Make the database of --home, where none may be, out of a backup and, with --journal, of all entries of the ledger that
came after it. coordinator.key must be in --home. Then move the journal back to its place and start the server: the time
since the backup counts as time in which nobody could claim. Says where the journal cannot be read to its end: the end
of a record that was torn off in a crash is nothing, but a damaged journal may have held more, and money stands still
until it is moved away. What is no entry is as old as the backup: a payout address that was removed since is back.

example, on a new machine:
  mkdir -m 700 new && cp coordinator.key new/
  infernet-coordinator restore 2026-11-29.backup --journal ledger.journal --home new
  cp ledger.journal new/ && infernet-coordinator --home new
"""

CHECK: Final = """\
Decide every entry of the ledger again, and compare what comes of it with what is kept: balances, leases, payouts,
heads. The server may run. Ends with 1 and one sentence when something differs.

example, while the server runs:
  infernet-coordinator check --home /srv/coordinator

With --signatures it trusts nobody, the coordinator included: each lease must be signed by its client, and each claim by
the payer of its lease.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = Parser("infernet-coordinator", epilog=EPILOG, **_manners(DESCRIPTION))
    arguments.add_argument("--host", help="address to listen on (default 127.0.0.1; :: for every one of this machine)")
    arguments.add_argument("--port", type=int, help="port to listen on (default 8080; 0 for any free one)")
    _add_home(arguments)
    arguments.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="default info")
    arguments.add_argument("--json", action="store_true", help="print one JSON line when ready, instead of text")
    arguments.add_argument("--version", action="version", version=f"infernet-coordinator {version()}")
    _add_commands(arguments)
    return arguments


def _add_commands(arguments: argparse.ArgumentParser) -> None:
    commands = arguments.add_subparsers(title="besides serving", dest="command", metavar="COMMAND")

    def add(name: str, text: str, words: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=words, **_manners(text))
        _add_home(command)
        return command

    backup = add("backup", BACKUP, "copy the database into a file")
    backup.add_argument("target", type=Path, metavar="PATH", help="a file that is not there yet")
    restore = add("restore", RESTORE, "make a database of a backup and the journal")
    restore.add_argument("backup", type=Path, metavar="BACKUP", help="what `backup` has written")
    restore.add_argument("--journal", type=Path, default=None, help="what came after; without it, only the backup")
    check = add("check", CHECK, "check the ledger, and print its head")
    check.add_argument("--signatures", action="store_true", help="verify, too, what clients and payers have signed")
    admin.add_commands(commands)


def _manners(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "argument_default": argparse.SUPPRESS,
        "allow_abbrev": False,
    }


def _add_home(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("--home", help="directory of key, database and config.toml")


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit code: 0 after a shutdown that was asked for, 1 when it could not start, 2 for usage."""
    arguments = parser().parse_args(argv)
    if getattr(arguments, "command", None) in admin.COMMANDS:
        return admin.run(arguments)
    flags: dict[str, Any] = vars(arguments)
    as_json = bool(flags.pop("json", False))
    command, words = (
        flags.pop("command", None),
        {name: flags.pop(name, None) for name in ("target", "backup", "journal", "signatures")},
    )
    try:
        config = load(flags)
    except ConfigRefused as error:
        return fail(error)
    if command is not None:
        return _run_command(command, config, **words)
    # The server takes a second to import; --help and a wrong setting need not wait for it.
    from coordinator import log, server

    log.configure(config.log_level)
    try:
        asyncio.run(server.run(config, lambda url, node: _announce(config, url, node, as_json=as_json)))
    except (server.CannotStart, server.Broken) as error:
        return fail(error)
    return 0


def _run_command(
    command: str,
    config: Config,
    target: Path | None,
    backup: Path | None,
    journal: Path | None,
    signatures: bool | None,
) -> int:
    from coordinator import commands

    if target is not None:
        return commands.run_backup(config, target)
    if backup is not None:
        return commands.run_restore(config, backup, journal)
    assert command == "check"
    return commands.run_check(config, verifies_signatures=bool(signatures))


def _announce(config: Config, url: str, node: NodeId, *, as_json: bool) -> None:
    """Say that the server is ready, to a person or to a program."""
    key_hex, npub_text = node.hex(), npub(node)
    if as_json:
        text = json.dumps({"url": url, "key": key_hex, "npub": npub_text, "pid": os.getpid()})
    else:
        text = (
            f"Infernet coordinator on {url}\n  chat  {url}/chat\n  key   {key_hex}\n  npub  {npub_text}\n"
            f"  home  {config.home_path}\nCtrl-C stops it."
        )
    say(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
