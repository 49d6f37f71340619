"""Which engine a configuration means, and how the API key of somebody else's server is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from infernet.config import Config
from infernet.engines import selection
from infernet.engines.contract import EngineUnavailable, ExllamaOptions
from infernet.engines.isolated import IsolatedEngine
from infernet.engines.models import ModelMissing, marker_path
from infernet.engines.openai_engine import OpenAiEngine, Terms
from infernet.engines.placement import NoPlace
from infernet.engines.process import ANYWHERE, Place
from infernet.engines.selection import engine_configs, exllama_config, open_engine, openai_config
from infernet.engines.several import SeveralEngines
from infernet.engines.shelf import Origin, Voucher, write_origin
from infernet.settings.environment import ENGINE_KEY_VARIABLE
from infernet.settings.models import ModelSettings
from infernet.settings.readers import Dollars, read_engine_url
from protocol.records import Kind, Role
from tests.helpers_exllama import write_folder
from tests.helpers_gguf import model

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


@pytest.fixture
def no_division(monkeypatch: pytest.MonkeyPatch) -> dict[str, Place | NoPlace]:
    """What the division of this machine's cards says, without asking llama.cpp."""
    places: dict[str, Place | NoPlace] = {}

    class Told:
        """Test double: a division that was made beforehand."""

        cards: tuple[()] = ()

        def place(self, model: str) -> Place | NoPlace:
            """Where a model runs."""
            return places.get(model, ANYWHERE)

    async def divide(_configs: object) -> Told:
        return Told()

    monkeypatch.setattr(selection, "divide", divide)
    return places


def model_files(tmp_path: Path, *names: str) -> tuple[str, ...]:
    paths = [tmp_path / f"{name}.gguf" for name in names]
    for path in paths:
        path.write_bytes(b"weights")
    return tuple(map(str, paths))


async def test_several_models_and_a_server_are_served_in_the_order_of_the_setting(
    tmp_path: Path, no_division: dict[str, Place | NoPlace]
) -> None:
    no_division["b"] = NoPlace("b needs 80.0 GB")
    models = model_files(tmp_path, "a", "b")
    engine = await open_engine(config_of(tmp_path, engine="openai,llama", models=models, engine_models=("x",)))
    assert isinstance(engine, SeveralEngines)
    assert [(part.engine, part.models, part.where, part.trouble) for part in engine.parts()] == [
        ("openai", ("x",), "no server", ""),
        ("llama", ("a",), "", ""),
        ("llama", ("b",), "nowhere", "b needs 80.0 GB"),
    ]
    only = await open_engine(config_of(tmp_path, models=models[:1]))
    assert isinstance(only, IsolatedEngine)
    assert only.name == "a"


async def test_no_file_is_read_whole_before_an_engine_runs(
    tmp_path: Path, no_division: dict[str, Place | NoPlace]
) -> None:
    assert not no_division
    paths = model_files(tmp_path, "a", "b")
    engine = await open_engine(config_of(tmp_path, models=paths))
    assert isinstance(engine, SeveralEngines)
    assert not any(marker_path(Path(path)).exists() for path in paths)
    # What is known of a file that was fetched is what the engine holds it against.
    write_origin(Path(paths[0]), Origin("somewhere", "ab" * 32, Voucher.OWNER))
    assert [one.fingerprint for one in engine_configs(config_of(tmp_path, models=paths))] == [b"\xab" * 32, None]


async def test_two_models_of_one_name_and_one_that_is_not_there_are_told_at_once(
    tmp_path: Path, no_division: dict[str, Place | NoPlace]
) -> None:
    assert not no_division
    (tmp_path / "other").mkdir()
    twice = model_files(tmp_path, "a") + model_files(tmp_path / "other", "A")
    with pytest.raises(EngineUnavailable, match="two of the models to serve are called a: rename"):
        await open_engine(config_of(tmp_path, models=twice))
    with pytest.raises(ModelMissing):
        await open_engine(config_of(tmp_path, models=(*twice[:1], "missing")))


def test_what_is_set_for_one_model_wins_and_the_rest_is_as_for_all(tmp_path: Path) -> None:
    own = ModelSettings(name="B", slots=1, context_tokens=4096, threads=3, price_out_usd=Dollars(9))
    config = config_of(
        tmp_path,
        models=model_files(tmp_path, "a", "b"),
        model_settings=(own,),
        slots=2,
        context_tokens=512,
        price_in_usd=Dollars(1),
        price_out_usd=Dollars(2),
    )
    a, b = engine_configs(config)
    assert (a.slots, a.context_tokens, a.price_in_uusd, a.price_out_uusd) == (2, 512, 1, 2)
    assert (b.slots, b.context_tokens, b.price_in_uusd, b.price_out_uusd, b.threads) == (1, 4096, 1, 9, 3)


def test_how_a_files_weights_are_quantised_is_what_its_header_says(tmp_path: Path) -> None:
    paths = model_files(tmp_path, "a", "b")
    Path(paths[0]).write_bytes(model())
    assert [one.quantisation for one in engine_configs(config_of(tmp_path, models=paths))] == ["Q4_K_M", ""]


@pytest.mark.parametrize(("count", "threads"), [(1, None), (2, 3), (4, 1), (9, 1)])
def test_several_models_share_the_threads_that_one_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, threads: int | None
) -> None:
    monkeypatch.setattr(selection, "default_threads", lambda: 7)
    config = config_of(tmp_path, models=model_files(tmp_path, *"abcdefghi"[:count]))
    assert {one.threads for one in engine_configs(config)} == {threads}
    assert {one.threads for one in engine_configs(dataclasses.replace(config, threads=5))} == {5}


def test_a_model_of_a_server_has_its_own_price_and_slots(tmp_path: Path) -> None:
    own = ModelSettings(name="Qwen2.5:7b", slots=1, price_job_usd=Dollars(5))
    openai = openai_config(config_of(tmp_path, model_settings=(own,), slots=3, price_in_usd=Dollars(2)), {})
    assert openai.terms_of("qwen2.5:7b") == Terms(1, 2, 0, 5)
    assert openai.terms_of("another") == Terms(3, 2, 0, 0)


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


def test_a_folder_has_its_own_price_and_slots(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "Tiny-Exl")
    own = ModelSettings(name="Tiny-EXL", slots=1, context_tokens=512, price_out_usd=Dollars(9))
    named = {"engine": "exllamav3", "model": str(folder), "slots": 7, "price_out_usd": Dollars(2)}
    config = exllama_config(config_of(tmp_path, model_settings=(own,), price_in_usd=Dollars(3), **named))
    assert (config.slots, config.context_tokens) == (1, 512)
    assert (config.price_in_uusd, config.price_out_uusd, config.price_job_uusd) == (3, 9, 0)


def test_a_folder_without_a_template_is_offered_for_completions_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text("{}")
    config = exllama_config(config_of(tmp_path, engine="exllamav2", model=str(folder)))
    assert config.kinds == (Kind.COMPLETION,)


async def test_exllama_wants_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="ExLlama serves a folder"):
        await open_engine(config_of(tmp_path, engine="exllamav3"))
