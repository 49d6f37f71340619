"""Which provider may still hold the beginning of a prompt, so that it need not read it again.

The turns of one conversation begin alike, and engines keep what they have read for a while: sent to the same provider,
the next turn costs only what is new. Prompts are known here by keyed hashes of their beginnings, under a key that is
drawn anew for each process and never leaves it; nothing of this is sent to anybody.
"""

from __future__ import annotations

import hashlib
from typing import Final

from protocol.ids import NodeId
from protocol.recent import Recent
from protocol.records import JobRequest

# A shorter beginning is read in no time, and may be one that half the world shares ("You are a helpful assistant").
PREFIX_CHARACTERS_MIN: Final = 512
# A completion has no turns: it is cut where these many characters are full.
PIECE_CHARACTERS: Final = 1024
PREFIXES_PER_PROMPT_MAX: Final = 64
ENTRIES_MAX: Final = 4096
# Engines keep what they have read until somebody else needs the room.
LIFETIME_S: Final = 900.0
_HASH_BYTES: Final = 16


class Affinity:
    """The state; `salt` is 32 random bytes."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._held: Recent[tuple[str | None, bytes], tuple[NodeId, float]] = Recent(ENTRIES_MAX)

    def __len__(self) -> int:
        return len(self._held)

    def prefixes(self, request: JobRequest) -> tuple[bytes, ...]:
        """What a prompt is known by: a hash for each of its beginnings worth keeping, the shortest first."""
        hashes: list[bytes] = []
        digest = hashlib.blake2b(key=self._salt, digest_size=_HASH_BYTES)
        length = 0
        for piece in _pieces(request):
            # The length before each piece keeps two cuts of the same characters apart.
            data = piece.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
            length += len(piece)
            if length >= PREFIX_CHARACTERS_MIN:
                hashes.append(digest.digest())
        return tuple(hashes[-PREFIXES_PER_PROMPT_MAX:])

    def remember(self, prefixes: tuple[bytes, ...], model: str | None, provider: NodeId, now_s: float) -> None:
        """This provider has read a prompt; `model` is what was asked for, None for any."""
        for prefix in prefixes:
            self._held.put((model, prefix), (provider, now_s + LIFETIME_S))

    def provider_of(self, prefixes: tuple[bytes, ...], model: str | None, now_s: float) -> NodeId | None:
        """Who read the longest of these beginnings last, if it may still hold it."""
        for prefix in reversed(prefixes):
            held = self._held.get((model, prefix))
            if held is not None and held[1] > now_s:
                return held[0]
        return None


def _pieces(request: JobRequest) -> list[str]:
    if request.messages:
        return [f"{message.role}\n{message.content}" for message in request.messages]
    prompt = request.prompt
    return [prompt[start : start + PIECE_CHARACTERS] for start in range(0, len(prompt), PIECE_CHARACTERS)]
