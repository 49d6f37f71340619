"""Who we are to a new peer, and who it is to us: one `Hello` each way, on a stream of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from protocol import constants as c
from protocol.codec import encode_message
from protocol.effects import Effect, FinishStream, Note, OpenStream, Send
from protocol.events import Now
from protocol.ids import NodeId, StreamId
from protocol.messages import Hello
from protocol.records import Signed
from protocol.timers import Timers

# An inbound connection is greeted by its dialler. When both sides dial at once, each may take the other's dial for the
# first connection and wait: after this long the one that waits greets, too.
GREETING_DELAY_S: Final = 2.0
# A connection can stand while a hello is lost on it, when it was silent for longer than a stream waits. Whoever has not
# said hello is nobody to gossip with, so it is greeted again, ever more seldom: it may speak another protocol.
AGAIN_S_MIN: Final = 15.0
AGAIN_S_MAX: Final = 600.0


class Greeting:
    """The state: which peers have not greeted yet. `heartbeat` is our own, `records_held` how many others' we hold."""

    def __init__(
        self,
        agent: str,
        started_at_ms: int,
        *,
        features: Callable[[], tuple[int, ...]],
        heartbeat: Callable[[], Signed | None],
        records_held: Callable[[], int],
        address_of: Callable[[NodeId], str | None],
        next_stream: Callable[[], StreamId],
    ) -> None:
        self._agent = agent
        self._started_at_ms = started_at_ms
        self._features = features
        self._heartbeat = heartbeat
        self._records_held = records_held
        self._address_of = address_of
        self._next_stream = next_stream
        self._waiting: Timers[NodeId] = Timers()
        #: How often we have greeted those who have not said hello.
        self._greeted: Counter[NodeId] = Counter()

    def next_deadline(self) -> float | None:
        return self._waiting.next_deadline()

    def on_connected(self, peer: NodeId, now: Now, *, inbound: bool) -> list[Effect]:
        """Greet whom we dialled; whoever dialled us comes first."""
        if not inbound:
            return self._greet(peer, now)
        self._waiting.set(peer, now.monotonic_s + GREETING_DELAY_S)
        return []

    def on_disconnected(self, peer: NodeId) -> None:
        self._forget(peer)

    def on_deadline(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for peer in self._waiting.pop_due(now.monotonic_s):
            effects += self._greet(peer, now)
        return effects

    def on_hello(self, peer: NodeId, hello: Hello, now: Now) -> list[Effect]:
        """Take what a peer says of itself; its heartbeat is the directory's business."""
        self._forget(peer)
        # SPEC 01: The receiver MUST NOT set its clock by `clock_ms`.
        skew_ms = hello.clock_ms - now.wall_ms
        if abs(skew_ms) <= c.CLOCK_SKEW_MS_MAX:
            return []
        return [Note("peer.clock_skew", peer, f"its clock differs by {skew_ms // 1000} s")]

    def answer(self, stream: StreamId, peer: NodeId, now: Now) -> list[Effect]:
        """Our hello on a stream that the peer opened."""
        # SPEC 01: A node MUST send exactly one `Hello` on a hello stream.
        return [Send(stream, encode_message(self._hello(peer, now))), FinishStream(stream)]

    def _forget(self, peer: NodeId) -> None:
        self._waiting.cancel(peer)
        del self._greeted[peer]

    def _greet(self, peer: NodeId, now: Now) -> list[Effect]:
        # SPEC 01: A node SHOULD greet a connected peer again from which no hello has come, ever more seldom.
        self._waiting.set(peer, now.monotonic_s + min(AGAIN_S_MAX, AGAIN_S_MIN * 2.0 ** min(self._greeted[peer], 16)))
        self._greeted[peer] += 1
        stream = self._next_stream()
        return [OpenStream(stream, peer, c.HELLO_PROTOCOL), *self.answer(stream, peer, now)]

    def _hello(self, peer: NodeId, now: Now) -> Hello:
        return Hello(
            version=c.PROTOCOL_VERSION,
            features=self._features(),
            agent=self._agent,
            clock_ms=now.wall_ms,
            started_at_ms=self._started_at_ms,
            observed_address=self._address_of(peer),
            records_held=self._records_held(),
            heartbeat=self._heartbeat(),
        )
