"""The asker's memory of its jobs, where routing looks: whom it chose, what became of it, and how long things took.

`asking` tells this room what happens to each job (`choose`, `ordered`, `heard`, `done`, `failed`, `forget` and others);
from that follow the standing of providers, who is left alone for a while, who may hold a prompt's beginning, and two
streams of facts for whoever listens: every decision, and the end of every attempt.

Times are taken by the asker's own monotonic clock: from the order to the first chunk, without the time that the order
waited in a queue, and from the first chunk to the last.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from protocol.affinity import Affinity
from protocol.directory import Directory
from protocol.errors import Refusal
from protocol.events import Ask, Now
from protocol.ids import JobId, NodeId
from protocol.ranking import Standing
from protocol.recent import Recent
from protocol.records import Signed
from protocol.reputation import Reputation
from protocol.routing import (
    Candidate,
    Decision,
    Exclusion,
    NodeTest,
    RouteRequest,
    Surroundings,
    Verdict,
    choose,
    explain,
)

# The first failure in a row costs a provider this long, each further one twice as much.
REST_S: Final = 10.0
REST_S_MAX: Final = 600.0
RESTING_MAX: Final = 1024
# How long a refusal holds where the provider does not say.
_REST_AFTER_REFUSAL_S: Final = {
    Refusal.BUSY: 2.0,
    Refusal.RATE_LIMITED: 60.0,
    Refusal.DRAINING: 60.0,
    Refusal.NO_MODEL: 60.0,
    Refusal.UNSUPPORTED: 60.0,
    Refusal.ENGINE_UNAVAILABLE: 60.0,
    Refusal.NOT_FREE: 3600.0,
    Refusal.NOT_ALLOWED: 3600.0,
    Refusal.LEASE: 3600.0,
}
# What an asker can do something about: ask for less, or pay.
_OBJECTIONS: Final = frozenset(
    {
        Exclusion.CONTEXT,
        Exclusion.PRICE_IN,
        Exclusion.PRICE_OUT,
        Exclusion.NOT_FREE,
        Exclusion.TOO_LARGE,
        Exclusion.TOO_DEAR,
        Exclusion.OTHER_COORDINATOR,
    }
)
# A rate from fewer tokens is mostly chance.
RATE_TOKENS_MIN: Final = 8


class Result(Enum):
    """How an attempt ended, as far as it tells something about the provider."""

    DONE = "done"
    FAILED = "failed"
    SILENT = "silent"
    REFUSED = "refused"
    NOT_REACHED = "not reached"


class AttemptEnd(Struct, frozen=True):
    """The end of one attempt: what the provider did, and what was measured of it."""

    provider: NodeId
    model: str
    result: Result
    is_accepted: bool = False
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    receipt: Signed | None = None


@dataclass(slots=True)
class _Trial:
    """One order that runs."""

    provider: NodeId
    model: str
    ordered_at_s: float
    is_accepted: bool = False
    first_at_s: float | None = None
    first_tokens: int = 0
    last_at_s: float = 0.0
    last_at_ms: int = 0
    last_tokens: int = 0

    def first_token_s(self) -> float | None:
        return self.first_at_s - self.ordered_at_s if self.first_at_s is not None else None

    def tokens_per_s(self) -> float | None:
        tokens = self.last_tokens - self.first_tokens
        if self.first_at_s is None or tokens < RATE_TOKENS_MIN or self.last_at_s <= self.first_at_s:
            return None
        return tokens / (self.last_at_s - self.first_at_s)


@dataclass(slots=True)
class _Asked:
    """A job of ours: what its prompt is known by, the order that runs, and whether nobody was found last time."""

    model: str | None
    prefixes: tuple[bytes, ...]
    trial: _Trial | None = None
    is_searched_for: bool = False
    objections: Counter[Exclusion | None] = field(default_factory=Counter)


@dataclass(slots=True)
class _Rest:
    until_s: float
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who hears of every decision, and of the end of every attempt."""

    decided: Callable[[Decision, Now], None] = lambda _decision, _now: None
    ended: Callable[[AttemptEnd, Now], None] = lambda _end, _now: None


