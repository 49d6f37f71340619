"""scripts/_packages.py: what is in the wheel and the source distribution, and that a second build gives the same."""

from __future__ import annotations

import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import _packages
from _environment import Failure

EPOCH_S = 1_700_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> _packages.Packages:
    """Both, from this checkout."""
    return _packages.build(Path(sys.executable), tmp_path_factory.mktemp("packages"), EPOCH_S)


@pytest.mark.slow
def test_both_hold_the_program_its_pages_and_its_licence(built: _packages.Packages) -> None:
    # `build` has looked already; here it is that looking sees something.
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    assert {"infernet/cli/__main__.py", "protocol/py.typed", "coordinator/web/static/style.css"} <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "specs/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(built.sdist) as sdist:
        members = sdist.getmembers()
    assert {member.mtime for member in members} == {EPOCH_S}
    assert not [member.name for member in members if not member.name.startswith("infernet-")]


@pytest.mark.slow
def test_the_source_distribution_gives_the_same_wheel_without_an_index(
    built: _packages.Packages, tmp_path: Path
) -> None:
    rebuilt = _packages._rebuild([sys.executable, "-m", "pip"], built.sdist, tmp_path, EPOCH_S)
    assert rebuilt.name == built.wheel.name
    _packages.compare(built.wheel, rebuilt)


def wheel_of(path: Path, **files: str) -> Path:
    """A file like a wheel, with these in it."""
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


@pytest.mark.parametrize(
    ("other", "told"),
    [({"a": "1"}, "lacks b"), ({"a": "1", "b": "2", "c": "3"}, "alone holds c"), ({"a": "1", "b": "3"}, "otherwise b")],
)
def test_two_wheels_that_differ_are_told_apart(tmp_path: Path, other: dict[str, str], told: str) -> None:
    wheel = wheel_of(tmp_path / "one.whl", a="1", b="2")
    _packages.compare(wheel, wheel_of(tmp_path / "same.whl", b="2", a="1"))
    with pytest.raises(Failure, match=told):
        _packages.compare(wheel, wheel_of(tmp_path / "other.whl", **other))


def program(folder: Path, printed: str) -> Path:
    """An environment whose `infernet` prints this."""
    (folder / "bin").mkdir(parents=True)
    file = folder / "bin" / "infernet"
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
    file.chmod(0o755)
    return folder


def test_the_doctor_must_find_the_libraries_and_the_engine(tmp_path: Path) -> None:
    sound = [{"id": name, "status": "ok", "found": "it is there"} for name in _packages._SOUND]
    # Of what a machine lacks beside them nothing is said.
    checks = [*sound, {"id": "model.present", "status": "fail", "found": "no model"}]
    _packages._examine(program(tmp_path / "sound", json.dumps({"checks": checks})), home=tmp_path)
    lacking = [*sound[:2], sound[2] | {"status": "fail", "found": "xllamacpp is not installed"}, *sound[3:]]
    with pytest.raises(Failure, match=r"libs\.engine wanting: xllamacpp is not installed"):
        _packages._examine(program(tmp_path / "lacking", json.dumps({"checks": lacking})), home=tmp_path)
    with pytest.raises(Failure, match=r"finds libs\.engine wanting: no such check"):
        _packages._examine(program(tmp_path / "older", json.dumps({"checks": sound[:2]})), home=tmp_path)
    with pytest.raises(Failure, match="gives no checks"):
        _packages._examine(program(tmp_path / "broken", "Traceback"), home=tmp_path)


def test_what_is_missing_or_strange_is_named() -> None:
    everything = [
        str(path.relative_to(_packages.ROOT))
        for package in _packages.PACKAGES
        for path in (_packages.ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    _packages.complain_about("a", everything)
    with pytest.raises(Failure, match=r"^a lacks coordinator/web/chat\.html$"):
        _packages.complain_about("a", [name for name in everything if name != "coordinator/web/chat.html"])
    with pytest.raises(Failure, match=r"^a lacks LICENSE$"):
        _packages.complain_about("a", everything, "LICENSE")
    for strange in ("tests/conftest.py", "infernet/__pycache__/x.pyc", ".cache/models/x.gguf"):
        with pytest.raises(Failure, match="holds what nobody installs"):
            _packages.complain_about("a", [*everything, strange])


def test_a_build_that_depends_on_when_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def build_once(_python: Path, target: Path, _epoch_s: int) -> _packages.Packages:
        nonlocal count
        count += 1
        target.mkdir(exist_ok=True)
        packages = _packages.Packages(target / "a.whl", target / "a.tar.gz")
        packages.wheel.write_bytes(b"same")
        packages.sdist.write_bytes(b"%d" % count)
        return packages

    monkeypatch.setattr(_packages, "_build_once", build_once)
    with pytest.raises(Failure, match=r"^a\.tar\.gz came out differently the second time"):
        _packages.build(Path(sys.executable), tmp_path / "out", EPOCH_S)
