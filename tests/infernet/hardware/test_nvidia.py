"""infernet/hardware/nvidia.py: what `nvidia-smi` prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infernet.hardware import nvidia
from infernet.hardware.contract import CARDS_MAX, Card, Fabric, announced
from protocol.records import GpuVendor, VramTier
from tests import helpers_hardware as recorded
from tests.helpers_hardware import FakeMachine

MIB = 1 << 20


def test_a_card_is_told_of_with_everything_that_is_known() -> None:
    first, second = nvidia.parse_query(recorded.NVIDIA_SMI)
    assert first == Card(
        vendor=GpuVendor.NVIDIA,
        index=0,
        model="NVIDIA GeForce RTX 4090",
        source="nvidia-smi",
        vram_bytes=24564 * MIB,
        vram_used_bytes=1021 * MIB,
        utilisation_percent=37,
        temperature_c=56,
        power_w=228.8,
        driver="550.54.14",
        slot="0000:01:00.0",
        uuid="GPU-0",
    )
    assert (second.utilisation_percent, second.power_w, second.vram_used_bytes) == (None, None, 0)
    assert second.slot == "0000:0b:00.0"


def test_a_card_that_needs_a_reset_is_in_trouble_and_its_neighbour_is_not() -> None:
    good, bad = nvidia.parse_query(recorded.NVIDIA_SMI_LOST)
    assert good.is_usable
    assert not bad.is_usable
    assert "restart" in bad.trouble
    assert (bad.index, bad.slot, bad.vram_bytes, bad.uuid) == (1, "0000:0b:00.0", None, None)


@pytest.mark.parametrize("output", [None, b"", recorded.NVIDIA_SMI_FAILED, b"No devices were found\n"])
def test_complaints_are_no_cards(output: bytes | None) -> None:
    assert nvidia.parse_query(output) == []


def test_parts_stand_in_place_of_a_card_that_mig_has_divided(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path)
    fake.say(nvidia.QUERY, recorded.NVIDIA_SMI_TWO_A100)
    fake.say(nvidia.LIST, recorded.NVIDIA_SMI_MIG)
    cards = nvidia.cards_from_tool(fake.machine)
    assert [(card.index, card.model, card.vram_bytes) for card in cards] == [
        (0, "NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40 << 30),
        (0, "NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10 << 30),
        (1, "NVIDIA A100-SXM4-80GB", 81920 * MIB),
    ]
    assert [card.uuid for card in cards][:2] == [
        "MIG-10",
        "MIG-11",
    ]
    # What is measured of the whole card is no part's own.
    assert cards[0].vram_used_bytes is None
    assert [announced(card).vram_tier for card in cards] == [VramTier.FROM_24, VramTier.FROM_8, VramTier.FROM_48]


@pytest.mark.parametrize(
    ("output", "fabric"),
    [
        (recorded.TOPOLOGY_NVLINK, Fabric(True, "all-to-all", 48)),
        (recorded.TOPOLOGY_PCI, Fabric()),
        (b"\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tNV4\t0-31\nGPU1\tNV4\t X \t0-31\n", Fabric(True, "pair", 4)),
        (
            b"\x1b[4m\tGPU0\tGPU1\tGPU2\x1b[0m\nGPU0\t X \tNV2\tSYS\nGPU1\tNV2\t X \tNV2\nGPU2\tSYS\tNV2\t X \n",
            Fabric(True, "mesh", 4),
        ),
        (None, Fabric()),
    ],
)
def test_nvlink_is_counted_once_for_each_pair(output: bytes | None, fabric: Fabric) -> None:
    assert nvidia.parse_topology(output) == fabric


LINES = st.lists(
    st.lists(
        st.sampled_from(
            ["0", "1", "999999999999", "NVIDIA X", "[N/A]", "1e309", "-1", "nan", "GPU0", "NV4", "\x1b[31m"]
        )
        | st.text(max_size=20),
        max_size=12,
    ).map(", ".join)
).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=2000) | LINES)
@example(b"GPU0 GPU1\nGPU0 NV999 X\n" * 300)
@example(b"0," * 100_000)
def test_whatever_a_tool_prints_gives_cards_and_nothing_else(output: bytes) -> None:
    cards = nvidia.with_parts(nvidia.parse_query(output), output)
    assert len(cards) <= CARDS_MAX
    assert isinstance(nvidia.parse_topology(output), Fabric)
    for card in cards:
        announced(card)
        assert card.vram_bytes is None or 0 < card.vram_bytes <= 1 << 40


@pytest.mark.parametrize(
    ("output", "cuda"),
    [
        (recorded.NVIDIA_SMI_HEADING, "12.4"),
        (b"| NVIDIA-SMI 590.1  KMD Version: 590.1  CUDA UMD Version: 13.1 |", "13.1"),
        (b"| Driver Version: 390.157 |", None),
        (b"CUDA Version: N/A", None),
        (b"CUDA Version: ERR!", None),
        (b"CUDA Version: 99999.1", None),
        (recorded.NVIDIA_SMI_FAILED, None),
        (b"\xff\x00" * 9000, None),
        (None, None),
    ],
)
def test_the_newest_cuda_stands_in_the_heading(output: bytes | None, cuda: str | None) -> None:
    assert nvidia.parse_heading(output) == cuda


def test_each_card_and_each_part_says_which_cuda(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path)
    fake.say(nvidia.QUERY, recorded.NVIDIA_SMI_TWO_A100)
    fake.say(nvidia.LIST, recorded.NVIDIA_SMI_MIG)
    fake.say(nvidia.HEADING, recorded.NVIDIA_SMI_HEADING)
    assert [card.cuda for card in nvidia.cards_from_tool(fake.machine)] == ["12.4"] * 3
