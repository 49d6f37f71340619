"""The locks hold what the project asks for, exactly, and nothing that ties them to one machine or index."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from _environment import SUPPORTED_PYTHONS, locked_names
from infernet.engines.models import STARTER

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
LOCKS = ("build", "base", "llama", "binary", "test", "lint", "model")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

# lock -> what pyproject.toml says must be in it, and the locks that it is installed together with
WANTED = {
    "base": (PROJECT["project"]["dependencies"], ("base",)),
    "llama": (PROJECT["project"]["optional-dependencies"]["llama"], ("base", "llama")),
    "binary": (PROJECT["dependency-groups"]["binary"], ("binary",)),
    "test": (PROJECT["dependency-groups"]["test"], ("base", "test")),
    "lint": (PROJECT["dependency-groups"]["lint"], ("base", "test", "lint")),
    "build": (PROJECT["dependency-groups"]["build"], ("build",)),
}

# Licences under which nothing asks us to publish or to pay. Others are named below, one by one, with the reason.
PERMISSIVE = re.compile(
    r"\b(MIT|MIT-0|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|Unlicense|CC0|Public Domain|"
    r"MPL|Mozilla Public License)\b",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"\b[AL]?GPL", re.IGNORECASE)
# Used as they come, as packages of their own that anybody can exchange, which is all that the LGPL asks.
LESSER = {"pyudev", "zeroconf"}


def entries(lock: str) -> Iterator[tuple[str, list[str]]]:
    """Every requirement of a lock with its hashes."""
    text = (REQUIREMENTS / f"{lock}.txt").read_text("utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
            yield requirement, hashes


def pins(lock: str) -> dict[str, Version]:
    """The version of every package in a lock."""
    requirements = [Requirement(requirement) for requirement, _ in entries(lock)]
    return {
        canonicalize_name(requirement.name): Version(next(iter(requirement.specifier)).version)
        for requirement in requirements
    }


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_exact_and_hashed(lock: str) -> None:
    found = list(entries(lock))
    assert found
    for requirement, hashes in found:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;,]+(?: ; .+)?", requirement), requirement
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes), requirement


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.name)
def test_a_lock_names_no_place(path: Path) -> None:
    assert not re.search(r"://|--(?:extra-)?index-url|--find-links|-f |--trusted-host", path.read_text("utf-8"))


@pytest.mark.parametrize("lock", WANTED)
def test_a_lock_satisfies_the_project(lock: str) -> None:
    wanted, together = WANTED[lock]
    pinned = {name: version for other in together for name, version in pins(other).items()}
    for requirement in map(Requirement, wanted):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked: run scripts/lock"
        assert requirement.specifier.contains(version), f"{requirement} but {version} is locked: run scripts/lock"


def test_locks_that_are_installed_together_agree() -> None:
    seen: dict[str, Version] = {}
    for lock in ("build", "base", "llama", "binary", "test", "lint"):
        for name, version in pins(lock).items():
            assert seen.setdefault(name, version) == version, f"{name} is {seen[name]} and, in {lock}, {version}"


def test_the_names_that_the_installer_counts_are_those_in_the_lock() -> None:
    assert {canonicalize_name(name) for name in locked_names(REQUIREMENTS / "base.txt")} == set(pins("base"))


def test_the_model_lock_is_what_the_node_fetches() -> None:
    requirement, hashes = next(entries("model"))
    assert requirement == STARTER.package
    assert hashes == [STARTER.package_sha256]


def test_the_installer_supports_the_pythons_of_the_project() -> None:
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    all_minors = [(3, minor) for minor in range(20)]
    assert {version for version in all_minors if "{}.{}".format(*version) in supported} == set(SUPPORTED_PYTHONS)


def test_the_installed_version_is_the_one_in_the_changelog() -> None:
    version = PROJECT["project"]["version"]
    assert metadata.version("infernet") == version
    first = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert first is not None
    assert first[1] == version


@pytest.mark.parametrize("lock", ["base", "llama"])
def test_what_we_run_with_has_a_permissive_licence(lock: str) -> None:
    doubtful = {}
    for name in pins(lock).keys() - LESSER:
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        classifiers = [value for value in about.get_all("Classifier", []) if value.startswith("License ::")]
        stated = " ".join([about.get("License-Expression", ""), *classifiers, about.get("License", "")[:200]])
        if not PERMISSIVE.search(stated) or COPYLEFT.search(stated):
            doubtful[name] = stated.strip()
    assert not doubtful, f"look at these licences: {doubtful}"
