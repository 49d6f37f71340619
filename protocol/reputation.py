"""What is known of providers from jobs that were really done: our own, and those of others who show a receipt.

Nothing that a provider says about itself enters. Our own jobs count in full: how many went well, and how long the first
token and the rest took by our clock. The word of others counts where it comes with a receipt that the provider signed
for that asker, each receipt once, and then within two limits: all others together weigh at most a quarter of what we
saw ourselves (or two jobs, where that is more), and no asker more than a fifth of that. So a thousand invented askers
weigh as much as one crowd of five, and who has worked with a provider cannot be talked out of what it saw.

From successes and failures follows a rate of success, and from that its lower 5 % quantile, which is what routing
counts on. Everything fades with a half-life of 14 days, so that what a provider did long ago neither carries nor
condemns it for ever. Times are wall-clock milliseconds, because this outlives the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from typing import Final

from msgspec import Struct

from protocol import constants as c
from protocol.envelope import open_record
from protocol.errors import RemoteProtocolError
from protocol.ids import NodeId
from protocol.quantiles import beta_quantile
from protocol.ranking import STRANGER, Standing
from protocol.recent import Recent
from protocol.records import ModelOffer, Outcome, ReceiptRecord, ReportEntry, ReportRecord

HALF_LIFE_MS: Final = 14 * 24 * 60 * 60 * 1000
QUANTILE: Final = 0.05
# More than this many jobs say nothing new about a rate, and would hide for long that a good provider has turned bad.
JOBS_WEIGHT_MAX: Final = 200.0
# What all others say weighs this share of what we saw, or this many jobs. With a quarter, nobody can reverse our order
# of two providers whose rates of success differ by a quarter or more.
OTHERS_SHARE: Final = 0.25
OTHERS_JOBS_MIN: Final = 2.0
# ... and one asker this share of that (security: at most 20 % of a score from one payer).
ASKER_SHARE: Final = 0.2
# Below this a job of ours is so long ago that it says nothing any more.
HAS_SERVED_JOBS: Final = 0.5
# A measurement moves the running mean by at least this much: the speed of a provider changes with what it runs.
MEASURED_WEIGHT_MAX: Final = 8.0
# What lies beyond is no measurement of a job.
MEASURED_MIN: Final = 1e-3
MEASURED_MAX: Final = 1e5
# What is assumed of a stranger, and what others measured, weighs as much as this part of one measurement of our own.
ASSUMED_WEIGHT: Final = 0.25
# What others measured may move the estimate for a stranger by this factor at most.
OTHERS_SPEED_FACTOR_MAX: Final = 4.0

# Providers' models with jobs of ours, and those that we only heard of. The ones used last stay.
OWN_MAX: Final = 4096
HEARD_MAX: Final = 4096
ASKERS_PER_PROVIDER_MAX: Final = 16
RECEIPTS_REMEMBERED_MAX: Final = 16_384
# A receipt proves a job of late, not one that somebody has kept for this occasion.
RECEIPT_AGE_MS_MAX: Final = c.REPORT_LIFETIME_MS_MAX
FAVOURITES_PER_MODEL: Final = 8
MODELS_WITH_FAVOURITES_MAX: Final = 256

Key = tuple[NodeId, str]


class SavedExperience(Struct, frozen=True):
    """Our own experience with one model of one provider, as it is kept over restarts; weights as of `at_ms`."""

    provider: NodeId
    model: str
    at_ms: int
    ok: float
    bad: float
    refused: float
    silent: float
    first_token_s: float
    first_token_weight: float
    tokens_per_s: float
    tokens_per_s_weight: float


class Account(Struct, frozen=True):
    """Why a provider's model stands as it does, for people: weights of jobs as of now."""

    ok: float
    bad: float
    refused: float
    silent: float
    others_ok: float
    others_bad: float
    askers: int
    standing: Standing


NOTHING_KNOWN: Final = Account(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, STRANGER)


@dataclass(slots=True)
class _Mean:
    """A running mean of logarithms, and how much it weighs."""

    value: float
    weight: float = 0.0

    def take(self, value: float) -> None:
        """Move towards a value; the first one replaces what was assumed."""
        value = min(max(value, MEASURED_MIN), MEASURED_MAX)
        self.weight = min(self.weight + 1, MEASURED_WEIGHT_MAX)
        share = 1 / self.weight
        self.value = math.exp(math.log(self.value) * (1 - share) + math.log(value) * share)


