"""Files and folders that are this user's own: written whole or not at all, and readable by nobody else."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path
from typing import Final

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_HOW_TO_MOVE: Final = "make the folder yours, or choose another with INFERNET_HOME"


class FilesError(Exception):
    """A file or folder cannot be used; one line: which, why, what to do."""


def write_private(path: Path, data: bytes) -> None:
    """Replace a file atomically by one that only its owner can read. Raises FilesError."""
    try:
        make_private_directory(path.parent)
        replace_whole(path, data, 0o600)
    except OSError as error:
        raise FilesError(f"cannot write {path} ({reason_of(error)}): {way_out(error)}") from None


def replace_whole(path: Path, data: bytes, mode: int) -> None:
    """Have this file, or the one from before, whatever comes between. Raises OSError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def make_private_directory(path: Path) -> None:
    """Have a folder that only its owner can enter; one that exists is left as it is. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def require_private_directory(path: Path, *, create: bool) -> None:
    """Make sure that nobody else can put anything into a folder. Raises FilesError."""
    try:
        if create:
            make_private_directory(path)
        status = path.lstat()
    except FileNotFoundError:
        return  # nothing is there, so nothing is there that could deceive
    except OSError as error:
        raise FilesError(f"cannot use {path} ({reason_of(error)}): {_HOW_TO_MOVE}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise FilesError(f"{path} is not a folder: move it away")
    if status.st_uid != os.getuid():
        raise FilesError(f"{path} belongs to another user: {_HOW_TO_MOVE}")
    if status.st_mode & 0o022:
        raise FilesError(f"{path} can be written by others: run `chmod 700 {path}`")


def read_secret(path: Path, what: str, flag: str, bytes_max: int) -> bytes:
    """What a file says that must be its owner's alone, without the blanks around it, and cut where it is far longer.

    Raises FilesError, which calls it `what` and names the flag that it came by, and holds nothing of it.
    """
    try:
        if not path.is_file():
            raise FilesError(f"the {what} {path} is no file: give the path of one with {flag}")
        if path.stat().st_mode & 0o077:
            raise FilesError(f"the {what} {path} can be read by others: run `chmod 600 {path}`")
        with path.open("rb") as file:
            # With the end of its line, and one byte by which it is seen to be too long.
            return file.read(bytes_max + 3).strip()
    except OSError as error:
        reason = reason_of(error)
        raise FilesError(f"the {what} {path} cannot be read ({reason}): check its owner and mode") from None


def way_out(error: OSError) -> str:
    """What to do when something cannot be written."""
    return "make room there" if error.errno in _FULL else _HOW_TO_MOVE


def reason_of(error: OSError) -> str:
    """Why it could not be done, in the system's words, to stand within a sentence."""
    return (error.strerror or str(error) or "an error").lower()
