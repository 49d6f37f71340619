"""`infernet why`: why nobody, or somebody, would answer; and why this node gets few jobs itself."""

from __future__ import annotations

import argparse
from typing import Any, Final

from infernet.cli.output import print_json, print_table
from infernet.cli.running_node import node_status
from infernet.cli.said import in_words
from infernet.config import places
from infernet.ipc import client as ipc
from protocol.formats.text import clean_line

# Everybody known is looked at.
WHY_TIMEOUT_S: Final = 10.0
ROWS_MAX: Final = 40

USAGE: Final = "[--model MODEL] [--kind KIND] [--json]"
DESCRIPTION: Final = """\
Why a question would be answered by whom, as the running node would decide now: every node it knows, with its place and
the figures that put it there, or with the reason that keeps it out. On a provider also why jobs go elsewhere: what
other askers reported about it in the last hour and day, and what its own state explains."""
EXAMPLES: Final = """\
examples:
  infernet why
  infernet why --model tiny-135m
  infernet why --json | jq '.serving.reasons[] | select(.hour > 0)'

Candidates are ranked by how soon they are expected to be done with an answer of 512 tokens, divided by how sure that
is: both as measured with jobs of this node, and a little by what other askers report with a receipt. The figures of a
stranger are assumptions (~), or what it says of its speed, believed no further than the one in the middle."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which job to explain."""
    parser.add_argument("--model", help="the model that is asked for (default: any)")
    parser.add_argument("--kind", choices=("chat", "completion", "embedding"), default="chat", help="(default: chat)")


def run(arguments: argparse.Namespace) -> int:
    """Ask the node and print what it says."""
    config = places()
    payload = {"kind": arguments.kind} | ({"model": arguments.model} if arguments.model is not None else {})
    try:
        answer: dict[str, Any] = ipc.call(config.socket_path, "why", payload, timeout_s=WHY_TIMEOUT_S)
    except ipc.NotRunning:
        node_status(config)  # says whether it is starting
        raise
    if arguments.json:
        print_json(answer)
        return 0
    if answer.get("serving") is not None:
        _print_serving(answer["serving"])
        print()
    _print_asking(answer["asking"])
    return 0


# ---------------------------------------------------------------- why jobs go elsewhere


def _print_serving(serving: dict[str, Any]) -> None:
    print("Why this node gets the jobs it gets")
    _print_sentence(serving.get("summary"))
    reasons = serving.get("reasons") or []
    if reasons:
        print()
        columns = ("not chosen because", "hour", "day", "what to do")
        print_table(columns, [[r.get("text"), r.get("hour"), r.get("day"), r.get("advice")] for r in reasons])
    if serving.get("facts"):
        print()
        print("What may keep jobs away:")
        for fact in serving["facts"]:
            print(f"  {_clean(fact.get('text'))}")
            print(f"    -> {_clean(fact.get('advice'))}")


# ---------------------------------------------------------------- who would answer


def _print_asking(asking: dict[str, Any]) -> None:
    print("Who would answer a question of this node")
    _print_sentence(asking.get("summary"))
    if asking.get("advice"):
        print(f"  -> {_clean(asking['advice'])}")
    nodes = asking.get("nodes") or []
    if nodes:
        print()
        print_table(_COLUMNS, [_row(node) for node in nodes[:ROWS_MAX]])
    if len(nodes) > ROWS_MAX:
        print(f"... and {len(nodes) - ROWS_MAX} more: --json shows all")


_COLUMNS: Final = (
    *("place", "name", "node", "model", "expected", "first token", "tokens/s", "sure", "load", "says", "why"),
)


def _row(node: dict[str, Any]) -> list[object]:
    who = [node.get("name"), str(node.get("node_id"))[:8], node.get("model") or "-"]
    says = in_words(node.get("says")) or "-"
    if node.get("verdict") != "candidate":
        return ["-", *who, "-", "-", "-", "-", "-", says, node.get("text")]
    about = "" if node.get("is_measured") else "~"
    return [
        node.get("place"),
        *who,
        f"{about}{node.get('expected_s', 0):.1f} s",
        f"{about}{node.get('first_token_s', 0):.2f} s",
        f"{about}{node.get('tokens_per_s', 0):.0f}",
        f"{100 * node.get('reliability', 0):.0f} %",
        f"{node.get('load', 0)}/8",
        says,
        _figures(node),
    ]


_TIERS: Final = {
    "may_refuse": "runs free jobs for those its owner knows",
    "newcomer": "new: gets small jobs first",
    "full": "full",
    "resting": "left alone after a failure",
}


def _figures(node: dict[str, Any]) -> str:
    """What is known of a candidate."""
    own = node.get("own_ok", 0) + node.get("own_bad", 0)
    jobs = "1 job" if own < 1.5 else f"{own:.0f} jobs"
    known = f"{jobs} of ours, {node.get('own_bad', 0):.0f} failed" if own >= 0.5 else "no job of ours yet"
    if node.get("askers"):
        known += f"; {node['askers']} others report"
    tier = _TIERS.get(str(node.get("tier")))
    return f"{tier}; {known}" if tier else known


def _print_sentence(text: object) -> None:
    sentence = _clean(text)
    print(f"  {sentence[:1].upper()}{sentence[1:]}.")


def _clean(text: object) -> str:
    return clean_line(str(text or ""), 400)
