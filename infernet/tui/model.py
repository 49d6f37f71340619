"""What the live view knows: the last snapshot of the node, the log, the GPUs, and the pace of the last minutes.

Everything comes from outside this process, and names in it from strangers: here it becomes numbers within bounds and
single lines that a terminal can be shown. No clock is read; the pace goes by the node's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from infernet.log_lines import for_people, read_event
from infernet.settings.hours import PAUSED
from protocol.formats.text import clean_line, clean_name

ROWS_MAX: Final = 256
LOG_LINES_MAX: Final = 1000
#: Shown lines are cut to the screen; no screen is wider.
LINE_CHARACTERS_MAX: Final = 500
HISTORY_MAX: Final = 240
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
LOOKING: Final = "asking the node of this machine"
_NUMBER_MAX: Final = 10**15


@dataclass(frozen=True)
class JobRow:
    """A job that runs here for somebody, or waits."""

    model: str
    asker: str
    state: str
    prompt_tokens: int
    output_tokens: int
    tokens_per_s: float
    age_s: float


@dataclass(frozen=True)
class PeerRow:
    """A node that is known; `how` is empty for one that is not connected."""

    name: str
    node: str
    role: str
    how: str
    round_trip_ms: float | None
    load: int
    models: str


@dataclass(frozen=True)
class GpuRow:
    """A GPU of this machine; None for what its driver does not tell."""

    index: int
    model: str
    busy_percent: int | None
    used_bytes: int | None
    memory_bytes: int | None
    temperature_c: int | None
    trouble: str


@dataclass(frozen=True)
class LogRow:
    """One line of the log."""

    level: str
    text: str


@dataclass(frozen=True)
class NodeView:
    """The node as the last snapshot has it."""

    name: str = ""
    role: str = ""
    npub: str = ""
    version: str = ""
    uptime_s: float = 0.0
    ends_in_s: float | None = None
    hours: str = ""
    engine: str = ""
    engine_trouble: str = ""
    loading_s: float | None = None
    models: tuple[str, ...] = ()
    coordinator: str = ""
    link: str = ""
    link_trouble: str = ""
    reached: str = ""
    peers: int = 0
    peers_known: int = 0
    running: int = 0
    waiting: int = 0
    asked: int = 0
    done: int = 0
    failed: int = 0
    output_tokens: int = 0
    has_money: bool = False
    earned_uusd: int = 0
    unclaimed_uusd: int = 0
    money_trouble: str = ""


@dataclass
class Model:
    """The state. `away` says why there is no node to be seen; empty while there is one."""

    away: str = LOOKING
    #: Whether the node has ever answered: before, nothing is known, and nothing of it is 0 or none.
    is_known: bool = False
    node: NodeView = field(default_factory=NodeView)
    jobs: Sequence[JobRow] = ()
    jobs_left_out: int = 0
    peers: Sequence[PeerRow] = ()
    peers_left_out: int = 0
    gpus: Sequence[GpuRow] | None = None
    #: Of the newest lines those that the filter lets through are shown.
    log: deque[LogRow] = field(default_factory=lambda: deque(maxlen=LOG_LINES_MAX))
    log_trouble: str = ""
    log_filter: str = ""
    #: Tokens a second, the newest last.
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_MAX))
    _last: tuple[float, int] | None = None

    def take_snapshot(self, data: Mapping[str, Any]) -> None:
        """The node says how things are."""
        self.away, self.is_known = "", True
        self.node = _node(data)
        self.jobs = [_job(row) for row in _rows(data, "jobs")]
        self.jobs_left_out = _count(data, "jobs_left_out")
        self.peers = [_peer(row) for row in _rows(data, "peers")]
        self.peers_left_out = _count(data, "peers_left_out")
        now = (_number(data, "at_s"), _count(data, "output_tokens"))
        if self._last is not None and now[0] > self._last[0] and now[1] >= self._last[1]:
            self.history.append((now[1] - self._last[1]) / (now[0] - self._last[0]))
        self._last = now

    def take_away(self, why: str) -> None:
        """There is no node to be seen."""
        self.away = clean_line(why, LINE_CHARACTERS_MAX)
        self.jobs, self.jobs_left_out = (), 0
        self._last = None

    def take_log(self, lines: Sequence[str], trouble: str = "") -> None:
        """More lines of the log, or why there are none."""
        self.log_trouble = clean_line(trouble, LINE_CHARACTERS_MAX)
        for line in lines[-LOG_LINES_MAX:]:
            event = read_event(line) or {}
            level = str(event.get("level", "")).lower()
            self.log.append(LogRow(level if level in LEVELS else "", _single(for_people(line))))

    @property
    def is_looking(self) -> bool:
        """Whether nobody has said yet if there is a node."""
        return self.away == LOOKING

    @property
    def tokens_per_s(self) -> float:
        """The pace of this moment."""
        return self.history[-1] if self.history and not self.away else 0.0

    def shown_log(self) -> list[LogRow]:
        """The lines that have the words of the filter in them."""
        wanted = self.log_filter.lower().split()
        return [row for row in self.log if all(word in row.text.lower() for word in wanted)]


def _node(data: Mapping[str, Any]) -> NodeView:
    status = _part(data, "status")
    engine, link, hours = _part(status, "engine"), _part(status, "coordinator"), _part(status, "hours")
    reached, money = _part(status, "reached"), _part(status, "money")
    counts = _part(_part(status, "counts"), "jobs")
    ends_in_s, loading_s = status.get("ends_in_s"), engine.get("loading_s")
    waiting = _count(status, "jobs_waiting")
    return NodeView(
        name=clean_name(_raw(status, "name")),
        role=_text(status, "role"),
        npub=_text(status, "npub"),
        version=_text(status, "version"),
        uptime_s=_number(status, "uptime_s"),
        ends_in_s=_number(status, "ends_in_s") if isinstance(ends_in_s, (int, float)) else None,
        hours=PAUSED if status.get("paused") is True else _text(hours, "words"),
        engine=_text(engine, "state"),
        engine_trouble=_text(engine, "last_error"),
        loading_s=_number(engine, "loading_s") if isinstance(loading_s, (int, float)) else None,
        models=tuple(map(_single, _names(status))),
        coordinator=_text(link, "url") or _text(status, "coordinator_url"),
        link=_text(link, "state"),
        link_trouble=_text(link, "last_error"),
        reached=_text(reached, "reachability").replace("_", " "),
        peers=_count(status, "peers"),
        peers_known=_count(status, "peers_known"),
        running=max(0, _count(status, "jobs_running") - waiting),
        waiting=waiting,
        asked=_count(status, "jobs_asked"),
        done=_count(counts, "completed"),
        failed=_count(counts, "failed"),
        output_tokens=_count(data, "output_tokens"),
        has_money=bool(money),
        earned_uusd=_count(money, "earned_uusd"),
        unclaimed_uusd=_count(money, "unclaimed_uusd") + _count(money, "unclaimed_elsewhere_uusd"),
        money_trouble=_text(money, "trouble"),
    )


def _job(row: Mapping[str, Any]) -> JobRow:
    output_tokens = _count(row, "output_tokens")
    state = "waits" if row.get("waits") is True else "writes" if output_tokens else "reads"
    return JobRow(
        model=_text(row, "model"),
        asker=_text(row, "asker")[:8],
        state=state,
        prompt_tokens=_count(row, "prompt_tokens"),
        output_tokens=output_tokens,
        tokens_per_s=_number(row, "tokens_per_s"),
        age_s=_number(row, "age_s"),
    )


def _peer(row: Mapping[str, Any]) -> PeerRow:
    round_trip_ms = row.get("round_trip_ms")
    return PeerRow(
        name=clean_name(_raw(row, "name")),
        node=_text(row, "node_id")[:8],
        role=_text(row, "role"),
        how=_text(row, "how"),
        round_trip_ms=_number(row, "round_trip_ms") if isinstance(round_trip_ms, (int, float)) else None,
        load=_count(row, "load"),
        models=_single(", ".join(_names(row))),
    )


# ---------------------------------------------------------------- reading what others sent


def _raw(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value[: 8 * LINE_CHARACTERS_MAX] if isinstance(value, str) else ""


def _single(text: str) -> str:
    return clean_line(text[: 8 * LINE_CHARACTERS_MAX], LINE_CHARACTERS_MAX)


def _text(fields: Mapping[str, Any], name: str) -> str:
    return _single(_raw(fields, name))


def _number(fields: Mapping[str, Any], name: str) -> float:
    """A number within bounds; 0 for what is none."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0.0
    # Also what JSON of Python takes for numbers: NaN, and Infinity.
    return float(min(value, _NUMBER_MAX)) if value >= 0 else 0.0


def _count(fields: Mapping[str, Any], name: str) -> int:
    return int(_number(fields, name))


def _part(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _names(fields: Mapping[str, Any]) -> list[str]:
    value = fields.get("models")
    names = value[:32] if isinstance(value, list) else []
    return [name[:LINE_CHARACTERS_MAX] for name in names if isinstance(name, str)]


def _rows(fields: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = fields.get(name)
    return [row for row in value[:ROWS_MAX] if isinstance(row, dict)] if isinstance(value, list) else []
