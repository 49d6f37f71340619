"""`infernet version`."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Final

import infernet
from protocol.constants import PROTOCOL_VERSION

USAGE: Final = "[--json]"
DESCRIPTION: Final = "The version of this program and of the protocol that it speaks."
EXAMPLES: Final = "example:\n  infernet version --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but --json."""


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    python = platform.python_version()
    if arguments.json:
        print(
            json.dumps(
                {"version": infernet.__version__, "protocol_version": PROTOCOL_VERSION, "python": python}, indent=2
            )
        )
    else:
        print(f"infernet {infernet.__version__} (protocol {PROTOCOL_VERSION}, Python {python})")
    return 0
