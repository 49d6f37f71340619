"""The display controllers and accelerators on the PCI bus, as sysfs shows them, and which of them are GPUs.

Many are not: what a server's management chip shows (ASPEED, Matrox), what a virtual machine is given (virtio, QXL,
VMware, Bochs, Cirrus, Hyper-V), what is built into a processor (Intel UHD, small Radeons). They draw a picture, and
run no model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infernet.hardware import values
from infernet.hardware.contract import Card
from infernet.hardware.machine import Machine
from protocol.records import GpuVendor

NVIDIA: Final = 0x10DE
AMD: Final = 0x1002
INTEL: Final = 0x8086
VENDORS: Final = {NVIDIA: GpuVendor.NVIDIA, AMD: GpuVendor.AMD, INTEL: GpuVendor.INTEL}

_DISPLAY: Final = 0x03
# AMD's Instinct MI300 and later are of this class.
_ACCELERATOR: Final = 0x12
_DEVICES_MAX: Final = 4096
# Intel's cards, by device number; everything else that Intel makes for displays is part of a processor.
_INTEL_CARDS: Final = (
    range(0x0BD0, 0x0BE6),  # Data Center GPU Max
    range(0x4905, 0x490A),  # Iris Xe MAX (DG1)
    range(0x5690, 0x56C3),  # Arc A, Arc Pro A, Data Center GPU Flex
    range(0xE200, 0xE300),  # Arc B, Arc Pro B
)
# Drivers that keep a card for a virtual machine.
_LENT: Final = ("vfio-pci", "xen-pciback", "pciback")
# What a bus gives for a card that does not answer.
_SILENCE: Final = b"\xff\xff\xff\xff"


@dataclass(frozen=True)
class Adapter:
    """A display controller or accelerator. `name` is udev's, or empty."""

    slot: str
    path: Path
    vendor_id: int
    device_id: int
    device_class: int
    driver: str
    name: str

    @property
    def is_gpu(self) -> bool:
        """Whether this may be a card that runs models. Small Radeons are told apart later, by their memory."""
        if self.vendor_id == INTEL:
            return any(self.device_id in numbers for numbers in _INTEL_CARDS)
        if self.vendor_id == AMD:
            return self.device_class in (_DISPLAY, _ACCELERATOR)
        return self.vendor_id == NVIDIA and self.device_class == _DISPLAY

    @property
    def model(self) -> str:
        """What it is called, by its numbers if nothing better is known."""
        return self.name or f"PCI device {self.vendor_id:04x}:{self.device_id:04x}"


def adapters(machine: Machine, *, named: bool = True) -> list[Adapter]:
    """All display controllers and accelerators, GPUs or not, by address; udev is asked for names unless told not to."""
    if machine.platform != "linux":
        return []
    names = machine.pci_names() if named else {}
    folder = machine.root / "sys/bus/pci/devices"
    slots = sorted(names) or [path.name for path in machine.list(folder)]
    read = (_adapter(machine, folder / slot, names.get(slot, "")) for slot in slots[:_DEVICES_MAX])
    return [adapter for adapter in read if adapter is not None]


def _adapter(machine: Machine, path: Path, name: str) -> Adapter | None:
    slot = values.slot(path.name)
    device_class = _hexadecimal(machine.read(path / "class"))
    if slot is None or device_class is None or device_class >> 16 not in (_DISPLAY, _ACCELERATOR):
        return None
    vendor_id, device_id = (_hexadecimal(machine.read(path / field)) for field in ("vendor", "device"))
    if vendor_id is None or device_id is None:
        return None
    return Adapter(slot, path, vendor_id, device_id, device_class >> 16, _driver(path), name)


def _hexadecimal(text: str) -> int | None:
    try:
        return int(text, 16) if len(text) <= 16 else None
    except ValueError:
        return None


def _driver(path: Path) -> str:
    try:
        return values.text(os.readlink(path / "driver").rpartition("/")[2]) or ""
    except OSError:
        return ""


def answers(machine: Machine, adapter: Adapter) -> bool:
    """Whether a card still answers on the bus: one that has fallen off stays in every list, and gives ones only.

    A card that sleeps is not asked, since that would wake it.
    """
    if machine.read(adapter.path / "power_state") == "D3cold":
        return True
    try:
        with (adapter.path / "config").open("rb", buffering=0) as file:
            return file.read(4) != _SILENCE
    except OSError:
        # Hidden, as in some containers, or just taken out, as the next look at the list shows.
        return True


SILENT: Final = "it does not answer on the PCI bus: restart the machine, and look at its power supply and seat"


def unexplained(machine: Machine, adapter: Adapter, index: int) -> Card:
    """A GPU that is plugged in, and of which no driver told anything."""
    maker = VENDORS[adapter.vendor_id].name
    if not answers(machine, adapter):
        trouble = SILENT
    elif adapter.driver in _LENT:
        trouble = f"it is kept for virtual machines ({adapter.driver})"
    elif not adapter.driver:
        trouble = f"no driver is loaded for it: install {maker}'s"
    else:
        trouble = (
            f"its driver ({adapter.driver}) tells nothing about it: look whether {maker}'s tools work, "
            "and, in a container, whether it was given this card"
        )
    return Card(
        vendor=VENDORS[adapter.vendor_id],
        index=index,
        model=adapter.model,
        source="pci",
        driver=adapter.driver or None,
        slot=adapter.slot,
        trouble=trouble,
    )
