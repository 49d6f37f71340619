"""infernet/hardware/apple.py: what `system_profiler` prints."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infernet.hardware import apple
from infernet.hardware.contract import announced
from protocol.records import Gpu, GpuVendor, VramTier
from tests import helpers_hardware as recorded
from tests.helpers_hardware import as_json


def test_apples_own_has_no_memory_of_its_own_and_is_a_gpu_all_the_same() -> None:
    (card,) = apple.parse_tool(recorded.SYSTEM_PROFILER)
    assert (card.model, card.vram_bytes, card.driver, card.is_usable) == ("Apple M3 Pro", None, "Metal", True)
    assert announced(card) == Gpu(GpuVendor.APPLE, VramTier.UNKNOWN, "Apple M3 Pro")


def test_a_share_of_the_main_memory_is_not_taken_for_a_cards() -> None:
    told = {"sppci_model": "Apple M1", "spdisplays_vendor": "sppci_vendor_Apple", "spdisplays_vram": "16 GB"}
    assert apple.parse_tool(as_json({"SPDisplaysDataType": [told]}))[0].vram_bytes is None


def test_on_older_macs_the_card_counts_and_the_processors_does_not() -> None:
    (card,) = apple.parse_tool(recorded.SYSTEM_PROFILER_INTEL)
    assert (card.vendor, card.model, card.vram_bytes) == (GpuVendor.AMD, "AMD Radeon Pro 5500M", 8 << 30)


def test_nothing_of_the_displays_is_kept() -> None:
    assert "DELL" not in repr(apple.parse_tool(recorded.SYSTEM_PROFILER))


@given(
    st.binary(max_size=500)
    | st.lists(
        st.dictionaries(
            st.sampled_from(["sppci_model", "_name", "spdisplays_vendor", "spdisplays_vram"]),
            st.none() | st.integers() | st.text() | st.sampled_from(["Apple M1", "amd", "99999999 GB", "8 GB"]),
        )
        | st.none()
        | st.text()
    ).map(lambda listed: as_json({"SPDisplaysDataType": listed}))
)
def test_whatever_a_tool_prints_gives_cards_and_nothing_else(output: bytes) -> None:
    for card in apple.parse_tool(output):
        announced(card)
