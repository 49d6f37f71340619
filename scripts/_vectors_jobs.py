"""Vectors of specs/05: seals, chunks, the running hash, cost, and whole conversations."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from msgspec.structs import replace

from _vectors_common import ASKER, JOB, NOW_MS, PROVIDER, Vector, file, invalid, plain, signing_key, valid
from protocol import codec
from protocol import constants as c
from protocol.codec import encode_message
from protocol.envelope import SigningKey, sign_record, tagged_hash
from protocol.ids import JobId, LeaseId, NodeId
from protocol.jobs import cost_uusd, default_sampling, order_extensions, order_hash, running_hash
from protocol.messages import Cancel, Chunk, JobAccept, JobOpen, JobReject, Message, Part, Progress, Queued, Receipt
from protocol.records import (
    ChatMessage,
    ChunkBody,
    JobAcceptRecord,
    JobOpenRecord,
    JobRequest,
    Kind,
    Outcome,
    ReceiptRecord,
    SealedPrompt,
)
from protocol.sealing import ANSWER_KEY_TAG, ChunkCipher, seal_context, seal_prompt

FINGERPRINT = hashlib.sha256(b"weights").digest()


def secret_of(name: str) -> bytes:
    """32 bytes that are always the same."""
    return hashlib.sha256(f"infernet vector: {name}".encode()).digest()


# ---------------------------------------------------------------- HPKE with a known ephemeral key

# RFC 9180: DHKEM(X25519, HKDF-SHA256) 0x0020, HKDF-SHA256 0x0001, ChaCha20-Poly1305 0x0003, mode base.
_KEM_SUITE = b"KEM" + bytes.fromhex("0020")
_HPKE_SUITE = b"HPKE" + bytes.fromhex("002000010003")


def _extract(suite: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + key, "sha256")


def _expand(suite: bytes, secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """One block of HKDF-Expand is 32 bytes, and nothing here needs more."""
    return hmac.digest(secret, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info + b"\x01", "sha256")[
        :length
    ]


def seal_with(ephemeral: bytes, recipient: bytes, info: bytes, plaintext: bytes) -> bytes:
    """HPKE as the library does it, but with an ephemeral key that is given: written out, so that two agree."""
    secret = X25519PrivateKey.from_private_bytes(ephemeral)
    encapsulated = secret.public_key().public_bytes_raw()
    shared = secret.exchange(X25519PublicKey.from_public_bytes(recipient))
    pseudorandom = _extract(_KEM_SUITE, b"", b"eae_prk", shared)
    shared = _expand(_KEM_SUITE, pseudorandom, b"shared_secret", encapsulated + recipient, 32)
    context = b"\0" + _extract(_HPKE_SUITE, b"", b"psk_id_hash", b"") + _extract(_HPKE_SUITE, b"", b"info_hash", info)
    scheduled = _extract(_HPKE_SUITE, shared, b"secret", b"")
    key = _expand(_HPKE_SUITE, scheduled, b"key", context, 32)
    nonce = _expand(_HPKE_SUITE, scheduled, b"base_nonce", context, 12)
    return encapsulated + ChaCha20Poly1305(key).encrypt(nonce, plaintext, b"")


class KnownSealer:
    """A sealer whose every random choice is given."""

    def __init__(self, ephemeral: bytes) -> None:
        self._ephemeral = ephemeral
        self.plaintext = b""

    def public_key(self, wall_ms: int) -> bytes:
        """Nobody seals for it."""
        raise NotImplementedError(wall_ms)

    def seal(self, plaintext: bytes, recipient: bytes, context: bytes) -> bytes:
        """Seal, and remember what."""
        self.plaintext = plaintext
        return seal_with(self._ephemeral, recipient, context, plaintext)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """It opens nothing."""
        raise NotImplementedError(sealed, context)


SEALING_SECRET = secret_of("sealing key")
SEALING_KEY = X25519PrivateKey.from_private_bytes(SEALING_SECRET).public_key().public_bytes_raw()
EPHEMERAL = secret_of("ephemeral key")
RESPONSE_KEY = secret_of("response key")

# ---------------------------------------------------------------- seals


def sealing() -> Vector:
    """sealing.json."""
    return file(
        "Sealed prompts. `sealing_secret` is the provider's X25519 key; with `ephemeral_secret` sealing gives exactly "
        "`sealed`. What is not valid does not open, or holds no prompt.",
        [*_good_seals(), *_bad_seals()],
    )


_CONTEXT: dict[str, Any] = {
    "job": JOB,
    "attempt": 1,
    "asker": ASKER.node,
    "provider": PROVIDER.node,
    "lease": None,
}
_CHAT = JobRequest(messages=(ChatMessage("system", "Be brief."), ChatMessage("user", "Größe von Zürich?")))


def _good_seals() -> Iterator[Vector]:
    yield _seal("a chat", _CHAT)
    yield _seal("a chat that is paid for", _CHAT, lease=LeaseId(secret_of("lease")), attempt=2**32 - 1)
    yield _seal("a completion with stop strings", JobRequest(prompt="Once upon", stop=("\n\n", "The End")))
    yield _seal("a continuation", replace(_CHAT, continuation="Around 88 "))
    spelt = replace(_CHAT, continuation="Around 88 ", continuation_ids=bytes.fromhex("00002a7d0000011c"))
    yield _seal("a continuation and the tokens that spell its beginning", spelt)
    yield _seal("embeddings", JobRequest(inputs=("one", "", "three")))
    padding = 1024 - 4 - len(codec.encode_value(SealedPrompt(RESPONSE_KEY, JobRequest(prompt="x" * 500))))
    yield _seal("a plaintext of exactly 1,024 bytes", JobRequest(prompt="x" * (500 + padding)))
    yield _seal("one byte more: 2,048", JobRequest(prompt="x" * (501 + padding)))


def _seal(comment: str, request: JobRequest, **changes: Any) -> Vector:
    context = {**_CONTEXT, **changes}
    info = seal_context(**context)
    sealer = KnownSealer(EPHEMERAL)
    prompt = SealedPrompt(RESPONSE_KEY, request)
    sealed = seal_prompt(prompt, sealer, SEALING_KEY, info)
    return valid(
        comment,
        sealing_secret=SEALING_SECRET,
        sealing_key=SEALING_KEY,
        ephemeral_secret=EPHEMERAL,
        context=context,
        info=info,
        prompt=prompt,
        plaintext=sealer.plaintext,
        sealed=sealed,
        sealed_hash=hashlib.sha256(sealed).digest(),
    )


def _bad_seals() -> Iterator[Vector]:
    info = seal_context(**_CONTEXT)
    good = seal_prompt(SealedPrompt(RESPONSE_KEY, _CHAT), KnownSealer(EPHEMERAL), SEALING_KEY, info)

    def bad(comment: str, sealed: bytes = good, secret: bytes = SEALING_SECRET, **changes: Any) -> Vector:
        context = {**_CONTEXT, **changes}
        return invalid(comment, sealing_secret=secret, context=context, info=seal_context(**context), sealed=sealed)

    yield bad("sealed for another job", job=JobId(bytes(16)))
    yield bad("sealed for another attempt", attempt=2)
    yield bad("sealed by another asker", asker=NodeId(bytes(32)))
    yield bad("sealed for another provider", provider=ASKER.node)
    yield bad("sealed for another lease", lease=LeaseId(secret_of("lease")))
    yield bad("sealed for another key", secret=secret_of("another sealing key"))
    yield bad("a changed ephemeral key", bytes([good[0] ^ 1]) + good[1:])
    yield bad("a changed ciphertext", good[:100] + bytes([good[100] ^ 1]) + good[101:])
    yield bad("a changed tag", good[:-1] + bytes([good[-1] ^ 1]))
    yield bad("one byte short", good[:-1])
    yield bad("48 bytes", good[:48])
    yield bad("nothing", b"")
    encoded = codec.encode_value(SealedPrompt(RESPONSE_KEY, _CHAT))
    room = 1_020 - len(codec.encode_value(SealedPrompt(RESPONSE_KEY, JobRequest(prompt="x" * 500))))
    full = codec.encode_value(SealedPrompt(RESPONSE_KEY, JobRequest(prompt="x" * (500 + room))))
    for comment, plaintext in (
        ("a length one byte beyond the plaintext", (1_021).to_bytes(4, "big") + full),
        ("a length of 4 gigabytes", b"\xff" * 4 + full),
        ("an empty plaintext", b""),
        ("a plaintext of three bytes", b"\0\0\0"),
        ("a length one byte too long", (len(encoded) + 1).to_bytes(4, "big") + encoded.ljust(1_020, b"\0")),
        ("a map", b"\0\0\0\x01\x80" + bytes(1_019)),
        ("a response key of 31 bytes", _padded(codec.encode_value([RESPONSE_KEY[:31], []]))),
        ("a stop string that is empty", _padded(codec.encode_value([RESPONSE_KEY, [[], "x", [], "", [""]]]))),
    ):
        yield bad(f"opens to {comment}", seal_with(EPHEMERAL, SEALING_KEY, info, plaintext))


def _padded(encoded: bytes) -> bytes:
    return (len(encoded).to_bytes(4, "big") + encoded).ljust(1_024, b"\0")


# ---------------------------------------------------------------- chunks

ORDER_HASH = secret_of("order hash")


def chunks() -> Vector:
    """chunks.json."""
    cipher = ChunkCipher(RESPONSE_KEY, ORDER_HASH)
    bodies: tuple[tuple[str, int, int, int, ChunkBody], ...] = (
        ("the first token", 1, 1, 0, ChunkBody("Par")),
        ("a text that is not ASCII", 2, 5, 0, ChunkBody("Grüße, 世界 🙂")),
        ("a text and the tokens that spell it", 6, 22, 0, ChunkBody(" Paris", token_ids=bytes.fromhex("00001bd1"))),
        ("tokens without text", 3, 6, 0, ChunkBody()),
        ("52 characters fill 64 bytes", 4, 20, 123_456, ChunkBody("x" * 52)),
        ("53 characters need 128", 5, 21, 123_457, ChunkBody("x" * 53)),
        ("an embedding", 1, 0, 7, ChunkBody("", 2, bytes.fromhex("0000803f000000bf"))),
        ("the largest numbers", 2**63 - 1, 2**32 - 1, 2**63 - 1, ChunkBody("end")),
    )
    return file(
        "Sealed chunks under the key that response key and order hash give.",
        [*(_chunk(cipher, *each) for each in bodies), *_bad_chunks(cipher)],
    )


def _chunk(cipher: ChunkCipher, comment: str, number: int, tokens: int, owed: int, body: ChunkBody) -> Vector:
    sealed = cipher.seal(number, tokens, owed, body)
    key = tagged_hash(ANSWER_KEY_TAG, RESPONSE_KEY + ORDER_HASH)
    associated = tokens.to_bytes(8, "big") + owed.to_bytes(8, "big")
    nonce = number.to_bytes(12, "big")
    return valid(
        comment,
        response_key=RESPONSE_KEY,
        order_hash=ORDER_HASH,
        key=key,
        number=number,
        output_tokens=tokens,
        owed_uusd=owed,
        nonce=nonce,
        associated=associated,
        body=body,
        plaintext=ChaCha20Poly1305(key).decrypt(nonce, sealed, associated),
        sealed=sealed,
    )


def _bad_chunks(cipher: ChunkCipher) -> Iterator[Vector]:
    sealed = cipher.seal(3, 9, 5, ChunkBody("text"))

    def bad(comment: str, data: bytes = sealed, **changes: Any) -> Vector:
        fields: dict[str, Any] = {
            "response_key": RESPONSE_KEY,
            "order_hash": ORDER_HASH,
            "number": 3,
            "output_tokens": 9,
            "owed_uusd": 5,
        }
        return invalid(comment, **{**fields, **changes}, sealed=data)

    yield bad("another number", number=4)
    yield bad("another count", output_tokens=10)
    yield bad("another debt", owed_uusd=4)
    yield bad("another order", order_hash=bytes(32))
    yield bad("another response key", response_key=bytes(32))
    yield bad("a changed byte", bytes([sealed[0] ^ 1]) + sealed[1:])
    yield bad("a byte short", sealed[:-1])
    yield bad("15 bytes", sealed[:15])
    key = tagged_hash(ANSWER_KEY_TAG, RESPONSE_KEY + ORDER_HASH)
    associated = (9).to_bytes(8, "big") + (5).to_bytes(8, "big")
    for comment, plaintext in (
        ("nothing", b""),
        ("a length beyond the plaintext", (61).to_bytes(4, "big") + bytes(60)),
        ("an integer for the text", b"\0\0\0\x02\x91\x05".ljust(64, b"\0")),
        ("an unpadded body", codec.encode_value(ChunkBody("text"))),
    ):
        yield bad(f"opens to {comment}", ChaCha20Poly1305(key).encrypt((3).to_bytes(12, "big"), plaintext, associated))


def running_hashes() -> Vector:
    """running-hash.json."""
    return file(
        "h(0) is the order hash; each chunk is folded in. `hashes` has one entry more than `chunks`.",
        [
            _chain("no chunk", []),
            _chain("one chunk", [(1, 1, 0, b"\x01" * 80)]),
            _chain("three chunks", [(1, 1, 17, b"\x01" * 80), (2, 17, 23, b"\x02" * 144), (3, 18, 24, bytes(80))]),
            _chain("the largest counts", [(2**63 - 1, 2**32 - 1, 2**63 - 1, b"")]),
            invalid(
                "a receipt whose chain has two chunks in another order",
                order_hash=ORDER_HASH,
                chunks=[_link(1, 1, 0, b"\x01" * 80), _link(2, 2, 0, b"\x02" * 80)],
                hashes=_chain("", [(2, 2, 0, b"\x02" * 80), (1, 1, 0, b"\x01" * 80)])["hashes"],
            ),
        ],
    )


def _link(number: int, tokens: int, owed: int, sealed: bytes) -> Vector:
    return {"number": number, "output_tokens": tokens, "owed_uusd": owed, "sealed": sealed}


def _chain(comment: str, links: list[tuple[int, int, int, bytes]]) -> Vector:
    hashes = [ORDER_HASH]
    for number, tokens, owed, sealed in links:
        hashes.append(running_hash(hashes[-1], number, tokens, owed, sealed))
    return valid(comment, order_hash=ORDER_HASH, chunks=[_link(*link) for link in links], hashes=hashes)


def cost() -> Vector:
    """cost.json."""
    cases = (
        ("free", 0, 0, 0, 1_000, 1_000),
        ("nothing counted yet", 100_000, 400_000, 0, 0, 0),
        ("a job price alone", 0, 0, 25, 1_000, 1_000),
        ("exactly one micro-USD", 1, 0, 0, 1_000_000, 0),
        ("a millionth of a micro-USD rounds up to one", 1, 0, 0, 1, 0),
        ("both sums are rounded once, together", 1, 1, 0, 500_000, 500_000),
        ("one above", 1, 1, 0, 500_000, 500_001),
        ("an ordinary chat", 100_000, 400_000, 10, 57, 200),
        ("the highest prices and counts", 10**12, 10**12, 10**12, 2**32 - 1, 2**32 - 1),
    )
    vectors = [
        _cost(comment, price_in, price_out, price_job, prompt, output)
        for comment, price_in, price_out, price_job, prompt, output in cases
    ]
    wrong = {**vectors[7], "comment": "rounded for prompt and output apart", "valid": False, "cost_uusd": 97}
    return file("Cost in micro-USD of cumulative counts at the prices of an order.", [*vectors, wrong])


def _cost(comment: str, price_in: int, price_out: int, price_job: int, prompt: int, output: int) -> Vector:
    order = replace(_order(bytes(1)), price_in_uusd=price_in, price_out_uusd=price_out, price_job_uusd=price_job)
    return valid(
        comment,
        price_in_uusd=price_in,
        price_out_uusd=price_out,
        price_job_uusd=price_job,
        prompt_tokens=prompt,
        output_tokens=output,
        cost_uusd=cost_uusd(order, prompt, output),
    )


# ---------------------------------------------------------------- conversations

OTHER_ASKER = signing_key("another asker")
_REQUEST = JobRequest(messages=(ChatMessage("user", "What is the capital of France?"),), stop=("\n\n",))


def _order(sealed: bytes, **changes: Any) -> JobOpenRecord:
    order = JobOpenRecord(
        version=1,
        job=JOB,
        attempt=1,
        asker=ASKER.node,
        provider=PROVIDER.node,
        lease=None,
        reservation=None,
        kind=Kind.CHAT,
        model="smollm2:135m",
        fingerprint=FINGERPRINT,
        sampling=default_sampling(42),
        prompt_tokens_max=8_192,
        output_tokens_max=64,
        price_in_uusd=0,
        price_out_uusd=0,
        price_job_uusd=0,
        prepay_max_uusd=0,
        sealed_hash=hashlib.sha256(sealed).digest(),
        sealed_bytes=len(sealed),
        created_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 60_000,
        extensions=(),
    )
    return replace(order, **changes)


class Conversation:
    """A job that is written down step by step, each with the moment at which it is sent."""

    def __init__(
        self, request: JobRequest = _REQUEST, *, asker: SigningKey = ASKER, attempt: int = 1, **changes: Any
    ) -> None:
        context = seal_context(JOB, attempt, asker.node, PROVIDER.node, None)
        self.request = request
        self.attempt = attempt
        self.sealed = seal_prompt(SealedPrompt(RESPONSE_KEY, request), KnownSealer(EPHEMERAL), SEALING_KEY, context)
        self.order = _order(self.sealed, asker=asker.node, attempt=attempt, **changes)
        self.signed = sign_record(self.order, asker)
        self.order_hash = order_hash(self.signed.body)
        self.cipher = ChunkCipher(RESPONSE_KEY, self.order_hash)
        self.running_hash = self.order_hash
        self.chunks = self.tokens = 0
        self.steps: list[Vector] = []

    def say(self, sender: str, at_ms: int, message: Message) -> None:
        """Somebody sends a message."""
        self.steps.append(
            {
                "from": sender,
                "at_ms": at_ms,
                "message": type(message).__name__,
                "fields": plain(message),
                "frame": encode_message(message).hex(),
            }
        )

    def engine(self, at_ms: int, event: str, **fields: Any) -> None:
        """The provider's engine reports something: for implementations that can be driven so far."""
        self.steps.append({"from": "engine", "at_ms": at_ms, "event": event, **fields})

    def open(self, *, waits_ms: int | None = None) -> None:
        """The order, with its prompt in three pieces; the provider says at once that it has it, or that it waits."""
        self.say("asker", 0, JobOpen(self.signed, self.sealed[:500]))
        self.say("provider", 0, self.progress() if waits_ms is None else self.queued(waits_ms))
        self.say("asker", 0, Part(JOB, self.attempt, 0, self.sealed[500:1_000]))
        self.say("asker", 0, Part(JOB, self.attempt, 1, self.sealed[1_000:]))

    def progress(self, done_tokens: int = 0, total_tokens: int = 0) -> Progress:
        """How far the prompt is."""
        return Progress(JOB, self.attempt, done_tokens, total_tokens)

    def queued(self, wait_ms: int) -> Queued:
        """The order is next, in so long."""
        return Queued(JOB, self.attempt, 0, wait_ms)

    def accept(self, at_ms: int, prompt_tokens: int) -> None:
        """The provider has counted the prompt."""
        self.engine(at_ms, "started", prompt_tokens=prompt_tokens)
        record = JobAcceptRecord(
            *(1, JOB, self.attempt, PROVIDER.node, None, self.order_hash, FINGERPRINT, prompt_tokens),
            *(0, 0, 0, 0, NOW_MS + at_ms, ()),
        )
        self.say("provider", at_ms, JobAccept(sign_record(record, PROVIDER)))

    def chunk(self, at_ms: int, text: str, tokens: int, token_ids: bytes = b"") -> None:
        """The next chunk."""
        self.chunks, self.tokens = self.chunks + 1, tokens
        sealed = self.cipher.seal(self.chunks, tokens, 0, ChunkBody(text, token_ids=token_ids))
        self.running_hash = running_hash(self.running_hash, self.chunks, tokens, 0, sealed)
        self.say("provider", at_ms, Chunk(JOB, self.attempt, self.chunks, tokens, 0, sealed))

    def receipt(self, at_ms: int, prompt_tokens: int, times: tuple[int, int, int], outcome: Outcome, code: int) -> None:
        """The end of an accepted order; `times` are those of acceptance, first and last chunk."""
        accepted_ms, first_ms, last_ms = times
        record = ReceiptRecord(
            *(1, JOB, self.attempt, PROVIDER.node, self.order.asker, None, self.order_hash, FINGERPRINT),
            *(prompt_tokens, self.tokens, self.chunks, self.running_hash, 0, 0, NOW_MS + accepted_ms),
            *(first_ms - accepted_ms, last_ms - accepted_ms, outcome, code, ()),
        )
        self.say("provider", at_ms, Receipt(sign_record(record, PROVIDER)))

    def vector(self, comment: str, *, is_valid: bool = True, **more: Any) -> Vector:
        """The whole, with every secret that explains it."""
        fields = {
            "asker_secret": ASKER.secret_bytes(),
            "provider_secret": PROVIDER.secret_bytes(),
            "sealing_secret": SEALING_SECRET,
            "ephemeral_secret": EPHEMERAL,
            "response_key": RESPONSE_KEY,
            "started_at_ms": NOW_MS,
            "request": self.request,
            "order": self.order,
            "sealed": self.sealed,
            "order_hash": self.order_hash,
            "running_hash": self.running_hash,
            **more,
        }
        return {**(valid if is_valid else invalid)(comment, **fields), "steps": self.steps}


