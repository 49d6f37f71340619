"""What the network costs: every figure with what it is compared with, measured in the same run.

Each figure is a module in network_figures/; a new one needs only to be put there. Those that need network namespaces
are left out without root.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Final, cast

import trio
from _figures import Figure, Options, Room
from rich.console import Console
from rich.table import Table

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
ROOMS: Final = HERE / "network_figures"


def available() -> list[str]:
    """The names of the figures."""
    return sorted(path.stem for path in ROOMS.glob("[!_]*.py"))


def room(name: str) -> Room:
    """One figure's module."""
    return cast("Room", importlib.import_module(f"network_figures.{name}"))


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench network", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=available(), default=available(), help="(default: all)")
    parser.add_argument("--quick", action="store_true", help="less of everything: do they work?")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args(words)


def show(name: str, figures: list[Figure], took_s: float) -> None:
    """One module's figures as a table."""
    table = Table(title=f"{name} ({took_s:.0f} s)", title_justify="left")
    for column, justify in (("what", "left"), ("value", "right"), ("", "left"), ("beside", "left"), ("", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]  # rich names the two words by a literal
    table.add_column("ratio", justify="right")
    for figure in figures:
        table.add_row(
            figure.what,
            f"{figure.value:,.4g}",
            figure.unit,
            figure.baseline,
            f"{figure.baseline_value:,.4g}",
            f"{figure.ratio:,.3g}",
        )
    Console(width=140).print(table)


def main() -> None:
    """Measure and print."""
    arguments = parse(sys.argv[1:])
    # The figures stand on the tests' networks and doubles.
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
    results: dict[str, list[Figure]] = {}
    for name in arguments.only:
        module = room(name)
        if module.NEEDS_ROOT and os.geteuid() != 0:
            print(f"{name}: left out, network namespaces need root", file=sys.stderr)
            continue
        started_s = time.monotonic()
        results[name] = trio.run(module.measure, Options(arguments.quick))
        if not arguments.json:
            show(name, results[name], time.monotonic() - started_s)
    if arguments.json:
        print(json.dumps({name: [each.as_json() for each in figures] for name, figures in results.items()}, indent=2))


if __name__ == "__main__":
    main()
