"""The database: one thread owns the writing connection, readers are separate and read-only.

A write is a closure that runs inside one transaction on the writer's thread; nothing is awaited between BEGIN and
COMMIT, so no other task can slip into it and no cancellation can leave it open. Closures that wait at the same time
share one commit (group commit), each within its own savepoint: one that fails takes nothing with it. `write`
returns after the commit is on disk.

A full disk fails a commit, and the next one may succeed. An fsync that fails ends the store: the kernel may have
dropped what it could not write and say nothing the next time (Rebello et al., "Can Applications Recover from fsync
Failures?", USENIX ATC 2020), so nothing more is written until a new process has recovered from what is on disk.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import aiosqlite
import structlog

from coordinator.store.migrations import SchemaRefused, migrate

T = TypeVar("T")

DATABASE_NAME: Final = "coordinator.sqlite3"
LOCK_NAME: Final = "coordinator.lock"
# 64 closures per commit reach 5,771/s where one at a time reaches 204/s; beyond 256 only latency grows.
GROUP_COMMIT_MAX: Final = 256
WRITES_WAITING_MAX: Final = 4096
READERS: Final = 2
LOG_PIECE_BYTES: Final = 1 << 20
OPEN_DEADLINE_S: Final = 30.0

# After these, what SQLite and the kernel believe to be on disk may not be there.
DISK_FAILURES: Final = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC, sqlite3.SQLITE_IOERR_CLOSE)

# Asked for, and read back: a build of SQLite may silently ignore one.
PRAGMAS: Final = (
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", 2),
    ("foreign_keys", "ON", 1),
    ("trusted_schema", "OFF", 0),
    ("busy_timeout", "5000", 5000),
    # What a savepoint may have to take back else goes to files in /tmp, which may be full or not ours to write to.
    ("temp_store", "MEMORY", 2),
)

log = structlog.get_logger(__name__)


class StoreRefused(Exception):
    """The store cannot be opened; the message is one line: what, why, what to do."""


class StoreBusy(Exception):
    """More writes wait than may; the caller answers 503 and nothing was written."""


class StoreClosed(Exception):
    """The store is closed: the server is going down."""


class Follower(Protocol):
    """Something that must have happened, too, before anybody hears that a write is done. On the writer's thread."""

    def after_commit(self, connection: sqlite3.Connection) -> None:
        """A batch is on disk; its callers hear what this raises, as if it had failed."""

    def on_closed(self) -> None:
        """There will be no more."""


class StoreFailed(Exception):
    """The disk failed under the store, which writes nothing more until a new process opens it.

    Whether the commit that met the failure was kept is known only then: all of it was, or nothing.
    """


class _Write:
    __slots__ = ("closure", "error", "future", "loop", "result")

    def __init__(
        self,
        closure: Callable[[sqlite3.Connection], Any],
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
    ) -> None:
        self.closure = closure
        self.loop = loop
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None


