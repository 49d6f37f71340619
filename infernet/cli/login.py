"""`infernet login`: who this node is, and what its coordinator knows of it. There is nothing to sign in to."""

from __future__ import annotations

import argparse
from typing import Any, Final

from infernet import identity
from infernet.cli.command import Failure, Misuse
from infernet.cli.money import tell_former
from infernet.cli.output import print_fields, print_json
from infernet.cli.settings_flags import warn_if_running
from infernet.config import Config, load, pinned, places, save, values_in
from infernet.settings.table import BY_NAME
from protocol.ids import npub

USAGE: Final = "[--status] [--url URL [--coordinator-key KEY] [--yes]] [--json]"
DESCRIPTION: Final = """\
Show who this node is. There are no accounts and no passwords: the key is the account, and signs everything that is
asked in its name. So there is nothing to sign in to, and nothing to sign out of.

--status asks the coordinator what it knows of this key; exits with 1 when that is nothing.
--url has this node use a coordinator: it shows the key that it found there, and writes both down once you agree.
--url none has it use none."""
EXAMPLES: Final = """\
examples:
  infernet login
  infernet login --status
  infernet login --url https://c.example
  infernet login --yes --url https://c.example --coordinator-key npub1...     in a script
  infernet login --url none"""

_NOTHING: Final = "There is nothing to sign in to: the key is the account."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to show or change; and what other programs' users may try."""
    parser.add_argument("--status", action="store_true", help="ask the coordinator what it knows of this key")
    parser.add_argument("--url", help="use this coordinator from now on, or none")
    parser.add_argument("--coordinator-key", metavar="KEY", help="with --url: its public key, if you know it")
    parser.add_argument("--yes", action="store_true", help="with --url: trust the key that it shows now")
    parser.add_argument("--token", nargs="?", const="", help="refused: no coordinator takes a token")
    parser.add_argument("--logout", action="store_true", help="does nothing, for nothing was signed in to")


def run(arguments: argparse.Namespace) -> int:
    """Show it."""
    if arguments.token is not None:
        # What stands there is a secret of something else.
        raise Misuse(
            "no coordinator takes a token: this node signs with its key, and `infernet login` shows which one; if that "
            "token is good for anything, it is in the shell's history now, so have it revoked where it came from"
        )
    if arguments.url is None and (arguments.yes or arguments.coordinator_key is not None):
        raise Misuse("--yes and --coordinator-key go with --url")
    here = places()
    key = npub(identity.load(here.key_file).node)
    if arguments.url is not None:
        _use(here, arguments)
    config = load().config
    row = _row(config) if arguments.status else None
    if arguments.json:
        answer: dict[str, Any] = {"npub": key, "coordinator_url": config.coordinator_url}
        print_json(answer | ({"known": row is not None, "row": row} if arguments.status else {}))
        return 0
    print(f"This node is {key}.")
    if arguments.status:
        # A row that is missing has been raised as a failure.
        assert row is not None
        print_fields([(name, row.get(field)) for name, field in _FIELDS.items()])
    else:
        print(f"Its coordinator is {config.coordinator_url or 'none (`infernet login --url URL` names one)'}.")
    print(_NOTHING)
    if arguments.logout:
        print("So there is nothing to sign out of either. `infernet remove` has the coordinator forget this node.")
    return 0


_FIELDS: Final = {"entry": "node_id", "name": "name", "role": "role", "state": "status", "since": "created_at"}


def _row(config: Config) -> dict[str, Any]:
    """What the coordinator knows of this key. Raises Failure when that is nothing."""
    from infernet.cli.money import ask_coordinator, fields_of

    if config.coordinator_url is None:
        raise Failure("this node has no coordinator that could know its key: `infernet login --url URL` names one")
    row = fields_of(ask_coordinator("me", role=config.role.name.lower())).get("row")
    if not isinstance(row, dict):
        raise Failure(
            f"{config.coordinator_url} does not know this key yet: `infernet register` enters it",
            known=False,
        )
    return row


def _use(here: Config, arguments: argparse.Namespace) -> None:
    """Write down which coordinator this node uses, with its key. Raises Misuse, Failure or ConfigError."""
    from infernet.cli.init import pinned_key

    if arguments.url.lower() == "none":
        if arguments.coordinator_key is not None:
            raise Misuse("--url none goes without --coordinator-key")
        values: dict[str, Any] = {"coordinator_url": None, "coordinator_key": None}
    else:
        values = {"coordinator_url": _checked("coordinator_url", arguments.url)}
        if arguments.coordinator_key is not None:
            values["coordinator_key"] = _checked("coordinator_key", arguments.coordinator_key)
        else:
            before = values_in(here.config_file)
            values["coordinator_key"] = pinned_key(before, values, load().config, yes=arguments.yes)
    replaced = pinned(here.config_file)
    save(here.config_file, values, keep=True)
    tell_former(here.config_file, replaced)
    warn_if_running(here)


def _checked(name: str, value: str) -> Any:
    try:
        return BY_NAME[name].read(value)
    except ValueError as error:
        raise Misuse(f"{BY_NAME[name].flag} {error}") from None
