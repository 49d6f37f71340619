"""The link: one WebSocket that a node keeps open to its coordinator, and the streams that run inside it.

Outbound from the node, so that it works behind NAT and over Tor. The upgrade request carries `X-Infernet-Auth`
version 2 (specs/07); the first message from the coordinator is a signed `LinkHello`, which proves its key and binds
the answer to that very request. Every later message, in both directions, is one frame: a MessagePack array
`[type, ...fields]`. Even types are mandatory, unknown odd ones are ignored, as on every other wire.

`Link` is what both ends keep: which streams are open and what waits to be sent. It never awaits; a driver hands it
the messages received and the effects of the peer, and writes what `take` gives.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Final, get_args

import msgspec
from msgspec import Meta, Struct

from protocol import codec, envelope
from protocol import constants as c
from protocol.effects import FinishStream, OpenStream, ResetStream, Send
from protocol.errors import BadFrame, BadSignature, LocalProtocolError, Stale
from protocol.events import BytesReceived, OutboxFull, StreamBroken, StreamFinished, StreamOpened
from protocol.ids import NodeId, StreamId
from protocol.records import Hash, NodeKey, Record, Signed, Text, UnsignedInteger, Version1
from protocol.structs import prepare

# ---------------------------------------------------------------- specification constants (specs/07)

LINK_PATH: Final = "/api/v1/link"
LINK_MESSAGE_BYTES_MAX: Final = 64 * 1024
# Small pieces let streams take turns: a long prompt delays another job's cancel by one piece.
LINK_DATA_BYTES_MAX: Final = 16 * 1024
LINK_STREAMS_MAX: Final = 256
# Claims of one node that are on their way: at 100 ms each, 640 a second.
LINK_CLAIMS_MAX: Final = 64
LINK_PING_INTERVAL_S: Final = 20.0
LINK_SILENCE_S_MAX: Final = 50.0

# ---------------------------------------------------------------- implementation constants

# The largest sealed prompt and its frames fit, so that only a reader that stands still overflows.
OUTBOX_STREAM_BYTES_MAX: Final = c.SEALED_BYTES_MAX + 256 * 1024
OUTBOX_BYTES_MAX: Final = 4 * OUTBOX_STREAM_BYTES_MAX
# Pongs, resets and answers to claims that the other side provokes and does not read; in bytes, too, because one answer
# may be as long as a thousand pongs. It is twice what all claims take that a node may have on their way.
CONTROL_QUEUE_MAX: Final = 1024
CONTROL_BYTES_MAX: Final = 2 * LINK_CLAIMS_MAX * c.RECORD_BYTES_MAX

# The largest is an answer that refuses every claim of a frame.
_LIMITS: Final = codec.Limits(LINK_MESSAGE_BYTES_MAX, LINK_MESSAGE_BYTES_MAX, c.CLAIMS_MAX, 4, 160)
# The signature, and MessagePack's heads of it, of the body and of the array; and those of a frame with its number.
_SIGNED_OVERHEAD_BYTES: Final = 64 + 2 + 3 + 1
_FRAME_OVERHEAD_BYTES: Final = 1 + 1 + 9 + 3
_BYTES: Final = (bytes,)


# ---------------------------------------------------------------- what the coordinator signs


class LinkHello(Record, frozen=True):
    """First message of the coordinator on a link. The node checks key and `auth_hash`, then opens streams.

    `auth_hash` is the SHA-256 of the value of the node's `X-Infernet-Auth`: no other link's hello fits.
    """

    TAG: ClassVar[str] = "infernet/link/1"
    SIGNER: ClassVar[str] = "coordinator"

    version: Version1
    coordinator: NodeKey
    node: NodeKey
    auth_hash: Hash
    time_ms: UnsignedInteger


class ServerTime(Record, frozen=True):
    """The coordinator's clock, in answer to a request that it refused; travels in `X-Infernet-Time`.

    A node whose clock is off signs its next request with the difference added; it never sets the system's clock.
    """

    TAG: ClassVar[str] = "infernet/server-time/1"
    SIGNER: ClassVar[str] = "coordinator"

    version: Version1
    coordinator: NodeKey
    auth_hash: Hash
    time_ms: UnsignedInteger


SERVER_TIME_HEADER: Final = "X-Infernet-Time"


def auth_hash(auth_header: str) -> bytes:
    """What binds an answer to one request: the SHA-256 of its authentication header (32 bytes)."""
    return hashlib.sha256(auth_header.encode()).digest()


def encode_hello(signer: envelope.Signer, node: NodeId, auth_header: str, now_ms: int) -> bytes:
    """The first message of a link: the coordinator's signed hello to this node."""
    record = LinkHello(1, signer.node, node, auth_hash(auth_header), now_ms)
    return codec.encode_value(envelope.sign_record(record, signer))


