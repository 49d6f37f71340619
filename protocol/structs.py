"""What msgspec must know before threads meet in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

#: The classes that were prepared; a test compares them with those that are decoded.
PREPARED: Final[set[type[msgspec.Struct]]] = set()


def prepare(module: Mapping[str, Any]) -> None:
    """Have msgspec look at every struct that this module defines; called with `globals()` at its end.

    msgspec (0.22) looks at a class when it decodes one for the first time, and two threads that do so together end the
    process with a segmentation fault: one uses what the other has half written.
    """
    for cls in module.values():
        if isinstance(cls, type) and issubclass(cls, msgspec.Struct) and cls.__module__ == module["__name__"]:
            # What is None fits no struct; that it is refused takes all there is to know.
            try:
                msgspec.convert(None, type=cls)
            except msgspec.ValidationError:
                PREPARED.add(cls)
