"""The room's contract: a card, whoever made it and whichever tool told of it, and what of it others are told.

Which reader was tried on what: those for NVIDIA, AMD, Intel and Apple are written against what the makers document and
against outputs that others published (named beside the recordings in tests/infernet/hardware/). None of them has been
run on a machine with a GPU yet; the reading of sysfs has been run on machines without one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from protocol import constants as c
from protocol.formats.text import clean_name
from protocol.gpus import tier_of
from protocol.records import Gpu, GpuVendor
from protocol.structs import prepare

# More than any machine has; a tool that tells of more is not believed.
CARDS_MAX: Final = 64


class Card(Struct, frozen=True):
    """A GPU, or the part of one that MIG gives to itself. None stands for what could not be learnt.

    `index` is the driver's number for the card, `slot` its PCI address, `uuid` the driver's name for this very card;
    neither of the last two ever leaves the machine. `cuda` is the newest CUDA that the driver runs. `source` names who
    told of it. `trouble` says why the card cannot be used, or is empty.
    """

    vendor: GpuVendor
    index: int
    model: str
    source: str
    vram_bytes: int | None = None
    vram_used_bytes: int | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    driver: str | None = None
    cuda: str | None = None
    slot: str | None = None
    uuid: str | None = None
    trouble: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether a model could run on it."""
        return not self.trouble


class Fabric(Struct, frozen=True):
    """How cards are connected beside PCI Express: `topology` is none, pair, mesh or all-to-all."""

    available: bool = False
    topology: str = "none"
    link_count: int = 0


class Interconnects(Struct, frozen=True):
    """What connects the cards with each other, and the machine with others, coarsely.

    `rdma_capable` is whether an adapter is there that reaches the memory of other machines: InfiniBand, Ethernet with
    RoCE, or EFA, which is Amazon's.
    """

    nvlink: Fabric = Fabric()
    xgmi: Fabric = Fabric()
    infiniband_ports: int = 0
    efa_adapters: int = 0
    rdma_capable: bool = False


def announced(card: Card) -> Gpu:
    """What others are told of a card: who made it, its memory tier, and its model's name."""
    return Gpu(card.vendor, tier_of(card.vram_bytes), clean_name(card.model))


def announced_all(cards: Iterable[Card]) -> tuple[Gpu, ...]:
    """What others are told of a machine: its cards that can be used, as many as a heartbeat holds."""
    return tuple(announced(card) for card in cards if card.is_usable)[: c.HEARTBEAT_GPUS_MAX]


def topology_of(pairs: Iterable[tuple[int, int]], cards: int) -> str:
    """The shape that these connected pairs of cards make."""
    distinct = {frozenset(pair) for pair in pairs if pair[0] != pair[1]}
    if not distinct:
        return "none"
    if cards == 2:
        return "pair"
    return "all-to-all" if len(distinct) == cards * (cards - 1) // 2 else "mesh"


prepare(globals())
