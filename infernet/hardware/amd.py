"""AMD's cards: through AMD's library (amdsmi), through `rocm-smi`, or, without either, as the kernel shows them.

Not run on a card yet. `rocm-smi` changed its names more than once; those that are known are tried in turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from infernet.hardware import values
from infernet.hardware.contract import CARDS_MAX, Card, Fabric, topology_of
from infernet.hardware.machine import Machine
from infernet.hardware.pci import Adapter
from protocol.records import GpuVendor

TOOL: Final = (
    "rocm-smi",
    "--showproductname",
    "--showmeminfo",
    "vram",
    "--showuse",
    "--showtemp",
    "--showpower",
    "--showdriverversion",
    "--showbus",
    "--json",
)
TOPOLOGY: Final = ("rocm-smi", "--showtopotype", "--json")

# What a processor's own Radeon is given of the main memory is less, and no card of today has so little.
_CARD_BYTES_MIN: Final = 2 << 30
_TOOL_CARD: Final = re.compile(r"card(\d{1,4})")
_TOOL_LINK: Final = re.compile(r".*between DRM devices (\d{1,4}) and (\d{1,4})")
_HEXADECIMAL: Final = re.compile(r"0x[0-9a-f]+", re.IGNORECASE)


def is_card(card: Card) -> bool:
    """Whether this is a card, and not what a processor has built in to draw a picture."""
    return card.vram_bytes is None or card.vram_bytes >= _CARD_BYTES_MIN


def parse_tool(output: bytes | None) -> list[Card]:
    """The cards in the answer to `TOOL`."""
    answer = values.json_object(output)
    driver = values.text(values.entry(answer.get("system"), "Driver version"))
    found = {int(match[1]): told for key, told in answer.items() if (match := _TOOL_CARD.fullmatch(key))}
    cards = [_from_tool(index, found[index], driver) for index in sorted(found) if isinstance(found[index], dict)]
    return [card for card in cards if is_card(card)][:CARDS_MAX]


def _from_tool(index: int, told: dict[str, Any], driver: str | None) -> Card:
    names = (values.text(told.get(key)) for key in ("Card Series", "Card series", "Card Model", "Card model"))
    # Some versions give numbers in place of names.
    name = next((name for name in names if name and not _HEXADECIMAL.fullmatch(name)), None)
    return Card(
        vendor=GpuVendor.AMD,
        index=index,
        model=name or "AMD GPU",
        source="rocm-smi",
        vram_bytes=values.memory(told.get("VRAM Total Memory (B)")),
        vram_used_bytes=values.used_memory(told.get("VRAM Total Used Memory (B)")),
        utilisation_percent=values.percent(told.get("GPU use (%)")),
        temperature_c=_first(
            values.celsius, told, "Temperature (Sensor edge) (C)", "Temperature (Sensor junction) (C)"
        ),
        power_w=_first(
            values.watts,
            told,
            "Average Graphics Package Power (W)",
            "Current Socket Graphics Package Power (W)",
            "Average Power (W)",
        ),
        driver=driver,
        slot=values.slot(told.get("PCI Bus")),
    )


def _first(read: Any, told: dict[str, Any], *keys: str) -> Any:
    return next((value for key in keys if (value := read(told.get(key))) is not None), None)


def from_kernel(machine: Machine, adapter: Adapter, index: int) -> Card | None:
    """A card as its kernel driver shows it in sysfs; None where no such driver runs it."""
    path = adapter.path
    if adapter.driver != "amdgpu":
        return None
    total = values.memory(machine.read(path / "mem_info_vram_total"))
    if total is None:
        return None
    sensors = next(iter(machine.list(path / "hwmon")), None)
    temperature, power = (
        values.number(machine.read(sensors / name), 1e9) if sensors is not None else None
        for name in ("temp1_input", "power1_average")
    )
    return Card(
        vendor=GpuVendor.AMD,
        index=index,
        model=adapter.name or values.text(machine.read(path / "product_name")) or adapter.model,
        source="sysfs",
        vram_bytes=total,
        vram_used_bytes=values.used_memory(machine.read(path / "mem_info_vram_used")),
        utilisation_percent=values.percent(machine.read(path / "gpu_busy_percent")),
        # Thousandths of a degree, millionths of a watt.
        temperature_c=None if temperature is None else values.celsius(temperature / 1e3),
        power_w=None if power is None else values.watts(power / 1e6),
        driver=adapter.driver,
        slot=adapter.slot,
    )


def parse_topology(output: bytes | None, cards: int) -> Fabric:
    """How xGMI connects the cards, from `rocm-smi --showtopotype --json`."""
    told = values.entry(values.json_object(output), "system")
    pairs = list(_links(told.items())) if isinstance(told, dict) else []
    return Fabric(bool(pairs), topology_of(pairs, cards), len(pairs))


def _links(told: Iterable[tuple[str, Any]]) -> Iterable[tuple[int, int]]:
    for key, kind in told:
        if kind == "XGMI" and len(key) < 200 and (match := _TOOL_LINK.fullmatch(key)):
            yield int(match[1]), int(match[2])
