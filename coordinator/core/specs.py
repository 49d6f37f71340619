"""What is kept of what a node says about itself: decoding into a closed schema is the sanitising.

Only the keys of `Specs` exist afterwards: vendor, memory tier and model of each GPU, their number, and the names of
the models served. Processor, memory, load, host names and whatever else a client sends has no field to go to.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from protocol import constants as c
from protocol.gpus import TIER_WORDS, VENDOR_WORDS
from protocol.records import Heartbeat

GPU_MODEL_CHARACTERS_MAX: Final = 64
GPU_COUNT_MAX: Final = 1024

VENDORS: Final = tuple(VENDOR_WORDS.values())
TIERS: Final = tuple(TIER_WORDS.values())

# Other programs name a node `user@host:slug` unless told otherwise; user and host are nobody's business.
_USER_AT_HOST: Final = re.compile(r"[^\s@]+@[^\s:@]+:?")
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*(?=[A-Za-z]){_LABEL}")
_NODE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")


class GpuSpecs(Struct, frozen=True):
    """One GPU, as coarsely as it is kept: words of `VENDORS` and `TIERS`, and a product name."""

    vendor: str
    vram_tier: str
    model: str


class Specs(Struct, frozen=True):
    """All that is kept of a node's hardware and models."""

    gpus: tuple[GpuSpecs, ...] = ()
    gpu_count: int = 0
    served_models: tuple[str, ...] = ()


def clean_text(text: str, characters_max: int) -> str:
    """Text of a stranger, for pages, tables and logs: no control, format, surrogate or private characters."""
    kept = (character for character in text if unicodedata.category(character)[0] != "C")
    return " ".join("".join(kept).split())[:characters_max]


def clean_name(text: str) -> str:
    """A node's name without controls and without a user's and host's name."""
    return clean_text(_USER_AT_HOST.sub("", text), c.NAME_CHARACTERS_MAX).strip()


def is_node_id(text: str) -> bool:
    """Whether this may be a textual node id: up to 64 letters, digits, and `_ . : -`."""
    return _NODE_ID.fullmatch(text) is not None


def is_address(text: str) -> bool:
    """Whether this may be published as a node's address: an IP address or a host name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST_NAME.fullmatch(text) is not None
    return "%" not in text  # a zone names an interface of the host


def sanitise(specs: Any) -> Specs:
    """What is kept of a decoded JSON value, whatever it is. Never raises."""
    if not isinstance(specs, dict):
        return Specs()
    gpus = tuple(_gpu(gpu) for gpu in _list(specs, "gpus")[: c.HEARTBEAT_GPUS_MAX] if isinstance(gpu, dict))
    count = specs.get("gpu_count")
    if type(count) is not int or not 0 <= count <= GPU_COUNT_MAX:
        count = len(gpus)
    return Specs(gpus, count, _names(name for name in _list(specs, "served_models") if isinstance(name, str)))


def _list(specs: dict[Any, Any], key: str) -> list[Any]:
    value = specs.get(key)
    return value if isinstance(value, list) else []


def _gpu(gpu: dict[Any, Any]) -> GpuSpecs:
    vendor, tier, model = gpu.get("vendor"), gpu.get("vram_tier"), gpu.get("model")
    return GpuSpecs(
        vendor if isinstance(vendor, str) and vendor in VENDORS else "unknown",
        tier if isinstance(tier, str) and tier in TIERS else "unknown",
        clean_text(model, GPU_MODEL_CHARACTERS_MAX) if isinstance(model, str) else "",
    )


def _names(names: Iterable[str]) -> tuple[str, ...]:
    cleaned = (clean_text(name, c.MODEL_NAME_CHARACTERS_MAX) for name in names)
    return tuple(dict.fromkeys(filter(None, cleaned)))[: c.HEARTBEAT_MODELS_MAX]


def from_heartbeat(heartbeat: Heartbeat) -> Specs:
    """The same of a node's own signed record."""
    gpus = tuple(
        GpuSpecs(VENDOR_WORDS[g.vendor], TIER_WORDS[g.vram_tier], clean_text(g.model, GPU_MODEL_CHARACTERS_MAX))
        for g in heartbeat.gpus
    )
    return Specs(gpus, len(gpus), _names(offer.name for offer in heartbeat.models))


def stored(specs: Specs) -> dict[str, Any]:
    """The form in which specs are stored: exactly the keys of the schema."""
    value: dict[str, Any] = msgspec.to_builtins(specs)
    return value
