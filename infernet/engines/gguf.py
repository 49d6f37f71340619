"""What the header of a GGUF file says about its model: read with bounds, for it is somebody else's file.

The format is that of `docs/gguf.md` of github.com/ggml-org/ggml: magic, version, counts, then keys with typed values.
Only the values that are asked for below are kept; everything else is walked over. Whatever does not fit the format
or the bounds is a `BadGguf`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import Struct

# The largest vocabularies have 300,000 tokens and as many merges: some 10 MB. Nothing else in a header is large.
HEADER_BYTES_MAX: Final = 128 * 1024 * 1024
KEYS_MAX: Final = 4096
KEY_BYTES_MAX: Final = 1024
ITEMS_MAX: Final = 4_000_000
TEXT_BYTES_MAX: Final = 1024
_VERSIONS: Final = (2, 3)
_STRING: Final = 8
_ARRAY: Final = 9
_FORMATS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# `llama_ftype` of llama.cpp's llama.h.
_FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
_BYTES_PER_VALUE: Final = 2

Value = int | float | str | bool


class BadGguf(Exception):
    """The file is no GGUF file, or a damaged one; the message completes "the file ..."."""


class Header(Struct, frozen=True):
    """What matters of a header; 0 and "" where it does not say.

    `cache_bytes_per_token` is what llama.cpp keeps of each token of a context, at its usual 16 bits per value. It is
    an upper bound where a model keeps less for some layers.
    """

    architecture: str
    name: str
    quantisation: str
    licence: str
    context_tokens: int
    layers: int
    cache_bytes_per_token: int
    has_chat_template: bool
    parts: int


def read_header(path: Path) -> Header:
    """The header of a file. Raises BadGguf or OSError."""
    with path.open("rb") as file:
        return _header_of(_Walker(file).values())


def quantisation_of(path: Path) -> str:
    """How the weights in a file are quantised; "" where it does not say, or cannot be read."""
    try:
        return read_header(path).quantisation
    except (BadGguf, OSError):
        return ""


class _Walker:
    """Reads values one after the other, within the bounds."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = HEADER_BYTES_MAX

    def values(self) -> dict[str, Value]:
        """All single values by key; of an array of numbers the largest, and of any other that it is there."""
        if self._file.read(4) != b"GGUF":
            raise BadGguf("is no GGUF file")
        version = self._number("I")
        if version not in _VERSIONS:
            raise BadGguf(f"has version {version} of the format, and this program reads 2 and 3")
        self._number("Q")  # tensors
        keys = self._number("Q")
        if keys > KEYS_MAX:
            raise BadGguf(f"says that it has {keys} keys")
        values: dict[str, Value] = {}
        for _ in range(keys):
            key = self._text(KEY_BYTES_MAX)
            values[key] = self._value(self._number("I"))
        return values

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._text(None)
        if kind == _ARRAY:
            return self._array()
        if kind not in _FORMATS:
            raise BadGguf("has a value of an unknown type")
        value: Value = struct.unpack(f"<{_FORMATS[kind]}", self._bytes(struct.calcsize(f"<{_FORMATS[kind]}")))[0]
        return value

    def _array(self) -> Value:
        kind, count = self._number("I"), self._number("Q")
        if count > ITEMS_MAX:
            raise BadGguf(f"says that it has a list of {count} items")
        if kind == _STRING:
            for _ in range(count):
                self._skip(self._number("Q"))
            return True
        if kind not in _FORMATS:
            # Lists of lists are in the format and in no model.
            raise BadGguf("has a list of an unknown type")
        size = struct.calcsize(f"<{_FORMATS[kind]}")
        if kind in (4, 5, 10, 11) and 0 < count <= KEYS_MAX:
            numbers: tuple[int, ...] = struct.unpack(f"<{count}{_FORMATS[kind]}", self._bytes(size * count))
            return max(numbers)
        self._skip(size * count)
        return True

    def _text(self, bytes_max: int | None) -> str:
        """A text: of a key at most so long, of a value its beginning."""
        size = self._number("Q")
        if bytes_max is not None and size > bytes_max:
            raise BadGguf("has a key that is too long")
        kept = self._bytes(min(size, bytes_max or TEXT_BYTES_MAX))
        self._skip(size - len(kept))
        return kept.decode("utf-8", "replace")

    def _number(self, form: str) -> int:
        value: int = struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))[0]
        return value

    def _bytes(self, size: int) -> bytes:
        self._spend(size)
        data = self._file.read(size)
        if len(data) != size:
            raise BadGguf("ends in the middle of its header")
        return data

    def _skip(self, size: int) -> None:
        # What lies beyond the end of the file shows when the next value is read.
        self._spend(size)
        self._file.seek(size, 1)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise BadGguf(f"has a header of more than {HEADER_BYTES_MAX // 1024 // 1024} MiB")


def _header_of(values: dict[str, Value]) -> Header:
    architecture = _text_in(values, "general.architecture")
    layers = _count_in(values, f"{architecture}.block_count")
    heads = _count_in(values, f"{architecture}.attention.head_count")
    heads_kept = _count_in(values, f"{architecture}.attention.head_count_kv") or heads
    width = _count_in(values, f"{architecture}.embedding_length") // heads if heads else 0
    key_width = _count_in(values, f"{architecture}.attention.key_length") or width
    value_width = _count_in(values, f"{architecture}.attention.value_length") or width
    file_type = values.get("general.file_type")
    return Header(
        architecture=architecture,
        name=_text_in(values, "general.name"),
        quantisation=_FILE_TYPES.get(file_type, "") if isinstance(file_type, int) else "",
        licence=_text_in(values, "general.license"),
        context_tokens=_count_in(values, f"{architecture}.context_length"),
        layers=layers,
        cache_bytes_per_token=layers * heads_kept * (key_width + value_width) * _BYTES_PER_VALUE,
        has_chat_template="tokenizer.chat_template" in values,
        parts=_count_in(values, "split.count"),
    )


def _text_in(values: dict[str, Value], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def _count_in(values: dict[str, Value], key: str) -> int:
    value = values.get(key)
    # No model is larger than any of this; a product of such numbers stays a number that can be shown.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else 0
