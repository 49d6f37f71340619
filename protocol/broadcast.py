"""How news reach everybody: along a tree that mends itself (Plumtree: Leitao, Pereira, Rodrigues, 2007).

Every neighbour starts as one to whom news are pushed at once. Who only repeats what we knew is told so (`Prune`): from
then on both sides only say what they have, in batches (`Have`). What is left of the pushing links is a tree. Whoever
hears of something that does not come asks for it (`Graft`), which makes that link part of the tree again: so the
tree closes around every hole.

Records of one node go out once in five seconds; what changes faster waits, and goes out as it then is.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from protocol import constants as c
from protocol.events import Now
from protocol.ids import NodeId
from protocol.links import PATIENCE_MAX, Key, Kind, Link, Outgoing, cost_bytes
from protocol.messages import Graft, Have, Message, Prune
from protocol.timers import Timers

Item = TypeVar("Item")

# News that come shortly after others travel together: a flood of them costs frames, not news.
FLUSH_S: Final = 0.2
# What a neighbour is only told of goes out in batches this far apart; until then it may come to know it elsewhere.
HAVE_S: Final = 3.0
# News that a neighbour has may still be on their way along the tree; then it is asked for them, then the next one.
GRAFT_S: Final = 1.0
GRAFT_RETRY_S: Final = 2.0
ANNOUNCERS_MAX: Final = 4
MISSING_MAX: Final = 4096
# Of those, this many may be hopes in one neighbour: what it says it has need not exist.
PROMISES_MAX: Final = 256
# An answer to a question of ours comes within this long, and repeats things without being to blame for it.
ANSWER_S: Final = 3.0
# Who told nothing for a minute or two, while so much was heard from others, is mute.
WINDOW_S: Final = 60.0
HEARD_MIN: Final = 8
# So many news at once are the answer to a digest, not news of the hour; and so long does a newcomer take to read up.
MUCH: Final = 8
NEWCOMER_S: Final = 60.0


@dataclass(slots=True)
class _Missing:
    """News that we have heard of and do not have, and who has them."""

    sequence: int
    announcers: list[NodeId]


class Broadcast:
    """The state machine. `links` is shared with whoever keeps the neighbours; `repaired` is the kind of record that
    `Have` and `Graft` speak of.
    """

    def __init__(self, links: dict[NodeId, Link], repaired: Kind, rng: random.Random) -> None:
        self._links = links
        self._repaired = repaired
        self._rng = rng
        self._missing: dict[NodeId, _Missing] = {}
        self._grafts: Timers[NodeId] = Timers()
        # Pushed in this interval of five seconds and the one before; and what has changed since.
        self._pushed_s: dict[Key, float] = {}
        self._pushed_before_s: dict[Key, float] = {}
        self._rotates_s = float("-inf")
        self._held: Timers[Key] = Timers()
        self._settled_s = float("inf")
        # How much news we have heard, by now and two windows ago.
        self._heard = 0
        self._heard_before = [0, 0]
        self._window_s = float("-inf")
        self._held_from: dict[Key, NodeId | None] = {}
        self._flushed_s = float("-inf")
        self._flush_at_s: float | None = None
        self._have_at_s: float | None = None

    def next_deadline(self) -> float | None:
        deadlines = (
            self._flush_at_s,
            self._have_at_s,
            self._grafts.next_deadline(),
            self._held.next_deadline(),
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # ------------------------------------------------------------ news

    def spread(
        self, kind: Kind, signers: Iterable[NodeId], now: Now, *, source: NodeId | None, at_once: bool = False
    ) -> list[Outgoing]:
        """Pass on what is new of these signers, to all neighbours that it concerns but its source.

        `at_once` is for last words: they wait neither for others nor for their turn.
        """
        self._rotate(now)
        for signer in signers:
            key = (kind, signer)
            knowing = self._found(signer) if kind.is_repaired else ()
            # SPEC 04: A node MUST NOT push records of one node more often than once in 5 seconds.
            if not at_once and (again_s := self._may_push_at_s(key)) > now.monotonic_s:
                # SPEC 04: What changes faster MUST go out, as it then is, when the five seconds are over.
                self._held.set(key, again_s)
                self._held_from[key] = source
                continue
            self._held.cancel(key)
            self._held_from.pop(key, None)
            self._pushed_s[key] = now.monotonic_s
            for node, link in self._links.items():
                # SPEC 04: A node MUST NOT send a record back to the neighbour from which it learnt it, nor a node's own
                #   record to that node.
                if node in (source, signer) or node in knowing:
                    continue
                # SPEC 04: A node MUST NOT push, announce, list or send to a neighbour what does not concern it,
                if link.scope is None or kind.concerns(signer, link.scope):
                    self._offer(link, key, now)
        return self._flush(now) if at_once else self._flush_in_time(now)

    def _offer(self, link: Link, key: Key, now: Now) -> None:
        kind, signer = key
        if link.is_eager:
            link.pushes[key] = None
        elif kind.is_repaired:
            link.haves[signer] = None
            self._plan_have(now)

    def _plan_have(self, now: Now) -> None:
        if self._have_at_s is None:
            self._have_at_s = now.monotonic_s + HAVE_S * (0.5 + self._rng.random())

    def on_records(
        self, source: NodeId, kind: Kind, news: Sequence[NodeId], repeated: Sequence[NodeId], now: Now
    ) -> list[Outgoing]:
        """A neighbour sent records: those of `news` we did not have, those of `repeated` we had just so."""
        link = self._links.get(source)
        if link is None:
            return []
        for signer in repeated:
            link.knows((kind, signer))
        if len(news) >= MUCH and now.monotonic_s < link.answers_until_s:
            self._announce(news, now, source)
            outgoing = []
        else:
            # SPEC 04: The receiver MUST NOT push on a record that it held already.
            outgoing = self.spread(kind, news, now, source=source)
        self._heard += len(news)
        if news:
            link.duplicates = 0
            link.told += len(news)
        elif repeated and now.monotonic_s >= link.answers_until_s:
            link.duplicates += 1
            if link.is_eager and link.duplicates >= link.patience:
                link.is_eager = False
                link.duplicates = 0
                outgoing.append(Outgoing(source, Prune()))
        return outgoing

    def _announce(self, news: Sequence[NodeId], now: Now, source: NodeId) -> None:
        """A directory's worth of records came as an answer. Only to us are they all news: nobody is sent them.

        But where two halves of a network have just met, neighbours lack them, too, and are told.
        """
        # SPEC 04: A node that has had neighbours for less than a minute MUST NOT announce what it learns by comparing.
        is_newcomer = self.is_newcomer(now)
        for signer in news:
            knowing = self._found(signer)
            for node, link in self._links.items():
                concerns = link.scope is None or self._repaired.concerns(signer, link.scope)
                if concerns and not is_newcomer and node not in (source, signer) and node not in knowing:
                    link.haves[signer] = None
        self._plan_have(now)

    def on_joined(self, node: NodeId, now: Now) -> None:
        """There is a neighbour more: with the first one, this node is new to the network."""
        self._links[node].heard_at_start = self._heard
        if len(self._links) == 1:
            self._settled_s = now.monotonic_s + NEWCOMER_S

    def is_mute(self, node: NodeId) -> bool:
        """Whether a neighbour has told us nothing first lately, although there was much to tell."""
        link = self._links[node]
        heard = self._heard - max(link.heard_at_start, self._heard_before[0])
        return link.told + link.told_before == 0 and heard >= HEARD_MIN

    def _turn_window(self, now: Now) -> None:
        if now.monotonic_s >= self._window_s:
            self._window_s = now.monotonic_s + WINDOW_S
            self._heard_before = [self._heard_before[1], self._heard]
            for link in self._links.values():
                link.told_before, link.told = link.told, 0

    def is_newcomer(self, now: Now) -> bool:
        """Whether this node has had neighbours for less than a minute: it still reads up."""
        return now.monotonic_s < self._settled_s

    def queue(self, neighbour: NodeId, kind: Kind, signers: Iterable[NodeId], now: Now) -> list[Outgoing]:
        """Send a neighbour these records, since it asked for them: as fast as its budget allows."""
        link = self._links.get(neighbour)
        if link is None:
            return []
        # What we do not hold would wait behind what the budget does not cover yet: as many names as anybody invents.
        link.pushes.update(dict.fromkeys((kind, signer) for signer in signers if kind.record(signer) is not None))
        return self._flush(now)

    def send(self, neighbour: NodeId, kind: Kind, signers: Iterable[NodeId], now: Now) -> list[Outgoing]:
        """Send a neighbour as many of these records as its budget has room for now."""
        link = self._links[neighbour]
        records = []
        for signer in signers:
            record = kind.record(signer)
            if record is not None:
                if not link.budget.take(cost_bytes(record), now.monotonic_s):
                    break
                records.append(record)
        return [Outgoing(neighbour, message) for message in kind.pack(records)]

    # ------------------------------------------------------------ the tree

    def on_have(self, source: NodeId, have: Have, now: Now) -> None:
        """Remember who has what we lack; it is asked for unless it comes by itself."""
        link = self._links[source]
        for node, sequence in have.entries:
            held = self._repaired.sequence(node)
            if held < sequence:
                self._miss(node, sequence, source, now)
            elif held == sequence and link.knows((self._repaired, node)):
                link.told += 1

    def on_graft(self, source: NodeId, graft: Graft, now: Now) -> list[Outgoing]:
        """A neighbour wants news at once again, and these now."""
        self._links[source].is_eager = True
        return self.queue(source, self._repaired, graft.nodes, now)

    def on_prune(self, source: NodeId, now: Now) -> None:
        """A neighbour wants to be told only. What waits for it is told it, too."""
        link = self._links[source]
        link.is_eager = False
        link.haves.update(dict.fromkeys(signer for kind, signer in link.pushes if kind.is_repaired))
        link.pushes.clear()
        self._plan_have(now)

    def expects_answers(self, neighbour: NodeId, now: Now) -> None:
        """We have asked a neighbour for records: that it repeats some is no sign of a loop in the tree."""
        self._links[neighbour].answers_until_s = now.monotonic_s + ANSWER_S

    def _miss(self, node: NodeId, sequence: int, source: NodeId, now: Now) -> None:
        missing = self._missing.get(node)
        link = self._links[source]
        # SPEC 04: and MUST bound how many promises of one neighbour it remembers.
        if link.promised >= PROMISES_MAX:
            return
        if missing is None:
            if len(self._missing) >= MISSING_MAX:
                return
            self._missing[node] = _Missing(sequence, [source])
            self._grafts.set(node, now.monotonic_s + GRAFT_S)
        elif source in missing.announcers:
            # Else the older one, come by itself, would be taken for what was promised.
            missing.sequence = max(missing.sequence, sequence)
            return
        elif len(missing.announcers) >= ANNOUNCERS_MAX:
            return
        else:
            missing.sequence = max(missing.sequence, sequence)
            missing.announcers.append(source)
        link.promised += 1

    def _found(self, node: NodeId) -> Sequence[NodeId]:
        """Something new of this node is here; returns who has said that it has it, too."""
        missing = self._missing.get(node)
        held = self._repaired.sequence(node)
        if missing is None or held < missing.sequence:
            return ()
        self._forget_missing(node)
        return missing.announcers if held == missing.sequence else ()

    def on_left(self, node: NodeId) -> None:
        """A neighbour is gone: nothing is to be hoped for from it."""
        for missing in self._missing.values():
            if node in missing.announcers:
                missing.announcers.remove(node)

    def _forget_missing(self, node: NodeId) -> None:
        self._grafts.cancel(node)
        for announcer in self._missing.pop(node).announcers:
            if announcer in self._links:
                self._links[announcer].promised -= 1

    def _graft(self, now: Now) -> list[Outgoing]:
        """Ask for what did not come by itself."""
        asked: defaultdict[NodeId, list[NodeId]] = defaultdict(list)
        for node in self._grafts.pop_due(now.monotonic_s):
            missing = self._missing[node]
            announcer = next((each for each in missing.announcers if each in self._links), None)
            if announcer is None:
                self._forget_missing(node)
                continue
            missing.announcers.remove(announcer)
            self._links[announcer].promised -= 1
            asked[announcer].append(node)
            self._grafts.set(node, now.monotonic_s + GRAFT_RETRY_S)
        outgoing = []
        for announcer, nodes in asked.items():
            link = self._links[announcer]
            if not link.is_eager:
                link.is_eager = True
                # It was cut off too early: a link that carries a part of the news repeats the other part.
                link.patience = min(PATIENCE_MAX, 2 * link.patience)
            outgoing += [Outgoing(announcer, Graft(batch)) for batch in _batches(nodes)]
        return outgoing

    # ------------------------------------------------------------ time

    def on_deadline(self, now: Now) -> list[Outgoing]:
        """Do what is due."""
        self._turn_window(now)
        outgoing: list[Outgoing] = []
        for kind, signer in self._held.pop_due(now.monotonic_s):
            # Its five seconds are over, whatever the rounding of their sum says.
            self._pushed_s.pop((kind, signer), None)
            self._pushed_before_s.pop((kind, signer), None)
            outgoing += self.spread(kind, [signer], now, source=self._held_from.pop((kind, signer)))
        if self._flush_at_s is not None and self._flush_at_s <= now.monotonic_s:
            outgoing += self._flush(now)
        if self._have_at_s is not None and self._have_at_s <= now.monotonic_s:
            outgoing += self._tell()
        return outgoing + self._graft(now)

    def _flush_in_time(self, now: Now) -> list[Outgoing]:
        if now.monotonic_s >= self._flushed_s + FLUSH_S:
            return self._flush(now)
        if self._flush_at_s is None:
            self._flush_at_s = self._flushed_s + FLUSH_S
        return []

    def _flush(self, now: Now) -> list[Outgoing]:
        """Send every neighbour what waits for it, as far as its budget goes."""
        self._flush_at_s = None
        outgoing: list[Outgoing] = []
        # The same news for many neighbours are one message.
        messages: dict[tuple[Key, ...], list[Message]] = {}
        for node, link in self._links.items():
            if not link.pushes:
                continue
            keys = self._affordable(link, now)
            if keys not in messages:
                messages[keys] = _pack(keys)
            outgoing += [Outgoing(node, message) for message in messages[keys]]
        if outgoing:
            self._flushed_s = now.monotonic_s
        return outgoing

    def _affordable(self, link: Link, now: Now) -> tuple[Key, ...]:
        """What goes to a neighbour now; what its budget does not cover stays for later."""
        keys = []
        for key in list(link.pushes):
            kind, signer = key
            record = kind.record(signer)
            if record is not None:
                cost = cost_bytes(record)
                # SPEC 04: A node MUST bound how many bytes of records a neighbour draws from it, at once and in the
                #   long run, whatever it asks for;
                if not link.budget.take(cost, now.monotonic_s):
                    again_s = now.monotonic_s + max(FLUSH_S, link.budget.wait_s(cost))
                    self._flush_at_s = again_s if self._flush_at_s is None else min(self._flush_at_s, again_s)
                    break
                keys.append(key)
            del link.pushes[key]
        return tuple(keys)

    def _tell(self) -> list[Outgoing]:
        self._have_at_s = None
        outgoing = []
        for node, link in self._links.items():
            held = [(signer, self._repaired.sequence(signer)) for signer in link.haves]
            link.haves.clear()
            entries = [entry for entry in held if entry[1] >= 0]
            outgoing += [Outgoing(node, Have(batch)) for batch in _batches(entries)]
        return outgoing

    def _may_push_at_s(self, key: Key) -> float:
        """When records of this signer may be pushed again."""
        last_s = self._pushed_s.get(key)
        if last_s is None:
            last_s = self._pushed_before_s.get(key, float("-inf"))
        return last_s + c.RECORD_INTERVAL_S

    def _rotate(self, now: Now) -> None:
        """Forget pushes of more than two intervals ago, without looking at each."""
        if now.monotonic_s >= self._rotates_s:
            is_recent = now.monotonic_s < self._rotates_s + c.RECORD_INTERVAL_S
            self._pushed_before_s = self._pushed_s if is_recent else {}
            self._pushed_s = {}
            self._rotates_s = now.monotonic_s + c.RECORD_INTERVAL_S


def _batches(items: Sequence[Item]) -> list[tuple[Item, ...]]:
    return [tuple(items[at : at + c.ARRAY_ITEMS_MAX]) for at in range(0, len(items), c.ARRAY_ITEMS_MAX)]


def _pack(keys: tuple[Key, ...]) -> list[Message]:
    by_kind: defaultdict[Kind, list[NodeId]] = defaultdict(list)
    for kind, signer in keys:
        by_kind[kind].append(signer)
    messages: list[Message] = []
    for kind, signers in by_kind.items():
        records = [record for signer in signers if (record := kind.record(signer)) is not None]
        messages += kind.pack(records)
    return messages
