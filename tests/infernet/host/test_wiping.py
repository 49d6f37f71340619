"""infernet/host/wiping.py: all of a folder goes, its keys are overwritten, and nothing of anybody else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infernet.host import wiping
from infernet.host.wiping import CannotWipe, check, size_of, wipe

SECRET = b"ab" * 32 + b"\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "identity.key").write_bytes(SECRET)
    (folder / "identity.key.0123").write_bytes(SECRET)
    (folder / "config.toml").write_text("slots = 2\n")
    (folder / "deep" / "er" / "file").write_bytes(b"x" * 100)
    return folder


def test_all_of_it_goes_and_once_more_is_no_error(folder: Path) -> None:
    assert check(folder)
    assert size_of(folder) == 2 * len(SECRET) + 110
    wipe(folder, "identity.key*")
    assert not folder.exists()
    assert not check(folder)
    wipe(folder, "identity.key*")


def test_keys_are_overwritten_before_they_go(folder: Path) -> None:
    # A second name of the same file shows what is left on the disk.
    seen = folder.parent / "seen"
    other = folder.parent / "other"
    os.link(folder / "identity.key", seen)
    os.link(folder / "config.toml", other)
    wipe(folder, "identity.key*")
    assert seen.read_bytes() == bytes(len(SECRET))
    assert other.read_text() == "slots = 2\n"


def test_what_a_link_leads_to_is_not_touched(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("kept")
    (folder / "link").symlink_to(elsewhere)
    wipe(folder, "identity.key*")
    assert (elsewhere / "file").read_text() == "kept"
    folder.symlink_to(elsewhere)
    with pytest.raises(CannotWipe, match="leads elsewhere"):
        wipe(folder, "*")
    folder.unlink()
    folder.mkdir()
    (folder / "identity.key").symlink_to(elsewhere / "file")
    wipe(folder, "identity.key*")
    assert not folder.exists()
    assert (elsewhere / "file").read_text() == "kept"


def test_what_is_of_another_user_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiping.os, "getuid", lambda: os.stat(folder).st_uid + 1)
    with pytest.raises(CannotWipe, match="belongs to another user"):
        wipe(folder, "*")
    assert (folder / "identity.key").read_bytes() == SECRET


def test_what_cannot_be_removed_is_told_of_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(wiping.shutil, "rmtree", fail)
    with pytest.raises(CannotWipe, match=r"cannot remove all of .*permission denied"):
        wipe(folder, "identity.key*")
