"""Model folders: their fingerprint, and files beside the weights that are as expected or as nobody expects."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.engines import folders, models
from infernet.engines.models import ModelCorrupt, ModelError, ModelMissing
from tests.helpers_exllama import BOS, EOS_ID, SPECIAL, TEMPLATE, TURN_ENDS, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "Tiny-Model.v2")


def change(path: Path, **changes: Any) -> None:
    """Change a file of JSON."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---------------------------------------------------------------- the fingerprint


def test_the_fingerprint_is_the_hash_of_what_sha256sum_prints(folder: Path) -> None:
    (folder / "README.md").write_text("has no part")
    (folder / "model-00002.safetensors").write_bytes(b"more weights")
    files = "config.json generation_config.json model-00002.safetensors model.safetensors tokenizer.json "
    command = ["sha256sum", *files.split(), "tokenizer_config.json"]
    listed = subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout
    assert folders.fingerprint(folder) == hashlib.sha256(listed).digest()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_every_file_that_has_a_part_changes_it(folder: Path, name: str) -> None:
    before = folders.fingerprint(folder)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert folders.fingerprint(folder) != before


def test_a_name_that_changes_changes_it_and_a_place_does_not(folder: Path, tmp_path: Path) -> None:
    before = folders.fingerprint(folder)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    assert folders.fingerprint(elsewhere) == before
    (elsewhere / "model.safetensors").rename(elsewhere / "other.safetensors")
    assert folders.fingerprint(elsewhere) != before


def test_files_that_did_not_change_are_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = folders.fingerprint(folder)

    def fail(*_: object) -> None:
        raise AssertionError("it was read again")

    monkeypatch.setattr(models.hashlib, "file_digest", fail)
    assert folders.fingerprint(folder) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_folder_that_lacks_a_part_is_told(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelMissing, match=name):
        folders.fingerprint(folder)
    with pytest.raises(ModelMissing, match=name):
        folders.read_folder(folder)


def test_a_folder_without_weights_is_told(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelMissing, match="safetensors"):
        folders.fingerprint(folder)


def test_a_name_that_would_make_two_lines_is_refused(folder: Path) -> None:
    (folder / "a\nb.safetensors").write_bytes(b"")
    with pytest.raises(ModelCorrupt, match="rename it"):
        folders.fingerprint(folder)


# ---------------------------------------------------------------- what the files say


def test_what_the_files_say(folder: Path) -> None:
    read = folders.read_folder(folder)
    assert (read.template, read.control, read.ends) == (TEMPLATE, SPECIAL, (EOS_ID,))
    assert read.names == {"bos_token": BOS, "eos_token": TURN_ENDS}
    assert (read.begins_with_bos, read.context_tokens_max) == (True, 4096)


@pytest.mark.parametrize(
    ("told", "read"),
    [
        ({"quant_method": "exl2", "bits": 4.0, "head_bits": 6}, "exl2 4.0bpw"),
        ({"quant_method": "exl3", "bits": 3.53}, "exl3 3.5bpw"),
        ({"quant_method": "gptq", "bits": 4}, "gptq 4bpw"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "exl2", "bits": True}, "exl2"),
        ({"bits": 4.0}, ""),
        (None, ""),
        ("exl2", ""),
        ([1], ""),
    ],
)
def test_how_the_weights_are_quantised_is_what_the_configuration_says(folder: Path, told: object, read: str) -> None:
    change(folder / "config.json", quantization_config=told)
    assert folders.read_folder(folder).quantisation == read


def test_every_token_that_ends_an_answer_is_found(folder: Path) -> None:
    change(folder / "config.json", eos_token_id=[7, 8])
    change(folder / "generation_config.json", eos_token_id=[8, 9])
    assert folders.read_folder(folder).ends == (7, 8, EOS_ID, 9)


def test_control_tokens_are_found_wherever_they_are_declared(folder: Path) -> None:
    declared = {"900": {"content": "<|a|>", "special": True}, "901": {"content": "<think>", "special": False}}
    change(folder / "tokenizer_config.json", added_tokens_decoder=declared)
    (folder / "added_tokens.json").write_text('{"<|b|>": 902}')
    assert folders.read_folder(folder).control == SPECIAL | {"<|a|>": 900, "<|b|>": 902}


def test_a_template_may_be_a_file_or_one_of_several(folder: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    change(folder / "tokenizer_config.json", chat_template=several)
    assert folders.read_folder(folder).template == "plain"
    (folder / "chat_template.jinja").write_text("from a file")
    assert folders.read_folder(folder).template == "from a file"


def test_a_model_that_sees_pictures_has_its_shape_one_level_down(folder: Path) -> None:
    text = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 40, "max_position_embeddings": 77}
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 5, "text_config": text}))
    read = folders.read_folder(folder)
    assert (read.values_per_token, read.context_tokens_max) == (2 * 3 * 4 * 10, 77)
    assert 5 in read.ends


@pytest.mark.parametrize(
    ("post", "begins"),
    [
        ({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": BOS}}, {"Sequence": {"id": "A"}}]}, True),
        ({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}, False),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}]}, False),
        ({"processors": 7}, False),
        (None, False),
        ("x", False),
    ],
)
def test_whether_a_text_begins_with_a_token_is_what_is_done_to_each(folder: Path, post: object, begins: bool) -> None:
    change(folder / "tokenizer_config.json", add_bos_token=None)
    change(folder / "tokenizer.json", post_processor=post)
    assert folders.read_folder(folder).begins_with_bos is begins


@pytest.mark.parametrize("content", ["", "{", "[]", '{"eos_token_id": "x"}', "[" * 100_000, "\x00", '{"a":1'])
def test_a_file_that_is_none_is_told_in_one_line(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelCorrupt, match=r"config\.json is not what it should be"):
        folders.read_folder(folder)


def test_a_file_that_never_ends_is_not_read_to_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_FILE_BYTES_MAX", 100)
    with pytest.raises(ModelCorrupt, match="larger than"):
        folders.read_folder(folder)


def test_a_shape_that_makes_no_sense_is_not_known(folder: Path) -> None:
    wrong = {"num_hidden_layers": 0}, {"num_key_value_heads": -4}, {"hidden_size": -1}, {"num_hidden_layers": 10**9}
    for shape in wrong:
        assert folders.read_folder(write_folder(folder, **shape)).values_per_token == 0


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["eos_token_id", "text_config", "num_hidden_layers", "chat_template", "added_tokens"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]),
)
def test_whatever_a_file_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: object, name: str
) -> None:
    folder = write_folder(tmp_path_factory.mktemp("models") / "m")
    (folder / name).write_text(json.dumps(content))
    try:
        folders.read_folder(folder)
    except ModelError:
        return


# ---------------------------------------------------------------- which folder is meant


def test_a_folder_is_named_by_its_path_or_by_its_name_in_the_store(folder: Path, tmp_path: Path) -> None:
    assert folders.folder_of(tmp_path / "nowhere", str(folder)) == folder
    assert folders.folder_of(tmp_path, "Tiny-Model.v2") == folder
    assert folders.name_of(folder) == "tiny-model.v2"
    with pytest.raises(ModelMissing, match="--model"):
        folders.folder_of(tmp_path, "another")
