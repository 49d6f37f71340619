"""What a power cut may leave of a disk: a model of it, and the fates of what was not synced.

The model is the pessimist's (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014): what was synced is
there; of everything later, each write, truncation, new name and removed name came through or did not, in any
combination; a write may be torn between sectors of 512 bytes, and a file may have grown without its content.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.helpers_disk import Create, Delete, Forget, Operation, Resize, Sync, SyncDirectory, Write

SECTOR_BYTES: Final = 512
Image = dict[str, bytes]

# What became of one unsynced operation: which of its sectors were kept, and whether the file grew all the same.
Fate = tuple[int, bool]
KEPT: Final[Fate] = (-1, True)
DROPPED: Final[Fate] = (0, False)
FAMILIES: Final = 4


class UnsyncedDisk:
    """The disk as the operations so far left it: what is safe, and what is not yet."""

    def __init__(self, initial: Image) -> None:
        self._safe = dict(enumerate(initial.values()))
        self._names = {name: number for number, name in enumerate(initial)}
        self.pending: list[Write | Resize | Create | Delete] = []

    def follow(self, operation: Operation) -> None:
        """One operation further."""
        match operation:
            case Sync(file):
                self._settle(lambda each: isinstance(each, Write | Resize) and each.file == file)
            case SyncDirectory():
                self._settle(lambda each: isinstance(each, Create | Delete))
            case Forget(file):
                self.pending = [p for p in self.pending if not (isinstance(p, Write | Resize) and p.file == file)]
            case Write() | Resize() | Create() | Delete():
                self.pending.append(operation)

    def _settle(self, belongs: Callable[[Operation], bool]) -> None:
        settled = [each for each in self.pending if belongs(each)]
        self._names, self._safe = self._carried_out(settled, [KEPT] * len(settled))
        self.pending = [each for each in self.pending if not belongs(each)]

    def image(self, fates: tuple[Fate, ...]) -> Image:
        """The files after a cut in which this became of what is pending."""
        names, contents = self._carried_out(self.pending, fates)
        return {name: contents.get(file, b"") for name, file in names.items()}

    def _carried_out(self, operations: Any, fates: Any) -> tuple[dict[str, int], dict[int, bytes]]:
        names = dict(self._names)
        changed: dict[int, bytearray] = {}
        for operation, fate in zip(operations, fates, strict=True):
            if fate == DROPPED:
                continue
            match operation:
                case Create(name, file):
                    names[name] = file
                case Delete(name):
                    names.pop(name, None)
                case Resize(file, size_bytes):
                    content = changed.setdefault(file, bytearray(self._safe.get(file, b"")))
                    del content[size_bytes:]
                case Write(file, offset, data):
                    _put(changed.setdefault(file, bytearray(self._safe.get(file, b""))), offset, data, fate)
        return names, {**self._safe, **{file: bytes(content) for file, content in changed.items()}}


def _put(content: bytearray, offset: int, data: bytes, fate: Fate) -> None:
    sectors, grows = fate
    end = offset + len(data)
    if sectors == -1:
        pieces = [(offset, end)]
    else:
        pieces = [piece for number, piece in enumerate(_sectors(offset, end)) if sectors >> number & 1]
    reached = end if grows else max((stop for _, stop in pieces), default=0)
    if len(content) < reached:
        content.extend(bytes(reached - len(content)))
    for start, stop in pieces:
        content[start:stop] = data[start - offset : stop - offset]


def _sectors(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield start, stop
        start = stop


def _sector_count(operation: Operation) -> int:
    if not isinstance(operation, Write) or not operation.data:
        return 1
    last = operation.offset + len(operation.data) - 1
    return last // SECTOR_BYTES - operation.offset // SECTOR_BYTES + 1


def fates(pending: list[Any], rng: random.Random, at_most: int) -> set[tuple[Fate, ...]]:
    """Different things that may have become of what is pending: nothing kept, all kept, and seeded others."""
    count = len(pending)
    found: set[tuple[Fate, ...]] = {(DROPPED,) * count, (KEPT,) * count}
    # With one small write pending there are only a few.
    for _ in range(2 * at_most if count else 0):
        if len(found) >= at_most:
            break
        found.add(_fates_of_a_family(pending, rng))
    return found


def _fates_of_a_family(pending: list[Any], rng: random.Random) -> tuple[Fate, ...]:
    count = len(pending)
    at = rng.randrange(count)
    match rng.randrange(FAMILIES):
        case 0:  # in order up to here, the last one torn at a sector
            torn = (1 << rng.randrange(_sector_count(pending[at]) + 1)) - 1
            return (KEPT,) * at + ((torn, rng.random() < 0.3),) + (DROPPED,) * (count - at - 1)
        case 1:  # all but one
            return (KEPT,) * at + ((0, rng.random() < 0.5),) + (KEPT,) * (count - at - 1)
        case 2:  # one alone
            return (DROPPED,) * at + (KEPT,) + (DROPPED,) * (count - at - 1)
        case _:
            return tuple(_any_fate(operation, rng) for operation in pending)


def _any_fate(operation: Any, rng: random.Random) -> Fate:
    if rng.random() < 0.4:
        return KEPT
    if rng.random() < 0.5:
        return (0, isinstance(operation, Write) and rng.random() < 0.3)
    return (rng.getrandbits(_sector_count(operation)), rng.random() < 0.5)
