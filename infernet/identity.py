"""The node's key: one file, created whole or not at all, never overwritten, read by its owner only.

The file holds the secret scalar as 64 hex digits. Whoever can read it is the node, so a file or folder that others
can open is refused: by then the key may be known.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import stat
import sys
from pathlib import Path
from typing import Final

from infernet.host.files import make_private_directory, reason_of, way_out
from protocol.envelope import SigningKey
from protocol.errors import LocalProtocolError
from protocol.ids import bech32_decode

_KEY_FILE_BYTES_MAX: Final = 1024
_PR_SET_DUMPABLE: Final = 4


class IdentityError(Exception):
    """The key cannot be used; one line: what, why, what to do. Never holds the secret."""


class NoIdentity(IdentityError):
    """There is no key yet."""


def generate() -> SigningKey:
    """A new key, not stored anywhere yet."""
    while True:
        try:
            return SigningKey(secrets.token_bytes(32), secrets.token_bytes)
        except LocalProtocolError:
            continue  # one in 2^128 random values is no scalar of the curve


def import_secret(text: str) -> SigningKey:
    """Read a secret key as `nsec1...` (NIP-19) or 64 hex digits. Raises IdentityError without repeating it."""
    text = text.strip()
    try:
        if text.lower().startswith("nsec1"):
            return SigningKey(bech32_decode("nsec", text), secrets.token_bytes)
        if text.lower().startswith("npub1"):
            raise IdentityError("this is a public key (npub); the secret one starts with nsec1")
        if not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
            raise IdentityError("this is no secret key: give nsec1... or 64 hex digits")
        return SigningKey(bytes.fromhex(text), secrets.token_bytes)
    except LocalProtocolError as error:
        raise IdentityError(f"this is no secret key: {error}") from None


def create(path: Path, key: SigningKey) -> None:
    """Store a key where none is yet. Raises IdentityError, above all when there is one."""
    # Written aside and linked into place: a crash leaves no half key, and a key that is there is never replaced.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        make_private_directory(path.parent)
        _require_private(path.parent, path.parent.stat(), "folder", 0o700)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(key.secret_bytes().hex().encode() + b"\n")
            os.fsync(descriptor)
            _link(draft, path)
        finally:
            os.close(descriptor)
            draft.unlink()
    except OSError as error:
        raise IdentityError(f"cannot store the key in {path.parent} ({reason_of(error)}): {way_out(error)}") from None


def _link(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        raise IdentityError(f"there is a key already: {path}; it is never overwritten") from None


def load(path: Path) -> SigningKey:
    """The key that is stored. Raises NoIdentity when there is none, IdentityError when it cannot be trusted."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NoIdentity(f"this node has no key yet ({path}): run `infernet init`") from None
    except OSError as error:
        raise IdentityError(f"cannot read the key {path} ({reason_of(error)}): check its owner and mode") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IdentityError(f"{path} is not a file: move it away and restore the key from a backup")
        _require_private(path.parent, path.parent.stat(), "folder", 0o700)
        _require_private(path, status, "key", 0o600)
        data = os.read(descriptor, _KEY_FILE_BYTES_MAX)
    finally:
        os.close(descriptor)
    try:
        return import_secret(data.decode("ascii"))
    except (UnicodeDecodeError, IdentityError):
        raise IdentityError(
            f"the key {path} is damaged ({len(data)} bytes, and not 64 hex digits): `infernet init --force "
            "--nostr-privkey @BACKUP` keeps it aside and takes one from a backup; without a backup move it away and "
            "run `infernet init` for a new key, which is a new identity and does not own what the old one does"
        ) from None


def set_aside(path: Path, key: SigningKey | None) -> Path:
    """Move what is stored to a name of its own, so that another key can take its place; None: it cannot be read.

    Raises IdentityError.
    """
    aside = path.with_name(f"{path.name}.{key.node.hex()[:16]}") if key is not None else _free_name(path)
    try:
        path.rename(aside)
    except OSError as error:
        raise IdentityError(f"cannot move the old key {path} aside ({reason_of(error)})") from None
    return aside


def _free_name(path: Path) -> Path:
    """Where what cannot be read is kept: it may be mended some day, so nothing takes its place."""
    aside, number = path.with_name(f"{path.name}.unreadable"), 2
    while os.path.lexists(aside):
        aside, number = path.with_name(f"{path.name}.unreadable.{number}"), number + 1
    return aside


def _require_private(path: Path, status: os.stat_result, what: str, mode: int) -> None:
    if status.st_uid != os.getuid():
        raise IdentityError(
            f"the {what} {path} belongs to another user: run `chown {os.getuid()} {path}` as root if it is yours"
        )
    if status.st_mode & 0o077:
        raise IdentityError(
            f"the {what} {path} has mode {stat.S_IMODE(status.st_mode):04o}, so others may have read the key: "
            f"run `chmod {mode:o} {path}` if you are sure that nobody has, else make a new key"
        )


def forbid_core_dumps() -> None:
    """Keep this process's memory, with the key in it, out of core dumps and away from debuggers (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
