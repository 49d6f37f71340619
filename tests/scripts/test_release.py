"""scripts/_release.py: what may not be released, what is in a release, and that it comes whole or not at all."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import _binary
import _packages
import _release
from _environment import Failure

REPOSITORY = "https://forge.example/owner/infernet"
CHANGELOG = "# Changelog\n\n## [1.2.3] - 2026-12-01\n\n### Added\n\n- A thing.\n\n## [1.2.2] - 2026-11-01\n\n- Old.\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose commit may be released."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "CHANGELOG.md").write_text(CHANGELOG)
    (root / ".gitignore").write_text("/dist/\n/.dist-*/\n")
    monkeypatch.setattr(_release, "ROOT", root)
    monkeypatch.setattr(_binary, "version", lambda: "1.2.3")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name, value in (("NAME", "a"), ("EMAIL", "a@example.org")):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "x")
    git(root, "tag", "v1.2.3")
    return root


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of minutes of building: files with the right names."""

    def build_packages(_python: Path, target: Path, _epoch_s: int) -> _packages.Packages:
        packages = _packages.Packages(target / "infernet-1.2.3-py3-none-any.whl", target / "infernet-1.2.3.tar.gz")
        packages.wheel.write_bytes(b"wheel")
        packages.sdist.write_bytes(b"sdist")
        return packages

    def build_binary(target: Path, _epoch_s: int) -> None:
        target.write_bytes(b"binary")

    class NoEnvironment:
        python = Path("/nonexistent/python")

        def prepare(self) -> None:
            pass

    monkeypatch.setattr(_packages, "build", build_packages)
    monkeypatch.setattr(_binary, "build", build_binary)
    monkeypatch.setattr(_binary, "try_out", lambda _path: "infernet 1.2.3")
    monkeypatch.setattr(_binary, "platform_name", lambda: "linux-x86_64")
    monkeypatch.setattr(_binary, "ENVIRONMENT", NoEnvironment())


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)


def plan(binaries: Path | None = None) -> _release.Plan:
    return _release.Plan(REPOSITORY, binaries, install=False)


def test_a_clean_commit_with_its_tag_may_be_released(checkout: Path) -> None:
    assert _release.objections() == []


def _change_a_file(root: Path) -> None:
    (root / "CHANGELOG.md").write_text(CHANGELOG + "\n")


def _add_a_file(root: Path) -> None:
    (root / "new").touch()


def _tag_otherwise(root: Path) -> None:
    git(root, "tag", "--delete", "v1.2.3")
    git(root, "tag", "v1.2.4")


