"""The journal: every entry of the ledger once more, in a file of its own, on disk before anybody is told of it.

With the newest backup of the database it gives back everything that was acknowledged (`backup.restore`). It is written
after the commit, from what was committed, so it never holds what the database does not; what a crash kept from it is
added at the next start. What cannot be read then is cut off, told, and kept in a file beside it. A record is
`u32 big-endian length ‖ body ‖ 32 bytes head`. Put it on another disk if you can.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import structlog

from coordinator.store.ledger import Head, read_head
from protocol.ledger import GENESIS_HEAD, next_head

MAGIC: Final = b"infernet-ledger-1\n"
LENGTH_BYTES: Final = 4
HEAD_BYTES: Final = 32
# An entry holds one command; the largest carries a signed request.
BODY_BYTES_MAX: Final = 1024 * 1024
READ_BYTES: Final = 1024 * 1024
# A new journal of an old ledger takes all of it, which need not fit into memory.
APPENDED_AT_ONCE: Final = 2000
# A disk that is full may have room again, and what was cut off is written then. Of any other failure nobody knows.
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


log = structlog.get_logger(__name__)


class JournalRefused(Exception):
    """The journal cannot be used; the message is one line: what, why, what to do."""


class Journal:
    """An open journal. `append_new` runs on the writer's thread, after each commit."""

    def __init__(self, path: Path) -> None:
        """Open the file, creating it, and read how far it goes. Raises JournalRefused."""
        self._path = path
        self._is_compared = False
        self._end = 0
        self._rest: Rest | None = None
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, 0o600)
            try:
                self._be_the_only_one()
                if self._is_unfinished():
                    self._begin()
                self._sync_folder()
                self._last = self._read()
            except BaseException:
                os.close(self._file)
                raise
        except OSError as error:
            raise JournalRefused(f"cannot use the journal {path}: {error.strerror}; set another one") from None

    def _be_the_only_one(self) -> None:
        """Two homes may name one file, and each would cut off what the other one writes."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f"another process writes the journal {self._path}; end it, or set another journal"
            raise JournalRefused(text) from None

    def _is_unfinished(self) -> bool:
        """Whether nobody ever came to write an entry: a power cut may leave the file's size without its content."""
        if os.fstat(self._file).st_size > len(MAGIC):
            return False
        data = os.pread(self._file, len(MAGIC), 0)
        return data != MAGIC and MAGIC.startswith(data.rstrip(b"\0"))

    def _begin(self) -> None:
        os.ftruncate(self._file, 0)
        _write_all(self._file, MAGIC)
        os.fsync(self._file)

    def _sync_folder(self) -> None:
        """The file's name must outlive a power cut, too, and who made the file may have been killed before this."""
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self) -> Head:
        reading = read_journal(self._path)
        for _ in reading:
            pass
        self._end, self._rest = reading.end, reading.rest
        # What the last process wrote before it was killed need not be on disk, and will be acknowledged when asked for.
        os.fsync(self._file)
        return reading.last

    def _cut_off(self, rest: Rest, tx: sqlite3.Connection) -> None:
        """What cannot be read is written anew, if it can only be what the database has, too. Raises as `append_new`."""
        lacking_bytes = tx.execute(
            "SELECT coalesce(sum(length(body) + ?), 0) FROM entries WHERE number > ?",
            (LENGTH_BYTES + HEAD_BYTES, self._last.entry),
        ).fetchone()[0]
        # The database is on disk first, so a crash leaves no more behind than it has; but a record that was torn off
        # may be unknown to a database that was restored.
        if rest.size_bytes > lacking_bytes and not self._is_torn_record(rest):
            raise JournalRefused(
                f"the journal {self._path} cannot be read from byte {rest.offset} on, and the {rest.size_bytes} bytes "
                "there are more than the database has: it is damaged, or the database was put back from a backup; look "
                "for another copy, or move it away to go on without what it held"
            )
        kept = self._keep_from(rest.offset)
        log.warning("journal_cut_off", journal=str(self._path), **rest._asdict(), kept=str(kept))
        os.ftruncate(self._file, rest.offset)
        os.fsync(self._file)
        self._rest = None

    def _is_torn_record(self, rest: Rest) -> bool:
        start = os.pread(self._file, LENGTH_BYTES, rest.offset)
        length = int.from_bytes(start, "big")
        return len(start) < LENGTH_BYTES or (
            0 < length <= BODY_BYTES_MAX and rest.size_bytes < LENGTH_BYTES + length + HEAD_BYTES
        )

    def _keep_from(self, offset: int) -> Path:
        """Copy what follows to a new file beside it: after a crash it is worth nothing, after damage it may be."""
        number = 1
        while (path := self._path.with_name(f"{self._path.name}.cut-{number}")).exists():
            number += 1
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while piece := os.pread(self._file, READ_BYTES, offset):
                _write_all(file, piece)
                offset += len(piece)
            os.fsync(file)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(file)
        self._sync_folder()
        return path

    @property
    def last(self) -> Head:
        """The last entry in it."""
        return self._last

    def append_new(self, tx: sqlite3.Connection) -> None:
        """Add the entries that were committed since. Raises OSError, or JournalRefused when it is another ledger's."""
        if not self._is_compared:
            self._compare(tx)
        is_behind = True
        while is_behind:
            rows = tx.execute(
                "SELECT number, body, head FROM entries WHERE number > ? ORDER BY number LIMIT ?",
                (self._last.entry, APPENDED_AT_ONCE),
            ).fetchall()
            if rows:
                self._append(rows)
            is_behind = len(rows) == APPENDED_AT_ONCE

    def _append(self, rows: list[tuple[int, bytes, bytes]]) -> None:
        data = b"".join(len(body).to_bytes(LENGTH_BYTES, "big") + body + head for _, body, head in rows)
        try:
            _write_all(self._file, data)
            os.fdatasync(self._file)
        except OSError:
            # After an fsync that failed the kernel may show what is not on disk. Whoever goes on writes it anew.
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(data)
        self._last = Head(rows[-1][0], rows[-1][2])

    def _compare(self, tx: sqlite3.Connection) -> None:
        row = tx.execute("SELECT head FROM entries WHERE number = ?", (self._last.entry,)).fetchone()
        if (row[0] if row is not None else GENESIS_HEAD) != self._last.head:
            raise JournalRefused(
                f"the journal {self._path} has entries that the database lacks: it was put back from a backup, or is "
                "another coordinator's; see infernet-coordinator restore --help"
            )
        if self._rest is not None:
            self._cut_off(self._rest, tx)
        self._is_compared = True

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


