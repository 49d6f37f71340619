"""`infernet update`: the same as `infernet register`, by the name that other programs of this market give it."""

from __future__ import annotations

from typing import Final

from infernet.cli.register import add_arguments, run

__all__ = ["DESCRIPTION", "EXAMPLES", "USAGE", "add_arguments", "run"]

USAGE: Final = "[--json]"
DESCRIPTION: Final = """\
Bring this node's entry at its coordinator up to date, after settings have changed: the same as `infernet register`. A
newer version of the program is `infernet upgrade`."""
EXAMPLES: Final = """\
examples:
  infernet config set --name attic && infernet update
  infernet update --json"""
