"""One yamux connection as a state machine: bytes in, events out, bytes to send. It does no I/O and never waits.

`yamux.py` drives it over a real connection. The rules it keeps, whatever the peer does:

- A stream's unread bytes never exceed its window: the window is checked when a frame's header arrives.
- Payloads go to their stream as they come; only an incomplete header is ever held back here.
- Everything we owe the peer (credit, answers to pings, refusals) is bounded: a peer that asks and does not read is
  cut off.
- `YamuxError` is the only thing that foreign bytes can raise, and the session is over after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from infernet.transport.yamux_frames import (
    ACK,
    DATA,
    FIN,
    FRAME_BYTES_MAX,
    GO_AWAY,
    HEADER,
    HEADER_BYTES,
    INITIAL_WINDOW_BYTES,
    PING,
    RESET,
    SEND_WINDOW_BYTES_MAX,
    SESSION_ID,
    STREAM_ID_MAX,
    SYN,
    VERSION,
    WINDOW_UPDATE,
    YamuxError,
    header,
)

# Answers we owe on top of a full queue of data. 64 KiB are 5,000 of them: no honest peer asks so often unread.
_ANSWER_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class YamuxConfig:
    """Bounds of one connection.

    window_bytes: unread bytes that we take for one stream, at least the 256 KiB that the specification grants.
    inbound_streams_max: streams of the peer that we serve at once; further ones are reset.
    queue_bytes: data waiting for the network, over all streams; senders wait while there is more.
    """

    window_bytes: int = INITIAL_WINDOW_BYTES
    inbound_streams_max: int = 64
    queue_bytes: int = 128 * 1024

    def __post_init__(self) -> None:
        assert self.window_bytes >= INITIAL_WINDOW_BYTES


class SessionStream:
    """What the session knows of one stream. `broken` says why it did not end cleanly."""

    __slots__ = (
        "broken",
        "buffer",
        "inbound",
        "peer_finished",
        "receive_window_bytes",
        "send_window_bytes",
        "stream_id",
        "taken_bytes",
        "we_finished",
    )

    def __init__(self, stream_id: int, *, inbound: bool, window_bytes: int) -> None:
        self.stream_id = stream_id
        self.inbound = inbound
        self.buffer = bytearray()
        # Peer's credit. With the buffer and what was taken but not yet granted again it makes up the window.
        self.receive_window_bytes = window_bytes
        self.taken_bytes = 0
        self.send_window_bytes = INITIAL_WINDOW_BYTES
        self.peer_finished = False
        self.we_finished = False
        self.broken: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer opened a stream. It holds a place until `Session.release`."""

    stream: SessionStream


@dataclass(frozen=True, slots=True)
class Readable:
    """A reader need wait no more: bytes have come to an empty buffer, or the end, or a reset."""

    stream: SessionStream


