"""JSON from outside, before anybody looks at it: bounded, without duplicate keys, with numbers as the text they are.

Python's own decoder is used because it can be told all that; msgspec gives the result its types afterwards.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from coordinator.payments.amounts import RawAmount

T = TypeVar("T")
# Webhooks and answers nest three or four levels; metadata may add some.
DEPTH_MAX: Final = 16
_BRACKETS: Final = re.compile(r"[\[\]{}]")


class BadJson(ValueError):
    """The bytes are not JSON that we take. The message quotes none of them."""


def decode_object(body: bytes, bytes_max: int) -> dict[str, Any]:
    """The object that a body holds; each of its numbers is a RawAmount. Raises BadJson."""
    if len(body) > bytes_max:
        raise BadJson(f"more than {bytes_max} bytes")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise BadJson("not UTF-8") from None
    if _depth(text) > DEPTH_MAX:
        raise BadJson(f"nested more than {DEPTH_MAX} times")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_int=RawAmount,
            parse_float=RawAmount,
            parse_constant=_refuse_constant,
        )
    except BadJson:
        raise
    except (ValueError, RecursionError):
        raise BadJson("not JSON") from None
    if not isinstance(value, dict):
        raise BadJson("not an object")
    return value


def convert(value: object, cls: type[T]) -> T:
    """The value as this type, unknown keys left out. Raises BadJson."""
    try:
        return msgspec.convert(value, cls, dec_hook=_amount)
    except (msgspec.ValidationError, NotImplementedError):
        raise BadJson("a field is missing or of another type") from None


def _depth(text: str) -> int:
    """How deep brackets nest outside of strings; right for JSON, and bounded work for what is none."""
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    depth = deepest = 0
    for match in _BRACKETS.finditer(outside):
        depth += 1 if match[0] in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    # Two readers of a duplicate may each believe another value; we are not one of them.
    if len(fields) != len(pairs):
        raise BadJson("a key twice in one object")
    return fields


def _refuse_constant(_name: str) -> NoReturn:
    raise BadJson("NaN or Infinity")


def _amount(cls: type, value: object) -> object:
    if cls is RawAmount and isinstance(value, str):
        return RawAmount(value)
    if cls is RawAmount and isinstance(value, RawAmount):
        return value
    raise NotImplementedError  # which is how msgspec is told that this type is not ours; `convert` refuses the value
