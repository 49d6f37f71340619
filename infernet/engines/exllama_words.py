"""The words of a model that ExLlama runs: its tokenizer, and the chat template of its folder.

ExLlamaV2's tokenizer takes the texts of control tokens for such also where it is asked not to, because the library
beneath it does. So whatever somebody wrote is cut within each of them, and what of it is a control token all the
same is dropped.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Final

from infernet.engines.exllama_library import Library
from infernet.engines.folders import Folder
from infernet.engines.prompts import TEMPLATE_REFUSES, Refused
from infernet.engines.templates import ChatTemplate, TemplateFailed
from protocol.errors import Refusal

# Each pass cuts what the last one left; texts of control tokens within each other are no more than a few.
_PASSES_MAX: Final = 8


class FolderWords:
    """See `prompts.Words`. May be used by several threads."""

    def __init__(self, library: Library, folder: Folder, template: ChatTemplate | None) -> None:
        """`template` is that of the folder; without one there are no chats."""
        self._library = library
        self._folder = folder
        self._template = template
        # ExLlamaV3 notes on the tokenizer itself whether control tokens are wanted.
        self._lock = threading.Lock()
        self._control_ids = frozenset(folder.control.values()) | frozenset(folder.ends)
        bos = folder.names.get("bos_token", "")
        self._bos = bos if folder.begins_with_bos and bos in folder.control else ""
        # The longest first, as tokenizers have it.
        texts = sorted(folder.control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts))) if texts else None

    def tokens(self, text: str, *, special: bool, begin: bool) -> list[int]:
        """See `prompts.Words`. What a template wrote begins with the token for that as it is."""
        if special:
            begun = self._bos if begin and text and not text.startswith(self._bos) else ""
            return self._encode(begun + text, special=True)
        return [
            token
            for piece in self._cut(text)
            for token in self._encode(piece, special=False)
            if token not in self._control_ids
        ]

    def spelt(self, tokens: list[int]) -> str | None:
        """See `prompts.Words`. Control tokens spell no text that anybody could have been given."""
        if not all(token < self._library.vocabulary_size and token not in self._control_ids for token in tokens):
            return None
        with self._lock:
            return self._library.decode(tokens, True)

    def chat(self, turns: Sequence[tuple[str, str]]) -> str:
        """See `prompts.Words`."""
        if self._template is None:
            raise Refused(Refusal.UNSUPPORTED, "this model has no chat template")
        try:
            return self._template.render(turns)
        except TemplateFailed:
            # What the template says may quote the prompt, so it goes no further.
            raise Refused(Refusal.BAD_REQUEST, TEMPLATE_REFUSES) from None

    def _encode(self, text: str, *, special: bool) -> list[int]:
        if not text:
            return []
        with self._lock:
            return self._library.encode(text, special)

    def _cut(self, text: str) -> list[str]:
        """The text in pieces, none of which holds the text of a control token."""
        pieces = [text]
        for _ in range(_PASSES_MAX):
            cut = [half for piece in pieces for half in self._halves(piece)]
            if len(cut) == len(pieces):
                break
            pieces = cut
        return pieces

    def _halves(self, text: str) -> list[str]:
        if self._control is None:
            return [text]
        ends = [match.start() + 1 for match in self._control.finditer(text) if len(match[0]) > 1]
        return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True) if start < end]