class JournalFollower:
    """Keeps the journal behind each commit.

    On the writer's thread `on_broken` hears, once, that it cannot and never will, and `on_full` why it cannot for now,
    and with None that it has caught up. It is tried again after each commit.
    """

    def __init__(
        self, journal: Journal, on_broken: Callable[[str], object], on_full: Callable[[str | None], object]
    ) -> None:
        self._journal = journal
        self._on_broken = on_broken
        self._on_full = on_full
        self._is_broken = False
        # While the journal is behind: the last entry that somebody has been told of, or has been refused.
        self._known: int | None = None

    def after_commit(self, connection: sqlite3.Connection) -> None:
        """Raises sqlite3.OperationalError when there are new entries and they cannot be written."""
        if not self._is_broken:
            try:
                self._journal.append_new(connection)
            except (OSError, JournalRefused) as error:
                self._fall_behind(error)
            else:
                self._catch_up()
        if self._known is None:
            return
        # What brings no entry goes on; what does is not to be called done.
        entry = read_head(connection).entry
        if entry > self._known:
            self._known = entry
            raise sqlite3.OperationalError("the journal cannot be written")

    def _fall_behind(self, error: OSError | JournalRefused) -> None:
        is_news = self._known is None
        if is_news:
            self._known = self._journal.last.entry
        reason = str(error) if isinstance(error, JournalRefused) else f"the journal cannot be written: {error}"
        if not isinstance(error, OSError) or error.errno not in FULL:
            self._is_broken = True
            self._on_broken(reason)
        elif is_news:
            self._on_full(reason)

    def _catch_up(self) -> None:
        if self._known is not None:
            self._known = None
            self._on_full(None)

    def on_closed(self) -> None:
        """The store is closed, and so is the journal."""
        self._journal.close()


class Rest(NamedTuple):
    """What cannot be read of a journal: so many bytes from here on, behind this entry."""

    offset: int
    size_bytes: int
    after_entry: int


class JournalReading:
    """One way through a journal; `last` and `end` say how far it has come, `rest` what is left once it is over."""

    def __init__(self, path: Path, trusted: int) -> None:
        self._path = path
        self._trusted = trusted
        self.last = Head(0, GENESIS_HEAD)
        self.end = len(MAGIC)
        self.rest: Rest | None = None

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        with self._path.open("rb", READ_BYTES) as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise JournalRefused(f"{self._path} is no journal of a ledger")
            while (record := _read_record(file)) is not None and self._follows(*record):
                self.last = Head(self.last.entry + 1, record[1])
                self.end += LENGTH_BYTES + len(record[0]) + HEAD_BYTES
                yield record
            left_bytes = os.fstat(file.fileno()).st_size - self.end
        if left_bytes > 0:
            self.rest = Rest(self.end, left_bytes, self.last.entry)

    def _follows(self, body: bytes, head: bytes) -> bool:
        return self.last.entry < self._trusted or next_head(self.last.head, body) == head


def read_journal(path: Path, trusted: int = 0) -> JournalReading:
    """Body and head of each entry, as far as each follows from the one before. Raises JournalRefused, or OSError.

    The first `trusted` are not looked at so closely: whoever reads on compares the head that they end in.
    """
    return JournalReading(path, trusted)


def _read_record(file: BinaryIO) -> tuple[bytes, bytes] | None:
    length = int.from_bytes(file.read(LENGTH_BYTES), "big")
    if not 0 < length <= BODY_BYTES_MAX:
        return None
    data = file.read(length + HEAD_BYTES)
    return (data[:length], data[length:]) if len(data) == length + HEAD_BYTES else None


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
