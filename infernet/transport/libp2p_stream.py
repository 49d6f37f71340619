"""A yamux stream with its protocol agreed: what `contract.Stream` promises.

Opening waits for nothing: the choice of protocol leaves together with the first data, and the peer's echo of it is
checked when something is first received.
"""

from __future__ import annotations

from collections.abc import Container
from functools import partial

from infernet.transport import multistream
from infernet.transport.channel import ByteReader
from infernet.transport.contract import RECEIVE_BYTES_MAX, StreamBroken
from infernet.transport.yamux import YamuxConnection, YamuxStream
from protocol.ids import NodeId


class Libp2pStream:
    """See `contract.Stream`. Make one with `propose` or `agree`."""

    __slots__ = ("_echo", "_stream", "_unread", "peer", "protocol")

    def __init__(
        self, stream: YamuxStream, peer: NodeId, protocol: str, *, echo: bytes = b"", unread: bytes = b""
    ) -> None:
        self.peer = peer
        self.protocol = protocol
        self._stream = stream
        # What the peer must still answer before its data; b"" once it has.
        self._echo = echo
        self._unread = unread

    async def send(self, data: bytes) -> None:
        """As `Stream.send`."""
        await self._stream.send(data)

    async def receive(self) -> bytes:
        """As `Stream.receive`; StreamBroken too when the peer does not speak the protocol."""
        if self._echo:
            await self._confirm()
        if self._unread:
            data, self._unread = self._unread[:RECEIVE_BYTES_MAX], self._unread[RECEIVE_BYTES_MAX:]
            return data
        return await self._stream.receive()

    async def _confirm(self) -> None:
        # A cancelled receive must lose nothing, so what has come is kept in `_unread` throughout.
        while len(self._unread) < len(self._echo) and self._echo.startswith(self._unread):
            piece = await self._stream.receive()
            if not piece:
                raise StreamBroken(f"the peer ended the stream before it agreed on {self.protocol}")
            self._unread += piece
        if not self._unread.startswith(self._echo):
            self._stream.reset()
            raise StreamBroken(f"the peer does not speak {self.protocol}")
        self._unread = self._unread[len(self._echo) :]
        self._echo = b""

    def watch(self) -> None:
        """Somebody waits for what comes on this stream: notice soon when its connection is dead."""
        self._stream.watch()

    async def finish(self) -> None:
        """As `Stream.finish`."""
        await self._stream.finish()

    def reset(self) -> None:
        """As `Stream.reset`."""
        self._unread = b""
        self._stream.reset()


def propose(connection: YamuxConnection, peer: NodeId, protocol: str) -> Libp2pStream:
    """Open a stream under a protocol, without waiting. Raises ChannelBroken."""
    proposal = multistream.proposal(protocol)
    # The echo of header and protocol is, byte for byte, what we propose.
    return Libp2pStream(connection.open_stream(proposal), peer, protocol, echo=proposal)


async def agree(stream: YamuxStream, peer: NodeId, spoken: Container[str]) -> Libp2pStream:
    """Hear what the peer wants of a stream it opened. Raises MultistreamError, ChannelBroken or StreamBroken.

    The caller owns the deadline, and the stream if this raises.
    """
    # No more than a token at a time: what comes after it is counted as unread until somebody reads it.
    reader = ByteReader(partial(stream.receive, multistream.TOKEN_BYTES_MAX))
    protocol = await multistream.respond(reader, stream.send, spoken)
    return Libp2pStream(stream, peer, protocol, unread=reader.rest())
