"""AMD's library, asked within the worker process, where somebody has installed it with ROCm.

Not run on a card yet: the tests put a module in its place. Names are those of its documentation from ROCm 6 on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infernet.hardware import values
from infernet.hardware.amd import is_card
from infernet.hardware.contract import CARDS_MAX, Card
from protocol.records import GpuVendor


def read() -> list[Card]:
    """Every AMD card. Raises whatever the library raises when it cannot be asked at all."""
    import amdsmi

    amdsmi.amdsmi_init()
    try:
        handles = list(amdsmi.amdsmi_get_processor_handles())[:CARDS_MAX]
        cards = [_card(amdsmi, handle, index) for index, handle in enumerate(handles)]
    finally:
        _ask(amdsmi, amdsmi.amdsmi_shut_down)
    return [card for card in cards if is_card(card)]


def _ask(library: Any, call: Callable[..., Any] | None, *arguments: Any) -> Any:
    """The answer, or None where the card, the driver or this version has none."""
    if call is None:
        return None
    try:
        return call(*arguments)
    except (library.AmdSmiException, AttributeError, OSError, TypeError, ValueError):
        return None


def _card(library: Any, handle: Any, index: int) -> Card:
    def ask(name: str, *arguments: Any) -> Any:
        return _ask(library, getattr(library, name, None), handle, *arguments)

    def constant(kind: str, name: str) -> Any:
        return getattr(getattr(library, kind, None), name, None)

    vram = constant("AmdSmiMemoryType", "VRAM")
    edge, now = constant("AmdSmiTemperatureType", "EDGE"), constant("AmdSmiTemperatureMetric", "CURRENT")
    power = ask("amdsmi_get_power_info")
    names = (("amdsmi_get_gpu_asic_info", "market_name"), ("amdsmi_get_gpu_board_info", "product_name"))
    name = next((name for call, key in names if (name := values.text(values.entry(ask(call), key)))), None)
    return Card(
        vendor=GpuVendor.AMD,
        index=index,
        model=name or "AMD GPU",
        source="amdsmi",
        vram_bytes=values.memory(ask("amdsmi_get_gpu_memory_total", vram)),
        vram_used_bytes=values.used_memory(ask("amdsmi_get_gpu_memory_usage", vram)),
        utilisation_percent=values.percent(values.entry(ask("amdsmi_get_gpu_activity"), "gfx_activity")),
        temperature_c=values.celsius(ask("amdsmi_get_temp_metric", edge, now)),
        power_w=next(
            (
                watts
                for key in ("current_socket_power", "average_socket_power", "socket_power")
                if (watts := values.watts(values.entry(power, key)))
            ),
            None,
        ),
        driver=values.text(values.entry(ask("amdsmi_get_gpu_driver_info"), "driver_version")),
        slot=values.slot(ask("amdsmi_get_gpu_device_bdf")),
        uuid=values.text(ask("amdsmi_get_gpu_device_uuid")),
    )
