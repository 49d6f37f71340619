"""scripts/_environment.py: what it refuses and how it says so, and when an environment is made anew."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import _environment
from _environment import STAMP, Environment, Failure, clean_environ, digest, require_system_libraries, run_main, step


@dataclass(frozen=True)
class RecordingEnvironment(Environment):
    """Notes what would be installed instead of installing it."""

    done: list[str] = field(default_factory=list)

    def _create(self) -> None:
        self.done.append("create")
        self.python.parent.mkdir(parents=True, exist_ok=True)
        self.python.touch()

    def _install_locks(self) -> None:
        self.done.append("locks")

    def _install_project(self) -> None:
        self.done.append("project")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that decide what an environment must hold."""
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    for name in ("build", "base", "other"):
        (requirements / f"{name}.txt").write_text(f"{name}==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(_environment, "ROOT", tmp_path)
    monkeypatch.setattr(_environment, "REQUIREMENTS", requirements)
    return tmp_path


def prepare(checkout: Path) -> list[str]:
    """What preparing the environment of the lock `base` does now."""
    environment = RecordingEnvironment(checkout / ".venv", ("base",))
    environment.prepare()
    return environment.done


def test_an_environment_is_made_once(checkout: Path) -> None:
    assert prepare(checkout) == ["create", "locks", "project"]
    assert prepare(checkout) == []


def test_a_changed_lock_makes_it_anew_and_another_lock_does_not(checkout: Path) -> None:
    prepare(checkout)
    (checkout / "requirements" / "other.txt").write_text("other==2\n")
    assert prepare(checkout) == []
    (checkout / "requirements" / "base.txt").write_text("base==2\n")
    assert prepare(checkout) == ["create", "locks", "project"]


def test_a_changed_project_file_only_installs_the_project_again(checkout: Path) -> None:
    prepare(checkout)
    (checkout / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert prepare(checkout) == ["project"]


def test_a_damaged_or_half_made_environment_is_made_anew(checkout: Path) -> None:
    prepare(checkout)
    (checkout / ".venv" / STAMP).write_text("{")
    assert prepare(checkout)[0] == "create"
    (checkout / ".venv" / STAMP).write_text(json.dumps({}))
    assert prepare(checkout)[0] == "create"
    (checkout / ".venv" / "bin" / "python").unlink()
    assert prepare(checkout)[0] == "create"


def test_somebody_elses_environment_is_left_alone(checkout: Path) -> None:
    theirs = checkout / ".venv" / "precious"
    theirs.parent.mkdir()
    theirs.touch()
    with pytest.raises(Failure, match="move it away"):
        prepare(checkout)
    assert theirs.exists()


def test_a_missing_venv_module_is_named_with_its_package(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(Failure, match=r"apt-get install python3\.\d+-venv"):
        Environment(checkout / ".venv", ("base",)).prepare()
    assert not (checkout / ".venv").exists()


def test_a_missing_system_library_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_environment, "SYSTEM_LIBRARIES", (("libno-such-thing.so.9", "libnosuch9"),))
    with pytest.raises(Failure, match="apt-get install libnosuch9"):
        require_system_libraries()


def test_a_failing_pip_is_quoted_and_told_in_one_line(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    environment = Environment(checkout / ".venv", ("base",))
    environment.python.parent.mkdir(parents=True)
    environment.python.write_text("#!/bin/sh\necho no such package\nexit 1\n")
    environment.python.chmod(0o755)
    with pytest.raises(Failure, match="pip could not install"):
        environment._install_locks()
    assert "no such package" in capfd.readouterr().err


def test_a_digest_tells_where_one_file_ends_and_the_next_begins(tmp_path: Path) -> None:
    one, two, both, none = (tmp_path / name for name in ("one", "two", "both", "none"))
    for path, text in ((one, "a"), (two, "b"), (both, "ab"), (none, "")):
        path.write_text(text)
    assert digest([one, two]) != digest([both, none])
    assert digest([one], "x") != digest([one], "y")


def test_a_failure_is_one_line_and_exit_status_one(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise Failure("this happened: do that")

    assert run_main(main) == 1
    assert capsys.readouterr().err == f"{Path(sys.argv[0]).name}: this happened: do that\n"


def test_what_another_user_made_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/.venv")

    assert run_main(main, "up") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("up: cannot use /somewhere/.venv (permission denied): ")
    assert "chown" in line


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    program = "from _environment import run_main\nrun_main(lambda: print('word\\n' * 100_000) or 0)"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=Path(_environment.__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"word\n"
        process.stdout.close()
        assert process.stderr.read() == b""


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with step("Working") as show:
        show("half way")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Working (")


def test_variables_that_would_lead_python_astray_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "kept")
    assert "PYTHONPATH" not in clean_environ()
    assert clean_environ()["PIP_INDEX_URL"] == "kept"


def test_two_commands_do_not_install_at_once(checkout: Path) -> None:
    folder, requirements = Path(_environment.__file__).parent, checkout / "requirements"
    other = [
        f"import sys, pathlib; sys.path.insert(0, {str(folder)!r})",
        f"import _environment; _environment.REQUIREMENTS = pathlib.Path({str(requirements)!r})",
        "with _environment.one_at_a_time(): print('mine')",
    ]
    with subprocess.Popen(
        [sys.executable, "-c", "\n".join(other)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        with _environment.one_at_a_time():
            assert process.stderr.readline().startswith("Waiting for another command")
            assert process.poll() is None
        assert process.communicate(timeout=30)[0] == "mine\n"
