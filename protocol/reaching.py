"""How others reach this node: asked of peers in different networks, decided by agreement, asked again in time.

What a node sees of itself proves nothing, and one peer may lie. So each network has one vote, two that agree decide,
and a balance counts as not reached: relays cost a detour, believing a liar costs all jobs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from protocol import constants as c
from protocol.codec import encode_message
from protocol.effects import Effect, FinishStream, OpenStream, Send
from protocol.errors import RemoteProtocolError
from protocol.events import Now
from protocol.ids import NodeId, StreamId
from protocol.locality import ip_of, is_circuit, network_of
from protocol.messages import Message, Reached, ReachMe
from protocol.reach_advice import IpAddress
from protocol.records import Reachability

FEATURE_DIALS_BACK: Final = 4

# After the first peer that can be asked: others may follow in a moment.
SETTLE_S: Final = 3.0
ASK_AT_ONCE: Final = 3
ASKED_MAX: Final = 8
AGREEING_MIN: Final = 2
# The ports that a peer dials.
PORT_MIN: Final = 1024
# A router is mended in minutes; the network must not hear of it more often.
RETRY_S_MIN: Final = 60.0
RETRY_S_MAX: Final = 1800.0
# An address may change at any time; who says that it has changed may be wrong.
CHANGE_S_MIN: Final = 60.0

_YES: Final = Reachability.REACHED
_NO: Final = (Reachability.NOT_REACHED, Reachability.WRONG_NODE, Reachability.NO_NODE)


@dataclass(slots=True)
class Link:
    """A connected peer, as far as it matters here. `features` are empty until it has said hello."""

    address: str | None
    inbound: bool
    features: tuple[int, ...] = ()

    @property
    def is_direct(self) -> bool:
        return not is_circuit(self.address)


@dataclass(slots=True)
class _Round:
    """One time of asking: who is asked, and the vote of each network that has answered."""

    waiting: dict[StreamId, str] = field(default_factory=dict)
    asked: set[NodeId] = field(default_factory=set)
    networks: set[str] = field(default_factory=set)
    votes: dict[str, Reached] = field(default_factory=dict)


class Reaching:
    """The state. `reachability` and `address` are the last verdict; UNKNOWN until there is one."""

    def __init__(self, links: Mapping[NodeId, Link], rng: random.Random, next_stream: Callable[[], StreamId]) -> None:
        self._links = links
        self._rng = rng
        self._next_stream = next_stream
        self._port: int | None = None
        self._round: _Round | None = None
        self._due_at_s: float | None = None
        self._asked_at_s = float("-inf")
        self._fruitless = 0
        # The networks that decided last.
        self._voted: frozenset[str] = frozenset()
        self._seen_at: dict[int, IpAddress] = {}
        self.reachability = Reachability.UNKNOWN
        self.address: str | None = None

    @property
    def seen_at(self) -> IpAddress | None:
        """Where others see this node, by what was said last; IPv4 first, for that is what routers translate."""
        return self._seen_at.get(4) or self._seen_at.get(6)

    def owns(self, stream: StreamId) -> bool:
        return self._round is not None and stream in self._round.waiting

    def next_deadline(self) -> float | None:
        return self._due_at_s if self._round is None else None

    # ------------------------------------------------------------ what makes it ask

    def listen(self, port: int | None, now: Now) -> None:
        """This node listens on another port from now on, or on none."""
        self._port = port if port is not None and port >= PORT_MIN else None
        self.reachability, self.address = Reachability.UNKNOWN, None
        self._voted = frozenset()
        self._fruitless = 0
        self._round = None
        self._due_at_s = now.monotonic_s + SETTLE_S if self._port is not None else None

    def on_hello(self, peer: NodeId, observed: str | None, now: Now) -> None:
        """A peer has said hello: it may be asked now, and it said where it sees us."""
        link = self._links.get(peer)
        if link is None or link.inbound or not link.is_direct:
            return
        # SPEC 01: The receiver MUST NOT believe `observed_address` to be reachable because a peer states it.
        ip = ip_of(observed)
        if ip is not None:
            known = self._seen_at.get(ip.version)
            self._seen_at[ip.version] = ip
            if known is not None and known != ip:
                self._fruitless = 0
                self._bring_forward(max(now.monotonic_s + SETTLE_S, self._asked_at_s + CHANGE_S_MIN))
        # One network alone has decided, or none: another one is to be heard soon.
        is_thin = len(self._voted) < AGREEING_MIN and network_of(link.address) not in self._voted
        is_awaited = is_thin or self._due_at_s is None
        if is_awaited and FEATURE_DIALS_BACK in link.features:
            self._bring_forward(max(now.monotonic_s + SETTLE_S, self._asked_at_s + CHANGE_S_MIN))

    def _bring_forward(self, at_s: float) -> None:
        if self._port is not None and (self._due_at_s is None or at_s < self._due_at_s):
            self._due_at_s = at_s

    # ------------------------------------------------------------ asking

    def on_deadline(self, now: Now) -> list[Effect]:
        """Begin to ask, when it is time."""
        if self._due_at_s is None or self._due_at_s > now.monotonic_s or self._round is not None:
            return []
        round_ = _Round()
        effects = self._ask(round_)
        if effects:
            self._round, self._asked_at_s = round_, now.monotonic_s
        else:
            self._due_at_s = None  # until somebody says hello who can be asked
        return effects

    def _ask(self, round_: _Round) -> list[Effect]:
        """Ask a few more peers, of networks that have not been asked."""
        assert self._port is not None
        effects: list[Effect] = []
        for peer in self._candidates(round_):
            if len(round_.waiting) >= ASK_AT_ONCE or len(round_.asked) >= ASKED_MAX:
                break
            network = network_of(self._links[peer].address)
            if network in round_.networks:
                continue
            stream = self._next_stream()
            round_.waiting[stream] = network
            round_.networks.add(network)
            round_.asked.add(peer)
            effects += [
                OpenStream(stream, peer, c.REACH_PROTOCOL),
                Send(stream, encode_message(ReachMe(self._port))),
                FinishStream(stream),
            ]
        return effects

    def _candidates(self, round_: _Round) -> list[NodeId]:
        # SPEC 03: A node MUST ask only peers that it dialled itself, and directly
        peers = [
            peer
            for peer, link in self._links.items()
            if not link.inbound and link.is_direct and FEATURE_DIALS_BACK in link.features and peer not in round_.asked
        ]
        self._rng.shuffle(peers)
        return peers

    # ------------------------------------------------------------ answers

    def on_message(self, stream: StreamId, message: Message, now: Now) -> list[Effect]:
        """An answer has come. Raises RemoteProtocolError for what is none."""
        if not isinstance(message, Reached):
            raise RemoteProtocolError(f"{type(message).__name__} is no answer")
        round_ = self._round
        if round_ is None or stream not in round_.waiting:
            return []
        network = round_.waiting.pop(stream)
        if message.reachability is _YES or message.reachability in _NO:
            round_.votes[network] = message
        else:
            round_.networks.discard(network)  # another peer of this network may try
        return self._weigh(round_, now)

    def on_stream_lost(self, stream: StreamId, now: Now) -> list[Effect]:
        """A peer does not answer."""
        round_ = self._round
        if round_ is None or stream not in round_.waiting:
            return []
        round_.networks.discard(round_.waiting.pop(stream))
        return self._weigh(round_, now)

    def _weigh(self, round_: _Round, now: Now) -> list[Effect]:
        """Decide when all that were asked have answered, or ask further."""
        if round_.waiting:
            return []
        yes = [vote for vote in round_.votes.values() if vote.reachability is _YES]
        no = [vote for vote in round_.votes.values() if vote.reachability in _NO]
        # SPEC 03: A node MUST NOT take itself for reached, or for not reached, on the word of one network as long as it
        #   is connected with peers of two.
        if max(len(yes), len(no)) < AGREEING_MIN or len(yes) == len(no):
            more = self._ask(round_)
            if more:
                return more
        if not round_.votes:
            self._end_round(Reachability.UNKNOWN, None, now)
        elif len(yes) > len(no):
            self._end_round(_YES, self._agreed_address(yes), now)
        else:
            self._end_round(no[0].reachability, None, now)
        return []

    def _agreed_address(self, votes: list[Reached]) -> str | None:
        """The address at which we were reached, on our port: the one that most were told to dial, or the only one."""
        ips = [ip for vote in votes if (ip := ip_of(vote.address)) is not None]
        agreed = [ip for ip in ips if len(votes) == 1 or ips.count(ip) >= AGREEING_MIN]
        return f"/ip{agreed[0].version}/{agreed[0]}/tcp/{self._port}" if agreed else None

    def _end_round(self, verdict: Reachability, address: str | None, now: Now) -> None:
        assert self._round is not None
        voted, self._round = frozenset(self._round.votes), None
        if verdict is not Reachability.UNKNOWN:
            self._voted = voted
            self.reachability, self.address = verdict, address
        if verdict is _YES:
            self._fruitless = 0
            delay_s = RETRY_S_MAX
        else:
            delay_s = min(RETRY_S_MAX, RETRY_S_MIN * 2.0 ** min(self._fruitless, 16))
            self._fruitless += 1
        self._due_at_s = now.monotonic_s + delay_s * (0.75 + self._rng.random() / 2)
