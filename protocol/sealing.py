"""What is sealed, for whom, and bound to what.

A prompt is sealed with HPKE (RFC 9180: X25519, HKDF-SHA256, ChaCha20-Poly1305) to the provider's sealing key, which
its heartbeat signs and which rotates daily: a key stolen later opens nothing older. The context binds the seal to
one job, attempt, asker, provider and lease. Inside is the key under which the answer's chunks are sealed.

The real sealer draws its own ephemeral keys: the one place in this package that meets randomness it was not given.
"""

from __future__ import annotations

from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol import codec
from protocol import constants as c
from protocol.envelope import tagged_hash
from protocol.errors import BadFrame, LocalProtocolError, SealError
from protocol.ids import JobId, LeaseId, NodeId
from protocol.records import ChunkBody, SealedPrompt

ROTATION_MS: Final = 24 * 60 * 60 * 1000
ANSWER_KEY_TAG: Final = "infernet/answer-key/1"
_TAG: Final = b"infernet/sealed-prompt/1"
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_LENGTH_BYTES: Final = 4


def seal_context(job: JobId, attempt: int, asker: NodeId, provider: NodeId, lease: LeaseId | None) -> bytes:
    """The HPKE `info` of a sealed prompt (specs/05)."""
    # SPEC 05: The asker MUST bind the seal to job, attempt, asker, provider and lease.
    return _TAG + job + attempt.to_bytes(4, "big") + asker + provider + (lease or bytes(32))


class Sealer(Protocol):
    """Seals bytes for another node's sealing key, and opens what was sealed for ours."""

    def public_key(self, wall_ms: int) -> bytes:
        """Our sealing key of today, 32 bytes; rotates it when its day is over."""
        ...

    def seal(self, plaintext: bytes, recipient: bytes, context: bytes) -> bytes:
        """Raises SealError when the recipient's key is no key."""
        ...

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Raises SealError."""
        ...


class HpkeSealer:
    """The real sealer. Keys live in memory only; the one before today's is kept for prompts on their way."""

    def __init__(self) -> None:
        self._keys: list[X25519PrivateKey] = []
        self._rotate_at_ms = 0

    def public_key(self, wall_ms: int) -> bytes:
        if wall_ms >= self._rotate_at_ms:
            # SPEC 05: The provider MUST change its sealing key at least once a day.
            # SPEC 05: It keeps the one before for prompts that are on their way, and no older one, and MUST NOT write
            #   any to disk.
            self._keys = [X25519PrivateKey.generate(), *self._keys[:1]]
            self._rotate_at_ms = wall_ms + ROTATION_MS
        return self._keys[0].public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def seal(self, plaintext: bytes, recipient: bytes, context: bytes) -> bytes:
        try:
            return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(recipient), context)
        except ValueError:
            raise SealError("the provider's sealing key is not an X25519 key") from None

    def open(self, sealed: bytes, context: bytes) -> bytes:
        for key in self._keys:
            try:
                return _SUITE.decrypt(sealed, key, context)
            except (InvalidTag, ValueError):
                continue
        raise SealError("the prompt is not sealed for a key that this node holds")


def seal_prompt(prompt: SealedPrompt, sealer: Sealer, recipient: bytes, context: bytes) -> bytes:
    """Encode, pad and seal a prompt. Raises LocalProtocolError when it is too large for any provider."""
    plaintext = _pad(codec.encode_value(prompt))
    sealed = sealer.seal(plaintext, recipient, context)
    if len(sealed) > c.SEALED_BYTES_MAX:
        raise LocalProtocolError(
            f"the prompt takes {len(sealed)} bytes sealed; the protocol allows {c.SEALED_BYTES_MAX}: shorten it"
        )
    return sealed


def sealed_size(prompt: SealedPrompt) -> int:
    """How many bytes `seal_prompt` makes of a prompt."""
    return len(_pad(codec.encode_value(prompt))) + c.SEAL_OVERHEAD_BYTES


def open_prompt(sealed: bytes, sealer: Sealer, context: bytes) -> SealedPrompt:
    """Open and decode a sealed prompt. Raises SealError, or BadFrame for what is inside."""
    return codec.decode_struct(_unpad(sealer.open(sealed, context)), SealedPrompt, codec.SEALED_LIMITS)


def _pad(data: bytes) -> bytes:
    # SPEC 05: The asker MUST pad the plaintext of a prompt to a power of two of at least 1,024 bytes.
    padded = _with_length(data)
    size = c.SEALED_PADDING_BYTES_MIN
    while size < len(padded):
        size *= 2
    return padded.ljust(size, b"\0")


def _with_length(data: bytes) -> bytes:
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


def _unpad(padded: bytes) -> bytes:
    length = int.from_bytes(padded[:_LENGTH_BYTES], "big")
    if len(padded) < _LENGTH_BYTES or length > len(padded) - _LENGTH_BYTES:
        raise BadFrame("the sealed plaintext states a length that it does not have")
    return padded[_LENGTH_BYTES : _LENGTH_BYTES + length]


class ChunkCipher:
    """Seals and opens the chunks of one answer: ChaCha20-Poly1305, nonce = chunk number.

    The key is derived from the response key and the order's hash, so that a response key that is ever used twice
    does not make two answers share a key, and every chunk is bound to the whole order.
    """

    __slots__ = ("_cipher",)

    def __init__(self, response_key: bytes, order_hash: bytes) -> None:
        # SPEC 05: Both sides MUST derive the answer key as the tagged hash of response key and order hash.
        self._cipher = ChaCha20Poly1305(tagged_hash(ANSWER_KEY_TAG, response_key + order_hash))

    def seal(self, number: int, output_tokens: int, owed_uusd: int, body: ChunkBody) -> bytes:
        """Seal one chunk; a number is used once per order."""
        # Without padding, the length of a chunk that holds one token tells the length of that token, and so much of
        # the text.
        # SPEC 05: The provider MUST pad the plaintext of a chunk to a multiple of 64 bytes.
        data = _with_length(codec.encode_value(body))
        data = data.ljust(-(-len(data) // c.CHUNK_PADDING_BYTES) * c.CHUNK_PADDING_BYTES, b"\0")
        return self._cipher.encrypt(number.to_bytes(12, "big"), data, _counts(output_tokens, owed_uusd))

    def open(self, number: int, output_tokens: int, owed_uusd: int, sealed: bytes) -> ChunkBody:
        """Raises SealError, or BadFrame for what is inside."""
        try:
            data = self._cipher.decrypt(number.to_bytes(12, "big"), sealed, _counts(output_tokens, owed_uusd))
        except InvalidTag:
            raise SealError("a chunk does not open under the key of this job") from None
        return codec.decode_struct(_unpad(data), ChunkBody, codec.JOB_LIMITS)


def _counts(output_tokens: int, owed_uusd: int) -> bytes:
    """The associated data of a chunk: what its sender claims in the clear."""
    return output_tokens.to_bytes(8, "big") + owed_uusd.to_bytes(8, "big")
