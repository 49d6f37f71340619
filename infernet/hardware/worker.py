"""The process that asks a driver's library. It prints the cards as JSON, and ends; who started it bounds its time.

A library that crashes, hangs or prints takes nothing else along: what was not told in time was not told.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from infernet.hardware.contract import Card


def _nvml() -> list[Card]:
    from infernet.hardware import nvml

    return nvml.read()


def _amdsmi() -> list[Card]:
    from infernet.hardware import amdsmi

    return amdsmi.read()


LIBRARIES: Final[dict[str, Callable[[], list[Card]]]] = {"nvml": _nvml, "amdsmi": _amdsmi}


def main(words: list[str]) -> int:
    """Ask the library that is named; gives the exit code: 0 when it answered."""
    read = LIBRARIES.get(words[0]) if words else None
    if read is None:
        return 2
    # Native code prints where it likes; only the answer may go to who asked.
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        cards = read()
    except Exception:  # noqa: BLE001 - a library that is missing or broken is the usual case, and there are other ways
        return 1
    with os.fdopen(answer, "wb") as pipe:
        pipe.write(msgspec.json.encode(cards))
    return 0


def parse(output: bytes | None) -> list[Card] | None:
    """The cards that such a process told of; None where it told nothing."""
    if not output:
        return None
    try:
        return msgspec.json.decode(output, type=list[Card])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
