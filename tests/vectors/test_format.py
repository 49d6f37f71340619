"""The vectors as files: their shape, the list of them in specs/00, and the command that makes them."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers_vectors import FOLDER

ROOT = FOLDER.parent.parent
NAMES = sorted(path.name for path in FOLDER.glob("*.json"))
# What cannot be refused: a hash, and a window that answers yes or no inside its vectors.
ALWAYS_VALID = {"tagged-hashes.json", "replay-window.json"}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_what_it_tests_and_every_vector_what_is_right(name: str) -> None:
    contents = json.loads((FOLDER / name).read_text("utf-8"))
    assert contents["comment"]
    assert all(vector["comment"] and type(vector["valid"]) is bool for vector in contents["vectors"])
    verdicts = {vector["valid"] for vector in contents["vectors"]}
    assert verdicts == ({True} if name in ALWAYS_VALID else {True, False})


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_written_in_lower_case(name: str) -> None:
    found: list[str] = []

    def walk(value: Any, field: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, key)
        elif isinstance(value, list):
            for item in value:
                walk(item, field)
        elif isinstance(value, str) and re.fullmatch(r"(?:[0-9A-Fa-f]{2}){16,}", value) and value != value.lower():
            found.append(field)

    walk(json.loads((FOLDER / name).read_text("utf-8"))["vectors"], "")
    assert not found


def test_the_introduction_lists_every_file() -> None:
    listed = re.findall(r"\(vectors/([a-z0-9-]+\.json)\)", (ROOT / "specs" / "00-introduction.md").read_text("utf-8"))
    assert set(listed) == set(NAMES)


def test_the_official_vectors_name_their_source() -> None:
    assert "bip-0340/test-vectors.csv" in json.loads((FOLDER / "bip340.json").read_text("utf-8"))["source"]


def generator(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run scripts/gen_vectors on another folder."""
    monkeypatch.setattr(sys, "argv", ["gen_vectors", *arguments])
    main = runpy.run_path(str(ROOT / "scripts" / "gen_vectors"))["main"]
    main.__globals__["FOLDER"] = folder
    status: int = main()
    return status


def test_the_committed_files_are_what_this_code_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generator(FOLDER, monkeypatch, "--check") == 0
    assert generator(tmp_path, monkeypatch) == 0
    made = sorted(path.name for path in tmp_path.glob("*.json"))
    assert made == [name for name in NAMES if name != "bip340.json"]
    assert all((tmp_path / name).read_bytes() == (FOLDER / name).read_bytes() for name in made)

    (tmp_path / "cost.json").write_text("{}\n", "utf-8")
    (tmp_path / "chunks.json").unlink()
    capsys.readouterr()
    assert generator(tmp_path, monkeypatch, "--check") == 1
    assert "chunks.json, cost.json" in capsys.readouterr().err
    assert not (tmp_path / "chunks.json").exists(), "--check writes nothing"
