"""Who hears what: signed heartbeats pass between neighbours, by push on news and by push-pull at leisure.

Every interval a node tells one random neighbour which records it holds in a range of node ids (a digest); the
neighbour sends what is newer or missing there, and asks for what it lacks itself. News that arrive are pushed on
to all other neighbours at once, each record at most once per neighbour and not more often than a record may change.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from protocol import constants as c
from protocol.directory import FIRST_ID, LAST_ID, Directory, Entry
from protocol.errors import RemoteProtocolError
from protocol.events import Effect, Note, Now, RecordLearnt
from protocol.ids import NodeId
from protocol.links import Outgoing
from protocol.messages import Digest, Message, Records, Want
from protocol.records import Signed


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """Intervals in seconds; `None` for the exchange interval leaves gossip out (a coordinator)."""

    interval_s: float | None = c.GOSSIP_INTERVAL_S
    # A frame of records stays well below the limit of a control stream.
    records_bytes: int = c.CONTROL_FRAME_BYTES_MAX - 4096


class Gossip:
    """The state machine. `neighbours` are peers that can be told things, in the order in which they came."""

    def __init__(self, config: GossipConfig, directory: Directory, rng: random.Random) -> None:
        self._config = config
        self._directory = directory
        self._rng = rng
        self._neighbours: dict[NodeId, None] = {}
        self._cursor = FIRST_ID
        self._pushed_at_s: dict[NodeId, float] = {}
        self._next_s: float | None = None

    def next_deadline(self) -> float | None:
        return self._next_s if self._neighbours else None

    def add_neighbour(self, node: NodeId, now: Now) -> list[Outgoing]:
        """A peer can be told things: exchange with it at once, so that a newcomer waits for no tick."""
        if self._config.interval_s is None or node in self._neighbours:
            return []
        self._neighbours[node] = None
        if self._next_s is None:
            self._next_s = now.monotonic_s + self._jittered(self._config.interval_s)
        return [Outgoing(node, self._digest())]

    def remove_neighbour(self, node: NodeId) -> None:
        self._neighbours.pop(node, None)
        if not self._neighbours:
            self._next_s = None

    def on_deadline(self, now: Now) -> list[Outgoing]:
        """Exchange with one random neighbour if its time has come."""
        if self._config.interval_s is None or self._next_s is None or now.monotonic_s < self._next_s:
            return []
        self._next_s = now.monotonic_s + self._jittered(self._config.interval_s)
        self._forget_pushes(now)
        return [Outgoing(self._rng.choice(list(self._neighbours)), self._digest())]

    def on_message(self, source: NodeId, message: Message, now: Now) -> tuple[list[Outgoing], list[Effect]]:
        """Take a gossip message. Raises RemoteProtocolError for one that no honest node sends."""
        if isinstance(message, Digest):
            return self._on_digest(source, message), []
        if isinstance(message, Want):
            held = [entry for node in message.nodes if (entry := self._directory.get(node)) is not None]
            return self._records(source, [entry.record for entry in held]), []
        if isinstance(message, Records):
            return self._on_records(source, message, now)
        raise RemoteProtocolError(f"{type(message).__name__} is no gossip message")

    def spread(self, entries: Sequence[Entry], now: Now, *, source: NodeId | None) -> list[Outgoing]:
        """Push news to every neighbour but their source, except of nodes whose last record was pushed just now."""
        neighbours = [neighbour for neighbour in self._neighbours if neighbour != source]
        if not neighbours:
            return []
        due = [entry for entry in entries if self._may_push(entry.heartbeat.node, now)]
        for entry in due:
            self._pushed_at_s[entry.heartbeat.node] = now.monotonic_s
        outgoing: list[Outgoing] = []
        for neighbour in neighbours:
            outgoing += self._records(neighbour, [e.record for e in due if e.heartbeat.node != neighbour])
        return outgoing

    def _may_push(self, node: NodeId, now: Now) -> bool:
        # SPEC 04: A node MUST NOT push records of one node more often than once in 5 seconds.
        last = self._pushed_at_s.get(node)
        return last is None or now.monotonic_s - last >= c.RECORD_INTERVAL_S

    def _on_digest(self, source: NodeId, digest: Digest) -> list[Outgoing]:
        theirs = dict(digest.entries)
        # SPEC 04: The receiver MUST treat a digest that names a node twice, or whose first id is above its last, as a
        #   bad frame.
        if len(theirs) != len(digest.entries) or digest.first > digest.last:
            raise RemoteProtocolError("a digest that names a node twice, or an empty range")
        newer = [
            entry.record
            for entry in self._directory.between(digest.first, digest.last, 2 * c.ARRAY_ITEMS_MAX)
            if entry.heartbeat.node != source and entry.heartbeat.sequence > theirs.get(entry.heartbeat.node, -1)
        ]
        lacking = [node for node, sequence in digest.entries if self._lacks(node, sequence)]
        outgoing = self._records(source, newer)
        if lacking:
            outgoing.append(Outgoing(source, Want(tuple(lacking))))
        return outgoing

    def _lacks(self, node: NodeId, sequence: int) -> bool:
        held = self._directory.get(node)
        return held is None or held.heartbeat.sequence < sequence

    def _on_records(self, source: NodeId, message: Records, now: Now) -> tuple[list[Outgoing], list[Effect]]:
        # SPEC 04: The receiver MUST check signature and freshness of a record before it keeps or forwards it.
        news, skipped = self._directory.add_all(message.records, now.wall_ms)
        effects: list[Effect] = [RecordLearnt(entry.heartbeat, entry.record) for entry in news]
        if skipped:
            effects.append(Note("gossip.records_skipped", source, f"{len(skipped)}, the last because {skipped[-1]}"))
        return self.spread(news, now, source=source), effects

    def _records(self, neighbour: NodeId, records: list[Signed]) -> list[Outgoing]:
        """Pack records into as few messages as the limits of a control stream allow."""
        outgoing: list[Outgoing] = []
        batch: list[Signed] = []
        size = 0
        for record in records:
            length = len(record.body) + len(record.signature) + 8
            if batch and (size + length > self._config.records_bytes or len(batch) == c.ARRAY_ITEMS_MAX):
                outgoing.append(Outgoing(neighbour, Records(tuple(batch))))
                batch, size = [], 0
            batch.append(record)
            size += length
        if batch:
            outgoing.append(Outgoing(neighbour, Records(tuple(batch))))
        return outgoing

    def _digest(self) -> Digest:
        """The next range of ids, so that a directory larger than one digest is covered in turns."""
        first = self._cursor
        entries = self._directory.range(first, c.ARRAY_ITEMS_MAX)
        last = LAST_ID if len(entries) < c.ARRAY_ITEMS_MAX else entries[-1].heartbeat.node
        self._cursor = _successor(last)
        return Digest(first, last, tuple((e.heartbeat.node, e.heartbeat.sequence) for e in entries))

    def _jittered(self, interval_s: float) -> float:
        # Without jitter, nodes that start together exchange together for ever.
        return interval_s * (0.75 + 0.5 * self._rng.random())

    def _forget_pushes(self, now: Now) -> None:
        limit = now.monotonic_s - c.RECORD_INTERVAL_S
        self._pushed_at_s = {node: at for node, at in self._pushed_at_s.items() if at > limit}


def _successor(node: NodeId) -> NodeId:
    number = int.from_bytes(node, "big") + 1
    return FIRST_ID if number >> 256 else NodeId(number.to_bytes(32, "big"))
