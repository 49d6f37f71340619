"""Servers that the OpenAI-compatible adapter is tested with: llama.cpp's real one, and a double of all others.

`OddServer` is a test double: it answers with what it is told to, byte for byte if need be. What it says as Ollama,
vLLM, LM Studio, SGLang and NIM has the shapes that these document, for want of the servers themselves:

- Ollama: `docs/api.md` (`/api/version`, `/api/show`, `/api/ps`) and `docs/openai.md` of github.com/ollama/ollama, and
  its `openai/openai.go` for the chunks;
- vLLM: `entrypoints/openai/engine/protocol.py` (models, usage, chunks) and `entrypoints/serve/tokenize/protocol.py` of
  github.com/vllm-project/vllm;
- LM Studio: "REST API v0", `1_developer/2_rest/endpoints.mdx` of github.com/lmstudio-ai/docs;
- SGLang: `python/sglang/srt/entrypoints/openai/protocol.py` (`ModelCard`, `UsageInfo`, the choices of a stream) of
  github.com/sgl-project/sglang;
- NIM: "API Reference" of its models that see (docs.nvidia.com/nim/vision-language-models/latest/api-reference.html),
  which shows answers of `/v1/models` and `/v1/health/ready`; that of its language models
  (docs.nvidia.com/nim/large-language-models/latest/reference/api-reference.html), by which vLLM is behind it, and
  "health ready" there: 200 once the model is loaded, 503 before. How it streams is nowhere shown: as vLLM, we take it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import trio

ROOT = Path(__file__).resolve().parent.parent
KEY = "open-sesame-0123456789"
ANSWER = ("Hello", ", ", "I ", "am ", "fine", ".")
PROMPT_TOKENS = 21


@contextmanager
def llama_server(model: Path, context_tokens: int, slots: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """llama.cpp's own server with a model, in a process of its own: its address, and the process. It wants `KEY`."""
    script = ROOT / "tests" / "infernet" / "engines" / "llama_server.py"
    command = [sys.executable, "-P", str(script), str(model), str(context_tokens), str(slots), KEY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


@dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Reply:
    """One answer, in as many pieces as a test likes."""

    def __init__(self, stream: trio.SocketStream, connection: h11.Connection) -> None:
        self._stream = stream
        self._connection = connection
        self.hung_up = False

    async def begin(self, status: int = 200, **headers: str) -> None:
        """Status line and headers; the length stays open."""
        named = {"content_type": "application/json", **headers}
        pairs = [(name.replace("_", "-"), value) for name, value in named.items()]
        await self._put(h11.Response(status_code=status, headers=pairs))

    async def send(self, data: bytes) -> None:
        """A piece of the body."""
        await self._put(h11.Data(data=data))

    async def event(self, value: object) -> None:
        """A server-sent event: JSON, or text as it is."""
        text = value if isinstance(value, str) else json.dumps(value)
        await self.send(f"data: {text}\n\n".encode())

    async def end(self) -> None:
        """The proper end of the body."""
        await self._put(h11.EndOfMessage())

    async def json(self, value: object, status: int = 200) -> None:
        """A whole answer."""
        await self.begin(status)
        await self.send(json.dumps(value).encode())
        await self.end()

    async def until_hung_up(self) -> None:
        """Wait until the other side has closed the connection."""
        try:
            while await self._stream.receive_some(4096):
                pass
        except trio.BrokenResourceError:
            pass
        self.hung_up = True

    async def _put(self, event: h11.Event) -> None:
        data = self._connection.send(event)
        if data:
            await self._stream.send_all(data)


Page = Callable[[Asked, Reply], Awaitable[None]]


@dataclass
class OddServer:
    """A test double of a server: `pages` by path; what is not there is 404."""

    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def serves(self, path: str, value: object, status: int = 200) -> OddServer:
        """Answer a path with this JSON."""

        async def page(_asked: Asked, reply: Reply) -> None:
            await reply.json(value, status)

        self.pages[path] = page
        return self

    def asked_for(self, path: str) -> list[Asked]:
        """The requests of one path."""
        return [asked for asked in self.asked if asked.path == path]

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[OddServer]:
        """Listen on loopback while the block lasts."""
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, [listener])
            yield self
            nursery.cancel_scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        async with stream:
            try:
                while (asked := await self._read(stream, connection)) is not None:
                    self.asked.append(asked)
                    page = self.pages.get(asked.path)
                    reply = Reply(stream, connection)
                    if page is None:
                        await reply.json({"error": {"message": "File Not Found", "code": 404}}, 404)
                    else:
                        await page(asked, reply)
                    if connection.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                        return
                    connection.start_next_cycle()
            except (trio.BrokenResourceError, h11.ProtocolError):
                pass  # the other side is gone

    @staticmethod
    async def _read(stream: trio.SocketStream, connection: h11.Connection) -> Asked | None:
        asked: Asked | None = None
        body = b""
        while True:
            match connection.next_event():
                case h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(65536))
                case h11.Request() as request:
                    headers = {name.decode(): value.decode() for name, value in request.headers}
                    asked = Asked(request.method.decode(), request.target.decode(), headers, None)
                case h11.Data() as data:
                    body += bytes(data.data)
                case h11.EndOfMessage():
                    assert asked is not None
                    asked.body = json.loads(body) if body else None
                    return asked
                case _:
                    return None


