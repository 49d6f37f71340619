"""A newcomer's first minute: a fresh clone, an empty home, no compiler, one command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers_processes import free_port, processes_below

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 600.0

# It downloads some 200 MB from whatever package index is configured.
pytestmark = pytest.mark.nightly


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What is committed, and nothing else."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    return tmp_path / "clone"


def bare_environ(tmp_path: Path) -> dict[str, str]:
    """An empty home, and a PATH on which there is Python and nothing else; how pip reaches its index stays."""
    programs = tmp_path / "programs"
    programs.mkdir()
    # The interpreter itself, not the environment that the tests run in.
    (programs / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    (programs / "env").symlink_to("/usr/bin/env")
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "LANG", "LC_"))}
    return kept | {"PATH": str(programs), "HOME": str(tmp_path / "home"), "CC": "/bin/false", "PIP_NO_CACHE_DIR": "1"}


def test_one_command_answers_a_question(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    ports = ["--port", str(free_port()), "--p2p-port", str(free_port())]
    done = subprocess.run(
        [str(clone / "scripts" / "up"), "--ask", "What is the capital of France?", *ports],
        env=bare_environ(tmp_path),
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert processes_below(tmp_path) == []
