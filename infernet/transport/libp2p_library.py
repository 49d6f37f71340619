"""What we take from py-libp2p; no other module imports it.

We take the parts on which all implementations must agree byte for byte: the Noise handshake with its signed
identity, the key and PeerId formats, the identify message. We do not take its host, swarm and muxer: in 0.8.1 a
stranger can kill, impersonate, lock out or fill up whoever runs them (tests/infernet/transport/test_libp2p_faults.py
shows each), and guarding them costs more than the listening, dialling and bookkeeping that they would do for us.
The wire is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable
from importlib.metadata import version
from typing import Final, Protocol, cast

import coincurve
import trio

from infernet.transport.channel import ByteReader, ChannelBroken
from infernet.transport.contract import TransportError
from protocol.errors import LocalProtocolError
from protocol.ids import NodeId, node_id, node_id_from_peer_id, peer_id

LIBP2P_PINNED: Final = "0.8.1"


def _misfit(what: object) -> str:
    return (
        f"libp2p {version('libp2p')} is not the library that this program is built on ({what}): "
        f"install libp2p=={LIBP2P_PINNED}"
    )


try:
    from google.protobuf.message import DecodeError
    from libp2p.abc import IRawConnection, ISecureConn
    from libp2p.crypto.secp256k1 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
    from libp2p.identity.identify.identify import ID as _IDENTIFY
    from libp2p.identity.identify.identify import PROTOCOL_VERSION
    from libp2p.identity.identify.pb.identify_pb2 import Identify
    from libp2p.peer.id import ID
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
    from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
    from libp2p.security.noise.io import NoiseTransportReadWriter
    from libp2p.security.noise.transport import PROTOCOL_ID as _NOISE
    from libp2p.security.noise.transport import Transport as NoiseTransport
    from libp2p.security.secure_session import SecureSession
    from libp2p.utils.varint import encode_uvarint
    from multiaddr import Multiaddr
    from multiaddr.exceptions import Error as MultiaddrError
    from noise.exceptions import NoiseInvalidMessage, NoiseMaxNonceError
except ImportError as error:
    raise ImportError(_misfit(error)) from error

# The library's loggers pass nothing up and have no handler, so that Python would print what strangers cause to
# stderr: this handler takes it. Whoever sets LIBP2P_DEBUG gets the library's own handlers beside it.
logging.getLogger("libp2p").addHandler(logging.NullHandler())

# For the relay's room (relay/wire.py).
CircuitHop = HopMessage
CircuitStop = StopMessage
CircuitStatus = Status
ProtobufError = DecodeError

NOISE_PROTOCOL: Final = str(_NOISE)
IDENTIFY_PROTOCOL: Final = str(_IDENTIFY)
PING_PROTOCOL: Final = "/ipfs/ping/1.0.0"

_CHECK_TIMEOUT_S: Final = 10.0
_CHECK_TEXT: Final = b"from us to us"
_CHECK_MESSAGES: Final = 4

# ChaCha20-Poly1305 adds this to every message.
CIPHER_TAG_BYTES: Final = 16
# What `Ciphers.decrypt` and `Ciphers.encrypt` raise.
CIPHER_ERRORS: Final = (NoiseInvalidMessage, NoiseMaxNonceError)


class HandshakeFailed(Exception):
    """The other end did not prove an identity that we accept."""


class WrongPeer(HandshakeFailed):
    """The other end proved another identity than the one that was dialled."""


class HandshakeIO(Protocol):
    """What the library's handshake reads from and writes to."""

    async def read(self, n: int) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


class Ciphers(Protocol):
    """The two directions of a finished Noise handshake; each call moves a nonce."""

    def encrypt(self, data: bytes) -> bytes: ...

    def decrypt(self, data: bytes) -> bytes: ...


