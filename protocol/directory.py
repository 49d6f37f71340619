"""Who offers what: the newest signed heartbeat of every node heard of, until it expires.

A record enters only with a good signature, a sane lifetime and a higher sequence than the one held. The directory
is bounded: when full, the record that expires first makes room, be it the new one. It keeps two indices, so that
nothing scans it: by model (for routing) and by node id in order (for anti-entropy).
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from protocol import codec
from protocol import constants as c
from protocol.envelope import verify
from protocol.errors import Stale, UnknownVersion
from protocol.ids import NodeId
from protocol.records import Heartbeat, ModelOffer, Signed
from protocol.timers import Timers

FIRST_ID: Final = NodeId(bytes(32))
LAST_ID: Final = NodeId(b"\xff" * 32)


@dataclass(frozen=True, slots=True)
class Entry:
    """One node's newest heartbeat: decoded, and as signed bytes for others."""

    heartbeat: Heartbeat
    record: Signed

    def offer(self, model: str) -> ModelOffer | None:
        """What this node offers under a model name, or None."""
        return next((offer for offer in self.heartbeat.models if offer.name == model), None)


class _Bucket:
    """Node ids with constant-time add, remove and random access, in an order that depends on nothing but history."""

    __slots__ = ("items", "position")

    def __init__(self) -> None:
        self.items: list[NodeId] = []
        self.position: dict[NodeId, int] = {}

    def add(self, node: NodeId) -> None:
        self.position[node] = len(self.items)
        self.items.append(node)

    def remove(self, node: NodeId) -> None:
        at = self.position.pop(node)
        last = self.items.pop()
        if last != node:
            self.items[at] = last
            self.position[last] = at


class Directory:
    """The state; `records_max` bounds it."""

    def __init__(self, records_max: int = c.DIRECTORY_RECORDS_MAX) -> None:
        self._records_max = records_max
        self._entries: dict[NodeId, Entry] = {}
        self._by_model: dict[str, _Bucket] = {}
        # The bodies held: most of what gossip brings is here already, and need not be decoded to be known.
        self._bodies: set[bytes] = set()
        self._sorted: list[NodeId] = []
        # Keyed by node, at wall-clock milliseconds: records expire by the clock that signed them.
        self._expiry: Timers[NodeId] = Timers()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, node: NodeId) -> Entry | None:
        return self._entries.get(node)

    def entries(self) -> list[Entry]:
        """All entries in order of node id: for people and for `explain`, not for hot paths."""
        return [self._entries[node] for node in self._sorted]

    def models(self) -> list[str]:
        """Names of all models that somebody offers, sorted."""
        return sorted(self._by_model)

    def providers_of(self, model: str) -> list[NodeId]:
        """The live list of the index: who offers this model. The caller must not change it."""
        bucket = self._by_model.get(model)
        return bucket.items if bucket else []

    def add(self, record: Signed, wall_ms: int) -> Heartbeat | None:
        """Take a record if it is newer than what is held; returns its heartbeat, or None when it is old news.

        Raises BadFrame, BadSignature, UnknownVersion or Stale. Costs a signature check only for news.
        """
        entry = self._check(record, wall_ms)
        return entry.heartbeat if entry is not None and self._keep(entry) else None

    def add_all(self, records: Iterable[Signed], wall_ms: int) -> tuple[list[Entry], list[str]]:
        """Take the records of one message: what was news, and why others were skipped though nobody is to blame.

        Raises BadFrame or BadSignature before any of them is kept: a message that also holds a forgery teaches
        nothing, or whoever sent it could slip records in that nobody hears of.
        """
        entries: list[Entry] = []
        skipped: list[str] = []
        for record in records:
            try:
                entry = self._check(record, wall_ms)
            # Records expire on their way, clocks differ, and versions come and go.
            except (Stale, UnknownVersion) as error:
                skipped.append(str(error))
                continue
            if entry is not None:
                entries.append(entry)
        return [entry for entry in entries if self._keep(entry)], skipped

    def _check(self, record: Signed, wall_ms: int) -> Entry | None:
        if record.body in self._bodies:
            return None
        heartbeat = codec.decode_record(record.body, Heartbeat)
        held = self._entries.get(heartbeat.node)
        # SPEC 01: The receiver of a heartbeat MUST keep the one with the highest sequence per node.
        if held is not None and heartbeat.sequence <= held.heartbeat.sequence:
            return None
        # SPEC 01: The receiver MUST refuse a heartbeat that has expired, that was issued more than 60 seconds in its
        #   future, or that claims to live longer than 30 minutes.
        if heartbeat.expires_at_ms <= wall_ms:
            raise Stale("the heartbeat has expired")
        if heartbeat.issued_at_ms > wall_ms + c.CLOCK_SKEW_MS_MAX:
            raise Stale("the heartbeat comes from the future: one of the two clocks is wrong")
        if not 0 < heartbeat.expires_at_ms - heartbeat.issued_at_ms <= c.HEARTBEAT_LIFETIME_MS_MAX:
            raise Stale("the heartbeat claims a lifetime that the protocol does not allow")
        verify(heartbeat.node, Heartbeat.TAG, record.body, record.signature)
        return Entry(heartbeat, record)

    def _keep(self, entry: Entry) -> bool:
        node = entry.heartbeat.node
        held = self._entries.get(node)
        if held is not None:
            if entry.heartbeat.sequence <= held.heartbeat.sequence:
                return False  # the same message brought a newer one
            self._remove(node)
        self._insert(entry)
        if len(self._entries) > self._records_max:
            soonest = self._expiry.pop_first()
            assert soonest is not None
            self._remove(soonest)
        return node in self._entries

    def expire(self, wall_ms: int) -> list[NodeId]:
        """Drop what has expired; returns whose."""
        gone = self._expiry.pop_due(wall_ms)
        for node in gone:
            self._remove(node)
        return gone

    def sample(self, count: int, rng: random.Random) -> list[NodeId]:
        """Up to `count` nodes at random, each once."""
        return rng.sample(self._sorted, min(count, len(self._sorted)))

    def range(self, first: NodeId, limit: int) -> list[Entry]:
        """Up to `limit` entries with ids from `first` on, in order."""
        start = bisect_left(self._sorted, first)
        return [self._entries[node] for node in self._sorted[start : start + limit]]

    def between(self, first: NodeId, last: NodeId, limit: int) -> list[Entry]:
        """Up to `limit` entries with first <= id <= last, in order."""
        return [entry for entry in self.range(first, limit) if entry.heartbeat.node <= last]

    def _insert(self, entry: Entry) -> None:
        node = entry.heartbeat.node
        self._entries[node] = entry
        self._bodies.add(entry.record.body)
        insort(self._sorted, node)
        self._expiry.set(node, entry.heartbeat.expires_at_ms)
        for name in {offer.name: None for offer in entry.heartbeat.models}:
            self._by_model.setdefault(name, _Bucket()).add(node)

    def _remove(self, node: NodeId) -> None:
        entry = self._entries.pop(node)
        self._bodies.remove(entry.record.body)
        del self._sorted[bisect_left(self._sorted, node)]
        self._expiry.cancel(node)
        for name in {offer.name: None for offer in entry.heartbeat.models}:
            bucket = self._by_model[name]
            bucket.remove(node)
            if not bucket.items:
                del self._by_model[name]
