"""The metrics of a node as text for Prometheus, and its state as JSON for health checks, when somebody asks."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import psutil
import trio

from infernet.hardware.contract import Card
from infernet.metrics.table import COUNTER, METRICS, Facts, Process

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Over how long the tokens per second are taken, and how many looks of this time are remembered.
PACE_S: Final = 60.0
LOOKS_MAX: Final = 64
# A driver is asked again no sooner. Until it has answered, and no longer than this, whoever asks waits.
CARDS_FRESH_S: Final = 15.0
CARDS_WAIT_S: Final = 3.0


class Pace:
    """How fast a count grows. It is looked at when somebody asks, and costs nothing in between."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque(maxlen=LOOKS_MAX)

    def look(self, now_s: float, count: int, uptime_s: float) -> float:
        """The growth per second since the oldest look of the last minute; since the start where there is none."""
        while len(self._looks) > 1 and self._looks[1][0] <= now_s - PACE_S:
            self._looks.popleft()
        # Whoever looks all the time must not shorten the memory.
        if not self._looks or now_s - self._looks[-1][0] >= PACE_S / LOOKS_MAX:
            self._looks.append((now_s, count))
        before_s, before = self._looks[0]
        if before_s == now_s:
            return count / uptime_s if uptime_s > 0 else 0.0
        return max(0.0, (count - before) / (now_s - before_s))


class Cards:
    """The cards as their drivers show them now: the node itself looks at them too seldom for this."""

    def __init__(self, find: Callable[[], tuple[Card, ...]] | None) -> None:
        self._find = find
        self._seen: tuple[Card, ...] = ()
        self._fresh_until_s = 0.0
        self._turn = trio.Lock()

    async def look(self) -> tuple[Card, ...]:
        """Those seen a moment ago, or now. A driver that hangs costs the wait, and what it last said is given."""
        if self._find is None:
            return ()
        with trio.move_on_after(CARDS_WAIT_S):
            async with self._turn:
                if trio.current_time() >= self._fresh_until_s:
                    # Also when nothing comes of it: one that hangs must not be asked by every scrape.
                    self._fresh_until_s = trio.current_time() + CARDS_FRESH_S
                    await trio.to_thread.run_sync(self._look, self._find, abandon_on_cancel=True)
        return self._seen

    def _look(self, find: Callable[[], tuple[Card, ...]]) -> None:
        # In its thread: what comes after the wait is there for whoever asks next.
        self._seen = find()


class NodeMetrics:
    """Shows one node. `status` is what `infernet status --json` shows; `find_cards` is None where there are none."""

    def __init__(
        self, status: Callable[[], Mapping[str, Any]], find_cards: Callable[[], tuple[Card, ...]] | None
    ) -> None:
        self._status = status
        self._cards = Cards(find_cards)
        self._pace = Pace()

    async def text(self) -> str:
        """All metrics in Prometheus's text format."""
        cards = await self._cards.look()
        status = self._status()
        tokens = status.get("counts", {}).get("jobs", {}).get("output_tokens", 0)
        pace = self._pace.look(trio.current_time(), tokens, status.get("uptime_s", 0.0))
        return render(Facts(status, _process(), cards, pace))

    def health(self, wall_ms: int) -> dict[str, Any]:
        """What /healthz says. `ok` means that the node's loop answers, no more: what it can do is in the rest."""
        status = self._status()
        counts = status.get("counts", {})
        jobs, heartbeats = counts.get("jobs", {}), counts.get("heartbeats", {})
        link, last_s = status.get("coordinator"), heartbeats.get("age_s")
        engine = status.get("engine")
        return {
            "ok": True,
            "pid": os.getpid(),
            "uptime_ms": round(1000 * status.get("uptime_s", 0.0)),
            "role": status.get("role"),
            "node_id": status.get("node_id"),
            "control_plane": status.get("coordinator_url"),
            "heartbeats_ok": heartbeats.get("told", 0),
            "heartbeats_failed": heartbeats.get("missed", 0),
            "last_heartbeat_at": wall_ms - round(1000 * last_s) if last_s is not None else None,
            "last_heartbeat_error": (link["last_error"] or None) if link else None,
            "jobs_completed": jobs.get("completed", 0),
            "jobs_failed": jobs.get("failed", 0),
            "active_jobs": status.get("jobs_running", 0),
            "engine": engine["state"] if engine else None,
        }


def _process() -> Process:
    process = psutil.Process()
    with process.oneshot():
        times, memory = process.cpu_times(), process.memory_info()
    return Process(times.user + times.system, memory.rss, sum(_rss_of_children(process)))


def _rss_of_children(process: psutil.Process) -> Iterator[int]:
    try:
        children = process.children(recursive=True)
    except psutil.Error:
        return
    for child in children:
        try:
            yield child.memory_info().rss
        except psutil.Error:
            continue  # it has ended meanwhile


def render(facts: Facts) -> str:
    """The text for these facts."""
    # Only those who have metrics to show pay for the library.
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector

    class Snapshot(Collector):
        def collect(self) -> Iterator[Metric]:
            for row in METRICS:
                make = CounterMetricFamily if row.kind == COUNTER else GaugeMetricFamily
                family = make(row.name, row.help, labels=row.labels)
                for labels, value in row.read(facts):
                    family.add_metric(labels, value)
                if family.samples:
                    yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot())
    return generate_latest(registry).decode()