def decode_hello(message: bytes, coordinator: NodeId, node: NodeId, auth_header: str) -> LinkHello:
    """Check the first message of a link against the pinned key and our own request.

    Raises BadFrame, BadSignature (another key than the pinned one) or Stale (an answer to another request).
    """
    hello = envelope.open_record(codec.decode_struct(message, Signed, _LIMITS), LinkHello)
    # SPEC 07: The node MUST close a link whose hello is not signed by the coordinator's pinned key.
    if not hmac.compare_digest(hello.coordinator, coordinator):
        raise BadSignature(f"the coordinator's key is {hello.coordinator.hex()}, not the pinned one")
    if hello.node != node or hello.auth_hash != auth_hash(auth_header):
        raise Stale("the hello of this link answers another request")
    return hello


def encode_server_time(signer: envelope.Signer, auth_header: str, now_ms: int) -> str:
    """The value of `X-Infernet-Time` for a refused request."""
    record = ServerTime(1, signer.node, auth_hash(auth_header), now_ms)
    return codec.encode_value(envelope.sign_record(record, signer)).hex()


def decode_server_time(value: str, coordinator: NodeId, auth_header: str) -> int:
    """The coordinator's clock in milliseconds. Raises BadFrame, BadSignature or Stale."""
    if len(value) > envelope.AUTH_HEADER_CHARACTERS_MAX:
        raise BadFrame("the time header is too long")
    try:
        data = bytes.fromhex(value)
    except ValueError:
        raise BadFrame("the time header is not hexadecimal") from None
    record = envelope.open_record(codec.decode_struct(data, Signed, _LIMITS), ServerTime)
    if not hmac.compare_digest(record.coordinator, coordinator):
        raise BadSignature("the time is signed by another key than the pinned coordinator's")
    if record.auth_hash != auth_hash(auth_header):
        raise Stale("the time answers another request")
    return record.time_ms


# ---------------------------------------------------------------- frames

LinkStream = Annotated[int, Meta(ge=1, le=c.INTEGER_MAX)]


class Frame(Struct, frozen=True, array_like=True, gc=False):
    """Base of all frames. Streams that the coordinator opens are odd, those that the node opens even."""


class Open(Frame, frozen=True, tag=2):
    """A new stream; ids of one side only grow. The receiver resets it when it does not know the protocol."""

    stream: LinkStream
    protocol: Text


class Data(Frame, frozen=True, tag=4):
    """The next bytes of a stream. The receiver ignores those of a stream that it has closed."""

    stream: LinkStream
    data: Annotated[bytes, Meta(min_length=1, max_length=LINK_DATA_BYTES_MAX)]


class Finish(Frame, frozen=True, tag=6):
    """The sender has no more data for this stream. Both sides finished: the stream is over."""

    stream: LinkStream


class Reset(Frame, frozen=True, tag=8):
    """The stream is over at once, in both directions."""

    stream: LinkStream
    reason: Text


class Ping(Frame, frozen=True, tag=10):
    """Are you there? The receiver answers with `Pong` and the same number."""

    number: UnsignedInteger


class Pong(Frame, frozen=True, tag=12):
    """The answer to `Ping`. Any message counts as a sign of life."""

    number: UnsignedInteger


class Announce(Frame, frozen=True, tag=14):
    """A node's own signed heartbeat, every 30 s. The coordinator records it as it does on the heartbeat route."""

    record: Signed


