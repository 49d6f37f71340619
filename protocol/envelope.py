"""Signatures: one key, a domain for every kind of record, and always over the bytes received.

Records are signed with BIP-340 over a tagged hash, `SHA-256(SHA-256(tag) ‖ SHA-256(tag) ‖ body)`. HTTP requests
carry the same in `X-Infernet-Auth` version 2; version 1 of existing clients (untagged, no audience) is verified
too, for the routes that accept it (specs/02).

The auxiliary randomness of BIP-340 is passed in, so that the simulator repeats itself byte for byte.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, Final, Protocol, TypeVar

import coincurve

from protocol import codec
from protocol.errors import BadFrame, BadSignature, LocalProtocolError, Stale
from protocol.ids import NodeId
from protocol.records import Hash, NodeKey, Record, Signed, Text, UnsignedInteger, Version1
from protocol.structs import prepare

RecordType = TypeVar("RecordType", bound=Record)

AUTH_HEADER: Final = "X-Infernet-Auth"
HTTP_TAG: Final = "infernet/http/1"
AUTH_WINDOW_S: Final = 60
AUTH_HEADER_CHARACTERS_MAX: Final = 2048
_CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_HEX_64: Final = re.compile(r"[0-9a-f]{64}")
_HEX_128: Final = re.compile(r"[0-9a-f]{128}")
_NONCE: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")


@lru_cache(maxsize=256)
def _tag_prefix(tag: str) -> bytes:
    digest = hashlib.sha256(tag.encode()).digest()
    return digest + digest


def tagged_hash(tag: str, data: bytes) -> bytes:
    """BIP-340 tagged hash, 32 bytes."""
    return hashlib.sha256(_tag_prefix(tag) + data).digest()


class Signer(Protocol):
    """Whatever can sign as one node: the key in memory, or a test's."""

    @property
    def node(self) -> NodeId: ...

    def sign(self, tag: str, body: bytes) -> bytes: ...

    def payer(self, request: bytes) -> Signer:
        """The key that pays on the lease with this request number, and on no other (specs/06)."""
        ...


class SigningKey:
    """A node's secret in memory. Its repr and str never show the secret.

    The scalar is normalised so that the public key has even Y: then the x-only key of BIP-340 and the libp2p key
    `02 ‖ x` are the same point (specs/02).
    """

    __slots__ = ("_key", "_random", "_secret", "node")

    def __init__(self, secret: bytes, random_bytes: Callable[[int], bytes]) -> None:
        """Take a 32-byte scalar and a source of auxiliary randomness. Raises LocalProtocolError."""
        if len(secret) != 32:
            raise LocalProtocolError("a secret key has 32 bytes")
        number = int.from_bytes(secret, "big")
        if not 0 < number < _CURVE_ORDER:
            raise LocalProtocolError("this secret key is not a scalar of secp256k1")
        # SPEC 02: A node MUST normalise its secret so that its point has even Y,
        if coincurve.PrivateKey(secret).public_key.format()[0] == 3:
            secret = (_CURVE_ORDER - number).to_bytes(32, "big")
        self._secret = secret
        self._key = coincurve.PrivateKey(secret)
        self._random = random_bytes
        self.node = NodeId(self._key.public_key.format()[1:])

    def secret_bytes(self) -> bytes:
        """The normalised scalar: for the key file and the transport's handshake, nothing else."""
        return self._secret

    def sign(self, tag: str, body: bytes) -> bytes:
        """BIP-340 signature (64 bytes) over the tagged hash of the body."""
        return self.sign_digest(tagged_hash(tag, body))

    def sign_digest(self, digest: bytes) -> bytes:
        """BIP-340 signature over a 32-byte digest; only envelope version 1 signs one without a tag."""
        signature: bytes = self._key.sign_schnorr(digest, self._random(32))
        return signature

    def payer(self, request: bytes) -> SigningKey:
        """The key that pays on the lease with this request number, and on no other."""
        # SPEC 06: The asker MUST use a payer key for one lease only. It SHOULD derive it from its own secret and the
        #   number of the request.
        return SigningKey(tagged_hash("infernet/payer-key/1", self._secret + request), self._random)

    def __repr__(self) -> str:
        return f"SigningKey({self.node.hex()[:8]}…)"


@lru_cache(maxsize=4096)
def _public_key(node: bytes) -> coincurve.PublicKeyXOnly:
    return coincurve.PublicKeyXOnly(node)


def is_public_key(node: bytes) -> bool:
    """Whether anybody can sign with this key: it is the x of a point of secp256k1."""
    try:
        _public_key(node)
    except ValueError:
        return False
    return True


