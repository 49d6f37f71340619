"""protocol/sealing.py: who can open what, what a length tells, and how keys rotate."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocol import codec
from protocol import constants as c
from protocol.envelope import tagged_hash
from protocol.errors import BadFrame, LocalProtocolError, SealError
from protocol.ids import JobId, LeaseId, NodeId
from protocol.records import ChatMessage, ChunkBody, JobRequest, SealedPrompt
from protocol.sealing import ROTATION_MS, ChunkCipher, HpkeSealer, open_prompt, seal_context, seal_prompt

JOB, ASKER, PROVIDER, LEASE = JobId(b"j" * 16), NodeId(b"a" * 32), NodeId(b"p" * 32), LeaseId(b"l" * 32)
CONTEXT = seal_context(JOB, 1, ASKER, PROVIDER, None)
PROMPT = SealedPrompt(b"k" * 32, JobRequest(messages=(ChatMessage("user", "hello"),)))
CHUNK_TAG_BYTES = 16


def with_text(length: int) -> SealedPrompt:
    return SealedPrompt(b"k" * 32, JobRequest(prompt="x" * length))


class Plain:
    """A sealer that seals nothing, to look at what it is given."""

    def public_key(self, wall_ms: int) -> bytes:
        return bytes(32)

    def seal(self, plaintext: bytes, recipient: bytes, context: bytes) -> bytes:
        return plaintext

    def open(self, sealed: bytes, context: bytes) -> bytes:
        return sealed


def test_the_provider_opens_what_was_sealed_for_it() -> None:
    sealer = HpkeSealer()
    sealed = seal_prompt(PROMPT, HpkeSealer(), sealer.public_key(0), CONTEXT)
    assert open_prompt(sealed, sealer, CONTEXT) == PROMPT


def test_two_seals_of_one_prompt_have_nothing_in_common() -> None:
    sealer = HpkeSealer()
    one, other = (seal_prompt(PROMPT, sealer, sealer.public_key(0), CONTEXT) for _ in range(2))
    assert one[:32] != other[:32]
    assert one[32:] != other[32:]


@pytest.mark.parametrize(
    "context",
    [
        seal_context(JobId(b"J" * 16), 1, ASKER, PROVIDER, None),
        seal_context(JOB, 2, ASKER, PROVIDER, None),
        seal_context(JOB, 1, NodeId(b"A" * 32), PROVIDER, None),
        seal_context(JOB, 1, ASKER, NodeId(b"P" * 32), None),
        seal_context(JOB, 1, ASKER, PROVIDER, LEASE),
        seal_context(JOB, 1, PROVIDER, ASKER, None),
        b"",
    ],
    ids=["job", "attempt", "asker", "provider", "lease", "roles", "none"],
)
def test_a_seal_is_bound_to_its_job(context: bytes) -> None:
    sealer = HpkeSealer()
    sealed = seal_prompt(PROMPT, sealer, sealer.public_key(0), CONTEXT)
    with pytest.raises(SealError):
        open_prompt(sealed, sealer, context)


def test_nobody_else_opens_it() -> None:
    sealer, other = HpkeSealer(), HpkeSealer()
    other.public_key(0)
    with pytest.raises(SealError):
        open_prompt(seal_prompt(PROMPT, sealer, sealer.public_key(0), CONTEXT), other, CONTEXT)
    with pytest.raises(SealError):
        open_prompt(seal_prompt(PROMPT, sealer, sealer.public_key(0), CONTEXT), HpkeSealer(), CONTEXT)


@pytest.mark.parametrize("sealed", [b"", b"x", bytes(32), bytes(47), bytes(48), bytes(2000)], ids=len)
def test_what_is_no_seal_does_not_open(sealed: bytes) -> None:
    sealer = HpkeSealer()
    sealer.public_key(0)
    with pytest.raises(SealError):
        sealer.open(sealed, CONTEXT)


@pytest.mark.parametrize(
    "key", [b"", bytes(31), bytes(33), bytes(32), b"\x01" + bytes(31)], ids=["0", "31", "33", "zero", "one"]
)
def test_a_sealing_key_that_is_none_is_the_providers_fault(key: bytes) -> None:
    with pytest.raises(SealError):
        seal_prompt(PROMPT, HpkeSealer(), key, CONTEXT)


def test_keys_change_once_a_day_and_the_last_one_still_opens() -> None:
    sealer = HpkeSealer()
    first = sealer.public_key(1_000)
    assert sealer.public_key(1_000 + ROTATION_MS - 1) == first
    sealed = seal_prompt(PROMPT, HpkeSealer(), first, CONTEXT)
    second = sealer.public_key(1_000 + ROTATION_MS)
    assert second != first
    assert open_prompt(sealed, sealer, CONTEXT) == PROMPT
    assert open_prompt(seal_prompt(PROMPT, HpkeSealer(), second, CONTEXT), sealer, CONTEXT) == PROMPT
    sealer.public_key(1_000 + 2 * ROTATION_MS)
    with pytest.raises(SealError):
        open_prompt(sealed, sealer, CONTEXT)


# ---------------------------------------------------------------- padding of prompts


def encoded_bytes(prompt: SealedPrompt) -> int:
    return len(codec.encode_value(prompt))


EMPTY = encoded_bytes(with_text(0))


@pytest.mark.parametrize(
    ("encoded", "padded"),
    [(EMPTY, 1024), (1020, 1024), (1021, 2048), (2044, 2048), (2045, 4096), (65_532, 65_536), (65_533, 131_072)],
)
def test_a_prompt_is_padded_to_a_power_of_two(encoded: int, padded: int) -> None:
    prompt = next(p for extra in range(8) if encoded_bytes(p := with_text(max(0, encoded - EMPTY - extra))) == encoded)
    assert len(seal_prompt(prompt, Plain(), bytes(32), CONTEXT)) == padded
    sealer = HpkeSealer()
    assert len(seal_prompt(prompt, sealer, sealer.public_key(0), CONTEXT)) == padded + c.SEAL_OVERHEAD_BYTES


def test_the_bytes_under_the_seal() -> None:
    plaintext = seal_prompt(PROMPT, Plain(), bytes(32), CONTEXT)
    encoded = codec.encode_value(PROMPT)
    assert plaintext == len(encoded).to_bytes(4, "big") + encoded + bytes(1024 - 4 - len(encoded))
    assert encoded.hex().startswith("92" + "c420" + "6b" * 32 + "96" + "91" + "92" + "a4" + b"user".hex())


def test_the_largest_prompt_fills_its_seal_and_a_larger_one_is_refused_here() -> None:
    sealer = HpkeSealer()
    overhead = encoded_bytes(with_text(100_000)) - 100_000 + 4
    largest = with_text(1024 * 1024 - overhead)
    sealed = seal_prompt(largest, sealer, sealer.public_key(0), CONTEXT)
    assert len(sealed) == c.SEALED_BYTES_MAX
    assert open_prompt(sealed, sealer, CONTEXT) == largest
    with pytest.raises(LocalProtocolError, match="shorten it"):
        seal_prompt(with_text(1024 * 1024 - overhead + 1), sealer, sealer.public_key(0), CONTEXT)


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\x01",
        b"\xff\xff\xff\xff" + bytes(1020),
        (1021).to_bytes(4, "big") + bytes(1020),
        bytes(1024),
        b"\0\0\0\x01\xc3" + bytes(1019),
        b"\0\0\0\x02\x92\xc0" + bytes(1018),
    ],
    ids=[
        "nothing",
        "three bytes",
        "one announced",
        "four gigabytes",
        "one too many",
        "empty",
        "a boolean",
        "cut short",
    ],
)
def test_hostile_plaintext_is_a_bad_frame(plaintext: bytes) -> None:
    with pytest.raises(BadFrame):
        open_prompt(plaintext, Plain(), CONTEXT)


def test_a_length_beyond_the_plaintext_is_refused_even_where_the_rest_would_do() -> None:
    encoded = codec.encode_value(with_text(1020 - EMPTY - 2))
    assert len(encoded) == 1020
    assert open_prompt((1020).to_bytes(4, "big") + encoded, Plain(), CONTEXT)
    with pytest.raises(BadFrame):
        open_prompt((1021).to_bytes(4, "big") + encoded, Plain(), CONTEXT)


# ---------------------------------------------------------------- chunks

ORDER_HASH = b"o" * 32


def test_a_chunk_opens_with_its_number_and_counts() -> None:
    cipher = ChunkCipher(b"k" * 32, ORDER_HASH)
    body = ChunkBody("some text", 0, b"")
    assert cipher.open(3, 7, 9, cipher.seal(3, 7, 9, body)) == body


@pytest.mark.parametrize("changed", [(4, 7, 9), (3, 8, 9), (3, 7, 8), (2**63 - 1, 7, 9)])
def test_a_chunk_is_bound_to_its_number_and_counts(changed: tuple[int, int, int]) -> None:
    cipher = ChunkCipher(b"k" * 32, ORDER_HASH)
    sealed = cipher.seal(3, 7, 9, ChunkBody("some text"))
    with pytest.raises(SealError):
        cipher.open(*changed, sealed)


def test_a_chunk_is_bound_to_its_order_and_its_key() -> None:
    sealed = ChunkCipher(b"k" * 32, ORDER_HASH).seal(1, 1, 0, ChunkBody("x"))
    for other in (ChunkCipher(b"k" * 32, b"O" * 32), ChunkCipher(b"K" * 32, ORDER_HASH)):
        with pytest.raises(SealError):
            other.open(1, 1, 0, sealed)


def test_a_response_key_used_twice_gives_two_answer_keys() -> None:
    """The same text in two answers must not show as the same bytes."""
    one, other = (ChunkCipher(b"k" * 32, hash_).seal(1, 1, 0, ChunkBody("x")) for hash_ in (b"1" * 32, b"2" * 32))
    assert one != other


def test_the_answer_key_is_the_tagged_hash_that_the_specification_names() -> None:
    key = tagged_hash("infernet/answer-key/1", b"k" * 32 + ORDER_HASH)
    sealed = ChunkCipher(b"k" * 32, ORDER_HASH).seal(5, 6, 7, ChunkBody("hi"))
    associated = (6).to_bytes(8, "big") + (7).to_bytes(8, "big")
    plaintext = ChaCha20Poly1305(key).decrypt((5).to_bytes(12, "big"), sealed, associated)
    encoded = bytes.fromhex("94a2686900c400c400")
    assert plaintext == len(encoded).to_bytes(4, "big") + encoded + bytes(64 - 4 - len(encoded))


@pytest.mark.parametrize(
    ("text", "padded"), [("", 64), ("a", 64), ("x" * 31, 64), ("x" * 52, 64), ("x" * 53, 128), ("x" * 116, 128)]
)
def test_the_length_of_a_chunk_does_not_tell_the_length_of_a_token(text: str, padded: int) -> None:
    assert len(ChunkCipher(b"k" * 32, ORDER_HASH).seal(1, 1, 0, ChunkBody(text))) == padded + CHUNK_TAG_BYTES


@pytest.mark.parametrize("length", [0, 15, 16, 79, 80, 1000])
def test_what_is_no_chunk_does_not_open(length: int) -> None:
    with pytest.raises(SealError):
        ChunkCipher(b"k" * 32, ORDER_HASH).open(1, 1, 0, bytes(length))


def test_the_largest_embedding_fits_a_chunk() -> None:
    sealed = ChunkCipher(b"k" * 32, ORDER_HASH).seal(1, 0, 0, ChunkBody("", 0, bytes(4 * 16_000)))
    assert len(sealed) <= c.BYTES_MAX
