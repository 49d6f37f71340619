"""Requests into token ids, with the tokenizer and the chat template that come with the model.

llama.cpp offers both on its HTTP server alone (`ServerWords`). That server listens on a socket in a folder that only
this process can enter, behind a random key, and serves nobody else.

What a user writes must not become a control token: `<|im_end|>` in a message would end the turn, and the rest could
pose as the system. So a message that holds the text of a control token is tokenised by itself, with control tokens
off. Every other message is tokenised together with the template around it, as the model was trained. The answer
so far of a job that is resumed is tokenised by itself too, because it was sampled apart from the template; where the
asker says which tokens spelt it, these are taken, if they do. A raw completion prompt is the asker's own from the first
to the last byte: its control tokens stay.

A template whose markers are ordinary text, such as `[INST]` of the oldest models, can be imitated whatever we do.
"""

from __future__ import annotations

import http.client
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from infernet.engines.spelling import unpack
from protocol.errors import Refusal
from protocol.records import ChatMessage, JobRequest, Kind
from protocol.structs import prepare

TEMPLATE_REFUSES: Final = "the chat template of this model refuses these messages"
_ROLES: Final = ("system", "user", "assistant")
# Tokenising a prompt of the largest size takes about a second.
_REQUEST_TIMEOUT_S: Final = 60.0