@dataclass(slots=True)
class _Experience:
    """Our own jobs as of `at_ms`."""

    at_ms: int
    ok: float = 0.0
    bad: float = 0.0
    refused: float = 0.0
    silent: float = 0.0
    first_token_s: _Mean = field(default_factory=lambda: _Mean(STRANGER.first_token_s))
    tokens_per_s: _Mean = field(default_factory=lambda: _Mean(STRANGER.tokens_per_s))

    def faded(self, wall_ms: int) -> _Experience:
        """The same as of another moment."""
        factor = _fading(self.at_ms, wall_ms)
        return _Experience(
            wall_ms,
            self.ok * factor,
            self.bad * factor,
            self.refused * factor,
            self.silent * factor,
            _Mean(self.first_token_s.value, self.first_token_s.weight * factor),
            _Mean(self.tokens_per_s.value, self.tokens_per_s.weight * factor),
        )


@dataclass(slots=True)
class _Word:
    """What one other asker saw, as far as it showed receipts."""

    at_ms: int
    ok: float = 0.0
    bad: float = 0.0
    first_token_s: float = 0.0
    tokens_per_s: float = 0.0


class Reputation:
    """The state; `ourselves` is whose experience it is."""

    def __init__(self, ourselves: NodeId) -> None:
        self._ourselves = ourselves
        self._own: Recent[Key, _Experience] = Recent(OWN_MAX)
        self._heard: Recent[Key, Recent[NodeId, _Word]] = Recent(HEARD_MAX)
        self._receipts: Recent[tuple[NodeId, NodeId, bytes, int], bool] = Recent(RECEIPTS_REMEMBERED_MAX)
        self._favourites: Recent[str | None, Recent[NodeId, bool]] = Recent(MODELS_WITH_FAVOURITES_MAX)
        self._changed: Recent[Key, bool] = Recent(OWN_MAX)

    # ------------------------------------------------------------ our own jobs

    def job_done(self, provider: NodeId, model: str, wall_ms: int) -> None:
        """A job of ours ended with a receipt that matches what arrived."""
        self._experience(provider, model, wall_ms).ok += 1
        self.favour(provider, model)

    def job_failed(self, provider: NodeId, model: str, wall_ms: int) -> None:
        """The provider took a job of ours and did not finish it, or broke the protocol."""
        self._experience(provider, model, wall_ms).bad += 1

    def was_silent(self, provider: NodeId, model: str, wall_ms: int) -> None:
        """The provider let a deadline pass: as bad as failing, and counted apart for people."""
        experience = self._experience(provider, model, wall_ms)
        experience.bad += 1
        experience.silent += 1

    def refused(self, provider: NodeId, model: str, wall_ms: int) -> None:
        """The provider said no, which is honest: it is counted for people and changes no rate."""
        self._experience(provider, model, wall_ms).refused += 1

    def measured(
        self, provider: NodeId, model: str, wall_ms: int, *, first_token_s: float, tokens_per_s: float | None
    ) -> None:
        """What our clock saw of a job: from order to first token, and the rate after it where there was enough."""
        experience = self._experience(provider, model, wall_ms)
        experience.first_token_s.take(first_token_s)
        if tokens_per_s is not None:
            experience.tokens_per_s.take(tokens_per_s)

    def _experience(self, provider: NodeId, model: str, wall_ms: int) -> _Experience:
        """The entry to change, faded to this moment."""
        key = (provider, model)
        held = self._own.get(key)
        experience = held.faded(wall_ms) if held is not None else _Experience(wall_ms)
        jobs = experience.ok + experience.bad
        if jobs > JOBS_WEIGHT_MAX - 1:
            experience.ok *= (JOBS_WEIGHT_MAX - 1) / jobs
            experience.bad *= (JOBS_WEIGHT_MAX - 1) / jobs
        self._changed.put(key, True)
        return self._own.put(key, experience)

    # ------------------------------------------------------------ the word of others

    def hear(
        self, report: ReportRecord, offer_of: Callable[[NodeId, str], ModelOffer | None], wall_ms: int
    ) -> list[ReportEntry]:
        """Take from a report, whose signature was checked, what comes with a receipt; gives the entries that counted.

        `offer_of` is what a provider offers under a model name, None for one that is not known: nobody needs to know
        how well a stranger's stranger works.
        """
        if report.asker == self._ourselves:
            return []
        counted = []
        for entry in report.entries:
            offer = offer_of(entry.provider, entry.model)
            # SPEC 10: The receiver MUST NOT let a report without a receipt change how it ranks a provider.
            if offer is None or entry.evidence is None or entry.provider in (report.asker, self._ourselves):
                continue
            receipt = self._new_receipt(entry, report.asker, offer, wall_ms)
            if receipt is not None:
                self._take_word(report.asker, entry, receipt, wall_ms)
                counted.append(entry)
        return counted

    def _new_receipt(self, entry: ReportEntry, asker: NodeId, offer: ModelOffer, wall_ms: int) -> ReceiptRecord | None:
        """The receipt that an entry shows, if it proves a job of late of this asker there, and was not shown before."""
        assert entry.evidence is not None
        try:
            receipt = open_record(entry.evidence, ReceiptRecord)
        except RemoteProtocolError:
            return None
        # SPEC 10: The receiver MUST check that the receipt is signed by the provider that the entry names, for the
        #   asker that signed the report, and is no older than a day.
        if (receipt.provider, receipt.asker) != (entry.provider, asker):
            return None
        # The receipt does not name the model: the weights tie it to one, where they are known.
        if any(offer.fingerprint) and receipt.fingerprint != offer.fingerprint:
            return None
        if not -c.CLOCK_SKEW_MS_MAX <= wall_ms - receipt.accepted_at_ms <= RECEIPT_AGE_MS_MAX:
            return None
        # SPEC 10: The receiver MUST count each receipt once, and as one job, whatever the entry says about how many
        #   there were.
        name = (receipt.provider, asker, receipt.job, receipt.attempt)
        if name in self._receipts:
            return None
        self._receipts.put(name, True)
        return receipt

    def _take_word(self, asker: NodeId, entry: ReportEntry, receipt: ReceiptRecord, wall_ms: int) -> None:
        """One receipt is the weight of one job, however many the asker says there were."""
        key = (entry.provider, entry.model)
        words = self._heard.get(key)
        if words is None:
            words = Recent(ASKERS_PER_PROVIDER_MAX)
        self._heard.put(key, words)
        word = words.put(asker, words.get(asker) or _Word(wall_ms))
        factor = _fading(word.at_ms, wall_ms)
        jobs = entry.jobs_done + entry.jobs_failed
        is_good = receipt.outcome in (Outcome.STOP, Outcome.LENGTH)
        ok = entry.jobs_done / jobs if jobs else float(is_good)
        word.ok = word.ok * factor + ok
        word.bad = word.bad * factor + 1 - ok
        word.at_ms = wall_ms
        if entry.first_token_ms:
            word.first_token_s = entry.first_token_ms / 1000
        if entry.tokens_per_s_milli:
            word.tokens_per_s = entry.tokens_per_s_milli / 1000

    # ------------------------------------------------------------ what follows from it

    def standing(self, provider: NodeId, model: str, wall_ms: int) -> Standing:
        """What routing counts on."""
        return self.account(provider, model, wall_ms).standing

    def account(self, provider: NodeId, model: str, wall_ms: int) -> Account:
        """The same with where it comes from."""
        held = self._own.get((provider, model))
        if held is None and (provider, model) not in self._heard:
            return NOTHING_KNOWN
        own = held.faded(wall_ms) if held is not None else _Experience(wall_ms)
        heard = self._heard.get((provider, model))
        words = heard.values() if heard is not None else []
        others_ok, others_bad = _bounded(words, own.ok + own.bad, wall_ms)
        ok, bad = own.ok + others_ok, own.bad + others_bad
        standing = Standing(
            jobs=ok + bad,
            has_served=own.ok >= HAS_SERVED_JOBS,
            reliability=reliability(ok, bad),
            promise=promise(ok, bad),
            first_token_s=_estimate(own.first_token_s, [word.first_token_s for word in words], STRANGER.first_token_s),
            tokens_per_s=_estimate(own.tokens_per_s, [word.tokens_per_s for word in words], STRANGER.tokens_per_s),
        )
        return Account(own.ok, own.bad, own.refused, own.silent, others_ok, others_bad, len(words), standing)

    def favourites(self, model: str | None) -> list[NodeId]:
        """A few providers that did jobs of this model, or of any, for us, the last one last."""
        return list(self._favourites.get(model) or ())

    def favour(self, provider: NodeId, model: str) -> None:
        """This provider did a job that asked for the model by this name."""
        for name in (model, None):
            favourites = self._favourites.get(name)
            if favourites is None:
                favourites = Recent(FAVOURITES_PER_MODEL)
            self._favourites.put(name, favourites).put(provider, True)

    # ------------------------------------------------------------ over restarts

    def take_changed(self) -> list[SavedExperience]:
        """What changed since last time, to be saved."""
        changed, self._changed = self._changed, Recent(OWN_MAX)
        return [_saved(key, held) for key in changed if (held := self._own.get(key)) is not None]

    def restore(self, saved: Iterable[SavedExperience]) -> None:
        """Take what an earlier process saved, oldest first."""
        for each in saved:
            experience = _Experience(
                each.at_ms,
                each.ok,
                each.bad,
                each.refused,
                each.silent,
                _Mean(each.first_token_s, each.first_token_weight),
                _Mean(each.tokens_per_s, each.tokens_per_s_weight),
            )
            self._own.put((each.provider, each.model), experience)
            if each.ok > each.bad:
                self.favour(each.provider, each.model)


