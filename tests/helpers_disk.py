"""A test double for a disk: an SQLite VFS in memory that records every operation and fails where it is told to.

What SQLite does to its files (database, -wal, journal) comes out as a list of operations with their data, in order.
The rest answers as SQLite's own "unix" VFS does: sectors of 4096 bytes, power-safe overwrite, and the directory is
synced with the first sync of an open journal or WAL. Files of apsw have no shared memory, so a connection must take
`locking_mode = EXCLUSIVE`; the -shm file is no loss, because recovery never reads it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import apsw

DATABASE: Final = "coordinator.sqlite3"

JOURNALS: Final = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_SUPER_JOURNAL


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes went to a file; they are on disk after its next Sync."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """A file was truncated to this many bytes."""

    file: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Sync:
    """Everything written to a file before is on disk."""

    file: int


@dataclass(frozen=True, slots=True)
class Forget:
    """A sync failed, and the kernel holds the pages for clean: what was not synced reaches the disk never more."""

    file: int


@dataclass(frozen=True, slots=True)
class Create:
    """A name was given to a new file; the name is on disk after the next SyncDirectory."""

    name: str
    file: int


@dataclass(frozen=True, slots=True)
class Delete:
    """A name was removed; that it is gone is on disk after the next SyncDirectory."""

    name: str


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """Every name given and removed before is on disk."""


Operation = Write | Resize | Sync | Forget | Create | Delete | SyncDirectory
# Called before an operation is carried out; raises an apsw error to make it fail.
Fault = Callable[["RecordingDisk", Operation], None]


class RecordingDisk(apsw.VFS):
    """The disk of one store. `files` is what lies on it at first, all of it synced.

    A context manager: SQLite knows it by `disk.name` until it ends.
    """

    _made = 0

    def __init__(self, files: dict[str, bytes] | None = None, seed: int = 0) -> None:
        RecordingDisk._made += 1
        self.name = f"recording-{RecordingDisk._made}"
        self.operations: list[Operation] = []
        self.fault: Fault | None = None
        self.initial = dict(files or {})
        self.names = {name: number for number, name in enumerate(self.initial)}
        self.contents = {self.names[name]: bytearray(data) for name, data in self.initial.items()}
        self._random = random.Random(seed)
        super().__init__(self.name, base="")
        self._seed_sqlite()

    def _seed_sqlite(self) -> None:
        """Make the salts and nonces of SQLite the same every time. It has one generator, seeded by the default VFS."""
        default = apsw.vfs_names()[0]
        apsw.set_default_vfs(self.name)
        apsw.randomness(0)
        apsw.randomness(1)
        apsw.set_default_vfs(default)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unregister()

    def image(self) -> dict[str, bytes]:
        """The files as the running system sees them: what a process that was killed leaves to the next one."""
        return {name: bytes(self.contents[file]) for name, file in self.names.items()}

    def after_a_kill(self) -> RecordingDisk:
        """The same disk under the next process: what the kernel holds, and what of it is safe, is as it was."""
        next_disk = RecordingDisk()
        next_disk.initial = self.initial
        next_disk.operations = list(self.operations)
        next_disk.names = dict(self.names)
        next_disk.contents = {file: bytearray(content) for file, content in self.contents.items()}
        return next_disk

    # ------------------------------------------------------------ what is recorded

    def create(self, name: str) -> int:
        """Give a name to a new, empty file, as open(2) with O_CREAT does; one that exists is left alone."""
        if name not in self.names:
            file = len(self.contents)
            self._carry_out(Create(name, file))
            self.names[name] = file
            self.contents[file] = bytearray()
        return self.names[name]

    def write(self, file: int, offset: int, data: bytes) -> None:
        """Write into the cache; a fault may let a part of it through."""
        self._carry_out(Write(file, offset, data))
        content = self.contents[file]
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data

    def write_part(self, write: Write, size_bytes: int) -> None:
        """For faults: what a write that fails leaves behind, its first bytes."""
        fault, self.fault = self.fault, None
        self.write(write.file, write.offset, write.data[:size_bytes])
        self.fault = fault

    def resize(self, file: int, size_bytes: int) -> None:
        """Truncate."""
        self._carry_out(Resize(file, size_bytes))
        del self.contents[file][size_bytes:]

    def sync(self, file: int) -> None:
        """Bring a file to the disk."""
        self._carry_out(Sync(file))

    def sync_directory(self) -> None:
        """Bring names to the disk."""
        self._carry_out(SyncDirectory())

    def _carry_out(self, operation: Operation) -> None:
        if self.fault is not None:
            self.fault(self, operation)
        self.operations.append(operation)

    # ------------------------------------------------------------ what SQLite calls

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> Any:
        assert name is not None, "a temporary file: the store should need none"
        plain = name.filename() if isinstance(name, apsw.URIFilename) else name
        creates = bool(flags[0] & apsw.SQLITE_OPEN_CREATE)
        if plain not in self.names and not creates:
            raise apsw.exception_for(apsw.SQLITE_CANTOPEN)
        return _File(self, self.create(plain), syncs_directory=creates and bool(flags[0] & JOURNALS))

    def xDelete(self, name: str, sync_directory: bool) -> None:
        if name not in self.names:
            raise apsw.exception_for(apsw.SQLITE_IOERR_DELETE_NOENT)
        self._carry_out(Delete(name))
        del self.names[name]
        if sync_directory:
            self.sync_directory()

    def xAccess(self, name: str, flags: int) -> bool:
        if flags == apsw.SQLITE_ACCESS_EXISTS:
            # As "unix" does: an empty file is no journal.
            return name in self.names and len(self.contents[self.names[name]]) > 0
        return name in self.names

    def xFullPathname(self, name: str) -> str:
        return name

    def xRandomness(self, size_bytes: int) -> bytes:
        return self._random.randbytes(size_bytes)


class _File:
    """An open file, as SQLite calls it."""

    def __init__(self, disk: RecordingDisk, file: int, *, syncs_directory: bool) -> None:
        self._disk = disk
        self._file = file
        self._syncs_directory = syncs_directory

    def xRead(self, size_bytes: int, offset: int) -> bytes:
        return bytes(self._disk.contents[self._file][offset : offset + size_bytes])

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.write(self._file, offset, bytes(data))

    def xTruncate(self, size_bytes: int) -> None:
        self._disk.resize(self._file, size_bytes)

    def xSync(self, flags: int) -> None:
        self._disk.sync(self._file)
        if self._syncs_directory:
            self._disk.sync_directory()
            self._syncs_directory = False

    def xFileSize(self) -> int:
        return len(self._disk.contents[self._file])

    def xLock(self, level: int) -> None:
        """Nobody else is there."""

    def xUnlock(self, level: int) -> None:
        """Nobody else is there."""

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, operation: int, pointer: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return 4096

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE

    def xClose(self) -> None:
        """Closing writes nothing."""
