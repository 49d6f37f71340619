"""Which engine a configuration means, and how the API key of somebody else's server is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infernet.config import ENGINE_KEY_VARIABLE, Config
from infernet.engines.contract import EngineUnavailable, ExllamaOptions
from infernet.engines.models import ModelMissing
from infernet.engines.openai_engine import OpenAiEngine
from infernet.engines.selection import exllama_config, open_engine, openai_config
from infernet.settings import Dollars, read_engine_url
from protocol.records import Kind, Role
from tests.helpers_exllama import write_folder

pytestmark = pytest.mark.anyio

SECRET = "sk-0123456789abcdef"


def config_of(path: Path, **values: Any) -> Config:
    return Config(config_dir=path, state_dir=path, data_dir=path, **values)


@pytest.mark.parametrize("values", [{"engine": "none"}, {"role": Role.CLIENT}, {"role": Role.AGGREGATOR}])
async def test_who_runs_no_jobs_has_no_engine(tmp_path: Path, values: dict[str, Any]) -> None:
    assert await open_engine(config_of(tmp_path, **values)) is None


async def test_a_server_is_used_where_it_is_asked_for_and_nowhere_else(tmp_path: Path) -> None:
    assert isinstance(await open_engine(config_of(tmp_path, engine="openai")), OpenAiEngine)
    with pytest.raises(ModelMissing):
        await open_engine(config_of(tmp_path))


def test_the_server_gets_what_the_settings_say(tmp_path: Path) -> None:
    prices = {"price_in_usd": Dollars(1), "price_out_usd": Dollars(2), "price_job_usd": Dollars(3)}
    named = {"engine_url": "http://127.0.0.1:9", "engine_models": ("a", "b"), "slots": 7, "context_tokens": 999}
    openai = openai_config(config_of(tmp_path, **prices, **named), {})
    assert (openai.url, openai.models, openai.slots, openai.context_tokens) == (
        "http://127.0.0.1:9",
        ("a", "b"),
        7,
        999,
    )
    assert (openai.price_in_uusd, openai.price_out_uusd, openai.price_job_uusd) == (1, 2, 3)
    assert openai.key is None


def test_the_key_comes_from_a_file_or_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    config = config_of(tmp_path, engine_key_file=str(path))
    from_file = openai_config(config, {}).key
    assert from_file is not None
    assert from_file.header() == {"authorization": f"Bearer {SECRET}"}
    from_environment = openai_config(config, {ENGINE_KEY_VARIABLE: "sk-other"}).key
    assert from_environment is not None
    assert from_environment.header() == {"authorization": "Bearer sk-other"}


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        (b"", 0o600, "does not hold an API key"),
        (b"a\nb", 0o600, "does not hold an API key"),
        (b"k" * 5000, 0o600, "does not hold an API key"),
        (b"\xff\xfe", 0o600, "does not hold an API key"),
        (SECRET.encode(), 0o640, "can be read by others: run `chmod 600"),
        (None, 0, "is no file"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused_and_not_repeated(
    tmp_path: Path, content: bytes | None, mode: int, told: str
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(EngineUnavailable, match=told) as refused:
        openai_config(config_of(tmp_path, engine_key_file=str(path)), {})
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("word", "url"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
        ("https://gpu.example/llm/v1", "https://gpu.example/llm"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
    ],
)
def test_an_address_of_a_server_is_taken_with_or_without_its_last_part(word: str, url: str) -> None:
    assert read_engine_url(word) == read_engine_url(url) == url


@pytest.mark.parametrize(
    "word",
    [
        "",
        "127.0.0.1:8000",
        "ftp://x",
        "http://",
        "http://u:p@x",
        "http://x?k=1",
        "http://x#a",
        "http://x:0",
        "http://x y",
        7,
    ],
)
def test_what_is_no_address_of_a_server_is_refused(word: object) -> None:
    with pytest.raises(ValueError, match="must be like"):
        read_engine_url(word)


@pytest.mark.parametrize(("engine", "version"), [("exllamav2", 2), ("exllamav3", 3)])
def test_exllama_gets_a_folder_and_what_the_settings_say(tmp_path: Path, engine: str, version: int) -> None:
    folder = write_folder(tmp_path / "Tiny-Exl")
    named = {"model": str(folder), "slots": 7, "context_tokens": 999, "price_out_usd": Dollars(2)}
    cards = {"gpu_split": (8.0, 4.0), "tensor_parallel": True, "cache": "q6"}
    config = exllama_config(config_of(tmp_path, engine=engine, **named, **cards))
    assert (config.name, config.path, config.slots, config.context_tokens) == ("tiny-exl", str(folder), 7, 999)
    assert config.kinds == (Kind.CHAT, Kind.COMPLETION)
    assert config.price_out_uusd == 2
    assert config.exllama == ExllamaOptions(version, (8.0, 4.0), tensor_parallel=True, cache_bits=6)


def test_a_folder_without_a_template_is_offered_for_completions_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text("{}")
    config = exllama_config(config_of(tmp_path, engine="exllamav2", model=str(folder)))
    assert config.kinds == (Kind.COMPLETION,)


async def test_exllama_wants_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="ExLlama serves a folder"):
        await open_engine(config_of(tmp_path, engine="exllamav3"))
