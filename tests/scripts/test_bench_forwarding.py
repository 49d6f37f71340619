"""scripts/bench forwarding: its processes come up, both ways give every token, and an order is handed on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "scripts" / "benchmarks" / "forwarding.py"
TIMEOUT_S = 90.0
TOKENS = 3


@pytest.mark.nightly
def test_both_ways_are_asked_and_compared_and_a_slot_is_held() -> None:
    words = ["--streams", "1", "--repeats", "1", "--tokens", str(TOKENS), "--handoffs", "2", "--json"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    [hop] = results["hop"]
    for way in ("direct", "relayed"):
        assert hop[way]["tokens"] == TOKENS
        assert set(hop[way]["cpu_ms_per_token"]) == {"provider", "aggregator", "asker"}
    [direct], [relayed] = hop["runs"]["direct"], hop["runs"]["relayed"]
    assert hop["ratio"] == relayed["tokens_per_s"] / direct["tokens_per_s"]
    # One to warm up, one that counts.
    assert (results["forwarded"]["carried"], results["forwarded"]["failed"]) == (2, 0)
    handoff = results["handoff"]
    assert 0 < handoff["refused_ms"] < handoff["handed_on_ms"] < 1000