def _commit_more(root: Path) -> None:
    git(root, "commit", "--quiet", "--allow-empty", "--message", "y")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_change_a_file, "1 files differ from the commit"),
        (_add_a_file, r"1 files differ from the commit: .*\?\? new"),
        (_tag_otherwise, r"must have the tag v1\.2\.3, .* and it is tagged v1\.2\.4"),
        (_commit_more, r"must have the tag v1\.2\.3, .* and it has no tag"),
    ],
)
@pytest.mark.usefixtures("doubles")
def test_what_may_not_be_released_is_not(checkout: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(checkout)
    with pytest.raises(Failure, match=said):
        _release.release(plan(), checkout / "dist", dry_run=False)
    assert not (checkout / "dist").exists()


@pytest.mark.usefixtures("doubles")
def test_a_dry_run_says_what_is_wrong_and_goes_on_and_leaves_nothing(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _add_a_file(checkout)
    before = sorted(checkout.iterdir())
    lines = _release.release(plan(), checkout / "dist", dry_run=True)
    assert "This would end a real run: 1 files differ" in capsys.readouterr().err
    assert len(lines) == 6
    assert sorted(checkout.iterdir()) == before


@pytest.mark.usefixtures("doubles")
def test_a_release_is_whole_and_its_sums_are_right(checkout: Path) -> None:
    (checkout / "dist").mkdir()
    (checkout / "dist" / "old").touch()
    lines = _release.release(plan(), checkout / "dist", dry_run=False)
    names = {path.name for path in (checkout / "dist").iterdir()}
    summed = {line.split("  ")[1]: line.split("  ")[0] for line in lines}
    assert names == {*summed, "SHA256SUMS", "NOTES.md"}
    assert set(summed) == {
        "infernet-1.2.3-py3-none-any.whl",
        "infernet-1.2.3.tar.gz",
        "infernet-1.2.3-linux-x86_64",
        "infernet.service",
        "infernet.sysusers.conf",
        "infernet.rb",
    }
    for name, digest in summed.items():
        assert hashlib.sha256((checkout / "dist" / name).read_bytes()).hexdigest() == digest
    assert (checkout / "dist" / "NOTES.md").read_text() == "### Added\n\n- A thing.\n"
    unit = (checkout / "dist" / "infernet.service").read_text()
    assert f"ExecStart={_release.INSTALLED} start --foreground\n" in unit
    assert "User=infernet\n" in unit
    assert [path.name for path in checkout.iterdir() if path.name.startswith(".dist")] == []


@pytest.mark.usefixtures("doubles")
def test_a_release_that_fails_leaves_the_last_one(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _release.release(plan(), checkout / "dist", dry_run=False)
    before = (checkout / "dist" / "SHA256SUMS").read_text()

    def fail(_repository: str, _sums: dict[str, str]) -> str:
        raise Failure("no formula")

    monkeypatch.setattr(_release, "formula", fail)
    with pytest.raises(Failure, match="no formula"):
        _release.release(plan(), checkout / "dist", dry_run=False)
    assert (checkout / "dist" / "SHA256SUMS").read_text() == before
    assert [path.name for path in checkout.iterdir() if path.name.startswith(".dist")] == []


@pytest.mark.usefixtures("doubles")
def test_binaries_of_several_machines_are_taken_by_name(checkout: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for of_platform in ("macos-arm64", "linux-x86_64", "linux-arm64"):
        (made / f"infernet-1.2.3-{of_platform}").write_bytes(of_platform.encode())
    (made / "infernet-1.2.2-linux-x86_64").write_bytes(b"old")
    _release.release(plan(made), checkout / "dist", dry_run=False)
    formula = (checkout / "dist" / "infernet.rb").read_text()
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("macos-arm64", "linux-x86_64")}
    mac = f'{REPOSITORY}/releases/download/v1.2.3/infernet-1.2.3-macos-arm64", using: :nounzip\n'
    assert f'{mac}      sha256 "{digests["macos-arm64"]}"\n' in formula
    assert digests["linux-x86_64"] in formula
    assert formula.count("on_linux do") == 1
    assert 'version "1.2.3"' in formula
    assert "@" not in formula.replace(REPOSITORY, "")
    assert not (checkout / "dist" / "infernet-1.2.2-linux-x86_64").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Failure, match=r"has none of infernet-1\.2\.3-macos-arm64"):
        _release.release(plan(empty), checkout / "dist", dry_run=False)


def test_what_is_not_dated_is_not_released(checkout: Path) -> None:
    (checkout / "CHANGELOG.md").write_text("## [1.2.3] - unreleased\n\n- A thing.\n")
    assert any("still says '[1.2.3] - unreleased'" in objection for objection in _release.objections())
    (checkout / "CHANGELOG.md").write_text("## [1.2.2] - 2026-11-01\n")
    with pytest.raises(Failure, match=r"has no section \[1\.2\.3\]"):
        _release.objections()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://forge.example/owner/name/", "https://forge.example/owner/name"),
        ("https://forge.example/owner/name.git", "https://forge.example/owner/name"),
    ],
)
def test_the_address_of_a_repository(text: str, address: str) -> None:
    assert _release.read_repository(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "forge.example/a/b", "http://forge.example/a/b", "https://forge.example", "https://u:p@forge.example/a/b",
     'https://forge.example/a/b"; system("x")', "https://forge.example/a/b?x=1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be like https://HOST/OWNER/NAME"):
        _release.read_repository(text)
