"""A model in ExLlamaV2 (0.3.2, its last release; the project is archived).

Written against the source of that release, whose generator runs in a test of ours with the calculations of a GPU
replaced. **It has not been run on a GPU.**
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from infernet.engines.contract import EngineConfig, EngineUnavailable, ExllamaOptions
from infernet.engines.exllama_library import (
    CHUNK_TOKENS,
    Library,
    cache_tokens,
    import_library,
    is_greedy,
    keep_prompts_apart,
)
from protocol.records import Sampling

NAME: Final = "exllamav2"
HINT: Final = "docs/engines.md says how to install it"
_CACHES: Final = {16: "ExLlamaV2Cache", 8: "ExLlamaV2Cache_Q8", 6: "ExLlamaV2Cache_Q6", 4: "ExLlamaV2Cache_Q4"}


def import_exllamav2() -> Any:
    """The library. Raises EngineUnavailable."""
    return import_library(NAME, HINT)


def load(config: EngineConfig, options: ExllamaOptions) -> Library:
    """Load a folder onto the cards. Raises EngineUnavailable; what the library itself raises goes on."""
    exllama = import_exllamav2()
    is_paged = _is_paged(config.slots)
    settings = exllama.ExLlamaV2Config(config.path)
    settings.max_seq_len = config.context_tokens
    model = exllama.ExLlamaV2(settings)
    cache = _load_weights(exllama, model, cache_tokens(config.context_tokens, config.slots), options)
    return library_of(model, cache, exllama.ExLlamaV2Tokenizer(settings), config.slots, is_paged=is_paged)


def _is_paged(slots: int) -> bool:
    from exllamav2 import attn

    is_paged = bool(attn.has_flash_attn_with_paged)
    if not is_paged and slots > 1:
        raise EngineUnavailable(
            "exllamav2 runs one job at a time without flash-attn 2.5.7 or newer and a card that it knows (Ampere or "
            "newer): install flash-attn, or set --slots 1"
        )
    return is_paged


def _load_weights(exllama: Any, model: Any, tokens: int, options: ExllamaOptions) -> Any:
    """The cache, whose place is decided with that of the weights."""
    cache_class = getattr(exllama, _CACHES[options.cache_bits])
    split = list(options.gpu_split_gb) or None
    if options.tensor_parallel:
        model.load_tp(gpu_split=split, expect_cache_tokens=tokens, expect_cache_base=cache_class)
        return exllama.ExLlamaV2Cache_TP(model, base=cache_class, max_seq_len=tokens)
    if split is not None:
        model.load(gpu_split=split)
        return cache_class(model, max_seq_len=tokens)
    cache = cache_class(model, max_seq_len=tokens, lazy=True)
    model.load_autosplit(cache)
    return cache


def library_of(model: Any, cache: Any, tokenizer: Any, slots: int, *, is_paged: bool) -> Library:
    """What is loaded, behind our names. Raises EngineUnavailable."""
    import torch
    from exllamav2 import generator as generators

    dynamic = "exllamav2.generator.dynamic"
    keep_prompts_apart(NAME, [(dynamic, "_tensor_hash_checksum")], (dynamic, "ext_c", "count_match"))

    def encode(text: str, special: bool) -> list[int]:
        ids: list[int] = tokenizer.encode(text, encode_special_tokens=special)[0].tolist()
        return ids

    def decode(ids: list[int], special: bool) -> str:
        text: str = tokenizer.decode(torch.tensor(ids), decode_special_tokens=special)
        return text

    def make_job(prompt: Sequence[int], tokens: int, sampling: Sampling, ends: Sequence[int]) -> Any:
        return generators.ExLlamaV2DynamicJob(
            input_ids=torch.tensor([list(prompt)], dtype=torch.long),
            max_new_tokens=tokens,
            gen_settings=generators.ExLlamaV2Sampler.Settings(**sampler_settings(sampling)),
            seed=sampling.seed,
            stop_conditions=list(ends),
        )

    generator = generators.ExLlamaV2DynamicGenerator(
        model=model,
        cache=cache,
        tokenizer=tokenizer,
        max_batch_size=slots,
        max_chunk_size=CHUNK_TOKENS,
        paged=is_paged,
    )
    return Library(generator, encode, decode, make_job, int(tokenizer.actual_vocab_size), tokenizer.eos_token_id)


def sampler_settings(sampling: Sampling) -> dict[str, float]:
    """The wishes of an asker by ExLlamaV2's names. What is not named here is off, but for the repetition penalty."""
    penalties = {
        "token_repetition_penalty": sampling.repetition_penalty_milli / 1000,
        "token_presence_penalty": sampling.presence_penalty_milli / 1000,
        "token_frequency_penalty": sampling.frequency_penalty_milli / 1000,
    }
    if is_greedy(sampling):
        return penalties | {"temperature": 1.0, "top_k": 1, "top_p": 0.0}
    return penalties | {
        "temperature": sampling.temperature_milli / 1000,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p_milli / 1000,
        "min_p": sampling.min_p_milli / 1000,
    }
