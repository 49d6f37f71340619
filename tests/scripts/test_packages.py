"""scripts/_packages.py: what is in the wheel and the source distribution, and that a second build gives the same."""

from __future__ import annotations

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
