"""What `--json` prints, compared with what docs/json.md says that it prints.

There a shape is JSON itself: an object with the shape of each key (`"key?"` may be left out, `"*"` is any other), a
list with the shape of its items, and the name of a type, or of several: `"string"`, `"integer | null"`. `"?"` among the
keys of an object, or as the second item of a list, means that null may stand in its place. A text such as
`"infernet status"` is the shape of that section, and `"infernet status .money"` that of a key of it; under `"..."` are
the keys of what it names, which stand here, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "json.md"
_SECTION: Final = re.compile(r"^### infernet ([a-z ]+)$", re.MULTILINE)
_BLOCK: Final = re.compile(r"^```json$(.*?)^```$", re.MULTILINE | re.DOTALL)
_NULL: Final = "?"
_OTHERS: Final = "*"
_AND_THOSE_OF: Final = "..."
_SAME_AS: Final = "infernet "
_KINDS: Final = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "list"}


@cache
def documented() -> dict[str, Any]:
    """The shape that each verb, or verb and action, prints, in the order of the page."""
    _, *parts = _SECTION.split(PAGE.read_text("utf-8"))
    shapes = {}
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        blocks = _BLOCK.findall(text)
        assert len(blocks) == 1, f"docs/json.md: the section of {name} has {len(blocks)} blocks"
        assert name not in shapes, f"docs/json.md has two sections of {name}"
        shapes[name] = json.loads(blocks[0])
    return shapes


def named(text: str) -> Any:
    """The shape of the section, or of the key of one, that a text such as `"infernet status .money"` names."""
    section, _, key = text.removeprefix(_SAME_AS).partition(" .")
    shape = documented()[section]
    return shape if not key else shape[key] if key in shape else shape[f"{key}?"]


def section_of(words: tuple[str, ...]) -> str:
    """The section that a command line belongs to; of a verb with several the first is what it does without a word."""
    verb = words[0]
    sections = [name for name in documented() if name.split()[0] == verb]
    assert sections, f"docs/json.md has no section of {verb}"
    actions = {name.partition(" ")[2]: name for name in sections}
    return next((actions[word] for word in words[1:] if word in actions), sections[0])


def check(words: tuple[str, ...], printed: Any, *, may_lack: bool = False) -> None:
    """Raises AssertionError where what was printed is not what the page says. `may_lack` is for a double's answers,
    which have no more keys than a test needs.
    """
    if is_error(printed):
        return
    section = section_of(words)
    differences = list(differ(printed, documented()[section], may_lack=may_lack))
    assert not differences, f"docs/json.md, infernet {section}: {'; '.join(differences[:8])}"


def is_error(printed: Any) -> bool:
    """Whether it tells of an error; what else stands in it is the verb's own."""
    return isinstance(printed, dict) and isinstance(printed.get("error"), str)


def differ(value: Any, shape: Any, where: str = "", *, may_lack: bool = False) -> Iterator[str]:
    """Where a value is not of a shape."""
    if isinstance(shape, str) and shape.startswith(_SAME_AS):
        shape = named(shape)
    if isinstance(shape, str):
        if not _is_one_of(value, shape.split(" | ")):
            yield f"{where or 'it'} is {kind_of(value)}, not {shape}"
    elif value is None and _NULL in (shape if isinstance(shape, dict) else shape[1:]):
        return
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{where or 'it'} is {kind_of(value)}, not a list"
            return
        for item in value:
            yield from differ(item, shape[0], f"{where}[]", may_lack=may_lack)
    elif not isinstance(value, dict):
        yield f"{where or 'it'} is {kind_of(value)}, not an object"
    else:
        yield from _differ_in_keys(value, shape, where, may_lack=may_lack)


def _differ_in_keys(value: dict[str, Any], shape: dict[str, Any], where: str, *, may_lack: bool) -> Iterator[str]:
    if _AND_THOSE_OF in shape:
        shape = named(shape[_AND_THOSE_OF]) | shape
        del shape[_AND_THOSE_OF]
    known = {key.removesuffix("?"): item for key, item in shape.items() if key not in (_NULL, _OTHERS)}
    if not may_lack:
        needed = [key for key in shape if not key.endswith("?") and key != _OTHERS]
        yield from (f"{where}.{key} is missing" for key in needed if key not in value)
    for key, item in value.items():
        if key in known:
            yield from differ(item, known[key], f"{where}.{key}", may_lack=may_lack)
        elif _OTHERS in shape:
            yield from differ(item, shape[_OTHERS], f"{where}.{key}", may_lack=may_lack)
        else:
            yield f"{where}.{key} is not told of"


def _is_one_of(value: Any, kinds: list[str]) -> bool:
    kind = kind_of(value)
    return kind in kinds or "any" in kinds or (kind == "integer" and "number" in kinds)


def kind_of(value: Any) -> str:
    """The name of a value's type, as the page has it."""
    return "null" if value is None else _KINDS[type(value)]
