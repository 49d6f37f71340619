"""Intel's cards: through `xpu-smi`, or as the kernel's driver shows them, which does not tell of their memory.

Not run on a card yet. With ECC on, these cards report an eighth less memory, and are in the tier of what they report.
"""

from __future__ import annotations

from typing import Any, Final

from infernet.hardware import values
from infernet.hardware.contract import Card
from infernet.hardware.machine import Machine
from infernet.hardware.pci import Adapter
from protocol.records import GpuVendor

LIST: Final = ("xpu-smi", "discovery", "-j")
_DRIVERS: Final = ("i915", "xe")


def details(number: int) -> tuple[str, ...]:
    """The command that tells more of one device."""
    return ("xpu-smi", "discovery", "-d", str(number), "-j")


def cards(machine: Machine, adapters: list[Adapter]) -> list[Card]:
    """A card for each of these adapters that a driver runs, with what the tool tells about it."""
    driven = [adapter for adapter in adapters if adapter.driver in _DRIVERS]
    told = _told(machine) if driven else {}
    return [_card(adapter, index, told.get(adapter.slot, {})) for index, adapter in enumerate(driven)]


def _told(machine: Machine) -> dict[str, dict[str, Any]]:
    """What the tool tells of each device, by its address."""
    listed = values.json_object(machine.output_of(LIST)).get("device_list")
    told: dict[str, dict[str, Any]] = {}
    # Each takes a call of its own, and there are at most a few.
    for device in (listed if isinstance(listed, list) else [])[:8]:
        slot = values.slot(values.entry(device, "pci_bdf_address"))
        number = values.entry(device, "device_id")
        if slot is not None and type(number) is int and 0 <= number < 1024:
            told[slot] = device | values.json_object(machine.output_of(details(number)))
    return told


def _card(adapter: Adapter, index: int, told: dict[str, Any]) -> Card:
    return Card(
        vendor=GpuVendor.INTEL,
        index=index,
        model=values.text(told.get("device_name")) or adapter.model,
        source="xpu-smi" if told else "sysfs",
        vram_bytes=values.memory(told.get("memory_physical_size_byte")),
        driver=values.text(told.get("driver_version")) or adapter.driver,
        slot=adapter.slot,
        uuid=values.text(told.get("uuid")),
    )
