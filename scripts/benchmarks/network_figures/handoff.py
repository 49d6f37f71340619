"""What a handoff adds to a refusal, beside the refusal alone; and what an aggregator on the way costs, beside none.

`scripts/bench forwarding` says more about both.
"""

from __future__ import annotations

import itertools
from typing import Final

import forwarding
from _figures import Figure, Options

NEEDS_ROOT: Final = False


async def measure(options: Options) -> list[Figure]:
    """As `scripts/bench forwarding`, one stream at a time."""
    orders, repeats, tokens = (5, 1, 20) if options.quick else (30, 5, forwarding.TOKENS)
    async with forwarding.started() as setup:
        handoff = await forwarding.measure_handoff(setup, orders)
        hop = await forwarding.measure_hop(setup, 1, repeats, tokens, itertools.count(1))
    refused, directly = "refused without looking", "the same provider, directly"
    ways = (hop["relayed"], hop["direct"])
    first_ms, other_ms = (way["first_token_ms"] for way in ways)
    rate, other_rate = (way["tokens_per_s"] for way in ways)
    return [
        Figure("refused, a slot held elsewhere", handoff["handed_on_ms"], "ms", refused, handoff["refused_ms"]),
        Figure("first token by way of an aggregator", first_ms, "ms", directly, other_ms),
        Figure("tokens/s by way of an aggregator", rate, "tokens/s", directly, other_rate),
    ]
