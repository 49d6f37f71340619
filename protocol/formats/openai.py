"""The OpenAI API as pure functions: what a request body asks for, and what the answers look like.

Used by whoever serves `/v1` or asks a server that does; no I/O here. What a provider could not honour is refused, not
ignored: an asker who sets `tools` and gets prose has been lied to. Shapes: the OpenAI API reference, "Create chat
completion", "Create completion", "Create embeddings", as of 2026.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from protocol import constants as c
from protocol.records import ChatMessage, JobRequest, Kind, Outcome, Sampling

REQUEST_BYTES_MAX: Final = c.SEALED_BYTES_MAX
OUTPUT_TOKENS_DEFAULT: Final = 512
# Members that change what the answer is, and that no engine here honours yet. `None`, false and empty are no wish.
_NOT_HONOURED: Final = (
    "tools", "tool_choice", "functions", "function_call", "response_format", "logprobs", "top_logprobs", "logit_bias",
    "modalities", "audio", "prediction", "web_search_options", "suffix", "echo", "best_of",
)  # fmt: skip
_FINISH_REASON: Final = {Outcome.STOP: "stop", Outcome.LENGTH: "length"}

BodyType = TypeVar("BodyType", bound=Struct)


class BadRequest(Exception):
    """A request cannot be run as it stands; `parameter` is the member to change, if it is one."""

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class OpenAIRequest(Struct, frozen=True):
    """A request in the protocol's own terms. `stream_usage` asks for a last chunk with the counts."""

    kind: Kind
    model: str
    request: JobRequest
    sampling: Sampling
    output_tokens_max: int
    stream: bool = False
    stream_usage: bool = False
    base64_vectors: bool = False


# ---------------------------------------------------------------- requests


class _TextPart(Struct):
    type: Literal["text"]
    text: str


class _Message(Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]


class _StreamOptions(Struct):
    include_usage: bool = False


_Number = Annotated[float, Meta(ge=-2, le=2)]
_TokenCount = Annotated[int, Meta(ge=1, le=c.OUTPUT_TOKENS_MAX)]
_Model = Annotated[str, Meta(min_length=1, max_length=c.MODEL_NAME_CHARACTERS_MAX)]


class _Sampled(Struct, kw_only=True):
    model: _Model
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: _Number | None = None
    frequency_penalty: _Number | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    max_tokens: _TokenCount | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _ChatBody(_Sampled, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: _TokenCount | None = None


class _CompletionBody(_Sampled, kw_only=True):
    prompt: Annotated[str, Meta(min_length=1)]


class _EmbeddingBody(Struct, kw_only=True):
    model: _Model
    input: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=c.EMBEDDING_INPUTS_MAX)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


def parse_chat(body: bytes, seed: int) -> OpenAIRequest:
    """The body of `POST /v1/chat/completions`. `seed` is used when the request states none. Raises BadRequest."""
    fields = _decode(body, _ChatBody)
    messages = tuple(ChatMessage(_role(message.role), _text(message.content)) for message in fields.messages)
    return _sampled(Kind.CHAT, fields, JobRequest(messages=messages, stop=_stop(fields.stop)), seed)


def parse_completion(body: bytes, seed: int) -> OpenAIRequest:
    """The body of `POST /v1/completions`, one prompt. Raises BadRequest."""
    fields = _decode(body, _CompletionBody)
    return _sampled(Kind.COMPLETION, fields, JobRequest(prompt=fields.prompt, stop=_stop(fields.stop)), seed)


def parse_embedding(body: bytes) -> OpenAIRequest:
    """The body of `POST /v1/embeddings`. Raises BadRequest."""
    fields = _decode(body, _EmbeddingBody)
    if fields.dimensions is not None:
        raise BadRequest("the number of dimensions is the model's own: leave 'dimensions' out", "dimensions")
    inputs = (fields.input,) if isinstance(fields.input, str) else tuple(fields.input)
    return OpenAIRequest(
        Kind.EMBEDDING,
        fields.model,
        JobRequest(inputs=inputs),
        _sampling(0, 0.0, None, None, None),
        output_tokens_max=0,
        base64_vectors=fields.encoding_format == "base64",
    )


def _decode(body: bytes, cls: type[BodyType]) -> BodyType:
    if len(body) > REQUEST_BYTES_MAX:
        raise BadRequest(f"the request has {len(body)} bytes; {REQUEST_BYTES_MAX} are allowed")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the request is not JSON") from None
    if not isinstance(fields, dict):
        raise BadRequest("the request is not a JSON object")
    wished = next((name for name in _NOT_HONOURED if fields.get(name) not in (None, False, [], {}, "none", 0)), None)
    if wished is not None and fields[wished] != {"type": "text"}:
        raise BadRequest(f"'{wished}' is not supported here: leave it out", wished)
    try:
        return msgspec.convert(fields, type=cls)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadRequest(*_explain(str(error))) from None


