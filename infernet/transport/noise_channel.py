"""A secure channel to a proven peer: multistream and Noise over any byte stream, then encrypted records.

The byte stream is a TCP connection or the inside of a relayed one; nothing here knows which. Until the handshake
has finished, nothing of the other end is read beyond what a handshake has (`unproven.py`).
Source: the libp2p Noise specification; Noise_XX_25519_ChaChaPoly_SHA256.
"""

from __future__ import annotations

from typing import Final

import trio

from infernet.transport import multistream
from infernet.transport.channel import ByteReader, ChannelBroken
from infernet.transport.libp2p_library import (
    CIPHER_ERRORS,
    CIPHER_TAG_BYTES,
    NOISE_PROTOCOL,
    Ciphers,
    HandshakeFailed,
    Identity,
)
from infernet.transport.multistream import MultistreamError
from infernet.transport.unproven import UnprovenStream
from infernet.transport.yamux_frames import PROTOCOL as YAMUX_PROTOCOL
from protocol.ids import NodeId

_LENGTH_BYTES: Final = 2
RECORD_PLAIN_BYTES_MAX: Final = 2**16 - 1 - CIPHER_TAG_BYTES
# One system call brings up to this much; a full record and some of the next.
_SOCKET_READ_BYTES: Final = 128 * 1024


class NoiseChannel:
    """Records of two length bytes and a ciphertext, over a stream whose ends have proven who they are."""

    def __init__(self, stream: trio.abc.Stream, ciphers: Ciphers, received: bytes, peer: NodeId) -> None:
        self.peer = peer
        self.bytes_in = 0
        self.bytes_out = 0
        self._stream = stream
        self._ciphers = ciphers
        # Ciphertext that is not yet a whole record, and plaintext that was read too far.
        self._received = received
        self._unread = b""

    def proven(self, stream: trio.abc.Stream, plain: bytes) -> None:
        """The handshake is over: read from this stream, and give out first what was read too far."""
        self._stream = stream
        self._unread = plain

    async def send(self, data: bytes) -> None:
        """As `Channel.send`: all of it in one system call, in records as large as the specification allows."""
        try:
            wire = self._seal(data)
            del data  # sending may take long, and this is of no use meanwhile
            await self._stream.send_all(wire)
        except (trio.BrokenResourceError, trio.ClosedResourceError, *CIPHER_ERRORS) as error:
            raise ChannelBroken(f"sending failed: {error.__cause__ or error}") from error
        self.bytes_out += len(wire)

    def _seal(self, data: bytes) -> bytes:
        wire: list[bytes] = []
        for start in range(0, len(data), RECORD_PLAIN_BYTES_MAX):
            record = self._ciphers.encrypt(data[start : start + RECORD_PLAIN_BYTES_MAX])
            wire += (len(record).to_bytes(_LENGTH_BYTES, "big"), record)
        return b"".join(wire)

    async def receive(self) -> bytes:
        """As `Channel.receive`: every whole record that has come, joined."""
        if self._unread:
            plain, self._unread = self._unread, b""
            return plain
        while True:
            if plain := self._open_records():
                return plain
            try:
                piece = await self._stream.receive_some(_SOCKET_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ChannelBroken(f"receiving failed: {error.__cause__ or error}") from error
            if not piece:
                return b""
            self.bytes_in += len(piece)
            self._received = self._received + piece if self._received else bytes(piece)

    def _open_records(self) -> bytes:
        received, offset = self._received, 0
        plain: list[bytes] = []
        try:
            while len(received) - offset >= _LENGTH_BYTES:
                start = offset + _LENGTH_BYTES
                stop = start + (received[offset] << 8 | received[offset + 1])
                if stop > len(received):
                    break
                plain.append(self._ciphers.decrypt(received[start:stop]))
                offset = stop
        except CIPHER_ERRORS as error:
            raise ChannelBroken("a record was altered on its way") from error
        self._received = received[offset:]
        return plain[0] if len(plain) == 1 else b"".join(plain)

    async def aclose(self) -> None:
        """Close the connection at once."""
        await trio.aclose_forcefully(self._stream)


class _HandshakeIO:
    """The byte stream as the library's handshake wants it. What a dialer proposed is confirmed with its first read."""

    def __init__(self, stream: trio.abc.Stream, proposed: str | None) -> None:
        self._stream = stream
        self._proposed = proposed
        self.reader = ByteReader(self._receive)

    async def _receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelBroken(f"receiving failed: {error.__cause__ or error}") from error

    async def read(self, n: int) -> bytes:
        if self._proposed is not None:
            proposed, self._proposed = self._proposed, None
            await multistream.confirm(self.reader, proposed)
        return await self.reader.read(n)

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelBroken(f"sending failed: {error.__cause__ or error}") from error


async def secure_outbound(stream: trio.abc.Stream, identity: Identity, peer: NodeId) -> NoiseChannel:
    """Dialer's side: prove ourselves to `peer` and to nobody else, and agree on yamux. Three round trips with TCP's.

    Raises HandshakeFailed or ChannelBroken, after which the stream is still the caller's to close. The caller owns
    the deadline.
    """
    unproven = UnprovenStream(stream)
    io = _HandshakeIO(unproven, NOISE_PROTOCOL)
    await io.write(multistream.proposal(NOISE_PROTOCOL))
    ciphers = await identity.prove_outbound(io, peer)
    channel = NoiseChannel(unproven, ciphers, io.reader.rest(), peer)
    reader = ByteReader(channel.receive)
    await channel.send(multistream.proposal(YAMUX_PROTOCOL))
    try:
        await multistream.confirm(reader, YAMUX_PROTOCOL)
    except MultistreamError as error:
        raise HandshakeFailed(str(error)) from None
    channel.proven(stream, reader.rest())
    return channel


async def secure_inbound(stream: trio.abc.Stream, identity: Identity) -> NoiseChannel:
    """Listener's side: learn who dials. Raises HandshakeFailed or ChannelBroken; the caller owns the deadline."""
    unproven = UnprovenStream(stream)
    io = _HandshakeIO(unproven, None)
    try:
        # SPEC 01: A node MUST offer no security protocol but Noise,
        await multistream.respond(io.reader, io.write, {NOISE_PROTOCOL})
        peer, ciphers = await identity.prove_inbound(io)
        channel = NoiseChannel(unproven, ciphers, io.reader.rest(), peer)
        reader = ByteReader(channel.receive)
        await multistream.respond(reader, channel.send, {YAMUX_PROTOCOL})
    except MultistreamError as error:
        raise HandshakeFailed(str(error)) from None
    channel.proven(stream, reader.rest())
    return channel
