"""The coordinator's own key: what nodes pin, and what signs its hellos and orders.

One file, 64 hex digits, readable by its owner only. It is created whole or not at all, never overwritten, and a
file that others can read is refused: by then the key may be known.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from protocol.envelope import SigningKey
from protocol.errors import LocalProtocolError

KEY_NAME: Final = "coordinator.key"


class KeyRefused(Exception):
    """The key file cannot be used; the message is one line: what, why, what to do."""


def load_or_create_key(home: Path) -> SigningKey:
    """The key in this directory, made at first use. Raises KeyRefused."""
    path = home / KEY_NAME
    try:
        if not path.exists():
            _create(path)
        return _load(path)
    except OSError as error:
        raise KeyRefused(f"cannot use the key file {path}: {error.strerror}; choose another --home") from None


def load_key(home: Path) -> SigningKey:
    """The key in this directory, which must be there. Raises KeyRefused."""
    path = home / KEY_NAME
    try:
        return _load(path)
    except FileNotFoundError:
        raise KeyRefused(
            f"there is no {path}, with which everything here was signed: put it back, or choose another --home"
        ) from None
    except OSError as error:
        raise KeyRefused(f"cannot read the key file {path}: {error.strerror}; which --home is it?") from None


def _create(path: Path) -> None:
    # Written aside and linked into place: a crash leaves no half key, and an existing key is never replaced.
    draft = path.with_suffix(f".{secrets.token_hex(4)}.new")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        key = SigningKey(_scalar(), secrets.token_bytes)
        os.write(file, key.secret_bytes().hex().encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first; its key is the one
    finally:
        draft.unlink()
    # The name too: nodes that have pinned this key must not find another one after a power cut.
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _scalar() -> bytes:
    while True:
        secret = secrets.token_bytes(32)
        try:
            SigningKey(secret, secrets.token_bytes)
        except LocalProtocolError:
            continue  # one in 2^128 random values is no scalar of the curve
        return secret


def _load(path: Path) -> SigningKey:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        mode = stat.S_IMODE(os.fstat(file).st_mode)
        text = os.read(file, 256)
    finally:
        os.close(file)
    if mode & 0o077:
        raise KeyRefused(
            f"the key file {path} has mode {mode:04o}, so others may have read it; "
            "if you are sure they have not, chmod 600 it, else delete it and tell your nodes the new key"
        )
    try:
        return SigningKey(bytes.fromhex(text.decode("ascii").strip()), secrets.token_bytes)
    except (ValueError, LocalProtocolError):
        raise KeyRefused(
            f"the key file {path} is damaged: it should hold 64 hex digits; restore it from a backup"
        ) from None
