"""GPUs as coarsely as they are told of: the words for vendors and memory tiers, and in which tier a card belongs.

A card's size in shops is the nominal one; what its driver reports is less, by what the driver keeps for itself and,
where ECC is on, by what the codes take: an RTX 4090 (24 GB) reports 24,564 MiB, an L40S (48 GB) 46,068, a T4 (16 GB)
15,109, an A10G (24 GB) 22,731. So a tier begins somewhat below its edge, far above the next smaller size that is made.
"""

from __future__ import annotations

from typing import Final

from protocol.records import Gpu, GpuVendor, VramTier

VENDOR_WORDS: Final = {
    GpuVendor.UNKNOWN: "unknown",
    GpuVendor.NVIDIA: "nvidia",
    GpuVendor.AMD: "amd",
    GpuVendor.APPLE: "apple",
    GpuVendor.INTEL: "intel",
}
TIER_WORDS: Final = {
    VramTier.UNKNOWN: "unknown",
    VramTier.BELOW_8: "<8gb",
    VramTier.FROM_8: "8-16gb",
    VramTier.FROM_16: "16-24gb",
    VramTier.FROM_24: "24-48gb",
    VramTier.FROM_48: ">=48gb",
}

_GIB: Final = 1 << 30
# The nominal size at which each tier begins, largest first.
_EDGES_GB: Final = ((48, VramTier.FROM_48), (24, VramTier.FROM_24), (16, VramTier.FROM_16), (8, VramTier.FROM_8))
# How much of its nominal size a card reports at least. The least seen are 92.0 % (T4, 15,079 MiB) and 92.5 % (A10G);
# the sizes that must stay below an edge end at 91.7 % of it (cards that were rebuilt with 22 GB).
_REPORTED_MIN_PERCENT: Final = 92


def tier_of(vram_bytes: int | None) -> VramTier:
    """The tier of a card whose driver reports this much memory; `UNKNOWN` where it reports none."""
    if vram_bytes is None or vram_bytes <= 0:
        return VramTier.UNKNOWN
    # SPEC 01: A node SHOULD put a GPU into the highest tier of whose lower edge its driver reports 92 percent or more.
    for edge_gb, tier in _EDGES_GB:
        if vram_bytes * 100 >= edge_gb * _GIB * _REPORTED_MIN_PERCENT:
            return tier
    return VramTier.BELOW_8


def as_words(gpu: Gpu) -> dict[str, str]:
    """A GPU of a heartbeat as it stands in the JSON of specs/07."""
    return {"vendor": VENDOR_WORDS[gpu.vendor], "vram_tier": TIER_WORDS[gpu.vram_tier], "model": gpu.model}
