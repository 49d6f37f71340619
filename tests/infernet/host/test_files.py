"""infernet/host/files.py: what is written is there whole or not at all, and nobody else's folder is trusted."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from infernet.host.files import FilesError, reason_of, replace_whole, require_private_directory, way_out, write_private


def test_a_private_folder_is_demanded(tmp_path: Path) -> None:
    private = tmp_path / "private"
    require_private_directory(private, create=False)
    assert not private.exists()
    require_private_directory(private, create=True)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    private.chmod(0o770)
    with pytest.raises(FilesError, match="chmod 700"):
        require_private_directory(private, create=False)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(FilesError, match="is not a folder"):
        require_private_directory(link, create=True)


def test_a_file_is_replaced_whole_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_private(path, b"first")
    path.chmod(0o644)
    write_private(path, b"second")
    assert path.read_bytes() == b"second"
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_whatever_fails_leaves_the_file_from_before_and_no_draft(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail(*_arguments: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    if call == "write":
        monkeypatch.setattr(os, "fdopen", fail)
    elif call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="quota"):
        replace_whole(path, b"after", 0o600)
    assert (os.listdir(tmp_path), path.read_bytes()) == (["file"], b"before")


def test_an_error_is_a_reason_within_a_sentence_and_a_way_out() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert (reason_of(full), way_out(full)) == ("no space left on device", "make room there")
    assert "INFERNET_HOME" in way_out(OSError(errno.EACCES, "Permission denied"))
    assert (reason_of(OSError("Odd")), reason_of(OSError())) == ("odd", "an error")