def reliability(ok: float, bad: float) -> float:
    """The rate of success to count on after these weights of jobs: the lower 5 % quantile of Beta(ok + 1, bad + 1)."""
    return _quantile(round(ok * 8), round(bad * 8))


def promise(ok: float, bad: float) -> float:
    """The rate of success that is possible at best after these weights of jobs: the upper 5 % quantile of the same."""
    return 1 - _quantile(round(bad * 8), round(ok * 8))


@lru_cache(maxsize=32_768)
def _quantile(ok_eighths: int, bad_eighths: int) -> float:
    # An eighth of a job moves the quantile by a hundredth at most, and makes the same few values come again.
    return beta_quantile(QUANTILE, ok_eighths / 8 + 1, bad_eighths / 8 + 1)


def _bounded(words: list[_Word], own_jobs: float, wall_ms: int) -> tuple[float, float]:
    """What the word of others weighs, as successes and failures, within the limits."""
    # SPEC 10: The receiver MUST NOT let one asker weigh more than a fifth of what all others may weigh, nor, after a
    #   few jobs of its own, all others together more than its own experience.
    limit = max(OTHERS_JOBS_MIN, own_jobs * OTHERS_SHARE)
    ok = bad = 0.0
    for word in words:
        fading = _fading(word.at_ms, wall_ms)
        weight = (word.ok + word.bad) * fading
        share = min(1.0, limit * ASKER_SHARE / weight) if weight > 0 else 0.0
        ok += word.ok * fading * share
        bad += word.bad * fading * share
    scale = min(1.0, limit / (ok + bad)) if ok + bad > 0 else 0.0
    return ok * scale, bad * scale


