""".github/workflows: what a linter does not know of us. GitHub has not run them here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_there_are_two() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_a_commit_with_its_version_beside_it(path: Path) -> None:
    uses = re.findall(r"uses: *(.*)$", path.read_text("utf-8"), re.MULTILINE)
    assert uses
    for action in uses:
        assert re.fullmatch(r"[a-z-]+/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_nothing_may_be_written_unless_a_job_says_so(path: Path) -> None:
    head, _, jobs = path.read_text("utf-8").partition("\njobs:\n")
    assert "\npermissions:\n  contents: read\n" in head
    writes = re.findall(r"^      (\S+): write", jobs, re.MULTILINE)
    assert writes == (["contents", "packages"] if path.name == "release.yml" else [])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_command_of_ours_is_there_and_every_job_ends(path: Path) -> None:
    text = path.read_text("utf-8")
    for command in re.findall(r"run: ((?:scripts/|\.ci/)\w+)", text):
        assert (ROOT / command).stat().st_mode & 0o100, command
    assert text.count("timeout-minutes:") == text.count("runs-on:")


def test_the_pythons_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    minors = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    matrix = re.search(r"python: \[(.*)\]", (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert matrix is not None
    assert re.findall(r"3\.\d+", matrix[1]) == minors


def jobs_of(path: Path) -> dict[str, str]:
    """The text of each job of a workflow, by its name."""
    _, _, jobs = path.read_text("utf-8").partition("\njobs:\n")
    _, *parts = re.split(r"^  ([a-z]+):\n", jobs, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_what_takes_long_or_needs_more_runs_at_night_and_when_somebody_asks() -> None:
    path = ROOT / ".github" / "workflows" / "ci.yml"
    head, _, _ = path.read_text("utf-8").partition("\njobs:\n")
    assert "\n  schedule:\n" in head
    assert "\n  workflow_dispatch:\n" in head
    at_night = "    if: github.event_name == 'schedule' || github.event_name == 'workflow_dispatch'\n"
    jobs = jobs_of(path)
    assert [name for name, text in jobs.items() if at_night in text] == ["nightly", "exllama", "rpc"]
    assert "run: scripts/test --nightly\n" in jobs["nightly"]
    assert "-m rpc " in jobs["rpc"]


def test_exllama_is_had_as_contributing_says() -> None:
    job = jobs_of(ROOT / ".github" / "workflows" / "ci.yml")["exllama"]
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    commands = re.findall(r"^\S*\.venv-exllama.*|^python3\S* -m venv .*", page, re.MULTILINE)
    assert len(commands) > 4
    assert [command for command in commands if command not in job] == []


def test_only_a_whole_version_makes_a_release() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    assert 'tags: ["v[0-9]+.[0-9]+.[0-9]+"]' in text
    assert "pull_request" not in text