class Database:
    """An open store. `open_database` makes one; `close` waits for the writer to finish what it has.

    `failed` is done once the disk has failed under it: time to end the process.
    """

    def __init__(self, path: Path, lock: int, open_writer: Callable[[Path], sqlite3.Connection]) -> None:
        self._path = path
        self._lock = lock
        self._open_writer = open_writer
        self._queue: queue.Queue[_Write | None] = queue.Queue(WRITES_WAITING_MAX)
        self._closed = False
        self._failure: BaseException | None = None
        self._opened: Future[None] = Future()
        self.failed: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._readers: asyncio.Queue[aiosqlite.Connection] | None = None
        self._reader_connections: list[aiosqlite.Connection] = []
        self._readers_opening = asyncio.Lock()
        self.follower: Follower | None = None

    @property
    def path(self) -> Path:
        """The file, for who reads it through a connection of its own."""
        return self._path

    def start(self) -> None:
        """Open and migrate on the writer's thread, and wait for it. Raises StoreRefused."""
        self._thread.start()
        try:
            self._opened.result(OPEN_DEADLINE_S)
        except (sqlite3.Error, SchemaRefused, OSError) as error:
            os.close(self._lock)
            raise StoreRefused(f"cannot open {self._path}: {error}") from error

    # ------------------------------------------------------------ writing

    async def write(self, closure: Callable[[sqlite3.Connection], T]) -> T:
        """Run a closure in a transaction and return its result once it is on disk.

        Whatever the closure raises is raised here, and its changes are undone. Raises StoreBusy, StoreClosed,
        StoreFailed, or sqlite3.Error when the commit itself failed (disk full): then nothing of it was kept.
        """
        if self._closed:
            raise StoreClosed
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        try:
            self._queue.put_nowait(_Write(closure, loop, future))
        except queue.Full:
            raise StoreBusy from None
        return await future

    def _run(self) -> None:
        try:
            connection = self._open_writer(self._path)
        except BaseException as error:  # noqa: BLE001 - handed to `start`, which raises it
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        try:
            stopping = False
            while not stopping:
                batch, stopping = self._next_batch()
                if batch:
                    self._carry_out(connection, batch)
                    _report(batch)
        finally:
            connection.close()
            if self.follower is not None:
                self.follower.on_closed()

    def _carry_out(self, connection: sqlite3.Connection, batch: list[_Write]) -> None:
        if self._failure is None:
            try:
                _commit(connection, batch)
            except BaseException as error:
                log.critical("store_failed", exc_info=error, hint="end this process; the next one recovers the store")
                self._failure = error
                self.failed.set_result(None)
        if self._failure is not None:
            for write in batch:
                write.error = StoreFailed(f"the disk failed: {self._failure}")
            return
        _follow_up(self.follower, connection, batch)

    def _next_batch(self) -> tuple[list[_Write], bool]:
        """Wait for a write, take what else waits, and say whether the end was reached."""
        batch: list[_Write] = []
        write = self._queue.get()
        while write is not None:
            batch.append(write)
            if len(batch) == GROUP_COMMIT_MAX:
                return batch, False
            try:
                write = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    # ------------------------------------------------------------ reading

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[aiosqlite.Connection]:
        """Borrow a read-only connection. It sees what was committed before."""
        if self._closed:
            raise StoreClosed
        readers = await self._open_readers()
        connection = await readers.get()
        try:
            yield connection
        finally:
            readers.put_nowait(connection)

    async def _open_readers(self) -> asyncio.Queue[aiosqlite.Connection]:
        async with self._readers_opening:
            if self._readers is None:
                readers: asyncio.Queue[aiosqlite.Connection] = asyncio.Queue(READERS)
                for _ in range(READERS):
                    connection = await aiosqlite.connect(uri_to_read(self._path), uri=True, isolation_level=None)
                    self._reader_connections.append(connection)
                    await connection.execute("PRAGMA query_only = ON")
                    await connection.execute("PRAGMA trusted_schema = OFF")
                    readers.put_nowait(connection)
                self._readers = readers
            return self._readers

    async def close(self) -> None:
        """Finish the writes that wait, close every connection, release the lock. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        for connection in self._reader_connections:
            await connection.close()
        await asyncio.to_thread(self._stop_writer)
        os.close(self._lock)

    def _stop_writer(self) -> None:
        self._queue.put(None)
        self._thread.join()


def open_writer(path: Path) -> sqlite3.Connection:
    """The writing connection of the database in this file, made and migrated as needed.

    Raises sqlite3.Error, SchemaRefused or OSError.
    """
    # Made before SQLite does, because its -wal and -shm take over the mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    write_again(Path(f"{path}-wal"))
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        prepare_writer(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def uri_to_read(path: Path) -> str:
    """This file as SQLite opens it to read and never to write, whatever signs its name has."""
    return f"{path.absolute().as_uri()}?mode=ro"


def write_again(log_file: Path) -> None:
    """Bring the log that the last process left to the disk. Raises OSError.

    After an fsync that failed the kernel may show what is not on disk and hold it for clean. SQLite would believe it:
    commits behind it would be lost with it at a power cut, and one that is only half copied to the database would
    leave that damaged. Written over with what is read from it, it is dirty, and an fsync says the truth again.
    """
    try:
        file = os.open(log_file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        offset = 0
        while piece := os.pread(file, LOG_PIECE_BYTES, offset):
            offset += os.pwrite(file, piece, offset)
        os.fsync(file)
    finally:
        os.close(file)


def prepare_writer(connection: sqlite3.Connection) -> None:
    """Set and read back what is asked of SQLite, and bring the schema up to date.

    Raises sqlite3.Error or SchemaRefused.
    """
    for name, wanted, expected in PRAGMAS:
        connection.execute(f"PRAGMA {name} = {wanted}")
        found = connection.execute(f"PRAGMA {name}").fetchone()[0]
        if found != expected:
            raise SchemaRefused(f"SQLite keeps {name} at {found!r} where {expected!r} is needed")
    migrate(connection)


def open_database(home: Path, open_writer: Callable[[Path], sqlite3.Connection] = open_writer) -> Database:
    """Open the store in this directory, creating it; refuse when another process has it.

    Raises StoreRefused.
    """
    lock = take_lock(home / LOCK_NAME)
    if not _is_free_of_wal_reset_bug(sqlite3.sqlite_version_info):
        log.warning(
            "sqlite_is_old",
            version=sqlite3.sqlite_version,
            hint="SQLite before 3.51.3 can lose a checkpoint race between processes; run nothing else on this database",
        )
    database = Database(home / DATABASE_NAME, lock, open_writer)
    database.start()
    return database


def take_lock(path: Path) -> int:
    """Be the only process on this store until the descriptor is closed. Raises StoreRefused."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreRefused(f"cannot write to {path.parent}: {error.strerror}; choose another --home") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StoreRefused(
            f"another coordinator already runs on {path.parent}; stop it, or give this one its own --home"
        ) from None
    return lock


