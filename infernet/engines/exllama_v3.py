"""A model in ExLlamaV3, in its own format (EXL3); it does not read that of ExLlamaV2.

Written against the source of release 1.6.5. **It has not been run**: neither on a GPU nor, as ExLlamaV2 was, with the
calculations of one replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from infernet.engines.contract import EngineConfig, ExllamaOptions
from infernet.engines.exllama_library import (
    CHUNK_TOKENS,
    Library,
    cache_tokens,
    import_library,
    is_greedy,
    keep_prompts_apart,
)
from protocol.records import Sampling

NAME: Final = "exllamav3"
HINT: Final = "docs/engines.md says how to install it"
_CACHE_BITS_EXACT: Final = 16


def import_exllamav3() -> Any:
    """The library. Raises EngineUnavailable."""
    return import_library(NAME, HINT)


def load(config: EngineConfig, options: ExllamaOptions) -> Library:
    """Load a folder onto the cards. Raises EngineUnavailable; what the library itself raises goes on."""
    exllama = import_exllamav3()
    settings = exllama.Config.from_directory(config.path)
    model = exllama.Model.from_config(settings)
    # The cache comes first: where its pages go is decided with the weights.
    cache = exllama.Cache(
        model,
        max_num_tokens=cache_tokens(config.context_tokens, config.slots),
        max_batch_size=config.slots,
        **cache_arguments(exllama, options.cache_bits),
    )
    model.load(**load_arguments(options))
    return library_of(exllama, model, cache, exllama.Tokenizer.from_config(settings), config.slots)


def cache_arguments(exllama: Any, bits: int) -> dict[str, Any]:
    """How a cache is asked for."""
    if bits == _CACHE_BITS_EXACT:
        return {"layer_type": exllama.CacheLayer_fp16}
    return {"layer_type": exllama.CacheLayer_quant, "k_bits": bits, "v_bits": bits}


def load_arguments(options: ExllamaOptions) -> dict[str, Any]:
    """How the cards are shared out."""
    arguments: dict[str, Any] = {"max_chunk_size": CHUNK_TOKENS}
    if options.gpu_split_gb:
        arguments["use_per_device"] = list(options.gpu_split_gb)
    if options.tensor_parallel:
        arguments |= {"tensor_p": True, "tp_backend": "native"}
    return arguments


def library_of(exllama: Any, model: Any, cache: Any, tokenizer: Any, slots: int) -> Library:
    """What is loaded, behind our names. Raises EngineUnavailable."""
    import torch

    keep_prompts_apart(
        NAME,
        [
            ("exllamav3.generator.pagetable", "tensor_hash_checksum"),
            ("exllamav3.generator.job", "tensor_hash_checksum"),
        ],
        ("exllamav3.generator.job", "ext", "count_match_tensor"),
    )

    def encode(text: str, special: bool) -> list[int]:
        ids: list[int] = tokenizer.encode(text, encode_special_tokens=special)[0].tolist()
        return ids

    def decode(ids: list[int], special: bool) -> str:
        text: str = tokenizer.decode(torch.tensor(ids), decode_special_tokens=special)
        return text

    def make_job(prompt: Sequence[int], tokens: int, sampling: Sampling, ends: Sequence[int]) -> Any:
        return exllama.Job(
            input_ids=torch.tensor([list(prompt)], dtype=torch.long),
            max_new_tokens=tokens,
            sampler=exllama.ComboSampler(**sampler_arguments(sampling)),
            seed=sampling.seed,
            stop_conditions=list(ends),
        )

    generator = exllama.Generator(
        model=model,
        cache=cache,
        tokenizer=tokenizer,
        max_batch_size=slots,
        max_chunk_size=CHUNK_TOKENS,
        shared_chunk_size=CHUNK_TOKENS,
    )
    return Library(generator, encode, decode, make_job, int(tokenizer.actual_vocab_size), tokenizer.eos_token_id)


def sampler_arguments(sampling: Sampling) -> dict[str, float]:
    """The wishes of an asker by ExLlamaV3's names."""
    penalties = {
        "rep_p": sampling.repetition_penalty_milli / 1000,
        "pres_p": sampling.presence_penalty_milli / 1000,
        "freq_p": sampling.frequency_penalty_milli / 1000,
    }
    if is_greedy(sampling):
        return penalties | {"temperature": 0.0}
    return penalties | {
        "temperature": sampling.temperature_milli / 1000,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p_milli / 1000,
        "min_p": sampling.min_p_milli / 1000,
    }
