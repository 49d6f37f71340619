"""Whether a folder fits the cards, before it is loaded: its weights, its contexts, and room to work in.

The sums have not been compared with a real card.
"""

from __future__ import annotations

from typing import Any, Final

from infernet.engines.contract import EngineConfig, EngineUnavailable, ExllamaOptions
from infernet.engines.exllama_library import cache_tokens
from infernet.engines.folders import Folder

# CUDA's own, and the buffers of one piece of a prompt.
WORKING_BYTES: Final = 1024 * 1024 * 1024
# Numbers that are kept with less than 16 bits have a scale of 16 bits for each 32 of them.
_SCALE_BITS: Final = 0.5
_EXACT_BITS: Final = 16


def needed_bytes(config: EngineConfig, options: ExllamaOptions, folder: Folder) -> int:
    """What a model takes; where its shape is not known its contexts are not counted."""
    bits = options.cache_bits if options.cache_bits == _EXACT_BITS else options.cache_bits + _SCALE_BITS
    cache = cache_tokens(config.context_tokens, config.slots) * folder.values_per_token * bits / 8
    return folder.weights_bytes + round(cache) + WORKING_BYTES


def there_bytes(options: ExllamaOptions) -> int:
    """The memory of all cards that may be used; 0 where there is no card, or the library cannot see one."""
    import torch

    cuda: Any = torch.cuda
    totals = [int(cuda.mem_get_info(number)[1]) for number in range(cuda.device_count())] if cuda.is_available() else []
    if options.gpu_split_gb:
        split = [round(share * 1024**3) for share in options.gpu_split_gb]
        return sum(min(total, share) for total, share in zip(totals, split, strict=False))
    return sum(totals)


def refuse_too_large(config: EngineConfig, options: ExllamaOptions, folder: Folder) -> None:
    """Say what is wrong before the card does. Raises EngineUnavailable."""
    there = there_bytes(options)
    if there == 0:
        raise EngineUnavailable(
            "ExLlama needs an NVIDIA card, and torch sees none here: see `infernet gpu`, and install a torch that was "
            "built for CUDA"
        )
    needed = needed_bytes(config, options, folder)
    if needed > there:
        raise EngineUnavailable(
            f"{config.name} with {config.slots} contexts of {config.context_tokens} tokens needs {needed / 1e9:.1f} GB "
            f"and the cards give {there / 1e9:.1f} GB: set fewer --slots, less --context-tokens, a smaller --cache, or "
            "a smaller model"
        )
