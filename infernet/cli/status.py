"""`infernet status`: what the running node is doing."""

from __future__ import annotations

import argparse
from typing import Any, Final

from infernet.cli.output import duration, print_fields, print_json, size
from infernet.cli.running_node import lines_of, loading_words, node_status, parts_in
from infernet.config import Config, places
from infernet.settings.hours import PAUSED
from protocol.formats.amounts import format_usd

USAGE: Final = "[--json]"
DESCRIPTION: Final = """\
What the running node is, where it listens, what it serves and what it is doing, as it counts at this moment.
Exits with 1 when no node is running."""
EXAMPLES: Final = """\
examples:
  infernet status
  infernet status --json | jq -r .addresses[0]      the address to give to somebody else"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but --json."""


def run(arguments: argparse.Namespace) -> int:
    """Ask the node and print what it says."""
    config = places()
    status = node_status(config)
    if arguments.json:
        print_json({"running": True, **status})
        return 0
    print(f"{status['name']} ({status['role']}) has been running for {duration(status['uptime_s'])}")
    if status.get("ends_in_s") is not None:
        print(f"It is ending: it takes no new jobs, and waits {status['ends_in_s']:.0f} s at most for those that run.")
    print_fields(fields_of(status, config))
    return 0


def fields_of(status: dict[str, Any], config: Config) -> list[tuple[str, object]]:
    """A status for people."""
    engine = status.get("engine")
    return [
        ("npub", status.get("npub")),
        ("peer id", status.get("peer_id")),
        ("listening on", status.get("addresses") or "nothing (it dials others)"),
        ("published", status.get("advertised_addresses") or "no address"),
        ("reached", _reached(status.get("reached") or {})),
        ("engine", _engine(engine) if engine else "none"),
        ("models", status.get("models") or "none"),
        ("run on", _run_on(status)),
        ("gpus", [f"{gpu.get('model')} ({gpu.get('vram_tier')})" for gpu in status.get("gpus") or []]),
        ("hours", PAUSED if status.get("paused") is True else (status.get("hours") or {}).get("words")),
        (
            "jobs",
            f"{_jobs_for_others(status)}, {status.get('jobs_asked', 0)} asked by this node",
        ),
        ("forwarded", _forwarded(status.get("jobs_forwarded") or {})),
        ("peers", peers_in_words(status.get("peers", 0), status.get("peers_known", 0))),
        ("heard of from", _discovered(status.get("discovered") or {})),
        ("dht", _dht(status["dht"]) if status.get("dht") else ""),
        ("refused", _refused(status.get("transport") or {})),
        ("coordinator", _coordinator(status)),
        ("earned", earned(status["money"]) if status.get("money") else ""),
        ("money", (status.get("money") or {}).get("trouble")),
        ("log", config.log_file),
        ("process", status.get("pid")),
    ]


def _run_on(status: dict[str, Any]) -> list[str]:
    """Which model runs on what."""
    return lines_of(parts_in(status))


def _reached(reached: dict[str, Any]) -> str:
    state = str(reached.get("reachability", "unknown")).replace("_", " ")
    text = f"{state}: {reached['advice']}" if reached.get("advice") else state
    return f"{text}; others are reached through it" if reached.get("relays_for_others") else text


def _discovered(discovered: dict[str, Any]) -> str:
    """Empty while only gossip and the owner have told of anybody."""
    return ", ".join(f"{source} {count}" for source, count in discovered.items() if count)


def _dht(dht: dict[str, Any]) -> str:
    text = ", ".join(dht.get("addresses") or []) or ("asks only" if dht.get("pid") else "starting")
    return f"{text}, {_restarts(dht['restarts'])}" if dht.get("restarts") else text


def _restarts(count: int) -> str:
    return "1 restart" if count == 1 else f"{count} restarts"


def peers_in_words(connected: int, known: int) -> str:
    """Either may be more: some are connected and publish nothing, some are known and far away."""
    return f"{connected} connected; {known} known by {'its record' if known == 1 else 'their records'}"


def _refused(transport: dict[str, Any]) -> str:
    """Empty while nobody was."""
    counts = {
        "connections_refused": "connections",
        "streams_refused": "streams",
        "connections_cut": "cut",
        "bans": "banned",
    }
    return ", ".join(f"{transport[name]} {words}" for name, words in counts.items() if transport.get(name))


def _forwarded(forwarded: dict[str, Any]) -> str:
    """Empty for a node that forwards nothing."""
    if not forwarded:
        return ""
    return (
        f"{forwarded.get('active', 0)} jobs now, {forwarded.get('carried', 0)} carried to their end, "
        f"{forwarded.get('failed', 0)} failed, {size(forwarded.get('bytes', 0))}"
    )


def _engine(engine: dict[str, Any]) -> str:
    state = loading_words(engine) or engine.get("state")
    text = f"{state}, {engine.get('runs_active')} runs now, {engine.get('runs_total')} in all"
    if engine.get("restarts"):
        text += f", {_restarts(engine['restarts'])}"
    return f"{text} ({engine['last_error']})" if engine.get("last_error") else text


def _coordinator(status: dict[str, Any]) -> str:
    coordinator, url = status.get("coordinator"), status.get("coordinator_url")
    if not coordinator:
        return f"{url}, asked when there is something to ask (a client keeps no link)" if url else "none"
    text = f"{coordinator.get('url')}, {coordinator.get('state')}"
    return f"{text} ({coordinator['last_error']})" if coordinator.get("last_error") else text


def earned(money: dict[str, Any]) -> str:
    """What the coordinator has acknowledged; what is only vouched for is not earned yet, and shown apart."""
    parts = [f"{format_usd(money.get('earned_uusd', 0))} redeemed"]
    unclaimed_uusd = money.get("unclaimed_uusd", 0) + money.get("unclaimed_elsewhere_uusd", 0)
    if unclaimed_uusd:
        parts.append(f"{format_usd(unclaimed_uusd)} in vouchers not redeemed yet")
    if money.get("lost_uusd"):
        parts.append(f"{format_usd(money['lost_uusd'])} refused")
    return ", ".join(parts)


def _jobs_for_others(status: dict[str, Any]) -> str:
    waiting = status.get("jobs_waiting", 0)
    running = f"{status.get('jobs_running', 0) - waiting} running for others"
    return f"{running}, {waiting} waiting" if waiting else running
