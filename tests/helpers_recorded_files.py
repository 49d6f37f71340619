"""A test double for `os` in a module that writes files itself: it does what is asked, and tells a recording disk.

So what the journal writes and syncs stands in one order with what SQLite does, and power cuts meet both. Files are
known by their name alone, and are written at their end.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.helpers_disk import RecordingDisk


class RecordedFiles:
    """Put in the place of a module's `os`; what is not about files is the real one."""

    def __init__(self, disk: RecordingDisk) -> None:
        self._disk = disk
        self._files: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = os.open(path, flags, mode)
        if not flags & os.O_DIRECTORY:
            self._files[descriptor] = self._disk.create(path.name)
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        self._disk.write(self._files[descriptor], os.fstat(descriptor).st_size, bytes(data))
        return os.write(descriptor, data)

    def ftruncate(self, descriptor: int, size_bytes: int) -> None:
        self._disk.resize(self._files[descriptor], size_bytes)
        os.ftruncate(descriptor, size_bytes)

    def fsync(self, descriptor: int) -> None:
        if descriptor in self._files:
            self._disk.sync(self._files[descriptor])
        else:
            self._disk.sync_directory()

    fdatasync = fsync

    def close(self, descriptor: int) -> None:
        self._files.pop(descriptor, None)
        os.close(descriptor)
