"""A table of bounded size that keeps what was used last: for what strangers can make us remember."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """At most `entries_max` entries; putting one more drops the one that was put longest ago."""

    __slots__ = ("_entries", "_entries_max")

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._entries: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Key]:
        """Keys, the one put longest ago first."""
        return iter(self._entries)

    def values(self) -> list[Value]:
        """Values in the same order."""
        return list(self._entries.values())

    def get(self, key: Key) -> Value | None:
        """The value; asking for it does not count as use."""
        return self._entries.get(key)

    def put(self, key: Key, value: Value) -> Value:
        """Put a value, which is then the last used; gives it back."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)
        return value

    def pop(self, key: Key) -> Value | None:
        """Remove and return, None when it is not there."""
        return self._entries.pop(key, None)
