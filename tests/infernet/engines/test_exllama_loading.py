"""The loaders of both releases: each call is one that the recorded signatures of the real libraries allow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from infernet.engines import exllama, exllama_fitting, exllama_v2, exllama_v3
from infernet.engines.contract import EngineConfig, EngineUnavailable, ExllamaOptions
from infernet.engines.exllama_library import cache_tokens, import_library, keep_prompts_apart
from infernet.engines.folders import read_folder
from infernet.engines.worker import load_model, probe
from tests.helpers_exllama import write_folder
from tests.helpers_exllama_double import Calls, bound, install, wished
from tests.helpers_signatures import WORDS, recorded, taken_from

LOADERS = {"exllamav2": exllama_v2, "exllamav3": exllama_v3}


def config_of(path: Path, version: int, **options: Any) -> EngineConfig:
    return EngineConfig("m", str(path), context_tokens=1000, slots=3, exllama=ExllamaOptions(version, **options))


def loaded(monkeypatch: pytest.MonkeyPatch, path: Path, version: int, **options: Any) -> Calls:
    """Load with a double in the library's place, and use all that came of it."""
    name = f"exllamav{version}"
    calls = install(monkeypatch, name)
    config = config_of(path, version, **options)
    assert config.exllama is not None
    library = LOADERS[name].load(config, config.exllama)
    assert library.encode("text", True) == [5, 6]
    assert library.decode([5, 6], False) == "text"
    assert (library.vocabulary_size, library.end_token) == (512, 2)
    assert library.make_job([5, 6], 9, wished(), [2]) == "job"
    return calls


@pytest.mark.parametrize("version", [2, 3])
def test_everything_that_is_called_is_there_and_takes_what_it_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: int
) -> None:
    calls = loaded(monkeypatch, tmp_path, version)
    encode = calls.of("ExLlamaV2Tokenizer.encode" if version == 2 else "Tokenizer.encode")
    assert encode == {"text": "text", "encode_special_tokens": True}
    generator = calls.of("ExLlamaV2DynamicGenerator" if version == 2 else "Generator")
    assert (generator["max_batch_size"], generator["max_chunk_size"]) == (3, 512)
    job = calls.of("ExLlamaV2DynamicJob" if version == 2 else "Job")
    assert (job["max_new_tokens"], job["seed"], job["stop_conditions"]) == (9, 7, [2])
    assert "banned_strings" not in job


def test_a_call_that_the_library_does_not_take_fails() -> None:
    with pytest.raises(TypeError):
        bound("exllamav3", "cache/cache.py:Cache", "model", max_num_tokens=1, bits=4)
    with pytest.raises(TypeError):
        bound("exllamav2", "generator/dynamic.py:ExLlamaV2DynamicGenerator.enqueue", "job", "other")


def test_each_job_has_whole_pages_for_its_context() -> None:
    assert [cache_tokens(tokens, 3) for tokens in (256, 257, 1000)] == [768, 1536, 3072]


def test_cards_are_filled_one_after_the_other_where_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = loaded(monkeypatch, tmp_path, 2)
    assert calls.of("ExLlamaV2.load_autosplit") == {"cache": "ExLlamaV2Cache"}
    assert calls.of("ExLlamaV2Cache")["lazy"] is True
    calls = loaded(monkeypatch, tmp_path, 3)
    assert calls.of("Model.load_gen") == {"max_chunk_size": 512}
    assert calls.of("Cache")["layer_type"] == "exact"


def test_a_split_and_a_smaller_cache_are_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = loaded(monkeypatch, tmp_path, 2, gpu_split_gb=(20.0, 24.0), cache_bits=6)
    assert calls.of("ExLlamaV2.load") == {"gpu_split": [20.0, 24.0]}
    assert calls.of("ExLlamaV2Cache_Q6")["max_seq_len"] == 3072
    calls = loaded(monkeypatch, tmp_path, 3, gpu_split_gb=(20.0, 24.0), cache_bits=6)
    assert calls.of("Model.load_gen")["use_per_device"] == [20.0, 24.0]
    cache = calls.of("Cache")
    assert (cache["layer_type"], cache["k_bits"], cache["v_bits"]) == ("quantised", 6, 6)
    names = [name for name, _ in calls.made]
    assert names.index("Cache") < names.index("Model.load_gen"), "pages get no place when the cache comes second"


