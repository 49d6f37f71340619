"""Single values out of what a tool or a file says, each within bounds; None for everything that is none.

Tools write `N/A`, `[Not Supported]`, `[Unknown Error]` or `ERR!` where a number should stand, numbers as text or with
a unit, and now and then nonsense.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import msgspec

from protocol.formats.text import clean_line

_NUMBER: Final = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,12})?)\s*(?:W|C|%|MiB|MB|B)?\s*", re.ASCII)
_SLOT: Final = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.ASCII | re.IGNORECASE)
_NOTHING: Final = frozenset({"", "-", "n/a", "none", "unknown", "err!", "not supported", "unknown error"})
_TEXT_CHARACTERS_MAX: Final = 64
# No card has a tebibyte, nor will soon.
MEMORY_BYTES_MAX: Final = 1 << 40


def number(value: Any, largest: float) -> float | None:
    """A number from 0 to `largest`, whether it comes as one or as text."""
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if match is None:
            return None
        value = float(match[1])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Compared before it is converted: an integer may be too large for that.
    if not 0 <= value <= largest or not math.isfinite(value):
        return None
    return float(value)


def whole(value: Any, largest: int) -> int | None:
    """A number from 0 to `largest`, rounded."""
    read = number(value, largest)
    return None if read is None else round(read)


def memory(value: Any, unit_bytes: int = 1) -> int | None:
    """An amount of memory, given in units of so many bytes. None for 0, which no card has."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value * unit_bytes <= MEMORY_BYTES_MAX:
        return value * unit_bytes
    read = number(value, MEMORY_BYTES_MAX / unit_bytes)
    return round(read * unit_bytes) or None if read is not None else None


def used_memory(value: Any, unit_bytes: int = 1) -> int | None:
    """The same of memory in use, which may be 0."""
    read = number(value, MEMORY_BYTES_MAX / unit_bytes)
    return None if read is None else round(read * unit_bytes)


def percent(value: Any) -> int | None:
    """A share in percent."""
    return whole(value, 100)


def celsius(value: Any) -> int | None:
    """A temperature of something that still works."""
    return whole(value, 200)


def watts(value: Any) -> float | None:
    """The power that a card takes, to a tenth."""
    read = number(value, 10_000)
    return None if read is None else round(read, 1)


def text(value: Any) -> str | None:
    """One short line, safe to show."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return None
    # A tool's output may be long; what is cleaned is not.
    line = clean_line(value[: 4 * _TEXT_CHARACTERS_MAX], _TEXT_CHARACTERS_MAX)
    return None if line.strip("[]()").lower() in _NOTHING else line


def slot(value: Any) -> str | None:
    """A PCI address in the form that Linux gives it: `0000:01:00.0`."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    match = _SLOT.fullmatch(value.strip()) if isinstance(value, str) and len(value) < 64 else None
    if match is None:
        return None
    return f"{int(match[1] or '0', 16):04x}:{match[2]}:{match[3]}.{match[4]}".lower()


def json_object(output: bytes | None) -> dict[str, Any]:
    """A tool's answer as an object, without what it says before; empty where there is none."""
    if not output or (start := output.find(b"{")) < 0:
        return {}
    try:
        value = msgspec.json.decode(output[start:])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def entry(value: Any, *names: str) -> Any:
    """The first of these entries that an object has."""
    if isinstance(value, dict):
        for name in names:
            if name in value:
                return value[name]
    return None
