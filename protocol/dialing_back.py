"""Trying for others whether they are reached: the side of `ReachMe` that dials, and bounds how often it does."""

from __future__ import annotations

import itertools
from typing import Final

from protocol import constants as c
from protocol.codec import encode_message
from protocol.effects import DialBack, Effect, FinishStream, Send
from protocol.errors import RemoteProtocolError
from protocol.events import DialedBack, Now
from protocol.ids import NodeId, StreamId
from protocol.locality import ip_of, is_circuit, network_of
from protocol.messages import Message, Reached, ReachMe
from protocol.rates import Rates
from protocol.records import Reachability

# A node asks when it starts, when its address changes, and every half hour.
PEER_PER_S: Final = 1 / 60
PEER_BURST: Final = 3
NETWORK_PER_S: Final = 1 / 5
NETWORK_BURST: Final = 12
# A dial-back costs a handshake; a relay that restarts must not have the whole network dial at once.
ALL_PER_S: Final = 2.0
ALL_BURST: Final = 30
# Each holds a socket for at most 3 s.
AT_ONCE_MAX: Final = 16


class DialingBack:
    """The state: the dial-backs under way, and who had how many."""

    def __init__(self, *, is_enabled: bool) -> None:
        self._is_enabled = is_enabled
        self._probes: dict[int, tuple[StreamId | None, str]] = {}
        self._numbers = itertools.count(1)
        self._of_peer: Rates[NodeId] = Rates(PEER_PER_S, PEER_BURST)
        self._of_network: Rates[str] = Rates(NETWORK_PER_S, NETWORK_BURST)
        self._of_all: Rates[None] = Rates(ALL_PER_S, ALL_BURST)

    @property
    def active(self) -> int:
        """Dial-backs under way."""
        return len(self._probes)

    def owns(self, stream: StreamId) -> bool:
        """Whether somebody waits on this stream for what we find."""
        return any(asked_on == stream for asked_on, _ in self._probes.values())

    def on_message(
        self, stream: StreamId, peer: NodeId, seen_at: str | None, message: Message, now: Now
    ) -> list[Effect]:
        """A peer that we see at this address asks. Raises RemoteProtocolError for what is no question."""
        if not isinstance(message, ReachMe):
            raise RemoteProtocolError(f"{type(message).__name__} is no question")
        # SPEC 03: A node MUST dial back only to the IP address from which the asking connection comes, and MUST NOT
        #   dial back for a circuit.
        ip = ip_of(seen_at)
        if ip is None or is_circuit(seen_at) or not self._is_enabled:
            return _answer(stream, Reachability.NOT_TRIED, None, "you are at no address that is dialled from here")
        # SPEC 03: A node MUST bound how often it dials back, for each peer, for each network and in all.
        if len(self._probes) >= AT_ONCE_MAX or not self._may(peer, network_of(seen_at), now.monotonic_s):
            return _answer(stream, Reachability.NOT_TRIED, None, "too many dial-backs of late, ask somebody else")
        probe = next(self._numbers)
        address = f"/ip{ip.version}/{ip}/tcp/{message.port}"
        self._probes[probe] = (stream, address)
        return [DialBack(probe, peer, address)]

    def _may(self, peer: NodeId, network: str, now_s: float) -> bool:
        return (
            self._of_peer.take(peer, now_s) and self._of_network.take(network, now_s) and self._of_all.take(None, now_s)
        )

    def on_dialed_back(self, event: DialedBack) -> list[Effect]:
        """What came of it; nothing when the one who asked has gone."""
        stream, address = self._probes.pop(event.probe, (None, ""))
        return [] if stream is None else _answer(stream, event.reachability, address, event.reason)

    def on_stream_lost(self, stream: StreamId) -> None:
        """Nobody waits for the answer any more. The dial goes on and holds its socket all the same."""
        for probe, (asked_on, address) in self._probes.items():
            if asked_on == stream:
                self._probes[probe] = (None, address)
                return


def _answer(stream: StreamId, reachability: Reachability, address: str | None, text: str) -> list[Effect]:
    answer = Reached(reachability, address, text[: c.TEXT_CHARACTERS_MAX])
    return [Send(stream, encode_message(answer)), FinishStream(stream)]
