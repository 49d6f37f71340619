"""A dashboard for Grafana, made from the table of metrics, so that it asks for what the program shows.

python -m infernet.metrics.dashboard > docs/grafana.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Final

from infernet.metrics.table import COUNTER, METRICS, Metric

# The first metric of each row of panels.
ROWS: Final = {
    "infernet_build_info": "This node",
    "infernet_jobs_taken": "Jobs of others",
    "infernet_asked": "Questions of this node",
    "infernet_forwarded": "Jobs between others",
    "infernet_earned_micro_usd": "Money",
    "infernet_engine_state": "The engine and its cards",
    "infernet_peers_connected": "The network",
    "process_cpu_seconds": "The process",
}
# By the end of a name: Grafana's unit, and that of a counter's growth in a second.
_UNITS: Final = {
    "_bytes": ("bytes", "Bps"),
    "_seconds": ("s", "percentunit"),
    "_celsius": ("celsius", ""),
    "_watts": ("watt", ""),
    "_ratio": ("percentunit", ""),
}
_MONEY: Final = "_micro_usd"
_SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
# Grafana's grid.
_COLUMNS: Final = 24
_WIDTH: Final = 8
_HEIGHT: Final = 7
_SCHEMA: Final = 39


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    return {
        "uid": "infernet-node",
        "title": "Infernet",
        "description": "Nodes of Infernet, by what they tell Prometheus. Made from the table of metrics.",
        "tags": ["infernet"],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    query = "label_values(infernet_build_info, instance)"
    yield {
        "name": "instance",
        "label": "Node",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "instances"},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> Iterator[dict[str, Any]]:
    column = row = 0
    for number, metric in enumerate(METRICS, start=1):
        if metric.name in ROWS:
            row += _HEIGHT if column else 0
            place = {"h": 1, "w": _COLUMNS, "x": 0, "y": row}
            yield {"id": 1000 + number, "type": "row", "title": ROWS[metric.name], "gridPos": place, "panels": []}
            column, row = 0, row + 1
        place = {"h": _HEIGHT, "w": _WIDTH, "x": column, "y": row}
        yield _panel(number, metric, place)
        column += _WIDTH
        if column == _COLUMNS:
            column, row = 0, row + _HEIGHT


def _panel(number: int, metric: Metric, place: dict[str, int]) -> dict[str, Any]:
    expression, unit, per = _asked(metric)
    legend = " ".join(f"{{{{{label}}}}}" for label in ("instance", *metric.labels))
    return {
        "id": number,
        "type": "timeseries",
        "title": _title(metric) + per,
        "description": metric.help,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [{"refId": "A", "datasource": _SOURCE, "expr": expression, "legendFormat": legend}],
    }


def _asked(metric: Metric) -> tuple[str, str, str]:
    """The expression, its unit, and what the title says of the time that it is over."""
    series = f'{metric.shown_name}{{instance=~"$instance"}}'
    if metric.name.endswith(_MONEY):
        if metric.kind == COUNTER:
            return f"increase({series}[1d]) / 1e6", "currencyUSD", ", in a day"
        return f"{series} / 1e6", "currencyUSD", ""
    unit, of_growth = next((units for end, units in _UNITS.items() if metric.name.endswith(end)), ("short", "short"))
    if metric.kind == COUNTER:
        return f"rate({series}[$__rate_interval])", of_growth, ", per second"
    return series, unit, ""


def _title(metric: Metric) -> str:
    words = metric.name.removeprefix("infernet_").removesuffix(_MONEY)
    for end in _UNITS:
        words = words.removesuffix(end)
    return words.replace("_", " ").capitalize()


def render() -> str:
    """The whole file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
