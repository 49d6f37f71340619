"""GPUs of Macs, from `system_profiler`: Apple's own, and the AMD cards of older machines.

Not run on a Mac yet. Apple's chips share the machine's memory with the processor, so no amount of video memory is told,
and none is made up: their memory tier stays unknown.
"""

from __future__ import annotations

import re
from typing import Any, Final

from infernet.hardware import values
from infernet.hardware.contract import CARDS_MAX, Card
from infernet.hardware.machine import Machine
from protocol.records import GpuVendor

TOOL: Final = ("system_profiler", "SPDisplaysDataType", "-json")
_VRAM: Final = re.compile(r"(\d{1,6}) (GB|MB)")
_UNITS: Final = {"MB": 1 << 20, "GB": 1 << 30}


def cards(machine: Machine) -> list[Card]:
    """What this Mac has."""
    return parse_tool(machine.output_of(TOOL))


def parse_tool(output: bytes | None) -> list[Card]:
    """The GPUs in the tool's answer; Intel's are part of the processor, and none."""
    listed = values.json_object(output).get("SPDisplaysDataType")
    found = [_card(index, told) for index, told in enumerate(listed if isinstance(listed, list) else [])]
    return [card for card in found if card is not None][:CARDS_MAX]


def _card(index: int, told: Any) -> Card | None:
    model = values.text(values.entry(told, "sppci_model", "_name"))
    maker = values.text(values.entry(told, "spdisplays_vendor")) or ""
    vendor = _vendor(f"{maker} {model}".lower())
    if model is None or vendor is None:
        return None
    return Card(
        vendor=vendor,
        index=index,
        model=model,
        source="system_profiler",
        # Of Apple's own it would be a share of the main memory, if anything.
        vram_bytes=None if vendor is GpuVendor.APPLE else _vram(values.entry(told, "spdisplays_vram")),
        driver="Metal" if values.entry(told, "spdisplays_mtlgpufamilysupport", "spdisplays_metal") else None,
    )


def _vendor(words: str) -> GpuVendor | None:
    if "apple" in words and "intel" not in words:
        return GpuVendor.APPLE
    if "amd" in words or "radeon" in words:
        return GpuVendor.AMD
    return None


def _vram(value: Any) -> int | None:
    match = _VRAM.fullmatch(value) if isinstance(value, str) else None
    return values.memory(match[1], _UNITS[match[2]]) if match else None
