"""protocol/gpus.py: every card is in the tier of its nominal size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.gpus import TIER_WORDS, VENDOR_WORDS, tier_of
from protocol.records import GpuVendor, VramTier

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize(
    ("card", "reported_mib", "words"),
    [
        ("GeForce RTX 2060", 5_934, "<8gb"),
        ("GeForce RTX 2070", 7_952, "8-16gb"),
        ("GeForce RTX 4060", 8_188, "8-16gb"),
        ("Arc A750", 7_721, "8-16gb"),
        ("GeForce RTX 3080", 10_240, "8-16gb"),
        ("GeForce RTX 3060", 12_288, "8-16gb"),
        ("Tesla T4", 15_109, "16-24gb"),
        ("Tesla T4, older driver", 15_079, "16-24gb"),
        ("Tesla V100-SXM2-16GB", 16_160, "16-24gb"),
        ("GeForce RTX 4080", 16_376, "16-24gb"),
        ("Radeon RX 6800", 16_368, "16-24gb"),
        ("Radeon RX 7900 XT", 20_464, "16-24gb"),
        ("GeForce RTX 2080 Ti with 22 GB", 22_528, "16-24gb"),
        ("A10G", 22_731, "24-48gb"),
        ("L4", 23_034, "24-48gb"),
        ("GeForce RTX 4090", 24_564, "24-48gb"),
        ("GeForce RTX 3090", 24_576, "24-48gb"),
        ("GeForce RTX 5090", 32_607, "24-48gb"),
        ("A100-SXM4-40GB", 40_960, "24-48gb"),
        ("Quadro RTX 8000, ECC on", 45_556, ">=48gb"),
        ("L40S, ECC on", 46_068, ">=48gb"),
        ("RTX A6000", 49_140, ">=48gb"),
        ("H100 80GB HBM3", 81_559, ">=48gb"),
    ],
)
def test_real_cards_are_in_the_tier_that_is_printed_on_their_box(card: str, reported_mib: int, words: str) -> None:
    assert TIER_WORDS[tier_of(reported_mib * MIB)] == words, card


@pytest.mark.parametrize(
    ("nominal_gb", "tier"),
    [
        (8, VramTier.FROM_8),
        (16, VramTier.FROM_16),
        (24, VramTier.FROM_24),
        (48, VramTier.FROM_48),
    ],
)
@given(missing_percent=st.floats(0, 8))
def test_what_a_driver_keeps_for_itself_moves_no_card(nominal_gb: int, tier: VramTier, missing_percent: float) -> None:
    reported = int(nominal_gb * GIB * (1 - missing_percent / 100)) + 1
    assert tier_of(reported) is tier


@given(st.none() | st.integers())
def test_every_number_has_a_tier(vram_bytes: int | None) -> None:
    tier = tier_of(vram_bytes)
    assert (tier is VramTier.UNKNOWN) == (vram_bytes is None or vram_bytes <= 0)
    assert tier in TIER_WORDS


@given(st.integers(1, 1 << 45), st.integers(1, 1 << 45))
def test_more_memory_is_never_a_lower_tier(one: int, other: int) -> None:
    smaller, larger = sorted((one, other))
    assert tier_of(smaller) <= tier_of(larger)


def test_every_value_of_the_record_has_a_word_of_its_own() -> None:
    assert set(VENDOR_WORDS) == set(GpuVendor)
    assert set(TIER_WORDS) == set(VramTier)
    assert len(set(TIER_WORDS.values())) == len(VramTier)
