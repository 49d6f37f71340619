"""What the running node says of itself, for the verbs that show it: its status, and which model runs on what."""

from __future__ import annotations

from typing import Any, Final

from infernet.cli.command import Failure
from infernet.cli.output import duration
from infernet.config import Config
from infernet.host.lock import AlreadyRunning, running_pid
from infernet.ipc import client as ipc

STATUS_TIMEOUT_S: Final = 2.0


def node_status(config: Config) -> dict[str, Any]:
    """The running node's status. Raises Failure when there is none, IpcError when it does not answer."""
    try:
        status: dict[str, Any] = ipc.call(config.socket_path, "status", timeout_s=STATUS_TIMEOUT_S)
    except ipc.NotRunning as error:
        pid = running_pid(config.pid_file)
        if pid is None:
            raise Failure(str(error), running=False) from None
        raise Failure(
            f"the node (process {pid}) is starting or ending, try again; log: {config.log_file}", running=False, pid=pid
        ) from None
    except ipc.IpcError as error:
        if error.code != "connection-closed":
            raise
        # It has ended between the question and the answer, which is what the end of a node looks like.
        raise Failure(f"the node here has just ended; log: {config.log_file}", running=False) from None
    return status


def refuse_second(config: Config) -> None:
    """See that no node runs here. Raises AlreadyRunning, or Failure where one is about to be gone."""
    pid = running_pid(config.pid_file)
    if pid is None:
        return
    try:
        ends_in_s = node_status(config).get("ends_in_s")
    except Failure:
        raise Failure(
            f"a node (process {pid}) is starting or ending here: try again in a moment (`infernet status` looks at it)",
            pid=pid,
        ) from None
    except ipc.IpcError:
        ends_in_s = None
    if ends_in_s is None:
        raise AlreadyRunning(pid)
    raise Failure(
        f"the node (process {pid}) is ending, within {ends_in_s:.0f} s: try again then, or have it end at once with "
        "`infernet stop --now`",
        pid=pid,
    )


def running_parts(config: Config) -> list[dict[str, Any]]:
    """The engines of the running node; none where no node runs, or it does not answer."""
    if running_pid(config.pid_file) is None:
        return []
    try:
        status = node_status(config)
    except (Failure, ipc.IpcError):
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
        lines.append(f"{_names(part)}: {_where(part)}" + (f" ({trouble})" if trouble else ""))
    return lines


def not_serving(parts: list[dict[str, Any]]) -> list[str]:
    """The same for those alone that offer nothing now."""
    return lines_of([part for part in parts if part.get("state") != "ready"])


def loading_words(part: dict[str, Any]) -> str | None:
    """That an engine is loading, and for how long; None for one that is not."""
    seconds = part.get("loading_s")
    return f"loading for {duration(seconds)}" if isinstance(seconds, int | float) else None


def loading(status: dict[str, Any], model: str | None = None) -> str:
    """What a node loads, or what of it may be called so, and for how long, in words; empty when that is nothing."""
    parts, engine = parts_in(status), status.get("engine")
    if not parts:
        return (loading_words(engine) if isinstance(engine, dict) else None) or ""
    return "; ".join(
        f"{_names(part)}: {words}"
        for part in parts
        if (words := loading_words(part)) is not None and _may_be(part, model, status)
    )


def _may_be(part: dict[str, Any], model: str | None, status: dict[str, Any]) -> bool:
    """Whether an engine may have what is asked for under this name, its own or another one."""
    names, aliases = part.get("models") or [], status.get("aliases") or {}
    return not names or model in (None, *names) or any(model in aliases.get(name, ()) for name in names)


def _names(part: dict[str, Any]) -> str:
    return ", ".join(map(str, part.get("models") or [])) or str(part.get("engine"))


def _where(part: dict[str, Any]) -> str:
    where, state = str(part.get("where") or ""), loading_words(part) or str(part.get("state"))
    return where or "ready" if state == "ready" else where if where == "nowhere" else state
