"""Which tokens spell a text: what another engine with the same model needs to continue it exactly.

A text can be spelt in several ways, and models do not always draw the tokens that their tokenizer would cut a text
into. Continued from the text alone, an answer can take another turn; continued from its tokens, it does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from protocol.constants import TOKEN_ID_BYTES


def pack(tokens: Iterable[int]) -> bytes:
    """Token ids as they travel."""
    return b"".join(token.to_bytes(TOKEN_ID_BYTES, "big") for token in tokens)


def unpack(data: bytes) -> list[int]:
    """Token ids from how they travel; a part of one at the end is dropped."""
    whole = len(data) - len(data) % TOKEN_ID_BYTES
    return [int.from_bytes(data[at : at + TOKEN_ID_BYTES], "big") for at in range(0, whole, TOKEN_ID_BYTES)]


class Spelling:
    """Tells tokens with the text that they spell, as text may be held back and tokens end anywhere in it."""

    def __init__(self, read: Sequence[int]) -> None:
        """`read` are tokens that spell text from before the answer, and were not told yet."""
        self._untold: deque[tuple[int, int]] = deque((token, 0) for token in read)
        self._sampled_characters = 0
        self._given_characters = 0

    def sampled(self, text: str, tokens: Iterable[int]) -> None:
        """These tokens were sampled, and are this text."""
        self._sampled_characters += len(text)
        self._untold.extend((token, self._sampled_characters) for token in tokens)

    def given(self, text: str) -> bytes:
        """This text is given now: the tokens that end within it, packed."""
        self._given_characters += len(text)
        told = []
        while self._untold and self._untold[0][1] <= self._given_characters:
            told.append(self._untold.popleft()[0])
        return pack(told)
