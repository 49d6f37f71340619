"""What both releases of ExLlama are to us, and how their models are kept from telling on each other."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from infernet.engines.contract import EngineUnavailable
from infernet.engines.exllama_pump import Generator
from infernet.host.packaged import NOT_INSIDE, is_packaged
from protocol.records import Sampling

# ExLlama keeps contexts in pages of this many tokens.
PAGE_TOKENS: Final = 256
# A cancel takes effect after the turn under way, in which one prompt goes on by this much: a GPU reads it in half a
# second also where the model is large.
CHUNK_TOKENS: Final = 512
HASH_BYTES: Final = 16

MakeJob = Callable[[Sequence[int], int, Sampling, Sequence[int]], Any]


@dataclass(frozen=True)
class Library:
    """A loaded model of either release.

    `encode` gives the ids of a text, with control tokens or without; `decode` the text of ids, with the names of
    control tokens or without; `make_job` a job for the generator: prompt, most tokens, sampling, tokens that end it.
    """

    generator: Generator
    encode: Callable[[str, bool], list[int]]
    decode: Callable[[list[int], bool], str]
    make_job: MakeJob
    vocabulary_size: int
    end_token: int | None


def import_library(name: str, hint: str) -> ModuleType:
    """A release of ExLlama. The first import may compile it, for minutes. Raises EngineUnavailable."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if is_packaged():
            raise EngineUnavailable(f"{name} {NOT_INSIDE}") from None
        missing = error.name or name
        if missing.partition(".")[0] == name:
            raise EngineUnavailable(f"{name} is not installed: {hint}") from None
        raise EngineUnavailable(f"{name} needs {missing}, which is not installed: {hint}") from None
    # Without a CUDA compiler it is an OSError at first and an ImportError afterwards; exllamav3 says RuntimeError where
    # torch is missing.
    except (OSError, ImportError, RuntimeError, AssertionError, ValueError) as error:
        raise EngineUnavailable(
            f"{name} is installed and does not start here ({type(error).__name__}): it needs an NVIDIA card, and a "
            f"wheel that fits the installed torch, CUDA and Python, or the CUDA toolkit to compile it; {hint}"
        ) from None


def keep_prompts_apart(name: str, hashing: Sequence[tuple[str, str]], matching: tuple[str, str, str]) -> None:
    """Have nobody's prompt found in the cache by anybody else's. Raises EngineUnavailable.

    ExLlama shares the pages of prompts that begin alike, and such a prompt is answered faster, which tells a stranger
    that somebody sent it. There is no setting against it. So the hash that pages are found by is drawn instead
    of computed, and the search for a page that begins alike finds none. `hashing` are module and name of the functions
    that hash, `matching` module, name of the extension there, and the function of it that compares.
    """
    modules = {module: importlib.import_module(module) for module in [*(module for module, _ in hashing), matching[0]]}
    extension = getattr(modules[matching[0]], matching[1], None)
    if not all(callable(getattr(modules[module], function, None)) for module, function in hashing) or extension is None:
        raise EngineUnavailable(
            f"this {name} keeps prompts in a way that this program does not know, so they could not be kept apart: "
            "install the version that docs/engines.md names"
        )
    for module, function in hashing:
        setattr(modules[module], function, _drawn_hash)
    if not isinstance(extension, _FindsNothing):
        setattr(modules[matching[0]], matching[1], _FindsNothing(extension, matching[2]))


def _drawn_hash(_page: object, _before: bytes | None) -> bytes:
    return secrets.token_bytes(HASH_BYTES)


class _FindsNothing:
    """An extension of which one function, that counts how many tokens two pages have in common, says none."""

    def __init__(self, extension: Any, comparing: str) -> None:
        self._extension = extension
        self._comparing = comparing

    def __getattr__(self, name: str) -> Any:
        if name == self._comparing:
            return lambda *_: 0
        return getattr(self._extension, name)


def cache_tokens(context_tokens: int, slots: int) -> int:
    """How many tokens the cache must hold for all slots: whole pages for each."""
    return slots * (-(-context_tokens // PAGE_TOKENS)) * PAGE_TOKENS


def is_greedy(sampling: Sampling) -> bool:
    """Whether always the likeliest token is wanted; ExLlama takes a top-p of 0 for none at all."""
    return sampling.temperature_milli == 0 or sampling.top_p_milli == 0
