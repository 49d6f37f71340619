"""Asking the person at the keyboard. An input that ends is a misuse that names the flag to give, never a default."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, TypeVar

from infernet.cli.command import Misuse

TRIES_MAX: Final = 3

Value = TypeVar("Value")


def ask(question: str, default: str, read: Callable[[str], Value], instead: str) -> Value:
    """Ask until the answer can be read; an empty one means the default.

    `read` raises ValueError with what is allowed. `instead` is the flag that answers in advance. Raises Misuse.
    """
    shown = f" [{default}]" if default else ""
    for _ in range(TRIES_MAX):
        answer = _line(f"{question}{shown}: ", instead)
        try:
            return read(answer.strip() or default)
        except ValueError as error:
            print(f"  it {error}", file=sys.stderr)
    raise Misuse(f"no usable answer in {TRIES_MAX} tries: give {instead}")


def confirm(question: str, instead: str) -> bool:
    """A yes or a no; anything but a yes is a no. Raises Misuse when the input ends."""
    return _line(f"{question} [y/N]: ", instead).strip().lower() in ("y", "yes")


def _line(prompt: str, instead: str) -> str:
    # Questions go to standard error: the result, on standard output, may be read by a program.
    print(prompt, end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.readline() if sys.stdin is not None else ""
    except (UnicodeDecodeError, OSError, ValueError):
        line = ""
    if not line:
        print(file=sys.stderr)
        or_yes = "" if instead == "--yes" else ", or --yes to take what is offered"
        raise Misuse(f"the input ended before an answer came: give {instead}{or_yes}")
    return line
