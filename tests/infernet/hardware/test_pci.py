"""infernet/hardware/pci.py: what is on the bus, and what of it is a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.hardware import pci
from protocol.records import GpuVendor
from tests.helpers_hardware import FakeMachine

# The numbers are those of the PCI ID database.
PICTURE_ONLY = {
    "ASPEED AST2500": (0x1A03, 0x2000, 0x030000),
    "Matrox G200eW3": (0x102B, 0x0536, 0x030000),
    "virtio": (0x1AF4, 0x1050, 0x038000),
    "QXL": (0x1B36, 0x0100, 0x030000),
    "VMware SVGA II": (0x15AD, 0x0405, 0x030000),
    "Bochs": (0x1234, 0x1111, 0x030000),
    "Cirrus GD 5446": (0x1013, 0x00B8, 0x030000),
    "Hyper-V": (0x1414, 0x5353, 0x030000),
    "Intel UHD 630": (0x8086, 0x3E9B, 0x030000),
    "Intel Iris Xe": (0x8086, 0x9A49, 0x030000),
    "Intel Arc of Meteor Lake, built in": (0x8086, 0x7D55, 0x030000),
    "the sound of an RTX 4090": (0x10DE, 0x22BA, 0x040300),
    "an NVIDIA bridge": (0x10DE, 0x22A3, 0x068000),
}
CARDS = {
    "GeForce RTX 4090": (pci.NVIDIA, 0x2684, 0x030000),
    "H100": (pci.NVIDIA, 0x2330, 0x030200),
    "Radeon RX 7900 XTX": (pci.AMD, 0x744C, 0x030000),
    "Instinct MI210": (pci.AMD, 0x740F, 0x038000),
    "Instinct MI300X": (pci.AMD, 0x74A1, 0x120000),
    "Arc A770": (pci.INTEL, 0x56A0, 0x030000),
    "Arc Pro B60": (pci.INTEL, 0xE211, 0x030000),
    "Data Center GPU Max 1100": (pci.INTEL, 0x0BDA, 0x038000),
}
SLOT = "0000:01:00.0"


@pytest.mark.parametrize("name", PICTURE_ONLY)
def test_what_only_draws_a_picture_is_no_gpu(tmp_path: Path, name: str) -> None:
    fake = FakeMachine(tmp_path)
    vendor, device, device_class = PICTURE_ONLY[name]
    fake.plug(SLOT, vendor, device, device_class=device_class)
    assert [adapter for adapter in pci.adapters(fake.machine) if adapter.is_gpu] == []


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_one(tmp_path: Path, name: str) -> None:
    fake = FakeMachine(tmp_path)
    vendor, device, device_class = CARDS[name]
    fake.plug(SLOT, vendor, device, device_class=device_class, driver="some")
    (adapter,) = pci.adapters(fake.machine)
    assert adapter.is_gpu
    assert (adapter.slot, adapter.vendor_id, adapter.device_id, adapter.driver) == (SLOT, vendor, device, "some")


def test_udev_names_what_it_knows(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path)
    fake.plug(SLOT, pci.NVIDIA, 0x2684)
    assert pci.adapters(fake.machine)[0].model == "PCI device 10de:2684"
    fake.names = {SLOT: "AD102 [GeForce RTX 4090]", "0000:00:1f.0": "a bridge that sysfs does not have"}
    assert [adapter.model for adapter in pci.adapters(fake.machine)] == ["AD102 [GeForce RTX 4090]"]


@pytest.mark.parametrize(
    ("power_state", "config", "answers"),
    [
        ("D0", b"\xde\x10\x84\x26" + bytes(60), True),
        ("D0", b"\xff" * 64, False),
        # To ask a card that sleeps would wake it.
        ("D3cold", b"\xff" * 64, True),
    ],
)
def test_a_card_that_fell_off_the_bus_gives_ones_only(
    tmp_path: Path, power_state: str, config: bytes, *, answers: bool
) -> None:
    fake = FakeMachine(tmp_path)
    fake.plug(SLOT, pci.NVIDIA, 0x2684, driver="nvidia", files={"power_state": power_state, "config": config})
    (adapter,) = pci.adapters(fake.machine)
    assert pci.answers(fake.machine, adapter) is answers
    assert ("does not answer" in pci.unexplained(fake.machine, adapter, 0).trouble) is not answers


@pytest.mark.parametrize(
    ("driver", "words"),
    [("", "install NVIDIA's"), ("vfio-pci", "virtual machines"), ("nouveau", "nouveau")],
)
def test_why_a_card_cannot_be_used_is_told(tmp_path: Path, driver: str, words: str) -> None:
    fake = FakeMachine(tmp_path)
    fake.plug(SLOT, pci.NVIDIA, 0x2684, driver=driver)
    card = pci.unexplained(fake.machine, pci.adapters(fake.machine)[0], 3)
    assert words in card.trouble
    assert (card.vendor, card.index, card.slot, card.is_usable) == (GpuVendor.NVIDIA, 3, SLOT, False)


def test_without_a_bus_there_is_nothing(tmp_path: Path) -> None:
    assert pci.adapters(FakeMachine(tmp_path).machine) == []
    assert pci.adapters(FakeMachine(tmp_path, "darwin").machine) == []


@given(
    files=st.dictionaries(st.sampled_from(["class", "vendor", "device", "power_state", "config"]), st.binary()),
    name=st.text(max_size=80),
)
def test_whatever_sysfs_says_is_adapters_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], name: str
) -> None:
    fake = FakeMachine(tmp_path_factory.mktemp("sys"))
    fake.plug(SLOT, pci.NVIDIA, 0x2684, files=files)
    fake.names = {SLOT: name}
    for adapter in pci.adapters(fake.machine):
        if adapter.is_gpu:
            assert pci.unexplained(fake.machine, adapter, 0).trouble
