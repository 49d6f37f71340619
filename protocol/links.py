"""What a node keeps of each neighbour for gossip: what it wants to hear, what waits for it, what it may cost us."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from protocol import constants as c
from protocol.directory import Scope
from protocol.ids import NodeId
from protocol.messages import Message
from protocol.records import Signed

# What one neighbour may draw from us at once, and in the long run: a question of two kilobytes must not cost megabytes.
BURST_BYTES: Final = 256 * 1024
BYTES_PER_S: Final = 32 * 1024
# A neighbour that told us nothing but what we knew, so many messages in a row, only says what it has from then on.
PATIENCE: Final = 2
PATIENCE_MAX: Final = 64
# What a record costs on the wire beyond its body: signature, lengths, and its share of the frame.
RECORD_OVERHEAD_BYTES: Final = 72


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A gossip message for one peer; `peer` knows on which stream it travels."""

    neighbour: NodeId
    message: Message


class Kind(Protocol):
    """A sort of signed record that spreads along the tree: who holds the newest of each signer, and whom it concerns.

    `is_repaired` says whether `Have`, `Graft` and digests speak of it; the ids there are those of its signers.
    """

    @property
    def is_repaired(self) -> bool: ...

    def record(self, signer: NodeId) -> Signed | None:
        """The newest that is held of a signer."""

    def sequence(self, signer: NodeId) -> int:
        """Its sequence; -1 for none."""

    def concerns(self, signer: NodeId, scope: Scope) -> bool:
        """Whether somebody with this interest is to hear of it."""

    def pack(self, records: Iterable[Signed]) -> list[Message]:
        """As few messages as the limits of a control stream allow."""


Key = tuple[Kind, NodeId]


class Budget:
    """Bytes that may be sent: a bucket that starts full."""

    __slots__ = ("_at_s", "_burst_bytes", "_per_s", "_tokens")

    def __init__(self, now_s: float, per_s: float = BYTES_PER_S, burst_bytes: float = BURST_BYTES) -> None:
        self._per_s = per_s
        self._burst_bytes = burst_bytes
        self._tokens = burst_bytes
        self._at_s = now_s

    def take(self, count_bytes: int, now_s: float) -> bool:
        """Spend so many bytes if they are there."""
        self._tokens = min(self._burst_bytes, self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._tokens < count_bytes:
            return False
        self._tokens -= count_bytes
        return True

    def wait_s(self, count_bytes: int) -> float:
        """How long after the last `take` so many bytes, which are no more than the burst, are there."""
        return max(0.0, (count_bytes - self._tokens) / self._per_s)


@dataclass(slots=True)
class Link:
    """One neighbour.

    `pushes` are records that go to it with the next flush, `haves` those that it is told of. `promised` counts records
    that it said it has and that we wait for; `told` how often it was the first to tell us something, in this minute and
    in the one before. `heard_at_start` is how much we had heard from all together when it came.
    """

    scope: Scope
    budget: Budget
    is_eager: bool = True
    pushes: dict[Key, None] = field(default_factory=dict)
    haves: dict[NodeId, None] = field(default_factory=dict)
    duplicates: int = 0
    patience: int = PATIENCE
    promised: int = 0
    told: int = 0
    told_before: int = 0
    heard_at_start: int = 0
    # Until then it may answer a question of ours, and what we knew already is no duplicate.
    answers_until_s: float = 0.0

    def knows(self, key: Key) -> bool:
        """It has told us this itself: it need not hear it from us. Returns whether it was to."""
        was_pushed = self.pushes.pop(key, ...) is None
        was_told = key[0].is_repaired and self.haves.pop(key[1], ...) is None
        return was_pushed or was_told


def cost_bytes(record: Signed) -> int:
    """What a record takes on the wire."""
    return len(record.body) + RECORD_OVERHEAD_BYTES


def packed(records: Iterable[Signed], items_max: int, frame_bytes: int) -> list[tuple[Signed, ...]]:
    """Cut records into batches that each fit a frame."""
    batches: list[tuple[Signed, ...]] = []
    batch: list[Signed] = []
    size = 0
    for record in records:
        cost = cost_bytes(record)
        if batch and (size + cost > frame_bytes or len(batch) == items_max):
            batches.append(tuple(batch))
            batch, size = [], 0
        batch.append(record)
        size += cost
    if batch:
        batches.append(tuple(batch))
    return batches


# A frame of records stays well below the limit of a control stream.
RECORDS_BYTES_MAX: Final = c.CONTROL_FRAME_BYTES_MAX - 4096
