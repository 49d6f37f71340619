"""What is set for one model alone, and which engines and models a node is told to serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from infernet.config import Config, ConfigError, load, read_file, save
from infernet.settings.models import MODELS_MAX, ModelSettings, settings_of
from infernet.settings.readers import Dollars, as_plain
from infernet.settings.table import BY_NAME

TABLE = """
engine = ["llama", "openai"]
models = ["a", "~/b.gguf"]

[model_settings.a]
slots = 2
price_out_usd = "0.40"

[model_settings."qwen2.5:7b"]
context_tokens = 4096
aliases = ["qwen", "Qwen 2.5"]
"""
READ = (
    ModelSettings(name="a", slots=2, price_out_usd=Dollars(400_000)),
    ModelSettings(name="qwen2.5:7b", context_tokens=4096, aliases=("qwen", "Qwen 2.5")),
)


def load_from(path: Path, text: str, flags: dict[str, object] | None = None, **environ: str) -> Config:
    file = path / "config" / "config.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return load(flags, {"INFERNET_HOME": str(path), **environ}).config


def test_the_file_the_environment_and_a_flag_say_the_same(tmp_path: Path) -> None:
    from_file = load_from(tmp_path, TABLE)
    assert (from_file.engine, from_file.engines) == ("llama,openai", ("llama", "openai"))
    assert from_file.llama_models == ("a", "~/b.gguf")
    assert from_file.model_settings == READ
    text = (
        '{"a": {"slots": 2, "price_out_usd": "0.40"}, '
        '"qwen2.5:7b": {"context_tokens": 4096, "aliases": ["qwen", "Qwen 2.5"]}}'
    )
    words = {"engine": "llama,openai", "models": "a ~/b.gguf", "model_settings": text}
    from_flags = load_from(tmp_path, "", dict(words))
    from_environment = load_from(
        tmp_path, "", None, **{f"INFERNET_{name.upper()}": word for name, word in words.items()}
    )
    assert from_flags == from_environment == from_file


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "config" / "config.toml"
    save(path, {"model_settings": READ, "models": ("a", "b"), "engine": "llama,openai"}, keep=False)
    assert read_file(path) == {
        "schema_version": 1,
        "engine": "llama,openai",
        "models": ["a", "b"],
        "model_settings": {
            "a": {"slots": 2, "price_out_usd": "0.40"},
            "qwen2.5:7b": {"context_tokens": 4096, "aliases": ["qwen", "Qwen 2.5"]},
        },
    }
    config = load_from(tmp_path, path.read_text())
    assert (config.model_settings, config.models) == (READ, ("a", "b"))
    save(path, {"model_settings": ()}, keep=True)
    assert load_from(tmp_path, path.read_text()).model_settings == ()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("nonsense", "must be JSON"),
        ("[" * 100_000, "is too long"),
        ("[" * 50_000, "must be JSON"),
        ([1], "must be a table by the names of models"),
        (7, "must be a table by the names of models"),
        ({f"m{n}": {} for n in range(MODELS_MAX + 1)}, "32 at most"),
        ({"": {}}, "by the names of models"),
        ({"a" * 129: {}}, "by the names of models"),
        ({"a\x1b[0m": {}}, "by the names of models"),
        ({"a": {"slots": 1}, "A": {"slots": 2}}, "must have a once"),
        ('{"a": {"slots": 1}, "a": {"slots": 2}}', "must have a once"),
        ('{"a": {"slots": 1, "slots": 2}}', "must have slots once"),
        ('{"a": {"slots": ' + "1" * 5000 + "}}", "must be JSON"),
        ({"a": 1}, "must hold a table for a"),
        ({"a": {"colour": 1}}, "of a may hold context_tokens, slots, threads, price_in_usd, price_out_usd"),
        ({"a": {"slots": 0}}, "slots of a must be a whole number from 1 to 256"),
        ({"a": {"aliases": ["b"] * 5}}, "aliases of a must be a list of 4 names at most"),
        ({"a": {"aliases": [""]}}, "aliases of a must be a list of 4 names"),
        ({"a": {"aliases": ["x" * 129]}}, "each of 1 to 128 characters"),
        ({"a": {"aliases": ["x\n"]}}, "without control characters"),
        ({"a": {"aliases": [" x"]}}, "or spaces around it"),
        ({"a": {"aliases": [7]}}, "aliases of a must be a list"),
        ({"a": {"aliases": {"b": 1}}}, "aliases of a must be a list"),
        ({"a": {"aliases": ["b"]}, "b": {}}, "must not have b as an alias of a: it is a name of b"),
        ({"a": {"aliases": ["c"]}, "b": {"aliases": ["c"]}}, "must not have c as an alias of b: it is a name of a"),
        ({"a": {"price_in_usd": 0.1}}, "price_in_usd of a must be dollars in quotes"),
    ],
)
def test_what_is_no_such_table_is_refused_with_what_is_allowed(value: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BY_NAME["model_settings"].read(value)


@pytest.mark.parametrize("value", ["", "none,llama", "llama,vllm2", ["llama", 7], [], 3, None, {"llama": 1}])
def test_what_names_no_engines_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be one of llama, "):
        BY_NAME["engine"].read(value)


@pytest.mark.parametrize(
    ("value", "read"),
    [("llama", "llama"), ("NONE", "none"), ("openai, llama", "openai,llama"), (["llama", "llama"], "llama")],
)
def test_one_engine_or_several_are_one_text(value: object, read: str) -> None:
    assert BY_NAME["engine"].read(value) == read
    assert BY_NAME["engine"].read(as_plain(read)) == read


def test_too_many_models_are_refused() -> None:
    names = [f"m{n}" for n in range(MODELS_MAX)]
    assert BY_NAME["models"].read(names) == tuple(names)
    with pytest.raises(ValueError, match="32 models at most"):
        BY_NAME["models"].read([*names, "another"])


def test_without_a_list_the_one_model_is_served_and_without_the_engine_none(tmp_path: Path) -> None:
    assert load_from(tmp_path, 'model = "a"').llama_models == ("a",)
    assert load_from(tmp_path, 'engine = "openai"\nmodels = ["a"]').llama_models == ()
    none = load_from(tmp_path, 'engine = "none"')
    assert (none.engines, none.llama_models) == ((), ())


def test_a_model_is_found_by_its_name_whatever_its_case() -> None:
    assert settings_of(READ, "QWEN2.5:7B").context_tokens == 4096
    assert settings_of(READ, "unknown") == ModelSettings(name="unknown")


def test_a_bad_table_in_the_file_is_told_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml: model_settings slots of a must be"):
        load_from(tmp_path, "[model_settings.a]\nslots = 0\n")


def test_one_model_that_is_named_later_is_served_alone(tmp_path: Path) -> None:
    several = 'model = "a"\nmodels = ["a", "b"]'
    assert load_from(tmp_path, several).llama_models == ("a", "b")
    assert load_from(tmp_path, several, {"model": "c"}).llama_models == ("c",)
    assert load_from(tmp_path, several, None, INFERNET_MODEL="c").llama_models == ("c",)
    assert load_from(tmp_path, several, {"model": "c", "models": "d,e"}).llama_models == ("d", "e")
    assert load_from(tmp_path, several, {"models": "d,e"}, INFERNET_MODEL="c").llama_models == ("d", "e")
    assert load_from(tmp_path, several, {"model": "c"}, INFERNET_MODELS="d,e").llama_models == ("c",)


def test_one_alias_needs_no_list_and_counts_once() -> None:
    read = BY_NAME["model_settings"].read
    assert read({"a": {"aliases": "b"}}) == (ModelSettings(name="a", aliases=("b",)),)
    assert read({"a": {"aliases": ["b", "b", "A"]}}) == (ModelSettings(name="a", aliases=("b", "A")),)
