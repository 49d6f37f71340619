"""Who offers what: the newest signed heartbeat of every node heard of, until it expires.

A record enters only with a good signature, a sane lifetime and a higher sequence than the one held. The directory
keeps two indices, so that nothing scans it: by model and its aliases (for routing), and by node id in order (for
anti-entropy); and beside the records the fresh load that providers tell their neighbours.

It is bounded. When it is full, a newcomer takes the place of one of the least worth: ourselves, neighbours and
providers that did a job stay, records that we are interested in go only when those that we are not are gone. Among
equals the dice decide, so that what is left is a random sample that nobody can displace faster than he may bring news.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

from protocol import codec
from protocol import constants as c
from protocol.details import aliases_of
from protocol.envelope import verify
from protocol.errors import Stale, UnknownVersion
from protocol.ids import NodeId
from protocol.records import Heartbeat, ModelOffer, Signed
from protocol.timers import Timers

FIRST_ID: Final = NodeId(bytes(32))
LAST_ID: Final = NodeId(b"\xff" * 32)
# Out of so many drawn at random goes the one of least worth.
_EVICTION_SAMPLE: Final = 8
_USEFUL_MAX: Final = 512

#: Which models somebody wants to hear of; None: of everything.
Scope = frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One node's newest heartbeat: decoded, and as signed bytes for others.

    `formerly` are the models that the record before it offered: whom those concern must hear that they are gone.
    """

    heartbeat: Heartbeat
    record: Signed
    formerly: frozenset[str] = frozenset()
    #: Node id and sequence: what two directories that hold the same agree on.
    mark: bytes = field(init=False, repr=False)
    #: By which other names the node says its models are found: the model's own name by each.
    aliases: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "aliases", aliases_of(self.heartbeat))
        object.__setattr__(self, "mark", self.heartbeat.node + self.heartbeat.sequence.to_bytes(8, "big"))

    def offer(self, model: str) -> ModelOffer | None:
        """What this node offers under a model name, or None."""
        return next((offer for offer in self.heartbeat.models if offer.name == model), None)

    def own_name(self, model: str | None) -> str | None:
        """What this node itself calls the model that is asked for under this name."""
        return self.aliases.get(model, model) if model is not None and self.aliases else model

    def concerns(self, scope: Scope) -> bool:
        """Whether somebody who wants to hear of these models wants to hear of this record."""
        if scope is None:
            return True
        # SPEC 01: The receiver MUST NOT let aliases decide whom a record concerns
        return any(offer.name in scope for offer in self.heartbeat.models) or not self.formerly.isdisjoint(scope)


class Worth(IntEnum):
    """What a full directory keeps, the last longest."""

    STRANGER = 0
    INTERESTING = 1
    NEAR = 2  # a neighbour, or a provider that did a job
    OURSELVES = 3


