"""infernet/cli/report.py: printed, written into a new file, or as JSON."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path

import pytest

from tests.helpers_cli import Home, invoke
from tests.helpers_doctor import QUICK, make_well
from tests.helpers_secrets import KINDS, leaked


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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_whole_run_shows_none_of_what_was_planted(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Real checks over a home that is full of secrets; what they quote is redacted like everything else."""
    make_well(home, capsys)
    rng = random.Random(seed)
    secrets = [make(rng) for make in KINDS.values() for _ in range(2)]
    rng.shuffle(secrets)
    with home.config.config_file.open("a") as file:
        file.writelines(f"{json.dumps(secret.text)} = {json.dumps(secret.text)}\n" for secret in secrets[:12])
    home.config.state_dir.mkdir(exist_ok=True)
    home.config.log_file.write_text("".join(f"it met {secret.text}\n" for secret in secrets))
    (home.config.state_dir / "crash.log").write_text(secrets[12].text)
    for number, name in enumerate(("HTTP_PROXY", "ALL_PROXY", "INFERNET_MODEL", "USER", "GITHUB_TOKEN", "NO_PROXY")):
        monkeypatch.setenv(name, secrets[20 + number].text)
    monkeypatch.setenv("INFERNET_" + secrets[30].text.replace("=", ""), secrets[31].text)
    outcome = invoke(capsys, "report", "--skip-engine")
    assert outcome.code == 0
    assert "warn config.known" in outcome.out
    for secret in secrets:
        assert not leaked(secret, outcome.out + outcome.err), secret
