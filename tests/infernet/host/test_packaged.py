"""infernet/host/packaged.py: the program as one file, its place, and the environment of what it starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infernet.cli import service
from infernet.cli.command import self_command, self_environment
from infernet.cli.upgrade import installation
from infernet.config import Config
from infernet.host import packaged


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process taken for a packaged program; gives its file."""
    inside = tmp_path / "cache" / "program-1-abc" / "infernet"
    inside.parent.mkdir(parents=True)
    file = tmp_path / "bin" / "infernet"
    file.parent.mkdir()
    for path in (inside, file):
        path.touch(0o755)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(inside))
    monkeypatch.setenv(packaged.FILE_VARIABLE, str(file))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return file


def test_the_file_is_the_one_that_was_started(program: Path) -> None:
    assert packaged.is_packaged()
    assert packaged.program_file() == program
    assert packaged.unpacked_beside() == Path(sys.executable).parent.parent


def test_what_was_unpacked_can_go_and_what_runs_stays(program: Path, tmp_path: Path) -> None:
    here, older, running = (tmp_path / "cache" / f"program-{name}" for name in ("1-abc", "0-abc", "2-abc"))
    older.mkdir()
    running.mkdir()
    sleeper = running / "infernet"
    shutil.copy(shutil.which("sleep") or "", sleeper)
    (tmp_path / "cache" / "notes").mkdir()
    (tmp_path / "cache" / "program-link").symlink_to(tmp_path / "bin")
    with subprocess.Popen([sleeper, "60"]) as other:
        try:
            assert packaged.unpacked_programs() == [older, here]
            assert packaged.unpacked_programs(other.pid) == [older, here, running]
        finally:
            other.kill()
    packaged.forget_unpacked([older, here])
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["notes", "program-2-abc", "program-link"]
    assert program.exists()


def test_a_program_that_was_not_packaged_has_unpacked_nothing() -> None:
    assert packaged.unpacked_programs() == []


@pytest.mark.parametrize("told", ["", "infernet", "/nonexistent/infernet"])
def test_what_is_no_file_any_more_is_not_believed(program: Path, told: str) -> None:
    assert packaged.program_file({packaged.FILE_VARIABLE: told}) == Path(sys.executable)
    assert packaged.program_file({}) == Path(sys.executable)


def test_a_node_is_started_again_from_inside_and_a_service_from_the_file(program: Path, tmp_path: Path) -> None:
    config = Config(config_dir=tmp_path / "c", state_dir=tmp_path / "s", data_dir=tmp_path / "d")
    assert self_command() == [sys.executable]
    assert "PYTHONPATH" not in self_environment()
    of_service = service.service(config)
    assert of_service.command[0] == str(program)
    assert "PYTHONPATH" not in of_service.environment
    # A newer file must be able to unpack itself under the same unit.
    assert packaged.unpacked_beside() in of_service.writes


def test_an_upgrade_replaces_the_file(program: Path, tmp_path: Path) -> None:
    kind, steps = installation(tmp_path)
    assert kind == "binary"
    assert str(program) in steps[0]
    assert "SHA256SUMS" in steps[0]
    assert str(packaged.unpacked_beside()) in steps[1]


def test_other_programs_get_their_own_libraries() -> None:
    environ = {
        "PATH": "/bin",
        "LD_LIBRARY_PATH": "/unpacked:/mine",
        "LD_LIBRARY_PATH_ORIG": "/mine",
        "_PYI_ARCHIVE_FILE": "/unpacked/infernet",
        "_PYI_APPLICATION_HOME_DIR": "/unpacked",
    }
    packaged.undo_loader(environ)
    assert environ == {"PATH": "/bin", "LD_LIBRARY_PATH": "/mine"}
    bare = {"PATH": "/bin", "LD_LIBRARY_PATH": "/unpacked"}
    packaged.undo_loader(bare)
    assert bare == {"PATH": "/bin"}
