"""`infernet doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from infernet.cli.command import FAILED
from infernet.cli.output import print_json, print_table

if TYPE_CHECKING:
    from infernet.doctor.examination import Result

USAGE: Final = "[--strict] [--skip-network] [--skip-engine] [--json]"
DESCRIPTION: Final = """\
Look for what is wrong with this node, and say what to do about each thing. Nothing is changed. Every check has an id
that stays the same, and docs/troubleshooting.md says more about it. Where a check fails, those that rest on it are
skipped, so that one fault shows once. Exits with 1 when a check failed; with --strict also when one warned."""
EXAMPLES: Final = """\
examples:
  infernet doctor
  infernet doctor --skip-network --skip-engine      in a moment, and without a connection
  infernet doctor --strict                          for a monitor: a node that does not run counts, too
  infernet doctor --json | jq -r '.checks[] | select(.status == "fail") | .id + ": " + .fix'

With --json: {"ok": BOOL, "strict": BOOL, "counts": {"ok": N, "warn": N, "fail": N, "skip": N}, "checks": [{"id": ID,
"title": TEXT, "status": "ok" | "warn" | "fail" | "skip", "found": TEXT, "fix": TEXT, "ms": N}, ...]}. The last check
asks the engine a real question: the running node's, or one that is started for it and ended again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How strict to be, and what to leave out."""
    parser.add_argument("--strict", action="store_true", help="exit with 1 also when a check warned")
    parser.add_argument("--skip-network", action="store_true", help="connect to nobody: neither coordinator nor DNS")
    parser.add_argument("--skip-engine", action="store_true", help="load no model and ask no question")


def run(arguments: argparse.Namespace) -> int:
    """Examine everything and print what was found."""
    results = examined(skip_network=arguments.skip_network, skip_engine=arguments.skip_engine)
    counts = Counter(result.finding.status.value for result in results)
    is_well = not counts["fail"] and not (arguments.strict and counts["warn"])
    if arguments.json:
        print_json(
            {
                "ok": is_well,
                "strict": arguments.strict,
                "counts": {name: counts[name] for name in ("ok", "warn", "fail", "skip")},
                "checks": [result.plain() for result in results],
            }
        )
    else:
        _print(results, counts)
    sys.stdout.flush()
    return 0 if is_well else FAILED


def examined(*, skip_network: bool, skip_engine: bool) -> list[Result]:
    """Run the checks and give their results."""
    import trio

    from infernet import log
    from infernet.doctor.contract import Part, Situation
    from infernet.doctor.examination import examine
    from infernet.doctor.table import CHECKS

    # What libraries log meanwhile is none of the findings.
    log.configure("debug" if os.environ.get("INFERNET_DEBUG") else "critical")
    left_out = [part for part, is_out in ((Part.NETWORK, skip_network), (Part.ENGINE, skip_engine)) if is_out]
    results: list[Result] = trio.run(examine, CHECKS, Situation(dict(os.environ)), left_out)
    return results


def _print(results: Sequence[Result], counts: Counter[str]) -> None:
    if sys.stdout.isatty():
        print_table(("", "check", "found", "what to do"), [_row(result) for result in results])
    else:
        for result in results:
            status, name, found, fix = _row(result)
            print(f"{status:4} {name}: {found}" + (f" -> {fix}" if fix else ""))
    print()
    words = [f"{counts['ok']} well"]
    words += [f"{counts[name]} {word}" for name, word in (("warn", "to know"), ("fail", "failed")) if counts[name]]
    words += [f"{counts['skip']} not looked at"] if counts["skip"] else []
    print(f"{len(results)} checks: {', '.join(words)}")


def _row(result: Result) -> list[Any]:
    finding = result.finding
    return [finding.status.value, result.check.id, finding.found, finding.fix]
