"""Whether a model fits this machine, before it is fetched and before it is loaded.

What it takes is its file, what is kept of each token of all contexts, and room to work in. What there is, is the
memory of GPUs that llama.cpp sees and the memory of the machine, up to what this process may have of it: llama.cpp puts
on a GPU as much as fits there and leaves the rest to the CPU. The sums for GPUs have not been compared with a real one.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final

import psutil
from msgspec import Struct

from infernet.engines.contract import EngineConfig, EngineUnavailable
from infernet.engines.gguf import BadGguf, Header, read_header

# llama.cpp's buffers and program: 150 MB with the starter model, more with wide models.
WORKING_BYTES: Final = 256 * 1024 * 1024
_LIMIT_FILES: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USE_FILES: Final = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


class Fit(StrEnum):
    """Whether it fits: now, only if other programs gave up memory, or not at all."""

    FITS = "fits"
    TIGHT = "only if other programs end"
    TOO_LARGE = "too large"


class Memory(Struct, frozen=True):
    """What this machine has, and what of it is free."""

    total_bytes: int
    free_bytes: int
    gpu_total_bytes: int = 0
    gpu_free_bytes: int = 0


def needed_bytes(file_bytes: int, header: Header | None, context_tokens: int, slots: int) -> int:
    """What a model takes when it is served with such contexts; without a header its contexts are not counted."""
    cache_bytes = header.cache_bytes_per_token * context_tokens * slots if header is not None else 0
    return file_bytes + cache_bytes + WORKING_BYTES


def fit(needed: int, memory: Memory) -> Fit:
    """Whether so many bytes fit."""
    if needed <= memory.free_bytes + memory.gpu_free_bytes:
        return Fit.FITS
    return Fit.TIGHT if needed <= memory.total_bytes + memory.gpu_total_bytes else Fit.TOO_LARGE


def refuse_too_large(config: EngineConfig) -> None:
    """Say what is wrong before the kernel ends us in the middle of loading. Raises EngineUnavailable."""
    path = Path(config.path)
    try:
        file_bytes, header = path.stat().st_size, read_header(path)
    except (OSError, BadGguf):
        return  # llama.cpp knows better what is wrong with it
    needed = needed_bytes(file_bytes, header, config.context_tokens, config.slots)
    memory = machine_memory()
    if fit(needed, memory) is Fit.TOO_LARGE:
        there = memory.total_bytes + memory.gpu_total_bytes
        raise EngineUnavailable(
            f"{config.name} with {config.slots} contexts of {config.context_tokens} tokens needs {needed / 1e9:.1f} GB "
            f"and this machine has {there / 1e9:.1f} GB: set fewer --slots, less --context-tokens, or a smaller model"
        )


def machine_memory() -> Memory:
    """What there is here. Loads llama.cpp to ask it for GPUs, if it is installed."""
    host = host_memory()
    gpu_total, gpu_free = _gpu_bytes()
    return Memory(host.total_bytes, host.free_bytes, gpu_total, gpu_free)


def host_memory() -> Memory:
    """What this process may have of the machine's memory; GPUs are not asked for."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit, used = _number_in(_LIMIT_FILES), _number_in(_USE_FILES)
    if limit is not None and limit < total:
        # A container: what it uses includes what the kernel would give up, so more may be free than this.
        total, free = limit, min(free, max(0, limit - (used or 0)))
    return Memory(total, free)


def _number_in(paths: tuple[str, ...]) -> int | None:
    for path in paths:
        try:
            text = Path(path).read_text("ascii")[:32].strip()
        except (OSError, UnicodeDecodeError):
            continue
        return int(text) if text.isdigit() else None
    return None


def _gpu_bytes() -> tuple[int, int]:
    """Total and free memory of GPUs that have one of their own."""
    from infernet.engines.llama_library import import_xllamacpp

    try:
        xllamacpp = import_xllamacpp()
    except EngineUnavailable:
        return 0, 0
    # An integrated GPU's is the machine's, which is counted already.
    gpu = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_GPU
    devices = [device for device in xllamacpp.get_device_info() if device["type"] == gpu]
    return (
        sum(int(device["memory_total"]) for device in devices),
        sum(int(device["memory_free"]) for device in devices),
    )
