"""What was missed is repaired by comparing: anti-entropy (Demers and others, 1987), beside the broadcast tree.

Now and then a node tells one neighbour fingerprints of what it holds, one for each range of node ids. Where the
neighbour holds something else, it lists it (a digest), and both send what is newer or missing and ask for what they
lack themselves. Equal directories of thousands of records so cost a single message, and one difference a few more.
While there is something to be had, the next comparison follows soon; while there is nothing, there is ever more time
between two.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from itertools import pairwise
from typing import Final

from protocol import constants as c
from protocol.broadcast import MUCH, Broadcast
from protocol.directory import FIRST_ID, LAST_ID, Directory, Entry, Scope
from protocol.errors import RemoteProtocolError
from protocol.events import Now
from protocol.ids import NodeId
from protocol.interest import Interests
from protocol.links import Kind, Link, Outgoing
from protocol.messages import Digest, Summary, Want
from protocol.rates import Rates

# A newcomer asks this often, and a node that lacks nothing that seldom.
SOON_S: Final = 0.5
INTERVALS_MAX: Final = 6.0
# What is younger than this may still be on its way: it is no difference yet.
SETTLED_MS: Final = 10_000
# Records of one range, so that a digest of it fits even when the other side holds a few more; answers to one summary.
PART_RECORDS: Final = 48
DIGESTS_MAX: Final = 4
FINGERPRINT_BYTES: Final = 8
# Questions that one neighbour may ask: a digest costs a walk through the directory.
QUESTIONS_PER_S: Final = 4.0
QUESTIONS_BURST: Final = 32


class Exchange:
    """The state machine. `interval_s` is the pace at which a node begins; `links` is shared with the broadcast."""

    def __init__(
        self,
        interval_s: float,
        directory: Directory,
        heartbeats: Kind,
        interests: Interests,
        links: dict[NodeId, Link],
        broadcast: Broadcast,
        rng: random.Random,
    ) -> None:
        self._interval_s = interval_s
        self._directory = directory
        self._heartbeats = heartbeats
        self._interests = interests
        self._links = links
        self._broadcast = broadcast
        self._rng = rng
        self._pause_s = interval_s
        self._next_s: float | None = None
        self._partner: NodeId | None = None
        self._questions: Rates[NodeId] = Rates(QUESTIONS_PER_S, QUESTIONS_BURST)

    def next_deadline(self) -> float | None:
        return self._next_s if self._links else None

    def on_joined(self, node: NodeId, now: Now, *, is_chosen: bool) -> list[Outgoing]:
        """A new neighbour: compare with the first one at once, with others soon; a newcomer with whom it chose."""
        if len(self._links) == 1 or (is_chosen and self._broadcast.is_newcomer(now)):
            return self._compare(node, now)
        self._hurry(now)
        return []

    def on_news(self, source: NodeId, count: int, now: Now) -> None:
        """A neighbour brought so many news at once: if many, there is more where they come from."""
        if source == self._partner and count >= MUCH:
            self._hurry(now)

    def on_deadline(self, now: Now) -> list[Outgoing]:
        """Compare with one random neighbour if its time has come, with one that wants what we want if there is one."""
        if self._next_s is None or now.monotonic_s < self._next_s or not self._links:
            return []
        ours = self._interests.ours
        alike = [node for node, link in self._links.items() if _overlap(ours, link.scope)]
        return self._compare(self._rng.choice(alike or list(self._links)), now)

    def on_digest(self, source: NodeId, digest: Digest, now: Now) -> list[Outgoing]:
        """Answer a digest. Raises RemoteProtocolError for one that no honest node sends."""
        theirs = dict(digest.entries)
        # SPEC 04: The receiver MUST treat a digest that names a node twice, or whose first id is above its last, as a
        #   bad frame.
        if len(theirs) != len(digest.entries) or digest.first > digest.last:
            raise RemoteProtocolError("a digest that names a node twice, or an empty range")
        # SPEC 04: The receiver MUST bound how many questions of one neighbour it answers,
        if not self._questions.take(source, now.monotonic_s):
            return []
        held = self._shared(source, self._directory.between(digest.first, digest.last, len(self._directory)))
        newer = [
            entry.heartbeat.node
            for entry in held
            if entry.heartbeat.node != source and entry.heartbeat.sequence > theirs.get(entry.heartbeat.node, -1)
        ]
        # What the budget cuts off is another part each time.
        start = self._rng.randrange(len(newer)) if newer else 0
        outgoing = self._broadcast.send(source, self._heartbeats, newer[start:] + newer[:start], now)
        lacking = tuple(node for node, sequence in digest.entries if self._heartbeats.sequence(node) < sequence)
        if lacking:
            self._broadcast.expects_answers(source, now)
            self._hurry(now)
            outgoing.append(Outgoing(source, Want(lacking)))
        return outgoing

    def on_summary(self, source: NodeId, summary: Summary, now: Now) -> list[Outgoing]:
        """List what we hold where it differs. Raises RemoteProtocolError for a summary that no honest node sends."""
        lasts = [last for last, _ in summary.parts]
        # SPEC 04: The receiver MUST treat a summary whose ranges are not in ascending order, or do not end at the
        #   highest id, as a bad frame.
        if lasts[-1] != LAST_ID or any(one >= other for one, other in pairwise(lasts)):
            raise RemoteProtocolError("a summary whose ranges do not cover all node ids in order")
        if not self._questions.take(source, now.monotonic_s):
            return []
        ours = self._shared(source, self._directory.entries())
        digests: list[Digest] = []
        first, start = FIRST_ID, 0
        for last, fingerprint in summary.parts:
            end = bisect_right(ours, last, start, key=_node)
            if _fingerprint(ours[start:end], summary.until_ms) != fingerprint:
                digests += _digests(first, last, ours[start:end])
            first, start = _successor(last), end
        if digests:
            self._broadcast.expects_answers(source, now)
        chosen = self._rng.sample(digests, min(DIGESTS_MAX, len(digests)))
        return [Outgoing(source, digest) for digest in chosen]

    def on_want(self, source: NodeId, want: Want, now: Now) -> list[Outgoing]:
        """Send what is wanted and held."""
        if not self._questions.take(source, now.monotonic_s):
            return []
        return self._broadcast.queue(source, self._heartbeats, want.nodes, now)

    def _compare(self, node: NodeId, now: Now) -> list[Outgoing]:
        self._partner = node
        self._next_s = now.monotonic_s + self._pause_s * (0.75 + 0.5 * self._rng.random())
        self._pause_s = min(2 * self._pause_s, INTERVALS_MAX * self._interval_s)
        self._broadcast.expects_answers(node, now)
        ours = self._shared(node, self._directory.entries())
        if len(ours) <= c.ARRAY_ITEMS_MAX and self._broadcast.is_newcomer(now):
            return [Outgoing(node, digest) for digest in _digests(FIRST_ID, LAST_ID, ours)]
        return [Outgoing(node, _summary(ours, max(0, now.wall_ms - SETTLED_MS)))]

    def _hurry(self, now: Now) -> None:
        self._pause_s = SOON_S
        soon_s = now.monotonic_s + SOON_S * (0.5 + self._rng.random())
        self._next_s = soon_s if self._next_s is None else min(self._next_s, soon_s)

    def _shared(self, node: NodeId, entries: list[Entry]) -> list[Entry]:
        """Those that both we and this neighbour want to hear of."""
        theirs: Scope = self._links[node].scope
        ours = self._interests.ours
        if ours is None and theirs is None:
            return entries
        return [entry for entry in entries if entry.concerns(ours) and entry.concerns(theirs)]


def _overlap(one: Scope, other: Scope) -> bool:
    return one is None or other is None or not one.isdisjoint(other)


def _node(entry: Entry) -> NodeId:
    return entry.heartbeat.node


def _fingerprint(entries: list[Entry], until_ms: int) -> bytes:
    """Of what was issued up to then: what is younger may be on its way to either side."""
    marks = [entry.mark for entry in entries if entry.heartbeat.issued_at_ms <= until_ms]
    return hashlib.sha256(b"".join(marks)).digest()[:FINGERPRINT_BYTES]


def _summary(entries: list[Entry], until_ms: int) -> Summary:
    """The whole range of ids in parts of as many records each."""
    # SPEC 04: The fingerprint of a range MUST cover every record in it that the sender holds, that concerns both sides
    #   and that was issued up to `until_ms`, and no other:
    size = max(PART_RECORDS, -(-len(entries) // c.ARRAY_ITEMS_MAX))
    batches = [entries[at : at + size] for at in range(0, max(1, len(entries)), size)]
    lasts = [_node(batch[-1]) for batch in batches[:-1]] + [LAST_ID]
    parts = zip(lasts, batches, strict=True)
    return Summary(until_ms, tuple((last, _fingerprint(batch, until_ms)) for last, batch in parts))


def _digests(first: NodeId, last: NodeId, entries: list[Entry]) -> list[Digest]:
    """All that is held in a range, listed in as few messages as can hold it."""
    # SPEC 04: A digest MUST list every record that the sender holds in its range and that concerns both sides, however
    #   young, and no other.
    digests: list[Digest] = []
    for at in range(0, max(1, len(entries)), c.ARRAY_ITEMS_MAX):
        batch = entries[at : at + c.ARRAY_ITEMS_MAX]
        until = last if at + c.ARRAY_ITEMS_MAX >= len(entries) else _node(batch[-1])
        digests.append(Digest(first, until, tuple((_node(entry), entry.heartbeat.sequence) for entry in batch)))
        first = _successor(until)
    return digests


def _successor(node: NodeId) -> NodeId:
    number = int.from_bytes(node, "big") + 1
    return FIRST_ID if number >> 256 else NodeId(number.to_bytes(32, "big"))
