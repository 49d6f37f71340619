"""What a process can be kept from, in words that processes tell each other and people read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

from msgspec import Meta, Struct

_Word = Annotated[str, Meta(max_length=200)]


class Protection(Struct, frozen=True):
    """One thing that a process is kept from; if it is not, why."""

    name: _Word
    is_on: bool
    why_not: _Word = ""


#: The names of protections, and what each of them means for an engine.
MEANINGS: Final = {
    "files": "reads its model, libraries and GPU devices, and writes into a folder of its own",
    "network": "has no socket but its own",
    "programs": "starts no program, and looks into none",
    "limits": "leaves no core, and no large file",
}


def describe(protections: Iterable[Protection]) -> str:
    """One line for people: what is on, or what is not and why."""
    off: dict[str, list[str]] = {}
    for each in protections:
        if not each.is_on:
            off.setdefault(each.why_not or "nobody says why", []).append(each.name)
    if not off:
        return "; ".join(MEANINGS.values())
    return "is not kept from " + "; ".join(f"{' and '.join(names)} ({why})" for why, names in off.items())