class ClaimFrame(Frame, frozen=True, tag=16):
    """Signed claims of a node. The coordinator answers with one `ClaimAnswer` of the same number, in any order.

    The node numbers as it likes and has at most `LINK_CLAIMS_MAX` claims unanswered; more are answered `busy`. An
    answer comes when all that it acknowledges is settled on disk. Without one the node sends the same claims again: on
    this link, the next one, or the claims route. They change nothing a second time.
    """

    number: UnsignedInteger
    claims: Annotated[tuple[Signed, ...], Meta(min_length=1, max_length=c.CLAIMS_MAX)]


class ClaimRefusal(Struct, frozen=True, array_like=True, gc=False):
    """Which claim of the frame is refused, counted from 0; a code and a sentence, why."""

    position: Annotated[int, Meta(ge=0, lt=c.CLAIMS_MAX)]
    code: Text
    text: Text


class ClaimAnswer(Frame, frozen=True, tag=18):
    """The answer to a `ClaimFrame`: what is refused of it, and the signed `ClaimAckRecord` for all the rest."""

    number: UnsignedInteger
    acknowledgement: Signed | None
    refusals: Annotated[tuple[ClaimRefusal, ...], Meta(max_length=c.CLAIMS_MAX)]


class Closing(Frame, frozen=True, tag=17):
    """The payer of one of this node's leases has signed this `CloseRecord`: it wants the rest back.

    The provider checks it, claims what it has and gives up the rest. Whoever misses it finds it in the list of leases.
    """

    record: Signed


AnyFrame = Open | Data | Finish | Reset | Ping | Pong | Announce | ClaimFrame | ClaimAnswer | Closing
_CLASSES: Final[dict[int, type[AnyFrame]]] = {cls.__struct_config__.tag: cls for cls in get_args(AnyFrame)}


def split_claims(claims: Sequence[Signed]) -> Iterator[tuple[Signed, ...]]:
    """Claims in order, as many together as fit in one frame."""
    part: list[Signed] = []
    room_bytes = LINK_MESSAGE_BYTES_MAX - _FRAME_OVERHEAD_BYTES
    for claim in claims:
        size_bytes = len(claim.body) + _SIGNED_OVERHEAD_BYTES
        if part and (len(part) == c.CLAIMS_MAX or size_bytes > room_bytes):
            yield tuple(part)
            part, room_bytes = [], LINK_MESSAGE_BYTES_MAX - _FRAME_OVERHEAD_BYTES
        part.append(claim)
        room_bytes -= size_bytes
    if part:
        yield tuple(part)


def encode_frame(frame: Frame) -> bytes:
    """The bytes of one message. Raises LocalProtocolError when they exceed the limit."""
    data = codec.encode_value(frame)
    if len(data) > LINK_MESSAGE_BYTES_MAX:
        raise LocalProtocolError(f"a frame of {len(data)} bytes exceeds {LINK_MESSAGE_BYTES_MAX}")
    return data


def decode_frame(message: bytes) -> AnyFrame | None:
    """The frame in one message, or None for an unknown optional type. Raises BadFrame, and nothing else."""
    value: Any = codec.decode_value(message, _LIMITS)
    if type(value) is not list or not value or type(value[0]) is not int:
        raise BadFrame("a frame is an array that starts with its type")
    cls = _CLASSES.get(value[0])
    if cls is None:
        if value[0] > 0 and value[0] % 2 == 1:
            return None
        raise BadFrame(f"unknown mandatory frame type {value[0]}")
    try:
        return msgspec.convert(value, type=cls, builtin_types=_BYTES)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise BadFrame(f"frame type {value[0]}: {error}") from None


# ---------------------------------------------------------------- the streams of one link

LinkEvent = StreamOpened | BytesReceived | StreamFinished | StreamBroken | Announce | ClaimFrame | ClaimAnswer | Closing
LinkEffect = OpenStream | Send | FinishStream | ResetStream


class _Stream:
    __slots__ = (
        "finished_in",
        "finished_out",
        "id",
        "link_id",
        "overflowed",
        "queue",
        "queued_bytes",
        "was_announced",
    )

    def __init__(self, stream: StreamId, link_id: int, *, was_announced: bool) -> None:
        self.id = stream
        self.link_id = link_id
        self.was_announced = was_announced  # the other side knows of it
        self.finished_in = False
        self.finished_out = False
        self.overflowed = False
        self.queue: deque[bytes] = deque()
        self.queued_bytes = 0


