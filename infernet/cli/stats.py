"""`infernet stats`: what the running node has done since it started, in numbers."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from infernet.cli.command import Failure, Misuse
from infernet.cli.output import duration, print_fields, print_json, size
from infernet.cli.running_node import STATUS_TIMEOUT_S, node_status
from infernet.cli.status import earned, peers_in_words
from infernet.config import Config, places
from infernet.ipc import client as ipc
from protocol.formats.amounts import format_usd
from protocol.formats.text import clean_text

# The drivers of GPUs are asked, too.
METRICS_TIMEOUT_S: Final = 8.0

USAGE: Final = "[--prometheus | --json]"
DESCRIPTION: Final = """\
What the running node has done since it started: jobs of others and its own questions, tokens, heartbeats, peers. What
it earned is what the coordinator has acknowledged since this node exists. With --prometheus all metrics in the text
format of Prometheus, as --metrics-port serves them; no port is needed. Exits with 1 when no node is running."""
EXAMPLES: Final = """\
examples:
  infernet stats
  infernet stats --json | jq .jobs.completed
  watch infernet stats
  infernet stats --prometheus > /var/lib/node_exporter/infernet.prom"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How to print it."""
    parser.add_argument("--prometheus", action="store_true", help="print all metrics in Prometheus's text format")


def run(arguments: argparse.Namespace) -> int:
    """Ask the node and print what it has counted."""
    config = places()
    if arguments.prometheus:
        if arguments.json:
            raise Misuse("--prometheus has a format of its own: leave out --json")
        return _print_metrics(config)
    try:
        status: dict[str, Any] = ipc.call(config.socket_path, "stats", timeout_s=STATUS_TIMEOUT_S)
    except ipc.NotRunning:
        node_status(config)  # says whether it is starting
        raise
    stats = of_status(status)
    if arguments.json:
        print_json({"running": True, **stats})
        return 0
    print(f"{stats['name']} ({stats['role']}) has been running for {duration(stats['uptime_s'])}")
    print_fields(_fields(stats))
    return 0


def _print_metrics(config: Config) -> int:
    try:
        answer = ipc.call(config.socket_path, "metrics", timeout_s=METRICS_TIMEOUT_S)
    except ipc.NotRunning:
        node_status(config)  # says whether it is starting
        raise
    except ipc.Refused as error:
        if error.code.startswith("unknown-cmd"):
            raise _too_old() from None
        raise
    text = answer.get("text") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise _too_old()
    sys.stdout.write(clean_text(text))
    return 0


def _too_old() -> Failure:
    return Failure(
        "the node that runs here is of an older version and does not count: `infernet stop`, then `infernet start`"
    )


def of_status(status: dict[str, Any]) -> dict[str, Any]:
    """The numbers in what a node says of itself. Raises Failure for a node that does not count."""
    counts = status.get("counts")
    if not isinstance(counts, dict):
        raise _too_old()
    return {
        "name": status.get("name"),
        "role": status.get("role"),
        "pid": status.get("pid"),
        "version": status.get("version"),
        "uptime_s": status.get("uptime_s") or 0,
        "jobs": {
            "running": _number(status, "jobs_running") - _number(status, "jobs_waiting"),
            "waiting": _number(status, "jobs_waiting"),
            **(counts.get("jobs") or {}),
        },
        "asked": {"running": _number(status, "jobs_asked"), **(counts.get("asked") or {})},
        "forwarded": status.get("jobs_forwarded"),
        "heartbeats": counts.get("heartbeats") or {},
        "peers": {"connected": _number(status, "peers"), "known": _number(status, "peers_known")},
        "coordinator": status.get("coordinator"),
        "money": status.get("money"),
    }


def _number(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) else 0


def _fields(stats: dict[str, Any]) -> list[tuple[str, object]]:
    jobs, asked, peers = stats["jobs"], stats["asked"], stats["peers"]
    link = stats["coordinator"].get("state") if isinstance(stats["coordinator"], dict) else None
    ended = _counts(jobs, "completed", "cancelled", "failed")
    answered = _counts(asked, "answered", "cancelled", "failed")
    return [
        ("jobs now", f"{jobs['running']} running for others, {jobs['waiting']} waiting"),
        ("jobs taken", f"{_number(jobs, 'taken')}: {ended}, {_number(jobs, 'unpaid')} not paid for"),
        ("refused", f"{_number(jobs, 'refused')} jobs"),
        ("tokens", _tokens(jobs)),
        ("asked", f"{asked['running']} now; {answered}"),
        ("for these", f"{_tokens(asked)}, {format_usd(_number(asked, 'paid_uusd'))} signed for"),
        ("forwarded", _forwarded(stats["forwarded"])),
        ("heartbeats", _heartbeats(stats["heartbeats"], link)),
        ("peers", peers_in_words(peers["connected"], peers["known"])),
        ("coordinator", link),
        ("earned", earned(stats["money"]) if stats["money"] else ""),
    ]


def _counts(fields: dict[str, Any], *names: str) -> str:
    return ", ".join(f"{_number(fields, name)} {name}" for name in names)


def _tokens(fields: dict[str, Any]) -> str:
    return f"{_number(fields, 'prompt_tokens'):,} of prompts, {_number(fields, 'output_tokens'):,} of answers"


def _forwarded(forwarded: dict[str, Any] | None) -> str:
    """Empty for a node that forwards nothing."""
    if not forwarded:
        return ""
    return (
        f"{_number(forwarded, 'carried')} carried to their end, {_number(forwarded, 'failed')} failed, "
        f"{size(_number(forwarded, 'bytes'))}"
    )


def _heartbeats(heartbeats: dict[str, Any], link: str | None) -> str:
    last_s = heartbeats.get("age_s")
    text = f"{_number(heartbeats, 'signed')} signed"
    if isinstance(last_s, (int, float)):
        text += f", the last {duration(last_s)} ago"
    if link is None:
        return text
    return (
        f"{text}; {_number(heartbeats, 'told')} told to the coordinator at once, {_number(heartbeats, 'missed')} while "
        "there was no link"
    )