def verify_digest(node: bytes, digest: bytes, signature: bytes) -> None:
    """Check a BIP-340 signature over a 32-byte digest. Raises BadSignature."""
    try:
        good = len(signature) == 64 and _public_key(node).verify(signature, digest)
    except ValueError:
        raise BadSignature("the signer's key is not a point of secp256k1") from None
    if not good:
        raise BadSignature("the signature does not verify")


def verify(node: bytes, tag: str, body: bytes, signature: bytes) -> None:
    """Check a BIP-340 signature over the tagged hash of the body. Raises BadSignature."""
    verify_digest(node, tagged_hash(tag, body), signature)


def sign_record(record: Record, signer: Signer) -> Signed:
    """Sign a record. Raises LocalProtocolError when the signer is not whom the record names."""
    if getattr(record, record.SIGNER) != signer.node:
        raise LocalProtocolError(f"this key cannot sign a {type(record).__name__} of another node")
    body = codec.encode_record(record)
    return Signed(body, signer.sign(record.TAG, body))


def open_record(signed: Signed, cls: type[RecordType]) -> RecordType:
    """Decode a signed record and verify it over the bytes received. Raises BadFrame or BadSignature."""
    # SPEC 02: The receiver MUST verify the signature over the bytes received and MUST NOT verify over a re-encoding.
    record = codec.decode_record(signed.body, cls)
    verify(getattr(record, cls.SIGNER), cls.TAG, signed.body, signed.signature)
    return record


# ---------------------------------------------------------------- X-Infernet-Auth


class HttpRecord(Record, frozen=True):
    """What version 2 of `X-Infernet-Auth` signs. `counter` grows with every request of a node (specs/02)."""

    TAG: ClassVar[str] = HTTP_TAG
    SIGNER: ClassVar[str] = "node"

    version: Version1
    node: NodeKey
    audience: NodeKey
    method: Text
    target: str
    body_hash: Hash
    created_at_ms: UnsignedInteger
    counter: UnsignedInteger
    boot: UnsignedInteger


class AuthenticatedRequest:
    """Who signed a request, and what must be remembered so that it is not accepted again."""

    __slots__ = ("counter", "created_at_ms", "node", "nonce", "version")

    def __init__(self, version: int, node: NodeId, created_at_ms: int, counter: int | None, nonce: str | None):
        self.version = version
        self.node = node
        self.created_at_ms = created_at_ms
        self.counter = counter
        self.nonce = nonce


def sign_request(
    signer: Signer,
    audience: NodeId,
    method: str,
    target: str,
    body: bytes,
    now_ms: int,
    counter: int,
    boot: int,
) -> str:
    """The value of `X-Infernet-Auth` version 2 for a request. `target` is the path with its query, as sent."""
    record = HttpRecord(
        1, signer.node, audience, method.upper(), target, hashlib.sha256(body).digest(), now_ms, counter, boot
    )
    signed = sign_record(record, signer)
    return _base64url(codec.encode_value(signed))


def sign_request_v1(key: SigningKey, method: str, target: str, body: bytes, now_s: int, nonce: str) -> str:
    """The value of `X-Infernet-Auth` version 1, for vectors and interoperability; our nodes send version 2."""
    digest = _digest_v1(method, target, now_s, nonce, body)
    fields = {
        "v": 1,
        "pubkey": key.node.hex(),
        "created_at": now_s,
        "nonce": nonce,
        "sig": key.sign_digest(digest).hex(),
    }
    return _base64url(json.dumps(fields, separators=(",", ":")).encode())


def verify_request(
    header: str, audience: NodeId, method: str, target: str, body: bytes, now_ms: int
) -> AuthenticatedRequest:
    """Check the value of `X-Infernet-Auth`, either version, except for replay.

    The caller must then refuse a counter (version 2) or nonce (version 1) that was seen, in the same transaction
    as the effect. Raises BadFrame, BadSignature or Stale.
    """
    if len(header) > AUTH_HEADER_CHARACTERS_MAX:
        raise BadFrame("the authentication header is too long")
    try:
        data = _from_base64url(header)
    except (binascii.Error, ValueError):
        raise BadFrame("the authentication header is not base64url") from None
    if data[:1] == b"{":
        return _verify_v1(data, method, target, body, now_ms)
    return _verify_v2(data, audience, method, target, body, now_ms)


