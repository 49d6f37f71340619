"""The journal: behind every commit, whole after any cut, and never another ledger's."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from coordinator.store import journal as journal_module
from coordinator.store.journal import MAGIC, Journal, JournalFollower, JournalRefused, read_journal
from coordinator.store.ledger import Head, Ledger, read_head
from coordinator.store.migrations import migrate
from protocol.ledger import Deposit
from tests.helpers_disk import RecordingDisk, SyncDirectory
from tests.helpers_ledger_commands import NOW_MS, node
from tests.helpers_recorded_files import RecordedFiles
from tests.helpers_unsynced import UnsyncedDisk


@pytest.fixture
def tx() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        yield connection


def deposit(tx: sqlite3.Connection, number: int) -> None:
    Ledger().command(tx, Deposit(f"p{number}", node(1), "BTC", 1, 1, 0), NOW_MS)


def heads(path: Path) -> list[bytes]:
    return [head for _, head in read_journal(path)]


def test_it_holds_every_entry_once(tx: sqlite3.Connection, tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "j")) as journal:
        for number in range(5):
            deposit(tx, number)
            if number % 2 == 0:
                journal.append_new(tx)
                journal.append_new(tx)
        assert journal.last == read_head(tx)
    assert heads(tmp_path / "j") == [row[0] for row in tx.execute("SELECT head FROM entries ORDER BY number")]
    assert (tmp_path / "j").stat().st_mode & 0o077 == 0


def test_a_new_one_of_an_old_ledger_takes_it_in_pieces(
    tx: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "APPENDED_AT_ONCE", 2)
    asked: list[str] = []
    tx.set_trace_callback(asked.append)
    for number in range(1, 6):
        deposit(tx, number)
        with closing(Journal(tmp_path / f"j{number}")) as journal:
            journal.append_new(tx)
            assert journal.last == read_head(tx)
        assert len(heads(tmp_path / f"j{number}")) == number
    assert len([each for each in asked if "LIMIT 2" in each]) == 1 + 2 + 2 + 3 + 3


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2000), tail=st.binary(max_size=40), flip=st.none() | st.integers(0, 2000))
def test_whatever_is_cut_or_altered_is_written_again(
    tx: sqlite3.Connection, tmp_path: Path, cut: int, tail: bytes, flip: int | None
) -> None:
    path = tmp_path / "j"
    path.unlink(missing_ok=True)
    if read_head(tx).entry == 0:
        for number in range(4):
            deposit(tx, number)
    with closing(Journal(path)) as journal:
        journal.append_new(tx)
    whole = path.read_bytes()
    data = bytearray(whole[: max(len(MAGIC), len(whole) - cut)] + tail)
    if flip is not None and len(MAGIC) + flip < len(data):
        data[len(MAGIC) + flip] ^= 1
    path.write_bytes(bytes(data))
    with closing(Journal(path)) as journal:
        try:
            journal.append_new(tx)
        except JournalRefused:
            # It may have held what the database has not.
            assert len(data) > len(whole)
            assert path.read_bytes() == data
        else:
            assert path.read_bytes() == whole


def test_a_journal_that_is_ahead_or_anothers_is_refused(tx: sqlite3.Connection, tmp_path: Path) -> None:
    deposit(tx, 1)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as other:
        migrate(other)
        for number in (2, 3):
            deposit(other, number)
        with closing(Journal(tmp_path / "j")) as journal:
            journal.append_new(other)
    with closing(Journal(tmp_path / "j")) as journal, pytest.raises(JournalRefused, match="lacks"):
        journal.append_new(tx)
    (tmp_path / "k").write_bytes(b"somebody's diary, and no journal")
    with pytest.raises(JournalRefused, match="no journal"):
        Journal(tmp_path / "k")
    assert (tmp_path / "k").read_bytes().startswith(b"somebody")
    with pytest.raises(JournalRefused, match="cannot use"):
        Journal(tmp_path / "absent" / "j")


def test_one_that_a_power_cut_left_without_its_content_is_begun_anew(tx: sqlite3.Connection, tmp_path: Path) -> None:
    deposit(tx, 1)
    for size_bytes in range(len(MAGIC) + 1):
        (tmp_path / "j").write_bytes(bytes(size_bytes))
        with closing(Journal(tmp_path / "j")) as journal:
            journal.append_new(tx)
        assert len(heads(tmp_path / "j")) == 1
    (tmp_path / "k").write_bytes(bytes(len(MAGIC) + 1))
    with pytest.raises(JournalRefused, match="no journal"):
        Journal(tmp_path / "k")


@pytest.mark.parametrize("content", [b"x", b"a word", MAGIC[:5] + b"x", b"seventeen bytes!!", b"and eighteen bytes"])
def test_a_small_file_of_somebody_else_is_not_written_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(JournalRefused, match="no journal"):
        Journal(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == content


def test_one_that_was_killed_while_it_began_is_begun_anew(tx: sqlite3.Connection, tmp_path: Path) -> None:
    deposit(tx, 1)
    for written in range(len(MAGIC) + 1):
        (tmp_path / "j").write_bytes(MAGIC[:written])
        with closing(Journal(tmp_path / "j")) as journal:
            journal.append_new(tx)
        assert len(heads(tmp_path / "j")) == 1


def test_only_one_at_a_time_writes_it(tx: sqlite3.Connection, tmp_path: Path) -> None:
    deposit(tx, 1)
    with closing(Journal(tmp_path / "j")) as journal:
        with pytest.raises(JournalRefused, match="another process"):
            Journal(tmp_path / "j")
        journal.append_new(tx)
        assert len(heads(tmp_path / "j")) == 1
    Journal(tmp_path / "j").close()


def test_one_that_is_refused_holds_no_file(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"somebody's diary, and no journal")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(JournalRefused):
            Journal(tmp_path / "j")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_cannot_be_read_is_told_and_kept_beside_it(tx: sqlite3.Connection, tmp_path: Path) -> None:
    path = tmp_path / "j"
    for number in range(4):
        deposit(tx, number)
    with closing(Journal(path)) as journal:
        journal.append_new(tx)
    whole = path.read_bytes()
    first = (len(whole) - len(MAGIC)) // 4 + len(MAGIC)
    for number in (1, 2):
        # In the middle, twice: nothing that was kept before is written over.
        damaged = whole[: first + 9] + bytes([whole[first + 9] ^ number]) + whole[first + 10 :]
        path.write_bytes(damaged)
        with capture_logs() as logs, closing(Journal(path)) as journal:
            assert journal.last.entry == 1
            assert path.read_bytes() == damaged
            journal.append_new(tx)
        assert path.read_bytes() == whole
        kept = tmp_path / f"j.cut-{number}"
        assert kept.read_bytes() == damaged[first:]
        assert kept.stat().st_mode & 0o077 == 0
        (told,) = logs
        assert (told["offset"], told["size_bytes"], told["after_entry"]) == (first, len(whole) - first, 1)
        assert told["kept"] == str(kept)
        assert told["log_level"] == "warning"
    Journal(path).close()
    assert sorted(os.listdir(tmp_path)) == ["j", "j.cut-1", "j.cut-2"]


def test_what_cannot_be_kept_is_not_cut_off(
    tx: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    deposit(tx, 1)
    with closing(Journal(path)) as journal:
        journal.append_new(tx)
    damaged = path.read_bytes()[:-1]
    path.write_bytes(damaged)
    with RecordingDisk() as disk:
        files = FullFiles(disk)
        monkeypatch.setattr(journal_module, "os", files)
        files.is_full = True
        with closing(Journal(path)) as journal:
            with pytest.raises(OSError, match="No space"):
                journal.append_new(tx)
            assert path.read_bytes() == damaged
            assert os.listdir(tmp_path) == ["j"]
            files.is_full = False
            journal.append_new(tx)
    assert (tmp_path / "j.cut-1").read_bytes() == damaged[len(MAGIC) :]


def test_a_damaged_one_that_may_have_held_more_than_the_database_is_refused_at_each_start(
    tx: sqlite3.Connection, tmp_path: Path
) -> None:
    path = tmp_path / "j"
    for number in range(3):
        deposit(tx, number)
    with closing(Journal(path)) as journal:
        journal.append_new(tx)
    whole = path.read_bytes()
    first = (len(whole) - len(MAGIC)) // 3 + len(MAGIC)
    path.write_bytes(whole[: first + 9] + bytes([whole[first + 9] ^ 1]) + whole[first + 10 :])
    damaged = path.read_bytes()
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as older:
        migrate(older)
        for number in range(2):
            deposit(older, number)
            for _ in range(2):
                with closing(Journal(path)) as journal, pytest.raises(JournalRefused, match=f"byte {first} on"):
                    journal.append_new(older)
        # A record that was torn off was never acknowledged, and is no reason to stop.
        path.write_bytes(whole[:-5])
        with closing(Journal(path)) as journal:
            journal.append_new(older)
            assert journal.last == read_head(older)
    assert sorted(os.listdir(tmp_path)) == ["j", "j.cut-1"]
    path.write_bytes(damaged)
    with closing(Journal(path)) as journal:
        journal.append_new(tx)
    assert path.read_bytes() == whole


def test_its_name_is_brought_to_the_disk_at_each_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it may have been killed before that."""
    with RecordingDisk() as disk:
        monkeypatch.setattr(journal_module, "os", RecordedFiles(disk))
        for _ in range(2):
            Journal(tmp_path / "j").close()
        assert [type(each) for each in disk.operations].count(SyncDirectory) == 2


