"""`infernet config`: every setting, its value, and where the value came from; and how to change it."""

from __future__ import annotations

import argparse
from typing import Final

from infernet.cli.command import Misuse
from infernet.cli.money import tell_former
from infernet.cli.output import print_json, print_table
from infernet.cli.settings_flags import add_settings, load_config, settings_given, warn_if_running, warn_if_undialled
from infernet.config import pinned, save
from infernet.settings.readers import as_plain
from infernet.settings.table import BY_NAME

USAGE: Final = "show|set [SETTINGS] [--json]"
DESCRIPTION: Final = """\
show: every setting, its value, and where it came from: a default, the file, the environment, or a flag. Later ones win.
Flags are those of `infernet start`, so this shows what a start with them would use.
set: write the settings given as flags into the file; whatever else is in it stays. This mends a bad value, too: where
there are several, give the flags of all of them."""
EXAMPLES: Final = """\
examples:
  infernet config show
  INFERNET_P2P_PORT=5000 infernet config show --slots 2
  infernet config show --json | jq .settings.model.value
  infernet config set --no-mdns --slots 2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and the settings."""
    parser.add_argument("action", choices=["show", "set"], help="print all settings, or write those that are given")
    add_settings(parser, "settings")


def run(arguments: argparse.Namespace) -> int:
    """Print or write them."""
    return _set(arguments) if arguments.action == "set" else _show(arguments)


def _set(arguments: argparse.Namespace) -> int:
    given = settings_given(arguments)
    if not given:
        raise Misuse("nothing to set: give the flag of a setting, such as --no-mdns (`infernet config show` lists all)")
    # Beside several models that stay set, one would have no effect.
    alone: dict[str, object] = {"models": None} if "model" in given and "models" not in given else {}
    # Reads and checks them, together with what is set elsewhere.
    config = load_config(arguments, overwrites={*given, *alone}).config
    values = {name: BY_NAME[name].read(value) for name, value in given.items()}
    before = pinned(config.config_file)
    save(config.config_file, values | alone, keep=True)
    tell_former(config.config_file, before)
    if arguments.json:
        written = {name: as_plain(value) for name, value in values.items()}
        print_json({"config_file": str(config.config_file), "set": written})
    else:
        print(f"Written to {config.config_file}.")
    warn_if_undialled(config)
    warn_if_running(config)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    loaded = load_config(arguments)
    config = loaded.config
    files = {
        "config": str(config.config_file),
        "key": str(config.key_file),
        "log": str(config.log_file),
        "store": str(config.store_file),
        "money": str(config.money_file),
        "models": str(config.models_dir),
        "socket": str(config.socket_path),
    }
    if arguments.json:
        settings = {
            name: {"value": as_plain(getattr(config, name)), "from": loaded.origins[name], "variable": setting.variable}
            for name, setting in BY_NAME.items()
        }
        print_json({"files": files, "has_file": loaded.has_file, "settings": settings})
        return 0
    values = {name: as_plain(getattr(config, name)) for name in BY_NAME}
    values["name"] = values["name"] or "(from role and key)"
    print_table(
        ("setting", "value", "from", "variable"),
        [(name, values[name], loaded.origins[name], setting.variable) for name, setting in BY_NAME.items()],
    )
    print()
    print_table(("file", "where"), list(files.items()))
    return 0
