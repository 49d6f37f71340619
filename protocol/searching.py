"""From a question to a provider that is connected and has said what it offers: find one, reach it.

One machine for all jobs in the stages SEARCHING and REACHING. It ends for a job in one of three ways, each a callback:
`reached` (order from it), `failed` (this one is no use) or `nobody` (there is none to try).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from protocol import constants as c
from protocol.asked import LOST, Job, Stage
from protocol.directory import Directory, Entry
from protocol.effects import Dial, Effect, OpenStream, SearchWanted
from protocol.errors import Refusal
from protocol.events import DialFailed, Now
from protocol.ids import JobId, NodeId, short
from protocol.records import Heartbeat, ModelOffer
from protocol.router import Router
from protocol.routing import RouteRequest, exclusion, model_for
from protocol.timers import Timers


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Who hears how a search ended."""

    reached: Callable[[Job, Entry, ModelOffer, Now], list[Effect]]
    failed: Callable[[Job, Refusal, str, Now], list[Effect]]
    nobody: Callable[[Job], list[Effect]]


class Search(Protocol):
    """Asks one peer for providers, or a few `but` those when none is named."""

    def __call__(
        self, request: RouteRequest, peer: NodeId | None = None, but: Collection[NodeId] = frozenset()
    ) -> list[Effect]: ...


