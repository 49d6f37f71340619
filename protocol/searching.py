"""From a question to a provider that is connected and has said what it offers: find one, reach it.

One machine for all jobs in the stages SEARCHING and REACHING. It ends for a job in one of three ways, each a callback:
`reached` (order from it), `failed` (this one is no use) or `nobody` (there is none to try).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocol import constants as c
from protocol.asked import LOST, Job, Stage
from protocol.directory import Directory, Entry
from protocol.errors import Refusal
from protocol.events import Dial, Effect, Now, SearchWanted
from protocol.ids import JobId, NodeId, short
from protocol.records import Heartbeat, ModelOffer
from protocol.router import Router
from protocol.routing import RouteRequest, model_for
from protocol.timers import Timers


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Who hears how a search ended."""

    reached: Callable[[Job, Entry, ModelOffer, Now], list[Effect]]
    failed: Callable[[Job, Refusal, str, Now], list[Effect]]
    nobody: Callable[[Job], list[Effect]]


class Searching:
    """The state machine.

    `connected` and `addresses` are the peer's knowledge of the network, and `search` asks one peer for providers, or
    a few when none is named.
    """

    def __init__(
        self,
        directory: Directory,
        router: Router,
        *,
        connected: Callable[[NodeId], bool],
        addresses: Callable[[NodeId], tuple[str, ...]],
        search: Callable[[RouteRequest, NodeId | None], list[Effect]],
        connected_only: bool,
        outcomes: Outcomes,
    ) -> None:
        self._directory = directory
        self._router = router
        self._connected = connected
        self._addresses = addresses
        self._search = search
        self._connected_only = connected_only
        self._outcomes = outcomes
        self._jobs: dict[JobId, Job] = {}
        self._timers: Timers[JobId] = Timers()

    def next_deadline(self) -> float | None:
        return self._timers.next_deadline()

    # ------------------------------------------------------------ commands

    def begin(self, job: Job, now: Now) -> list[Effect]:
        """Find the next candidate for this job and reach it."""
        self._jobs[job.ask.job] = job
        job.stage = Stage.SEARCHING
        job.stale_key = None
        self._timers.cancel(job.ask.job)
        return self._next_candidate(job, now)

    def fetch_key(self, job: Job, now: Now) -> list[Effect]:
        """The provider has another sealing key than `job.stale_key`: reach it again, with its new record."""
        self._jobs[job.ask.job] = job
        effects = self._reach(job, now)
        if job.stage is Stage.REACHING and job.provider is not None and self._connected(job.provider):
            effects += self._search(self._route_request(job), job.provider)
        return effects

    def leave(self, job: Job) -> None:
        """This job needs no search any more."""
        self._jobs.pop(job.ask.job, None)
        self._timers.cancel(job.ask.job)

    # ------------------------------------------------------------ what happens in the network

    def on_record(self, heartbeat: Heartbeat, now: Now) -> list[Effect]:
        """The directory learnt something: jobs that search or wait for this node's record go on."""
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.stage is Stage.SEARCHING:
                effects += self._next_candidate(job, now)
            elif job.stage is Stage.REACHING and job.provider == heartbeat.node:
                effects += self._check_ready(job, now)
        return effects

    def on_connected(self, peer: NodeId, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.stage is Stage.REACHING and job.provider == peer:
                effects += self._check_ready(job, now)
            elif job.stage is Stage.SEARCHING:
                # It may be a provider whose record we hold, and that only lacked a connection.
                effects += self._next_candidate(job, now)
                if job.stage is Stage.SEARCHING:
                    # Or it may know whom the others did not.
                    effects += self._search(self._route_request(job), peer)
        return effects

    def on_unreachable(self, peer: NodeId, reason: str, now: Now) -> list[Effect]:
        """Dialling failed, or the connection went away while we waited for the peer's record."""
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.stage is Stage.REACHING and job.provider == peer:
                effects += self._fail(job, Refusal.PEER_LOST, reason, now)
        return effects

    # ------------------------------------------------------------ finding

    def _next_candidate(self, job: Job, now: Now) -> list[Effect]:
        """Whoever may have a slot; then the shortest queue; then whom others know; at last whoever was lost before."""
        # SPEC 05: The asker SHOULD look for a free slot at several providers before it waits for one.
        if len(job.busy) < c.BUSY_REFUSALS_MAX and self._find_fresh(job, now):
            job.queue_wait_ms = 0
            return self._reach(job, now)
        if self._find_queue(job, now):
            return self._reach(job, now)
        return self._search_or_wait(job, now)

    def _find_fresh(self, job: Job, now: Now) -> bool:
        """A provider that was not tried yet."""
        ask = job.ask
        if ask.provider is not None:
            job.provider, job.model = ask.provider, job.model or ask.model
            return ask.provider not in job.tried
        candidate = self._router.choose(ask, self._route_request(job), job.tried, now)
        if candidate is None:
            return False
        job.provider, job.model = candidate.node, candidate.model
        return True

    def _find_queue(self, job: Job, now: Now) -> bool:
        """The provider that said the shortest wait for a slot, if that is not longer than the job has time."""
        left_ms = round((job.deadline_s - now.monotonic_s) * 1000)
        # Who names no time wants nobody to wait.
        waits = [(wait_ms, node) for node, wait_ms in job.busy.items() if 0 < wait_ms < left_ms]
        if not waits:
            return False
        job.provider, job.queue_wait_ms = min(waits)[1], left_ms
        return True

    def _search_or_wait(self, job: Job, now: Now) -> list[Effect]:
        if self._timers.is_set(job.ask.job):
            return []  # the search goes on
        if not self._is_worth_a_search(job):
            return self._last_chance(job, now)
        self._timers.set(job.ask.job, now.monotonic_s + c.SEARCH_DEADLINE_S)
        # Without a name there is nothing to look up; then only those whom we know can tell.
        wanted = [SearchWanted(job.ask.model)] if job.ask.model is not None else []
        return [*wanted, *self._search(self._route_request(job), None)]

    @staticmethod
    def _is_worth_a_search(job: Job) -> bool:
        """Not when one provider alone is wanted, nor after a refusal, which others would repeat."""
        if job.ask.provider is not None:
            return False
        return job.last_failure is None or (job.last_failure[0] in LOST and job.provider not in job.retried)

    def _last_chance(self, job: Job, now: Now) -> list[Effect]:
        """Nobody else is there: those who went away in the middle may be back. Once each."""
        gone = [node for node in job.lost if node not in job.retried]
        if not gone:
            return self._nobody(job)
        job.provider, job.queue_wait_ms = gone[-1], 0
        job.retried.add(gone[-1])
        return self._reach(job, now)

    def _route_request(self, job: Job) -> RouteRequest:
        ask = job.ask
        return RouteRequest(
            job.model if job.has_begun else ask.model,
            ask.kind,
            context_tokens=ask.output_tokens_max,
            prompt_bytes=job.sealed_bytes,
            connected_only=self._connected_only,
            output_tokens=job.output_tokens_left,
            fingerprint=job.fingerprint,
        )

    # ------------------------------------------------------------ reaching

    def _reach(self, job: Job, now: Now) -> list[Effect]:
        assert job.provider is not None
        job.stage = Stage.REACHING
        self._timers.set(job.ask.job, now.monotonic_s + c.REACH_DEADLINE_S)
        if self._connected(job.provider):
            return self._check_ready(job, now)
        addresses = self._addresses(job.provider)
        if not addresses and job.provider in job.retried:
            return []  # whom we cannot dial may dial us again
        if not addresses:
            text = f"no address of provider {short(job.provider)} is known"
            return self._fail(job, Refusal.PEER_LOST, text, now)
        return [Dial(job.provider, addresses)]

    def _check_ready(self, job: Job, now: Now) -> list[Effect]:
        """The provider is reached when it is connected and its record, with the key to seal for, is here."""
        assert job.provider is not None
        entry = self._directory.get(job.provider)
        if entry is None or not self._connected(job.provider):
            return []
        if entry.heartbeat.sealing_key in (None, job.stale_key):
            return []
        model = model_for(entry, RouteRequest(job.model, job.ask.kind, fingerprint=job.fingerprint))
        offer = entry.offer(model) if model is not None else None
        if offer is None:
            wanted = f"model {job.model!r}" if job.model else "a model for this kind of job"
            return self._fail(job, Refusal.NO_MODEL, f"the provider does not serve {wanted}", now)
        self.leave(job)
        return self._outcomes.reached(job, entry, offer, now)

    # ------------------------------------------------------------ ending

    def _fail(self, job: Job, code: Refusal, text: str, now: Now) -> list[Effect]:
        self.leave(job)
        return self._outcomes.failed(job, code, text, now)

    def _nobody(self, job: Job) -> list[Effect]:
        self.leave(job)
        return self._outcomes.nobody(job)

    def on_deadline(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for job_id in self._timers.pop_due(now.monotonic_s):
            job = self._jobs.get(job_id)
            if job is None or self._timers.is_set(job_id):  # set again: it went on at this very instant
                continue
            if job.stage is Stage.SEARCHING:
                effects += self._last_chance(job, now)
            else:
                text = "the provider could not be reached, or did not say what it offers, in time"
                effects += self._fail(job, Refusal.DEADLINE, text, now)
        return effects
