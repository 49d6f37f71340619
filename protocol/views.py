"""Who our neighbours are: the active view of HyParView (Leitao, Pereira, Rodrigues, 2007), over what connections stand.

A neighbour is agreed: one side asks (`Neighbour`), the other takes it or refuses and names others. A node chooses a
handful of neighbours itself, in distinct networks, and takes in a bounded number of those that choose it. Only whom
it chose itself can be trusted not to have gathered around it on purpose, so those never make room for anybody.

Now and then one more is chosen, and of those chosen before the one that told us least goes: so groups that lost touch
find together again, and a neighbour that swallows news does not stay.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from protocol import constants as c
from protocol.contacts import Contacts
from protocol.directory import Directory
from protocol.effects import Dial, Effect
from protocol.events import Now
from protocol.ids import NodeId
from protocol.links import RECORDS_BYTES_MAX, Link, Outgoing, cost_bytes
from protocol.locality import direct
from protocol.messages import Leave, Neighbour, NeighbourAnswer, Shuffle, Shuffled
from protocol.passive import Passive, network_of
from protocol.places import LEAVES_MAX, PROBATION_S, TAKEN_MAX, Place, Places
from protocol.rates import Rates
from protocol.records import Signed
from protocol.timers import Timers

# specs/03 asks for four. One that fails must not make a node search in haste: two more.
CHOSEN_MIN: Final = 4
CHOSEN_MORE: Final = 2
# Beyond those, neighbours for the models of interest that too few of the others have to do with.
CHOSEN_FOR_MODELS_MAX: Final = 6
# The first ones are sought among those that we were given: saved peers that were good, and bootstrap nodes.
CHOSEN_GIVEN: Final = 2
# Attempts at once, and how long one may take: dial, handshake, hello, question, answer.
ATTEMPTS_MAX: Final = 3
ATTEMPT_S: Final = 2 * c.REACH_DEADLINE_S
SEEK_S: Final = 1.0
# ... while nobody is left to ask.
SEEK_IDLE_S: Final = 10.0
# Who refused or left us is not asked again so soon.
REST_S: Final = 60.0
# Somebody new is met that often, by a young node more often: it chose among the few that it had heard of.
ROTATE_S: Final = 90.0
ROTATE_YOUNG_S: Final = 10.0
# ... while one of those whom we chose is mute.
ROTATE_MUTE_S: Final = 10.0
SHUFFLE_S: Final = 120.0
FAILURES_MAX: Final = 8
# A peer may ask to be a neighbour, or to shuffle, this often.
REQUESTS_PER_S: Final = 0.2
REQUESTS_BURST: Final = 4


@dataclass(frozen=True, slots=True)
class Joined:
    """This connected peer is a neighbour from now on, and whether we chose it."""

    node: NodeId
    is_chosen: bool = True


@dataclass(frozen=True, slots=True)
class Left:
    """This node is no neighbour any more."""

    node: NodeId


Change = Joined | Left | Outgoing | Effect


@dataclass(slots=True)
class _Acquaintance:
    """A connected peer. `network` is that of the address we see it at; `speaks` gossip, as far as we know."""

    network: str
    speaks: bool = False


@dataclass(slots=True)
class _Neighbour(Place):
    """`is_chosen`: by us, so it makes room for nobody; `is_for_models`: not for company, but for what it knows."""

    is_leaf: bool
    is_chosen: bool
    is_for_models: bool = False


class Views:
    """The state machine. `links` is shared with the broadcast, which counts in it who tells us news.

    `chosen_min` of 0 is for those who look for nobody. `is_mute` says whether a neighbour tells us nothing, and
    `wanting` names nodes that have to do with models of interest that too few neighbours have to do with.
    """

    def __init__(
        self,
        node: NodeId,
        directory: Directory,
        contacts: Contacts,
        passive: Passive,
        links: dict[NodeId, Link],
        rng: random.Random,
        now: Now,
        *,
        chosen_min: int,
        is_mute: Callable[[NodeId], bool],
        wanting: Callable[[Now], Sequence[NodeId]],
    ) -> None:
        self._node = node
        self._directory = directory
        self._contacts = contacts
        self._passive = passive
        self._links = links
        self._rng = rng
        self._chosen_aim = chosen_min + CHOSEN_MORE if chosen_min else 0
        self._is_mute = is_mute
        self._wanting = wanting
        self._peers: dict[NodeId, _Acquaintance] = {}
        self._neighbours: dict[NodeId, _Neighbour] = {}
        # Whom we try to win, until when; which of them have been asked, and which are for models.
        self._attempts: Timers[NodeId] = Timers()
        self._asked: set[NodeId] = set()
        self._for_models: set[NodeId] = set()
        self._resting: dict[NodeId, float] = {}
        self._ask_again: Timers[NodeId] = Timers()
        self._requests: Rates[NodeId] = Rates(REQUESTS_PER_S, REQUESTS_BURST)
        self._places = Places(rng, self._told)
        self._shuffling: set[NodeId] = set()
        self._seek_s = self._soon_s(now, SEEK_S) if chosen_min else None
        self._rotate_pause_s = ROTATE_YOUNG_S
        self._rotate_s = self._soon_s(now, ROTATE_YOUNG_S) if chosen_min else None
        self._shuffle_s = self._soon_s(now, SHUFFLE_S)

    def __contains__(self, node: NodeId) -> bool:
        return node in self._neighbours

    def speaks(self, node: NodeId) -> bool:
        """Whether a peer is connected and speaks gossip, neighbour or not."""
        peer = self._peers.get(node)
        return peer is not None and peer.speaks

    def is_asked(self, node: NodeId) -> bool:
        """Whether a peer has been asked to be a neighbour, and has not answered yet."""
        return node in self._asked

    def next_deadline(self) -> float | None:
        deadlines = (
            self._seek_s,
            self._rotate_s,
            self._shuffle_s if self._neighbours else None,
            self._attempts.next_deadline(),
            self._ask_again.next_deadline(),
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _soon_s(self, now: Now, interval_s: float) -> float:
        # Without jitter, nodes that start together act together for ever.
        return now.monotonic_s + interval_s * (0.5 + self._rng.random())

    # ------------------------------------------------------------ connections

    def on_connected(self, node: NodeId, network: str) -> None:
        self._peers[node] = _Acquaintance(network)
        self._passive.found_in(node, network)

    def on_greeted(self, node: NodeId, speaks: bool, now: Now) -> list[Change]:
        """The peer's hello is here and says whether it speaks gossip."""
        peer = self._peers.get(node)
        if peer is None or peer.speaks:
            return []
        peer.speaks = speaks
        if not speaks:
            self._passive.forget(node)
            if self._attempts.is_set(node):
                self._give_up(node, now)
            return []
        if node in self._neighbours:
            return []
        if self._contacts.is_wanted(node):
            return [self._ask(node, now)]
        if not self._attempts.is_set(node):
            return []
        if self._is_one_too_many(node, now):
            self._give_up(node, now)
            return []
        return [self._ask(node, now)]

    def _is_one_too_many(self, node: NodeId, now: Now) -> bool:
        """Whether a candidate turns out to be in the network of a neighbour that we chose, and others are elsewhere.

        Where it is, its addresses have only claimed until now: several may lead to one network, and names anywhere.
        """
        chosen = [each.network for each in self._neighbours.values() if each.is_chosen]
        is_given = len(chosen) < CHOSEN_GIVEN and node in self._contacts.given()
        if node in self._for_models or is_given or self._peers[node].network not in chosen:
            return False
        return self._passive.has_other(lambda other: self._fits(other, now), chosen)

    def on_wanted(self, node: NodeId, now: Now) -> list[Change]:
        """Somebody may have asked for a lasting connection to this node: then it is asked to be a neighbour."""
        is_new = self._contacts.is_wanted(node) and node not in self._neighbours and node not in self._asked
        return [self._ask(node, now)] if is_new and self.speaks(node) else []

    def on_disconnected(self, node: NodeId, now: Now) -> list[Change]:
        if self._peers.pop(node, None) is None:
            return []
        self._forget_attempt(node)
        return self._remove(node, now)

    def on_unreachable(self, node: NodeId, now: Now) -> None:
        """A dial failed."""
        self._forget_attempt(node)
        if self._contacts.failures(node) >= FAILURES_MAX:
            self._passive.forget(node)
        self._hurry(now)

    def on_stream_lost(self, node: NodeId, now: Now) -> list[Change]:
        """A stream between us and this peer is gone, and with it an unknown part of what was said."""
        # SPEC 03: The loss of a gossip stream, in either direction, MUST end the neighbourhood,
        if self._attempts.is_set(node) or node in self._neighbours:
            self._rest(node, now)
        self._forget_attempt(node)
        return self._remove(node, now)

    # ------------------------------------------------------------ messages

    def on_neighbour(self, source: NodeId, message: Neighbour, now: Now) -> list[Change]:
        """A peer asks to be our neighbour."""
        peer = self._peers.get(source)
        if peer is None:
            return []
        peer.speaks = True
        yes = Outgoing(source, NeighbourAnswer(1, ()))
        if source in self._neighbours:
            return [yes]
        # SPEC 03: A node MUST bound how often a peer may ask, and does not answer beyond that:
        if not self._requests.take(source, now.monotonic_s):
            return []
        entry = self._directory.get(source)
        is_leaf = entry is None or not direct(entry.heartbeat.addresses)
        is_taken, victim = self._place_for(peer.network, now, is_leaf=is_leaf, is_urgent=bool(message.is_urgent))
        if not is_taken:
            others = self._passive.records(c.SHUFFLE_RECORDS_MAX, (source,))
            return [Outgoing(source, NeighbourAnswer(0, tuple(others)))]
        changes: list[Change] = []
        if victim is not None:
            changes += [Outgoing(victim, Leave()), *self._remove(victim, now)]
        return [*changes, yes, *self._join(source, now, is_leaf=is_leaf, is_chosen=source in self._asked)]

    def on_answer(self, source: NodeId, message: NeighbourAnswer, now: Now) -> list[Change]:
        """A peer answers whether it is our neighbour."""
        if source not in self._asked:
            # We have given it up since we asked.
            is_late = message.is_accepted and source in self._peers and source not in self._neighbours
            # To say so takes a stream: whoever answers what nobody asked, again and again, is told no more.
            is_told = is_late and self._requests.take(source, now.monotonic_s)
            return [Outgoing(source, Leave())] if is_told else []
        if not message.is_accepted:
            self._give_up(source, now)
            return []
        is_for_models = source in self._for_models
        self._forget_attempt(source)
        held = self._neighbours.get(source)
        if held is not None:
            held.is_chosen = True
            return []
        joined = self._join(source, now, is_leaf=False, is_chosen=True, is_for_models=is_for_models)
        return [*joined, *self._drop_least(now)]

    def on_leave(self, source: NodeId, now: Now) -> list[Change]:
        """A neighbour is none any more."""
        if source not in self._neighbours:
            return []
        self._rest(source, now)
        return self._remove(source, now)

    def on_shuffle(self, source: NodeId, now: Now) -> list[Change]:
        """A neighbour has told us of some nodes: tell it of others."""
        if source not in self._neighbours or not self._requests.take(source, now.monotonic_s):
            return []
        return [Outgoing(source, Shuffled(tuple(self._passive.records(c.SHUFFLE_RECORDS_MAX, (source,)))))]

    def expects_shuffled(self, source: NodeId) -> bool:
        """Whether we wait for such an answer; it comes once."""
        if source not in self._shuffling:
            return False
        self._shuffling.discard(source)
        return True

    # ------------------------------------------------------------ time

    def on_candidates(self, now: Now) -> None:
        """There may be new candidates: a node that looks for some need not wait."""
        if self._seek_s is not None and self._seek_s > now.monotonic_s + SEEK_S and self._lacking() > 0:
            self._hurry(now)

    def on_deadline(self, now: Now) -> list[Change]:
        """Do what is due."""
        changes: list[Change] = []
        for node in self._attempts.pop_due(now.monotonic_s):
            self._give_up(node, now)
        again = [node for node in self._ask_again.pop_due(now.monotonic_s) if self.speaks(node)]
        changes += [self._ask(node, now) for node in again if node not in self._neighbours]
        if self._seek_s is not None and self._seek_s <= now.monotonic_s:
            changes += self._seek(now)
        if self._rotate_s is not None and self._rotate_s <= now.monotonic_s:
            changes += self._rotate(now)
            self._rotate_s = self._soon_s(now, self._rotate_pause_s)
            self._rotate_pause_s = min(2 * self._rotate_pause_s, ROTATE_S)
        if self._shuffle_s <= now.monotonic_s:
            self._shuffle_s = self._soon_s(now, SHUFFLE_S)
            changes += self._shuffle()
        return changes

    def _seek(self, now: Now) -> list[Change]:
        """Try to win as many neighbours as are lacking, some at a time."""
        changes: list[Change] = []
        lacking = self._lacking()
        while lacking > 0 and len(self._attempts) < ATTEMPTS_MAX and not self._is_beginning():
            node = self._candidate(now)
            if node is None:
                break
            lacking -= 1
            changes += self._attempt(node, now)
        changes += self._seek_for_models(now)
        # Whoever is alone tries the few that it knows again as soon as they are due.
        is_urgent = not self._neighbours or (lacking > 0 and len(self._attempts) > 0)
        self._seek_s = self._soon_s(now, SEEK_S if is_urgent else SEEK_IDLE_S)
        if self._rotate_s is not None and self._has_mute(now):
            self._rotate_s = min(self._rotate_s, self._soon_s(now, ROTATE_MUTE_S))
        return changes

    def _is_beginning(self) -> bool:
        """Whether somebody whom we were given is being asked first: the rest would be whoever comes to us."""
        given = self._contacts.given()
        return not any(each.is_chosen for each in self._neighbours.values()) and any(
            node in given for node in self._attempts
        )

    def _seek_for_models(self, now: Now) -> list[Change]:
        changes: list[Change] = []
        for node in self._wanting(now):
            held = len(self._for_models) + sum(each.is_for_models for each in self._neighbours.values())
            if held >= CHOSEN_FOR_MODELS_MAX or len(self._attempts) >= ATTEMPTS_MAX:
                break
            if self._fits(node, now):
                self._for_models.add(node)
                changes += self._attempt(node, now)
        return changes

    def _rotate(self, now: Now) -> list[Change]:
        """Meet somebody else now and then. Who was chosen for models must from now on be worth its place otherwise."""
        for each in self._neighbours.values():
            each.is_for_models = False
        changes = self._drop_least(now)
        if self._lacking() > 0 or self._least(now) is None:
            return changes
        node = self._candidate(now)
        return changes if node is None else [*changes, *self._attempt(node, now)]

    def _shuffle(self) -> list[Change]:
        if not self._neighbours:
            return []
        node = self._rng.choice(list(self._neighbours))
        own = self._directory.get(self._node)
        records: list[Signed] = [own.record] if own is not None and own.heartbeat.addresses else []
        left_bytes = RECORDS_BYTES_MAX - sum(map(cost_bytes, records))
        records += self._passive.records(c.SHUFFLE_RECORDS_MAX - len(records), (node,), left_bytes)
        self._shuffling.add(node)
        return [Outgoing(node, Shuffle(tuple(records)))] if records else []

    # ------------------------------------------------------------ choosing

    def _lacking(self) -> int:
        chosen = sum(each.is_chosen and not each.is_for_models for each in self._neighbours.values())
        return self._chosen_aim - chosen - sum(node not in self._for_models for node in self._attempts)

    def _candidate(self, now: Now) -> NodeId | None:
        """Whom to try next: at first whom we were given, then somebody out of a network that is not among ours yet."""
        chosen = [each.network for each in self._neighbours.values() if each.is_chosen]
        if len(chosen) + len(self._attempts) < CHOSEN_GIVEN:
            for node in self._contacts.given():
                if self._fits(node, now):
                    return node
        tried = [network_of(addresses[0]) for node in self._attempts if (addresses := self._addresses(node))]
        # SPEC 03: A node MUST choose its neighbours in distinct networks as long as it knows of so many,
        return self._passive.choose(lambda node: self._fits(node, now), {*chosen, *tried})

    def _fits(self, node: NodeId, now: Now) -> bool:
        if node == self._node or node in self._neighbours or self._attempts.is_set(node):
            return False
        if self._resting.get(node, 0.0) > now.monotonic_s:
            return False
        peer = self._peers.get(node)
        if peer is not None:
            return peer.speaks
        return self._contacts.is_due(node, now) and bool(self._addresses(node))

    def _addresses(self, node: NodeId) -> tuple[str, ...]:
        return self._contacts.addresses(node) or self._passive.addresses(node)

    def _attempt(self, node: NodeId, now: Now) -> list[Change]:
        self._attempts.set(node, now.monotonic_s + ATTEMPT_S)
        if node in self._peers:
            return [self._ask(node, now)]
        return [Dial(node, self._addresses(node))]

    def _ask(self, node: NodeId, now: Now) -> Outgoing:
        self._attempts.set(node, now.monotonic_s + ATTEMPT_S)
        self._asked.add(node)
        is_urgent = not any(each.is_chosen for each in self._neighbours.values())
        return Outgoing(node, Neighbour(int(is_urgent)))

    def _forget_attempt(self, node: NodeId) -> None:
        self._attempts.cancel(node)
        self._asked.discard(node)
        self._for_models.discard(node)

    def _give_up(self, node: NodeId, now: Now) -> None:
        """It refused, or did not answer."""
        self._forget_attempt(node)
        self._rest(node, now)
        self._hurry(now)

    def _rest(self, node: NodeId, now: Now) -> None:
        """Leave a peer alone for a while."""
        if len(self._resting) > c.DIRECTORY_RECORDS_MAX:
            self._resting = {each: until_s for each, until_s in self._resting.items() if until_s > now.monotonic_s}
        self._resting[node] = self._soon_s(now, REST_S)
        if self._contacts.is_wanted(node):
            self._ask_again.set(node, self._resting[node])

    def _hurry(self, now: Now) -> None:
        if self._seek_s is not None:
            self._seek_s = min(self._seek_s, self._soon_s(now, SEEK_S))

    # ------------------------------------------------------------ the active view

    def _place_for(self, network: str, now: Now, *, is_leaf: bool, is_urgent: bool) -> tuple[bool, NodeId | None]:
        """Whether a newcomer from this network is taken in, and who makes room for it."""
        held = {node: each for node, each in self._neighbours.items() if not each.is_chosen and each.is_leaf == is_leaf}
        places_max = LEAVES_MAX if is_leaf else TAKEN_MAX
        return self._places.find(held, places_max, network, now, is_urgent=is_urgent)

    def _told(self, node: NodeId) -> int:
        """How often a neighbour was the first to tell us something in the last minute or two."""
        link = self._links[node]
        return link.told + link.told_before

    def _join(
        self, node: NodeId, now: Now, *, is_leaf: bool, is_chosen: bool, is_for_models: bool = False
    ) -> list[Change]:
        network = self._peers[node].network
        self._neighbours[node] = _Neighbour(network, now.monotonic_s, is_leaf, is_chosen, is_for_models)
        return [Joined(node, is_chosen)]

    def _remove(self, node: NodeId, now: Now) -> list[Change]:
        self._shuffling.discard(node)
        if self._neighbours.pop(node, None) is None:
            return []
        self._hurry(now)
        return [Left(node)]

    def _has_mute(self, now: Now) -> bool:
        """Whether somebody whom we chose has had its time and told us nothing."""
        return any(self._is_mute(node) for node in self._replaceable(now))

    def _replaceable(self, now: Now) -> list[NodeId]:
        """Those chosen for company, and long enough ago."""
        # SPEC 03: It MUST NOT leave one that its owner asked for.
        return [
            node
            for node, each in self._neighbours.items()
            if each.is_chosen
            and not each.is_for_models
            and now.monotonic_s - each.since_s >= PROBATION_S
            and not self._contacts.is_wanted(node)
        ]

    def _least(self, now: Now) -> NodeId | None:
        """Of those who may be replaced, the one that told us least."""
        old = self._replaceable(now)
        self._rng.shuffle(old)
        return min(old, key=self._told, default=None)

    def _drop_least(self, now: Now) -> list[Change]:
        """One was chosen beyond the aim: another one goes."""
        least = self._least(now)
        if self._lacking() >= 0 or least is None:
            return []
        self._rest(least, now)
        return [Outgoing(least, Leave()), *self._remove(least, now)]