def job_conversation() -> Vector:
    """job-conversation.json."""
    return file(
        "Whole jobs. Times are milliseconds after `started_at_ms`; frames with the same sender and time may travel as "
        "one piece. Steps from `engine` say what the provider's engine reports, which no wire carries. In what is not "
        "valid, the asker refuses the last step. With an `other_order` the provider has one slot, which that order, of "
        "another asker on another stream, holds until the engine reports of it (`other`).",
        [_answered(), _cancelled(), _refused(), _cancelled_before_acceptance(), _waits(), _continued(), *_dishonest()],
    )


def _answer(talk: Conversation) -> None:
    talk.open()
    talk.accept(40, 37)
    talk.engine(900, "progress", done_tokens=20, total_tokens=37)
    # A second after the provider was heard last, with the figures as they stand.
    talk.say("provider", 1_040, Progress(JOB, 1, 20, 37))
    talk.engine(1_500, "text", text="The", output_tokens=1)
    talk.chunk(1_500, "The", 1)
    talk.engine(1_510, "text", text=" capital", output_tokens=2)
    talk.engine(1_515, "text", text=" is", output_tokens=3)
    # Twenty milliseconds after the last chunk. The one after it is older than that when the next token comes.
    talk.chunk(1_520, " capital is", 3)
    talk.engine(1_560, "text", text=" Paris.", output_tokens=5)
    talk.chunk(1_560, " Paris.", 5)


