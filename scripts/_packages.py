"""The wheel and the source distribution: built the same twice, and looked at before anybody gets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from _binary import version
from _environment import ROOT, Failure, clean_environ, requirement_options, step

PACKAGES: Final = ("protocol", "infernet", "coordinator")
BUILD_TIMEOUT_S: Final = 300
# A hundred packages, on a machine that has other work.
INSTALL_TIMEOUT_S: Final = 1800
RUN_TIMEOUT_S: Final = 60
_CHECKS: Final = (
    (("infernet", "version"), f"infernet {version()} "),
    (("infernet", "--help"), "usage: infernet VERB"),
    (("infernet", "start", "--help"), "usage: infernet start"),
    (("infernet-coordinator", "--help"), "usage: infernet-coordinator"),
    (("infernet", "init", "--yes", "--role", "provider"), "npub"),
)
# What `infernet doctor` must find where everything is installed, whatever the machine is.
_SOUND: Final = ("libs.present", "libs.libp2p", "libs.engine", "key.present")
_NAMES_SHOWN: Final = 5


@dataclass(frozen=True)
class Packages:
    """The two files that a Python installer takes."""

    wheel: Path
    sdist: Path


def build(python: Path, target: Path, epoch_s: int) -> Packages:
    """Build both, twice, into the folder `target`. Raises `Failure` also where the second time gives something else."""
    with (
        step("Building wheel and source distribution, twice"),
        tempfile.TemporaryDirectory(prefix="infernet-") as scratch,
    ):
        first = _build_once(python, target, epoch_s)
        second = _build_once(python, Path(scratch), epoch_s)
        for one, other in ((first.wheel, second.wheel), (first.sdist, second.sdist)):
            if one.read_bytes() != other.read_bytes():
                raise Failure(f"{one.name} came out differently the second time: something in it depends on when")
    look_into(first)
    return first


def _build_once(python: Path, target: Path, epoch_s: int) -> Packages:
    done = _run(
        [str(python), "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(target)],
        BUILD_TIMEOUT_S,
        cwd=ROOT,
        env=clean_environ() | {"SOURCE_DATE_EPOCH": str(epoch_s)},
    )
    if done.returncode != 0:
        sys.stderr.write((done.stdout + done.stderr)[-4000:])
        raise Failure("hatchling could not build; its words stand above")
    return Packages(target / f"infernet-{version()}-py3-none-any.whl", target / f"infernet-{version()}.tar.gz")


def look_into(packages: Packages) -> None:
    """Whether everything is in both files that belongs there, and nothing else. Raises `Failure`."""
    with zipfile.ZipFile(packages.wheel) as wheel:
        complain_about(packages.wheel.name, wheel.namelist())
    top = f"infernet-{version()}/"
    with tarfile.open(packages.sdist) as sdist:
        names = [name.removeprefix(top) for name in sdist.getnames()]
    complain_about(packages.sdist.name, names, "pyproject.toml", "LICENSE", "README.md", "requirements/base.txt")


def complain_about(name: str, names: Iterable[str], *more: str) -> None:
    """Raise `Failure` for a file that is missing, or that has no business there."""
    names = set(names)
    # Modules, and the pages that the coordinator serves.
    files = {path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    missing = {*(str(path) for path in files if "__pycache__" not in path.parts), *more} - names
    if missing:
        raise Failure(f"{name} lacks {', '.join(sorted(missing)[:_NAMES_SHOWN])}")
    strange = [entry for entry in names if {"tests", "scripts", "__pycache__", ".cache"} & set(Path(entry).parts)]
    if strange:
        raise Failure(f"{name} holds what nobody installs: {', '.join(sorted(strange)[:_NAMES_SHOWN])}")


def try_out(packages: Packages, epoch_s: int) -> None:
    """Install both with their locked dependencies into an environment that has nothing else, and use them.

    The source distribution is built there without an index, and must give the wheel that was built from the checkout.
    """
    with tempfile.TemporaryDirectory(prefix="infernet-clean-") as scratch:
        folder = Path(scratch) / "venv"
        with step("Making a clean environment"):
            _quiet([sys.executable, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        install = [*pip, "install", "-q", "--no-deps"]
        with step("Installing there what it needs, with the embedded engine (a minute)"):
            _quiet([*install, *requirement_options("build")])
            _quiet([*install, "--no-build-isolation", "--use-pep517", *requirement_options("base", "llama")])
        with step("Building a wheel there from the source distribution, offline"):
            rebuilt = _rebuild(pip, packages.sdist, Path(scratch) / "rebuilt", epoch_s)
            compare(packages.wheel, rebuilt)
        for file in (packages.wheel, rebuilt):
            what = "the wheel" if file is packages.wheel else "what the source distribution gave"
            with step(f"Using {what}"), tempfile.TemporaryDirectory(prefix="infernet-home-") as home:
                _quiet([*install, "--no-index", "--force-reinstall", str(file)])
                for words, expected in _CHECKS:
                    _expect(folder, words, expected, home=Path(home))
                _examine(folder, home=Path(home))


def _rebuild(pip: list[str], sdist: Path, target: Path, epoch_s: int) -> Path:
    """The wheel that the source distribution gives with what is installed, and no index to ask. Raises `Failure`."""
    command = [*pip, "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(target), str(sdist)]
    environ = clean_environ() | {"SOURCE_DATE_EPOCH": str(epoch_s), "PIP_NO_INDEX": "1"}
    done = _run(command, BUILD_TIMEOUT_S, cwd=sdist.parent, env=environ)
    wheels = list(target.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        sys.stderr.write((done.stdout + done.stderr)[-4000:])
        raise Failure(f"{sdist.name} gives no wheel without a network; pip's words stand above")
    return wheels[0]


def compare(wheel: Path, rebuilt: Path) -> None:
    """Whether two wheels hold the same files with the same contents. Raises `Failure`, and names some that differ."""
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(rebuilt) as other:
        contents, others = ({name: held.read(name) for name in held.namelist()} for held in (one, other))
    for what, names in (
        ("lacks", contents.keys() - others.keys()),
        ("alone holds", others.keys() - contents.keys()),
        ("has otherwise", {name for name in contents.keys() & others.keys() if contents[name] != others[name]}),
    ):
        if names:
            raise Failure(f"the wheel of the source distribution {what} {', '.join(sorted(names)[:_NAMES_SHOWN])}")


def _quiet(command: list[str]) -> None:
    done = _run(command, INSTALL_TIMEOUT_S, cwd=ROOT, env=clean_environ())
    if done.returncode != 0:
        sys.stderr.write((done.stdout + done.stderr)[-4000:])
        raise Failure("the clean environment could not be made (pip's words stand above): check the network")


def _run(command: list[str], timeout_s: float, *, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, which must come in time. Raises `Failure`."""
    try:
        return subprocess.run(
            command, cwd=cwd, env=env, check=False, capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"`{Path(command[0]).name} {' '.join(command[1:4])}` took longer than {timeout_s:g} s") from None
    except OSError as error:
        raise Failure(f"cannot run {command[0]} ({(error.strerror or 'an error').lower()})") from None


