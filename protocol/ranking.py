"""How soon, and how surely, a provider would be done with a job: the figures by which routing prefers one to another.

Everything here is measured or counted by the asker, but for load and price, which the provider states: who states
them too low is refused by what it then does. Its word about its speed has been cut to size before (protocol/stated.py).

Candidates come in tiers, and within a tier by

    (wait + (first token + output / rate) * slowness) * price / reliability

where reliability is the rate of success to count on, slowness grows with load from 1 to 2, and price from 1 to 2 with
the share of the asker's limit that is asked.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from msgspec import Struct

from protocol import constants as c
from protocol.jobs import cost_bound_uusd
from protocol.records import FreePolicy, ModelOffer

# Below this weight of jobs a provider is new: it gets small jobs, so that a stranger's first failure costs little.
NEWCOMER_JOBS: Final = 3.0
# From this weight on what can be counted on is close to what was seen.
PROVEN_JOBS: Final = 20.0
# What counts as small: a short conversation and a page of answer.
SMALL_PROMPT_BYTES: Final = 16 * 1024 + c.SEAL_OVERHEAD_BYTES
SMALL_OUTPUT_TOKENS: Final = 1024
# A provider that holds the beginning of this prompt need not read it again: it may look this much worse than the best.
WARM_FACTOR: Final = 1.5


class Tier(IntEnum):
    """What separates candidates before any figure does, best first."""

    READY = 0
    MAY_REFUSE = 1
    NEWCOMER = 2
    FULL = 3
    RESTING = 4


class Standing(Struct, frozen=True):
    """What an asker knows of one model of one provider, beside its record. The defaults are those of a stranger.

    `jobs` is the weight of all jobs known of, `has_served` whether it did one for us, `reliability` the rate of
    success to count on and `promise` the rate that it may have at best, `open_jobs` what it does for us now, `rest_s`
    how long it is left alone after a failure or a refusal, `is_warm` whether it holds the beginning of the prompt.
    """

    jobs: float = 0.0
    has_served: bool = False
    reliability: float = 0.05
    promise: float = 0.95
    first_token_s: float = 1.0
    tokens_per_s: float = 10.0
    open_jobs: int = 0
    rest_s: float = 0.0
    is_warm: bool = False


STRANGER: Final = Standing()


class Need(Struct, frozen=True):
    """What of a request matters for the ranking. Prices in micro-USD per 1,000,000 tokens, None: any.

    The whole may cost `spend_uusd_max`, in micro-USD.
    """

    prompt_bytes: int
    output_tokens: int
    is_free: bool
    price_in_uusd_max: int | None
    price_out_uusd_max: int | None
    prompt_tokens: int = 0
    spend_uusd_max: int | None = None

    @property
    def is_small(self) -> bool:
        return self.prompt_bytes <= SMALL_PROMPT_BYTES and self.output_tokens <= SMALL_OUTPUT_TOKENS


class Rank(Struct, frozen=True):
    """Where a candidate stands, and the figures that put it there. Less is better in `tier`, then in `score_s`.

    `hope_s` is the score if it turned out to be as good as may be.
    """

    tier: Tier
    score_s: float
    hope_s: float
    expected_s: float
    price_uusd: int
    wait_s: float
    load: int
    standing: Standing

    @property
    def key(self) -> tuple[int, float, int]:
        return self.tier, self.score_s, self.price_uusd

    def may_beat(self, best: Rank) -> bool:
        """Whether it may turn out to be better than the best, and has done too little for that to show."""
        is_open = NEWCOMER_JOBS <= self.standing.jobs < PROVEN_JOBS
        return is_open and self.tier <= best.tier and self.hope_s < best.score_s


def rank(
    offer: ModelOffer, free_policy: FreePolicy, load: int, wait_s: float | None, standing: Standing, need: Need
) -> Rank:
    """Rank one candidate. `load` is in steps of 0 to 8; `wait_s` for a slot, where the provider says."""
    load = max(load, min(c.LOAD_STEPS, standing.open_jobs * c.LOAD_STEPS // offer.concurrency))
    slowness = 1 + load / c.LOAD_STEPS
    service_s = (standing.first_token_s + need.output_tokens / standing.tokens_per_s) * slowness
    is_full = load >= c.LOAD_STEPS
    if wait_s is None or not is_full:
        # Without a word about it, a whole job of the same size is before ours.
        wait_s = service_s if is_full else 0.0
    wait_s = max(wait_s, standing.rest_s)
    expected_s = wait_s + service_s
    cost_s = expected_s * _price_factor(offer, need) / (WARM_FACTOR if standing.is_warm else 1.0)
    price_uusd = 0 if need.is_free else offer.price_in_uusd + offer.price_out_uusd + offer.price_job_uusd
    return Rank(
        tier=_tier(free_policy, is_full, standing, need, wants_nothing=need.is_free or offer.is_free),
        score_s=cost_s / standing.reliability,
        hope_s=cost_s / standing.promise,
        expected_s=expected_s,
        price_uusd=price_uusd,
        wait_s=wait_s,
        load=load,
        standing=standing,
    )


def is_newcomer(standing: Standing) -> bool:
    """Whether too little is known of it to trust it with a large job."""
    return standing.jobs < NEWCOMER_JOBS


def _tier(free_policy: FreePolicy, is_full: bool, standing: Standing, need: Need, *, wants_nothing: bool) -> Tier:
    if standing.rest_s > 0:
        return Tier.RESTING
    if is_full:
        return Tier.FULL
    if is_newcomer(standing) and not need.is_small:
        return Tier.NEWCOMER
    if wants_nothing and free_policy is not FreePolicy.ALL and not standing.has_served:
        return Tier.MAY_REFUSE
    return Tier.READY


def _price_factor(offer: ModelOffer, need: Need) -> float:
    """From 1 for nothing to 2 at the limits; 1 where no limit says what much is."""
    if need.is_free:
        return 1.0
    asked = ((offer.price_in_uusd, need.price_in_uusd_max), (offer.price_out_uusd, need.price_out_uusd_max))
    shares = [price / limit for price, limit in asked if limit]
    if need.spend_uusd_max:
        prompt_tokens = min(need.prompt_tokens, offer.context_tokens)
        shares.append(min(1.0, cost_bound_uusd(offer, prompt_tokens, need.output_tokens) / need.spend_uusd_max))
    return 1 + sum(shares) / len(shares) if shares else 1.0
