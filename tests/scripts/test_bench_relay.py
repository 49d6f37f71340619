"""scripts/bench relay: its processes come up, both ways give every token, and the figures compare what they should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "scripts" / "benchmarks" / "relay.py"
TIMEOUT_S = 60.0
TOKENS = 3


def bench(*words: str) -> Any:
    """Run the benchmark on the paced engine, once, and return its figures."""
    command = [sys.executable, str(BENCHMARK), "--engine", "paced", "--streams", "1", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--tokens", str(TOKENS), "--json", *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "processes"), [("p2p", {"node", "asker"}), ("sse", {"node", "asker", "coordinator"})])
def test_both_ways_are_asked_and_compared(path: str, processes: set[str]) -> None:
    [result] = bench("--path", path)

    assert (result["path"], result["engine"], result["streams"]) == (path, "paced", 1)
    for way in ("direct", "relayed"):
        assert result[way]["tokens"] == TOKENS
        # The engine says a token every 50 ms, the first one included; no way can be faster.
        assert result[way]["first_token_ms"] > 45
        assert result[way]["tokens_per_s"] < 21
        assert set(result[way]["cpu_ms_per_token"]) == processes
    [direct], [relayed] = result["runs"]["direct"], result["runs"]["relayed"]
    assert result["ratio"] == relayed["tokens_per_s"] / direct["tokens_per_s"]
    assert result["first_token_added_ms"] == relayed["first_token_ms"] - direct["first_token_ms"]


@pytest.mark.nightly
def test_the_engine_keeps_another_pace_where_one_is_given() -> None:
    [result] = bench("--path", "p2p", "--pace", "200", "--tokens", "40")
    # A token every 5 ms: faster than without it, and no faster than it says.
    assert 20 < result["direct"]["tokens_per_s"] < 205
    assert result["direct"]["first_token_ms"] > 4
