"""The end of the log, line by line: fields that are known are shown by their kind, all others are left out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from infernet.diagnostics.redactor import Redactor
from infernet.diagnostics.shapes import is_plain_dotted

LINES_SHOWN: Final = 60
TAIL_BYTES_MAX: Final = 256 * 1024

#: Everything that our code logs, so that only texts of libraries and natives have to be redacted. A test keeps it.
EVENTS: Final = frozenset(
    {
        "claim.failed",
        "claim.lost",
        "claim.put_off",
        "claim.refused",
        "cluster.head_attached",
        "cluster.head_gone",
        "cluster.no_worker",
        "cluster.not_carried",
        "cluster.refused",
        "cluster.rpc_server_gone",
        "cluster.serving",
        "cluster.stopped",
        "cluster.stranger",
        "cluster.worker_lost",
        "cluster.worker_ready",
        "coordinator.link_lost",
        "coordinator.linked",
        "coordinator.no_peers",
        "coordinator.not_remembered",
        "dht.bad_record",
        "dht.begun",
        "dht.close_failed",
        "dht.ended",
        "dht.handshake_failed",
        "dht.no_addresses",
        "dht.no_heartbeat",
        "dht.not_begun",
        "dht.not_met",
        "dht.not_published",
        "dht.not_told",
        "dht.peers_lost",
        "dht.reset_failed",
        "dht.stream_failed",
        "discovery.failed",
        "discovery.too_many",
        "engine.down",
        "engine.model_down",
        "engine.model_up",
        "engine.no_place",
        "engine.not_loaded",
        "engine.server_answers",
        "engine.server_gone",
        "engine.slow_cancel",
        "engine.unconfined",
        "engine.up",
        "gossip.records_skipped",
        "hardware.changed",
        "hardware.gone",
        "hardware.udev_lost",
        "head.bad",
        "head.from_the_future",
        "hours.begun",
        "hours.over",
        "hours.paused",
        "hours.resumed",
        "ipc.failed",
        "job.attempt_failed",
        "job.forward_failed",
        "job.forwarded",
        "job.not_reserved",
        "job.refused",
        "job.reserved",
        "lease.bad",
        "lease.not_restored",
        "mdns.not_sent",
        "mdns.unavailable",
        "metrics.failed",
        "metrics.serving",
        "money.bad_close",
        "money.claimed",
        "money.equivocation",
        "money.no_lease",
        "money.not_stored",
        "money.nothing_heard",
        "money.rejected",
        "money.restored",
        "money.stored_again",
        "node.caught_up",
        "node.drained",
        "node.draining",
        "node.loaded",
        "node.loading",
        "node.not_drained",
        "node.overloaded",
        "node.reachability",
        "node.started",
        "node.stopped",
        "node.stopping",
        "notify.failed",
        "peer.banned",
        "peer.clock_skew",
        "peer.fault",
        "peer.hang_up",
        "peer.misbehaved",
        "record.bad",
        "relay.bad_circuit",
        "relay.bad_request",
        "relay.no_circuit",
        "relay.no_handshake",
        "relay.not_renewed",
        "relay.reserved",
        "relay.wrong_peer",
        "store.failed",
        "stream.broken",
        "stream.failed",
        "transport.connection_broken",
        "transport.connection_ended",
        "transport.handler_failed",
        "transport.handshake_broken",
        "transport.no_handshake",
        "transport.no_protocol",
        "transport.not_listening",
        "transport.protocol_broken",
    }
)
_LEVELS: Final = frozenset({"debug", "info", "warning", "error", "critical"})
_TIMESTAMP: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d{1,9})?(?:Z|\+00:00)")
_NUMBERS: Final = frozenset(
    {
        "attempt",
        "bytes",
        "code",
        "connections",
        "count",
        "dropped",
        "duration_ms",
        "duration_s",
        "leases_given",
        "leases_ours",
        "output_tokens",
        "port",
        "prompt_tokens",
        "restarts",
        "retry_in_s",
        "score",
        "slots",
        "status",
    }
)
_TEXTS: Final = frozenset(
    {
        "advice",
        "code",
        "detail",
        "engine",
        "error",
        "exception",
        "kind",
        "protocol",
        "reachability",
        "reason",
        "role",
        "source",
        "state",
        "status",
    }
)
_NODES: Final = frozenset({"peer", "node", "npub", "peer_id"})
_NUMBER_MAX: Final = 10_000_000


def tail(path: Path) -> list[str]:
    """The last lines of a log, raw. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0, os.SEEK_END)
        start = max(0, file.tell() - TAIL_BYTES_MAX)
        file.seek(start)
        lines = file.read(TAIL_BYTES_MAX).decode("utf-8", "replace").splitlines()
    # The first may have begun before what was read.
    return [line for line in lines[1 if start else 0 :] if line.strip()][-LINES_SHOWN:]


def redacted(line: str, redactor: Redactor) -> str:
    """One line of the log, safe to show."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return redactor.text(line)
    words = [_time(fields.get("timestamp")), _level(fields.get("level")), _event(fields, redactor)]
    words += [
        f"{name}={shown}"
        for name, value in fields.items()
        if name not in ("timestamp", "level", "event") and (shown := _value(name, value, redactor)) is not None
    ]
    return " ".join(filter(None, words))


def _time(value: Any) -> str:
    match = _TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
    return f"{match[1]}Z" if match else ""


def _level(value: Any) -> str:
    return value if isinstance(value, str) and value in _LEVELS else ""


def _event(fields: dict[str, Any], redactor: Redactor) -> str:
    value = fields.get("event")
    if not isinstance(value, str):
        return ""
    return value if value in EVENTS else redactor.text(value)


def _value(name: str, value: Any, redactor: Redactor) -> str | None:
    """A field's value as it may be shown; None where nothing of it may."""
    if isinstance(value, bool) or value in (None, ""):
        return None
    if isinstance(value, (int, float)):
        return f"{value:g}" if name in _NUMBERS and abs(value) < _NUMBER_MAX else None
    if isinstance(value, list):
        shown = [_value(name, item, redactor) for item in value[:16] if isinstance(item, str)]
        return ",".join(filter(None, shown)) or None
    if not isinstance(value, str):
        return None
    if name == "logger":
        return value if value.startswith(("infernet.", "protocol.")) and is_plain_dotted(value) else None
    if name in _TEXTS:
        return json.dumps(redactor.text(value), ensure_ascii=False)
    show = _KINDS.get(name)
    return show(redactor, value) if show is not None else None


_KINDS: Final[dict[str, Callable[[Redactor, str], str]]] = {
    **dict.fromkeys(_NODES, Redactor.node),
    "ip": Redactor.ip,
    "url": Redactor.url,
    "path": Redactor.path,
    "address": lambda redactor, value: redactor.name(value, "multiaddr"),
    "addresses": lambda redactor, value: redactor.name(value, "multiaddr"),
    "host": lambda redactor, value: redactor.name(value, "host"),
    "model": lambda redactor, value: redactor.name(value, "model"),
    "name": lambda redactor, value: redactor.name(value, "name"),
    "job": lambda redactor, value: redactor.name(value, "job"),
    "lease": lambda redactor, value: redactor.name(value, "lease"),
}