def _explain(message: str) -> tuple[str, str | None]:
    """Turn msgspec's `Expected ... - at `$.messages[0].role`` into a sentence and the parameter's name."""
    reason, separator, path = message.partition(" - at `$")
    parameter = path.strip("`").lstrip(".") or None
    return (f"{parameter}: {reason[:1].lower()}{reason[1:]}" if separator and parameter else reason), parameter


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _text(content: str | list[_TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > c.STOP_STRINGS_MAX or any(not 0 < len(s) <= c.STOP_CHARACTERS_MAX for s in stops):
        allowed = f"at most {c.STOP_STRINGS_MAX} stop strings of 1 to {c.STOP_CHARACTERS_MAX} characters are allowed"
        raise BadRequest(allowed, "stop")
    return stops


def _sampled(kind: Kind, fields: _Sampled, request: JobRequest, seed: int) -> OpenAIRequest:
    if fields.n not in (None, 1):
        raise BadRequest("one answer per request: 'n' must be 1", "n")
    if fields.seed is not None:
        # Seeds of any size and sign are in use; the protocol's has 63 bits.
        seed = fields.seed & c.INTEGER_MAX
    output_tokens_max = getattr(fields, "max_completion_tokens", None) or fields.max_tokens or OUTPUT_TOKENS_DEFAULT
    return OpenAIRequest(
        kind,
        fields.model,
        request,
        _sampling(seed, fields.temperature, fields.top_p, fields.presence_penalty, fields.frequency_penalty),
        output_tokens_max,
        stream=bool(fields.stream),
        stream_usage=bool(fields.stream_options and fields.stream_options.include_usage),
    )


def _sampling(
    seed: int, temperature: float | None, top_p: float | None, presence: float | None, frequency: float | None
) -> Sampling:
    """The API's defaults are temperature 1 and top_p 1; min_p and top_k, which it does not know, are left out."""
    return Sampling(
        temperature_milli=_milli(1.0 if temperature is None else temperature),
        top_p_milli=_milli(1.0 if top_p is None else top_p),
        min_p_milli=0,
        top_k=0,
        presence_penalty_milli=_milli(presence or 0.0),
        frequency_penalty_milli=_milli(frequency or 0.0),
        repetition_penalty_milli=1000,
        seed=seed,
    )


def _milli(value: float) -> int:
    return round(value * 1000)


# ---------------------------------------------------------------- answers


def usage(prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    """The `usage` member: tokens as the engine counted them."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    }


def finish_reason(outcome: Outcome) -> str:
    """`stop` or `length`; anything else ended early and reads as `stop` with an error beside it."""
    return _FINISH_REASON.get(outcome, "stop")


def chat_completion(
    answer_id: str, created_s: int, model: str, text: str, outcome: Outcome, counts: dict[str, int]
) -> dict[str, Any]:
    """The whole answer to a chat request that does not stream."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": finish_reason(outcome),
    }
    return {
        "id": answer_id,
        "object": "chat.completion",
        "created": created_s,
        "model": model,
        "choices": [choice],
        "usage": counts,
    }


def chat_chunk(
    answer_id: str,
    created_s: int,
    model: str,
    delta: dict[str, str],
    *,
    outcome: Outcome | None = None,
) -> dict[str, Any]:
    """One chunk of a streamed chat answer: first `{"role": "assistant", "content": ""}`, text, then the outcome."""
    reason = finish_reason(outcome) if outcome is not None else None
    return {
        "id": answer_id,
        "object": "chat.completion.chunk",
        "created": created_s,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}],
    }


def usage_chunk(answer_id: str, created_s: int, model: str, counts: dict[str, int]) -> dict[str, Any]:
    """The chunk that `stream_options.include_usage` asks for: no choices, the counts."""
    return {
        "id": answer_id,
        "object": "chat.completion.chunk",
        "created": created_s,
        "model": model,
        "choices": [],
        "usage": counts,
    }


def embeddings(model: str, vectors: Sequence[bytes], prompt_tokens: int, *, as_base64: bool) -> dict[str, Any]:
    """The answer to an embedding request; vectors are little-endian float32, as the protocol carries them."""
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(vector, as_base64=as_base64)}
        for index, vector in enumerate(vectors)
    ]
    counts = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return {"object": "list", "data": data, "model": model, "usage": counts}


def _vector(vector: bytes, *, as_base64: bool) -> str | list[float]:
    if as_base64:
        return base64.b64encode(vector).decode()
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def models(names: Sequence[str], created_s: int) -> dict[str, Any]:
    """The answer to `GET /v1/models`."""
    data = [{"id": name, "object": "model", "created": created_s, "owned_by": "infernet"} for name in names]
    return {"object": "list", "data": data}


def error(message: str, kind: str, *, parameter: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error body; kinds are those of the API: `invalid_request_error`, `rate_limit_error`, `server_error` ..."""
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


def server_sent(data: dict[str, Any] | None) -> bytes:
    """One server-sent event; None is the `[DONE]` that ends a stream. JSON escapes line ends, so none can be forged."""
    text = "[DONE]" if data is None else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