def test_cards_work_together_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = loaded(monkeypatch, tmp_path, 2, tensor_parallel=True, cache_bits=4)
    load = calls.of("ExLlamaV2.load_tp")
    assert (load["gpu_split"], load["expect_cache_tokens"]) == (None, 3072)
    assert calls.of("ExLlamaV2Cache_TP")["max_seq_len"] == 3072
    calls = loaded(monkeypatch, tmp_path, 3, tensor_parallel=True)
    assert (calls.of("Model.load_gen")["tensor_p"], calls.of("Model.load_gen")["tp_backend"]) == (True, "native")


def test_without_flash_attention_there_is_one_job_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = install(monkeypatch, "exllamav2", has_flash_attention=False)
    config = config_of(tmp_path, 2)
    assert config.exllama is not None
    with pytest.raises(EngineUnavailable, match="set --slots 1"):
        exllama_v2.load(config, config.exllama)
    exllama_v2.load(msgspec.structs.replace(config, slots=1), config.exllama)
    assert calls.of("ExLlamaV2DynamicGenerator")["paged"] is False


def test_the_wishes_of_an_asker_have_their_names_in_both() -> None:
    assert exllama_v2.sampler_settings(wished()) == {
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "token_repetition_penalty": 1.1,
        "token_presence_penalty": 0.1,
        "token_frequency_penalty": 0.2,
    }
    assert exllama_v3.sampler_arguments(wished()) == {
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "rep_p": 1.1,
        "pres_p": 0.1,
        "freq_p": 0.2,
    }


@pytest.mark.parametrize("changes", [{"temperature_milli": 0}, {"top_p_milli": 0}])
def test_whoever_wants_the_likeliest_token_gets_it_and_no_hidden_penalty(changes: dict[str, int]) -> None:
    plain = wished(repetition_penalty_milli=1000, presence_penalty_milli=0, frequency_penalty_milli=0, **changes)
    settings = exllama_v2.sampler_settings(plain)
    assert (settings["top_k"], settings["token_repetition_penalty"]) == (1, 1.0)
    assert exllama_v3.sampler_arguments(plain) == {"temperature": 0.0, "rep_p": 1.0, "pres_p": 0.0, "freq_p": 0.0}


# ---------------------------------------------------------------- prompts apart


@pytest.mark.parametrize("version", [2, 3])
def test_no_page_is_found_by_what_is_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: int) -> None:
    loaded(monkeypatch, tmp_path, version)
    if version == 2:
        (dynamic,) = (sys.modules["exllamav2.generator.dynamic"],)
        assert dynamic._tensor_hash_checksum("page", None) != dynamic._tensor_hash_checksum("page", None)
        assert (dynamic.ext_c.count_match(1, 2, 3), dynamic.ext_c.sample_basic()) == (0, "sampled")
        return
    pagetable, job = (sys.modules[f"exllamav3.generator.{name}"] for name in ("pagetable", "job"))
    for module in (pagetable, job):
        assert module.tensor_hash_checksum("page", None) != module.tensor_hash_checksum("page", None)
    assert (job.ext.count_match_tensor(1, 2, 3), job.ext.partial_strings_match()) == (0, "matched")


def test_a_library_that_keeps_prompts_in_another_way_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("newer")
    monkeypatch.setitem(sys.modules, "newer", module)
    with pytest.raises(EngineUnavailable, match="could not be kept apart"):
        keep_prompts_apart("exllamav3", [("newer", "tensor_hash_checksum")], ("newer", "ext", "count_match_tensor"))


# ---------------------------------------------------------------- what can be wrong


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("No module", name="absent_library"), "absent_library is not installed"),
        (ModuleNotFoundError("No module", name="tokenizers"), "absent_library needs tokenizers"),
        (OSError("CUDA_HOME environment variable is not set. /home/somebody"), "does not start here (OSError)"),
        (ImportError("undefined symbol"), "does not start here (ImportError)"),
        (RuntimeError("PyTorch is required"), "does not start here (RuntimeError)"),
    ],
)
def test_a_library_that_cannot_be_loaded_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def fail(_name: str) -> ModuleType:
        raise error

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(EngineUnavailable) as caught:
        import_library("absent_library", "docs say how")
    assert told in str(caught.value)
    assert "somebody" not in str(caught.value)