class Link:
    """The streams of one link and its bounded outbox; the same at both ends but for `opens_odd`.

    `peer` is the key at the other end, `next_stream` numbers the streams that it opens, `on_closed` hears of every
    stream that is over.
    """

    def __init__(
        self,
        peer: NodeId,
        *,
        opens_odd: bool,
        next_stream: Callable[[], StreamId],
        on_closed: Callable[[StreamId], object] = lambda _stream: None,
    ) -> None:
        self.peer = peer
        self._next_stream = next_stream
        self._on_closed = on_closed
        self._next_link_id = 1 if opens_odd else 2
        self._their_highest = 0
        self._their_parity = 0 if opens_odd else 1
        self._by_id: dict[StreamId, _Stream] = {}
        self._by_link_id: dict[int, _Stream] = {}
        self._turns: deque[_Stream] = deque()
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._queued_bytes = 0
        # The other side makes us answer and does not read the answers: the driver closes such a link.
        self.is_clogged = False

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._by_id)

    @property
    def queued_bytes(self) -> int:
        """How much waits to be sent."""
        return self._queued_bytes

    # ------------------------------------------------------------ from the other side

    def receive(self, message: bytes) -> list[LinkEvent]:
        """What one message means for the peer. Raises BadFrame: the link is then to be closed."""
        frame = decode_frame(message)
        match frame:
            case Data():
                stream = self._theirs_or_ours(frame.stream)
                if stream is None:
                    return []
                if stream.finished_in:
                    raise BadFrame("data on a stream that the sender had finished")
                return [BytesReceived(stream.id, frame.data)]
            case Open():
                return self._on_open(frame)
            case Finish():
                stream = self._theirs_or_ours(frame.stream)
                if stream is None or stream.finished_in:
                    return []
                stream.finished_in = True
                self._forget_if_over(stream)
                return [StreamFinished(stream.id)]
            case Reset():
                stream = self._theirs_or_ours(frame.stream)
                if stream is None:
                    return []
                self._forget(stream)
                return [StreamBroken(stream.id, frame.reason)]
            case Ping():
                self._put_control(Pong(frame.number))
            case Announce() | ClaimFrame() | ClaimAnswer() | Closing():
                return [frame]
            case Pong() | None:
                pass
        return []

    def _on_open(self, frame: Open) -> list[LinkEvent]:
        # SPEC 07: The receiver of Open MUST close the link when the id has the wrong parity or does not grow.
        if frame.stream % 2 != self._their_parity or frame.stream <= self._their_highest:
            raise BadFrame("the id of a new stream must be of the sender's parity and grow")
        self._their_highest = frame.stream
        if frame.protocol not in c.PROTOCOLS:
            self._put_control(Reset(frame.stream, "unknown protocol"))
            return []
        if len(self._by_id) >= LINK_STREAMS_MAX:
            self._put_control(Reset(frame.stream, "too many streams"))
            return []
        stream = _Stream(self._next_stream(), frame.stream, was_announced=True)
        self._by_id[stream.id] = self._by_link_id[stream.link_id] = stream
        return [StreamOpened(stream.id, self.peer, frame.protocol)]

    def _theirs_or_ours(self, link_id: int) -> _Stream | None:
        stream = self._by_link_id.get(link_id)
        if stream is None:
            never_opened = (
                link_id > self._their_highest if link_id % 2 == self._their_parity else link_id >= self._next_link_id
            )
            # SPEC 07: The receiver MUST close the link on a frame for a stream that was never opened,
            if never_opened:
                raise BadFrame("a frame for a stream that was never opened")
        return stream

    # ------------------------------------------------------------ from our peer

    def perform(self, effect: LinkEffect) -> OutboxFull | StreamBroken | None:
        """Queue what this effect means; never waits. Returns the event that tells the peer when it could not."""
        if isinstance(effect, OpenStream):
            return self._open(effect)
        stream = self._by_id.get(effect.stream)
        if stream is None or ((stream.finished_out or stream.overflowed) and not isinstance(effect, ResetStream)):
            return None  # the other side was faster, or what follows a gap: the event that says so is on its way
        match effect:
            case Send():
                return self._send(stream, effect.data)
            case FinishStream():
                stream.finished_out = True
                self._put(stream, Finish(stream.link_id))
            case ResetStream():
                self._forget(stream)
                if stream.was_announced:
                    self._put_control(Reset(stream.link_id, effect.reason[: c.TEXT_CHARACTERS_MAX]))
        return None

    def _open(self, effect: OpenStream) -> StreamBroken | None:
        if len(self._by_id) >= LINK_STREAMS_MAX:
            self._on_closed(effect.stream)
            return StreamBroken(effect.stream, "too many streams on the link")
        stream = _Stream(effect.stream, self._next_link_id, was_announced=False)
        self._next_link_id += 2
        self._by_id[stream.id] = self._by_link_id[stream.link_id] = stream
        self._put(stream, Open(stream.link_id, effect.protocol))
        return None

    def _send(self, stream: _Stream, data: bytes) -> OutboxFull | None:
        if (
            stream.queued_bytes + len(data) > OUTBOX_STREAM_BYTES_MAX
            or self._queued_bytes + len(data) > OUTBOX_BYTES_MAX
        ):
            stream.overflowed = True
            return OutboxFull(stream.id)
        for start in range(0, len(data), LINK_DATA_BYTES_MAX):
            self._put(stream, Data(stream.link_id, data[start : start + LINK_DATA_BYTES_MAX]))
        return None

    def _put(self, stream: _Stream, frame: Frame) -> None:
        message = encode_frame(frame)
        if not stream.queue:
            self._turns.append(stream)
        stream.queue.append(message)
        stream.queued_bytes += len(message)
        self._queued_bytes += len(message)

    def _put_control(self, frame: Frame) -> None:
        message = encode_frame(frame)
        if len(self._control) >= CONTROL_QUEUE_MAX or self._control_bytes + len(message) > CONTROL_BYTES_MAX:
            self.is_clogged = True
            return
        self._control.append(message)
        self._control_bytes += len(message)
        self._queued_bytes += len(message)

    def ping(self, number: int) -> None:
        """Queue a sign of life."""
        self._put_control(Ping(number))

    def announce(self, record: Signed) -> None:
        """Queue our own heartbeat."""
        self._put_control(Announce(record))

    def claim(self, number: int, claims: tuple[Signed, ...]) -> None:
        """Queue claims of ours; their answer comes as one event of the same number.

        Raises LocalProtocolError when they do not fit in a frame; `split_claims` makes what does.
        """
        self._put_control(ClaimFrame(number, claims))

    def tell(self, frame: ClaimAnswer | Closing) -> None:
        """Queue what a coordinator says about a node's money."""
        self._put_control(frame)

    def take(self) -> bytes | None:
        """The next message to write, or None. Answers and resets go first, then the streams take turns."""
        if self._control:
            message = self._control.popleft()
            self._control_bytes -= len(message)
            self._queued_bytes -= len(message)
            return message
        while self._turns:
            stream = self._turns.popleft()
            if not stream.queue:
                continue  # it was reset while it waited for its turn
            message = stream.queue.popleft()
            stream.queued_bytes -= len(message)
            self._queued_bytes -= len(message)
            stream.was_announced = True
            if stream.queue:
                self._turns.append(stream)
            else:
                self._forget_if_over(stream)
            return message
        return None

    def close(self, reason: str) -> list[StreamBroken]:
        """The link is gone: what the peer must hear about its streams."""
        broken = [StreamBroken(stream.id, reason) for stream in self._by_id.values()]
        for stream in list(self._by_id.values()):
            self._forget(stream)
        self._control.clear()
        self._control_bytes = self._queued_bytes = 0
        return broken

    def _forget_if_over(self, stream: _Stream) -> None:
        if stream.finished_in and stream.finished_out and not stream.queue:
            self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        self._queued_bytes -= stream.queued_bytes
        stream.queued_bytes = 0
        stream.queue.clear()
        if self._by_id.pop(stream.id, None) is not None:
            del self._by_link_id[stream.link_id]
            self._on_closed(stream.id)


prepare(globals())
