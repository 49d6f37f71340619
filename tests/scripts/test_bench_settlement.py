"""scripts/bench settlement and ledger_backup: they settle, restore, check, and set each figure beside another one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120.0

pytestmark = pytest.mark.slow


def run(name: str, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "benchmarks" / f"{name}.py"), "--json", *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@pytest.mark.nightly
def test_claims_are_settled_beside_a_bare_loop(tmp_path: Path) -> None:
    words = ("--claims", "600", "--rate", "100", "--seconds", "1", "--folder", str(tmp_path))
    figures = run("settlement", *words)
    assert figures["ratio"] == figures["claims_per_s"] / figures["bare_rows_per_s"] > 0
    assert min(figures["link_claims_per_s"], figures["http_claims_per_s"]) > 0
    assert 0 < figures["wait_p50_ms"] <= figures["wait_p99_ms"]
    # The deposit, 500 leases, and every claim: nothing is lost and nothing counted twice.
    assert figures["entries_checked"] == 1 + 500 + 2_000 + 2 * 600 + 100
    assert not list(tmp_path.iterdir())


def test_a_ledger_comes_back_with_its_head(tmp_path: Path) -> None:
    figures = run("ledger_backup", "--mib", "24", "--folder", str(tmp_path))
    assert figures["is_same_head"]
    assert 0 < figures["entries_in_journal_alone"] < figures["entries"]
    assert figures["ratio"] > 0
    assert not list(tmp_path.iterdir())
