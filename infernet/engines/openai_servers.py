"""Which OpenAI-compatible server answers at an address, which models it has, and whether they answer.

A model is offered when it has answered with one token and said how many the prompt had. The same answer tells whether
the server can count a prompt before it reads it, which it must to the token: llama-server and vLLM have pages for
that. With the others a prompt is counted by asking for one token of an answer; they keep what they have read, so the
answer itself begins where that ended.

Ollama, vLLM, SGLang, LM Studio and NIM were not at hand: what is read of their pages is what they document.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import httpx
import trio
from msgspec import Meta, Struct

from infernet.engines.openai_answer import Answer
from infernet.engines.openai_http import ApiKey, Server, ServerBroken, ServerError, ServerRefused
from infernet.engines.openai_shapes import (
    Count,
    Dialect,
    ListedModel,
    ModelList,
    Usage,
    generate_body,
    one_token_body,
    path_of,
    prompt_fields,
)
from infernet.own_addresses import is_loopback_url
from infernet.settings.readers import read_engine_url
from protocol import constants as c
from protocol.effects import RunEngine
from protocol.formats.text import clean_line
from protocol.ids import RunId
from protocol.networks import read_ip
from protocol.records import ChatMessage, JobRequest, Kind, Sampling

_OLLAMA_PORT: Final = 11434
# Where these servers listen unless they are told otherwise.
USUAL_PORTS: Final = (
    (_OLLAMA_PORT, "Ollama"),
    (8000, "vLLM or NIM"),
    (8080, "llama-server"),
    (30000, "SGLang"),
    (1234, "LM Studio"),
)
_READY: Final = "/v1/health/ready"
# From the server, and from the proxy in front of one that does not answer yet.
_NOT_YET: Final = (502, 503)
LOOK_TIMEOUT_S: Final = 5.0
# Counting the longest prompt takes about a second.
COUNT_TIMEOUT_S: Final = 60.0
# The first token may be preceded by the loading of a model, from a slow disk.
PROBE_TIMEOUT_S: Final = 300.0
MODELS_MAX: Final = c.HEARTBEAT_MODELS_MAX
CHAT_PROBE: Final = JobRequest(messages=(ChatMessage("user", "Say hello."),))
_GREEDY: Final = Sampling(0, 1000, 0, 0, 0, 0, 1000, 0)
_COMPLETION_PROBE: Final = JobRequest(prompt="Once upon a time")
_OWNERS: Final = {"vllm": Dialect.VLLM, "sglang": Dialect.SGLANG, "llamacpp": Dialect.LLAMA}


class Found(Struct, frozen=True):
    """A server that answers, and the models that it lists, as it names them."""

    url: str
    dialect: Dialect
    models: tuple[ListedModel, ...]

    def named(self, wanted: str) -> ListedModel | None:
        """The model of this name: the server's, or ours for it."""
        return next((model for model in self.models if wanted in (model.id, public_name(model.id))), None)


class Served(Struct, frozen=True):
    """A model that answered. `counts_first` is whether prompts are counted before they are read."""

    id: str
    name: str
    kinds: tuple[Kind, ...]
    context_tokens: int | None
    counts_first: bool
    quantisation: str = ""


class _Ready(Struct, frozen=True):
    """NIM's: `{"object": "health.response", "message": "Service is ready."}`; the status is what counts."""

    message: str = ""


class _Version(Struct, frozen=True):
    version: str


class _Parameters(Struct, frozen=True):
    n_ctx: Count | None = None


class _Properties(Struct, frozen=True):
    default_generation_settings: _Parameters | None = None


class _Loaded(Struct, frozen=True):
    name: str
    context_length: Count | None = None
    details: Any = None


class _LoadedList(Struct, frozen=True):
    models: Annotated[list[_Loaded], Meta(max_length=10_000)] | None = None


class _Shown(Struct, frozen=True):
    parameters: str = ""
    model_info: dict[str, Any] = {}


