"""Checks of the node's key. None of them repeats any part of it."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path
from typing import Final

from infernet import identity
from infernet.doctor.contract import Check, Finding, Situation, fail, in_thread, ok
from infernet.host.files import reason_of
from protocol.ids import npub


def _present(situation: Situation) -> Finding:
    path = situation.here.key_file
    try:
        path.lstat()
    except FileNotFoundError:
        return fail(f"this node has no key yet ({path})", "run `infernet init`")
    except OSError as error:
        return fail(f"{path}: {reason_of(error)}", f"check the owner and mode of {path.parent}")
    return ok(f"there is a key at {path}")


def _mode(situation: Situation) -> Finding:
    path = situation.here.key_file
    for place, what, mode in ((path.parent, "folder", 0o700), (path, "key", 0o600)):
        complaint = _complaint(place, what, mode)
        if complaint is not None:
            return complaint
    return ok("nobody else can open the key or its folder")


def _complaint(path: Path, what: str, mode: int) -> Finding | None:
    try:
        status = path.stat()
    except OSError as error:
        return fail(f"{path}: {reason_of(error)}", f"check the owner and mode of {path}")
    quoted = shlex.quote(str(path))
    if status.st_uid != os.getuid():
        return fail(f"the {what} {path} belongs to another user", f"run `chown {os.getuid()} {quoted}` as root")
    if status.st_mode & 0o077:
        return fail(
            f"the {what} {path} has mode {stat.S_IMODE(status.st_mode):04o}, so others may have read the key",
            f"run `chmod {mode:o} {quoted}` if you are sure that nobody has, else make a new key (`infernet init`)",
        )
    if not os.access(path, os.R_OK):
        return fail(f"the {what} {path} cannot be read by you", f"run `chmod {mode:o} {quoted}`")
    return None


def _whole(situation: Situation) -> Finding:
    try:
        situation.node = identity.load(situation.here.key_file).node
    except identity.IdentityError as error:
        return fail(
            str(error).partition(": restore")[0],
            f"restore {situation.here.key_file} from a backup, or move it away and run `infernet init`, "
            "which makes a new identity",
        )
    return ok(f"this node is {npub(situation.node)}")


CHECKS: Final = (
    Check(
        id="key.present",
        title="Key exists",
        looks="Whether `identity.key` is there. Without it the node does not start.",
        remedy="`infernet init` makes one. If there was one, restore it from a backup instead: a new key is a new "
        "identity, and what was earned by the old one is out of reach.",
        examine=in_thread(_present),
        needs=("config.home",),
    ),
    Check(
        id="key.mode",
        title="Key is yours alone",
        looks="Owner and mode of the key and of its folder. Who can read the key is this node.",
        remedy="`chmod 600` the key and `chmod 700` its folder, if you are sure that nobody has read it. Else move it "
        "away and make a new one.",
        examine=in_thread(_mode),
        needs=("key.present",),
    ),
    Check(
        id="key.whole",
        title="Key can be used",
        looks="Whether the file holds a key: 64 hex digits that are a number of the curve.",
        remedy="Restore the file from a backup. Without one, move it away and run `infernet init`.",
        examine=in_thread(_whole),
        needs=("key.mode",),
    ),
)
