"""The cards of this machine, divided between the models that one node serves.

What llama.cpp can use is asked of it in an engine process; what the cards are and what is free on them, of their
drivers. Each engine process then sees only its own cards, by the variables that CUDA and ROCm obey. Cards are divided
where llama.cpp drives them by CUDA or ROCm; elsewhere (Vulkan, Metal, SYCL) every model sees what there is.

None of this has been run on a machine with a GPU: the variables are those that NVIDIA and AMD document. AMD's library
has other names for cards than ROCm, so those are counted, as `infernet gpu` counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from infernet.engines.contract import EngineConfig, EngineUnavailable
from infernet.engines.fitting import Memory, host_memory, needed_bytes
from infernet.engines.frames import Device, LoadFailed, Look, Seen
from infernet.engines.gguf import BadGguf, read_header
from infernet.engines.placement import NoPlace, Placed, Plan, Room, Wish, plan
from infernet.engines.process import ANYWHERE, Place, open_worker, worker_command
from infernet.hardware.contract import Card
from infernet.hardware.detect import find_cards
from infernet.host.files import reason_of
from protocol.records import GpuVendor

_LOOK_TIMEOUT_S: Final = 60.0
# What llama.cpp calls its devices, with the vendor whose cards it then drives.
_BACKENDS: Final = {"CUDA": GpuVendor.NVIDIA, "ROCm": GpuVendor.AMD, "HIP": GpuVendor.AMD}
# Some drivers obey the others' variables too, and each counts what the one before it left.
_VARIABLES: Final = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
# A card's name in a plan: the uuid that its driver has for it, else its vendor and number.
_Key = str


async def devices_seen(command: Sequence[str] | None = None) -> tuple[Device, ...]:
    """What llama.cpp sees here, told by an engine process that ends at once. Raises EngineUnavailable."""
    told: object = None
    why = ""
    try:
        async with open_worker(worker_command() if command is None else command) as worker:
            worker.post(Look())
            with trio.move_on_after(_LOOK_TIMEOUT_S) as looking:
                told = await worker.receive()
            if looking.cancelled_caught:
                worker.kill(f"the engine process did not say within {_LOOK_TIMEOUT_S:.0f} s which GPUs it sees")
            if told is None:
                why = await worker.why_gone()
    except OSError as error:
        why = f"the engine process cannot be started ({reason_of(error)})"
    if isinstance(told, LoadFailed):
        why = told.text
    if not isinstance(told, Seen):
        raise EngineUnavailable(
            why or "the engine process broke its contract (it was asked for GPUs, and told of none)"
        )
    return told.devices


def divisible(cards: Iterable[Card], devices: Iterable[Device]) -> dict[_Key, Card]:
    """The cards that llama.cpp drives, and that can be given to one process each."""
    vendors = {vendor for device in devices for vendor in _vendors(device)}
    return {
        _key(card): card for card in cards if card.is_usable and card.vendor in vendors and card.vram_bytes is not None
    }


def _vendors(device: Device) -> list[GpuVendor]:
    return [vendor for prefix, vendor in _BACKENDS.items() if device.name.startswith(prefix)]


def _key(card: Card) -> _Key:
    # Not every source knows a uuid, and parts of a card share its slot.
    place = card.uuid if "MIG" in card.model else card.slot or card.uuid
    return place or f"{card.vendor.name}-{card.index}"


def place_of(placed: Placed, cards: Mapping[_Key, Card]) -> Place:
    """What an engine process is told of its cards, on a machine where cards are divided."""
    environ: dict[str, str | None] = dict.fromkeys(_VARIABLES)
    if not placed.on_cards:
        # No card is called so, and that ends the list.
        environ |= {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
        return Place("the processor", tuple(environ.items()), on_processor=True)
    chosen = [cards[key] for key in placed.on_cards]
    variable = "CUDA_VISIBLE_DEVICES" if chosen[0].vendor is GpuVendor.NVIDIA else "ROCR_VISIBLE_DEVICES"
    environ[variable] = ",".join(map(_name_for_driver, chosen))
    words = ", ".join(f"{card.model} ({card.vendor.name.lower()} {card.index})" for card in chosen)
    return Place(words, tuple(environ.items()))


def _name_for_driver(card: Card) -> str:
    if card.uuid is not None and card.uuid.startswith(("GPU-", "MIG-")):
        return card.uuid
    return str(card.index)


def wish_of(config: EngineConfig) -> Wish:
    """What a model takes, by its file and its header."""
    path = Path(config.path)
    try:
        file_bytes, header = path.stat().st_size, read_header(path)
    except OSError:
        return Wish(config.name, 0)  # the engine says what is wrong with it
    except BadGguf:
        file_bytes, header = path.stat().st_size, None
    return Wish(config.name, needed_bytes(file_bytes, header, config.context_tokens, config.slots))


@dataclass
class Division:
    """Which model is where. Without `cards` there is nothing to divide, and every model sees all that there is.

    Cards that come later are used from the next start on.
    """

    wishes: Mapping[str, Wish]
    cards: dict[_Key, Card]
    memory_bytes: int
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        self._divides = bool(self.cards)
        self.plan = plan(self.wishes.values(), map(_room, self.cards.values()), self.memory_bytes)

    def place(self, model: str) -> Place | NoPlace:
        """Where a model runs."""
        placed = self.plan[model]
        if isinstance(placed, NoPlace):
            return placed
        return place_of(placed, self.cards) if self._divides else ANYWHERE

    def lose(self, cards: Iterable[Card]) -> list[str]:
        """These cards are gone: place what was on them anew, and leave the rest where it is. Gives who has to move."""
        lost = set(map(_key, cards)) & self.cards.keys()
        self.cards = {key: card for key, card in self.cards.items() if key not in lost}
        staying, moving = [], []
        for model, placed in self.plan.items():
            if not isinstance(placed, Placed):
                continue
            if lost.isdisjoint(placed.on_cards):
                staying.append(placed)
            else:
                moving.append(model)
        rooms = [_room(card, *(placed.on_cards.get(key, 0) for placed in staying)) for key, card in self.cards.items()]
        left = self.memory_bytes - sum(placed.on_processor_bytes for placed in staying)
        self.plan |= plan([self.wishes[model] for model in moving], rooms, left)
        return moving


def _room(card: Card, *taken: int) -> Room:
    free = (card.vram_bytes or 0) - (card.vram_used_bytes or 0) - sum(taken)
    return Room(_key(card), max(0, free), is_part="MIG" in card.model)


async def divide(
    configs: Sequence[EngineConfig],
    *,
    look: Callable[[], Iterable[Card]] = find_cards,
    memory: Callable[[], Memory] = host_memory,
    command: Sequence[str] | None = None,
) -> Division:
    """Divide what this machine has, before any of these models is loaded. Raises EngineUnavailable."""
    devices = await devices_seen(command)
    cards: Iterable[Card] = ()
    if any(map(_vendors, devices)):
        cards = await trio.to_thread.run_sync(look, abandon_on_cancel=True)
    found = divisible(cards, devices)
    wishes = {config.name: await trio.to_thread.run_sync(wish_of, config) for config in configs}
    # As for one model: what other programs hold now, they may give up.
    there = memory().total_bytes + (0 if found else sum(device.memory_bytes for device in devices))
    return Division(wishes, found, there)
