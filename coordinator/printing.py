"""What the command says to whoever started it: results on standard output, and errors in one line."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Final, NoReturn

from protocol.formats.text import clean_line

FAILED: Final = 1
MISUSED: Final = 2
COMPLAINT_CHARACTERS_MAX: Final = 1000


class Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line, whatever it was given."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"{self.prog}: {clean_line(message, COMPLAINT_CHARACTERS_MAX)} (see {self.prog} --help)\n")


def say(text: str) -> int:
    """Print a result; gives the exit code. Where nobody can read it, what was done is done all the same."""
    if sys.stdout is None:
        return 0  # closed by whoever started this
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Python must not try it again, and complain, when it ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return FAILED  # who read it has enough
        return fail(f"cannot write the output ({(error.strerror or 'an error').lower()}): make room where it goes")
    return 0


def fail(why: object, code: int = FAILED) -> int:
    """Say in one line why it did not work; gives the exit code."""
    if sys.stderr is not None:
        sys.stderr.write(f"infernet-coordinator: {why}\n")
    return code
