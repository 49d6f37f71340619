"""The table of streams: which are open, to whom, under which protocol, and what may still come on them.

It follows the effects that go out and the events that come in, so the number of a stream means the same to everyone.
What arrives on a stream is the business of the machine of its protocol; `peer` passes it on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from protocol import codec
from protocol import constants as c
from protocol.codec import FrameReader
from protocol.effects import Effect, FinishStream, OpenStream, ResetStream
from protocol.events import Now, StreamOpened
from protocol.ids import NodeId, StreamId
from protocol.timers import Timers

# The opener of these says all it has to say at once, and waits for one answer.
_QUESTIONS = (c.HELLO_PROTOCOL, c.FIND_PROTOCOL, c.REACH_PROTOCOL)


@dataclass(slots=True)
class Stream:
    """One stream. `local_done` and `remote_done` say that a side has finished; `greeted` that its hello has come."""

    peer: NodeId
    protocol: str
    inbound: bool
    reader: FrameReader
    local_done: bool = False
    remote_done: bool = False
    greeted: bool = False


class Streams:
    """The state. `dropped` hears of every stream that leaves the table, once; `keeps_deadlines` says whose machine
    looks after all of a stream's deadlines itself.
    """

    def __init__(
        self,
        dropped: Callable[[StreamId, Stream], None],
        keeps_deadlines: Callable[[StreamId], bool] = lambda _: False,
    ) -> None:
        self._dropped = dropped
        self._keeps_deadlines = keeps_deadlines
        self._streams: dict[StreamId, Stream] = {}
        self._numbers = itertools.count(1, 2)
        self._deadlines: Timers[StreamId] = Timers()

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, number: StreamId) -> bool:
        return number in self._streams

    def get(self, number: StreamId) -> Stream | None:
        return self._streams.get(number)

    def next_number(self) -> StreamId:
        """A number for a stream that we open."""
        return StreamId(next(self._numbers))

    def of_peer(self, peer: NodeId) -> list[StreamId]:
        return [number for number, stream in self._streams.items() if stream.peer == peer]

    def accept(self, event: StreamOpened, held_max: int, now: Now) -> bool:
        """Take a stream that a peer opened; False when it holds `held_max` of that sort already."""
        is_job = event.protocol == c.JOB_PROTOCOL
        if sum(True for _ in self._inbound_of(event.peer, is_job=is_job)) >= held_max:
            return False
        reader = FrameReader(codec.limits_of_protocol(event.protocol))
        self._streams[event.stream] = Stream(event.peer, event.protocol, True, reader)
        # SPEC 01: A stream on which no message arrives within 10 seconds MUST be reset.
        self._deadlines.set(event.stream, now.monotonic_s + c.CONTROL_DEADLINE_S)
        return True

    def _inbound_of(self, peer: NodeId, *, is_job: bool) -> Iterator[Stream]:
        for stream in self._streams.values():
            if stream.inbound and stream.peer == peer and (stream.protocol == c.JOB_PROTOCOL) == is_job:
                yield stream

    def follow(self, effect: Effect, now: Now) -> None:
        """Keep in step with an effect that goes out."""
        if isinstance(effect, OpenStream):
            reader = FrameReader(codec.limits_of_protocol(effect.protocol))
            self._streams[effect.stream] = Stream(effect.peer, effect.protocol, False, reader)
            if effect.protocol in _QUESTIONS:
                self._deadlines.set(effect.stream, now.monotonic_s + c.CONTROL_DEADLINE_S)
        elif isinstance(effect, ResetStream):
            self.drop(effect.stream)
        elif isinstance(effect, FinishStream):
            self._finish(effect.stream, now)

    def _finish(self, number: StreamId, now: Now) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.local_done = True
        if stream.remote_done:
            self.drop(number)
        elif not self._deadlines.is_set(number) and not self._keeps_deadlines(number):
            # The peer has everything; a stream that it leaves open for ever would count against it and us.
            self._deadlines.set(number, now.monotonic_s + c.CONTROL_DEADLINE_S)

    def drop(self, number: StreamId) -> None:
        """A stream is gone, whoever ended it."""
        stream = self._streams.pop(number, None)
        self._deadlines.cancel(number)
        if stream is not None:
            self._dropped(number, stream)

    def settle(self, number: StreamId) -> None:
        """A first message has come: from here on the machine of the protocol keeps the deadlines."""
        self._deadlines.cancel(number)

    def next_deadline(self) -> float | None:
        return self._deadlines.next_deadline()

    def overdue(self, now: Now) -> list[StreamId]:
        """Those on which nothing came in time."""
        return [number for number in self._deadlines.pop_due(now.monotonic_s) if number in self._streams]
