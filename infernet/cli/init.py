"""`infernet init`: make this node's key and configuration, all of it or nothing."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from infernet import identity
from infernet.cli.command import Failure, Misuse, warn
from infernet.cli.hints import of_this_machine
from infernet.cli.money import tell_former
from infernet.cli.output import print_fields, print_json
from infernet.cli.questions import ask, confirm
from infernet.cli.settings_flags import add_settings, settings_given, warn_if_running
from infernet.config import (
    Config,
    ConfigError,
    default_name,
    pinned,
    places,
    read_file,
    save,
    values_in,
)
from infernet.host.files import reason_of
from infernet.settings.readers import as_plain, read_node
from infernet.settings.table import BY_NAME
from protocol.envelope import SigningKey
from protocol.ids import NodeId, npub, peer_id
from protocol.records import Role

SECRET_FILE_BYTES_MAX: Final = 1024

USAGE: Final = "[--role ROLE] [--url URL] [--yes] [MORE]"
FORCE_HELP: Final = (
    "begin the settings anew; the key stays, unless --nostr-privkey gives another. What is replaced is kept aside"
)
DESCRIPTION: Final = """\
Make this node's key, once, and its configuration. Asks what was not given; an empty answer takes what is offered.
Run it again to change the answers: the key stays, with --force, too, for what is earned belongs to it. Nothing is
written before everything is known. At the end it names the GPUs that it finds, and the port that a firewall may have
to let in."""
EXAMPLES: Final = """\
examples:
  infernet init
  infernet init --yes --role provider
  infernet init --yes --url http://127.0.0.1:8080            trust the key that it shows now
  infernet init --yes --url https://c.example --coordinator-key npub1...
  infernet init --yes --no-advertise                         open no port, publish no address
  infernet init --nostr-privkey @key.txt                     use a key that you have
  infernet init --force --nostr-privkey @backup.txt          use it instead of the one that is here, damaged or not
  INFERNET_NONINTERACTIVE=1 infernet init                    the same as --yes

A secret key is read from a file (@FILE) or from standard input (-), never from the command line, where other users and
the shell's history see it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be answered in advance."""
    parser.add_argument("--yes", action="store_true", help="ask nothing: take what is given, and defaults for the rest")
    parser.add_argument("--force", action="store_true", help=FORCE_HELP)
    parser.add_argument(
        "--nostr-privkey",
        metavar="@FILE",
        help="use the secret key in this file (nsec1... or 64 hex digits); - reads it",
    )
    parser.add_argument("--nostr-pubkey", metavar="KEY", help="refuse any key but the one with this public key")
    add_settings(parser, "settings")


def run(arguments: argparse.Namespace) -> int:
    """Ask, check, and then write."""
    here = places()
    arguments.yes = arguments.yes or os.environ.get("INFERNET_NONINTERACTIVE", "") not in ("", "0")
    before = {} if arguments.force else values_in(here.config_file)
    given = {name: _checked(name, value) for name, value in settings_given(arguments).items()}
    if "model" in given:
        # Beside several models that stay set, one would have no effect.
        given.setdefault("models", None)
    key = _choose_key(here, arguments)
    _check_key(key.key, arguments.nostr_pubkey)
    values = before | given if arguments.yes else _walk(before, given)
    values.setdefault("role", Role.PROVIDER)
    if "coordinator_key" not in given:
        asking = replace(here, **_proxy_of(given, values))
        values["coordinator_key"] = pinned_key(before, values, asking, yes=arguments.yes)
    _write(here, key, values, force=arguments.force)
    _tell(here, key.key, values, as_json=arguments.json)
    return 0