def test_the_process_says_that_a_library_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "exllamav3", None)
    answer = probe("exllamav3")
    assert answer.version == ""
    assert answer.problem.startswith("exllamav3 ")


def test_a_machine_without_a_card_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, "exllamav3")
    sys.modules["torch"].cuda.is_available = lambda: False
    with pytest.raises(EngineUnavailable, match="torch sees none"):
        load_model(config_of(write_folder(tmp_path / "m"), 3), "")


def test_a_model_that_is_too_large_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = install(monkeypatch, "exllamav2")
    config = config_of(write_folder(tmp_path / "m", num_hidden_layers=9000, hidden_size=12800), 2)
    with pytest.raises(EngineUnavailable, match=r"needs .* GB and the cards give 51\.5 GB"):
        load_model(config, "")
    assert calls.made == []


def test_what_a_model_needs_is_weights_contexts_and_room(tmp_path: Path) -> None:
    folder = read_folder(write_folder(tmp_path / "m"))
    # Two layers of keys and values, two groups of 32 numbers.
    assert folder.values_per_token == 2 * 2 * 2 * 32
    config = config_of(tmp_path, 2)
    for bits, stored in ((16, 16), (8, 8.5), (4, 4.5)):
        needed = exllama_fitting.needed_bytes(config, ExllamaOptions(2, cache_bits=bits), folder)
        assert needed == exllama_fitting.WORKING_BYTES + len(b"no weights") + round(3072 * 256 * stored / 8)


def test_a_split_bounds_what_the_cards_give(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "exllamav2")
    gigabyte = 1024**3
    assert exllama_fitting.there_bytes(ExllamaOptions(2)) == 48 * gigabyte
    assert exllama_fitting.there_bytes(ExllamaOptions(2, gpu_split_gb=(20.0, 99.0))) == 44 * gigabyte
    assert exllama_fitting.there_bytes(ExllamaOptions(2, gpu_split_gb=(8.0,))) == 8 * gigabyte


def test_a_context_that_the_model_has_not_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, "exllamav2")
    folder = write_folder(tmp_path / "m", max_position_embeddings=512)
    with pytest.raises(EngineUnavailable, match="set --context-tokens 512 or less"):
        load_model(config_of(folder, 2), "")


def test_a_load_that_fails_is_told_without_the_words_of_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, "exllamav3")

    class OutOfMemoryError(RuntimeError):
        pass

    def fail(_error: type[Exception]) -> Any:
        def from_directory(directory: str, **_: Any) -> None:
            raise _error("Tried to allocate at /home/somebody")

        return from_directory

    config = config_of(write_folder(tmp_path / "m"), 3)
    for error, told in ((AssertionError, "it must be a model in EXL3"), (OutOfMemoryError, "not enough memory")):
        sys.modules["exllamav3"].Config.from_directory = fail(error)
        with pytest.raises(EngineUnavailable) as caught:
            exllama.load(config)
        assert told in str(caught.value)
        assert "somebody" not in str(caught.value)


# ---------------------------------------------------------------- the record


@pytest.mark.parametrize("library", ["exllamav2", "exllamav3"])
def test_the_record_holds_every_name_that_is_relied_on(library: str) -> None:
    record = recorded()[library]
    assert record["words"] == {file: sorted(names) for file, names in WORDS[library].items()}
    assert all(isinstance(parameters, list) for parameters in record["called"].values())


@pytest.mark.nightly
@pytest.mark.parametrize("library", ["exllamav2", "exllamav3"])
def test_the_record_is_what_the_wheel_says(library: str, tmp_path: Path) -> None:
    record = recorded()[library]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest"]
    subprocess.run([*command, str(tmp_path), f"{library}=={record['version']}"], check=True, timeout=300)
    assert taken_from(tmp_path / record["wheel"]) == record
