"""Seccomp: a process gives up system calls, all or with certain arguments, for itself, its threads, and for good.

What is refused is named; the rest stays, for drivers of GPUs need calls that nobody lists. The program is classic BPF
(Documentation/userspace-api/seccomp_filter.rst) over `struct seccomp_data`; it sees numbers, never what a pointer
points to. No library is needed: libseccomp is not on every machine, and its binding needs a compiler.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from infernet.confinement.syscalls import ARCHITECTURES, NEWEST, NUMBERS

_SET_MODE_FILTER: Final = 1
# All threads; and no slower than without a filter, as Linux before 5.16 made processes with one: a fence against other
# code in the same process, of which there is none.
_FLAGS: Final = 1 | 1 << 2
_GET_ACTION_AVAIL: Final = 2
_RETURN_ALLOW: Final = 0x7FFF0000
_RETURN_ERRNO: Final = 0x00050000
_RETURN_KILL_PROCESS: Final = 0x80000000

# include/uapi/linux/bpf_common.h
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
# struct sock_filter
_INSTRUCTION: Final = struct.Struct("=HBBI")
_INSTRUCTIONS_MAX: Final = 4096
_ALL_BITS: Final = 0xFFFFFFFF


@dataclass(frozen=True)
class Condition:
    """What the low 32 bits of an argument must be, after a mask: one of these values, or none of them."""

    argument: int
    values: tuple[int, ...]
    mask: int = _ALL_BITS
    negated: bool = False


@dataclass(frozen=True)
class AtMost:
    """The largest that the low 32 bits of an argument may be."""

    argument: int
    value: int


@dataclass(frozen=True)
class Refuse:
    """A call that fails with an error, unless all its conditions hold; without conditions it always does."""

    name: str
    unless: tuple[Condition | AtMost, ...] = ()
    error: int = errno.EPERM


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def is_available() -> bool:
    """Whether this kernel takes filters, and this program knows the numbers of its calls."""
    machine = ARCHITECTURES.get(platform.machine()) if sys.platform == "linux" and sys.byteorder == "little" else None
    if machine is None:
        return False
    action = ctypes.c_uint32(_RETURN_ERRNO)
    return bool(_libc().syscall(NUMBERS["seccomp"][machine.column], _GET_ACTION_AVAIL, 0, ctypes.byref(action)) == 0)


def restrict(rules: Iterable[Refuse]) -> None:
    """Put the rules on all threads of this process. Needs no new privileges to be off. Raises OSError."""
    machine = ARCHITECTURES.get(platform.machine())
    if machine is None or not is_available():
        raise OSError("this kernel has no seccomp filters")
    code = assemble(rules, machine.audit, machine.column)
    program = _Program(len(code) // _INSTRUCTION.size, code)
    number = NUMBERS["seccomp"][machine.column]
    if _libc().syscall(number, _SET_MODE_FILTER, _FLAGS, ctypes.byref(program)) != 0:
        code_of_error = ctypes.get_errno()
        raise OSError(code_of_error, os.strerror(code_of_error))


def assemble(rules: Iterable[Refuse], audit: int, column: int) -> bytes:
    """The program for a machine: its AUDIT_ARCH value, and its column in the table of numbers."""
    unknown = _RETURN_ERRNO | errno.ENOSYS
    code = [
        # Another machine's calls have other numbers: none of ours makes any.
        (_LOAD, 0, 0, 4),
        (_IF_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _RETURN_KILL_PROCESS),
        (_LOAD, 0, 0, 0),
        # Newer ones than the table knows may do what an older one is refused; libraries then take the older one.
        # Here end the calls of x86-64's x32 ABI, too, whose numbers are larger.
        (_IF_GREATER, 0, 1, NEWEST),
        (_RETURN, 0, 0, unknown),
    ]
    for rule in rules:
        number = NUMBERS[rule.name][column]
        if number is None:
            continue
        body = [step for condition in rule.unless for step in _checked(condition, rule.error)]
        if not body:
            body = [(_RETURN, 0, 0, _RETURN_ERRNO | rule.error)]
        code += [(_LOAD, 0, 0, 0), (_IF_EQUAL, 0, len(body), number), *body]
    code.append((_RETURN, 0, 0, _RETURN_ALLOW))
    assert len(code) <= _INSTRUCTIONS_MAX, "the kernel takes no longer program"
    return b"".join(_INSTRUCTION.pack(*step) for step in code)


def _checked(condition: Condition | AtMost, error: int) -> list[tuple[int, int, int, int]]:
    """Go on behind these steps where the condition holds, else refuse."""
    refusal = (_RETURN, 0, 0, _RETURN_ERRNO | error)
    # Little-endian: the low half of an argument comes first.
    load = (_LOAD, 0, 0, 16 + 8 * condition.argument)
    if isinstance(condition, AtMost):
        return [load, (_IF_GREATER, 0, 1, condition.value), refusal]
    count = len(condition.values)
    steps = [load, (_AND, 0, 0, condition.mask)]
    if condition.negated:
        last = count - 1
        tests = [(_IF_EQUAL, last - at, int(at == last), value) for at, value in enumerate(condition.values)]
        return [*steps, *tests, refusal]
    tests = [(_IF_EQUAL, count - at, 0, value) for at, value in enumerate(condition.values)]
    return [*steps, *tests, refusal]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