class HeartbeatReader:
    """Turns signed bytes into entries and checks signatures: most of what gossip costs.

    A simulation puts one in its place that does so once for all of its peers.
    """

    def read(self, record: Signed) -> Entry:
        """Decode, without the signature. Raises BadFrame or UnknownVersion."""
        return Entry(codec.decode_record(record.body, Heartbeat), record)

    def verify(self, entry: Entry) -> None:
        """Raises BadSignature."""
        verify(entry.heartbeat.node, Heartbeat.TAG, entry.record.body, entry.record.signature)


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
    """The state; `records_max` bounds it. `rng` chooses who makes room."""

    def __init__(
        self,
        records_max: int = c.DIRECTORY_RECORDS_MAX,
        rng: random.Random | None = None,
        reader: HeartbeatReader | None = None,
    ) -> None:
        self._records_max = records_max
        self._rng = rng or random.Random(0)  # noqa: S311 - whoever has an attacker passes a source that none can guess
        self._reader = reader or HeartbeatReader()
        self._worth: Callable[[Entry], Worth] = lambda _: Worth.STRANGER
        self._entries: dict[NodeId, Entry] = {}
        self._by_model: dict[str, _Bucket] = {}
        # The bodies held: most of what gossip brings is here already, and need not be decoded to be known.
        self._bodies: dict[bytes, NodeId] = {}
        self._sorted: list[NodeId] = []
        # Keyed by node, at wall-clock milliseconds: records expire by the clock that signed them.
        self._expiry: Timers[NodeId] = Timers()
        self._loads: dict[NodeId, tuple[int, int]] = {}
        self._useful: dict[NodeId, None] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, node: NodeId) -> Entry | None:
        return self._entries.get(node)

    def signer_of(self, body: bytes) -> NodeId | None:
        """Whose record this is, if it is held just so."""
        return self._bodies.get(body)

    def entries(self) -> list[Entry]:
        """All entries in order of node id: for people and for `explain`, not for hot paths."""
        return [self._entries[node] for node in self._sorted]

    def models(self) -> list[str]:
        """All names under which somebody offers a model, sorted."""
        return sorted(self._by_model)

    def providers_of(self, model: str) -> list[NodeId]:
        """The live list of the index: who offers this model, or has an alias of this name for one.

        The caller must not change it.
        """
        bucket = self._by_model.get(model)
        return bucket.items if bucket else []

    @property
    def is_full(self) -> bool:
        """Whether a newcomer needs somebody's place."""
        return len(self._entries) >= self._records_max

    @property
    def is_roomy(self) -> bool:
        """Whether at least a quarter is free."""
        return 4 * len(self._entries) <= 3 * self._records_max

    # ------------------------------------------------------------ what to keep

    def rank_by(self, worth: Callable[[Entry], Worth]) -> None:
        """Say who stays when it is full."""
        self._worth = worth

    def mark_useful(self, node: NodeId) -> None:
        """This provider did a job: its record stays, unless many others were useful since."""
        self._useful.pop(node, None)
        self._useful[node] = None
        if len(self._useful) > _USEFUL_MAX:
            del self._useful[next(iter(self._useful))]

    def is_useful(self, node: NodeId) -> bool:
        return node in self._useful

    # ------------------------------------------------------------ load

    def set_load(self, node: NodeId, load: int, wait_ms: int) -> None:
        """A provider told us itself how full it is, and how long a new job would wait."""
        if node in self._entries:
            self._loads[node] = (load, wait_ms)

    def forget_load(self, node: NodeId) -> None:
        """This provider tells us nothing any more: what it said gets old."""
        self._loads.pop(node, None)

    def load_of(self, node: NodeId) -> tuple[int, int]:
        """How full a provider is, 0 (idle or unknown) to 8, and for how many milliseconds a new job would wait there.

        What it told us itself, else what its record says.
        """
        told = self._loads.get(node)
        if told is not None:
            return told
        entry = self._entries.get(node)
        return (entry.heartbeat.load if entry is not None else 0, 0)

    # ------------------------------------------------------------ records

    def add(self, record: Signed, wall_ms: int) -> Heartbeat | None:
        """Take a record if it is newer than what is held; returns its heartbeat, or None when it is old news.

        Raises BadFrame, BadSignature, UnknownVersion or Stale. Costs a signature check only for news.
        """
        entry = self._check(record, wall_ms)
        return entry.heartbeat if entry is not None and self._keep(entry) is not None else None

    def add_all(self, records: Iterable[Signed], wall_ms: int) -> tuple[list[Entry], list[str]]:
        """Take the records of one message: what was news, and why others were skipped though nobody is to blame.

        Raises BadFrame or BadSignature before any of them is kept: a message that also holds a forgery teaches
        nothing, or whoever sent it could slip records in that nobody hears of.
        """
        entries, skipped = self.check_all(records, wall_ms)
        return self.keep_all(entries), skipped

    def check_all(
        self, records: Iterable[Signed], wall_ms: int, admits: Callable[[NodeId, bool], bool] | None = None
    ) -> tuple[list[Entry], list[str]]:
        """The records that are good and newer than what is held, and why others were skipped; keeps nothing.

        `admits(node, is_new)` is asked before a signature is checked; what it refuses is left out in silence. Raises
        like `add_all`.
        """
        entries: list[Entry] = []
        skipped: list[str] = []
        for record in records:
            try:
                entry = self._check(record, wall_ms, admits)
            # SPEC 04: The receiver MUST skip records that have expired, that come from the future, or of an unknown
            #   version, and take the others: those are nobody's fault.
            except (Stale, UnknownVersion) as error:
                skipped.append(str(error))
                continue
            if entry is not None:
                entries.append(entry)
        return entries, skipped

    def keep_all(self, entries: Iterable[Entry]) -> list[Entry]:
        """Keep what `check_all` found good; returns what is kept."""
        kept = [self._keep(entry) for entry in entries]
        return [entry for entry in kept if entry is not None]

    def _check(
        self, record: Signed, wall_ms: int, admits: Callable[[NodeId, bool], bool] | None = None
    ) -> Entry | None:
        if record.body in self._bodies:
            return None
        entry = self._reader.read(record)
        heartbeat = entry.heartbeat
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
        if admits is not None and not admits(heartbeat.node, held is None):
            return None
        self._reader.verify(entry)
        return entry

    def _keep(self, entry: Entry) -> Entry | None:
        node = entry.heartbeat.node
        held = self._entries.get(node)
        if held is not None:
            if entry.heartbeat.sequence <= held.heartbeat.sequence:
                return None  # the same message brought a newer one
            entry = _with_former_models(entry, held)
            self._replace(held, entry)
        else:
            # SPEC 04: The receiver MUST bound how many records it holds.
            if self.is_full and not self._make_room(self._worth(entry)):
                return None
            self._insert(entry)
        return entry

    def _make_room(self, worth: Worth) -> bool:
        """Drop one of no more worth than the newcomer; False when there is none among those looked at."""
        # SPEC 04: When it is full, the receiver MUST NOT let a newcomer displace a record of more worth,
        candidates = [self._entries[node] for node in self.sample(_EVICTION_SAMPLE, self._rng)]
        least = min(candidates, key=self._worth)
        if self._worth(least) > min(worth, Worth.NEAR):
            return False
        self._remove(least.heartbeat.node)
        return True

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
        self._bodies[entry.record.body] = node
        insort(self._sorted, node)
        self._expiry.set(node, entry.heartbeat.expires_at_ms)
        self._index(node, _found_by(entry))

    def _replace(self, held: Entry, entry: Entry) -> None:
        """A newer record of a node: only what differs is touched, as a rule nothing but its times."""
        node = entry.heartbeat.node
        self._entries[node] = entry
        del self._bodies[held.record.body]
        self._bodies[entry.record.body] = node
        self._expiry.set(node, entry.heartbeat.expires_at_ms)
        before, after = _found_by(held), _found_by(entry)
        self._unindex(node, [name for name in before if name not in after])
        self._index(node, [name for name in after if name not in before])

    def _remove(self, node: NodeId) -> None:
        entry = self._entries.pop(node)
        del self._bodies[entry.record.body]
        del self._sorted[bisect_left(self._sorted, node)]
        self._expiry.cancel(node)
        self._loads.pop(node, None)
        self._unindex(node, _found_by(entry))

    def _index(self, node: NodeId, names: Iterable[str]) -> None:
        for name in names:
            self._by_model.setdefault(name, _Bucket()).add(node)

    def _unindex(self, node: NodeId, names: Iterable[str]) -> None:
        for name in names:
            bucket = self._by_model[name]
            bucket.remove(node)
            if not bucket.items:
                del self._by_model[name]


def _names(entry: Entry) -> Collection[str]:
    """The models of an entry, each once and in its order."""
    return dict.fromkeys(offer.name for offer in entry.heartbeat.models)


def _found_by(entry: Entry) -> Collection[str]:
    """The names under which the index has an entry."""
    names = _names(entry)
    return dict.fromkeys((*names, *entry.aliases)) if entry.aliases else names


def _with_former_models(entry: Entry, held: Entry) -> Entry:
    gone = frozenset(_names(held)) - frozenset(_names(entry))
    return replace(entry, formerly=gone) if gone else entry