def _answered() -> Vector:
    talk = Conversation()
    _answer(talk)
    # The engine drew the stop string: one token that leaves no text.
    talk.engine(1_600, "finished", outcome=1, output_tokens=6)
    talk.chunk(1_600, "", 6)
    talk.receipt(1_600, 37, (40, 1_500, 1_600), Outcome.STOP, 0)
    return talk.vector("a chat, from order to receipt", text="The capital is Paris.")


def _cancelled() -> Vector:
    talk = Conversation()
    _answer(talk)
    talk.say("asker", 1_585, Cancel(JOB, 1, 65))
    talk.engine(1_590, "finished", outcome=3, output_tokens=6)
    talk.receipt(1_590, 37, (40, 1_500, 1_560), Outcome.CANCELLED, 65)
    return talk.vector("a chat that is cancelled in the middle", text="The capital is Paris.")


def _refused() -> Vector:
    talk = Conversation()
    talk.open()
    talk.engine(30, "failed", code=5, text="the prompt has 9000 tokens; the model holds 8192")
    text = "the prompt has 9000 tokens; the model holds 8192"
    talk.say("provider", 30, JobReject(JOB, 1, 5, 0, text, (), None))
    return talk.vector("an order that is refused once the prompt is counted", text="")


def _cancelled_before_acceptance() -> Vector:
    talk = Conversation()
    talk.open()
    talk.say("asker", 10, Cancel(JOB, 1, 65))
    talk.engine(20, "finished", outcome=3, output_tokens=0)
    talk.say("provider", 20, JobReject(JOB, 1, 65, 0, "the job was stopped", (), None))
    return talk.vector("an order that is cancelled before it is accepted", text="")


