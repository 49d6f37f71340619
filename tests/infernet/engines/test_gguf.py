"""Headers of GGUF files: what they say is read, and what they try does nothing."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.engines import gguf
from infernet.engines.gguf import BadGguf, read_header
from tests.helpers_gguf import entry, header, model, text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def test_what_matters_of_a_header_is_read(path: Path) -> None:
    path.write_bytes(model())
    read = read_header(path)
    assert (read.architecture, read.name, read.quantisation, read.licence) == ("llama", "Tiny", "Q4_K_M", "mit")
    assert (read.context_tokens, read.layers, read.has_chat_template, read.parts) == (512, 2, True, 0)
    # Keys and values of two layers, two heads of 16 numbers each, two bytes a number.
    assert read.cache_bytes_per_token == 2 * 2 * (16 + 16) * 2


def test_widths_that_are_told_count_and_of_heads_by_layer_the_most(path: Path) -> None:
    widths = {"llama.attention.key_length": 128, "llama.attention.value_length": 96}
    path.write_bytes(model(**widths, **{"llama.attention.head_count_kv": [0, 3]}))
    assert read_header(path).cache_bytes_per_token == 2 * 3 * (128 + 96) * 2


def test_a_header_that_says_nothing_is_a_header(path: Path) -> None:
    path.write_bytes(header([], version=2))
    read = read_header(path)
    assert (read.architecture, read.quantisation, read.context_tokens, read.cache_bytes_per_token) == ("", "", 0, 0)


@pytest.mark.parametrize(
    "value",
    ["many", -1, 0, 2**31, True],
)
def test_numbers_that_no_model_has_are_as_if_they_were_not_there(path: Path, value: object) -> None:
    form = "bool" if value is True else "u64" if value == 2**31 else "i32"
    keys = [entry("general.architecture", "llama"), entry("llama.context_length", value, form)]
    path.write_bytes(header(keys))
    assert read_header(path).context_tokens == 0


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is no GGUF file"),
        (b"<html>not found</html>", "is no GGUF file"),
        (b"GGUF", "ends in the middle"),
        (header([], version=1), "version 1"),
        (header([], version=2**31), "version"),
        (header([], keys=2**63), "says that it has 9223372036854775808 keys"),
        (header([], keys=1), "ends in the middle"),
        (header([struct.pack("<Q", 2**64 - 1)], keys=1), "a key that is too long"),
        (header([text("k") + struct.pack("<I", 99)]), "unknown type"),
        (header([text("k") + struct.pack("<IQ", 8, 2**63) + bytes(1024)]), "more than 128 MiB"),
        (header([text("k") + struct.pack("<IIQ", 9, 4, 2**62)]), "a list of 4611686018427387904 items"),
        (header([text("k") + struct.pack("<IIQ", 9, 9, 1)]), "a list of an unknown type"),
        (header([text("k") + struct.pack("<IIQ", 9, 8, 2) + struct.pack("<Q", 2**40)]), "more than 128 MiB"),
        (model(weights=0)[:-5], "ends in the middle"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(path: Path, data: bytes, told: str) -> None:
    path.write_bytes(data)
    with pytest.raises(BadGguf, match=told) as refused:
        read_header(path)
    assert "\n" not in str(refused.value)


def test_a_header_is_bounded_as_a_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "HEADER_BYTES_MAX", 100)
    path.write_bytes(model())
    with pytest.raises(BadGguf, match="more than 0 MiB"):
        read_header(path)


def test_a_long_text_is_cut_and_what_follows_is_read(path: Path) -> None:
    path.write_bytes(model(**{"general.name": "x" * 100_000}))
    read = read_header(path)
    assert (len(read.name), read.context_tokens) == (gguf.TEXT_BYTES_MAX, 512)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_header_or_a_refusal(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + data)
    with suppress(BadGguf):
        read_header(path)


@given(at=st.integers(0, len(model(0)) - 1), byte=st.integers(0, 255))
def test_a_damaged_byte_is_survived(tmp_path_factory: pytest.TempPathFactory, at: int, byte: int) -> None:
    data = bytearray(model(0))
    data[at] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(data)
    try:
        read = read_header(path)
    except BadGguf:
        return
    assert 0 <= read.cache_bytes_per_token < 2**160


@pytest.mark.model
def test_the_starter_models_header_is_read(starter_model_path: Path) -> None:
    read = read_header(starter_model_path)
    assert (read.architecture, read.quantisation, read.licence) == ("llama", "Q4_1", "apache-2.0")
    assert (read.context_tokens, read.layers, read.cache_bytes_per_token) == (8192, 30, 23040)
    assert read.has_chat_template
