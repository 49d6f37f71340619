"""How far a provider's word about its own speed is believed, where nobody has measured it.

A figure is worth at most what stands in the middle when all candidates that are compared are put in order: each with
what was measured of it, else with what it states, else with what is assumed of a stranger. So one liar, or a few, gain
nothing over honest strangers; many of them gain a bounded factor, until jobs show what is true. A figure that speaks
against its provider is believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from protocol.ranking import STRANGER, Need, Standing

# The same that the word of others may do (protocol/reputation.py).
STATED_FACTOR_MAX: Final = 4.0
# English; and prompts are padded, so the half of their bytes may be none.
_BYTES_PER_TOKEN: Final = 6
_RATE_MAX: Final = STATED_FACTOR_MAX * STRANGER.tokens_per_s
_FIRST_TOKEN_S_MIN: Final = STRANGER.first_token_s / STATED_FACTOR_MAX


class Stated(NamedTuple):
    """Tokens per second as a provider states them; 0 where it does not."""

    prompt_tokens_per_s: int
    tokens_per_s: int


NOTHING_STATED: Final = Stated(0, 0)


def is_open(known: Standing) -> bool:
    """Whether there is a figure of which nothing was measured: else what is stated counts for nothing."""
    # What is assumed of a stranger, to the last digit, was not measured.
    return known.tokens_per_s == STRANGER.tokens_per_s or known.first_token_s == STRANGER.first_token_s


def believed(known: Sequence[Standing], stated: Sequence[Stated], need: Need) -> Sequence[Standing]:
    """What to count on of each candidate, from what is known of it and what it states."""
    # SPEC 01: The receiver MUST NOT let a speed that a node states count for anything where it measured that node's
    #   itself, and MUST NOT believe one further than the median of the candidates that it compares.
    if all(one is NOTHING_STATED for one in stated):
        return known
    prompt_tokens = need.prompt_bytes / _BYTES_PER_TOKEN
    told = [_counted(*each, prompt_tokens) for each in zip(known, stated, strict=True)]
    middle = (len(known) - 1) // 2
    rates = sorted(rate or standing.tokens_per_s for standing, (rate, _) in zip(known, told, strict=True))
    firsts = sorted(first or standing.first_token_s for standing, (_, first) in zip(known, told, strict=True))
    rate_max = min(rates[middle], _RATE_MAX)
    first_token_s_min = max(firsts[-1 - middle], _FIRST_TOKEN_S_MIN)
    return [
        replace(
            standing,
            tokens_per_s=min(rate, rate_max) if rate else standing.tokens_per_s,
            first_token_s=max(first, first_token_s_min) if first else standing.first_token_s,
        )
        if rate or first
        else standing
        for standing, (rate, first) in zip(known, told, strict=True)
    ]


def _counted(standing: Standing, stated: Stated, prompt_tokens: float) -> tuple[float, float]:
    """The rate, and the time to the first token, that count as stated; 0 where it is not, or where it was measured."""
    is_rate_open = standing.tokens_per_s == STRANGER.tokens_per_s
    is_first_open = standing.first_token_s == STRANGER.first_token_s and stated.prompt_tokens_per_s
    return (
        float(stated.tokens_per_s) if is_rate_open else 0.0,
        prompt_tokens / stated.prompt_tokens_per_s if is_first_open else 0.0,
    )
