"""`infernet config`: every setting, its value, and where the value came from."""

from __future__ import annotations

import argparse
from typing import Final

from infernet.cli.output import print_json, print_table
from infernet.cli.settings_flags import add_settings, load_config
from infernet.settings import BY_NAME, as_plain

USAGE: Final = "show [SETTINGS] [--json]"
DESCRIPTION: Final = """\
Show every setting, its value, and where it came from: a default, the file, the environment, or a flag. Later ones win.
Flags are those of `infernet start`, so this shows what a start with them would use."""
EXAMPLES: Final = """\
examples:
  infernet config show
  INFERNET_P2P_PORT=5000 infernet config show --slots 2
  infernet config show --json | jq .settings.model.value

To change a setting, edit the file that is shown, or run `infernet init --yes` with its flag."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and the settings."""
    parser.add_argument("action", choices=["show"], help="show: print all settings")
    add_settings(parser, "settings")


def run(arguments: argparse.Namespace) -> int:
    """Print them."""
    loaded = load_config(arguments)
    config = loaded.config
    files = {
        "config": str(config.config_file),
        "key": str(config.key_file),
        "log": str(config.log_file),
        "store": str(config.store_file),
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
