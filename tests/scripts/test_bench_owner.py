"""scripts/bench owner: it starts a node, has it asked, leaves it alone, and its figures are in the order of events."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers_processes import processes_below, wait_until

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "scripts" / "benchmarks" / "owner.py"
TIMEOUT_S = 120.0


@pytest.mark.nightly
@pytest.mark.model
def test_a_node_is_started_asked_and_left_alone(tmp_path: Path) -> None:
    words = ["--runs", "1", "--starts", "1", "--idle-s", "0.5", "--json"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *words],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = ["python -c ''", "infernet --help", "infernet version", "infernet status"]
    assert list(found["commands_ms"]) == names
    assert all(taken > 0 for [taken] in found["commands_ms"].values())
    [start] = found["starts"]
    # It answers first, then it serves, and only then is it asked.
    assert 0 < start["answers_s"] <= start["serves_s"] < start["first_job_s"]
    assert start["first_token_s"] > 0
    assert [each["process"] for each in start["idle"]] == ["node", "engine"]
    assert all(each["rss_mib"] > 1 and each["cpu_percent"] >= 0 for each in start["idle"])
    # Nothing of it stays.
    wait_until(lambda: not processes_below(tmp_path), "the node has ended")
    assert not list(tmp_path.iterdir())