def _waits() -> Vector:
    other = Conversation(asker=OTHER_ASKER)
    opening = encode_message(JobOpen(other.signed, other.sealed))
    talk = Conversation(extensions=order_extensions(may_hand_off=False, queue_wait_ms=20_000))
    # Nothing was measured yet, so this is a guess of the implementation that wrote it down.
    talk.open(waits_ms=10_000)
    talk.say("provider", 2_250, talk.queued(7_750))
    talk.engine(3_000, "finished", outcome=1, output_tokens=0, other=True)
    talk.say("provider", 3_000, talk.progress())
    talk.accept(3_040, 37)
    talk.engine(3_100, "text", text="Paris.", output_tokens=2)
    talk.chunk(3_100, "Paris.", 2)
    talk.engine(3_140, "finished", outcome=1, output_tokens=2)
    talk.receipt(3_140, 37, (3_040, 3_100, 3_100), Outcome.STOP, 0)
    return talk.vector("an order that waits for a slot", text="Paris.", other_order=opening)


def _continued() -> Vector:
    text, ids = "The capital is", bytes.fromhex("00000504000010fb00000133")
    request = replace(_REQUEST, continuation=text, continuation_ids=ids)
    talk = Conversation(request, attempt=2, output_tokens_max=61)
    talk.open()
    talk.accept(40, 40)
    talk.engine(90, "text", text=" Paris.", output_tokens=2, token_ids="00001bd10000000e")
    talk.chunk(90, " Paris.", 2, bytes.fromhex("00001bd10000000e"))
    talk.engine(120, "finished", outcome=1, output_tokens=2)
    talk.receipt(120, 40, (40, 90, 90), Outcome.STOP, 0)
    return talk.vector("an answer that another provider has begun", text=" Paris.")