class _StudioModel(Struct, frozen=True):
    id: str
    loaded_context_length: Count | None = None
    quantization: Any = None


class _StudioList(Struct, frozen=True):
    data: Annotated[list[_StudioModel], Meta(max_length=10_000)]


class _Rendered(Struct, frozen=True):
    prompt: str


class _Tokens(Struct, frozen=True):
    tokens: list[int]


class _TokenCount(Struct, frozen=True):
    count: Count


class _OneToken(Struct, frozen=True):
    usage: Usage | None = None


_PATH_CHARACTERS_MAX: Final = 4096


def public_name(model: str) -> str:
    """How a model is called in public: the server's name for it, but of a path on this machine only the last part."""
    # First what is shown, then whether that is a path: one behind a space or an invisible character is one, too.
    model = clean_line(model, _PATH_CHARACTERS_MAX)
    if model.lower().endswith(".gguf") or "\\" in model or model.startswith(("/", "~", ".")):
        model = PurePath(model.replace("\\", "/")).name.lower().removesuffix(".gguf")
    return clean_line(model, c.MODEL_NAME_CHARACTERS_MAX)


def usual_urls(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Where to look when no address is named: on this machine and nowhere else."""
    ollama = _ollama_url(environ)
    return tuple(
        ollama if ollama is not None and name == "Ollama" and is_loopback_url(ollama) else f"http://127.0.0.1:{port}"
        for port, name in USUAL_PORTS
    )


def ollama_elsewhere(environ: Mapping[str, str] = os.environ) -> str | None:
    """The address in OLLAMA_HOST where that is another machine: it is not asked, for whoever answers reads prompts."""
    url = _ollama_url(environ)
    return None if url is None or is_loopback_url(url) else url


def _ollama_url(environ: Mapping[str, str]) -> str | None:
    """What OLLAMA_HOST means, for Ollama's own programs; None where it is not set, or is no address.

    A host, a port or both, perhaps with a scheme. Where its server is told to listen on all addresses, it is here.
    """
    text = environ.get("OLLAMA_HOST", "").strip().strip("'\"")
    scheme, separator, rest = text.rpartition("://")
    default_port = {"http": 80, "https": 443}.get(scheme, _OLLAMA_PORT)
    if not text or (separator and scheme not in ("http", "https")):
        return None
    place = rest.partition("/")[0]
    bare = read_ip(place.strip("[]"))
    if bare is not None and bare.version == 6:
        place = f"[{bare}]"
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname or "127.0.0.1", parts.port or default_port
        ip = read_ip(host)
        if ip is not None:
            here = {4: "127.0.0.1", 6: "::1"}[ip.version] if ip.is_unspecified else host
            host = f"[{here}]" if ip.version == 6 else here
        return read_engine_url(f"{scheme or 'http'}://{host}:{port}")
    except ValueError:
        return None


async def identify(server: Server) -> Found:
    """Which server it is, and what it lists. Raises ServerError."""
    try:
        listed = (await server.get("/v1/models", ModelList, LOOK_TIMEOUT_S)).data or []
    except ServerRefused as error:
        if error.status in _NOT_YET:
            await _check_ready(server)
        raise
    models = tuple(model for model in listed if public_name(model.id))
    owners = {str(model.owned_by) for model in models}
    for owner, dialect in _OWNERS.items():
        if owner in owners:
            return Found(server.url, dialect, models)
    # What has its own page is told by it; a server that lists nothing has no owner to tell by either.
    for path, type_, dialect in (
        ("/api/version", _Version, Dialect.OLLAMA),
        ("/api/v0/models", _StudioList, Dialect.LM_STUDIO),
        ("/props", _Properties, Dialect.LLAMA),
    ):
        if await _has(server, path, type_):
            return Found(server.url, dialect, models)
    await _check_ready(server)
    # What NIM runs may be a vLLM, under names of its own.
    is_vllm = any(model.max_model_len for model in models) and await _has(server, "/version", _Version)
    return Found(server.url, Dialect.VLLM if is_vllm else Dialect.OTHER, models)


async def _check_ready(server: Server) -> None:
    """Ask NIM, which alone has this page, whether its model is loaded. Raises ServerBroken while it is not."""
    try:
        await server.get(_READY, _Ready, LOOK_TIMEOUT_S)
    except ServerRefused as error:
        if error.status in _NOT_YET:
            raise ServerBroken(f"it is still loading its model (as {_READY} says): wait for it") from None
    except ServerBroken:
        pass  # whatever that page is, it is not NIM's


async def _has(server: Server, path: str, type_: type[Struct]) -> bool:
    try:
        await server.get(path, type_, LOOK_TIMEOUT_S)
    except (ServerRefused, ServerBroken):
        return False
    return True


async def look_around(
    urls: Sequence[str], key: ApiKey | None = None, proxy: httpx.Proxy | None = None
) -> list[Found | tuple[str, ServerError]]:
    """What answers at these addresses, in their order, asked all at once; or why not. All are shown the key."""
    results: dict[str, Found | tuple[str, ServerError]] = {}

    async def look(url: str) -> None:
        async with Server(url, key, proxy) as server:
            try:
                results[url] = await identify(server)
            except ServerError as error:
                results[url] = (url, error)

    async with trio.open_nursery() as nursery:
        for url in urls:
            nursery.start_soon(look, url)
    return [results[url] for url in urls]


async def probe(server: Server, dialect: Dialect, model: ListedModel) -> Served:
    """Have a model say one token of each kind that it may be asked for. Raises ServerError when it does not chat."""
    chat_tokens = await count_by_asking(server, model.id, Kind.CHAT, CHAT_PROBE, PROBE_TIMEOUT_S)
    await say_a_token(server, dialect, model.id, PROBE_TIMEOUT_S)
    kinds: tuple[Kind, ...] = (Kind.CHAT,)
    if dialect.takes_raw_prompts:
        try:
            await count_by_asking(server, model.id, Kind.COMPLETION, _COMPLETION_PROBE, PROBE_TIMEOUT_S)
        except (ServerRefused, ServerBroken):
            pass  # it chats, and does nothing else
        else:
            kinds = (Kind.CHAT, Kind.COMPLETION)
    counts_first = False
    try:
        counted = await count_before(server, dialect, model.id, Kind.CHAT, CHAT_PROBE)
        # To the token, or it is another template than the one that answers are written with.
        counts_first = counted == chat_tokens
    except (ServerRefused, ServerBroken):
        pass
    context_tokens, quantisation = await _told_of(server, dialect, model)
    return Served(model.id, public_name(model.id), kinds, context_tokens, counts_first, quantisation)


async def say_a_token(server: Server, dialect: Dialect, model: str, timeout_s: float) -> None:
    """Have a model begin an answer, in the very way in which it will be asked. Raises ServerError."""
    run = RunEngine(RunId(0), Kind.CHAT, model, CHAT_PROBE, _GREEDY, 0, 1)
    answer = Answer(run, 1, lambda _event: None)
    body = generate_body(dialect, model, run, 1, secrets.token_hex(16))
    deadline_s = trio.current_time() + timeout_s
    await server.stream(path_of(Kind.CHAT), body, answer.take, lambda: max(0.0, deadline_s - trio.current_time()))
    answer.end()


async def count_before(server: Server, dialect: Dialect, model: str, kind: Kind, request: JobRequest) -> int:
    """The tokens of a prompt, without reading it. Raises ServerError, also where the server cannot do that."""
    match dialect:
        case Dialect.LLAMA:
            prompt = request.prompt
            if kind is Kind.CHAT:
                fields = prompt_fields(kind, request)
                prompt = (await server.post("/apply-template", fields, _Rendered, COUNT_TIMEOUT_S)).prompt
            body = {"content": prompt, "add_special": True, "parse_special": True}
            return len((await server.post("/tokenize", body, _Tokens, COUNT_TIMEOUT_S)).tokens)
        case Dialect.VLLM:
            fields = {"model": model, **prompt_fields(kind, request)}
            if kind is Kind.CHAT:
                fields["add_generation_prompt"] = True
            return (await server.post("/tokenize", fields, _TokenCount, COUNT_TIMEOUT_S)).count
        case _:
            raise ServerBroken("it cannot count a prompt before it reads it")


async def count_by_asking(server: Server, model: str, kind: Kind, request: JobRequest, timeout_s: float) -> int:
    """The tokens of a prompt, by what the server says when it has answered it with one. Raises ServerError."""
    answer = await server.post(path_of(kind), one_token_body(model, kind, request), _OneToken, timeout_s)
    if answer.usage is None or not answer.usage.prompt_tokens:
        raise ServerBroken("it does not say how many tokens a prompt has")
    return answer.usage.prompt_tokens


async def _told_of(server: Server, dialect: Dialect, model: ListedModel) -> tuple[int | None, str]:
    """How many tokens a prompt and its answer may have, and how the weights are quantised, by the server's own pages.

    None and "" where it has none.
    """
    tokens: int | None = None
    quantisation: object = ""
    try:
        match dialect:
            case Dialect.LLAMA:
                tokens = model.meta.n_ctx if model.meta is not None else None
                if not tokens:
                    settings = (await server.get("/props", _Properties, LOOK_TIMEOUT_S)).default_generation_settings
                    tokens = settings.n_ctx if settings is not None else None
            case Dialect.OLLAMA:
                tokens, quantisation = await _ollama_context(server, model.id)
            case Dialect.LM_STUDIO:
                listed = (await server.get("/api/v0/models", _StudioList, LOOK_TIMEOUT_S)).data
                found = next((row for row in listed if row.id == model.id), None)
                if found is not None:
                    tokens, quantisation = found.loaded_context_length, found.quantization
            case _:
                tokens = model.max_model_len
    except (ServerRefused, ServerBroken):
        return None, ""
    return tokens or None, quantisation if isinstance(quantisation, str) else ""


async def _ollama_context(server: Server, model: str) -> tuple[int | None, object]:
    """What the loaded model has (it has just answered); an older Ollama tells only what its model file asks for."""
    loaded = (await server.get("/api/ps", _LoadedList, LOOK_TIMEOUT_S)).models or []
    row = next((row for row in loaded if row.name == model), None)
    quantisation = row.details.get("quantization_level") if row is not None and isinstance(row.details, dict) else ""
    if row is not None and row.context_length:
        return row.context_length, quantisation
    shown = await server.post("/api/show", {"model": model}, _Shown, LOOK_TIMEOUT_S)
    asked = re.search(r"^num_ctx\s+(\d{1,9})\s*$", shown.parameters, re.MULTILINE)
    if asked is None:
        return None, quantisation
    trained = [value for name, value in shown.model_info.items() if name.endswith(".context_length")]
    return min([int(asked[1]), *(value for value in trained if isinstance(value, int) and value > 0)]), quantisation


def chosen(found: Found, names: Sequence[str]) -> list[ListedModel]:
    """The models to serve: those that are named, or the only one. Raises ServerBroken that says what to do."""
    if names:
        missing = [name for name in names if found.named(name) is None]
        if missing:
            raise ServerBroken(f"it has no model {clean_line(missing[0])}")
        models = {model.id: model for name in names if (model := found.named(name)) is not None}
        if len(models) > MODELS_MAX:
            raise ServerBroken(f"more than {MODELS_MAX} models cannot be offered: name fewer with --engine-models")
        return list(models.values())
    if not found.models:
        raise ServerBroken("it lists no model")
    if len(found.models) > 1:
        raise ServerBroken(
            f"it lists {len(found.models)} models: name those to serve with --engine-models "
            "(`infernet engine list` shows them)"
        )
    return list(found.models)
