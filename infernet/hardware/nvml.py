"""NVIDIA's library, asked within the worker process: it may hang or crash with its driver.

Not run on a card yet: the tests build a small library that answers in its place (tests/infernet/hardware/nvml_double.c
says how).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec.structs import replace

from infernet.hardware import values
from infernet.hardware.contract import CARDS_MAX, Card
from infernet.hardware.nvidia import part_of
from protocol.records import GpuVendor

_MIG_PARTS_MAX: Final = 16
_ODD_ANSWERS: Final = (AttributeError, OSError, TypeError, ValueError)


def read() -> list[Card]:
    """Every NVIDIA card and every part of one. Raises whatever the library raises when it cannot be asked at all."""
    import pynvml

    nvml = _Nvml(pynvml)
    pynvml.nvmlInit()
    try:
        driver = values.text(nvml.ask(pynvml.nvmlSystemGetDriverVersion))
        cuda = cuda_version(nvml.ask(pynvml.nvmlSystemGetCudaDriverVersion_v2))
        count = min(int(pynvml.nvmlDeviceGetCount()), CARDS_MAX)
        cards = [card for index in range(count) for card in nvml.cards(index, driver)]
        return [replace(card, cuda=cuda) for card in cards]
    finally:
        nvml.ask(pynvml.nvmlShutdown)


def cuda_version(number: Any) -> str | None:
    """The version in the library's number for it: 12040 is 12.4."""
    whole = values.whole(number, 999_999) or 0
    return f"{whole // 1000}.{whole % 1000 // 10}" if whole >= 1000 else None


class _Nvml:
    """The questions; each may fail on its own, since no card answers all of them."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The answer, or None where the card, the driver or this library has none."""
        try:
            return call(*arguments)
        except (self._library.NVMLError, *_ODD_ANSWERS):
            return None

    def cards(self, index: int, driver: str | None) -> Iterator[Card]:
        """The card of this number, or the parts that MIG made of it."""
        library = self._library
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
        except library.NVMLError as error:
            yield self._lost(index, driver, error)
            return
        card = self._card(handle, index, driver)
        mode = self.ask(library.nvmlDeviceGetMigMode, handle)
        # The mode now, and the one after the next reset.
        if not mode or mode[0] != 1:
            yield card
            return
        parts = list(self._parts(handle, card))
        yield from parts
        if not parts:
            yield self._undivided(card)

    def _card(self, handle: Any, index: int, driver: str | None) -> Card:
        library, ask = self._library, self.ask
        memory = ask(library.nvmlDeviceGetMemoryInfo, handle)
        busy = ask(library.nvmlDeviceGetUtilizationRates, handle)
        power_mw = values.number(ask(library.nvmlDeviceGetPowerUsage, handle), 10_000_000)
        address = ask(library.nvmlDeviceGetPciInfo, handle)
        return Card(
            vendor=GpuVendor.NVIDIA,
            index=index,
            model=values.text(ask(library.nvmlDeviceGetName, handle)) or "NVIDIA GPU",
            source="nvml",
            vram_bytes=values.memory(getattr(memory, "total", None)),
            vram_used_bytes=values.used_memory(getattr(memory, "used", None)),
            utilisation_percent=values.percent(getattr(busy, "gpu", None)),
            temperature_c=values.celsius(
                ask(library.nvmlDeviceGetTemperature, handle, library.NVML_TEMPERATURE_GPU),
            ),
            power_w=None if power_mw is None else values.watts(power_mw / 1000),
            driver=driver,
            slot=values.slot(getattr(address, "busId", None)),
            uuid=values.text(ask(library.nvmlDeviceGetUUID, handle)),
        )

    def _parts(self, handle: Any, card: Card) -> Iterator[Card]:
        library, ask = self._library, self.ask
        count = ask(library.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        for number in range(min(int(count), _MIG_PARTS_MAX)):
            part = ask(library.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            if part is None:
                continue
            memory = ask(library.nvmlDeviceGetMemoryInfo, part)
            # `NVIDIA A100-SXM4-80GB MIG 3g.40gb`: the library names the part after its card.
            name = values.text(ask(library.nvmlDeviceGetName, part)) or ""
            profile = name.rpartition("MIG ")[2] if "MIG " in name else "part"
            total = values.memory(getattr(memory, "total", None))
            yield part_of(card, profile, total, values.text(ask(library.nvmlDeviceGetUUID, part)))

    def _undivided(self, card: Card) -> Card:
        trouble = "it is under MIG and has no parts: make some with `nvidia-smi mig -cgi`, or end it with `-mig 0`"
        return Card(
            card.vendor, card.index, card.model, card.source, driver=card.driver, slot=card.slot, trouble=trouble
        )

    def _lost(self, index: int, driver: str | None, error: Exception) -> Card:
        is_lost = getattr(error, "value", None) == self._library.NVML_ERROR_GPU_IS_LOST
        trouble = (
            "it has fallen off the PCI bus: restart the machine, and look at its power supply and seat"
            if is_lost
            else "its driver cannot talk to it: restart the machine"
        )
        return Card(GpuVendor.NVIDIA, index, "NVIDIA GPU", "nvml", driver=driver, trouble=trouble)