def _estimate(own: _Mean, others: list[float], prior: float) -> float:
    """A mean of what we measured, what others did, and what is assumed of a stranger."""
    told = [value for value in others if value > 0]
    if not own.weight and not told:
        return prior  # to the last digit, by which others tell that nothing was measured
    total, weight = math.log(own.value) * own.weight + math.log(prior) * ASSUMED_WEIGHT, own.weight + ASSUMED_WEIGHT
    if told:
        factor = min(max(median(told) / prior, 1 / OTHERS_SPEED_FACTOR_MAX), OTHERS_SPEED_FACTOR_MAX)
        total, weight = total + math.log(prior * factor) * ASSUMED_WEIGHT, weight + ASSUMED_WEIGHT
    return math.exp(total / weight)


def _fading(at_ms: int, wall_ms: int) -> float:
    """What is left of a weight; a clock that was set back takes nothing away and adds nothing."""
    return math.exp2(-max(0, wall_ms - at_ms) / HALF_LIFE_MS)


def _saved(key: Key, held: _Experience) -> SavedExperience:
    return SavedExperience(
        *key,
        held.at_ms,
        held.ok,
        held.bad,
        held.refused,
        held.silent,
        held.first_token_s.value,
        held.first_token_s.weight,
        held.tokens_per_s.value,
        held.tokens_per_s.weight,
    )
