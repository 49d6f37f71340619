"""Running a tool of the system that answers and ends: with a deadline, and a bound on what it says."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from infernet.host.files import reason_of

OUTPUT_BYTES_MAX: Final = 256 * 1024
_READ_BYTES: Final = 64 * 1024
# Tools that speak another language, page their output, or paint it, are harder to read.
_ENVIRONMENT: Final = {"LC_ALL": "C", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0", "PAGER": "cat"}


class ToolError(Exception):
    """A tool is not there, or does not end. One line for people."""


class Ended(NamedTuple):
    """How a tool ended, and what it said, on either output."""

    code: int
    text: str

    @property
    def last_line(self) -> str:
        """Where tools say what went wrong."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it does not say why"


def run_tool(words: Sequence[str], timeout_s: float) -> Ended:
    """Run it to its end. Raises ToolError."""
    try:
        process = subprocess.Popen(
            words,
            env=os.environ | _ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise ToolError(f"{words[0]} cannot be run ({reason_of(error)})") from None
    deadline = time.monotonic() + timeout_s
    try:
        output = _read(process, words[0], deadline)
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise ToolError(f"{words[0]} did not end within {timeout_s:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return Ended(code, output.decode("utf-8", "replace"))


def _read(process: subprocess.Popen[bytes], name: str, deadline: float) -> bytes:
    assert process.stdout is not None
    output = b""
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
            raise subprocess.TimeoutExpired(name, 0)
        piece = os.read(process.stdout.fileno(), _READ_BYTES)
        if not piece:
            return output
        output += piece
        if len(output) > OUTPUT_BYTES_MAX:
            raise ToolError(f"{name} says more than {OUTPUT_BYTES_MAX} bytes")
