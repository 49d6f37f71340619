"""The flags of settings, made from the table of settings, and the configuration that a verb then works with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from typing import Final

from infernet import identity
from infernet.cli.command import warn
from infernet.config import Config, LoadedConfig, load, save, values_in
from infernet.host.lock import running_pid
from infernet.own_addresses import undialled
from infernet.settings.table import BY_NAME, SETTINGS
from protocol.constants import P2P_PORT
from protocol.envelope import SigningKey
from protocol.reaching import PORT_MIN

_SWITCHES: Final = ("p2p_enabled", "advertise", "mdns", "dht", "allow_private", "confine")


def add_settings(parser: argparse.ArgumentParser, title: str, *, leave_out: Collection[str] = ()) -> None:
    """Offer a flag for each setting."""
    group = parser.add_argument_group(title)
    for setting in SETTINGS:
        if setting.name in leave_out:
            continue
        if setting.name in _SWITCHES:
            group.add_argument(
                setting.flag, dest=setting.name, action=argparse.BooleanOptionalAction, default=None, help=setting.help
            )
        else:
            group.add_argument(setting.flag, dest=setting.name, metavar=_metavar(setting.flag), help=setting.help)


def _metavar(flag: str) -> str:
    return flag.rpartition("-")[2].upper()


def settings_given(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings that stand on the command line, by name."""
    names = {setting.name for setting in SETTINGS}
    return {name: value for name, value in vars(arguments).items() if name in names and value is not None}


def as_flags(given: dict[str, object]) -> list[str]:
    """Words for a command line that gives the same settings."""
    words: list[str] = []
    for setting in SETTINGS:
        value = given.get(setting.name)
        if isinstance(value, bool):
            words.append(setting.flag if value else setting.flag.replace("--", "--no-", 1))
        elif value is not None:
            words.append(f"{setting.flag}={value}")
    return words


def keep_choices(config: Config, arguments: argparse.Namespace) -> None:
    """Write those settings of this command line into the file that hold for all commands from then on.

    Raises ConfigError.
    """
    given = settings_given(arguments)
    kept = {name: BY_NAME[name].read(value) for name, value in given.items() if BY_NAME[name].is_kept}
    in_file = values_in(config.config_file)
    changed = {name: value for name, value in kept.items() if in_file.get(name) != value}
    if changed:
        save(config.config_file, changed, keep=True)
        words = ", ".join(as_flags(changed))
        print(f"infernet: {words} is kept in {config.config_file} and holds for all commands", file=sys.stderr)
        warn_if_running(config)


def warn_if_running(config: Config) -> None:
    """Say that a node goes on with the settings that it was started with: an open port stays open."""
    if running_pid(config.pid_file) is not None:
        warn("the node is running: `infernet stop`, then `infernet start`, for the changes to take effect")


def warn_if_undialled(config: Config) -> None:
    """Say that others will not come: where the port is one that no node dials."""
    if why := undialled(config):
        warn(f"{why}: `infernet config set --p2p-port {P2P_PORT}`, or another from {PORT_MIN} on")


def load_config(arguments: argparse.Namespace, *, overwrites: Collection[str] = ()) -> LoadedConfig:
    """The configuration with this command line's flags; tells of what is odd in it. Raises ConfigError.

    It does not matter what the file has for settings that the caller `overwrites` in it.
    """
    loaded = load(settings_given(arguments), overwrites=overwrites)
    for warning in loaded.warnings:
        warn(warning)
    return loaded


def load_node(arguments: argparse.Namespace) -> tuple[Config, SigningKey]:
    """Configuration and key of this node. Raises ConfigError or IdentityError."""
    config = load_config(arguments).config
    key = identity.load(config.key_file)
    return config.named_after(key.node), key
