"""infernet/host/turns.py: who changes a file of settings waits for whoever is changing it."""

from __future__ import annotations

import errno
import os
import tomllib
from pathlib import Path

import pytest

from infernet.config import ConfigError, save
from infernet.host.files import FilesError
from infernet.host.turns import one_at_a_time


def test_it_is_free_again_afterwards_and_leaves_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        with one_at_a_time(tmp_path, 0.0):
            pass
    assert os.listdir(tmp_path) == []


def test_another_waits_and_not_for_ever(tmp_path: Path) -> None:
    with one_at_a_time(tmp_path), pytest.raises(TimeoutError, match=str(tmp_path)), one_at_a_time(tmp_path, 0.0):
        pass


def test_a_file_system_without_locks_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("infernet.host.turns.fcntl.flock", no_locks)
    with one_at_a_time(tmp_path):
        pass


def test_nothing_that_another_command_saves_meanwhile_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config" / "config.toml"
    save(path, {"slots": 2}, keep=False)
    turn = one_at_a_time(path.parent)
    turn.__enter__()

    def the_other_is_done(_seconds: float) -> None:
        path.write_text(path.read_text() + "threads = 3\n")
        turn.__exit__(None, None, None)

    monkeypatch.setattr("infernet.host.turns.time.sleep", the_other_is_done)
    save(path, {"slots": 5}, keep=True)
    assert tomllib.loads(path.read_text()) == {"schema_version": 1, "slots": 5, "threads": 3}


def test_a_turn_that_does_not_come_is_told_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config" / "config.toml"
    save(path, {"slots": 2}, keep=False)
    before = path.read_bytes()
    monkeypatch.setattr("infernet.config.one_at_a_time", lambda folder: one_at_a_time(folder, 0.0))
    with one_at_a_time(path.parent), pytest.raises(ConfigError, match="nothing was written: end it, and try again"):
        save(path, {"slots": 5}, keep=True)
    assert path.read_bytes() == before


def test_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config" / "config.toml"
    save(path, {"slots": 2}, keep=False)

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("infernet.host.files.replace_whole", full)
    with pytest.raises(FilesError, match=r"\(no space left on device\): make room there$"):
        save(path, {"slots": 5}, keep=True)
