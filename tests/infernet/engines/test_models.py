"""The model store: a file is what its hash says or it is not used."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from infernet.engines import models
from infernet.engines.models import STARTER, ModelCorrupt, ModelMissing

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = b"GGUF" + bytes(range(256)) * 4000
DIGEST = hashlib.sha256(WEIGHTS).digest()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file."""
    path = tmp_path / "model.gguf"
    path.write_bytes(WEIGHTS)
    return path


# ---------------------------------------------------------------- verifying


def test_a_whole_file_is_what_it_should_be(model: Path) -> None:
    assert models.fingerprint(model) == DIGEST
    models.verify(model, DIGEST)
    models.verify(model, DIGEST)


@pytest.mark.parametrize("damage", [WEIGHTS[:-1], WEIGHTS[:5] + b"!" + WEIGHTS[6:], b""], ids=["cut", "flip", "empty"])
def test_a_damaged_file_is_found_even_after_it_was_once_whole(model: Path, damage: bytes) -> None:
    models.verify(model, DIGEST)
    model.write_bytes(damage)
    with pytest.raises(ModelCorrupt, match=r"model\.gguf is corrupt .* delete it and run"):
        models.verify(model, DIGEST)


def test_a_missing_file_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"none\.gguf cannot be read \(no such file or directory\): .*--role client"):
        models.verify(tmp_path / "none.gguf", DIGEST)


def test_who_measures_is_not_told_to_do_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing) as missing:
        models.fingerprint(tmp_path / "none.gguf")
    told = models.without_asking_only(missing.value)
    assert told.endswith("run `infernet model pull`, or give the path of a model that you have (--model)")


def test_a_file_that_did_not_change_is_not_read_again(model: Path) -> None:
    models.fingerprint(model)
    stat = model.stat()
    model.write_bytes(bytes(len(WEIGHTS)))
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert models.fingerprint(model) == DIGEST


def test_the_hash_of_a_file_outside_the_store_is_remembered_among_the_records_of_the_node(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = model.parent / "home"
    monkeypatch.setenv("INFERNET_HOME", str(home))
    models.fingerprint(model)
    assert sorted(path.name for path in model.parent.iterdir()) == ["home", "model.gguf"]
    assert models.marked(model) == DIGEST
    assert len(list((home / "state" / "verified").iterdir())) == 1
    # In the store it lies beside the file, and goes with it.
    store = home / "data" / "models"
    store.mkdir(parents=True)
    shutil.copy(model, store)
    models.fingerprint(store / model.name)
    assert {path.name for path in store.iterdir()} == {"model.gguf", "model.gguf.verified"}


def test_records_that_cannot_be_written_cost_a_reading_and_nothing_else(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model.parent / "home").write_text("a file is in the way")
    monkeypatch.setenv("INFERNET_HOME", str(model.parent / "home"))
    assert models.fingerprint(model) == DIGEST
    assert models.marked(model) is None


@pytest.mark.parametrize("marker", [b"", b"\xff\xfe", b"1 2\nzz\n", b"nonsense", b"1 2\n3 4\n5"])
def test_a_marker_that_is_nonsense_is_not_believed(model: Path, marker: bytes) -> None:
    (model.parent / "model.gguf.verified").write_bytes(marker)
    models.verify(model, DIGEST)


def test_the_lock_of_the_model_and_the_catalogue_agree() -> None:
    lock = (ROOT / "requirements" / "model.txt").read_text("utf-8")
    assert STARTER.package in lock
    assert STARTER.package_sha256 in lock


def test_the_catalogue_says_how_to_load_an_entry() -> None:
    config = STARTER.engine_config(Path("/models/x.gguf"), slots=2, threads=3)
    assert (config.name, config.slots, config.threads, config.context_tokens) == (STARTER.name, 2, 3, 2048)
    assert config.fingerprint is not None
    assert config.fingerprint.hex() == STARTER.sha256
    assert config.system_prompt == "You are a helpful assistant."
