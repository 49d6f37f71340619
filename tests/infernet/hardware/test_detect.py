"""infernet/hardware/detect.py: each card told of once, by who knows best."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.hardware import amd, apple, intel, nvidia, pci
from infernet.hardware.contract import Card, Fabric, announced_all
from infernet.hardware.detect import find_cards, find_interconnects
from protocol import constants as c
from protocol.records import Gpu, GpuVendor, VramTier
from tests import helpers_hardware as recorded
from tests.helpers_hardware import FakeMachine


@pytest.fixture
def fake(tmp_path: Path) -> FakeMachine:
    """A machine without any GPU."""
    machine = FakeMachine(tmp_path)
    machine.plug("0000:00:02.0", 0x1A03, 0x2000)
    return machine


def two_nvidia(fake: FakeMachine) -> None:
    """Plug in the cards of the recording."""
    fake.plug("0000:01:00.0", pci.NVIDIA, 0x2684, driver="nvidia")
    fake.plug("0000:0b:00.0", pci.NVIDIA, 0x2204, driver="nvidia")


def test_a_machine_without_gpus_has_none_and_no_tool_is_asked(fake: FakeMachine) -> None:
    assert find_cards(fake.machine) == []
    assert fake.asked == []


def test_the_library_is_asked_first(fake: FakeMachine) -> None:
    two_nvidia(fake)
    cards = [
        Card(GpuVendor.NVIDIA, n, "A", "nvml", slot=slot) for n, slot in enumerate(["0000:01:00.0", "0000:0b:00.0"])
    ]
    fake.libraries["nvml"] = cards
    assert find_cards(fake.machine) == cards
    assert fake.asked == [("nvml",)]


def test_the_tool_tells_where_the_library_does_not(fake: FakeMachine) -> None:
    two_nvidia(fake)
    fake.say(nvidia.QUERY, recorded.NVIDIA_SMI)
    cards = find_cards(fake.machine)
    assert [(card.model, card.source, card.is_usable) for card in cards] == [
        ("NVIDIA GeForce RTX 4090", "nvidia-smi", True),
        ("NVIDIA GeForce RTX 3090", "nvidia-smi", True),
    ]
    assert announced_all(cards) == (
        Gpu(GpuVendor.NVIDIA, VramTier.FROM_24, "NVIDIA GeForce RTX 4090"),
        Gpu(GpuVendor.NVIDIA, VramTier.FROM_24, "NVIDIA GeForce RTX 3090"),
    )


def test_a_card_of_which_no_driver_tells_is_shown_last_with_the_reason_and_not_announced(fake: FakeMachine) -> None:
    two_nvidia(fake)
    fake.plug("0000:0a:00.0", pci.NVIDIA, 0x1EB8)
    fake.names = {"0000:0a:00.0": "TU104GL [Tesla T4]", "0000:01:00.0": "", "0000:0b:00.0": ""}
    fake.say(nvidia.QUERY, recorded.NVIDIA_SMI)
    cards = find_cards(fake.machine)
    assert [(card.index, card.model, card.is_usable) for card in cards] == [
        (0, "NVIDIA GeForce RTX 4090", True),
        (1, "NVIDIA GeForce RTX 3090", True),
        (2, "TU104GL [Tesla T4]", False),
    ]
    assert len(announced_all(cards)) == 2


def test_a_card_that_its_driver_lost_is_shown_under_its_name(fake: FakeMachine) -> None:
    fake.plug("0000:01:00.0", pci.NVIDIA, 0x2204, driver="nvidia")
    fake.plug("0000:0b:00.0", pci.NVIDIA, 0x2204, driver="nvidia", files={"config": b"\xff" * 64})
    fake.names = {"0000:01:00.0": "", "0000:0b:00.0": "GA102 [GeForce RTX 3090]"}
    fake.say(nvidia.QUERY, recorded.NVIDIA_SMI_LOST)
    assert [(card.model, card.is_usable) for card in find_cards(fake.machine)] == [
        ("NVIDIA GeForce RTX 3090", True),
        ("GA102 [GeForce RTX 3090]", False),
    ]


def test_cards_in_trouble_come_last_and_keep_their_numbers(fake: FakeMachine) -> None:
    two_nvidia(fake)
    lost = Card(GpuVendor.NVIDIA, 0, "NVIDIA GPU", "nvml", trouble="lost")
    fake.libraries["nvml"] = [lost, Card(GpuVendor.NVIDIA, 1, "A", "nvml", slot="0000:0b:00.0")]
    assert [(card.index, card.is_usable, card.slot) for card in find_cards(fake.machine)] == [
        (1, True, "0000:0b:00.0"),
        # The address that no other card has.
        (0, False, "0000:01:00.0"),
    ]


def test_in_a_container_that_hides_the_bus_the_driver_is_found_all_the_same(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    fake.say(nvidia.QUERY, recorded.NVIDIA_SMI)
    assert len(find_cards(fake.machine)) == 2


def test_amd_through_tool_or_kernel_and_never_what_is_built_into_the_processor(fake: FakeMachine) -> None:
    big, small = {"mem_info_vram_total": str(16 << 30)}, {"mem_info_vram_total": str(512 << 20)}
    fake.plug("0000:03:00.0", pci.AMD, 0x73BF, driver="amdgpu", files=big)
    fake.plug("0000:0c:00.0", pci.AMD, 0x164E, driver="amdgpu", files=small)
    assert [(card.slot, card.source) for card in find_cards(fake.machine)] == [("0000:03:00.0", "sysfs")]
    fake.say(amd.TOOL, recorded.ROCM_SMI_TWO)
    assert [card.source for card in find_cards(fake.machine)] == ["rocm-smi"]


def test_makers_may_be_mixed(fake: FakeMachine) -> None:
    two_nvidia(fake)
    fake.plug("0000:03:00.0", pci.AMD, 0x744C, driver="amdgpu", files={"mem_info_vram_total": str(24 << 30)})
    fake.plug("0000:97:00.0", pci.INTEL, 0xE211, driver="xe")
    fake.say(nvidia.QUERY, recorded.NVIDIA_SMI)
    assert [card.vendor for card in find_cards(fake.machine)] == [
        GpuVendor.NVIDIA,
        GpuVendor.NVIDIA,
        GpuVendor.AMD,
        GpuVendor.INTEL,
    ]


def test_a_mac_is_asked_its_own_way(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path, "darwin")
    fake.say(apple.TOOL, recorded.SYSTEM_PROFILER)
    assert [card.model for card in find_cards(fake.machine)] == ["Apple M3 Pro"]
    assert fake.asked == [apple.TOOL]


def test_interconnects_are_asked_for_where_there_are_several_cards(fake: FakeMachine) -> None:
    fake.say(nvidia.TOPOLOGY, recorded.TOPOLOGY_NVLINK)
    fake.say(amd.TOPOLOGY, recorded.ROCM_TOPOLOGY)
    one = Card(GpuVendor.NVIDIA, 0, "A", "nvml")
    radeon = Card(GpuVendor.AMD, 0, "B", "rocm-smi")
    alone = find_interconnects([one, radeon], fake.machine)
    assert (alone.nvlink, alone.xgmi, alone.infiniband_ports) == (Fabric(), Fabric(), 0)
    assert fake.asked == []
    together = find_interconnects([one, one, one, one, radeon, radeon, radeon], fake.machine)
    assert together.nvlink == Fabric(True, "all-to-all", 48)
    assert together.xgmi == Fabric(True, "mesh", 2)


def test_ports_of_infiniband_that_are_up_are_counted(fake: FakeMachine) -> None:
    fake.adapter("mlx5_0", 0x15B3, "4: ACTIVE", "1: DOWN")
    fake.adapter("mlx5_1", 0x15B3, "4: ACTIVE")
    told = find_interconnects([], fake.machine)
    assert (told.infiniband_ports, told.efa_adapters, told.rdma_capable) == (2, 0, True)


def test_adapters_of_amazon_are_rdma_and_no_infiniband(fake: FakeMachine) -> None:
    assert not find_interconnects([], fake.machine).rdma_capable
    fake.adapter("rdmap0s31", 0x1D0F, "4: ACTIVE")
    fake.adapter("rdmap1s31", 0x1D0F)
    told = find_interconnects([], fake.machine)
    assert (told.infiniband_ports, told.efa_adapters, told.rdma_capable) == (0, 2, True)


def test_no_more_is_announced_than_a_heartbeat_holds_and_nothing_that_names_the_card() -> None:
    cards = [
        Card(GpuVendor.NVIDIA, n, f"X{n}\x1b[2J" * 20, "nvml", uuid="GPU-1", slot="0000:01:00.0") for n in range(40)
    ]
    told = announced_all(cards)
    assert len(told) == c.HEARTBEAT_GPUS_MAX
    assert all(len(gpu.model) <= c.NAME_CHARACTERS_MAX and "\x1b" not in gpu.model for gpu in told)
    assert "GPU-1" not in repr(told)
    assert "0000:01" not in repr(told)


COMMANDS = (nvidia.QUERY, nvidia.LIST, amd.TOOL, intel.LIST, intel.details(0))


@given(
    outputs=st.tuples(*(st.none() | st.binary(max_size=200) for _ in COMMANDS)),
    libraries=st.tuples(st.none() | st.binary(max_size=200), st.none() | st.binary(max_size=200)),
)
def test_whatever_every_source_says_there_is_a_list(
    tmp_path_factory: pytest.TempPathFactory,
    outputs: tuple[bytes | None, ...],
    libraries: tuple[bytes | None, bytes | None],
) -> None:
    fake = FakeMachine(tmp_path_factory.mktemp("sys"))
    two_nvidia(fake)
    fake.plug("0000:03:00.0", pci.AMD, 0x744C, driver="amdgpu")
    fake.plug("0000:97:00.0", pci.INTEL, 0xE211, driver="xe")
    for command, output in zip(COMMANDS, outputs, strict=True):
        fake.say(command, output)
    fake.raw_libraries = dict(zip(("nvml", "amdsmi"), libraries, strict=True))
    cards = find_cards(fake.machine)
    assert cards
    announced_all(cards)
    find_interconnects(cards, fake.machine)
