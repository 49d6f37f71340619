"""infernet/host/lock.py: one process per node, and what a dead one left behind means nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from infernet.host.files import FilesError
from infernet.host.lock import AlreadyRunning, hold_lock, running_pid

HOLDER = """
import signal, sys
from pathlib import Path
from infernet.host.lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "daemon.pid"


def test_who_holds_it_is_found_and_a_second_is_refused(path: Path) -> None:
    assert running_pid(path) is None
    with hold_lock(path):
        assert running_pid(path) == os.getpid()
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}.*infernet stop"), hold_lock(path):
            pass
        assert running_pid(path) == os.getpid()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert running_pid(path) is None
    with hold_lock(path):
        pass


@pytest.mark.parametrize("left", ["99999999\n", "us\n", "1\n", "", "garbage", "\x00" * 64])
def test_a_file_that_a_dead_process_left_means_nothing(path: Path, left: str) -> None:
    path.parent.mkdir()
    path.write_text(left.replace("us", str(os.getpid())))
    assert running_pid(path) is None
    with hold_lock(path):
        assert running_pid(path) == os.getpid()
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_process_that_is_killed_frees_it(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert running_pid(path) == holder.pid
        with pytest.raises(AlreadyRunning) as refused, hold_lock(path):
            pass
        assert refused.value.pid == holder.pid
        holder.send_signal(signal.SIGKILL)
    assert path.read_text() == f"{holder.pid}\n"
    assert running_pid(path) is None


def test_who_only_looks_is_no_node(path: Path) -> None:
    with hold_lock(path):
        pass
    looking = os.open(path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)

    def end_looking(_seconds: float) -> None:
        fcntl.flock(looking, fcntl.LOCK_UN)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infernet.host.lock.time.sleep", end_looking)
        with hold_lock(path):
            assert running_pid(path) == os.getpid()
    os.close(looking)


def test_a_full_disk_is_told_as_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("infernet.host.lock.os.pwrite", full)
    with (
        pytest.raises(FilesError, match=rf"cannot use {path} \(no space left on device\): make room"),
        hold_lock(path),
    ):
        pass


def test_children_of_the_holder_do_not_hold_it(path: Path) -> None:
    with hold_lock(path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        assert running_pid(path) is None
    finally:
        child.kill()
        child.wait()


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FilesError, match="INFERNET_HOME"), hold_lock(tmp_path / "file" / "daemon.pid"):
        pass
    with pytest.raises(FilesError, match="INFERNET_HOME"):
        running_pid(tmp_path / "file" / "daemon.pid")
