"""What is said to OpenAI-compatible servers, and what of their answers matters.

The fields are OpenAI's; what goes beyond them is each server's own, and sent only to those that have documented it:
llama-server (`tools/server/README.md` of llama.cpp), vLLM ("OpenAI-Compatible Server" and its entry points' protocol
modules), SGLang ("Sampling Parameters"), Ollama (`docs/openai.md`, `docs/api.md`), LM Studio ("REST API v0").
Requests are built field by field, and nothing of an asker's is passed on but texts and numbers.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from infernet.engines.prompts import Refused
from protocol.effects import RunEngine
from protocol.errors import Refusal
from protocol.records import JobRequest, Kind, Sampling

Count = Annotated[int, Meta(ge=0, le=2**32 - 1)]
_ROLES: Final = ("system", "user", "assistant")
# A seed has 32 bits with all of them; llama.cpp's highest value means "any".
_SEEDS: Final = 2**31 - 1


class Dialect(StrEnum):
    """Which server it is."""

    LLAMA = "llama-server"
    VLLM = "vLLM"
    SGLANG = "SGLang"
    OLLAMA = "Ollama"
    LM_STUDIO = "LM Studio"
    OTHER = "OpenAI-compatible"

    @property
    def takes_raw_prompts(self) -> bool:
        """Whether a completion's prompt reaches the model as it is; Ollama puts it into a chat template."""
        return self in (Dialect.LLAMA, Dialect.VLLM, Dialect.SGLANG)

    @property
    def cuts_prompts(self) -> bool:
        """Whether a prompt that is too long is cut without a word. Where nothing is known, it may be."""
        return self in (Dialect.OLLAMA, Dialect.LM_STUDIO, Dialect.OTHER)


# ---------------------------------------------------------------- answers


class LoadedMeta(Struct, frozen=True):
    """llama-server's own part of a listed model; `n_ctx` is the context of one slot."""

    n_ctx: Count | None = None


class ListedModel(Struct, frozen=True):
    """A row of `/v1/models`."""

    id: str
    owned_by: object = None
    max_model_len: Count | None = None
    meta: LoadedMeta | None = None


class ModelList(Struct, frozen=True):
    """`/v1/models`."""

    data: Annotated[list[ListedModel], Meta(max_length=10_000)] | None = None


class Usage(Struct, frozen=True):
    """What was counted so far, or in all."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class Delta(Struct, frozen=True):
    """What is new of a chat's answer. Thoughts come apart from it, by two names."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def thoughts(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class Choice(Struct, frozen=True):
    """An answer's new part: `delta` of a chat, `text` of a completion."""

    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Timings(Struct, frozen=True):
    """llama-server's count with each token."""

    predicted_n: Count | None = None


class PromptProgress(Struct, frozen=True):
    """How far llama-server is with a prompt."""

    total: Count
    processed: Count


class Chunk(Struct, frozen=True):
    """One event of a stream."""

    choices: Annotated[list[Choice], Meta(max_length=16)] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None
    error: object = None


# ---------------------------------------------------------------- requests


def check_request(kind: Kind, request: JobRequest) -> None:
    """Refuse what no server of these can do, or would do otherwise than asked. Raises Refused."""
    try:
        msgspec.json.encode(request)
    except UnicodeEncodeError:
        raise Refused(Refusal.BAD_REQUEST, "the prompt is not Unicode text") from None
    if request.continuation:
        # The text so far would be a turn of its own to most of them.
        raise Refused(Refusal.UNSUPPORTED, "this provider's engine cannot go on with an answer that another one began")
    if kind is Kind.COMPLETION:
        if not request.prompt:
            raise Refused(Refusal.BAD_REQUEST, "the prompt is empty")
        return
    if not request.messages:
        raise Refused(Refusal.BAD_REQUEST, "the chat has no messages")
    if any(message.role not in _ROLES for message in request.messages):
        raise Refused(Refusal.BAD_REQUEST, "a message has a role other than system, user or assistant")


def prompt_fields(kind: Kind, request: JobRequest) -> dict[str, Any]:
    """The prompt as a chat's messages, or as it is."""
    if kind is Kind.COMPLETION:
        return {"prompt": request.prompt}
    return {"messages": [{"role": message.role, "content": message.content} for message in request.messages]}


def path_of(kind: Kind) -> str:
    """Where runs of this kind are asked for."""
    return "/v1/completions" if kind is Kind.COMPLETION else "/v1/chat/completions"


def generate_body(dialect: Dialect, model: str, run: RunEngine, tokens_max: int, salt: str) -> dict[str, Any]:
    """A run as a request. Stop strings are not the server's business: they are found by us. Raises Refused."""
    body = {
        "model": model,
        **prompt_fields(run.kind, run.request),
        "max_tokens": tokens_max,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling_fields(dialect, run.sampling),
    }
    # A prompt that is found in a cache is answered faster, which tells a stranger that somebody sent it.
    match dialect:
        case Dialect.LLAMA:
            body |= {"cache_prompt": False, "timings_per_token": True, "return_progress": True}
            body |= {"reasoning_format": "none"}
        case Dialect.VLLM:
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
            body["cache_salt"] = salt
        case _:
            pass
    return body


def one_token_body(model: str, kind: Kind, request: JobRequest) -> dict[str, Any]:
    """A request for one token, asked for the count of the prompt that comes with it."""
    return {"model": model, **prompt_fields(kind, request), "max_tokens": 1, "stream": False, "temperature": 0}


def _sampling_fields(dialect: Dialect, sampling: Sampling) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "temperature": sampling.temperature_milli / 1000,
        "top_p": sampling.top_p_milli / 1000,
        "presence_penalty": sampling.presence_penalty_milli / 1000,
        "frequency_penalty": sampling.frequency_penalty_milli / 1000,
        "seed": sampling.seed % _SEEDS,
    }
    min_p, repetition = sampling.min_p_milli / 1000, sampling.repetition_penalty_milli / 1000
    match dialect:
        case Dialect.LLAMA:
            # Without temperature the best token is the one, as everywhere; sorting all others for it takes time.
            top_k = 1 if sampling.temperature_milli == 0 else sampling.top_k
            return fields | {"top_k": top_k, "min_p": min_p, "repeat_penalty": repetition}
        case Dialect.VLLM | Dialect.SGLANG:
            return fields | {"top_k": sampling.top_k or -1, "min_p": min_p, "repetition_penalty": repetition}
        case _:
            # `top_k` and `min_p` only leave out what is improbable anyway, and there is no way to say them.
            if sampling.repetition_penalty_milli != 1000:
                raise Refused(Refusal.UNSUPPORTED, "this provider's engine has no repetition penalty")
            return fields
