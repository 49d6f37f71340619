"""All cards of this machine, each told of once, by the best source that knows it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from infernet.hardware import amd, apple, intel, nvidia, pci, values, worker
from infernet.hardware.contract import CARDS_MAX, Card, Interconnects
from infernet.hardware.machine import THIS_MACHINE, Machine
from infernet.hardware.pci import Adapter
from infernet.hardware.visible import visible

# Where NVIDIA's driver is found without a card on the PCI bus of its own: in a container that hides sysfs, on boards
# with the GPU in the chip, and in WSL.
_NVIDIA_DEVICES: Final = ("/dev/nvidiactl", "/dev/dxg")
_AMAZON: Final = "0x1d0f"


def find_cards(machine: Machine = THIS_MACHINE) -> list[Card]:
    """The GPUs of this machine, those that cannot be used last. Waits for tools; never raises."""
    if machine.platform == "darwin":
        return apple.cards(machine)
    adapters = [adapter for adapter in pci.adapters(machine) if adapter.is_gpu]
    cards = [
        *_nvidia(machine, _of(adapters, pci.NVIDIA)),
        *_amd(machine, _of(adapters, pci.AMD)),
        *intel.cards(machine, _of(adapters, pci.INTEL)),
    ]
    # Some drivers go on telling what they knew of a card that has fallen off.
    silent = {adapter.slot for adapter in adapters if not pci.answers(machine, adapter)}
    cards = [replace(card, trouble=card.trouble or pci.SILENT) if card.slot in silent else card for card in cards]
    cards += _unexplained(machine, adapters, cards)
    cards = visible(cards, machine.environ)
    cards.sort(key=lambda card: not card.is_usable)
    return cards[:CARDS_MAX]


def find_interconnects(cards: Iterable[Card], machine: Machine = THIS_MACHINE) -> Interconnects:
    """What connects several cards, and this machine with others. Waits for tools; never raises."""
    sources = [card.source for card in cards]
    nvlink = xgmi = Interconnects().nvlink
    if sum(source in ("nvml", "nvidia-smi") for source in sources) > 1:
        nvlink = nvidia.parse_topology(machine.output_of(nvidia.TOPOLOGY))
    if (count := sum(source in ("amdsmi", "rocm-smi") for source in sources)) > 1:
        xgmi = amd.parse_topology(machine.output_of(amd.TOPOLOGY), count)
    return _with_adapters(machine, Interconnects(nvlink, xgmi))


def _of(adapters: list[Adapter], vendor: int) -> list[Adapter]:
    return [adapter for adapter in adapters if adapter.vendor_id == vendor]


def _nvidia(machine: Machine, adapters: list[Adapter]) -> list[Card]:
    if not adapters and not any(map(machine.exists, _NVIDIA_DEVICES)):
        return []
    told = worker.parse(machine.ask_library("nvml")) or nvidia.cards_from_tool(machine)
    claimed = {card.slot for card in told}
    return [_named(card, [a for a in adapters if a.slot not in claimed or a.slot == card.slot]) for card in told]


def _amd(machine: Machine, adapters: list[Adapter]) -> list[Card]:
    if not adapters:
        return []
    told = worker.parse(machine.ask_library("amdsmi")) or amd.parse_tool(machine.output_of(amd.TOOL))
    if told:
        return told
    read = (amd.from_kernel(machine, adapter, index) for index, adapter in enumerate(adapters))
    return [card for card in read if card is not None and amd.is_card(card)]


def _named(card: Card, adapters: list[Adapter]) -> Card:
    """A card that has fallen silent under the name that the bus has for it, where only one can be meant."""
    meant = [adapter for adapter in adapters if card.slot in (None, adapter.slot)]
    if card.is_usable or len(meant) != 1:
        return card
    return replace(card, model=meant[0].model, slot=meant[0].slot)


def _unexplained(machine: Machine, adapters: list[Adapter], cards: list[Card]) -> list[Card]:
    """GPUs on the bus that nobody told of. Where somebody told without addresses, nothing can be said."""
    found: list[Card] = []
    for adapter in adapters:
        told = [card for card in cards if card.vendor is pci.VENDORS[adapter.vendor_id]]
        if any(card.slot in (None, adapter.slot) for card in told) or _is_small_radeon(machine, adapter):
            continue
        others = [card for card in found if card.vendor is pci.VENDORS[adapter.vendor_id]]
        found.append(pci.unexplained(machine, adapter, len(told) + len(others)))
    return found


def _is_small_radeon(machine: Machine, adapter: Adapter) -> bool:
    """Whether this is known to be what a processor has built in."""
    card = amd.from_kernel(machine, adapter, 0) if adapter.vendor_id == pci.AMD else None
    return card is not None and not amd.is_card(card)


def _with_adapters(machine: Machine, cards: Interconnects) -> Interconnects:
    """The same with what leads to other machines: how many ports are up (`4: ACTIVE`), and Amazon's adapters."""
    adapters = machine.list(machine.root / "sys/class/infiniband")[:64]
    # Amazon's are listed there, too, and are no InfiniBand.
    amazons = [adapter for adapter in adapters if machine.read(adapter / "device/vendor").lower() == _AMAZON]
    ports: list[Path] = []
    for adapter in adapters:
        ports += machine.list(adapter / "ports")[:16] if adapter not in amazons else []
    states = (values.text(machine.read(port / "state")) or "" for port in ports)
    up = sum("ACTIVE" in state for state in states)
    return replace(cards, infiniband_ports=up, efa_adapters=len(amazons), rdma_capable=bool(adapters))
