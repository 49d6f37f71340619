"""Everything that a release consists of, in one folder: made and checked elsewhere first, and put there as a whole."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import _binary
import _packages
from _environment import ROOT, Failure, step

FORMULA: Final = ROOT / "packaging" / "homebrew" / "infernet.rb"
SYSUSERS: Final = ROOT / "packaging" / "systemd" / "infernet.sysusers.conf"
#: Where the unit of a release expects the program.
INSTALLED: Final = "/usr/local/bin/infernet"
#: platform of a file -> the blocks of a Homebrew formula in which it stands
_HOMEBREW: Final = {
    "macos-arm64": ("on_macos", "on_arm"),
    "macos-x86_64": ("on_macos", "on_intel"),
    "linux-x86_64": ("on_linux", "on_intel"),
    "linux-arm64": ("on_linux", "on_arm"),
}
_GIT_TIMEOUT_S: Final = 30


@dataclass(frozen=True)
class Plan:
    """What is to be released, from where, and with what."""

    #: Address of the repository, as people open it in a browser.
    repository: str
    #: A folder with finished binaries; None to make the one of this platform.
    binaries: Path | None
    #: Whether the wheel is tried in a clean environment.
    install: bool


def read_repository(text: str) -> str:
    """The address of a repository. Raises ValueError."""
    parts = urlsplit(text.strip())
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("must be like https://HOST/OWNER/NAME")
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+){2,}/?", parts.path):
        raise ValueError("must be like https://HOST/OWNER/NAME")
    return f"https://{parts.netloc}{parts.path.rstrip('/').removesuffix('.git')}"


def objections() -> list[str]:
    """Why what is checked out may not be released; nothing where it may."""
    found = []
    if changed := _git("status", "--porcelain").splitlines():
        found.append(f"{len(changed)} files differ from the commit: commit or remove them ({changed[0].strip()} ...)")
    tag = f"v{_binary.version()}"
    tags = _git("tag", "--points-at", "HEAD").split()
    if tag not in tags:
        which = f"it is tagged {', '.join(tags)}" if tags else "it has no tag"
        found.append(f"the commit must have the tag {tag}, which is the version in pyproject.toml, and {which}")
    heading = _changes_heading()
    if "unreleased" in heading:
        found.append(f"CHANGELOG.md still says {heading.removeprefix('## ')!r}: write the date there")
    return found


def _git(*words: str) -> str:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        raise Failure("a release is made in a git checkout: clone the repository, and install git")
    try:
        done = subprocess.run(
            [git, *words], cwd=ROOT, check=False, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"git {words[0]} took longer than {_GIT_TIMEOUT_S} s: is the disk well?") from None
    if done.returncode != 0:
        raise Failure(f"git {words[0]} failed: {done.stderr.strip()[-200:]}")
    return done.stdout


def _changes() -> tuple[str, str]:
    """Heading and text of this version in CHANGELOG.md. Raises `Failure`."""
    sections = re.split(r"^(?=## \[)", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    for section in sections:
        if section.startswith(f"## [{_binary.version()}]"):
            heading, _, text = section.partition("\n")
            return heading, text.strip()
    raise Failure(f"CHANGELOG.md has no section [{_binary.version()}]: write what has changed")


def _changes_heading() -> str:
    return _changes()[0]


def make(plan: Plan, folder: Path) -> list[Path]:
    """Make and check all of it in an empty folder; gives the files in the order of SHA256SUMS. Raises `Failure`."""
    epoch_s = _binary.epoch_of_commit()
    _binary.ENVIRONMENT.prepare()
    packages = _packages.build(_binary.ENVIRONMENT.python, folder, epoch_s)
    if plan.install:
        _packages.try_out(packages, epoch_s)
    binaries = _binaries(plan, folder, epoch_s)
    (folder / "infernet.service").write_text(system_unit(), "utf-8")
    (folder / "infernet.sysusers.conf").write_bytes(SYSUSERS.read_bytes())
    sums = {of_platform: sha256(path) for of_platform, path in binaries.items()}
    (folder / "infernet.rb").write_text(formula(plan.repository, sums), "utf-8")
    (folder / "NOTES.md").write_text(_changes()[1] + "\n", "utf-8")
    files = sorted(path for path in folder.iterdir() if path.name != "NOTES.md" and not path.name.startswith("."))
    (folder / "SHA256SUMS").write_text("".join(f"{sha256(path)}  {path.name}\n" for path in files), "utf-8")
    return files


def _binaries(plan: Plan, folder: Path, epoch_s: int) -> dict[str, Path]:
    """The one-file programs of the release in its folder, by platform."""
    here = _binary.platform_name()
    if plan.binaries is None:
        made = folder / _binary.file_name(here)
        _binary.build(made, epoch_s)
        _binary.try_out(made)
        return {here: made}
    found = {}
    for of_platform in _HOMEBREW:
        source = plan.binaries / _binary.file_name(of_platform)
        if source.is_file():
            found[of_platform] = folder / source.name
            _binary.write_whole(found[of_platform], source.read_bytes(), 0o755)
    if not found:
        names = ", ".join(map(_binary.file_name, _HOMEBREW))
        raise Failure(f"{plan.binaries} has none of {names}: scripts/build_binary makes one")
    if here in found:
        _binary.try_out(found[here])
    return found


def system_unit() -> str:
    """The unit for the system's systemd, as `infernet service unit --system` prints it for a program at INSTALLED."""
    sys.path.insert(0, str(ROOT))
    try:
        from infernet.host import service_units
    finally:
        sys.path.pop(0)
    return service_units.system_unit(service_units.Service([INSTALLED, "start", "--foreground"]))


def formula(repository: str, sums: Mapping[str, str]) -> str:
    """The Homebrew formula for these binaries: platform -> sha256."""
    blocks: dict[str, list[str]] = {}
    for of_platform, digest in sums.items():
        system, machine = _HOMEBREW[of_platform]
        url = f"{repository}/releases/download/v{_binary.version()}/{_binary.file_name(of_platform)}"
        lines = [f"    {machine} do", f'      url "{url}", using: :nounzip', f'      sha256 "{digest}"', "    end"]
        blocks.setdefault(system, []).append("\n".join(lines) + "\n")
    platforms = "".join(f"  {system} do\n{''.join(parts)}  end\n\n" for system, parts in blocks.items())
    values = {"VERSION": _binary.version(), "REPOSITORY": repository, "PLATFORMS": platforms.rstrip("\n") + "\n"}
    return _binary.filled(FORMULA.read_text("ascii"), values)


def sha256(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put(folder: Path, target: Path) -> None:
    """Put a finished folder in its place; what was there before goes, once that is done. Both are on one disk."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def release(plan: Plan, target: Path, *, dry_run: bool) -> Sequence[str]:
    """Make the release and put it to `target`, or only make it; gives the lines of SHA256SUMS. Raises `Failure`."""
    for objection in objections():
        if not dry_run:
            raise Failure(objection)
        print(f"This would end a real run: {objection}", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        folder = Path(scratch) / "release"
        folder.mkdir()
        make(plan, folder)
        lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
        if not dry_run:
            with step(f"Putting everything into {target.name}/"):
                put(folder, target)
    return lines
