"""What tests of the ExLlama engines share: a model folder in small, and a fake model for ExLlamaV2's real generator.

With `fake_library` ExLlamaV2's own scheduler, page table, cache and tokenizer run, on any processor. What is replaced
are its compiled extension, of which four functions are used, and the model: that one knows for each token which
comes next, and nothing else. It shows that we speak to the library as it wants it, and nothing about GPUs.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from infernet.engines.contract import EngineConfig
from infernet.engines.exllama_library import Library, cache_tokens

BOS, TURN_STARTS, TURN_ENDS = "<s>", "<|im_start|>", "<|im_end|>"
SPECIAL = {BOS: 0, TURN_STARTS: 1, TURN_ENDS: 2}
EOS_ID = SPECIAL[TURN_ENDS]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Said after a line break, again and again; the face takes four tokens of one byte each.
STORY = (
    *("Once", " upon", " a", " time", " there", " was", " one", " who", " smiled", " so", "\U0001f642", " that"),
    *(" everybody", " laughed", " and", " then", " went", " home", ";"),
)
# Said after "!", with an end.
ENDING = (" The", " end", ".")
# Said after everything else, without an end.
DIGITS = "0123456789"


def write_folder(path: Path, **config: Any) -> Path:
    """A model folder with everything but weights that mean something."""
    path.mkdir(parents=True, exist_ok=True)
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "eos_token_id": EOS_ID,
        "bos_token_id": SPECIAL[BOS],
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 128,
        "max_position_embeddings": 4096,
    }
    texts = {"bos_token": BOS, "eos_token": {"content": TURN_ENDS}, "chat_template": TEMPLATE, "add_bos_token": True}
    files: dict[str, object] = {
        "config.json": shape | config,
        "generation_config.json": {"eos_token_id": [EOS_ID]},
        "tokenizer_config.json": texts,
        "tokenizer.json": tokenizer_file(),
    }
    for name, content in files.items():
        (path / name).write_text(json.dumps(content), "utf-8")
    (path / "model.safetensors").write_bytes(b"no weights")
    return path


def tokenizer_file() -> dict[str, Any]:
    """A tokenizer of bytes, with the words of what the fake model says in one piece each."""
    letters = _byte_letters()
    vocabulary = dict(SPECIAL)
    for byte in range(256):
        vocabulary[letters[byte]] = len(vocabulary)
    merges = []
    for word in (*STORY, *ENDING):
        spelt = [letters[byte] for byte in word.encode()]
        for end in range(2, len(spelt) + 1) if word.isascii() else ():
            whole = "".join(spelt[:end])
            if whole not in vocabulary:
                merges.append(["".join(spelt[: end - 1]), spelt[end - 1]])
                vocabulary[whole] = len(vocabulary)
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": text, **flags} for text, number in SPECIAL.items()],
        "pre_tokenizer": step,
        "decoder": step,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "byte_fallback": False},
    }


def _byte_letters() -> list[str]:
    """The letters by which byte-level tokenizers write bytes: GPT-2's table."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown} | {byte: chr(256 + number) for number, byte in enumerate(hidden)}
    return [table[byte] for byte in range(256)]


def next_tokens(encode: Callable[[str], list[int]]) -> dict[int, int]:
    """Which token comes after which."""
    chains = ["\n", *STORY, *STORY[:1]], ["!", *ENDING], [*DIGITS, *DIGITS[:1]]
    following = {}
    for chain in chains:
        ids = [token for word in chain for token in encode(word)]
        following |= dict(itertools.pairwise(ids))
    following[encode(ENDING[-1])[0]] = EOS_ID
    return following


class FakeModel:
    """In place of `ExLlamaV2`: its logits leave no choice. `turns` counts what it was asked; `before_turn` may wait."""

    def __init__(self, context_tokens: int, following: dict[int, int], first_digit: int, pace_s: float = 0.0) -> None:
        lm = SimpleNamespace(mrope=False)
        self.config = SimpleNamespace(
            vocab_size=2048,
            max_seq_len=context_tokens,
            max_input_len=2048,
            max_batch_size=1,
            no_flash_attn=False,
            num_hidden_layers=1,
            num_key_value_heads=1,
            head_dim=32,
            arch=SimpleNamespace(lm=lm),
        )
        self.cache_map: dict[int, str] = {}
        self.prompt_pieces: list[int] = []
        self.before_turn: Callable[[], None] = lambda: None
        self._following = following
        self._first_digit = first_digit
        self._pace_s = pace_s
        self._never = threading.Event()

    def forward_chunk(self, input_ids: Any, *, preprocess_only: bool = False, **_: Any) -> dict[str, Any]:
        """The logits of each token, or nothing while a prompt is read."""
        import torch

        self.before_turn()
        if preprocess_only:
            self.prompt_pieces.append(input_ids.shape[-1])
            return {}
        self._never.wait(self._pace_s)  # a machine has work with a model
        logits = torch.full((*input_ids.shape, self.config.vocab_size), -100.0)
        for row, ids in enumerate(input_ids.tolist()):
            for column, token in enumerate(ids):
                logits[row, column, self._following.get(token, self._first_digit)] = 100.0
        return {"logits": logits}


def _stub_extension() -> ModuleType:
    """In place of ExLlamaV2's compiled extension: what its generator uses of it without filters and healing."""
    import torch

    def sample_basic(logits: Any, *others: Any) -> list[float]:
        others[8].copy_(logits[:, -1, :].argmax(dim=-1, keepdim=True))
        return []

    def count_match(one: Any, other: Any, most: int) -> int:
        length = min(most, one.shape[-1], other.shape[-1])
        same = (one[0, :length] == other[0, :length]).tolist()
        return same.index(False) if False in same else length

    stub = ModuleType("exllamav2_ext")
    functions: dict[str, Callable[..., Any]] = {
        "sample_basic": sample_basic,
        "count_match": count_match,
        "fast_fill_cpu_ones_bool": lambda mask: mask.fill_(True),
        "apply_rep_penalty": lambda *_: None,
        "none_tensor": lambda: torch.empty((1, 1), device="meta"),
    }
    for name, function in functions.items():
        setattr(stub, name, function)
    return stub


def import_exllamav2() -> Any:
    """The real library over the stub. Once in a process."""
    if "exllamav2_ext" not in sys.modules:
        sys.modules["exllamav2_ext"] = _stub_extension()
    import exllamav2
    from exllamav2 import attn

    attn.has_flash_attn_with_paged = True
    return exllamav2


def fake_library(config: EngineConfig, *, is_paged: bool = True, pace_s: float = 0.0) -> tuple[Library, FakeModel]:
    """The real generator, cache and tokenizer over the fake model, for a folder that `write_folder` wrote."""
    exllamav2 = import_exllamav2()
    from infernet.engines.exllama_v2 import library_of

    ids = {"eos_token_id": EOS_ID, "bos_token_id": SPECIAL[BOS], "pad_token_id": None}
    tokenizer = exllamav2.ExLlamaV2Tokenizer(SimpleNamespace(model_dir=config.path, **ids))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text)[0].tolist())

    model = FakeModel(config.context_tokens, next_tokens(encode), encode(DIGITS[0])[0], pace_s)
    cache = exllamav2.ExLlamaV2Cache(model, max_seq_len=cache_tokens(config.context_tokens, config.slots))
    return library_of(model, cache, tokenizer, config.slots, is_paged=is_paged), model
