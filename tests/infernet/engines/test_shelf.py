"""The models in the store: their names, and whether their files are what they should be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from infernet.engines import models, shelf
from infernet.engines.models import STARTER, ModelMissing
from infernet.engines.shelf import Check, Origin, Voucher
from tests.helpers_gguf import model

WEIGHTS = model()
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny.Q4.gguf"
    path.write_bytes(WEIGHTS)
    return path


def test_a_store_lists_its_models_and_nothing_else(path: Path) -> None:
    (path.parent / "folder.gguf").mkdir()
    (path.parent / ".x.gguf.part").write_bytes(b"")
    (path.parent / "broken.gguf").write_bytes(b"nonsense")
    (path.parent / STARTER.file_name).write_bytes(WEIGHTS)
    found = shelf.models_in(path.parent)
    assert [one.name for one in found] == ["broken", STARTER.name, "tiny.q4"]
    assert (found[0].header, found[0].problem) == (None, "is no GGUF file")
    assert found[2].header is not None
    assert found[2].file_bytes == len(WEIGHTS)
    assert shelf.models_in(path.parent / "none") == []


def test_a_model_is_found_by_its_name_or_its_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = path.parent
    monkeypatch.setenv("HOME", str(store))
    assert shelf.path_of(store, "TINY.q4") == path
    assert shelf.path_of(store, str(path)) == path
    assert shelf.path_of(store, "~/Tiny.Q4.gguf") == path
    assert shelf.path_of(store, "elsewhere.gguf") == Path("elsewhere.gguf")
    assert shelf.path_of(store, STARTER.name) == store / STARTER.file_name
    with pytest.raises(ModelMissing, match="there is no model other here"):
        shelf.path_of(store, "other")


@pytest.mark.parametrize("voucher", Voucher)
def test_a_file_is_checked_against_what_was_said_of_it(path: Path, voucher: Voucher) -> None:
    assert shelf.look(path).check is Check.UNKNOWN
    shelf.write_origin(path, Origin("http://a", SHA256, voucher))
    assert shelf.look(path).check is Check.NOT_YET
    models.fingerprint(path)
    assert shelf.look(path).check is (Check.LEARNED if voucher is Voucher.NOBODY else Check.VERIFIED)
    path.write_bytes(WEIGHTS[:-1])
    assert shelf.look(path).check is Check.NOT_YET
    models.fingerprint(path)
    assert shelf.look(path).check is Check.DAMAGED


def test_a_model_goes_with_all_that_lies_beside_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERNET_HOME", str(path.parent))
    store = path.parent / "data" / "models"
    store.mkdir(parents=True)
    path = path.rename(store / path.name)
    models.fingerprint(path)
    shelf.write_origin(path, Origin("http://a", SHA256, Voucher.OWNER))
    assert len(list(path.parent.iterdir())) == 3
    shelf.remove(path)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(ModelMissing, match="there is no model file"):
        shelf.look(path)
