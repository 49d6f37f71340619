"""Kill a process at its n-th system call of some kinds, without any tool that may not be installed.

A seccomp filter stops the process, and each of its threads, before every call that was asked for, and no other
(ptrace(2), PTRACE_O_TRACESECCOMP; this is how `strace --seccomp-bpf` stays fast). Nothing here works outside Linux.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Callable, Collection
from typing import Final

# From asm/unistd_64.h and asm-generic/unistd.h; aarch64 has no unlink and no rename.
NUMBERS: Final[dict[str, dict[str, int]]] = {
    "x86_64": {
        "write": 1, "mmap": 9, "pread64": 17, "pwrite64": 18, "writev": 20, "fcntl": 72, "flock": 73, "fsync": 74,
        "fdatasync": 75, "ftruncate": 77, "rename": 82, "unlink": 87, "openat": 257, "unlinkat": 263,
        "renameat": 264, "fallocate": 285, "renameat2": 316,
    },
    "aarch64": {
        "write": 64, "mmap": 222, "pread64": 67, "pwrite64": 68, "writev": 66, "fcntl": 25, "flock": 32, "fsync": 82,
        "fdatasync": 83, "ftruncate": 46, "openat": 56, "unlinkat": 35, "renameat": 38, "fallocate": 47,
        "renameat2": 276,
    },
}  # fmt: skip

# linux/prctl.h, linux/seccomp.h, linux/bpf_common.h
PR_SET_SECCOMP: Final = 22
PR_SET_NO_NEW_PRIVS: Final = 38
SECCOMP_MODE_FILTER: Final = 2
SECCOMP_RET_TRACE: Final = 0x7FF00000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
BPF_LOAD_WORD: Final = 0x20
BPF_JUMP_IF_EQUAL: Final = 0x15
BPF_RETURN: Final = 0x06

# linux/ptrace.h
PTRACE_TRACEME: Final = 0
PTRACE_CONT: Final = 7
PTRACE_SETOPTIONS: Final = 0x4200
PTRACE_EVENT_SECCOMP: Final = 7
# fork, vfork, clone and exec are followed; what is traced dies with the tracer.
OPTIONS: Final = 0x02 | 0x04 | 0x08 | 0x10 | 1 << PTRACE_EVENT_SECCOMP | 0x100000
WAIT_FOR_THREADS_TOO: Final = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def numbers_of(names: Collection[str]) -> list[int]:
    """The numbers of these system calls on this machine; one that it does not have is left out."""
    known = NUMBERS[platform.machine()]
    return sorted(known[name] for name in names if name in known)


def fork_stopped(calls: list[int], body: Callable[[], None]) -> int:
    """Fork a process that will stop before each of these calls, and stops now, for `follow`. Returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _check(_libc.ptrace(PTRACE_TRACEME, 0, None, None))
        os.kill(os.getpid(), signal.SIGSTOP)
        _stop_before(calls)
        body()
    finally:
        os._exit(1)  # body ends the process itself when all went well


def follow(pid: int, kill_at: int, counts: Callable[[], bool]) -> tuple[int, int | None]:
    """Let a forked process run until its n-th call that counts, and kill it before it makes the call.

    Returns how many calls it came to, and with which exit code it ended by itself; None when it was killed.
    """
    os.waitpid(pid, 0)
    _check(_libc.ptrace(PTRACE_SETOPTIONS, pid, None, OPTIONS))
    _resume(pid)
    reached = 0
    while True:
        stopped, status = os.waitpid(-1, WAIT_FOR_THREADS_TOO)
        if os.WIFSTOPPED(status):
            event, number = status >> 16, os.WSTOPSIG(status)
            if event == PTRACE_EVENT_SECCOMP and counts():
                reached += 1
                if reached == kill_at:
                    os.kill(pid, signal.SIGKILL)
                    continue
            # New threads begin with a SIGSTOP that is the tracer's alone.
            _resume(stopped, 0 if event or number == signal.SIGSTOP else number)
        elif stopped == pid:
            is_killed = os.WIFSIGNALED(status) and reached >= kill_at
            return reached, None if is_killed else os.waitstatus_to_exitcode(status)


def _resume(pid: int, signal_number: int = 0) -> None:
    # One that was killed meanwhile cannot be resumed, and its end is told by waitpid.
    _libc.ptrace(PTRACE_CONT, pid, None, signal_number)


def _stop_before(calls: list[int]) -> None:
    count = len(calls)
    instructions = [
        _Instruction(BPF_LOAD_WORD, 0, 0, 0),  # the number is the first word of what a filter sees
        *(_Instruction(BPF_JUMP_IF_EQUAL, count - place, 0, number) for place, number in enumerate(calls)),
        _Instruction(BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW),
        _Instruction(BPF_RETURN, 0, 0, SECCOMP_RET_TRACE),
    ]
    program = _Program(len(instructions), (_Instruction * len(instructions))(*instructions))
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, None, 0, 0))
    _check(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def _check(result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
