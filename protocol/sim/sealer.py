"""`SimulatedSealer`: a fake that seals nothing, for the simulator only.

The real sealer draws its own ephemeral keys, so no run with it could be repeated. This one keeps the contract, the
sizes and the failures of the real one (a prompt for another key or another context does not open), and protects
nothing: everybody who holds the bytes can read them.
"""

from __future__ import annotations

import hashlib

from protocol import constants as c
from protocol.errors import SealError


class SimulatedSealer:
    """The contract of `protocol.sealing.Sealer` without secrecy."""

    def __init__(self, seed: bytes) -> None:
        self._key = hashlib.sha256(b"simulated sealing key" + seed).digest()

    def public_key(self, wall_ms: int) -> bytes:  # noqa: ARG002 - the contract's name; this key never rotates
        return self._key

    def seal(self, plaintext: bytes, recipient: bytes, context: bytes) -> bytes:
        return _header(recipient, context, plaintext) + plaintext

    def open(self, sealed: bytes, context: bytes) -> bytes:
        plaintext = sealed[c.SEAL_OVERHEAD_BYTES :]
        if len(sealed) < c.SEAL_OVERHEAD_BYTES or sealed[: c.SEAL_OVERHEAD_BYTES] != _header(
            self._key, context, plaintext
        ):
            raise SealError("the prompt is not sealed for a key that this node holds")
        return plaintext


def _header(recipient: bytes, context: bytes, plaintext: bytes) -> bytes:
    digest = hashlib.sha256(len(context).to_bytes(4, "big") + context + recipient + plaintext).digest()
    return (digest + recipient)[: c.SEAL_OVERHEAD_BYTES]
