"""scripts/bench network: each figure stands beside another one of the same run."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys

import pytest

from _environment import ROOT

BENCHMARKS = ROOT / "scripts" / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def names() -> list[str]:
    """The figures that there are."""
    return sorted(path.stem for path in (BENCHMARKS / "network_figures").glob("*.py"))


@pytest.mark.parametrize("name", names())
def test_every_figure_can_be_measured_and_says_what_it_is(name: str) -> None:
    module = importlib.import_module(f"network_figures.{name}")
    assert inspect.iscoroutinefunction(module.measure)
    assert isinstance(module.NEEDS_ROOT, bool)
    assert "eside" in (module.__doc__ or ""), "it says beside what it stands"


def test_a_ratio_is_that_of_two_numbers_and_a_quantile_was_measured() -> None:
    figures = importlib.import_module("_figures")
    assert figures.Figure("a", 6.0, "ms", "b", 4.0).as_json() == {
        "what": "a",
        "value": 6.0,
        "unit": "ms",
        "baseline": "b",
        "baseline_value": 4.0,
        "ratio": 1.5,
    }
    assert [figures.quantile([3, 1, 2, 4], share) for share in (0.0, 0.25, 0.5, 0.51, 1.0)] == [1, 1, 2, 3, 4]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark."""
    command = [sys.executable, str(BENCHMARKS / "network.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_figures_of_real_processes_are_printed_as_json() -> None:
    done = run("--quick", "--json", "--only", "jobs_per_s")
    assert done.returncode == 0, done.stderr
    rate, *costs = json.loads(done.stdout)["jobs_per_s"]
    assert rate["unit"] == "jobs/s"
    assert rate["value"] > 1
    for cost in costs:
        assert cost["ratio"] > 1, "nothing costs less than the cryptography that it holds"
        assert cost["ratio"] == pytest.approx(cost["value"] / cost["baseline_value"])


def test_what_is_no_figure_is_refused_with_those_that_there_are() -> None:
    done = run("--only", "nonsense")
    assert done.returncode == 2
    assert all(name in done.stderr for name in names())
