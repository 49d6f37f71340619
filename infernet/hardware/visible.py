"""Cards that the owner keeps from engines, with the variables that CUDA and ROCm obey: others are not told of them.

An engine process inherits these variables. Numbers are taken as the drivers' tools count, which is CUDA's own order
under CUDA_DEVICE_ORDER=PCI_BUS_ID and wherever all cards are of one model. Not run on a card yet: the rules are those
that NVIDIA and AMD document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from infernet.hardware.contract import Card
from protocol.records import GpuVendor

# Each leaves out some of what the one before it left, and counts anew.
_VARIABLES: Final = {
    GpuVendor.NVIDIA: ("CUDA_VISIBLE_DEVICES",),
    GpuVendor.AMD: ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
}
_ENTRIES_MAX: Final = 256

# Cards with the numbers that a variable may name them by.
_Counted = Sequence[tuple[int, Card]]


def visible(cards: Sequence[Card], environ: Mapping[str, str]) -> list[Card]:
    """The same cards; those that a variable leaves out are in trouble."""
    told = list(cards)
    for vendor, variables in _VARIABLES.items():
        counted = [(card.index, card) for card in cards if card.vendor is vendor and card.is_usable]
        for name in variables:
            if name in environ:
                kept = _chosen(counted, environ[name])
                told = _without(told, counted, kept, name)
                counted = list(enumerate(card for _, card in kept))
    return told


def _without(cards: Sequence[Card], counted: _Counted, kept: _Counted, name: str) -> list[Card]:
    trouble = f"{name} keeps it from engines"
    return [
        replace(card, trouble=trouble) if _is_in(card, counted) and not _is_in(card, kept) else card for card in cards
    ]


def _is_in(card: Card, counted: _Counted) -> bool:
    return any(card == other for _, other in counted)


def _chosen(counted: _Counted, value: str) -> _Counted:
    """The cards that a list names by number or by uuid. The first entry that names none ends it."""
    chosen: list[tuple[int, Card]] = []
    for entry in value.split(",")[:_ENTRIES_MAX]:
        named = [(number, card) for number, card in counted if _names(entry.strip(), number, card)]
        if not named:
            break
        chosen += named
    return chosen


def _names(entry: str, number: int, card: Card) -> bool:
    if entry.isascii() and entry.isdigit():
        return len(entry) < 10 and int(entry) == number
    # A uuid may be shortened, as long as it begins as uuids do.
    return len(entry) > len("GPU-") and card.uuid is not None and card.uuid.startswith(entry)