def _verify_v2(
    data: bytes, audience: NodeId, method: str, target: str, body: bytes, now_ms: int
) -> AuthenticatedRequest:
    signed = codec.decode_struct(data, Signed, codec.CONTROL_LIMITS)
    record = codec.decode_record(signed.body, HttpRecord)
    # SPEC 02: The coordinator MUST refuse an envelope whose audience is not its own key.
    if not hmac.compare_digest(record.audience, audience):
        raise BadSignature("the request is signed for another coordinator")
    # SPEC 02: The coordinator MUST refuse a request whose method, target or body is not the one that was signed.
    if record.method != method.upper() or record.target != target:
        raise BadSignature("the request is signed for another method or path")
    if not hmac.compare_digest(record.body_hash, hashlib.sha256(body).digest()):
        raise BadSignature("the request is signed for another body")
    # SPEC 02: The coordinator MUST refuse a request whose `created_at_ms` is more than 60,000 ms from its clock, in
    #   either direction.
    if abs(now_ms - record.created_at_ms) > AUTH_WINDOW_S * 1000:
        raise Stale(f"the request is {abs(now_ms - record.created_at_ms) // 1000} s away from this clock")
    verify(record.node, HTTP_TAG, signed.body, signed.signature)
    return AuthenticatedRequest(2, record.node, record.created_at_ms, record.counter, None)


def _verify_v1(data: bytes, method: str, target: str, body: bytes, now_ms: int) -> AuthenticatedRequest:
    fields = _json_object(data)
    key, created_at, nonce, signature = (fields.get(k) for k in ("pubkey", "created_at", "nonce", "sig"))
    if type(fields.get("v")) is not int or fields["v"] != 1:
        raise BadFrame("unsupported version of the authentication header")
    # SPEC 02: The coordinator MUST refuse upper-case hexadecimal in a version 1 envelope.
    if not isinstance(key, str) or not _HEX_64.fullmatch(key):
        raise BadFrame("the public key must be 64 lower-case hex digits")
    if type(created_at) is not int or not 0 <= created_at <= 2**53:
        raise BadFrame("created_at must be whole seconds")
    if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
        raise BadFrame("the nonce must be 1 to 64 letters, digits, - or _")
    if not isinstance(signature, str) or not _HEX_128.fullmatch(signature):
        raise BadFrame("the signature must be 128 lower-case hex digits")
    # The window of version 1 is counted in whole seconds, as the clients that speak it do: 60 is in, 61 is out.
    if abs(now_ms // 1000 - created_at) > AUTH_WINDOW_S:
        raise Stale(f"the request is {abs(now_ms // 1000 - created_at)} s away from this clock")
    node = NodeId(bytes.fromhex(key))
    verify_digest(node, _digest_v1(method, target, created_at, nonce, body), bytes.fromhex(signature))
    return AuthenticatedRequest(1, node, created_at * 1000, None, nonce)


def _digest_v1(method: str, target: str, created_at_s: int, nonce: str, body: bytes) -> bytes:
    canonical = "\n".join((method.upper(), target, str(created_at_s), nonce, hashlib.sha256(body).hexdigest()))
    return hashlib.sha256(canonical.encode()).digest()


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise BadFrame("the authentication header is not JSON") from None
    if not isinstance(fields, dict):
        raise BadFrame("the authentication header is not a JSON object")
    return fields


def _from_base64url(text: str) -> bytes:
    # Clients in the field pad, or use the standard alphabet; all of them are read, none is written.
    text = text.strip().rstrip("=").replace("+", "-").replace("/", "_")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# ---------------------------------------------------------------- replay

REPLAY_WINDOW: Final = 1024


class ReplayWindow:
    """Which counters of one node were used: the highest, and a bitmap of the 1,024 below it.

    The sliding window of IPsec (RFC 4303, 3.4.3): a request out of order within the window is accepted once,
    one below it never. The two integers are stored with the node's row, so the window survives a restart and no
    stranger can flush it.
    """

    __slots__ = ("bitmap", "highest")

    def __init__(self, highest: int = 0, bitmap: int = 0) -> None:
        self.highest = highest
        self.bitmap = bitmap

    def accept(self, counter: int) -> bool:
        """Mark a counter as used; False when it was used before or lies below the window."""
        if counter > self.highest:
            shift = counter - self.highest
            self.bitmap = ((self.bitmap << shift) | 1) & ((1 << REPLAY_WINDOW) - 1) if shift < REPLAY_WINDOW else 1
            self.highest = counter
            return True
        offset = self.highest - counter
        if offset >= REPLAY_WINDOW or (self.bitmap >> offset) & 1:
            return False
        self.bitmap |= 1 << offset
        return True


prepare(globals())
