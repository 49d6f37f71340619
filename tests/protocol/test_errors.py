"""protocol/errors.py: the tree that callers rely on, and the codes that travel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protocol import errors
from protocol.errors import Refusal, refusal_from_code

REGISTRY = Path(__file__).parents[2] / "specs" / "01-wire.md"


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn = re.findall(r"^ {4}([│├└─ ]*)([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE)
    assert drawn, "the module docstring draws the tree"
    above: list[str] = []
    for branches, name in drawn:
        depth = len(branches) // 4
        above[depth:] = [name]
        parent = above[depth - 1] if depth else None
        cls = getattr(errors, name)
        assert cls.__bases__[0].__name__ == (parent or ("ProtocolError" if name != "ProtocolError" else "Exception"))


@pytest.mark.parametrize("code", list(Refusal))
def test_known_codes_are_themselves(code: Refusal) -> None:
    assert refusal_from_code(int(code)) is code
    assert 0 < code < 256


def test_unknown_codes_are_internal() -> None:
    assert [refusal_from_code(code) for code in (0, 60, 126, 255)] == [Refusal.INTERNAL] * 4


def test_the_registry_of_the_specification_lists_every_code_and_no_other() -> None:
    section = REGISTRY.read_text("utf-8").split("### Refusal codes")[1].split("\n### ")[0]
    rows = re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", section, re.MULTILINE)
    assert {name: int(number) for number, name in rows} == {code.name: code.value for code in Refusal}