class Router:
    """The state machine. It has no deadlines of its own."""

    def __init__(
        self,
        node: NodeId,
        directory: Directory,
        reputation: Reputation,
        rng: random.Random,
        *,
        connected: NodeTest,
        has_address: NodeTest,
        listeners: Listeners | None = None,
    ) -> None:
        self._node = node
        self._directory = directory
        self._reputation = reputation
        self._rng = rng
        self._connected = connected
        self._has_address = has_address
        self._listeners = listeners or Listeners()
        self._affinity = Affinity(rng.randbytes(32))
        self._jobs: dict[JobId, _Asked] = {}
        self._open: Counter[NodeId] = Counter()
        self._resting: Recent[tuple[NodeId, str], _Rest] = Recent(RESTING_MAX)

    # ------------------------------------------------------------ choosing

    def choose(self, ask: Ask, request: RouteRequest, tried: Collection[NodeId], now: Now) -> Candidate | None:
        """Whom this job goes to next, None where nobody fits."""
        asked = self._asked(ask)
        around = self._around(now, self._affinity.provider_of(asked.prefixes, ask.model, now.monotonic_s))
        decision = choose(request, self._directory, around, tried, now.wall_ms, self._rng)
        # A job that searches is decided again with every record that comes: that is one decision.
        if decision.chosen is not None or not asked.is_searched_for:
            self._listeners.decided(decision, now)
        asked.is_searched_for = decision.chosen is None
        asked.objections = Counter(v.against for v in decision.verdicts if v.against in _OBJECTIONS)
        return decision.chosen

    def objection(self, job: JobId) -> tuple[str, int] | None:
        """What spoke most often against providers that this job's asker could have had otherwise, and of how many."""
        asked = self._jobs.get(job)
        common = asked.objections.most_common(1) if asked is not None else ()
        return next(((against.words, count) for against, count in common if against is not None), None)

    def consider(self, request: RouteRequest, now: Now) -> Decision:
        """What would be decided about such a job now; nobody hears of this question."""
        return choose(request, self._directory, self._around(now, None), (), now.wall_ms, self._rng)

    def explain(self, request: RouteRequest, now: Now) -> list[Verdict]:
        """Every known node with its rank, or the reason against it; best first. For people: it looks at all of them."""
        return explain(request, self._directory, self._around(now, None), now.wall_ms)

    def _around(self, now: Now, warm: NodeId | None) -> Surroundings:
        def standing(node: NodeId, model: str) -> Standing:
            known = self._reputation.standing(node, model, now.wall_ms)
            rest = self._resting.get((node, model))
            rest_s = max(0.0, rest.until_s - now.monotonic_s) if rest is not None else 0.0
            open_jobs = self._open[node]
            if not rest_s and not open_jobs and node != warm:
                return known
            return replace(known, open_jobs=open_jobs, rest_s=rest_s, is_warm=node == warm)

        def favourites(model: str | None) -> list[NodeId]:
            known = self._reputation.favourites(model)
            return [*known, warm] if warm is not None else known

        return Surroundings(self._node, self._connected, self._has_address, standing, favourites)

    def _asked(self, ask: Ask) -> _Asked:
        asked = self._jobs.get(ask.job)
        if asked is None:
            asked = self._jobs[ask.job] = _Asked(ask.model, self._affinity.prefixes(ask.request))
        return asked

    # ------------------------------------------------------------ what becomes of a job

    def ordered(self, ask: Ask, provider: NodeId, model: str, now: Now) -> None:
        """An order for this job goes out."""
        asked = self._asked(ask)
        self._close(asked)
        # SPEC 05: A node MUST NOT count its own orders as jobs of others, nor as experience with a provider, nor report
        #   them.
        if provider == self._node:
            return
        asked.trial = _Trial(provider, model, now.monotonic_s)
        self._open[provider] += 1

    def waits(self, job: JobId, now: Now) -> None:
        """The order waits in the provider's queue: it said so itself, and the time until now is not its speed."""
        trial = self._trial(job)
        if trial is not None and trial.first_at_s is None:
            trial.ordered_at_s = now.monotonic_s

    def accepted(self, job: JobId) -> None:
        """The provider took the job."""
        trial = self._trial(job)
        if trial is not None:
            trial.is_accepted = True

    def heard(self, job: JobId, output_tokens: int, now: Now) -> None:
        """A chunk arrived; `output_tokens` is cumulative."""
        trial = self._trial(job)
        if trial is None:
            return
        if trial.first_at_s is None:
            trial.first_at_s, trial.first_tokens = now.monotonic_s, output_tokens
        trial.last_at_s, trial.last_at_ms, trial.last_tokens = now.monotonic_s, now.wall_ms, output_tokens

    def done(self, job: JobId, receipt: Signed | None, now: Now) -> None:
        """The attempt ended with a receipt that matches what arrived."""
        asked = self._jobs.get(job)
        if asked is None or asked.trial is None:
            return
        trial = asked.trial
        self._close(asked)
        self._measure(trial)
        self._reputation.job_done(trial.provider, trial.model, now.wall_ms)
        if asked.model not in (None, trial.model):
            self._reputation.favour(trial.provider, asked.model)
        self._resting.pop((trial.provider, trial.model))
        self._affinity.remember(asked.prefixes, asked.model, trial.provider, now.monotonic_s)
        self._tell(trial, Result.DONE, now, receipt)

    def failed(
        self, job: JobId, provider: NodeId, model: str | None, code: Refusal, now: Now, *, retry_after_ms: int = 0
    ) -> None:
        """The attempt came to nothing; without an order, `provider` was not reached."""
        asked = self._jobs.get(job)
        trial = asked.trial if asked is not None else None
        if asked is not None:
            self._close(asked)
        if provider == self._node:
            return
        # An aggregator that reaches nobody answers for itself.
        if trial is None or code is Refusal.NO_ROUTE:
            if model is not None:
                self._rest(provider, model, now)
                self._listeners.ended(AttemptEnd(provider, model, Result.NOT_REACHED), now)
            return
        self._measure(trial)
        # Codes below 64 are answers to an order (specs/01), which is not to be held against anybody.
        if code < 64 and not trial.is_accepted:
            self._reputation.refused(trial.provider, trial.model, now.wall_ms)
            self._rest_after_refusal(trial, code, retry_after_ms, now)
            self._tell(trial, Result.REFUSED, now)
        elif code is Refusal.DEADLINE:
            self._reputation.was_silent(trial.provider, trial.model, now.wall_ms)
            self._rest(trial.provider, trial.model, now)
            self._tell(trial, Result.SILENT, now)
        else:
            self._reputation.job_failed(trial.provider, trial.model, now.wall_ms)
            self._rest(trial.provider, trial.model, now)
            self._tell(trial, Result.FAILED, now)

    def withdraw(self, job: JobId) -> None:
        """The order came to nothing, and nobody is to blame: it is written anew."""
        asked = self._jobs.get(job)
        if asked is not None:
            self._close(asked)

    def forget(self, job: JobId) -> None:
        """The job is over. An order that still runs was given up by us, which says nothing about its provider."""
        asked = self._jobs.pop(job, None)
        if asked is not None and asked.trial is not None:
            trial = asked.trial
            self._close(asked)
            self._measure(trial)

    @property
    def active(self) -> int:
        """Jobs that have not ended; for leak tests."""
        return len(self._jobs)

    def _trial(self, job: JobId) -> _Trial | None:
        asked = self._jobs.get(job)
        return asked.trial if asked is not None else None

    def _close(self, asked: _Asked) -> None:
        if asked.trial is not None:
            provider = asked.trial.provider
            self._open[provider] -= 1
            if not self._open[provider]:
                del self._open[provider]
            asked.trial = None

    def _measure(self, trial: _Trial) -> None:
        first_token_s = trial.first_token_s()
        if first_token_s is not None:
            self._reputation.measured(
                trial.provider,
                trial.model,
                trial.last_at_ms,
                first_token_s=first_token_s,
                tokens_per_s=trial.tokens_per_s(),
            )

    def _tell(self, trial: _Trial, result: Result, now: Now, receipt: Signed | None = None) -> None:
        end = AttemptEnd(
            trial.provider,
            trial.model,
            result,
            trial.is_accepted,
            trial.first_token_s(),
            trial.tokens_per_s(),
            receipt,
        )
        self._listeners.ended(end, now)

    # ------------------------------------------------------------ leaving somebody alone

    def _rest(self, provider: NodeId, model: str, now: Now) -> None:
        """Another failure in a row. It ranks last until it is over, and is asked all the same where nobody else is."""
        held = self._resting.pop((provider, model))
        in_a_row = held is not None and now.monotonic_s - held.until_s < REST_S_MAX
        failures = held.failures + 1 if held is not None and in_a_row else 1
        rest_s = min(REST_S_MAX, REST_S * 2 ** min(failures - 1, 16))
        self._resting.put((provider, model), _Rest(now.monotonic_s + rest_s, failures))

    def _rest_after_refusal(self, trial: _Trial, code: Refusal, retry_after_ms: int, now: Now) -> None:
        told_s = min(retry_after_ms / 1000, REST_S_MAX)
        rest_s = max(told_s, _REST_AFTER_REFUSAL_S.get(code, 0.0))
        held = self._resting.pop((trial.provider, trial.model))
        if rest_s:
            failures = held.failures if held is not None else 0
            self._resting.put((trial.provider, trial.model), _Rest(now.monotonic_s + rest_s, failures))
