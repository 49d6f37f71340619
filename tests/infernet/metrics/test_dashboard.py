"""docs/grafana.json shows what the table of metrics has, each once, and asks for nothing else."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from infernet.metrics.dashboard import ROWS, dashboard, render
from infernet.metrics.table import COUNTER, METRICS

FILE = Path(__file__).resolve().parents[3] / "docs" / "grafana.json"
SHOWN = {metric.shown_name: metric for metric in METRICS}


def panels() -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def metric_of(panel: dict[str, Any]) -> str:
    """The name of the only metric that a panel asks for."""
    [target] = panel["targets"]
    [name] = re.findall(r"[a-z_]+(?=\{)", target["expr"])
    return str(name)


def test_the_file_is_made_from_the_table() -> None:
    assert FILE.read_text("utf-8") == render(), "run: python -m infernet.metrics.dashboard > docs/grafana.json"
    assert json.loads(render()) == dashboard()


def test_every_metric_has_a_panel_with_its_labels_and_its_help() -> None:
    assert [metric_of(panel) for panel in panels()] == list(SHOWN)
    for panel in panels():
        metric = SHOWN[metric_of(panel)]
        [target] = panel["targets"]
        assert re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]) == ["instance", *metric.labels]
        assert panel["description"] == metric.help


def test_what_only_grows_is_shown_by_its_growth() -> None:
    for panel in panels():
        [target] = panel["targets"]
        grows = target["expr"].startswith(("rate(", "increase("))
        assert grows == (SHOWN[metric_of(panel)].kind == COUNTER), target["expr"]


@pytest.mark.parametrize(
    ("name", "expression", "unit"),
    [
        ("infernet_gpu_memory_used_bytes", 'infernet_gpu_memory_used_bytes{instance=~"$instance"}', "bytes"),
        (
            "infernet_sent_bytes_total",
            'rate(infernet_sent_bytes_total{instance=~"$instance"}[$__rate_interval])',
            "Bps",
        ),
        (
            "infernet_earned_micro_usd_total",
            'increase(infernet_earned_micro_usd_total{instance=~"$instance"}[1d]) / 1e6',
            "currencyUSD",
        ),
        ("infernet_unclaimed_micro_usd", 'infernet_unclaimed_micro_usd{instance=~"$instance"} / 1e6', "currencyUSD"),
        # Seconds of a processor in each second.
        (
            "process_cpu_seconds_total",
            'rate(process_cpu_seconds_total{instance=~"$instance"}[$__rate_interval])',
            "percentunit",
        ),
    ],
)
def test_units_are_those_of_the_names(name: str, expression: str, unit: str) -> None:
    [panel] = [panel for panel in panels() if metric_of(panel) == name]
    assert panel["targets"][0]["expr"] == expression
    assert panel["fieldConfig"]["defaults"]["unit"] == unit


def test_panels_have_numbers_of_their_own_and_none_lies_on_another() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert [panel["title"] for panel in everything if panel["type"] == "row"] == list(ROWS.values())
    for one, other in combinations([panel["gridPos"] for panel in everything], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert one["x"] + one["w"] <= 24
