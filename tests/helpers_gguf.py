"""GGUF files for tests: real headers, and no weights behind them."""

from __future__ import annotations

import struct
from typing import Any

NUMBERS = {"u8": (0, "B"), "i32": (5, "i"), "u32": (4, "I"), "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q")}


def text(value: str) -> bytes:
    """A string as the format has it."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, value: Any, form: str = "u32") -> bytes:
    """A key with a value: a string, a number of this form, or a list of either."""
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        kind, code = NUMBERS[form]
        return text(key) + struct.pack("<IIQ", 9, kind, len(value)) + struct.pack(f"<{len(value)}{code}", *value)
    kind, code = NUMBERS[form]
    return text(key) + struct.pack("<I", kind) + struct.pack(f"<{code}", value)


def header(entries: list[bytes], version: int = 3, keys: int | None = None) -> bytes:
    """A header with these keys."""
    count = len(entries) if keys is None else keys
    return b"GGUF" + struct.pack("<IQQ", version, 1, count) + b"".join(entries)


def model(weights: int = 1000, **changes: Any) -> bytes:
    """A small file that looks like a model: 2 layers, 4 heads of which 2 are kept, 64 wide, 512 tokens."""
    values: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "general.license": "mit",
        "general.file_type": 15,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.tokens": ["<s>", "a", "b"],
        "tokenizer.chat_template": "{{ messages }}",
    } | changes
    return header([entry(key, value) for key, value in values.items() if value is not None]) + bytes(weights)
