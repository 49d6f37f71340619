"""Streams and the machines that they belong to: whatever comes on a stream goes to the machine of its protocol.

Rules that all streams share are kept here: what may come on which, what is a fault and who is to blame for it, and
that everyone who relies on a stream hears when it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from protocol import constants as c
from protocol import events as e
from protocol.asking import Asking
from protocol.codec import encode_message
from protocol.effects import Effect, FinishStream, HangUp, Misbehaved, Note, ResetStream, Send
from protocol.errors import ProtocolError, Refusal, RemoteProtocolError, SealError, refusal_from_code
from protocol.events import Now
from protocol.finding import Finding
from protocol.forwarding import Forwarding
from protocol.greeting import Greeting
from protocol.handing_off import HandingOff
from protocol.ids import NodeId, StreamId
from protocol.locality import is_loopback
from protocol.messages import MESSAGES_OF_PROTOCOL, Fault, Forward, Hello, JobOpen, Message, Voucher
from protocol.providing import Providing
from protocol.rates import Rates
from protocol.reachable import Reachable
from protocol.streams import Stream, Streams

# Each costs a message, and perhaps a signature to check or a search in the directory. The busiest honest peer asks for
# providers once for each of its jobs that knows none.
CONTROL_STREAMS_PER_S: Final = 16.0
CONTROL_STREAMS_BURST: Final = 128


@dataclass(slots=True)
class Connection:
    """What is known of the connection to a peer, whichever carrier holds it."""

    address: str | None
    bad_frames: int = 0


class Traffic:
    """The state is the table of streams, and the count of bad frames. `on_hello` and `on_gossip` are for the peer."""

    def __init__(
        self,
        streams: Streams,
        connections: dict[NodeId, Connection],
        *,
        gossips: bool,
        on_hello: Callable[[NodeId, Hello, Now], list[Effect]],
        on_gossip: Callable[[NodeId, Message, Now], list[Effect]],
        greeting: Greeting,
        finding: Finding,
        reachable: Reachable,
        forwarding: Forwarding,
        handing_off: HandingOff,
        providing: Providing,
        asking: Asking,
    ) -> None:
        self._streams = streams
        self._connections = connections
        self._gossips = gossips
        self._on_hello = on_hello
        self._on_gossip = on_gossip
        self._greeting = greeting
        self._finding = finding
        self._reachable = reachable
        self._forwarding = forwarding
        self._handing_off = handing_off
        self._providing = providing
        self._asking = asking
        self._control: Rates[NodeId] = Rates(CONTROL_STREAMS_PER_S, CONTROL_STREAMS_BURST)
        self.bad_frames = 0

    def on_stream_opened(self, event: e.StreamOpened, now: Now) -> list[Effect]:
        """Take a stream that a peer opened, or refuse it."""
        if event.protocol not in MESSAGES_OF_PROTOCOL or (event.protocol == c.GOSSIP_PROTOCOL and not self._gossips):
            return [ResetStream(event.stream, "a protocol that this node does not speak")]
        # SPEC 01: A node MUST hold at most 8 control streams and 32 job streams that one peer opened, and of a peer
        #   that its owner knows as many job streams as six times its slots, if more.
        is_job = event.protocol == c.JOB_PROTOCOL
        held_max = self._providing.job_streams_max(event.peer) if is_job else c.CONTROL_STREAMS_PER_PEER_MAX
        # SPEC 01: A node MUST bound how often a peer opens control streams, and resets those beyond that:
        if not is_job and not self._control.take(event.peer, now.monotonic_s):
            return [ResetStream(event.stream, "too many streams")]
        if not self._streams.accept(event, held_max, now):
            return [ResetStream(event.stream, "too many streams")]
        return []

    def on_bytes(self, event: e.BytesReceived, now: Now) -> Iterator[Effect]:
        """A generator, so that what one message does to the stream is known before the next one is looked at."""
        stream = self._streams.get(event.stream)
        if stream is None or stream.remote_done:
            return
        try:
            if self._forwarding.owns(event.stream):
                yield from self._forwarding.on_bytes(event.stream, event.data, now)
                return
            for message in stream.reader.feed(event.data):
                yield from self._on_message(event.stream, stream, message, now)
                if event.stream not in self._streams:
                    return
                if self._forwarding.owns(event.stream):
                    yield from self._forwarding.on_bytes(event.stream, stream.reader.take_rest(), now)
                    return
        except (RemoteProtocolError, SealError) as error:
            yield from self._blame(event.stream, stream, error, now)

    def _on_message(self, number: StreamId, stream: Stream, message: Message, now: Now) -> list[Effect]:
        if not isinstance(message, MESSAGES_OF_PROTOCOL[stream.protocol]):
            raise RemoteProtocolError(f"{type(message).__name__} has no place on {stream.protocol}")
        # SPEC 05: The provider MUST ignore a `Cancel` or a `Part` that arrives after it ended: they crossed its last
        #   message.
        if stream.inbound and stream.local_done and not stream.greeted and not isinstance(message, Voucher):
            return []
        if isinstance(message, Fault):
            return self._on_fault(number, stream, message, now)
        if stream.protocol == c.GOSSIP_PROTOCOL or isinstance(message, (JobOpen, Forward)):
            self._streams.settle(number)
        if isinstance(message, Hello):
            # SPEC 01: The receiver MUST treat a second `Hello` on one stream as a bad frame.
            if stream.greeted:
                raise RemoteProtocolError("a second hello on one stream")
            stream.greeted = True
            effects = self._on_hello(stream.peer, message, now)
            if stream.inbound:
                return [*self._greeting.answer(number, stream.peer, now), *effects]
            return effects
        if stream.protocol == c.GOSSIP_PROTOCOL:
            return self._on_gossip(stream.peer, message, now)
        if stream.protocol == c.FIND_PROTOCOL:
            take = self._finding.on_query if stream.inbound else self._finding.on_answer
            return take(number, message, now)
        if stream.protocol == c.REACH_PROTOCOL:
            return self._reachable.on_message(number, stream.peer, message, now, inbound=stream.inbound)
        if stream.inbound and isinstance(message, Forward) and not self._providing.owns(number):
            return self._forwarding.on_forward(number, stream.peer, message, now)
        if stream.inbound:
            return self._providing.on_message(number, stream.peer, self._is_local(stream.peer), message, now)
        if self._handing_off.owns(number):
            return self._handing_off.on_message(number, message, now)
        return self._asking.on_message(number, message, now)

    def _on_fault(self, number: StreamId, stream: Stream, fault: Fault, now: Now) -> list[Effect]:
        code = refusal_from_code(fault.code)
        reason = f"the peer reported a fault: {code.name.lower()}"
        return [
            Note("peer.fault", stream.peer, f"code {fault.code}"),
            *self.lose_stream(number, code, reason, now),
            ResetStream(number, reason),
        ]

    def on_stream_finished(self, number: StreamId, now: Now) -> list[Effect]:
        """The peer has said all that it has to say."""
        stream = self._streams.get(number)
        if stream is None:
            return []
        if stream.reader.pending_bytes:
            return self._blame(number, stream, RemoteProtocolError("the stream ends inside a frame"), now)
        stream.remote_done = True
        if self._forwarding.owns(number):
            return self._on_forwarded_end(number, stream, now)
        if self._asking.owns(number):
            # SPEC 05: The asker MUST treat the end of a stream without a receipt as a failure, never as the end of an
            #   answer.
            text = "the provider ended the stream without a receipt"
            effects = self._asking.on_stream_lost(number, Refusal.PROTOCOL, text, now)
            return [*effects, ResetStream(number, text)]
        if self._reachable.owns(number) and stream.inbound:
            return []  # it waits for our answer
        if self._handing_off.owns(number) or self._reachable.owns(number):
            return self.lose_stream(number, Refusal.PROTOCOL, "the question was not answered", now)
        if stream.local_done:
            self._streams.drop(number)
            return []
        if self._providing.owns(number):
            # An asker may close its side after the order; it can then still read, and no longer cancel.
            return []
        return [FinishStream(number)]

    def _on_forwarded_end(self, number: StreamId, stream: Stream, now: Now) -> list[Effect]:
        try:
            effects = self._forwarding.on_finished(number, now)
        except RemoteProtocolError as error:
            return self._blame(number, stream, error, now)
        if stream.local_done:
            self._streams.drop(number)
        return effects

    def _blame(self, number: StreamId, stream: Stream, error: ProtocolError, now: Now) -> list[Effect]:
        """The peer broke a rule on this stream: say so, reset it, and hang up on the third time."""
        self.bad_frames += 1
        # SPEC 08: The provider MUST NOT blame an aggregator for what an asker sends after its order.
        is_forwarded = self._asking.is_forwarded(number) or self._providing.is_forwarded(number)
        connection = self._connections.get(stream.peer)
        reason = str(error)[: c.TEXT_CHARACTERS_MAX]
        effects: list[Effect] = []
        if not stream.local_done:
            effects.append(Send(number, encode_message(Fault(int(Refusal.PROTOCOL), reason))))
        # SPEC 01: After a bad frame the receiver MUST reset the stream.
        effects += [
            *self.lose_stream(number, Refusal.PROTOCOL, reason, now),
            ResetStream(number, reason),
            Note("peer.misbehaved", stream.peer, reason),
        ]
        # SPEC 08: The asker MUST NOT blame an aggregator for what a provider sends through it.
        # Who passes on what others say is not to blame for it.
        if connection is not None and not is_forwarded:
            effects.append(Misbehaved(stream.peer, reason))
            connection.bad_frames += 1
            if connection.bad_frames >= c.BAD_FRAMES_MAX:
                effects.append(HangUp(stream.peer, "it sent too many bad frames"))
        return effects

    def lose_stream(self, number: StreamId, code: Refusal, reason: str, now: Now) -> list[Effect]:
        """A stream is gone, whoever ended it: everyone who relies on it hears."""
        stream = self._streams.get(number)
        if stream is None:
            return []
        self._streams.drop(number)
        if self._forwarding.owns(number):
            return self._forwarding.on_stream_lost(number, code, reason)
        if self._providing.owns(number):
            return self._providing.on_stream_lost(number, code, now)
        if self._handing_off.owns(number):
            return self._handing_off.on_stream_lost(number, now)
        if self._reachable.owns(number):
            return self._reachable.on_stream_lost(number, now)
        return self._asking.on_stream_lost(number, code, reason, now)

    def _is_local(self, peer: NodeId) -> bool:
        connection = self._connections.get(peer)
        return connection is not None and is_loopback(connection.address)

    def on_deadline(self, now: Now) -> list[Effect]:
        """Reset the streams on which nothing came in time."""
        effects: list[Effect] = []
        for number in self._streams.overdue(now):
            if number in self._streams:
                reason = "nothing arrived on this stream in time"
                effects += [*self.lose_stream(number, Refusal.DEADLINE, reason, now), ResetStream(number, reason)]
        return effects
