"""Being reached, as `peer` sees it: what others try for us and we for them, and the relays where nobody can dial us."""

from __future__ import annotations

import random
from collections.abc import Callable

from protocol import events as e
from protocol.dialing_back import DialingBack
from protocol.directory import Directory
from protocol.effects import Effect, ReachabilityLearnt
from protocol.events import Now, Offer
from protocol.ids import NodeId, StreamId
from protocol.locality import ip_of, is_circuit
from protocol.messages import Hello, Message
from protocol.reach_advice import IpAddress, Situation, advice
from protocol.reaching import Link, Reaching
from protocol.records import Reachability, Role
from protocol.relays import Relays


class Reachable:
    """The three machines, the connections they look at, and the one sentence for the owner."""

    def __init__(
        self,
        node: NodeId,
        directory: Directory,
        rng: random.Random,
        next_stream: Callable[[], StreamId],
        *,
        dials: bool,
    ) -> None:
        """`dials` is False for who never dials, and so does not dial back either."""
        self._links: dict[NodeId, Link] = {}
        self._dialing_back = DialingBack(is_enabled=dials)
        self._reaching = Reaching(self._links, rng, next_stream)
        self._relays = Relays(node, directory, self._links, rng)
        self._port: int | None = None
        self._own: tuple[IpAddress, ...] = ()
        self._is_advertised = False
        self._serves = False
        self._said: ReachabilityLearnt | None = None

    def next_deadline(self) -> float | None:
        deadlines = (self._reaching.next_deadline(), self._relays.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def owns(self, stream: StreamId) -> bool:
        """Whether an answer is awaited on this stream, by us or from us."""
        return self._reaching.owns(stream) or self._dialing_back.owns(stream)

    # ------------------------------------------------------------ events

    def on_listening(self, event: e.Listening, now: Now) -> list[Effect]:
        """Where this node listens, and whether its owner wants it to be found."""
        ports = [port for address in event.addresses if (port := _port(address)) is not None]
        own = tuple(ip for address in event.addresses if (ip := ip_of(address)) is not None)
        port = ports[0] if ports else None
        if (port, own) != (self._port, self._own) or self._said is None:
            self._port, self._own = port, own
            self._reaching.listen(port, now)
        self._is_advertised = event.is_advertised
        return self._settle(now)

    def on_offer(self, offer: Offer, now: Now) -> list[Effect]:
        """Whether this node does jobs for others: only then is it worth a relay's place."""
        self._serves = offer.role is Role.PROVIDER and bool(offer.models)
        return self._settle(now)

    def on_connected(self, event: e.PeerConnected, now: Now) -> list[Effect]:
        self._links[event.peer] = Link(event.address, event.inbound)
        return self._relays.on_link(event.peer, now)

    def on_hello(self, peer: NodeId, hello: Hello, now: Now) -> list[Effect]:
        link = self._links.get(peer)
        if link is None:
            return []
        link.features = hello.features
        self._reaching.on_hello(peer, hello.observed_address, now)
        return self._relays.on_link(peer, now)

    def on_disconnected(self, peer: NodeId) -> None:
        self._links.pop(peer, None)

    def on_unreachable(self, peer: NodeId, now: Now) -> list[Effect]:
        """A dial of ours failed."""
        return self._relays.on_unreachable(peer, now)

    def on_event(self, event: e.DialedBack | e.RelayReserved | e.RelayLost, now: Now) -> list[Effect]:
        """What became of an effect of ours."""
        if isinstance(event, e.DialedBack):
            return self._dialing_back.on_dialed_back(event)
        if isinstance(event, e.RelayReserved):
            return self._relays.on_reserved(event, now) + self._say()
        return self._relays.on_lost(event, now) + self._say()

    def on_message(self, stream: StreamId, peer: NodeId, message: Message, now: Now, *, inbound: bool) -> list[Effect]:
        """A peer asks whether it is reached, or has tried whether we are. Raises RemoteProtocolError."""
        if not inbound:
            return self._reaching.on_message(stream, message, now) + self._settle(now)
        link = self._links.get(peer)
        return self._dialing_back.on_message(stream, peer, link.address if link else None, message, now)

    def on_stream_lost(self, stream: StreamId, now: Now) -> list[Effect]:
        self._dialing_back.on_stream_lost(stream)
        return self._reaching.on_stream_lost(stream, now) + self._settle(now)

    def on_deadline(self, now: Now) -> list[Effect]:
        effects = self._reaching.on_deadline(now) + self._relays.on_deadline(now)
        return effects + self._settle(now)

    # ------------------------------------------------------------ conclusions

    def _settle(self, now: Now) -> list[Effect]:
        """Want relays or not, and tell the owner what is new."""
        found = self._reaching.reachability
        is_hidden = self._port is None or found not in (Reachability.UNKNOWN, Reachability.REACHED)
        # SPEC 08: A node MUST NOT publish the addresses of its circuits when its owner does not advertise.
        is_wanted = self._is_advertised and self._serves and is_hidden
        return self._relays.want(is_wanted, now) + self._say()

    def _say(self) -> list[Effect]:
        if not self._is_advertised:
            return []
        found = self._reaching
        situation = Situation(found.reachability, self._port, self._own, found.seen_at, self._relays.held)
        said = ReachabilityLearnt(found.reachability, found.address, advice(situation))
        if said == self._said:
            return []
        self._said = said
        return [said]


def _port(address: str) -> int | None:
    parts = address.split("/")
    is_tcp = len(parts) > 4 and parts[3] == "tcp" and parts[4].isdecimal() and not is_circuit(address)
    return int(parts[4]) if is_tcp else None
