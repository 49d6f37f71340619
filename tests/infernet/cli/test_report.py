"""infernet/cli/report.py: printed, written into a new file, or as JSON."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.helpers_cli import Home, invoke
from tests.helpers_doctor import QUICK, make_well


def test_it_is_printed_and_names_nobody(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    make_well(home, capsys, name="alices-gpu")
    outcome = invoke(capsys, "report", *QUICK)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("# Infernet report\n")
    assert "ok   model.verified" in outcome.out
    assert "name: set (file)" in outcome.out
    for word in ("alice", str(home.path), home.path.name):
        assert word not in outcome.out


def test_it_goes_into_a_new_file_that_only_its_owner_reads(
    home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "report.md"
    outcome = invoke(capsys, "report", "--output", str(path), *QUICK)
    assert outcome.code == 0
    assert outcome.out == f"Written to {path}. Read it before you post it.\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("# Infernet report\n")
    again = invoke(capsys, "report", "--output", str(path), *QUICK)
    assert again.code == 1
    assert "exists already" in again.complaint
    nowhere = invoke(capsys, "report", "--output", str(tmp_path / "no" / "r.md"), *QUICK)
    assert nowhere.code == 1
    assert "choose another place" in nowhere.complaint


def test_as_json(home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = invoke(capsys, "report", "--json", *QUICK).json
    assert set(report) == {
        "versions", "machine", "variables_set", "settings", "checks", "counters", "last_crash", "log",
    }  # fmt: skip
    path = tmp_path / "r.md"
    assert invoke(capsys, "report", "--json", "--output", str(path), *QUICK).json == {"file": str(path)}
