"""infernet/hardware/amd.py: what `rocm-smi` prints, and what the kernel shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.hardware import amd, pci
from infernet.hardware.contract import Card, Fabric, announced
from protocol.records import GpuVendor, VramTier
from tests import helpers_hardware as recorded
from tests.helpers_hardware import FakeMachine, as_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def test_a_card_as_rocm_smi_tells_of_it() -> None:
    (card,) = amd.parse_tool(recorded.ROCM_SMI)
    assert (card.model, card.vram_bytes, card.vram_used_bytes) == ("Radeon RX 7900 XT", 21458059264, 27856896)
    assert (card.utilisation_percent, card.power_w, card.slot) == (0, None, None)
    assert announced(card).vram_tier is VramTier.FROM_16


def test_older_versions_spell_it_differently() -> None:
    (card,) = amd.parse_tool(recorded.ROCM_SMI_OLD)
    assert card == Card(
        vendor=GpuVendor.AMD,
        index=0,
        model="Instinct MI210",
        source="rocm-smi",
        vram_bytes=68702699520,
        vram_used_bytes=10960896,
        temperature_c=37,
        power_w=41.0,
        driver="6.3.6",
        slot="0000:e7:00.0",
    )
    assert announced(card).vram_tier is VramTier.FROM_48


def test_what_is_built_into_a_processor_is_no_card_and_warnings_before_the_answer_do_not_matter() -> None:
    (card,) = amd.parse_tool(recorded.ROCM_SMI_TWO)
    assert card.model == "Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]"


def test_cards_are_in_the_order_of_their_numbers() -> None:
    told = {f"card{number}": {"Card Series": f"Card {number}"} for number in (10, 2, 0)}
    assert [card.index for card in amd.parse_tool(as_json(told))] == [0, 2, 10]


def test_a_number_is_no_name() -> None:
    assert amd.parse_tool(as_json({"card0": {"Card series": "0x744c", "Card model": "0x744c"}}))[0].model == "AMD GPU"


def test_without_tools_the_kernel_tells(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path)
    fake.plug(
        "0000:03:00.0",
        pci.AMD,
        0x744C,
        driver="amdgpu",
        files={
            "mem_info_vram_total": "25753026560\n",
            "mem_info_vram_used": "24696061952\n",
            "gpu_busy_percent": "99\n",
            "hwmon/hwmon3/temp1_input": "61000\n",
            "hwmon/hwmon3/power1_average": "291500000\n",
        },
    )
    fake.names = {"0000:03:00.0": "Navi 31 [Radeon RX 7900 XT/7900 XTX]"}
    (adapter,) = pci.adapters(fake.machine)
    assert amd.from_kernel(fake.machine, adapter, 0) == Card(
        vendor=GpuVendor.AMD,
        index=0,
        model="Navi 31 [Radeon RX 7900 XT/7900 XTX]",
        source="sysfs",
        vram_bytes=25753026560,
        vram_used_bytes=24696061952,
        utilisation_percent=99,
        temperature_c=61,
        power_w=291.5,
        driver="amdgpu",
        slot="0000:03:00.0",
    )


@pytest.mark.parametrize(
    ("output", "cards", "fabric"),
    [
        (recorded.ROCM_TOPOLOGY, 3, Fabric(True, "mesh", 2)),
        (b'{"system": {"(Topology) Link type between DRM devices 0 and 1": "XGMI"}}', 2, Fabric(True, "pair", 1)),
        (b'{"system": []}', 2, Fabric()),
        (None, 2, Fabric()),
    ],
)
def test_xgmi_is_counted(output: bytes | None, cards: int, fabric: Fabric) -> None:
    assert amd.parse_topology(output, cards) == fabric


@given(st.binary(max_size=500) | st.dictionaries(st.sampled_from(["card0", "card1", "system"]), JSON).map(as_json))
def test_whatever_a_tool_prints_gives_cards_and_nothing_else(output: bytes) -> None:
    for card in amd.parse_tool(output):
        announced(card)
    assert isinstance(amd.parse_topology(output, 2), Fabric)


@given(
    st.dictionaries(
        st.sampled_from(
            ["VRAM Total Memory (B)", "Card Series", "GPU use (%)", "PCI Bus", "Temperature (Sensor edge) (C)"]
        ),
        JSON,
    )
)
def test_whatever_stands_in_a_field_is_a_value_or_none(told: dict[str, object]) -> None:
    for card in amd.parse_tool(as_json({"card0": told})):
        assert card.vram_bytes is None or card.vram_bytes > 0
        assert announced(card).vendor is GpuVendor.AMD


def test_a_deep_answer_is_none() -> None:
    assert amd.parse_tool(b'{"card0":' + b"[" * 100_000) == []
