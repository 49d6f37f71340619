"""Landlock: a process gives up every file but those below the paths that it names, for itself and for good.

The calls, the structures and the bits are those of `include/uapi/linux/landlock.h`; which of them a kernel knows is its
ABI version (Documentation/userspace-api/landlock.rst). No library is needed, and none of PyPI does more.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1

_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_REMOVE_DIR: Final = 1 << 4
_REMOVE_FILE: Final = 1 << 5
_MAKE_DIR: Final = 1 << 7
_MAKE_REG: Final = 1 << 8
_MAKE_SOCK: Final = 1 << 9
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15
# All rights that a ruleset of this ABI can take away; a right that is not handled is not taken.
_ALL_OF: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_ABI_MAX: Final = 6
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_TCP_BIND_AND_CONNECT: Final = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 0b11

READ: Final = _READ_FILE | _READ_DIR
#: A device: read, write and command it.
USE: Final = READ | _WRITE_FILE | _IOCTL_DEV
#: A folder of one's own, with sockets in it. No links, and no devices.
OWN: Final = READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK
#: Removing folders that are empty.
REMOVE_EMPTY: Final = _REMOVE_DIR


class _Attributes(ctypes.Structure):
    """struct landlock_ruleset_attr"""

    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


@dataclass(frozen=True)
class Grant:
    """What is left of a path, and of everything below it."""

    path: Path
    rights: int


def abi() -> int:
    """Which version of Landlock this kernel has; 0 where it has none, or has it turned off."""
    if sys.platform != "linux":
        return 0
    version = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    return max(0, int(version))


def restrict(grants: Iterable[Grant], *, allow_tcp: bool = False) -> None:
    """Leave this thread, and those that it starts, nothing but the grants. Paths that are not there are passed over.

    Signals and abstract sockets of others go too, as far as the kernel knows how. Needs no new privileges to be off.
    Raises OSError.
    """
    version = abi()
    if version == 0:
        raise OSError("this kernel has no Landlock")
    handled = _ALL_OF[min(version, max(_ALL_OF))]
    attributes = _Attributes(
        handled_access_fs=handled,
        handled_access_net=_TCP_BIND_AND_CONNECT if version >= 4 and not allow_tcp else 0,
        scoped=_ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0,
    )
    # An older kernel takes the structure only as long as it knows it.
    size = 8 if version < 4 else 16 if version < 6 else ctypes.sizeof(_Attributes)
    ruleset = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    try:
        for grant in grants:
            _add(ruleset, grant, handled)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _add(ruleset: int, grant: Grant, handled: int) -> None:
    try:
        place = os.open(grant.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what cannot be opened now is not to be opened later either
    try:
        rights = grant.rights & handled
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        if rights:
            beneath = _PathBeneath(allowed_access=rights, parent_fd=place)
            _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(beneath), 0)
    finally:
        os.close(place)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc().syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
