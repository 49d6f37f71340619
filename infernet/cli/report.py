"""`infernet report`: what others need to help with this node, without anything that says whose it is."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from infernet.cli.command import Failure
from infernet.cli.output import print_json
from infernet.host.files import reason_of

USAGE: Final = "[--output FILE] [--skip-network] [--skip-engine] [--json]"
DESCRIPTION: Final = """\
Write down what others need to help you: versions, the kind of machine, settings without names and addresses, what
`infernet doctor` finds, counters of the running node, and the end of its log. Keys, node ids, host and user names,
paths, IP addresses, multiaddrs, URLs, wallet addresses, tokens and e-mail addresses are taken out; so is every word of
the log that is no plain one. The same thing has the same number, so that one node can be followed through it.
Nothing is sent anywhere. Read it before you post it."""
EXAMPLES: Final = """\
examples:
  infernet report
  infernet report --output report.md
  infernet report --skip-network --skip-engine --json | jq .checks"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where it goes, and what to leave out."""
    parser.add_argument("--output", metavar="FILE", help="write it into this new file (default: print it)")
    parser.add_argument("--skip-network", action="store_true", help="connect to nobody: neither coordinator nor DNS")
    parser.add_argument("--skip-engine", action="store_true", help="load no model and ask no question")


def run(arguments: argparse.Namespace) -> int:
    """Gather it and print or write it."""
    from infernet.cli.doctor import examined
    from infernet.diagnostics.bundle import gather
    from infernet.diagnostics.page import render

    # Before all the work: a name that cannot be used is told at once.
    file = _new_file(Path(arguments.output)) if arguments.output is not None else None
    results = examined(skip_network=arguments.skip_network, skip_engine=arguments.skip_engine)
    report = gather(results, os.environ)
    if file is not None:
        with os.fdopen(file, "w", encoding="utf-8") as output:
            output.write(render(report))
    if arguments.json:
        print_json(report if file is None else {"file": arguments.output})
    elif file is None:
        print(render(report), end="")
    else:
        print(f"Written to {arguments.output}. Read it before you post it.")
    return 0


def _new_file(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Failure(f"{path} exists already: choose another name for the report") from None
    except OSError as error:
        raise Failure(f"cannot write {path} ({reason_of(error)}): choose another place for the report") from None
