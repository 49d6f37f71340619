"""The OpenAI shapes: what is read, what is refused, what is answered."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.formats import openai
from protocol.formats.openai import BadRequest
from protocol.records import ChatMessage, Kind, Outcome

SEED = 7


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def test_a_chat_request_is_read_in_the_protocols_terms() -> None:
    request = openai.parse_chat(
        body(
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            ],
            temperature=0.25,
            top_p=0.5,
            presence_penalty=-1.5,
            stop="END",
            max_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
            user="somebody",
        ),
        SEED,
    )
    assert request.kind is Kind.CHAT
    assert request.request.messages == (ChatMessage("system", "be brief"), ChatMessage("user", "ab"))
    assert request.request.stop == ("END",)
    assert (request.output_tokens_max, request.stream, request.stream_usage) == (9, True, True)
    assert (request.sampling.temperature_milli, request.sampling.top_p_milli) == (250, 500)
    assert request.sampling.presence_penalty_milli == -1500
    assert request.sampling.seed == SEED


def test_the_newer_name_of_the_limit_wins() -> None:
    assert openai.parse_chat(body(max_tokens=9, max_completion_tokens=3), SEED).output_tokens_max == 3


@pytest.mark.parametrize("seed", [0, 5, -1, 2**64])
def test_every_seed_fits_the_protocol(seed: int) -> None:
    assert 0 <= openai.parse_chat(body(seed=seed), SEED).sampling.seed < 2**63


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"stop": ["x"] * 9}, "stop"),
        ({"stop": ""}, "stop"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"model": ""}, "model"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], parameter: str) -> None:
    with pytest.raises(BadRequest) as refused:
        openai.parse_chat(body(**fields), SEED)
    assert refused.value.parameter == parameter


@pytest.mark.parametrize("fields", [{"tools": []}, {"tools": None}, {"response_format": {"type": "text"}}, {"n": 1}])
def test_empty_wishes_are_no_wishes(fields: dict[str, Any]) -> None:
    assert openai.parse_chat(body(**fields), SEED).model == "m"


@given(
    st.one_of(
        st.binary(max_size=200), st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
    )
)
def test_any_body_is_a_request_or_refused(data: bytes) -> None:
    for parse in (lambda: openai.parse_chat(data, SEED), lambda: openai.parse_embedding(data)):
        with pytest.raises(BadRequest):
            parse()


def test_a_body_nested_without_end_is_refused() -> None:
    with pytest.raises(BadRequest):
        openai.parse_chat(b'{"messages":' + b"[" * 100_000, SEED)


def test_completion_and_embedding_requests() -> None:
    completion = openai.parse_completion(b'{"model":"m","prompt":"once","max_tokens":4}', SEED)
    assert (completion.kind, completion.request.prompt) == (Kind.COMPLETION, "once")
    one = openai.parse_embedding(b'{"model":"m","input":"a"}')
    many = openai.parse_embedding(b'{"model":"m","input":["a","b"],"encoding_format":"base64"}')
    assert (one.request.inputs, many.request.inputs, many.base64_vectors) == (("a",), ("a", "b"), True)
    with pytest.raises(BadRequest):
        openai.parse_embedding(b'{"model":"m","input":[]}')


def test_a_stream_has_the_shape_that_clients_expect() -> None:
    first = openai.chat_chunk("id", 1, "m", {"role": "assistant", "content": ""})
    last = openai.chat_chunk("id", 1, "m", {}, outcome=Outcome.LENGTH)
    assert first["choices"][0]["finish_reason"] is None
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    counts = openai.usage_chunk("id", 1, "m", openai.usage(3, 4))
    assert counts["choices"] == []
    assert counts["usage"]["total_tokens"] == 7


def test_a_whole_answer_has_the_shape_that_clients_expect() -> None:
    answer = openai.chat_completion("id", 1, "m", "text", Outcome.STOP, openai.usage(1, 2))
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "text"}
    assert openai.models(["m"], 1)["data"][0]["id"] == "m"
    assert openai.error("no", "invalid_request_error", parameter="n")["error"]["param"] == "n"


def test_vectors_are_floats_or_base64() -> None:
    vector = struct.pack("<2f", 0.5, -1.0)
    assert openai.embeddings("m", [vector], 3, as_base64=False)["data"][0]["embedding"] == [0.5, -1.0]
    assert openai.embeddings("m", [vector], 3, as_base64=True)["data"][0]["embedding"] == "AAAAPwAAgL8="


def test_no_text_can_forge_an_event() -> None:
    event = openai.server_sent({"text": "a\n\ndata: [DONE]\n\n"})
    assert event.count(b"\n\n") == 1
    assert event.endswith(b"\n\n")
    assert openai.server_sent(None) == b"data: [DONE]\n\n"
