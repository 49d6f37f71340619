"""Which model of the running node runs on what, as it says itself: for the verbs that show models and engines."""

from __future__ import annotations

from typing import Any

from infernet.cli.command import Failure
from infernet.cli.status import node_status
from infernet.config import Config
from infernet.host.lock import running_pid
from infernet.ipc.client import IpcError


def running_parts(config: Config) -> list[dict[str, Any]]:
    """The engines of the running node; none where no node runs, or it does not answer."""
    if running_pid(config.pid_file) is None:
        return []
    try:
        status = node_status(config)
    except (Failure, IpcError):
        return []
    return parts_in(status)


def parts_in(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The engines in a node's status."""
    told = status.get("engines")
    return [part for part in told if isinstance(part, dict)] if isinstance(told, list) else []


def where_of(parts: list[dict[str, Any]], model: str) -> str | None:
    """What a model runs on, or in which state it is; None where no engine has it."""
    return next((_where(part) for part in parts if model in (part.get("models") or [])), None)


def lines_of(parts: list[dict[str, Any]]) -> list[str]:
    """A line for each engine: its models, what they run on, and what is wrong."""
    lines = []
    for part in parts:
        trouble = part.get("trouble")
        models = ", ".join(map(str, part.get("models") or [])) or str(part.get("engine"))
        lines.append(f"{models}: {_where(part)}" + (f" ({trouble})" if trouble else ""))
    return lines


def not_serving(parts: list[dict[str, Any]]) -> list[str]:
    """The same for those alone that offer nothing now."""
    return lines_of([part for part in parts if part.get("state") != "ready"])


def _where(part: dict[str, Any]) -> str:
    where, state = str(part.get("where") or ""), str(part.get("state"))
    return where or "ready" if state == "ready" else where if where == "nowhere" else state
