"""infernet/hardware/worker.py: a library is asked in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from infernet.hardware import tools, worker
from infernet.hardware.machine import worker_command


@pytest.mark.parametrize("library", ["nvml", "amdsmi"])
def test_where_there_is_no_library_the_worker_tells_nothing(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nonexistent")
    assert worker.parse(tools.output_of(worker_command(library))) is None


@pytest.mark.parametrize("words", [[], ["cuda"]])
def test_nothing_else_can_be_asked_for(words: list[str]) -> None:
    assert worker.main(words) == 2


def test_the_hidden_verb_is_the_same() -> None:
    command = [sys.executable, "-P", "-m", "infernet.cli", "hardware-worker", "cuda"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_a_frozen_program_starts_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert worker_command("nvml") == [sys.executable, "hardware-worker", "nvml"]


def test_deep_or_strange_answers_are_none() -> None:
    assert worker.parse(b"[" * 100_000) is None
    assert worker.parse(b'[{"vendor": 1, "index": 0}]') is None
    assert worker.parse(b'[{"vendor": 77, "index": 0, "model": "m", "source": "s"}]') is not None
