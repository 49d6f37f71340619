"""Running other programs to learn something: without a shell, for so long and so much output and no more.

A driver that is stuck makes its tools hang, sometimes where not even SIGKILL reaches them. Nobody waits for those.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

# `nvidia-smi` takes two seconds where it has to wake the driver, `rocm-smi` one.
TOOL_TIMEOUT_S: Final = 8.0
OUTPUT_BYTES_MAX: Final = 1 << 20
_READ_BYTES: Final = 64 * 1024
_KILL_TIMEOUT_S: Final = 1.0
# What a tool or a library needs of the environment. Everything else stays here.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "TMPDIR")
_ENVIRONMENT_PREFIXES: Final = ("NVIDIA_", "ROCM_", "ROCR_", "HIP_", "HSA_")
# Programs that hang in the kernel, by their command.
_stuck: Final[dict[tuple[str, ...], subprocess.Popen[bytes]]] = {}


def output_of(
    command: Sequence[str], *, timeout_s: float = TOOL_TIMEOUT_S, bytes_max: int = OUTPUT_BYTES_MAX
) -> bytes | None:
    """What a program prints; None where it is not installed, cannot be started, takes too long or says too much.

    Its exit status does not count: tools print what they know and fail for the rest. Never raises.
    """
    program = shutil.which(command[0])
    if program is None or _is_stuck(command):
        return None
    try:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment(os.environ),
            # A group of its own, so that what it starts is ended with it.
            start_new_session=True,
        )
    except (OSError, ValueError):
        return None
    deadline_s = time.monotonic() + timeout_s
    assert process.stdout is not None
    with process.stdout as pipe:
        output = _read(pipe.fileno(), deadline_s, bytes_max)
    if output is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline_s - time.monotonic()))
            return output
    if not _end(process):
        _stuck[tuple(command)] = process
    return None


def _is_stuck(command: Sequence[str]) -> bool:
    """Whether this very command was started before and could not be ended: one of each is enough."""
    process = _stuck.get(tuple(command))
    if process is None:
        return False
    if process.poll() is None:
        return True
    del _stuck[tuple(command)]
    return False


def _read(pipe: int, deadline_s: float, bytes_max: int) -> bytes | None:
    """All that comes out of a pipe until it is closed, or None at one of the limits."""
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not selector.select(left_s):
                return None
            try:
                data = os.read(pipe, _READ_BYTES)
            except OSError:
                return None
            if not data:
                return bytes(output)
            output += data
            if len(output) > bytes_max:
                return None
    return None


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End what is left of a program and of what it started; whether that succeeded, which the kernel may prevent."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(_KILL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of `environ` a tool gets; it answers in English."""
    kept = {
        name: value for name, value in environ.items() if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }
    if not getattr(sys, "frozen", False):
        # For our own worker: where it finds the modules that this process has found.
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return kept | {"LC_ALL": "C"}
