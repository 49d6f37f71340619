"""How fast the models of this node are: measured here, and kept where other parts of the node can read it.

A prompt of a few hundred tokens that no cache can know is read, and an answer written, several times; what is kept is
the median. The speed of reading is that from the request to the first of the answer, so it is what an asker sees.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from infernet.engines.trial import Trial, question
from infernet.host.files import write_private
from protocol.records import JobRequest, ModelOffer

FILE_NAME: Final = "benchmark.json"
FILE_BYTES_MAX: Final = 64 * 1024
OUTPUT_TOKENS: Final = 64
_PROMPT_WORDS: Final = 256
_WORDS: Final = ("the", "river", "carries", "leaves", "and", "small", "boats", "past", "quiet", "houses", "at", "night")
_TASK: Final = "Tell a long story that goes on from this:"

Rate = Annotated[float, Meta(ge=0)]


class Speed(Struct, frozen=True):
    """What was measured of one model; rates are tokens per second, None where there was too little to measure."""

    model: str
    prompt_tokens: int
    prompt_s: Rate
    prompt_tokens_per_s: Rate | None
    output_tokens: int
    tokens_per_s: Rate | None
    rounds: int
    #: Of the weights, in hexadecimal digits; None where they are not known.
    fingerprint: str | None = None


class Benchmark(Struct, frozen=True):
    """One measurement. `at_ms` is when it was, in milliseconds since 1970."""

    at_ms: int
    engine: str
    models: list[Speed]


def prompts(rounds: int, offer: ModelOffer) -> list[JobRequest]:
    """Prompts of the same length, of which no two begin alike, for as much as the model's context holds."""
    words = max(8, min(_PROMPT_WORDS, (offer.context_tokens - OUTPUT_TOKENS) // 3))
    text = " ".join(_WORDS[number % len(_WORDS)] for number in range(words))
    return [question((secrets.token_hex(4), _TASK, text)) for _ in range(rounds)]


def speeds_of(trials: list[Trial], offers: Mapping[str, ModelOffer]) -> list[Speed]:
    """The medians of each model's rounds."""
    names = dict.fromkeys(trial.model for trial in trials)
    return [_speed_of([trial for trial in trials if trial.model == name], offers[name]) for name in names]


def _speed_of(rounds: list[Trial], offer: ModelOffer) -> Speed:
    prompt_s = median(trial.prompt_s for trial in rounds)
    prompt_tokens = round(median(trial.prompt_tokens for trial in rounds))
    rates = [trial.tokens_per_s for trial in rounds if trial.tokens_per_s is not None]
    return Speed(
        model=rounds[0].model,
        prompt_tokens=prompt_tokens,
        prompt_s=prompt_s,
        prompt_tokens_per_s=prompt_tokens / prompt_s if prompt_s > 0 else None,
        output_tokens=round(median(trial.output_tokens for trial in rounds)),
        tokens_per_s=median(rates) if rates else None,
        rounds=len(rounds),
        fingerprint=offer.fingerprint.hex() if any(offer.fingerprint) else None,
    )


def keep(state_dir: Path, benchmark: Benchmark) -> Path:
    """Keep the last measurement. Raises FilesError."""
    path = state_dir / FILE_NAME
    write_private(path, msgspec.json.encode(benchmark))
    return path


def kept(state_dir: Path) -> Benchmark | None:
    """The last measurement; None when there is none that can be read."""
    return read(state_dir / FILE_NAME)


def read(path: Path) -> Benchmark | None:
    """A measurement that was kept; None when there is none that can be read."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=Benchmark)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