def _proxy_of(given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a proxy as every other command will have them: flag, environment, file."""
    found = {}
    for name in ("proxy", "proxy_login_file"):
        variable = os.environ.get(BY_NAME[name].variable)
        found[name] = _checked(name, variable) if variable and name not in given else values.get(name)
    return found


def _checked(name: str, value: object) -> Any:
    try:
        return BY_NAME[name].read(value)
    except ValueError as error:
        raise Misuse(f"{BY_NAME[name].flag} {error}") from None


# ---------------------------------------------------------------- the key


@dataclass(frozen=True)
class _Key:
    """The key to use, whether it must be stored, and what is stored in its place now and may be unreadable."""

    key: SigningKey
    is_new: bool
    replaces: bool = False
    old: SigningKey | None = None


def _choose_key(here: Config, arguments: argparse.Namespace) -> _Key:
    """The key that was given, else the one that is there, else a new one. Nothing is written yet."""
    stored, trouble = None, None
    try:
        stored = identity.load(here.key_file)
    except identity.NoIdentity:
        pass
    except identity.IdentityError as error:
        if arguments.nostr_privkey is None or not arguments.force:
            raise
        trouble = error
    if arguments.nostr_privkey is None:
        return _Key(stored, is_new=False) if stored is not None else _Key(identity.generate(), is_new=True)
    chosen = identity.import_secret(_secret(arguments.nostr_privkey))
    if stored is None:
        return _Key(chosen, is_new=True, replaces=trouble is not None)
    if stored.node == chosen.node:
        return _Key(stored, is_new=False)
    if not arguments.force:
        raise Failure(
            f"this node has another key already ({npub(stored.node)}): add --force to keep that one aside and use this"
        )
    return _Key(chosen, is_new=True, replaces=True, old=stored)


def _check_key(key: SigningKey, word: str | None) -> None:
    if word is None:
        return
    try:
        wanted = read_node(word)
    except ValueError as error:
        raise Misuse(f"--nostr-pubkey {error}") from None
    if wanted != key.node:
        raise Misuse(f"--nostr-pubkey is not the public key of this node's key, which is {npub(key.node)}")


def _secret(word: str) -> str:
    """The secret that a word of the command line leads to. Raises Misuse."""
    if word == "-":
        return sys.stdin.readline(SECRET_FILE_BYTES_MAX) if sys.stdin is not None else ""
    if word.startswith("@"):
        try:
            with Path(word[1:]).expanduser().open(encoding="ascii") as file:
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                    # What containers mount as secrets is often so, and nobody else is there.
                    warn(f"{word[1:]} can be read by others, who then have this key, too: `chmod 600 {word[1:]}`")
                return file.read(SECRET_FILE_BYTES_MAX)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise Misuse(f"--nostr-privkey: cannot read {word[1:]} ({reason.lower()})") from None
    # It is not even looked at: whoever gets used to it would do so with the next key, too.
    raise Misuse(
        "--nostr-privkey takes no key from the command line, where other users and the shell's history see it: put the "
        "key into a file of mode 0600 and give --nostr-privkey @FILE, or give --nostr-privkey - and type or pipe it"
    )


# ---------------------------------------------------------------- the walk


def _walk(before: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Ask for what was not given; what was set before is offered again."""
    values = before | given
    print("An empty answer takes what stands in brackets.", file=sys.stderr)

    def question(name: str, text: str, default: str) -> None:
        if name not in given:
            offered = str(as_plain(before[name])) if before.get(name) is not None else default
            answer = ask(text, offered, lambda word: _answer(name, word), BY_NAME[name].flag)
            # Only what was decided is written, so that defaults can follow the role and the program.
            if name in before or answer != _answer(name, default):
                values[name] = answer

    question("role", "What should this node do: provider (run models), aggregator, or client (only ask)?", "provider")
    question("coordinator_url", "Coordinator to link to, as http(s)://host:port, or none", "none")
    question("name", "Name that others see, or none for one made of its role and key", "none")
    if values.get("role", Role.PROVIDER) is not Role.CLIENT:
        question("p2p_port", "TCP port for peers", "46337")
        question("address", "Address under which others reach this machine, or none to find out", "none")
    return values


def _answer(name: str, word: str) -> Any:
    return None if word.lower() == "none" and name != "role" else BY_NAME[name].read(word)


# ---------------------------------------------------------------- the coordinator


def pinned_key(before: dict[str, Any], values: dict[str, Any], asking: Config, *, yes: bool) -> NodeId | None:
    """The key to pin: the one that is pinned for this URL, else the one that it shows, if the user trusts it."""
    url = values.get("coordinator_url")
    if url is None:
        return None
    if url == before.get("coordinator_url") and before.get("coordinator_key") is not None:
        pinned: NodeId = before["coordinator_key"]
        return pinned
    shown = _fetch_key(url, asking)
    if yes:
        warn(f"trusting the key that {url} shows now: {npub(shown)}; another one will be refused from now on")
        return shown
    print(f"{url} shows the key\n  {npub(shown)}\n  {shown.hex()}", file=sys.stderr)
    if not confirm("Is that the coordinator that you mean?", "--coordinator-key"):
        raise Failure("nothing was written; ask whoever runs the coordinator for its key, and give --coordinator-key")
    return shown


def _fetch_key(url: str, asking: Config) -> NodeId:
    import trio

    from infernet.coordinator_client import CoordinatorError, fetch_key
    from infernet.proxy import proxy_for

    try:
        return trio.run(fetch_key, url, proxy_for(asking, url))
    except CoordinatorError as error:
        raise Failure(
            f"{error}; nothing was written: start it or correct --url, or give its key with --coordinator-key"
        ) from None


# ---------------------------------------------------------------- writing


def make_node(here: Config) -> NodeId:
    """A new key and the usual settings, for a machine without a key: what `init --yes` would make.

    Raises ConfigError or IdentityError.
    """
    key = _Key(identity.generate(), is_new=True)
    values = values_in(here.config_file)
    values.setdefault("role", Role.PROVIDER)
    _write(here, key, values, force=False)
    return key.key.node


def _write(here: Config, key: _Key, values: dict[str, Any], *, force: bool) -> None:
    """Key and file, or neither."""
    aside = identity.set_aside(here.key_file, key.old) if key.replaces else None
    try:
        if key.is_new:
            identity.create(here.key_file, key.key)
        try:
            _write_file(here.config_file, values, force=force)
        except BaseException:
            if key.is_new:
                here.key_file.unlink()
            raise
    except BaseException:
        if aside is not None:
            aside.rename(here.key_file)
        raise
    if aside is not None:
        warn(f"the key that this node had lies now at {aside}")


def _write_file(path: Path, values: dict[str, Any], *, force: bool) -> None:
    before = pinned(path)
    if force and path.exists():
        aside = _free_name(path)
        try:
            path.replace(aside)
        except OSError as error:
            raise ConfigError(f"cannot move {path} aside ({reason_of(error)})") from None
        try:
            save(path, values, keep=False)
        except BaseException:
            aside.replace(path)
            raise
        warn(f"the old configuration lies now at {aside}")
    else:
        save(path, values, keep=read_file(path) is not None)
    tell_former(path, before)


def _free_name(path: Path) -> Path:
    """Where a file can be kept without one that is kept already being lost."""
    aside, number = path.with_name(f"{path.name}.old"), 2
    while os.path.lexists(aside):
        aside, number = path.with_name(f"{path.name}.old.{number}"), number + 1
    return aside


def _tell(here: Config, key: SigningKey, values: dict[str, Any], *, as_json: bool) -> None:
    role: Role = values["role"]
    name = values.get("name") or default_name(role, key.node)
    coordinator = values.get("coordinator_key")
    result = {
        "name": name,
        "role": role.name.lower(),
        "npub": npub(key.node),
        "node_id": key.node.hex(),
        "peer_id": peer_id(key.node),
        "config_file": str(here.config_file),
        "key_file": str(here.key_file),
        "coordinator_url": values.get("coordinator_url"),
        "coordinator_key": coordinator.hex() if coordinator is not None else None,
    }
    warn_if_running(here)
    if as_json:
        print_json(result)
        return
    print(f"This node is {name} ({result['role']}).")
    result["coordinator_key"] = npub(coordinator) if coordinator is not None else None
    print_fields([(label.replace("_", " "), value) for label, value in result.items() if label not in ("name", "role")])
    for line in of_this_machine():
        print(line)
    print("Back up the key file: the key is the node, and whoever has it is the node.")
    if role is Role.PROVIDER and not _model_is_there(here, values):
        print("Next: `infernet model pull` fetches a small model; `infernet start` then serves it.")
    else:
        print("Next: `infernet start`.")


def _model_is_there(here: Config, values: dict[str, Any]) -> bool:
    if values.get("engine", "llama") != "llama" or "model" in values:
        return True
    return any(here.models_dir.glob("*.gguf"))