class Refused(Exception):
    """A run cannot be done; `text` may be shown to the asker."""

    def __init__(self, code: Refusal, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class _Tokens(Struct, frozen=True):
    tokens: list[int]


class _Spelt(Struct, frozen=True):
    content: str


class _Rendered(Struct, frozen=True):
    prompt: str


class _Defaults(Struct, frozen=True):
    n_ctx: int


class _Properties(Struct, frozen=True):
    default_generation_settings: _Defaults


@dataclass(frozen=True)
class PrivateServer:
    """The HTTP server inside our own process."""

    socket_path: str
    key: str

    def get(self, path: str) -> bytes:
        """The body of the answer to a GET. Raises RuntimeError for any status but 200."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: object) -> bytes:
        """The body of the answer to a POST of JSON. Raises RuntimeError for any status but 200."""
        return self._ask("POST", path, msgspec.json.encode(body))

    def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        connection = _UnixConnection(self.socket_path)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {self.key}", "Connection": "close"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}")
        return answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=_REQUEST_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Prompt:
    """Token ids, and those at their end that spell what the asker knew no tokens of; None where it knew wrong ones."""

    tokens: list[int]
    unspelt: list[int] | None


class Words(Protocol):
    """What is asked of a model's tokenizer and of its chat template."""

    def tokens(self, text: str, *, special: bool, begin: bool) -> list[int]:
        """The ids of a text: with control tokens or with nothing taken for one; with what begins a prompt or not."""

    def spelt(self, tokens: list[int]) -> str | None:
        """The text that these tokens spell, control tokens as their names; None when they are no tokens, or no text."""

    def chat(self, turns: Sequence[tuple[str, str]]) -> str:
        """A chat, role and content each, by the template, up to where the answer begins. Raises Refused."""


class ServerWords:
    """The words of a model that llama.cpp serves."""

    def __init__(self, server: PrivateServer) -> None:
        """`server` is asked for everything."""
        self._server = server

    def context_tokens(self) -> int:
        """The context of a slot. Raises RuntimeError."""
        properties = msgspec.json.decode(self._server.get("/props"), type=_Properties)
        return properties.default_generation_settings.n_ctx

    def tokens(self, text: str, *, special: bool, begin: bool) -> list[int]:
        """See `Words`."""
        body = {"content": text, "parse_special": special, "add_special": begin}
        return msgspec.json.decode(self._server.post("/tokenize", body), type=_Tokens).tokens

    def spelt(self, tokens: list[int]) -> str | None:
        """See `Words`."""
        try:
            return msgspec.json.decode(self._server.post("/detokenize", {"tokens": tokens}), type=_Spelt).content
        except (RuntimeError, msgspec.DecodeError):
            return None

    def chat(self, turns: Sequence[tuple[str, str]]) -> str:
        """See `Words`."""
        body = {"messages": [{"role": role, "content": content} for role, content in turns]}
        try:
            answer = self._server.post("/apply-template", body)
        except RuntimeError:
            # What the template says may quote the prompt, so it goes no further.
            raise Refused(Refusal.BAD_REQUEST, TEMPLATE_REFUSES) from None
        return msgspec.json.decode(answer, type=_Rendered).prompt


class Prompter:
    """Turns requests into token ids; refuses those that no slot can hold."""

    def __init__(self, words: Words, context_tokens: int, system_prompt: str) -> None:
        """`context_tokens` is what one slot holds."""
        self._words = words
        self._system_prompt = system_prompt
        self.context_tokens = context_tokens

    def prompt(self, kind: Kind, request: JobRequest) -> Prompt:
        """The prompt of a chat or a completion. Raises Refused."""
        prompt = self._chat(request.messages) if kind is Kind.CHAT else self._completion(request.prompt)
        continuation = self._continuation(request) if request.continuation else Prompt([], [])
        # SPEC 05: The provider MUST put the continuation directly after where the answer begins by the chat template,
        #   as text without control tokens.
        prompt = prompt + continuation.tokens
        if not self._check_length(prompt):
            raise Refused(Refusal.BAD_REQUEST, "the prompt is empty")
        return Prompt(prompt, continuation.unspelt)

    def _continuation(self, request: JobRequest) -> Prompt:
        text = request.continuation
        given = unpack(request.continuation_ids)
        if not given:
            tokens = self.text_tokens(text)
            return Prompt(tokens, tokens)
        spelt = self._spelt(given)
        # SPEC 05: The provider MUST take `continuation_ids` only when they spell a beginning of `continuation` and the
        #   text holds the name of no control token;
        # Who spelt it is a stranger. It must be this very text, in which nothing is a control token.
        if spelt is None or not text.startswith(spelt) or self._has_control_tokens(text):
            return Prompt(self.text_tokens(text), None)
        unspelt = self.text_tokens(text[len(spelt) :]) if len(spelt) < len(text) else []
        return Prompt(given + unspelt, unspelt)

    def _spelt(self, tokens: list[int]) -> str | None:
        return self._words.spelt(tokens)

    def text_tokens(self, text: str) -> list[int]:
        """Somebody's text, in which nothing is a control token."""
        return self._tokenize(text, special=False, begin=False)

    def _completion(self, prompt: str) -> list[int]:
        return self._check_length(self._tokenize(prompt, special=True, begin=True))

    def _chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        if not messages:
            raise Refused(Refusal.BAD_REQUEST, "the chat has no messages")
        unknown = next((message for message in messages if message.role not in _ROLES), None)
        if unknown is not None:
            raise Refused(Refusal.BAD_REQUEST, "a message has a role other than system, user or assistant")
        turns = [(message.role, message.content) for message in messages]
        if self._system_prompt and not any(role == "system" for role, _ in turns):
            turns.insert(0, ("system", self._system_prompt))
        # Taking text for control tokens makes a prompt shorter, never longer: what is too long here stays so.
        prompt = self._check_length(self._tokenize(self._words.chat(turns), special=True, begin=True))
        if self._has_control_tokens("\n".join(content for _, content in turns)):
            prompt = self._check_length(self._guarded_chat(turns))
        return prompt

    def _guarded_chat(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """The chat with every message that holds control tokens kept apart from the template."""
        mark = f"guarded-{secrets.token_hex(8)}-"
        apart: dict[str, str] = {}
        shown = []
        for number, (role, content) in enumerate(turns):
            if self._has_control_tokens(content):
                apart[f"{mark}{number}."] = content
                shown.append((role, f"{mark}{number}."))
            else:
                shown.append((role, content))
        pieces = re.split(f"({mark}[0-9]+\\.)", self._words.chat(shown))
        prompt = self._tokenize(pieces[0], special=True, begin=True)
        for piece in pieces[1:]:
            if piece in apart:
                prompt += self.text_tokens(apart[piece])
            elif piece:
                prompt += self._tokenize(piece, special=True, begin=False)
        return prompt

    def _has_control_tokens(self, text: str) -> bool:
        return self._tokenize(text, special=True, begin=False) != self._tokenize(text, special=False, begin=False)

    def _tokenize(self, text: str, special: bool, begin: bool) -> list[int]:
        return self._words.tokens(text, special=special, begin=begin)

    def _check_length(self, prompt: list[int]) -> list[int]:
        if len(prompt) >= self.context_tokens:
            text = f"the prompt has {len(prompt)} tokens, and the context of this model holds {self.context_tokens}"
            raise Refused(Refusal.CONTEXT_EXCEEDED, text)
        return prompt


def check_ordered(prompt_tokens: int, ordered_tokens: int) -> None:
    """Hold a prompt to what was ordered. Raises Refused."""
    if prompt_tokens > ordered_tokens:
        text = f"the prompt has {prompt_tokens} tokens, and the order allows {ordered_tokens}"
        raise Refused(Refusal.TOO_LARGE, text)


prepare(globals())