class Killed(BaseException):
    """The process ends here."""


class KilledBeforeTheSync(RecordedFiles):
    """What was written is in the kernel's memory, and no more."""

    def fdatasync(self, descriptor: int) -> None:
        raise Killed


def test_what_a_killed_process_wrote_is_on_disk_before_the_next_one_goes_on(
    tx: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is committed, so whoever asks again is told of it although there is nothing to append."""
    with RecordingDisk() as disk:
        monkeypatch.setattr(journal_module, "os", KilledBeforeTheSync(disk))
        deposit(tx, 1)
        with closing(Journal(tmp_path / "j")) as journal, pytest.raises(Killed):
            journal.append_new(tx)
        monkeypatch.setattr(journal_module, "os", RecordedFiles(disk))
        with closing(Journal(tmp_path / "j")) as journal:
            journal.append_new(tx)
            assert journal.last == read_head(tx)
        after_a_cut = UnsyncedDisk({})
        for operation in disk.operations:
            after_a_cut.follow(operation)
        assert after_a_cut.pending == []


def test_when_it_cannot_be_written_no_entry_is_called_done_and_all_else_goes_on(
    tx: sqlite3.Connection, tmp_path: Path
) -> None:
    reasons: list[str | None] = []
    journal = Journal(tmp_path / "j")
    follower = JournalFollower(journal, reasons.append, reasons.append)
    deposit(tx, 1)
    follower.after_commit(tx)
    os.close(journal._file)
    follower.after_commit(tx)
    assert not reasons
    deposit(tx, 2)
    for number in (3, 4):
        with pytest.raises(sqlite3.OperationalError, match="journal"):
            follower.after_commit(tx)
        follower.after_commit(tx)
        deposit(tx, number)
    assert len(reasons) == 1
    assert journal.last == Head(1, heads(tmp_path / "j")[-1])


class FullFiles(RecordedFiles):
    """A disk that takes half a record, and no more, while `is_full`; or that tells of it only when it is synced."""

    is_full = False
    tells_late = False

    def write(self, descriptor: int, data: bytes) -> int:
        if not self.is_full or self.tells_late:
            return super().write(descriptor, data)
        if len(data) > 8:
            return super().write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fdatasync(self, descriptor: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().fdatasync(descriptor)


@pytest.mark.parametrize("tells_late", [False, True])
def test_a_full_disk_is_told_and_the_journal_catches_up_when_there_is_room(
    tx: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, tells_late: bool
) -> None:
    broken: list[str] = []
    full: list[str | None] = []
    with RecordingDisk() as disk:
        files = FullFiles(disk)
        files.tells_late = tells_late
        monkeypatch.setattr(journal_module, "os", files)
        with closing(Journal(tmp_path / "j")) as journal:
            follower = JournalFollower(journal, broken.append, full.append)
            deposit(tx, 1)
            follower.after_commit(tx)
            for first in (2, 4):
                whole = (tmp_path / "j").read_bytes()
                files.is_full = True
                for number in (first, first + 1):
                    deposit(tx, number)
                    with pytest.raises(sqlite3.OperationalError, match="journal"):
                        follower.after_commit(tx)
                    follower.after_commit(tx)
                    assert (tmp_path / "j").read_bytes() == whole
                files.is_full = False
                follower.after_commit(tx)
                assert journal.last == read_head(tx)
    assert not broken
    assert [each is None for each in full] == [False, True] * 2
    assert "No space" in str(full[0])
    assert heads(tmp_path / "j") == [row[0] for row in tx.execute("SELECT head FROM entries ORDER BY number")]


def test_what_an_fsync_did_not_bring_to_the_disk_is_written_anew(
    tx: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    with closing(Journal(path)) as journal:
        deposit(tx, 1)
        journal.append_new(tx)
        before = path.read_bytes()

        def broken(_file: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fdatasync", broken)
        deposit(tx, 2)
        with pytest.raises(OSError, match="Input/output"):
            journal.append_new(tx)
        assert path.read_bytes() == before
    monkeypatch.undo()
    with closing(Journal(path)) as journal:
        journal.append_new(tx)
        assert journal.last == read_head(tx)
    assert len(heads(path)) == 2