class Searching:
    """The state machine.

    `connected` and `addresses` are the peer's knowledge of the network, `aggregators` the connected peers that forward
    jobs, and `search` asks peers for providers.
    """

    def __init__(
        self,
        node: NodeId,
        directory: Directory,
        router: Router,
        *,
        connected: Callable[[NodeId], bool],
        addresses: Callable[[NodeId], tuple[str, ...]],
        aggregators: Callable[[], list[NodeId]],
        search: Search,
        coordinator: Callable[[], NodeId | None],
        funded: Callable[[Job, Now], list[NodeId]],
        connected_only: bool,
        outcomes: Outcomes,
    ) -> None:
        self._node = node
        self._directory = directory
        self._router = router
        self._connected = connected
        self._addresses = addresses
        self._aggregators = aggregators
        self._search = search
        self._coordinator = coordinator
        self._funded = funded
        self._connected_only = connected_only
        self._outcomes = outcomes
        self._jobs: dict[JobId, Job] = {}
        self._timers: Timers[JobId] = Timers()
        self._more: Timers[JobId] = Timers()

    def next_deadline(self) -> float | None:
        deadlines = (self._timers.next_deadline(), self._more.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # ------------------------------------------------------------ commands

    def begin(self, job: Job, now: Now) -> list[Effect]:
        """Find the next candidate for this job and reach it."""
        self._jobs[job.ask.job] = job
        job.stage = Stage.SEARCHING
        job.stale_key = None
        self._cancel_timers(job)
        return self._next_candidate(job, now)

    def fetch_key(self, job: Job, now: Now) -> list[Effect]:
        """The provider has another sealing key than `job.stale_key`: reach it again, with its new record."""
        self._jobs[job.ask.job] = job
        effects = self._reach(job, now)
        if job.stage is Stage.REACHING and self._connected(job.hop):
            effects += self._search(self._route_request(job), job.hop)
        return effects

    def leave(self, job: Job) -> None:
        """This job needs no search any more."""
        self._jobs.pop(job.ask.job, None)
        self._cancel_timers(job)

    def _cancel_timers(self, job: Job) -> None:
        self._timers.cancel(job.ask.job)
        self._more.cancel(job.ask.job)

    # ------------------------------------------------------------ what happens in the network

    def on_record(self, heartbeat: Heartbeat, now: Now) -> list[Effect]:
        """The directory learnt something: jobs that search or wait for this node's record go on."""
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.stage is Stage.SEARCHING and self._may_help(job, heartbeat.node, now):
                effects += self._next_candidate(job, now)
            elif job.stage is Stage.REACHING and job.provider == heartbeat.node:
                effects += self._check_ready(job, now)
        return effects

    def _may_help(self, job: Job, node: NodeId, now: Now) -> bool:
        """Whether a record that has just come may be what a search waits for.

        To choose is to look at hundreds of providers, and records come by the hundred: from strangers, too.
        """
        entry = self._directory.get(node)
        if entry is None:
            return False
        if self._connected(node) and node not in job.aggregators and node in self._aggregators():
            job.aggregators.add(node)
            return True
        return self._is_fit(job, entry, job.tried, now)

    def _is_fit(self, job: Job, entry: Entry, tried: Collection[NodeId], now: Now) -> bool:
        """Whether this node may be ordered from."""
        against = exclusion(
            entry,
            self._route_request(job),
            now.wall_ms,
            ourselves=NodeId(b""),
            tried=tried,
            connected=self._connected,
            has_address=lambda node: bool(self._addresses(node) or self._detours(job, node)),
        )
        return against is None

    def on_connected(self, peer: NodeId, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.stage is Stage.REACHING and job.hop == peer:
                effects += self._on_hop(job, now)
            elif job.stage is Stage.SEARCHING:
                # It may be a provider whose record we hold, and that only lacked a connection.
                effects += self._next_candidate(job, now)
                if job.stage is Stage.SEARCHING and peer in _gone(job):
                    effects += self._return_to(job, peer, now)
                if job.stage is Stage.SEARCHING:
                    # Or it may know whom the others did not.
                    job.searched.add(peer)
                    effects += self._search(self._route_request(job), peer)
        return effects

    def on_dial_failed(self, event: DialFailed, now: Now) -> list[Effect]:
        """No address led to this peer, or some were left out because they had failed not long ago."""
        if not event.left_out:
            return self.on_unreachable(event.peer, event.reason, now)
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.stage is Stage.REACHING and job.hop == event.peer:
                effects += self._on_left_out(job, event.reason, now)
        return effects

    def on_unreachable(self, peer: NodeId, reason: str, now: Now) -> list[Effect]:
        """The connection went away while we waited for the peer's record."""
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.stage is Stage.REACHING and job.hop == peer:
                effects += self._on_no_hop(job, Refusal.PEER_LOST, reason, now)
        return effects

    # ------------------------------------------------------------ finding

    def _next_candidate(self, job: Job, now: Now) -> list[Effect]:
        """Whoever holds a slot for us; whoever may have one; then the shortest queue; then whoever was away not long
        ago; then whom others know; at last whoever was lost before.
        """
        if self._find_reserved(job, now):
            return self._reach(job, now)
        # SPEC 05: The asker SHOULD look for a free slot at several providers before it waits for one.
        if len(job.busy) < c.BUSY_REFUSALS_MAX and self._find_fresh(job, now):
            job.queue_wait_ms = 0
            return self._reach(job, now)
        if self._find_queue(job, now) or self._find_not_dialled(job):
            return self._reach(job, now)
        return self._search_or_wait(job, now)

    def _find_fresh(self, job: Job, now: Now) -> bool:
        """A provider that was not tried yet."""
        ask = job.ask
        if ask.provider is not None:
            self._turn_to(job, ask.provider)
            return ask.provider not in job.tried
        request = self._route_request(job)
        if self._find_funded(job, now):
            return True
        candidate = self._router.choose(ask, request, job.tried, now)
        if candidate is None and request.via is None and (aggregators := self._detours(job, None)):
            # Nobody whom we could reach ourselves: perhaps an aggregator can reach somebody.
            candidate = self._router.choose(ask, replace(request, via=aggregators[0]), job.tried, now)
        if candidate is None:
            return False
        job.provider, job.model = candidate.node, candidate.model
        return True

    def _find_funded(self, job: Job, now: Now) -> bool:
        """While our coordinator is away: a provider for whom we hold a lease, the least loaded of them."""
        entries = [entry for node in self._funded(job, now) if (entry := self._directory.get(node)) is not None]
        fitting = [entry.heartbeat.node for entry in entries if self._is_fit(job, entry, job.tried, now)]
        if not fitting:
            return False
        self._turn_to(job, min(fitting, key=lambda node: self._directory.load_of(node)))
        return True

    def _find_reserved(self, job: Job, now: Now) -> bool:
        """The provider that holds a slot for us, once, if we would have chosen it ourselves."""
        held = job.reservation
        if held is None:
            return False
        entry = self._directory.get(held.provider)
        # Who had no slot a moment ago, and holds one now, is as good as any.
        may_be_tried = held.provider not in job.tried or held.provider in job.busy
        if job.provider == held.provider or entry is None or not may_be_tried:
            job.reservation = None
            return False
        if not self._is_fit(job, entry, (), now):
            job.reservation = None
            return False
        job.provider, job.model, job.queue_wait_ms = held.provider, held.model, 0
        return True

    def _find_queue(self, job: Job, now: Now) -> bool:
        """The provider that said the shortest wait for a slot, if that is not longer than the job has time."""
        left_ms = round((job.deadline_s - now.monotonic_s) * 1000)
        # Who names no time wants nobody to wait.
        waits = [(wait_ms, node) for node, wait_ms in job.busy.items() if 0 < wait_ms < left_ms]
        if not waits:
            return False
        self._turn_to(job, min(waits)[1])
        job.queue_wait_ms = left_ms
        return True

    def _find_not_dialled(self, job: Job) -> bool:
        """A provider whose addresses failed not long ago: it may be back, and nobody else is left."""
        if not job.not_dialled:
            return False
        node = job.not_dialled.pop(0)
        self._turn_to(job, node)
        job.queue_wait_ms = 0
        job.urged.add(node)
        return True

    def _turn_to(self, job: Job, node: NodeId) -> None:
        """This node is next, and the model is what it calls the one that fits: whoever was tried last may have another
        name for it, and what is held against a node is kept under its own.
        """
        entry = self._directory.get(node)
        wanted = job.model_wanted
        if entry is not None:
            wanted = model_for(entry, self._route_request(job)) or entry.own_name(wanted)
        job.provider, job.model = node, wanted

    def _search_or_wait(self, job: Job, now: Now) -> list[Effect]:
        if self._timers.is_set(job.ask.job):
            return []  # the search goes on
        if not self._is_worth_a_search(job):
            return self._last_chance(job, now)
        self._timers.set(job.ask.job, now.monotonic_s + c.SEARCH_DEADLINE_S)
        # Without a name there is nothing to look up; then only those whom we know can tell.
        wanted = [SearchWanted(job.ask.model)] if job.ask.model is not None else []
        job.searched.clear()
        return [*wanted, *self._ask_around(job, now)]

    def _ask_around(self, job: Job, now: Now) -> list[Effect]:
        """Ask a few peers, and soon others, until somebody knows or nobody is left."""
        # SPEC 05: An asker that knows no provider SHOULD ask a few peers with `Find`, and a few others every half
        #   second while nobody is known.
        effects = self._search(self._route_request(job), but=job.searched)
        job.searched.update(effect.peer for effect in effects if isinstance(effect, OpenStream))
        if effects:
            self._more.set(job.ask.job, now.monotonic_s + c.FIND_MORE_S)
        return effects

    @staticmethod
    def _is_worth_a_search(job: Job) -> bool:
        """Not when one provider alone is wanted, nor after a refusal, which others would repeat."""
        if job.ask.provider is not None:
            return False
        return job.last_failure is None or (job.last_failure[0] in LOST and job.provider not in job.retried)

    def _last_chance(self, job: Job, now: Now) -> list[Effect]:
        """Nobody else is there: those who went away in the middle may be back. Once each."""
        gone = _gone(job)
        return self._return_to(job, gone[-1], now) if gone else self._nobody(job)

    def _return_to(self, job: Job, node: NodeId, now: Now) -> list[Effect]:
        self._turn_to(job, node)
        job.queue_wait_ms = 0
        job.retried.add(node)
        return self._reach(job, now)

    def _route_request(self, job: Job) -> RouteRequest:
        ask = job.ask
        return RouteRequest(
            job.model_wanted,
            ask.kind,
            context_tokens=ask.output_tokens_max,
            prompt_bytes=job.sealed_bytes,
            connected_only=self._connected_only,
            output_tokens=job.output_tokens_left,
            fingerprint=job.fingerprint,
            via=ask.via,
            provider=ask.provider,
            price_in_uusd_max=ask.price_in_uusd_max,
            price_out_uusd_max=ask.price_out_uusd_max,
            free=not job.is_paid,
            spend_uusd_max=job.spend_uusd_left,
            prompt_tokens=job.prompt_tokens,
            coordinator=self._coordinator(),
        )

    # ------------------------------------------------------------ reaching

    def _reach(self, job: Job, now: Now) -> list[Effect]:
        job.stage = Stage.REACHING
        job.via = job.ask.via if job.ask.via != job.provider else None
        self._timers.set(job.ask.job, now.monotonic_s + c.REACH_DEADLINE_S)
        if self._connected(job.hop):
            return self._on_hop(job, now)
        addresses = self._addresses(job.hop)
        if addresses:
            return [Dial(job.hop, addresses, at_once=job.hop in job.urged)]
        what = "provider" if job.via is None else "aggregator"
        return self._on_no_hop(job, Refusal.PEER_LOST, f"no address of {what} {short(job.hop)} is known", now)

    def _on_hop(self, job: Job, now: Now) -> list[Effect]:
        """The provider is connected, or the aggregator on the way to it, which then knows its record."""
        assert job.provider is not None
        if job.via is not None and self._directory.get(job.provider) is None:
            return self._search(replace(self._route_request(job), provider=job.provider), job.via)
        return self._check_ready(job, now)

    def _on_left_out(self, job: Job, text: str, now: Now) -> list[Effect]:
        """The hop was not dialled, or not everywhere: others may be nearer, but before the user hears that nobody is
        there, it is dialled after all.
        """
        assert job.provider is not None
        if job.hop in job.urged or self._detours(job, job.provider):
            return self._on_no_hop(job, Refusal.PEER_LOST, text, now)
        if job.via is not None:
            job.urged.add(job.hop)
            return [Dial(job.hop, self._addresses(job.hop), at_once=True)]
        job.tried.add(job.provider)
        job.not_dialled.append(job.provider)
        return self.begin(job, now)

    def _on_no_hop(self, job: Job, code: Refusal, text: str, now: Now) -> list[Effect]:
        """There is no way to the provider, or not this one."""
        assert job.provider is not None
        if job.via is not None and job.via == job.ask.via:
            # Whoever is chosen next would be reached in the same way, which the user insists on.
            job.last_failure = (code, f"the aggregator that was to pass it on is out of reach: {text}", 0)
            return self._nobody(job)
        aggregators = self._detours(job, job.provider)
        if not aggregators:
            return self._fail(job, code, text, now)
        job.detoured.add(job.provider)
        job.via = aggregators[0]
        self._timers.set(job.ask.job, now.monotonic_s + c.REACH_DEADLINE_S)
        return self._check_ready(job, now)

    def _detours(self, job: Job, provider: NodeId | None) -> list[NodeId]:
        """Aggregators through which this provider may be tried, for once."""
        # SPEC 05: A node that orders from itself MUST NOT let the order leave the node,
        if provider == self._node:
            return []
        if self._connected_only or job.ask.via is not None or provider in job.detoured:
            return []
        return [node for node in self._aggregators() if node != provider]

    def _check_ready(self, job: Job, now: Now) -> list[Effect]:
        """The provider is reached when the way to it stands and its record, with the key to seal for, is here."""
        assert job.provider is not None
        entry = self._directory.get(job.provider)
        if entry is None or not self._connected(job.hop):
            return []
        if entry.heartbeat.sealing_key in (None, job.stale_key):
            return []
        # One that fits, or else any of that kind and name: then the provider, or its price, says what is wrong.
        fits = model_for(entry, replace(self._route_request(job), model=job.model))
        model = fits or model_for(entry, RouteRequest(job.model, job.ask.kind, fingerprint=job.fingerprint))
        offer = entry.offer(model) if model is not None else None
        if offer is None:
            wanted = f"model {job.model!r}" if job.model else "a model for this kind of job"
            return self._fail(job, Refusal.NO_MODEL, f"the provider does not serve {wanted}", now)
        # SPEC 05: The asker MUST NOT write an alias into an order ([01](01-wire.md)): the model is named as the offer
        #   names it,
        job.model = offer.name
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
        for job_id in self._more.pop_due(now.monotonic_s):
            if (job := self._jobs.get(job_id)) is not None and job.stage is Stage.SEARCHING:
                effects += self._ask_around(job, now)
        for job_id in self._timers.pop_due(now.monotonic_s):
            job = self._jobs.get(job_id)
            if job is None or self._timers.is_set(job_id):  # set again: it went on at this very instant
                continue
            if job.stage is Stage.SEARCHING:
                effects += self._last_chance(job, now)
            else:
                text = "the provider could not be reached, or did not say what it offers, in time"
                effects += self._on_no_hop(job, Refusal.DEADLINE, text, now)
        return effects


def _gone(job: Job) -> list[NodeId]:
    """Providers that went away in the middle and were not tried again."""
    return [node for node in job.lost if node not in job.retried]