class Identity:
    """Our key, able to prove itself. The secret stays in the library's key object, whose repr does not show it."""

    def __init__(self, secret: bytes) -> None:
        public = coincurve.PrivateKey(secret).public_key.format()
        assert public[0] == 2, "the secret must be normalised so that its public key has even Y"
        keys = create_new_key_pair(secret)
        self.node_id = node_id(public[1:])
        # The protobuf form in which libp2p sends keys.
        self.public_key: bytes = keys.public_key.serialize()
        # A new static Noise key for each run: every handshake signs it, nobody remembers it.
        self._noise = NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)

    async def prove_inbound(self, io: HandshakeIO) -> tuple[NodeId, Ciphers]:
        """Answer a Noise handshake and learn who it is with. Raises HandshakeFailed or ChannelBroken."""
        session, ciphers = await _shaken(self._noise.secure_inbound(_raw(io)))
        try:
            peer = node_id_from_peer_id(str(session.get_remote_peer()))
        except LocalProtocolError as error:
            raise HandshakeFailed(str(error)) from None
        return peer, ciphers

    async def prove_outbound(self, io: HandshakeIO, peer: NodeId) -> Ciphers:
        """Make a Noise handshake with this peer and no other. Raises HandshakeFailed or ChannelBroken."""
        _, ciphers = await _shaken(self._noise.secure_outbound(_raw(io), ID.from_string(peer_id(peer))))
        return ciphers


def _raw(io: HandshakeIO) -> IRawConnection:
    # The handshake uses no more of a raw connection than reading and writing; `check_library` shows that it holds.
    return cast("IRawConnection", io)


async def _shaken(handshake: Awaitable[ISecureConn]) -> tuple[SecureSession, Ciphers]:
    try:
        session = await handshake
    except ChannelBroken:
        raise
    except PeerIDMismatchesPubkey:
        raise WrongPeer("another identity answers there") from None
    except Exception as error:
        # Strangers' bytes raise any of a dozen types in there.
        raise HandshakeFailed(f"the Noise handshake failed: {str(error) or type(error).__name__}") from error
    assert isinstance(session, SecureSession)
    assert isinstance(session.conn, NoiseTransportReadWriter)
    return session, session.conn.noise_state


def identify_message(identity: Identity, agent: str, protocols: Iterable[str], observed: str | None) -> bytes:
    """Our answer on IDENTIFY_PROTOCOL, length-prefixed (libp2p identify specification).

    It names no listen addresses: those go out in signed heartbeats, and only where the owner advertises them.
    """
    message = Identify(
        protocol_version=PROTOCOL_VERSION,
        agent_version=agent,
        public_key=identity.public_key,
        observed_addr=Multiaddr(observed).to_bytes() if observed else b"",
        protocols=protocols,
    )
    return length_prefixed(message)


def length_prefixed(message: Identify | HopMessage | StopMessage) -> bytes:
    """A protobuf message as libp2p sends it: after its length as a varint."""
    encoded: bytes = message.SerializeToString()
    prefix: bytes = encode_uvarint(len(encoded))
    return prefix + encoded


def multiaddr_bytes(text: str) -> bytes:
    """The binary form of a multiaddr of ours."""
    data: bytes = Multiaddr(text).to_bytes()
    return data


def multiaddr_text(data: bytes) -> str | None:
    """The text of a binary multiaddr, None when it is none: it comes from a stranger."""
    try:
        return str(Multiaddr(data))
    except (ValueError, MultiaddrError):
        return None


async def check_library() -> None:
    """Make a handshake with ourselves, so that a library that differs shows at the start and not at the first peer.

    Raises TransportError that names the version.
    """
    # The points of 1 and 2 have even Y.
    ours, theirs = (Identity(scalar.to_bytes(32, "big")) for scalar in (1, 2))
    left, right = _pipes()
    try:
        with trio.fail_after(_CHECK_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_check_inbound, theirs, right, ours.node_id)
                ciphers = await ours.prove_outbound(left, theirs.node_id)
                await left.write(ciphers.encrypt(_CHECK_TEXT))
    except Exception as error:
        raise TransportError(_misfit(f"its Noise handshake fails: {error!r}")) from error


async def _check_inbound(identity: Identity, io: _Pipe, expected: NodeId) -> None:
    found, ciphers = await identity.prove_inbound(io)
    assert found == expected
    assert ciphers.decrypt(await io.read(len(_CHECK_TEXT) + CIPHER_TAG_BYTES)) == _CHECK_TEXT


class _Pipe:
    """One end of a handshake inside the process."""

    def __init__(self, send: trio.MemorySendChannel[bytes], receive: trio.MemoryReceiveChannel[bytes]) -> None:
        self.write = send.send
        self.read = ByteReader(receive.receive).read


def _pipes() -> tuple[_Pipe, _Pipe]:
    there_send, there_receive = trio.open_memory_channel[bytes](_CHECK_MESSAGES)
    back_send, back_receive = trio.open_memory_channel[bytes](_CHECK_MESSAGES)
    return _Pipe(there_send, back_receive), _Pipe(back_send, there_receive)