@dataclass(frozen=True, slots=True)
class Writable:
    """A sender need wait no more: there is credit again, or a reset."""

    stream: SessionStream


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The peer opens no more streams and takes none. Those that are open go on."""

    code: int


Event = Opened | Readable | Writable | GoneAway


class Session:
    """Both ends of yamux; `initiator` is the one that dialled."""

    def __init__(self, *, initiator: bool, config: YamuxConfig) -> None:
        self.config = config
        self.streams: dict[int, SessionStream] = {}
        self.streams_refused = 0
        # Received and not yet taken, over all streams.
        self.unread_bytes = 0
        # Frames of the peer that carry no data: each costs us work and the peer twelve bytes.
        self.control_frames = 0
        self.going_away = False
        self.peer_going_away = False
        #: Answers to pings so far.
        self.pongs = 0
        self._peer_parity = 0 if initiator else 1
        self._next_id = 1 if initiator else 2
        # Streams of the peer on which somebody works here, those that are gone already included.
        self._places_taken = 0
        self._outgoing = bytearray()
        # An incomplete header, and the payload whose header has passed.
        self._header_rest = b""
        self._payload_left_bytes = 0
        self._payload_stream: SessionStream | None = None
        self._payload_flags = 0

    # ------------------------------------------------------------ from the network

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the network, in pieces of any size. Raises YamuxError."""
        if self._header_rest:
            data = self._header_rest + data
        events: list[Event] = []
        offset, end = 0, len(data)
        while True:
            if self._payload_left_bytes:
                if offset == end:
                    break
                offset = self._take_payload(data, offset, events)
                continue
            if end - offset < HEADER_BYTES:
                break
            version, kind, flags, stream_id, length = HEADER.unpack_from(data, offset)
            offset += HEADER_BYTES
            if kind != DATA or flags or not length:
                self.control_frames += 1
            if version != VERSION:
                raise YamuxError(f"version {version} is not {VERSION}")
            if kind == DATA:
                self._on_data(flags, stream_id, length, events)
            elif kind == WINDOW_UPDATE:
                self._on_window_update(flags, stream_id, length, events)
            elif kind == PING:
                self._on_ping(flags, stream_id, length)
            elif kind == GO_AWAY:
                self._on_go_away(stream_id, length, events)
            else:
                raise YamuxError(f"there is no frame type {kind}")
        self._header_rest = data[offset:]
        return events

    def _on_data(self, flags: int, stream_id: int, length: int, events: list[Event]) -> None:
        stream = self._addressed(flags, stream_id, events)
        if stream is None:
            # A stream that we have reset or refused: the peer may not have heard yet.
            if length > self.config.window_bytes:
                raise YamuxError(f"a frame of {length} bytes exceeds every window")
        else:
            if length > stream.receive_window_bytes:
                raise YamuxError(f"stream {stream_id} sent {length} bytes with {stream.receive_window_bytes} granted")
            if stream.peer_finished and length:
                raise YamuxError(f"stream {stream_id} sent data after its end")
            stream.receive_window_bytes -= length
        self._payload_stream = stream
        self._payload_flags = flags
        self._payload_left_bytes = length
        if not length and stream is not None and flags & (FIN | RESET):
            self._on_end(stream, flags, events)

    def _take_payload(self, data: bytes, offset: int, events: list[Event]) -> int:
        """Give a stream what has come of its payload; returns where the next frame starts."""
        piece = data[offset : offset + self._payload_left_bytes]
        self._payload_left_bytes -= len(piece)
        stream = self._payload_stream
        if stream is not None:
            if not stream.broken:
                if not stream.buffer:
                    events.append(Readable(stream))
                stream.buffer += piece
                self.unread_bytes += len(piece)
            if not self._payload_left_bytes and self._payload_flags & (FIN | RESET):
                self._on_end(stream, self._payload_flags, events)
        return offset + len(piece)

    def _on_window_update(self, flags: int, stream_id: int, length: int, events: list[Event]) -> None:
        stream = self._addressed(flags, stream_id, events)
        if stream is None:
            return
        if length:
            if stream.send_window_bytes + length > SEND_WINDOW_BYTES_MAX:
                raise YamuxError(f"stream {stream_id} grants more than {SEND_WINDOW_BYTES_MAX} bytes")
            if stream.send_window_bytes == 0:
                events.append(Writable(stream))
            stream.send_window_bytes += length
        if flags & (FIN | RESET):
            self._on_end(stream, flags, events)

    def _on_ping(self, flags: int, stream_id: int, value: int) -> None:
        if stream_id != SESSION_ID:
            raise YamuxError(f"a ping names stream {stream_id}")
        if flags & SYN:
            self._answer(header(PING, ACK, SESSION_ID, value))
        elif flags & ACK:
            self.pongs += 1

    def _on_go_away(self, stream_id: int, code: int, events: list[Event]) -> None:
        if stream_id != SESSION_ID:
            raise YamuxError(f"a farewell names stream {stream_id}")
        self.peer_going_away = True
        events.append(GoneAway(code))

    def _addressed(self, flags: int, stream_id: int, events: list[Event]) -> SessionStream | None:
        """The live stream that a frame is for, a new one if it opens it, None if it is gone or refused."""
        if stream_id == SESSION_ID:
            raise YamuxError("stream 0 carries no data")
        stream = self.streams.get(stream_id)
        if not flags & SYN:
            return stream
        if stream is not None:
            raise YamuxError(f"stream {stream_id} is opened twice")
        if stream_id & 1 != self._peer_parity:
            raise YamuxError(f"stream {stream_id} is not the peer's to open")
        if self.going_away or self._places_taken >= self.config.inbound_streams_max:
            self.streams_refused += 1
            self._answer(header(WINDOW_UPDATE, RESET, stream_id, 0))
            return None
        stream = SessionStream(stream_id, inbound=True, window_bytes=self.config.window_bytes)
        self.streams[stream_id] = stream
        self._places_taken += 1
        self._answer(header(WINDOW_UPDATE, ACK, stream_id, self.config.window_bytes - INITIAL_WINDOW_BYTES))
        events.append(Opened(stream))
        return stream

    def _on_end(self, stream: SessionStream, flags: int, events: list[Event]) -> None:
        if stream.broken:
            return
        if flags & RESET:
            stream.broken = "the peer reset the stream"
            self.streams.pop(stream.stream_id, None)
            events.append(Writable(stream))
        else:
            stream.peer_finished = True
            self._forget_if_finished(stream)
        events.append(Readable(stream))

    def _answer(self, frame: bytes) -> None:
        self._outgoing += frame
        if len(self._outgoing) > self.config.queue_bytes + _ANSWER_BYTES_MAX:
            raise YamuxError("the peer asks and does not read the answers")

    # ------------------------------------------------------------ from the node

    def open(self, greeting: bytes) -> SessionStream:
        """Open a stream and queue its first bytes, however full the queue is: they are few, and always the first.

        Raises YamuxError when either side has said farewell.
        """
        if self.going_away or self.peer_going_away or self._next_id > STREAM_ID_MAX:
            raise YamuxError("this connection takes no new streams")
        stream = SessionStream(self._next_id, inbound=False, window_bytes=self.config.window_bytes)
        self._next_id += 2
        self.streams[stream.stream_id] = stream
        credit_bytes = self.config.window_bytes - INITIAL_WINDOW_BYTES
        self._outgoing += header(WINDOW_UPDATE, SYN, stream.stream_id, credit_bytes)
        if greeting:
            assert len(greeting) <= FRAME_BYTES_MAX
            self._outgoing += header(DATA, 0, stream.stream_id, len(greeting)) + greeting
            stream.send_window_bytes -= len(greeting)
        return stream

    def send(self, stream: SessionStream, data: bytes, start: int = 0) -> int:
        """Queue `data[start:]` as far as credit and queue allow; returns where the rest starts."""
        assert not stream.we_finished
        assert not stream.broken
        outgoing = self._outgoing
        while start < len(data) and stream.send_window_bytes and len(outgoing) < self.config.queue_bytes:
            stop = min(len(data), start + FRAME_BYTES_MAX, start + stream.send_window_bytes)
            outgoing += HEADER.pack(VERSION, DATA, 0, stream.stream_id, stop - start)
            outgoing += data[start:stop]
            stream.send_window_bytes -= stop - start
            start = stop
        return start

    def take(self, stream: SessionStream, limit_bytes: int) -> bytes:
        """Take received bytes out of a stream, and grant the peer new credit once half of its window is used."""
        buffer = stream.buffer
        if len(buffer) <= limit_bytes:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(buffer[:limit_bytes])
            del buffer[:limit_bytes]
        self.unread_bytes -= len(data)
        stream.taken_bytes += len(data)
        if stream.taken_bytes * 2 >= self.config.window_bytes and not (stream.peer_finished or stream.broken):
            self._outgoing += header(WINDOW_UPDATE, 0, stream.stream_id, stream.taken_bytes)
            stream.receive_window_bytes += stream.taken_bytes
            stream.taken_bytes = 0
        return data

    def finish(self, stream: SessionStream) -> None:
        """Say that we send no more on this stream. Idempotent."""
        if stream.we_finished or stream.broken:
            return
        stream.we_finished = True
        self._outgoing += header(WINDOW_UPDATE, FIN, stream.stream_id, 0)
        self._forget_if_finished(stream)

    def reset(self, stream: SessionStream, reason: str) -> None:
        """Drop a stream and its unread bytes at once. Nothing if it is gone already, but for the bytes."""
        self.unread_bytes -= len(stream.buffer)
        stream.buffer.clear()
        if stream.broken:
            return
        stream.broken = reason
        # Not what the peer has opened under the same id since this stream ended.
        if self.streams.get(stream.stream_id) is stream:
            del self.streams[stream.stream_id]
            self._outgoing += header(WINDOW_UPDATE, RESET, stream.stream_id, 0)

    def release(self, stream: SessionStream) -> None:
        """Nobody works on this inbound stream any more: its place is free. Call once for each `Opened`."""
        assert stream.inbound
        self._places_taken -= 1

    def ping(self, value: int) -> None:
        """Ask the peer for a sign of life."""
        self._outgoing += header(PING, SYN, SESSION_ID, value)

    def go_away(self, code: int) -> None:
        """Say farewell: the peer's new streams are refused from here on."""
        self.going_away = True
        self._outgoing += header(GO_AWAY, 0, SESSION_ID, code)

    def lose(self, reason: str) -> list[SessionStream]:
        """The connection is gone: break and return every stream that was open."""
        lost = list(self.streams.values())
        for stream in lost:
            stream.broken = reason
        self.streams.clear()
        self._outgoing.clear()
        return lost

    def _forget_if_finished(self, stream: SessionStream) -> None:
        if stream.peer_finished and stream.we_finished:
            del self.streams[stream.stream_id]

    # ------------------------------------------------------------ to the network

    @property
    def outgoing_bytes(self) -> int:
        """How much waits to be sent."""
        return len(self._outgoing)

    def data_to_send(self) -> bytes:
        """Everything that waits to be sent; it counts as sent."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data
