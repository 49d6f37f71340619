"""Identities: one type each, and the textual forms of a key.

A node's identity is the 32-byte x-only secp256k1 public key of BIP-340. Its `npub` (NIP-19) and its libp2p
PeerId are computed from those bytes and from each other; there is no mapping table (specs/02).
"""

from __future__ import annotations

from typing import Final, NewType

import base58

from protocol import bech32
from protocol.errors import LocalProtocolError

NodeId = NewType("NodeId", bytes)
JobId = NewType("JobId", bytes)
LeaseId = NewType("LeaseId", bytes)
StreamId = NewType("StreamId", int)
RunId = NewType("RunId", int)

NODE_ID_BYTES: Final = 32
JOB_ID_BYTES: Final = 16

# libp2p peer-ids specification: identity multihash (0x00, length 37) of the protobuf PublicKey
# {type: Secp256k1 (2), data: 33-byte compressed point}. The point has even Y, so it starts with 0x02.
_PEER_ID_PREFIX: Final = bytes.fromhex("00250802122102")


def node_id(data: bytes) -> NodeId:
    """Check the length of 32 bytes and type them; whether they are a curve point shows when a signature is verified.

    Raises LocalProtocolError.
    """
    if len(data) != NODE_ID_BYTES:
        raise LocalProtocolError(f"a node id has {NODE_ID_BYTES} bytes, not {len(data)}")
    return NodeId(data)


def job_id(data: bytes) -> JobId:
    """Check the length of 16 bytes and type them. Raises LocalProtocolError."""
    if len(data) != JOB_ID_BYTES:
        raise LocalProtocolError(f"a job id has {JOB_ID_BYTES} bytes, not {len(data)}")
    return JobId(data)


def short(node: bytes) -> str:
    """The first eight hex digits of an id: for logs and tables, where the whole is noise."""
    return node[:4].hex()


def peer_id(node: NodeId) -> str:
    """The libp2p PeerId in base58btc, `16Uiu2HA...`."""
    return base58.b58encode(_PEER_ID_PREFIX + node).decode()


def node_id_from_peer_id(text: str) -> NodeId:
    """The node behind a PeerId.

    Raises LocalProtocolError when the PeerId is not of a secp256k1 key with even Y: only those have one
    Nostr identity.
    """
    try:
        data = base58.b58decode(text)
    except ValueError:
        raise LocalProtocolError(f"{text[:64]!r} is not a PeerId: it is not base58") from None
    # SPEC 02: A reader of a PeerId MUST refuse one that does not have the prefix above: it belongs to no node.
    if len(data) != len(_PEER_ID_PREFIX) + NODE_ID_BYTES or not data.startswith(_PEER_ID_PREFIX):
        raise LocalProtocolError(
            f"{text[:64]!r} is not the PeerId of an Infernet node: those come from a secp256k1 key with even Y "
            "and start with 16Uiu2HA"
        )
    return NodeId(data[len(_PEER_ID_PREFIX) :])


def npub(node: NodeId) -> str:
    """The Nostr form of a public key, `npub1...` (NIP-19)."""
    return bech32_encode("npub", node)


def node_id_from_text(text: str) -> NodeId:
    """Read a public key as 64 hex digits, `npub1...` or a PeerId. Raises LocalProtocolError."""
    text = text.strip()
    if text.startswith("npub1"):
        return node_id(bech32_decode("npub", text))
    if text.startswith("16Uiu2HA"):
        return node_id_from_peer_id(text)
    try:
        return node_id(bytes.fromhex(text))
    except ValueError:
        raise LocalProtocolError(f"{text[:80]!r} is no public key: give 64 hex digits, an npub or a PeerId") from None


def bech32_encode(prefix: str, data: bytes) -> str:
    """Encode bytes in bech32 (BIP-173) under a human-readable prefix, as NIP-19 uses it."""
    return f"{prefix}1{bech32.encode(prefix, data, bech32.BECH32)}"


def bech32_decode(prefix: str, text: str) -> bytes:
    """Decode bech32 and check prefix and checksum. Raises LocalProtocolError without repeating the text.

    The text may be a secret (`nsec1...`), so no error message quotes it.
    """
    if text.lower() != text and text.upper() != text:
        raise LocalProtocolError(f"this {prefix} mixes upper and lower case")
    found, separator, payload = text.lower().rpartition("1")
    if not separator or found != prefix:
        raise LocalProtocolError(f"expected a key that starts with {prefix}1")
    return bech32.decode(prefix, payload, bech32.BECH32, prefix)
