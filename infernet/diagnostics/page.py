"""A report as a page of Markdown, to be pasted where others read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

_HEAD: Final = """\
# Infernet report

Made to be read by others. Keys, names, hosts, users, paths, addresses and whatever is no plain word were taken out;
the same number means the same thing (`<node-1>` is one node). A name that is a plain word, and that this machine does
not know for one, may have stayed: read it before you post it.
"""


def render(report: Mapping[str, Any]) -> str:
    """The page."""
    parts = [
        _HEAD,
        _section("Versions", _pairs(report["versions"])),
        _section("Machine", _pairs(report["machine"])),
        _section("Variables that are set", report["variables_set"]),
        _section("Settings", [f"{name}: {row['value']} ({row['from']})" for name, row in report["settings"].items()]),
        _section("Checks", map(_check, report["checks"])),
        _section("Counters of the running node", _pairs(report["counters"])),
        _section("Last crash", [report["last_crash"]] if report["last_crash"] else []),
        _section(f"The last {len(report['log'])} lines of the log", report["log"]),
    ]
    return "\n".join(parts)


def _section(title: str, lines: Iterable[str]) -> str:
    # A fence inside would end the block, and what follows would be taken for markup.
    body = "\n".join(line.replace("`", "'") for line in lines)
    return f"## {title}\n\n```text\n{body or 'none'}\n```\n"


def _pairs(fields: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {value}" for name, value in fields.items()]


def _check(check: Mapping[str, Any]) -> str:
    return f"{check['status']:4} {check['id']} ({check['ms']} ms)" + (f": {check['found']}" if check["found"] else "")