def _is_free_of_wal_reset_bug(version: Iterable[int]) -> bool:
    # The WAL-reset bug of 3.7.0 to 3.51.2 was fixed in 3.51.3, and in 3.50.7 and 3.44.6 of older branches.
    numbers = tuple(version)
    return numbers >= (3, 51, 3) or (3, 50, 7) <= numbers < (3, 51) or (3, 44, 6) <= numbers < (3, 45)


def _commit(connection: sqlite3.Connection, batch: list[_Write]) -> None:
    """Carry out a batch in one transaction; what fails is noted in its writes. Raises what must end the store."""
    try:
        # IMMEDIATE: a transaction that begins as a reader cannot wait for the lock when it comes to write.
        connection.execute("BEGIN IMMEDIATE")
        for write in batch:
            _apply(connection, write)
        connection.execute("COMMIT")
    except BaseException as error:
        if _ends_the_store(error):
            raise
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        for write in batch:
            # In place of its own error too, which may rest on what another closure of this batch wrote.
            write.error = error


def _follow_up(follower: Follower | None, connection: sqlite3.Connection, batch: list[_Write]) -> None:
    if follower is None:
        return
    try:
        follower.after_commit(connection)
    except BaseException as error:  # noqa: BLE001 - every waiting caller is told; the thread goes on
        for write in batch:
            write.error = write.error or error


def _apply(connection: sqlite3.Connection, write: _Write) -> None:
    connection.execute("SAVEPOINT closure")
    try:
        write.result = write.closure(connection)
    except BaseException as error:
        write.error = error  # for the caller of `write`, and for no other
        if _ends_the_store(error) or not connection.in_transaction:
            raise  # SQLite itself rolled everything back (disk full): the whole batch failed
        connection.execute("ROLLBACK TO closure")
    connection.execute("RELEASE closure")


def _ends_the_store(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) if isinstance(error, sqlite3.Error) else 0
    return code in DISK_FAILURES or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _report(batch: list[_Write]) -> None:
    """Wake the callers, with one hop to each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
    for write in batch:
        by_loop.setdefault(write.loop, []).append(write)
    for loop, writes in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, writes)
        except RuntimeError:  # the loop is closed: nobody waits any more, and the commit stands
            log.info("write_without_caller", writes=len(writes))


def _resolve(writes: list[_Write]) -> None:
    for write in writes:
        if write.future.done():
            continue  # the caller was cancelled; the write happened all the same
        if write.error is not None:
            write.future.set_exception(write.error)
        else:
            write.future.set_result(write.result)
