"""infernet/hardware/amdsmi.py: a stand-in in the place of AMD's module, with the names that AMD documents."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.hardware import amdsmi, worker
from infernet.hardware.contract import Card, announced
from protocol.records import GpuVendor

ANSWERS: dict[str, Any] = {
    "amdsmi_get_gpu_memory_total": 206141652992,
    "amdsmi_get_gpu_memory_usage": 296747008,
    "amdsmi_get_gpu_activity": {"gfx_activity": 12, "umc_activity": 0, "mm_activity": "N/A"},
    "amdsmi_get_power_info": {"current_socket_power": 141, "average_socket_power": "N/A", "power_limit": 750},
    "amdsmi_get_gpu_asic_info": {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002"},
    "amdsmi_get_gpu_driver_info": {"driver_name": "amdgpu", "driver_version": "6.8.5"},
    "amdsmi_get_gpu_device_bdf": "0000:c1:00.0",
    "amdsmi_get_gpu_device_uuid": "5aff74a1-0000-1000-800b-000000000000",
    "amdsmi_get_temp_metric": 47,
}


class AmdSmiException(Exception):
    """The stand-in's error."""


def stand_in(answers: dict[str, Any], handles: int = 1) -> ModuleType:
    """A module that answers so for every handle; what is no answer raises."""
    module: Any = ModuleType("amdsmi")
    module.AmdSmiException = AmdSmiException
    module.AmdSmiMemoryType = SimpleNamespace(VRAM=0)
    module.AmdSmiTemperatureType = SimpleNamespace(EDGE=0)
    module.AmdSmiTemperatureMetric = SimpleNamespace(CURRENT=0)
    module.amdsmi_init = lambda: None
    module.amdsmi_shut_down = lambda: None
    module.amdsmi_get_processor_handles = lambda: [object() for _ in range(handles)]

    def answering(name: str) -> Any:
        def answer(*_arguments: Any) -> Any:
            if name not in answers:
                raise AmdSmiException(name)
            return answers[name]

        return answer

    for name in ANSWERS:
        setattr(module, name, answering(name))
    result: ModuleType = module
    return result


def test_a_card_is_told_of_with_everything_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", stand_in(ANSWERS))
    assert amdsmi.read() == [
        Card(
            vendor=GpuVendor.AMD,
            index=0,
            model="AMD Instinct MI300X",
            source="amdsmi",
            vram_bytes=206141652992,
            vram_used_bytes=296747008,
            utilisation_percent=12,
            temperature_c=47,
            power_w=141.0,
            driver="6.8.5",
            slot="0000:c1:00.0",
            uuid="5aff74a1-0000-1000-800b-000000000000",
        )
    ]


def test_a_card_that_answers_nothing_is_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", stand_in({}, handles=2))
    assert amdsmi.read() == [Card(GpuVendor.AMD, index, "AMD GPU", "amdsmi") for index in range(2)]


def test_what_is_built_into_a_processor_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", stand_in(ANSWERS | {"amdsmi_get_gpu_memory_total": 512 << 20}))
    assert amdsmi.read() == []


def test_a_module_that_cannot_be_asked_fails_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: Any = stand_in(ANSWERS)
    broken.amdsmi_init = lambda: 1 / 0
    monkeypatch.setitem(sys.modules, "amdsmi", broken)
    with pytest.raises(ZeroDivisionError):
        amdsmi.read()


@given(
    st.dictionaries(
        st.sampled_from(sorted(ANSWERS)),
        st.none()
        | st.integers()
        | st.text(max_size=10)
        | st.dictionaries(
            st.sampled_from(["market_name", "gfx_activity", "current_socket_power"]), st.integers() | st.text()
        ),
    )
)
def test_whatever_the_module_answers_there_is_a_list(answers: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "amdsmi", stand_in(answers))
        for card in amdsmi.read():
            announced(card)


@given(st.binary(max_size=300))
def test_whatever_a_worker_prints_is_cards_or_nothing(output: bytes) -> None:
    cards = worker.parse(output)
    assert cards is None or all(isinstance(card, Card) for card in cards)
