"""The signatures of claims, checked: on threads while there are few, in processes of their own while there are many.

The library lets go of the interpreter's lock for the arithmetic, but after each 40 us of it a thread waits for the lock
behind the event loop and the ledger: with many claims that costs more than the arithmetic. No process is started before
a batch is large enough, and without one, for whatever reason, the threads check as before.
"""

from __future__ import annotations

import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, cast

import structlog

from protocol.claims import CheckedClaim, check_claim
from protocol.errors import RemoteProtocolError
from protocol.records import Signed

# Sent to a process from so many on: there and back costs as much as checking one.
PROCESS_CLAIMS_MIN: Final = 32
ANSWER_S_MAX: Final = 10.0
# After one has failed: what is wrong with the machine will not be right at once.
RESTART_S: Final = 60.0
# What it needs of the environment. The gateway's keys are in there, too, and none of its business.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
HEADER: Final = struct.Struct(">I")

Checked = CheckedClaim | RemoteProtocolError

log = structlog.get_logger(__name__)


def check_all(claims: Sequence[Signed]) -> list[Checked]:
    """For each claim what it says, once every signature of it holds, or why it does not."""
    return [_check(claim) for claim in claims]


def _check(claim: Signed) -> Checked:
    try:
        return check_claim(claim)
    except RemoteProtocolError as error:
        return error


class ProcessFailed(Exception):
    """A process that checks has ended, or does not answer."""


class CheckProcess:
    """One process, and the pipes to it. It ends with this one, however that ends: its input is then at its end."""

    def __init__(self) -> None:
        """Start it. Raises OSError."""
        # In one that is frozen the same name would start another coordinator.
        if not sys.executable or getattr(sys, "frozen", False):
            raise OSError("no Python is known that could run it")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "coordinator.core.claim_check_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            # Ctrl-C is for the coordinator, which finishes what it has.
            start_new_session=True,
        )

    def check(self, claims: Sequence[Signed]) -> list[Checked]:
        """As `check_all`. Raises ProcessFailed."""
        assert self._process.stdin is not None
        # Neither writing to it nor reading from it waits for longer.
        deadline = threading.Timer(ANSWER_S_MAX, self._process.kill)
        deadline.daemon = True
        try:
            deadline.start()
            self._process.stdin.write(encode_part([(claim.body, claim.signature) for claim in claims]))
            self._process.stdin.flush()
            (length,) = HEADER.unpack(self._read(HEADER.size))
            checked = pickle.loads(self._read(length))  # noqa: S301 - our own process wrote it
        # A pipe that has ended, a pickle that has, no thread to be had.
        except Exception as error:  # noqa: BLE001 - whatever it is, this process is of no more use
            raise ProcessFailed(str(error) or type(error).__name__) from None
        finally:
            deadline.cancel()
        # It was started from what is on disk, which may be a later version by now.
        if type(checked) is not list or len(checked) != len(claims):
            raise ProcessFailed("its answer is not one for each claim")
        if not all(isinstance(each, CheckedClaim | RemoteProtocolError) for each in checked):
            raise ProcessFailed("its answer is of another kind than asked for")
        return cast("list[Checked]", checked)

    def _read(self, size_bytes: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size_bytes)
        if len(data) < size_bytes:
            raise ProcessFailed(f"it has ended, or did not answer within {ANSWER_S_MAX:g} s")
        return data

    def end(self) -> None:
        """End it, whatever it is doing, and whoever waits for it hears ProcessFailed."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what it has not read is of no use to anybody
                pipe.close()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
    # It finds the modules that this process has found.
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def encode_part(value: object) -> bytes:
    """What goes through the pipes at once, with its length before it."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(data)) + data


class ClaimChecks:
    """Checks for the threads that call `check`, with as many processes as call it at once; `close` ends those."""

    def __init__(self) -> None:
        self._idle: queue.SimpleQueue[CheckProcess] = queue.SimpleQueue()
        self._all: set[CheckProcess] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        self._not_before_s = 0.0

    def check(self, claims: Sequence[Signed]) -> list[Checked]:
        """For each claim what it says, or why it does not hold."""
        process = self._take() if len(claims) >= PROCESS_CLAIMS_MIN else None
        if process is None:
            return check_all(claims)
        try:
            checked = process.check(claims)
        except ProcessFailed as error:
            self._give_up(process, error)
            return check_all(claims)
        self._idle.put(process)
        return checked

    def _take(self) -> CheckProcess | None:
        with suppress(queue.Empty):
            return self._idle.get_nowait()
        with self._lock:
            if self._is_closed or time.monotonic() < self._not_before_s:
                return None
            try:
                process = CheckProcess()
            except OSError as error:
                self._not_before_s = time.monotonic() + RESTART_S
                log.warning("no_process_for_checks", reason=str(error), hint="threads check, more slowly")
                return None
            self._all.add(process)
            return process

    def _give_up(self, process: CheckProcess, error: ProcessFailed) -> None:
        with self._lock:
            self._all.discard(process)
            self._not_before_s = time.monotonic() + RESTART_S
            is_closed = self._is_closed
        process.end()
        if not is_closed:
            log.warning("process_for_checks_failed", reason=str(error), hint="threads check, more slowly")

    def close(self) -> None:
        """End the processes. What is being checked is checked by its thread, and nobody waits for it."""
        with self._lock:
            self._is_closed = True
            processes, self._all = self._all, set()
        for process in processes:
            process.end()
