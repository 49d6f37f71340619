"""Whatever is valid comes back the same, in one encoding, however its bytes were cut."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import (
    JOB_LIMITS,
    SEALED_LIMITS,
    FrameReader,
    decode_record,
    decode_struct,
    decode_value,
    encode_message,
    encode_record,
    encode_value,
)
from protocol.envelope import tagged_hash
from protocol.errors import UnknownVersion
from protocol.messages import Message
from protocol.records import ChunkBody, JobRequest, Record, SealedPrompt
from protocol.sealing import ChunkCipher, HpkeSealer, open_prompt, seal_prompt
from tests.helpers_messages import MESSAGES, RECORDS, messages, of_type

odd_extensions = st.dictionaries(st.integers(0, 2**62 - 1).map(lambda n: 2 * n + 1), st.binary(max_size=20), max_size=4)


def frames_of(found: list[Message]) -> bytes:
    return b"".join(map(encode_message, found))


@pytest.mark.parametrize("cls", MESSAGES)
@given(data=st.data())
def test_every_message_comes_back(cls: type[Message], data: st.DataObject) -> None:
    message = data.draw(of_type(cls))
    reader = FrameReader(JOB_LIMITS)
    assert list(reader.feed(encode_message(message))) == [message]
    assert reader.pending_bytes == 0


@given(
    messages(), st.lists(st.none() | st.integers(-(2**62), 2**62) | st.text() | st.binary() | st.just([]), max_size=3)
)
def test_unknown_trailing_fields_change_nothing(message: Message, more: list[Any]) -> None:
    frame = encode_message(message)
    fields = [*msgpack.unpackb(frame[4:], strict_map_key=True), *more]
    body = msgpack.packb(fields)
    known = len(fields) - len(more)
    (read,) = FrameReader(JOB_LIMITS).feed(len(body).to_bytes(4, "big") + body)
    assert read == message
    assert known == len(type(message).__struct_fields__) + 1


@given(st.lists(messages(), max_size=6), st.data())
def test_frames_read_the_same_in_any_pieces(sent: list[Message], data: st.DataObject) -> None:
    stream = frames_of(sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = FrameReader(JOB_LIMITS)
    found: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == sent
    assert reader.pending_bytes == 0


@given(st.lists(messages(), min_size=1, max_size=3))
def test_one_byte_at_a_time_is_as_good_as_all_at_once(sent: list[Message]) -> None:
    reader = FrameReader(JOB_LIMITS)
    found = [message for byte in frames_of(sent) for message in reader.feed(bytes([byte]))]
    assert found == sent


@given(messages())
def test_an_encoding_holds_nothing_but_arrays_integers_text_bytes_and_nil(message: Message) -> None:
    value = decode_value(encode_message(message)[4:], JOB_LIMITS)
    assert msgpack.packb(value) == encode_message(message)[4:], "messages are sent in canonical form, too"


@given(st.sampled_from(RECORDS).flatmap(of_type), odd_extensions)
def test_every_record_comes_back_from_one_encoding(record: Record, extensions: dict[int, bytes]) -> None:
    # An even extension is one that this version does not know; the strategy makes those as well.
    fields = msgpack.unpackb(encode_value(record))
    fields[-1] = sorted([list(pair) for pair in extensions.items()])
    body = msgpack.packb(fields)
    read = decode_record(body, type(record))
    assert encode_record(read) == body
    assert tagged_hash(record.TAG, encode_record(read)) == tagged_hash(record.TAG, body)


@given(st.sampled_from(RECORDS).flatmap(of_type), st.integers(0, 2**62 - 1))
def test_a_record_with_an_unknown_mandatory_extension_is_never_used(record: Record, number: int) -> None:
    fields = msgpack.unpackb(encode_value(record))
    fields[-1] = [[2 * number, b""]]
    try:
        decode_record(msgpack.packb(fields), type(record))
    except UnknownVersion:
        return
    raise AssertionError("it was used")


@given(of_type(SealedPrompt), st.binary(max_size=100))
def test_every_prompt_comes_back_from_its_seal(prompt: SealedPrompt, context: bytes) -> None:
    sealer = HpkeSealer()
    sealed = seal_prompt(prompt, sealer, sealer.public_key(0), context)
    assert open_prompt(sealed, sealer, context) == prompt
    assert (len(sealed) - 48) & (len(sealed) - 49) == 0, "padded to a power of two"


@given(st.binary(min_size=32, max_size=32), st.integers(1, 2**63 - 1), of_type(ChunkBody))
def test_every_chunk_comes_back_from_its_seal(key: bytes, number: int, body: ChunkBody) -> None:
    cipher = ChunkCipher(key, bytes(32))
    sealed = cipher.seal(number, number, number, body)
    assert cipher.open(number, number, number, sealed) == body
    assert len(sealed) % 64 == 16


@given(of_type(JobRequest))
def test_requests_come_back(request: JobRequest) -> None:
    assert decode_struct(encode_value(request), JobRequest, SEALED_LIMITS) == request
