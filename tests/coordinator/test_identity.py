"""The key file: made once, kept private, refused when it is not."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from coordinator.identity import KEY_NAME, KeyRefused, load_or_create_key


def test_the_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    first = load_or_create_key(tmp_path)
    path = tmp_path / KEY_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert load_or_create_key(tmp_path).node == first.node
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [KEY_NAME], "no draft is left behind"


def test_the_name_of_a_new_key_is_brought_to_the_disk_after_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, bool]] = []

    def sync(file: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(file).st_mode), (tmp_path / KEY_NAME).exists()))

    monkeypatch.setattr(os, "fsync", sync)
    load_or_create_key(tmp_path)
    assert synced == [(False, False), (True, True)]


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_or_create_key(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / KEY_NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_can_read_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    load_or_create_key(tmp_path)
    (tmp_path / KEY_NAME).chmod(mode)
    with pytest.raises(KeyRefused, match=f"mode {mode:04o}.*chmod 600"):
        load_or_create_key(tmp_path)


@pytest.mark.parametrize("content", [b"", b"zz", b"00" * 32, b"ff" * 32, b"\xff\xfe", b"ab" * 31])
def test_a_damaged_key_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / KEY_NAME
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyRefused, match="damaged") as refused:
        load_or_create_key(tmp_path)
    assert path.read_bytes() == content
    assert content.decode("latin-1") not in str(refused.value) or not content


def test_a_link_to_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("ab" * 32)
    (tmp_path / KEY_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyRefused):
        load_or_create_key(tmp_path)


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(load_or_create_key(tmp_path).node)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
