"""Which orders a provider takes: the checks before a job costs it anything.

Every refusal is a code and one sentence that tells the asker what to do. An order that is admitted is remembered,
so that no attempt runs twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from protocol import constants as c
from protocol.errors import Refusal
from protocol.events import Now, Offer
from protocol.ids import JobId, NodeId
from protocol.jobs import is_free, is_own
from protocol.records import Availability, FreePolicy, JobOpenRecord, Kind, ModelOffer, Role, Signed
from protocol.timers import Timers

# Under `FreePolicy.ALL` a stranger may have this many orders here at once, those that wait for a slot included.
FREE_RUNS_PER_STRANGER_MAX = 2
# A key is free, and whoever orders and cancels in haste fills the memory of a minute: but its network's share only.
SHARES_OF_MEMORY = 8

Why = tuple[Refusal, str]
PaidRefusal = Callable[[JobOpenRecord, Signed | None, Offer, ModelOffer, Now], Why | None]


class Held(NamedTuple):
    """One order that holds a slot or waits for one: who ordered it, who sent the order, which model."""

    asker: NodeId
    peer: NodeId
    model: str


class Admission:
    """The state: our offer, whom we know, and which attempts we have admitted."""

    def __init__(self, node: NodeId, started_at_ms: int, paid_refusal: PaidRefusal) -> None:
        """`paid_refusal` says why an order's lease does not pay it."""
        self._node = node
        self._paid_refusal = paid_refusal
        self._started_at_ms = started_at_ms
        self.offer: Offer | None = None
        self.allowed: frozenset[NodeId] = frozenset()
        # The attempt, and the network that it came from; empty for whom the owner knows.
        self._seen: dict[tuple[NodeId, JobId], tuple[int, str]] = {}
        self._seen_from: Counter[str] = Counter()
        self._seen_until: Timers[tuple[NodeId, JobId]] = Timers()

    def admit(
        self,
        order: JobOpenRecord,
        lease: Signed | None,
        peer: NodeId,
        local: bool,
        held: Sequence[Held],
        now: Now,
    ) -> ModelOffer | Why:
        """The model to run the order with, or why not. Whether a slot is free is another matter.

        `lease` came with it, `peer` is who sent it, `local` whether from this machine, `held` what all orders here hold
        or wait for.
        """
        # SPEC 05: The provider MUST refuse an order that names another provider, even if it could do the job.
        if order.provider != self._node:
            return Refusal.WRONG_PROVIDER, "the order names another provider"
        why = self._age_refusal(order, now) or self._repeat_refusal(order)
        return why or self._judge(order, lease, peer, local, held, now)

    def judge_another(self, order: JobOpenRecord, peer: NodeId, held: Sequence[Held], now: Now) -> ModelOffer | Why:
        """What would be said to an order for another provider, which asks for its asker, if it had been for us."""
        return self._age_refusal(order, now) or self._judge(order, None, peer, False, held, now)

    def _judge(
        self,
        order: JobOpenRecord,
        lease: Signed | None,
        peer: NodeId,
        local: bool,
        held: Sequence[Held],
        now: Now,
    ) -> ModelOffer | Why:
        offer = self.offer
        if offer is None or offer.role is not Role.PROVIDER:
            return Refusal.NO_MODEL, "this node runs no jobs"
        # SPEC 05: A provider that takes no orders of others for a while MAY take those of its own, but not once it has
        #   said `OFFLINE`.
        is_open_for_own = self._is_own(order) and offer.availability is Availability.DRAINING
        if offer.availability is not Availability.AVAILABLE and not is_open_for_own:
            return Refusal.DRAINING, "this node is finishing its jobs and takes no new ones"
        model = _model(offer, order)
        if not isinstance(model, ModelOffer):
            return model
        why = None
        if order.lease is not None or not is_free(order):
            why = self._paid_refusal(order, lease, offer, model, now)
        # SPEC 06: The provider MUST run a job of a model for which it asks nothing, or at prices of 0, by its rules for
        #   free jobs, whether or not it has a lease.
        # A millionth of a dollar for what is free would be a way around them as well.
        if is_free(order) or model.is_free:
            why = why or self._free_refusal(offer, order, peer, local, held)
        return why or _size_refusal(offer, order) or model

    def _is_own(self, order: JobOpenRecord) -> bool:
        """Whether this node's owner asks: who orders from itself elsewhere is a stranger here."""
        return is_own(order) and order.provider == self._node

    def remember(self, order: JobOpenRecord, network: str, now: Now) -> Why | None:
        """Admit this attempt, and from now on neither it again nor an earlier one; or why not.

        `network` is the one that it came from, empty for an asker whom the owner knows.
        """
        for key in self._seen_until.pop_due(now.monotonic_s):
            self._forget(key)
        share = c.JOB_MEMORIES_MAX // SHARES_OF_MEMORY if network else c.JOB_MEMORIES_MAX
        # SPEC 05: The provider MUST NOT let the strangers of one network fill more than an eighth of that memory.
        if len(self._seen) >= c.JOB_MEMORIES_MAX or self._seen_from[network] >= share:
            return Refusal.RATE_LIMITED, "this node remembers too many recent orders: try again in a minute"
        # SPEC 05: The provider MUST remember what it admitted for longer than an order can be valid on arrival: twice
        #   60 seconds.
        key = (order.asker, order.job)
        if key in self._seen:
            self._forget(key)
        self._seen[key] = (order.attempt, network)
        self._seen_from[network] += 1
        self._seen_until.set(key, now.monotonic_s + c.JOB_MEMORY_S)
        return None

    def _forget(self, key: tuple[NodeId, JobId]) -> None:
        network = self._seen.pop(key)[1]
        self._seen_from[network] -= 1
        if not self._seen_from[network]:
            del self._seen_from[network]

    def knows(self, asker: NodeId, peer: NodeId, local: bool) -> bool:
        """Whether the owner knows who asks: by name, because it sits at this machine, or as its own node."""
        # SPEC 08: The provider MUST judge who asks by the signature of the order, never by the peer that brings it:
        return asker in self.allowed or asker == self._node or (local and asker == peer)

    def model(self, name: str) -> ModelOffer | None:
        """What we offer under this name at present."""
        models = self.offer.models if self.offer is not None else ()
        return next((offer for offer in models if offer.name == name), None)

    def slots(self, model: str) -> int:
        """How many runs of this model go on at once by the present offer."""
        offer = self.model(model)
        return offer.concurrency if offer is not None else 0

    def _age_refusal(self, order: JobOpenRecord, now: Now) -> Why | None:
        age_ms = now.wall_ms - order.created_at_ms
        if age_ms < -c.CLOCK_SKEW_MS_MAX:
            return Refusal.CLOCK_SKEW, f"your clock is {-age_ms // 1000} s ahead of this node's: set one of them"
        # SPEC 05: The provider MUST refuse an order that is older than 60 seconds or than its own start.
        if age_ms > c.JOB_OPEN_AGE_MS_MAX:
            return Refusal.STALE, f"the order is {age_ms // 1000} s old by this node's clock: set a clock, ask again"
        if order.created_at_ms < self._started_at_ms:
            return Refusal.STALE, "the order is older than this node's start: ask again"
        if order.expires_at_ms <= now.wall_ms:
            return Refusal.STALE, "the order has expired"
        if order.expires_at_ms - order.created_at_ms > c.JOB_LIFETIME_MS_MAX:
            return Refusal.BAD_REQUEST, f"an order may run for {c.JOB_LIFETIME_MS_MAX // 60_000} minutes at most"
        return None

    def _repeat_refusal(self, order: JobOpenRecord) -> Why | None:
        seen, _ = self._seen.get((order.asker, order.job), (None, ""))
        # SPEC 05: The provider MUST refuse an order whose attempt is not higher than every attempt of that job
        #   by that asker that it has admitted.
        if seen is not None and order.attempt <= seen:
            return Refusal.DUPLICATE, "this attempt, or a later one, was already received"
        return None

    def _free_refusal(
        self, offer: Offer, order: JobOpenRecord, peer: NodeId, local: bool, held: Sequence[Held]
    ) -> Why | None:
        # SPEC 05: A node MUST ask nothing for an order of its own, and needs no lease for it: it is free by every rule.
        if self._is_own(order):
            return None
        # SPEC 05: The provider MUST NOT run a job for free unless its owner's rules allow it for this asker.
        if offer.free_policy is FreePolicy.NOBODY:
            return Refusal.NOT_FREE, "this node runs no free jobs"
        if self.knows(order.asker, peer, local):
            return None
        if offer.free_policy is not FreePolicy.ALL:
            return Refusal.NOT_FREE, "this node runs free jobs only for those its owner knows"
        # SPEC 05: The provider MUST NOT let one asker, or one peer with orders of its own, have more than two free
        #   orders run or wait at once unless its owner knows that asker.
        own = sum(other.asker == order.asker for other in held)
        if peer == order.asker:
            own = max(own, sum(other.peer == peer for other in held))
        if own >= FREE_RUNS_PER_STRANGER_MAX:
            return Refusal.RATE_LIMITED, f"{own} of your free jobs run or wait here already"
        return self._share_refusal(order, peer, held) if peer != order.asker else None

    def _share_refusal(self, order: JobOpenRecord, peer: NodeId, held: Sequence[Held]) -> Why | None:
        """What an asker and all others have here that come by way of the same peer, an aggregator above all."""
        # SPEC 05: The provider MUST NOT let strangers who come by way of one peer have more than a quarter of the
        #   model's slots, or two if that is more, and one of them more than half of that.
        share = max(FREE_RUNS_PER_STRANGER_MAX, self.slots(order.model) // 4)
        brought = [other for other in held if other.peer == peer]
        if len(brought) >= share or sum(other.asker == order.asker for other in brought) >= share // 2:
            return Refusal.RATE_LIMITED, "those who come by way of this peer have their share of this node already"
        return None


def _model(offer: Offer, order: JobOpenRecord) -> ModelOffer | Why:
    for model in offer.models:
        if model.name == order.model and order.fingerprint in (None, model.fingerprint):
            if order.kind in model.kinds:
                return model
            return Refusal.UNSUPPORTED, "this model does not do that kind of job here"
    # SPEC 05: The provider SHOULD refuse with `ENGINE_UNAVAILABLE` an order for a model that it is set to serve while
    #   its engine loads it.
    if order.model in offer.models_loading:
        return Refusal.ENGINE_UNAVAILABLE, "that model is being loaded here: try again in a minute"
    return Refusal.NO_MODEL, "this node does not serve that model"


def _size_refusal(offer: Offer, order: JobOpenRecord) -> Why | None:
    if order.sealed_bytes > offer.sealed_bytes_max:
        return Refusal.TOO_LARGE, f"a sealed prompt may have {offer.sealed_bytes_max} bytes here"
    if order.output_tokens_max == 0 and order.kind is not Kind.EMBEDDING:
        return Refusal.BAD_REQUEST, "the order allows no output tokens"
    return None
