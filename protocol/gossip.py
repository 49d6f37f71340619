"""Who hears what: neighbours, the broadcast tree between them, and what repairs it, composed.

`views` says who is a neighbour, `interest` what each wants to hear, `broadcast` carries news, `exchange` finds what was
missed. This room takes the messages, keeps one `Link` per neighbour for the others to share, and guards the door: a
record is checked before it is kept or passed on, and nobody brings more new keys than his network may.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from protocol import constants as c
from protocol.broadcast import Broadcast
from protocol.codec import encode_message
from protocol.contacts import Contacts
from protocol.directory import Directory, Entry, Scope, Worth
from protocol.effects import Effect, FinishStream, Misbehaved, Note, OpenStream, RecordLearnt, Send
from protocol.errors import RemoteProtocolError
from protocol.events import Now
from protocol.exchange import Exchange
from protocol.ids import NodeId, StreamId
from protocol.interest import Interests, scope_of
from protocol.links import BURST_BYTES, BYTES_PER_S, RECORDS_BYTES_MAX, Budget, Kind, Link, Outgoing, packed
from protocol.locality import direct
from protocol.messages import (
    Digest,
    Graft,
    Have,
    Interest,
    Leave,
    Load,
    Message,
    Neighbour,
    NeighbourAnswer,
    Prune,
    Records,
    Shuffle,
    Shuffled,
    Summary,
    Want,
)
from protocol.passive import Passive, network_of
from protocol.rates import Rates
from protocol.records import Heartbeat, Signed
from protocol.views import Change, Joined, Left, Views

# Keys never heard of that come out of one network: a newcomer's whole directory at once, then a trickle that no flood
# can exceed.
NEW_KEYS_PER_S: Final = 32.0
NEW_KEYS_BURST: Final = 2048
# New records of one key that are worth a signature check; others hear of one in five seconds.
UPDATES_PER_S: Final = 2 / c.RECORD_INTERVAL_S
UPDATES_BURST: Final = 4
# An honest neighbour passes on what many networks, or one key by way of many nodes, have brought it: more than we take.
# But it spends no more on us than its budget allows. Who brings more of what is refused, were it as small as can be, is
# to blame for it himself.
RECORD_BYTES_MIN: Final = 128
REFUSED_PER_S: Final = BYTES_PER_S / RECORD_BYTES_MIN
REFUSED_BURST: Final = BURST_BYTES // RECORD_BYTES_MIN
# Load is told on change, and not more often than this.
LOAD_S: Final = 1.0
# Neighbours that have to do with each model of interest.
NEIGHBOURS_PER_MODEL: Final = 2
# Providers of a model of interest of which too few are known are looked for this often, and ever more seldom.
SEARCH_S_MIN: Final = 15.0
SEARCH_S_MAX: Final = 600.0
_SAMPLE: Final = 4


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """`interval_s` is the pace of comparing directories in seconds; None leaves gossip out (a coordinator)."""

    interval_s: float | None = c.GOSSIP_INTERVAL_S


class Heartbeats:
    """The heartbeats of the directory as a kind of record that is spread and repaired."""

    is_repaired = True

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def record(self, signer: NodeId) -> Signed | None:
        entry = self._directory.get(signer)
        return entry.record if entry is not None else None

    def sequence(self, signer: NodeId) -> int:
        entry = self._directory.get(signer)
        return entry.heartbeat.sequence if entry is not None else -1

    def concerns(self, signer: NodeId, scope: Scope) -> bool:
        entry = self._directory.get(signer)
        return entry is not None and entry.concerns(scope)

    def pack(self, records: Iterable[Signed]) -> list[Message]:
        return [Records(batch) for batch in packed(records, c.ARRAY_ITEMS_MAX, RECORDS_BYTES_MAX)]


class Gossip:
    """The composed machine.

    `chosen_min` neighbours at least are looked for, none when it is 0. `search` asks peers for providers of a model.
    """

    def __init__(
        self,
        config: GossipConfig,
        node: NodeId,
        directory: Directory,
        contacts: Contacts,
        rng: random.Random,
        now: Now,
        *,
        chosen_min: int,
        search: Callable[[str], list[Effect]],
        next_stream: Callable[[], StreamId],
    ) -> None:
        self._is_on = config.interval_s is not None
        self._node = node
        self._directory = directory
        self._contacts = contacts
        self._rng = rng
        self._search = search
        self._next_stream = next_stream
        self._heartbeats = Heartbeats(directory)
        self._links: dict[NodeId, Link] = {}
        self._interests = Interests(directory)
        self._passive = Passive(rng)
        self._broadcast = Broadcast(self._links, self._heartbeats, rng)
        self._exchange = Exchange(
            config.interval_s or c.GOSSIP_INTERVAL_S,
            directory,
            self._heartbeats,
            self._interests,
            self._links,
            self._broadcast,
            rng,
        )
        self._views = Views(
            node,
            directory,
            contacts,
            self._passive,
            self._links,
            rng,
            now,
            chosen_min=chosen_min if self._is_on else 0,
            is_mute=self._broadcast.is_mute,
            wanting=self._wanting,
        )
        # What peers want to hear of, the stream that we opened to each, and whose streams are gone.
        self._scopes: dict[NodeId, Scope] = {}
        self._streams: dict[NodeId, StreamId] = {}
        self._lost: list[NodeId] = []
        self._networks: dict[NodeId, str] = {}
        self._new_keys: Rates[str] = Rates(NEW_KEYS_PER_S, NEW_KEYS_BURST)
        self._updates: Rates[NodeId] = Rates(UPDATES_PER_S, UPDATES_BURST)
        self._refused: Rates[NodeId] = Rates(REFUSED_PER_S, REFUSED_BURST)
        self._load: tuple[int, int] | None = None
        self._told_load: tuple[int, int] | None = None
        self._told_s = float("-inf")
        self._load_at_s: float | None = None
        self._search_at_s = now.monotonic_s + SEARCH_S_MIN
        self._search_s = SEARCH_S_MIN
        directory.rank_by(self._worth)

    @property
    def neighbours(self) -> tuple[NodeId, ...]:
        """Who they are, in the order in which they came."""
        return tuple(self._links)

    def next_deadline(self) -> float | None:
        if not self._is_on:
            return None
        deadlines = (
            self._views.next_deadline(),
            self._broadcast.next_deadline(),
            self._exchange.next_deadline(),
            self._load_at_s,
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # ------------------------------------------------------------ what this node has to do with

    def serve(self, models: Iterable[str]) -> None:
        """These are the models that this node serves from now on."""
        self._interests.serve(list(models))

    def ask(self, model: str, now: Now) -> None:
        """This node asks for a model: it wants to hear of who serves it."""
        self._search_s = SEARCH_S_MIN
        self._interests.ask(model, now)

    def set_load(self, load: int, wait_ms: int, now: Now) -> list[Effect]:
        """This provider is so full from now on, and a new job would wait so long."""
        self._load = (load, wait_ms)
        if not self._is_on or self._load == self._told_load:
            return []
        # SPEC 04: A provider MUST NOT tell its load more often than once in a second.
        if now.monotonic_s < self._told_s + LOAD_S:
            self._load_at_s = self._told_s + LOAD_S
            return []
        return self._settle(self._tell_load(now), now)

    # ------------------------------------------------------------ connections

    def on_connected(self, node: NodeId, address: str | None) -> None:
        self._networks[node] = network_of(address)
        self._views.on_connected(node, self._networks[node])

    def on_greeted(self, node: NodeId, speaks: bool, now: Now) -> list[Effect]:
        """The peer's hello is here and says whether it speaks gossip."""
        # Without gossip, too: reports go to whoever understands them.
        return self._settle(self._views.on_greeted(node, speaks, now), now)

    def on_disconnected(self, node: NodeId, now: Now) -> list[Effect]:
        self._streams.pop(node, None)
        self._scopes.pop(node, None)
        changes = self._settle(self._views.on_disconnected(node, now), now)
        self._networks.pop(node, None)
        return changes

    def on_unreachable(self, node: NodeId, now: Now) -> None:
        """A dial failed."""
        self._views.on_unreachable(node, now)

    def on_stream_lost(self, number: StreamId, node: NodeId, *, inbound: bool) -> None:
        """A gossip stream to or from this peer is gone; what follows from it comes out of `on_streams_lost`."""
        is_ours = self._streams.get(node) == number
        if is_ours:
            del self._streams[node]
        if is_ours or inbound:
            self._lost.append(node)

    def on_streams_lost(self, now: Now) -> list[Effect]:
        """Whose stream is lost is no neighbour any more."""
        if not self._lost:
            return []
        lost, self._lost = self._lost, []
        return self._settle([change for node in lost for change in self._views.on_stream_lost(node, now)], now)

    def on_candidate(self, node: NodeId, now: Now) -> list[Effect]:
        """Somebody gave us an address of this node, or asks for a lasting connection to it."""
        if not self._is_on or node == self._node:
            return []
        self._passive.add(node, direct(self._contacts.addresses(node)))
        self._views.on_candidates(now)
        return self._settle(self._views.on_wanted(node, now), now)

    # ------------------------------------------------------------ messages

    def on_message(self, source: NodeId, message: Message, now: Now) -> list[Effect]:
        """Take a gossip message. Raises RemoteProtocolError for one that no honest node sends."""
        return self._settle(self._take(source, message, now), now) + self._trim(source)

    def _take(self, source: NodeId, message: Message, now: Now) -> Sequence[Change]:  # one arm per message
        match message:
            case Interest():
                self._scopes[source] = scope_of(message)
                if source in self._links:
                    self._links[source].scope = self._scopes[source]
                return []
            case Neighbour():
                return self._views.on_neighbour(source, message, now)
            case NeighbourAnswer():
                # In this order, so that who refuses is not asked again before those whom it names.
                changes = self._views.on_answer(source, message, now)
                return [*changes, *self._learn(message.others, now, source)]
            case Leave():
                return self._views.on_leave(source, now)
        if not isinstance(message, _OF_NEIGHBOURS):
            raise RemoteProtocolError(f"{type(message).__name__} is no gossip message")
        # SPEC 03: A node MUST ignore gossip of who is no neighbour, other than `Interest`, `Neighbour`,
        #   `NeighbourAnswer`, `Leave` and `Reports`, and MUST NOT blame the sender: it may have been on its way.
        if source not in self._links:
            return []
        match message:
            case Records():
                return self._on_records(source, message.records, now)
            case Have():
                self._broadcast.on_have(source, message, now)
            case Graft():
                return self._broadcast.on_graft(source, message, now)
            case Prune():
                self._broadcast.on_prune(source, now)
            case Digest():
                return self._exchange.on_digest(source, message, now)
            case Summary():
                return self._exchange.on_summary(source, message, now)
            case Want():
                return self._exchange.on_want(source, message, now)
            case Load():
                self._directory.set_load(source, message.load, message.wait_ms)
            case Shuffle():
                return [*self._views.on_shuffle(source, now), *self._learn(message.records, now, source)]
            case Shuffled():
                if self._views.expects_shuffled(source):
                    return self._learn(message.records, now, source)
        return []

    def _on_records(self, source: NodeId, records: Sequence[Signed], now: Now) -> list[Change]:
        repeated = [node for record in records if (node := self._directory.signer_of(record.body)) is not None]
        news, effects = self._check(source, records, now)
        self._exchange.on_news(source, len(news), now)
        nodes = [entry.heartbeat.node for entry in news]
        return [*effects, *self._broadcast.on_records(source, self._heartbeats, nodes, repeated, now)]

    # ------------------------------------------------------------ records

    def learn(self, record: Signed, now: Now, source: NodeId | None) -> list[Effect]:
        """Take a record that came otherwise than by gossip, and pass it on. Raises BadFrame or BadSignature."""
        return self._settle(self._learn([record], now, source), now)

    def spread_own(self, now: Now, *, at_once: bool = False) -> list[Effect]:
        """Our own record in the directory has changed: tell everyone. `at_once` is for last words."""
        if not self._is_on:
            return []
        outgoing = self._broadcast.spread(self._heartbeats, [self._node], now, source=None, at_once=at_once)
        return self._settle(outgoing, now)

    def _learn(self, records: Iterable[Signed], now: Now, source: NodeId | None) -> list[Change]:
        news, effects = self._check(source, records, now)
        nodes = [entry.heartbeat.node for entry in news]
        return [*effects, *self._broadcast.spread(self._heartbeats, nodes, now, source=source)]

    def spread(self, kind: Kind, signers: Iterable[NodeId], now: Now, *, source: NodeId | None) -> list[Outgoing]:
        """Pass on what is new of another kind, to all neighbours that it concerns but its source."""
        return self._broadcast.spread(kind, signers, now, source=source) if self._is_on else []

    def deliver(self, outgoing: Iterable[Outgoing], now: Now) -> list[Effect]:
        """Put messages for connected peers on their streams; who does not speak gossip gets none."""
        return self._settle([each for each in outgoing if self._views.speaks(each.neighbour)], now)

    def _check(self, source: NodeId | None, records: Iterable[Signed], now: Now) -> tuple[list[Entry], list[Effect]]:
        """Keep what is good and new; returns it, and what is to be done about it and the rest."""
        network = self._networks.get(source, "") if source is not None else ""
        refused = 0

        def admits(node: NodeId, is_new: bool) -> bool:
            nonlocal refused
            if source is None or source == node:
                return True
            # SPEC 04: A node MUST bound how many keys that it has not heard of one network may bring in a second,
            if is_new and self._new_keys.take(network, now.monotonic_s):
                return True
            if not is_new and self._updates.take(node, now.monotonic_s):
                return True
            refused += 1
            return False

        # SPEC 04: The receiver MUST check signature and freshness of a record before it keeps or forwards it.
        checked, skipped = self._directory.check_all(records, now.wall_ms, admits)
        kept = self._directory.keep_all(checked)
        effects: list[Effect] = [RecordLearnt(entry.heartbeat, entry.record) for entry in kept]
        if len(kept) < len(checked):
            # No room for them in the directory; as neighbours to be they are as good as any.
            for entry in checked:
                self._consider(entry.heartbeat, entry.record)
        if checked:
            self._views.on_candidates(now)
        if skipped:
            effects.append(Note("gossip.records_skipped", source, f"{len(skipped)}, the last because {skipped[-1]}"))
        if source is not None and any(not self._refused.take(source, now.monotonic_s) for _ in range(refused)):
            effects.append(Misbehaved(source, "it brings more records than there can be"))
        return kept, effects

    def on_learnt(self, learnt: RecordLearnt) -> None:
        """The directory took a record, from wherever: its node may become a neighbour."""
        self._consider(learnt.heartbeat, learnt.record)

    def _consider(self, heartbeat: Heartbeat, record: Signed) -> None:
        # Who is reached through relays only has chosen neighbours itself; to be one costs the relay every byte.
        addresses = direct(heartbeat.addresses)
        if addresses and heartbeat.node != self._node:
            self._passive.add(heartbeat.node, addresses, record)

    def _worth(self, entry: Entry) -> Worth:
        node = entry.heartbeat.node
        if node == self._node:
            return Worth.OURSELVES
        if node in self._networks or self._directory.is_useful(node):
            return Worth.NEAR
        ours = self._interests.ours
        return Worth.INTERESTING if ours is not None and entry.concerns(ours) else Worth.STRANGER

    # ------------------------------------------------------------ time

    def on_deadline(self, now: Now) -> list[Effect]:
        """Do what is due."""
        if not self._is_on:
            return []
        effects = self._settle(self._views.on_deadline(now), now)
        changes: list[Change] = []
        # SPEC 04: A node MUST say a changed interest on each gossip stream that it has open.
        if self._interests.refresh(now):
            message = self._interests.message()
            changes += [Outgoing(node, message) for node in self._streams]
        if self._search_at_s <= now.monotonic_s:
            changes += self._look_for_providers(now)
        if self._load_at_s is not None and self._load_at_s <= now.monotonic_s:
            changes += self._tell_load(now)
        changes += self._broadcast.on_deadline(now)
        changes += self._exchange.on_deadline(now)
        return effects + self._settle(changes, now)

    def _tell_load(self, now: Now) -> list[Change]:
        assert self._load is not None
        self._load_at_s = None
        self._told_s = now.monotonic_s
        self._told_load = self._load
        return [Outgoing(node, Load(*self._load)) for node in self._links if self._hears_load(node)]

    def _hears_load(self, node: NodeId) -> bool:
        # SPEC 04: A provider MUST tell its load to no neighbour but those that want to hear of one of its models,
        own = self._directory.get(self._node)
        return own is not None and bool(own.heartbeat.models) and own.concerns(self._links[node].scope)

    def _lacking_models(self, now: Now) -> list[str]:
        """Models of interest that too few neighbours have to do with."""
        scopes = [link.scope for link in self._links.values()]
        return [
            model
            for model in self._interests.models(now)
            if sum(scope is None or model in scope for scope in scopes) < NEIGHBOURS_PER_MODEL
        ]

    def _wanting(self, now: Now) -> list[NodeId]:
        """Some providers of the models of which we hear too little: neighbours to be."""
        nodes: dict[NodeId, None] = {}
        for model in self._lacking_models(now):
            providers = self._directory.providers_of(model)
            nodes.update(dict.fromkeys(self._rng.sample(providers, min(_SAMPLE, len(providers)))))
        return list(nodes)

    def _look_for_providers(self, now: Now) -> list[Effect]:
        """Ask some peers who serves a model of which we know too little."""
        self._search_at_s = now.monotonic_s + self._search_s
        lacking = [model for model in self._interests.models(now) if self._others_serving(model) < NEIGHBOURS_PER_MODEL]
        if not lacking:
            return []
        self._search_s = min(2 * self._search_s, SEARCH_S_MAX)
        return self._search(self._rng.choice(lacking))

    def _others_serving(self, model: str) -> int:
        providers = self._directory.providers_of(model)
        return len(providers) - (self._node in providers)

    # ------------------------------------------------------------ neighbours

    def _settle(self, changes: Iterable[Change], now: Now) -> list[Effect]:
        """Keep links in step with who is a neighbour, and put messages on streams."""
        effects: list[Effect] = []
        frames: dict[int, bytes] = {}
        touched: dict[NodeId, None] = {}
        for change in changes:
            if isinstance(change, Outgoing):
                # What goes to many is one message, and encoded once.
                frame = frames.get(id(change.message)) or encode_message(change.message)
                frames[id(change.message)] = frame
                effects += self._send(change.neighbour, frame)
                touched[change.neighbour] = None
            elif isinstance(change, Joined):
                effects += self._settle(self._on_joined(change, now), now)
            elif isinstance(change, Left):
                self._links.pop(change.node, None)
                self._broadcast.on_left(change.node)
                self._directory.forget_load(change.node)
                touched[change.node] = None
            else:
                effects.append(change)
        for node in touched:
            effects += self._trim(node)
        return effects

    def _send(self, node: NodeId, frame: bytes) -> list[Effect]:
        stream = self._streams.get(node)
        if stream is not None:
            return [Send(stream, frame)]
        if node not in self._networks:
            return []  # it has just gone
        stream = self._streams[node] = self._next_stream()
        # SPEC 04: `Interest` MUST be the first message on a gossip stream.
        interest = encode_message(self._interests.message())
        opened: list[Effect] = [OpenStream(stream, node, c.GOSSIP_PROTOCOL), Send(stream, interest)]
        return [*opened, Send(stream, frame)]

    def _trim(self, node: NodeId) -> list[Effect]:
        """Finish our stream to a peer that is no neighbour and is not to become one: its connection may be idle."""
        if node in self._links or self._views.is_asked(node) or node not in self._streams:
            return []
        return [FinishStream(self._streams.pop(node))]

    def _on_joined(self, joined: Joined, now: Now) -> list[Change]:
        node = joined.node
        self._links[node] = Link(self._scopes.get(node, frozenset()), Budget(now.monotonic_s))
        self._broadcast.on_joined(node, now)
        changes: list[Change] = list(self._exchange.on_joined(node, now, is_chosen=joined.is_chosen))
        if self._load is not None and self._hears_load(node):
            changes.append(Outgoing(node, Load(*self._load)))
        return changes


_OF_NEIGHBOURS: Final = (Records, Have, Graft, Prune, Digest, Want, Load, Shuffle, Shuffled, Summary)