def _expect(folder: Path, words: tuple[str, ...], expected: str, home: Path) -> None:
    done = _use(folder, words, home)
    if done.returncode != 0 or expected not in done.stdout:
        raise Failure(f"`{' '.join(words)}` does not do what it should: {(done.stderr or done.stdout).strip()[-300:]}")


def _examine(folder: Path, home: Path) -> None:
    """Let the doctor look at what is installed. A model is missing, and ports may be taken: that is none of ours."""
    done = _use(folder, ("infernet", "doctor", "--json"), home)
    try:
        found = {check["id"]: check for check in json.loads(done.stdout)["checks"]}
    except (ValueError, KeyError, TypeError):
        raise Failure(f"`infernet doctor --json` gives no checks: {done.stderr.strip()[-300:]}") from None
    for name in _SOUND:
        if found.get(name, {}).get("status") != "ok":
            raise Failure(
                f"`infernet doctor` finds {name} wanting: {found.get(name, {}).get('found', 'no such check')}"
            )


def _use(folder: Path, words: tuple[str, ...], home: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = words
    # Not in the checkout, whose packages Python would take instead.
    environ = {"PATH": os.defpath, "HOME": str(home)}
    return _run([str(folder / "bin" / program), *arguments], RUN_TIMEOUT_S, cwd=home, env=environ)
