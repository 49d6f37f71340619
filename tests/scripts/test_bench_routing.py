"""scripts/bench routing: it decides and scans in the same run, and a decision does not grow with the market."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60.0


@pytest.mark.slow
def test_a_decision_costs_no_more_in_a_larger_market() -> None:
    words = ["--providers", "200", "2000", "--decisions", "100", "--scans", "3", "--json"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "benchmarks" / "routing.py"), *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    small, large = figures = json.loads(done.stdout)
    assert [each["providers"] for each in figures] == [200, 2000]
    for each in figures:
        _check(each)
    # Ten times the market: a scan takes about ten times as long, a decision about as long. Wide for noisy machines.
    assert large["scan_cpu_p50_us"] > 4 * small["scan_cpu_p50_us"]
    assert large["cpu_p50_us"] < 3 * small["cpu_p50_us"]
    assert large["ratio"] > 2 * small["ratio"]


def _check(figures: dict[str, Any]) -> None:
    assert (figures["decisions"], figures["scans"]) == (100, 4)
    assert 0 < figures["cpu_p50_us"] <= figures["cpu_p99_us"]
    assert 0 < figures["wall_p50_us"] <= figures["wall_p99_us"]
    assert figures["ratio"] == figures["scan_cpu_p50_us"] / figures["cpu_p50_us"]
