"""NVIDIA's cards: through the driver's library (NVML), or through `nvidia-smi` where that cannot be asked.

Not run on a card yet. The columns are those that `nvidia-smi --help-query-gpu` documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from infernet.hardware import values
from infernet.hardware.contract import CARDS_MAX, Card, Fabric, topology_of
from infernet.hardware.machine import Machine
from protocol.records import GpuVendor

_MIB: Final = 1 << 20
_COLUMNS: Final = (
    "index",
    "name",
    "memory.total",
    "memory.used",
    "utilization.gpu",
    "temperature.gpu",
    "power.draw",
    "driver_version",
    "uuid",
    "pci.bus_id",
)
QUERY: Final = ("nvidia-smi", f"--query-gpu={','.join(_COLUMNS)}", "--format=csv,noheader,nounits")
LIST: Final = ("nvidia-smi", "-L")
# Only its heading, and that of older ones, says which CUDA the driver runs.
HEADING: Final = ("nvidia-smi",)
TOPOLOGY: Final = ("nvidia-smi", "topo", "-m")

# `CUDA Version: 12.4`; `CUDA UMD Version` where the parts of the driver have versions of their own.
_HEADING_CUDA: Final = re.compile(r"\bCUDA (?:UMD )?Version\s*:\s*(\d{1,3}\.\d{1,3})\b")
_LIST_GPU: Final = re.compile(r"GPU\s+(\d{1,4}):\s.*")
# `  MIG 3g.40gb     Device  0: (UUID: MIG-5f1...)`; the size is the nominal one, in gibibytes.
_LIST_PART: Final = re.compile(
    r"\s+MIG\s+(\S{0,16}?(\d{1,4})gb\S{0,16})\s+Device\s+\d{1,3}:\s+\(UUID:\s*([^)\s]{1,80})\)", re.IGNORECASE
)
_TOPOLOGY_LINK: Final = re.compile(r"NV(\d{1,3})")
_TOPOLOGY_CARD: Final = re.compile(r"GPU(\d{1,4})")


def cards_from_tool(machine: Machine) -> list[Card]:
    """What `nvidia-smi` tells, the parts of cards under MIG in place of the cards."""
    whole = parse_query(machine.output_of(QUERY))
    if not whole:
        return []
    cuda = parse_heading(machine.output_of(HEADING))
    return with_parts([replace(card, cuda=cuda) for card in whole], machine.output_of(LIST))


def parse_heading(output: bytes | None) -> str | None:
    """The newest CUDA that the driver runs, as `nvidia-smi` alone says it above its table."""
    found = (match for line in _lines(output) if (match := _HEADING_CUDA.search(line)))
    return next((match[1] for match in found), None)


def parse_query(output: bytes | None) -> list[Card]:
    """The cards in the answer to `QUERY`. Lines that are none, such as complaints, are left out."""
    cards = []
    for line in _lines(output):
        fields = [field.strip() for field in line.split(",")]
        # A name has no comma; a line that was cut, or a complaint, has fewer fields.
        if len(fields) != len(_COLUMNS) or (index := values.whole(fields[0], 9999)) is None:
            continue
        name = values.text(fields[1])
        cards.append(
            Card(
                vendor=GpuVendor.NVIDIA,
                index=index,
                model=name or "NVIDIA GPU",
                source="nvidia-smi",
                vram_bytes=values.memory(fields[2], _MIB),
                vram_used_bytes=values.used_memory(fields[3], _MIB),
                utilisation_percent=values.percent(fields[4]),
                temperature_c=values.celsius(fields[5]),
                power_w=values.watts(fields[6]),
                driver=values.text(fields[7]),
                uuid=values.text(fields[8]),
                slot=values.slot(fields[9]),
                # One that needs a reset, or has fallen off the bus, has no name any more.
                trouble="" if name is not None else "its driver cannot talk to it: restart the machine",
            )
        )
    return cards[:CARDS_MAX]


def with_parts(cards: list[Card], listing: bytes | None) -> list[Card]:
    """The same cards, with those that MIG has divided replaced by their parts."""
    parts: dict[int, list[Card]] = {}
    by_index = {card.index: card for card in cards}
    whole: Card | None = None
    for line in _lines(listing):
        if gpu := _LIST_GPU.fullmatch(line):
            whole = by_index.get(int(gpu[1]))
        elif whole is not None and (part := _LIST_PART.fullmatch(line)):
            found = parts.setdefault(whole.index, [])
            found.append(part_of(whole, part[1], values.memory(part[2], 1 << 30), part[3]))
    told = [part for card in cards for part in parts.get(card.index, [card])]
    return told[:CARDS_MAX]


def part_of(card: Card, profile: str, vram_bytes: int | None, uuid: str | None) -> Card:
    """A part of a card under MIG, as the profile (`3g.40gb`) cut it; what is measured of the whole is not its own."""
    return Card(
        vendor=card.vendor,
        index=card.index,
        model=values.text(f"{card.model} MIG {profile}") or card.model,
        source=card.source,
        vram_bytes=vram_bytes,
        driver=card.driver,
        cuda=card.cuda,
        slot=card.slot,
        uuid=uuid,
        trouble=card.trouble,
    )


def parse_topology(output: bytes | None) -> Fabric:
    """How NVLink connects the cards, from `nvidia-smi topo -m`: `NV4` in a cell stands for four links."""
    pairs: list[tuple[int, int]] = []
    links = 0
    cards: list[int] = []
    for line in _lines(output):
        # With colours in newer versions.
        cells = re.sub(r"\x1b\[[0-9;]*m", "", line).split()
        if not cards:
            # The heading names the columns; those of the cards come first.
            cards = [int(cell[1]) for cell in map(_TOPOLOGY_CARD.fullmatch, cells) if cell][:CARDS_MAX]
            continue
        row = _TOPOLOGY_CARD.fullmatch(cells[0]) if cells else None
        if row is None:
            continue
        for column, cell in zip(cards, cells[1:], strict=False):
            # Each pair stands in the table twice.
            if column > int(row[1]) and (link := _TOPOLOGY_LINK.fullmatch(cell)):
                pairs.append((int(row[1]), column))
                links += int(link[1])
    return Fabric(bool(pairs), topology_of(pairs, len(cards)), links)


def _lines(output: bytes | None) -> Iterator[str]:
    """Lines of a tool's answer, as many and as long as such answers are."""
    for line in (output or b"").decode("utf-8", "replace").split("\n")[: 8 * CARDS_MAX]:
        yield line.rstrip("\r")[:4096]
