"""Reading specs/vectors: each vector of a file as a parameter of a test, named by its comment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "specs" / "vectors"
Vector = dict[str, Any]


def load(name: str) -> list[Vector]:
    """The vectors of a file."""
    vectors: list[Vector] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["vectors"]
    return vectors


def each(name: str) -> pytest.MarkDecorator:
    """Run a test once for every vector of a file, as its argument `vector`."""
    return pytest.mark.parametrize(
        "vector", [pytest.param(vector, id=f"{index} {vector['comment']}") for index, vector in enumerate(load(name))]
    )


def plain(value: Any) -> Any:
    """A struct as the vectors show it: bytes in hexadecimal, enumerations as numbers, tuples as lists."""
    if hasattr(value, "__struct_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, int) else value
