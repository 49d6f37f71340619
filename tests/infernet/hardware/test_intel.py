"""infernet/hardware/intel.py: cards, and what `xpu-smi` prints about them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from infernet.hardware import intel, pci
from infernet.hardware.contract import Card, announced
from protocol.records import GpuVendor, VramTier
from tests import helpers_hardware as recorded
from tests.helpers_hardware import FakeMachine


def arc(root: Path, driver: str = "xe") -> FakeMachine:
    """A machine with one Arc Pro B60."""
    fake = FakeMachine(root)
    fake.plug("0000:97:00.0", pci.INTEL, 0xE211, driver=driver)
    return fake


def test_the_tool_tells_of_name_and_memory(tmp_path: Path) -> None:
    fake = arc(tmp_path)
    fake.say(intel.LIST, recorded.XPU_SMI)
    fake.say(intel.details(0), recorded.XPU_SMI_DETAILS)
    (card,) = intel.cards(fake.machine, pci.adapters(fake.machine))
    assert card == Card(
        vendor=GpuVendor.INTEL,
        index=0,
        model="Intel(R) Arc(TM) Pro B60 Graphics",
        source="xpu-smi",
        vram_bytes=25669140480,
        driver="xe",
        slot="0000:97:00.0",
        uuid="00000000-0000-0097-0000-0000e2118086",
    )
    assert announced(card).vram_tier is VramTier.FROM_24


def test_without_the_tool_the_memory_is_not_known(tmp_path: Path) -> None:
    fake = arc(tmp_path)
    fake.names = {"0000:97:00.0": "Battlemage G21 [Arc Pro B60]"}
    (card,) = intel.cards(fake.machine, pci.adapters(fake.machine))
    assert (card.model, card.source, card.vram_bytes) == ("Battlemage G21 [Arc Pro B60]", "sysfs", None)
    assert announced(card).vram_tier is VramTier.UNKNOWN


def test_a_card_without_a_driver_is_not_told_of_here_and_no_tool_is_asked(tmp_path: Path) -> None:
    fake = arc(tmp_path, driver="")
    assert intel.cards(fake.machine, pci.adapters(fake.machine)) == []
    assert fake.asked == []


@given(listed=st.binary(max_size=300) | st.just(recorded.XPU_SMI), details=st.binary(max_size=300))
def test_whatever_the_tool_prints_the_card_is_there(listed: bytes, details: bytes) -> None:
    adapter = pci.Adapter("0000:97:00.0", Path("/nonexistent"), pci.INTEL, 0xE211, 3, "xe", "")
    fake = FakeMachine(Path("/nonexistent"))
    fake.say(intel.LIST, listed)
    fake.say(intel.details(0), details)
    (card,) = intel.cards(fake.machine, [adapter])
    announced(card)
