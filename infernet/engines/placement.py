"""Which model runs on which cards: a plan that is made before anything is loaded, from numbers alone.

The largest model comes first, and goes to the fewest cards that hold it whole: to the one card that it fills best, or
to several that are large enough together. What no cards hold goes to the processor, if the memory of the machine holds
it beside what is there already; otherwise it has no place, and the reason is said. The same models and cards always
give the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

# llama.cpp's buffers on each card beyond the first that a model lies on.
SPREAD_BYTES: Final = 256 * 1024 * 1024


class Wish(Struct, frozen=True):
    """A model that is to be placed, and all that it takes."""

    model: str
    needed_bytes: int


class Room(Struct, frozen=True):
    """A card and what is free on it. A model lies on a part of a card (MIG) alone, or not at all."""

    card: str
    free_bytes: int
    is_part: bool = False


class Placed(Struct, frozen=True):
    """What a model takes of which cards; of none where it runs on the processor."""

    on_cards: Mapping[str, int]
    on_processor_bytes: int = 0


class NoPlace(Struct, frozen=True):
    """Why a model runs nowhere, in one line."""

    reason: str


Plan = dict[str, Placed | NoPlace]


def plan(wishes: Iterable[Wish], rooms: Iterable[Room], processor_bytes: int) -> Plan:
    """Where each model runs, by its name."""
    free = {room.card: room for room in rooms}
    left = processor_bytes
    found: Plan = {}
    for wish in sorted(wishes, key=lambda wish: (-wish.needed_bytes, wish.model)):
        taken = _on_cards(wish.needed_bytes, free.values())
        if taken is not None:
            for card, size in taken.items():
                free[card] = Room(card, free[card].free_bytes - size, free[card].is_part)
            found[wish.model] = Placed(taken)
        elif wish.needed_bytes <= left:
            left -= wish.needed_bytes
            found[wish.model] = Placed({}, wish.needed_bytes)
        else:
            found[wish.model] = NoPlace(_reason(wish, free.values(), left))
    return found


def _on_cards(needed: int, rooms: Iterable[Room]) -> dict[str, int] | None:
    """What is taken of the fewest cards that hold so much; None where all together do not."""
    holding = [room for room in rooms if room.free_bytes >= needed]
    if holding:
        # The one that it fills best, so that larger ones stay free.
        best = min(holding, key=lambda room: (room.free_bytes, room.card))
        return {best.card: needed}
    whole = sorted((room for room in rooms if not room.is_part), key=lambda room: (-room.free_bytes, room.card))
    for count in range(2, len(whole) + 1):
        chosen = whole[:count]
        in_all = needed + (count - 1) * SPREAD_BYTES
        there = sum(room.free_bytes for room in chosen)
        if chosen[-1].free_bytes <= SPREAD_BYTES:
            return None
        if in_all <= there:
            # llama.cpp gives each card its share by what is free on it.
            return {room.card: -(-in_all * room.free_bytes // there) for room in chosen}
    return None


def _reason(wish: Wish, rooms: Iterable[Room], processor_bytes: int) -> str:
    cards = [room.free_bytes for room in rooms]
    gpus = "one GPU" if len(cards) == 1 else f"{len(cards)} GPUs"
    on_cards = f"{sum(cards) / 1e9:.1f} GB of {gpus} and " if cards else ""
    return (
        f"{wish.model} needs {wish.needed_bytes / 1e9:.1f} GB, and beside the other models {on_cards}"
        f"{processor_bytes / 1e9:.1f} GB of this machine are left: serve fewer models, smaller ones, or with fewer "
        "slots or less context"
    )