def chunk(**fields: Any) -> dict[str, Any]:
    """A chunk of a chat, with what all of them have."""
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []} | fields


def piece(text: str | None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk with a piece of the answer."""
    delta = {"role": "assistant", "content": text} if text is not None else {}
    return chunk(choices=[{"index": 0, "delta": delta, "finish_reason": finish}], **fields)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Counts as all of them tell them."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def is_probe(asked: Asked) -> bool:
    """Whether one token is asked for, to see whether the model answers or how long the prompt is."""
    return bool(asked.body["max_tokens"] == 1)


async def answer_once(asked: Asked, reply: Reply) -> None:
    """One token and the counts, streamed or not."""
    if asked.body["stream"]:
        await reply.begin()
        for event in (piece("Hello"), piece("", "length"), chunk(usage=usage(PROMPT_TOKENS, 1)), "[DONE]"):
            await reply.event(event)
        await reply.end()
        return
    await reply.json(
        {
            "object": "chat.completion",
            "model": asked.body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "length"}],
            "usage": usage(PROMPT_TOKENS, 1),
        }
    )


def talks(*events: object, whole: bool = True) -> Page:
    """A page of chats: one token when it is asked for one, else these events."""

    async def page(asked: Asked, reply: Reply) -> None:
        if is_probe(asked):
            await answer_once(asked, reply)
            return
        await reply.begin()
        for event in events:
            await reply.event(event)
        if whole:
            await reply.end()

    return page


def ollama(*events: object, context_length: int | None = 4096) -> OddServer:
    """A double of Ollama with one model. The counts come at the end, and the token that ends it is among them."""
    said = events or (*map(piece, ANSWER), piece("", "stop"), chunk(usage=usage(PROMPT_TOKENS, 7)), "[DONE]")
    details = {"family": "qwen2", "parameter_size": "7.6B", "quantization_level": "Q4_K_M"}
    loaded: dict[str, Any] = {"name": "qwen2.5:7b", "model": "qwen2.5:7b", "size": 1, "details": details}
    loaded["expires_at"] = "2026-11-02T08:15:34Z"
    if context_length is not None:
        loaded["context_length"] = context_length
    server = OddServer()
    server.serves("/v1/models", {"object": "list", "data": [{"id": "qwen2.5:7b", "owned_by": "library"}]})
    server.serves("/api/version", {"version": "0.12.6"})
    server.serves("/api/ps", {"models": [loaded]})
    server.serves(
        "/api/show",
        {
            "parameters": 'num_ctx                        8192\nstop                           "<|im_end|>"',
            "model_info": {"general.architecture": "qwen2", "qwen2.context_length": 32768},
        },
    )
    server.pages["/v1/chat/completions"] = talks(*said)
    return server


def vllm(*events: object) -> OddServer:
    """A double of vLLM with one model: it counts prompts, and tells its counts with each piece when asked to."""
    counted = (piece(text, usage=usage(PROMPT_TOKENS, at + 1)) for at, text in enumerate(ANSWER))
    said = events or (
        piece("", usage=usage(PROMPT_TOKENS, 0)),
        *counted,
        piece("", "stop", usage=usage(PROMPT_TOKENS, 7)),
        chunk(usage=usage(PROMPT_TOKENS, 7)),
        "[DONE]",
    )
    listed = {"id": "Qwen/Qwen2.5-7B-Instruct", "object": "model", "owned_by": "vllm", "max_model_len": 32768}
    server = OddServer()
    server.serves("/v1/models", {"object": "list", "data": [listed]})
    server.serves("/version", {"version": "0.11.0"})
    server.serves("/tokenize", {"count": PROMPT_TOKENS, "max_model_len": 32768, "tokens": [1] * PROMPT_TOKENS})
    server.pages["/v1/chat/completions"] = talks(*said)

    async def complete(asked: Asked, reply: Reply) -> None:
        if is_probe(asked):
            await answer_once(asked, reply)
            return
        await reply.begin()
        await reply.event({"choices": [{"text": "there was", "finish_reason": None}], "usage": usage(PROMPT_TOKENS, 2)})
        await reply.event({"choices": [{"text": "", "finish_reason": "length"}], "usage": usage(PROMPT_TOKENS, 2)})
        await reply.event({"choices": [], "usage": usage(PROMPT_TOKENS, 2)})
        await reply.event("[DONE]")
        await reply.end()

    server.pages["/v1/completions"] = complete
    return server


def sglang() -> OddServer:
    """A double of SGLang with one model. Its pieces say what stopped them, and its counts have a part for thoughts."""
    card = {"id": "Qwen/Qwen3-8B", "object": "model", "created": 1, "owned_by": "sglang", "root": "Qwen/Qwen3-8B"}
    server = OddServer()
    server.serves("/v1/models", {"object": "list", "data": [card | {"parent": None, "max_model_len": 40960}]})
    last = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop", "matched_stop": 151645}])
    counts = usage(PROMPT_TOKENS, 7) | {"prompt_tokens_details": None, "reasoning_tokens": 0}
    server.pages["/v1/chat/completions"] = talks(piece(""), *map(piece, ANSWER), last, chunk(usage=counts), "[DONE]")
    server.pages["/v1/completions"] = answer_once
    return server


def nim(*, is_ready: bool = True) -> OddServer:
    """A double of NIM with one model, or before that is loaded: then only the proxy in front of it answers."""
    server = OddServer()
    if not is_ready:
        server.serves("/v1/models", {"error": "the model is not there"}, 503)
        return server.serves("/v1/health/ready", {"object": "health.response", "message": "Service is not ready."}, 503)
    model = "nvidia/nemotron-nano-12b-v2-vl"
    card = {"id": model, "object": "model", "created": 1, "owned_by": "system", "root": model, "parent": None}
    permission = {"id": "modelperm-1", "object": "model_permission", "allow_sampling": True, "organization": "*"}
    server.serves(
        "/v1/models", {"object": "list", "data": [card | {"max_model_len": 131072, "permission": [permission]}]}
    )
    server.serves("/v1/health/ready", {"object": "health.response", "message": "Service is ready."})
    said = (piece(""), *map(piece, ANSWER), piece("", "stop"), chunk(usage=usage(PROMPT_TOKENS, 7)), "[DONE]")
    server.pages["/v1/chat/completions"] = talks(*said)
    return server
