"""infernet/hardware/visible.py: the owner's variables decide which cards engines, and others, hear of."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.hardware import nvidia, pci
from infernet.hardware.contract import Card, announced_all
from infernet.hardware.detect import find_cards
from infernet.hardware.visible import visible
from protocol.records import GpuVendor
from tests import helpers_hardware as recorded
from tests.helpers_hardware import FakeMachine

NVIDIA = [Card(GpuVendor.NVIDIA, n, f"N{n}", "nvml", uuid=f"GPU-{n}{n}aa-bb") for n in range(3)]
AMD = [Card(GpuVendor.AMD, n, f"A{n}", "amdsmi", uuid=f"{n}{n}ff-dd") for n in range(2)]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("0,1,2", ["N0", "N1", "N2"]),
        ("1", ["N1"]),
        ("2, 0", ["N0", "N2"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        # What comes after the first entry that names nothing does not count.
        ("1,7,0", ["N1"]),
        ("GPU-11aa-bb", ["N1"]),
        ("GPU-2", ["N2"]),
        ("GPU-", []),
        ("00", ["N0"]),
        ("²", []),
    ],
)
def test_cuda(value: str, kept: list[str]) -> None:
    cards = visible([*NVIDIA, *AMD], {"CUDA_VISIBLE_DEVICES": value})
    assert [card.model for card in cards if card.is_usable] == [*kept, "A0", "A1"]
    assert [card.model for card in cards] == ["N0", "N1", "N2", "A0", "A1"]
    assert all("CUDA_VISIBLE_DEVICES" in card.trouble for card in cards if not card.is_usable)


def test_rocm() -> None:
    assert [card.is_usable for card in visible([*NVIDIA, *AMD], {"HIP_VISIBLE_DEVICES": "1"})] == [True] * 3 + [
        False,
        True,
    ]
    both = visible(AMD, {"ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "1"})
    assert [card.is_usable for card in both] == [False, False]
    # The second counts what the first has left.
    both = visible(AMD, {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"})
    assert [card.is_usable for card in both] == [False, True]


def test_without_variables_nothing_changes() -> None:
    assert visible([*NVIDIA, *AMD], {"PATH": "0"}) == [*NVIDIA, *AMD]


def test_another_trouble_is_told_first() -> None:
    broken = Card(GpuVendor.NVIDIA, 0, "N", "pci", trouble="no driver")
    assert visible([broken], {"CUDA_VISIBLE_DEVICES": ""}) == [broken]


def test_others_are_not_told_of_a_card_that_its_owner_keeps(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path)
    fake.plug("0000:01:00.0", pci.NVIDIA, 0x2684, driver="nvidia")
    fake.plug("0000:0b:00.0", pci.NVIDIA, 0x2204, driver="nvidia")
    fake.say(nvidia.QUERY, recorded.NVIDIA_SMI)
    fake.environ["CUDA_VISIBLE_DEVICES"] = "1"
    assert [gpu.model for gpu in announced_all(find_cards(fake.machine))] == ["NVIDIA GeForce RTX 3090"]


@given(st.text() | st.lists(st.integers().map(str) | st.just("GPU-1")).map(",".join))
def test_whatever_stands_in_a_variable_no_card_appears_and_none_is_lost(value: str) -> None:
    cards = visible(NVIDIA, {"CUDA_VISIBLE_DEVICES": value})
    assert [card.model for card in cards] == ["N0", "N1", "N2"]