def _dishonest() -> Iterator[Vector]:
    for comment, tokens, chunks, hashed in (
        ("the receipt states a token more than arrived", 6, 3, None),
        ("the receipt states a chunk less than arrived", 5, 2, None),
        ("the receipt chains something else", 5, 3, bytes(32)),
    ):
        talk = Conversation()
        _answer(talk)
        talk.tokens, talk.chunks = tokens, chunks
        talk.running_hash = hashed or talk.running_hash
        talk.receipt(1_600, 37, (40, 1_500, 1_560), Outcome.STOP, 0)
        yield talk.vector(comment, is_valid=False)
    talk = Conversation()
    _answer(talk)
    talk.chunks += 1
    talk.chunk(1_600, "a chunk is missing before this one", 6)
    yield talk.vector("a chunk that is not the next one", is_valid=False)
    talk = Conversation()
    _answer(talk)
    talk.chunk(1_600, "too much", c.OUTPUT_TOKENS_MAX)
    yield talk.vector("a chunk with more tokens than were ordered", is_valid=False)
    talk = Conversation()
    talk.open()
    talk.accept(40, 8_193)
    yield talk.vector("an acceptance with more prompt tokens than the order allows", is_valid=False)
    talk = Conversation()
    talk.open()
    talk.chunk(40, "too early", 1)
    yield talk.vector("a chunk before the acceptance", is_valid=False)
