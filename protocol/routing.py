"""Which provider gets a job, and why every other one did not.

`choose` looks at a few providers: some drawn at random from the directory's index of the model, those that did jobs
for us before, and the one that may hold the prompt's beginning. Of those that can do the job it takes the best ranked.
The power of k choices (Mitzenmacher 2001) balances almost as well as looking at all, at constant cost, and chance keeps
a thousand askers from running to the same provider. Some small jobs go to newcomers, or nobody would ever learn what
they are worth. `explain` applies the same test to every node, and says in words and figures what came of it; it is
run on demand, for people.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from protocol.details import speeds_of
from protocol.directory import Directory, Entry
from protocol.ids import NodeId
from protocol.jobs import cost_bound_uusd
from protocol.ranking import STRANGER, Need, Rank, Standing, Tier, is_newcomer, rank
from protocol.records import Availability, FreePolicy, Kind, ModelOffer, Role
from protocol.stated import NOTHING_STATED, Stated, believed, is_open

# Enough to find a fit when some are tried or too dear, few enough to cost nothing.
SAMPLE: Final = 16
# Looked at when nobody among the few fits: most of a market may be offline or too small for one request.
SAMPLE_MAX: Final = 512
# The share of small jobs for which newcomers are asked first: felt by no asker, and each of a hundred newcomers has its
# first three jobs within some thousands.
NEWCOMERS_SHARE: Final = 1 / 12
# The share of jobs for which one is asked that may be better than the best, and has done too little to show it. Without
# it, whoever was good first would be preferred for ever.
PROMISING_SHARE: Final = 1 / 12


class Exclusion(Enum):
    """Why a node did not get a job, as number and words; the numbers are those of specs/01, Reasons.

    Below 32 it is no candidate; from 32 on it is one, and another was preferred; from 48 on it was chosen, and nothing
    came of it. The words continue a sentence that names the node.
    """

    OURSELVES = 1, "it is this node"
    TRIED = 2, "it was tried for this job already"
    NOT_PROVIDER = 3, "it does not run jobs"
    EXPIRED = 4, "its last heartbeat has expired"
    DRAINING = 5, "it is finishing its jobs and takes no new ones"
    OFFLINE = 6, "it says it is offline"
    NO_MODEL = 7, "it does not serve this model"
    WRONG_KIND = 8, "it does not do this kind of job with this model"
    CONTEXT = 9, "its context is too small for this request"
    PRICE_IN = 10, "its price for prompt tokens is above the limit"
    PRICE_OUT = 11, "its price for output tokens is above the limit"
    NOT_FREE = 12, "it runs free jobs for nobody, and this one offers no payment"
    NO_SEALING_KEY = 13, "it publishes no key to seal prompts for"
    TOO_LARGE = 14, "the prompt is larger than it accepts"
    UNREACHABLE = 15, "no address of it is known and it is not connected"
    NOT_CONNECTED = 16, "it is not connected, and this asker does not dial"
    OTHER_WEIGHTS = 17, "it serves other weights under this name than the job began with"
    LACKS_FEATURE = 18, "it lacks a feature that this job needs"
    TOO_DEAR = 19, "the answer could cost more with it than may be spent"
    OTHER_COORDINATOR = 20, "it wants to be paid, and takes no leases of our coordinator"
    OUTRANKED = 32, "another one was expected to be done sooner"
    FULL = 33, "all its slots were taken, and another one had room"
    RESTING = 34, "it failed or refused a job a moment ago, and another one did not"
    NEWCOMER = 35, "too little is known of it for a job of this size"
    MAY_REFUSE = 36, "it runs free jobs for those its owner knows, and another one runs them for all"
    NOT_REACHED = 48, "it was chosen, and no connection to it came about"
    REFUSED = 49, "it was chosen, and refused the job"
    SILENT = 50, "it was chosen, and did not answer in time"

    def __init__(self, number: int, words: str) -> None:
        self.number = number
        self.words = words


class RouteRequest(Struct, frozen=True):
    """What a job needs. Prices in micro-USD per 1,000,000 tokens; `None` for a price means any.

    `prompt_bytes` is the size of the prompt as it is sealed, `output_tokens` how many may come back; `connected_only`
    is for an asker that cannot dial: the coordinator, to whom nodes connect. `fingerprint` asks for these very weights,
    to continue an answer; `features` are numbers of specs/01 that the provider must have. With `via` the job goes
    through that aggregator, and whether it can reach the provider is not known here. `provider` is the only node whose
    record is asked for, when others are asked. Unless the job is `free` it may cost `spend_uusd_max`, its prompt having
    `prompt_tokens` at most, from a lease of this `coordinator`.
    """

    model: str | None
    kind: Kind
    context_tokens: int = 0
    prompt_bytes: int = 0
    price_in_uusd_max: int | None = None
    price_out_uusd_max: int | None = None
    free: bool = True
    connected_only: bool = False
    output_tokens: int = 0
    fingerprint: bytes | None = None
    features: tuple[int, ...] = ()
    via: NodeId | None = None
    provider: NodeId | None = None
    spend_uusd_max: int | None = None
    prompt_tokens: int = 0
    coordinator: NodeId | None = None


class Candidate(Struct, frozen=True):
    """A node that can do the job, and with which of its models."""

    entry: Entry
    model: str

    @property
    def node(self) -> NodeId:
        return self.entry.heartbeat.node


NodeTest = Callable[[NodeId], bool]


class Verdict(Struct, frozen=True):
    """What came of looking at a node: a reason against it, or a rank, or both where another one was preferred.

    `model` is the one it would do the job with, or the one that was asked for.
    """

    node: NodeId
    model: str | None
    against: Exclusion | None
    rank: Rank | None


class Decision(Struct, frozen=True):
    """Whom a job goes to, None where nobody fits; and everybody who was looked at."""

    chosen: Candidate | None
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an asker knows beside the directory: who it is, whom it reaches, and what its jobs taught it.

    `has_address` counts what was learnt from others than the node, too: most nodes publish no address. `favourites`
    are a few providers of a model, None: of any, that did jobs for us.
    """

    ourselves: NodeId
    connected: NodeTest
    has_address: NodeTest
    standing: Callable[[NodeId, str], Standing] = lambda _node, _model: STRANGER
    favourites: Callable[[str | None], Collection[NodeId]] = lambda _model: ()


def exclusion(
    entry: Entry,
    request: RouteRequest,
    wall_ms: int,
    *,
    ourselves: NodeId,
    tried: Collection[NodeId],
    connected: NodeTest,
    has_address: NodeTest,
) -> Exclusion | None:
    """The first reason against a node, or None when it is a candidate.

    `has_address` counts what was learnt from others than the node, too: most nodes publish no address.
    """
    heartbeat = entry.heartbeat
    if heartbeat.node == ourselves:
        return Exclusion.OURSELVES
    if heartbeat.node in tried:
        return Exclusion.TRIED
    if heartbeat.role is not Role.PROVIDER:
        return Exclusion.NOT_PROVIDER
    # SPEC 05: The asker MUST seal only for a key from a heartbeat that it has verified and that has not expired.
    if heartbeat.expires_at_ms <= wall_ms:
        return Exclusion.EXPIRED
    if heartbeat.availability is Availability.DRAINING:
        return Exclusion.DRAINING
    if heartbeat.availability is not Availability.AVAILABLE:
        return Exclusion.OFFLINE  # or something newer than this program, which is not known to take jobs
    model = model_for(entry, request)
    if model is None:
        return _model_exclusion(entry, request)
    offer = entry.offer(model)
    assert offer is not None
    if request.free or offer.is_free:
        if heartbeat.free_policy is FreePolicy.NOBODY:
            return Exclusion.NOT_FREE
    elif request.spend_uusd_max is not None:
        if request.coordinator not in heartbeat.coordinators:
            return Exclusion.OTHER_COORDINATOR
        prompt_tokens = min(request.prompt_tokens, offer.context_tokens)
        if cost_bound_uusd(offer, prompt_tokens, request.output_tokens) > request.spend_uusd_max:
            return Exclusion.TOO_DEAR
    if heartbeat.sealing_key is None:
        return Exclusion.NO_SEALING_KEY
    # SPEC 05: The asker MUST NOT send more bytes than the provider's heartbeat allows,
    if request.prompt_bytes > heartbeat.sealed_bytes_max:
        return Exclusion.TOO_LARGE
    if not set(request.features) <= set(heartbeat.features):
        return Exclusion.LACKS_FEATURE
    if request.via is None and not connected(heartbeat.node):
        if request.connected_only:
            return Exclusion.NOT_CONNECTED
        if not has_address(heartbeat.node):
            return Exclusion.UNREACHABLE
    return None


def model_for(entry: Entry, request: RouteRequest) -> str | None:
    """The model of this node that fits the request: the one named, or the first that fits when none is.

    It is what the node calls it, which may be another name than the one that is asked for.
    """
    name = entry.own_name(request.model)
    for offer in entry.heartbeat.models:
        if name not in (None, offer.name):
            continue
        if request.kind not in offer.kinds or request.context_tokens > offer.context_tokens:
            continue
        if not _has_weights(offer, request):
            continue
        if not request.free and (
            (request.price_in_uusd_max is not None and offer.price_in_uusd > request.price_in_uusd_max)
            or (request.price_out_uusd_max is not None and offer.price_out_uusd > request.price_out_uusd_max)
        ):
            continue
        return offer.name
    return None


def _has_weights(offer: ModelOffer, request: RouteRequest) -> bool:
    """Whether an offer has the weights asked for. Unknown ones, which all have the same fingerprint, are no weights."""
    return request.fingerprint is None or (offer.fingerprint == request.fingerprint and any(offer.fingerprint))


def _model_exclusion(entry: Entry, request: RouteRequest) -> Exclusion:
    """Why no model of this node fits: the reason of the one that comes closest."""
    name = entry.own_name(request.model)
    named = [offer for offer in entry.heartbeat.models if name in (None, offer.name)]
    if not named:
        return Exclusion.NO_MODEL
    fitting = [offer for offer in named if request.kind in offer.kinds]
    if not fitting:
        return Exclusion.WRONG_KIND
    fitting = [offer for offer in fitting if request.context_tokens <= offer.context_tokens]
    if not fitting:
        return Exclusion.CONTEXT
    fitting = [offer for offer in fitting if _has_weights(offer, request)]
    if not fitting:
        return Exclusion.OTHER_WEIGHTS
    if request.price_in_uusd_max is not None and all(o.price_in_uusd > request.price_in_uusd_max for o in fitting):
        return Exclusion.PRICE_IN
    return Exclusion.PRICE_OUT


def _need(request: RouteRequest) -> Need:
    return Need(
        request.prompt_bytes,
        request.output_tokens,
        request.free,
        request.price_in_uusd_max,
        request.price_out_uusd_max,
        request.prompt_tokens,
        request.spend_uusd_max,
    )


def choose(
    request: RouteRequest,
    directory: Directory,
    around: Surroundings,
    tried: Collection[NodeId],
    wall_ms: int,
    rng: random.Random,
) -> Decision:
    """The best of a few providers that fit, and what spoke against the others looked at.

    Load ranks and never excludes: what is known of it may be old, while a provider that is really full says so in one
    round trip and names others.
    """
    verdicts: list[Verdict] = []
    need = _need(request)
    for size in (SAMPLE, SAMPLE_MAX):
        entries = _sample(request, directory, around, size, rng)
        verdicts = _judge_all(entries, request, need, directory, around, tried, wall_ms)
        ranked = [verdict for verdict in verdicts if verdict.rank is not None]
        if ranked:
            # Shuffled, so that equals share the jobs.
            rng.shuffle(ranked)
            return _decision(verdicts, _best(ranked, need, rng), directory)
    return Decision(None, tuple(verdicts))


def _best(ranked: Sequence[Verdict], need: Need, rng: random.Random) -> Verdict:
    """The best ranked; or at times the best newcomer, or one that may turn out to be better than the best."""
    roll = rng.random()
    best = min(ranked, key=lambda verdict: _rank(verdict).key)
    has_room = [verdict for verdict in ranked if _rank(verdict).tier < Tier.FULL]
    if roll < NEWCOMERS_SHARE and need.is_small:
        newcomers = [verdict for verdict in has_room if is_newcomer(_rank(verdict).standing)]
        return min(newcomers, key=lambda verdict: _rank(verdict).key, default=best)
    if 0 <= roll - NEWCOMERS_SHARE < PROMISING_SHARE:
        promising = [verdict for verdict in has_room if _rank(verdict).may_beat(_rank(best))]
        return min(promising, key=lambda verdict: _rank(verdict).hope_s, default=best)
    return best


def _decision(verdicts: Sequence[Verdict], best: Verdict, directory: Directory) -> Decision:
    tier = _rank(best).tier
    entry = directory.get(best.node)
    assert entry is not None
    assert best.model is not None
    return Decision(
        Candidate(entry, best.model),
        tuple(v if v is best or v.rank is None else replace(v, against=_preferred(v.rank, tier)) for v in verdicts),
    )


def _rank(verdict: Verdict) -> Rank:
    assert verdict.rank is not None
    return verdict.rank


def _preferred(rank: Rank, best: Tier) -> Exclusion:
    """Why another candidate was preferred to one with this rank."""
    return _REASON_OF_TIER[rank.tier] if rank.tier > best else Exclusion.OUTRANKED


_REASON_OF_TIER: Final = {
    Tier.READY: Exclusion.OUTRANKED,
    Tier.MAY_REFUSE: Exclusion.MAY_REFUSE,
    Tier.NEWCOMER: Exclusion.NEWCOMER,
    Tier.FULL: Exclusion.FULL,
    Tier.RESTING: Exclusion.RESTING,
}


class _Fit(NamedTuple):
    """A node that can do the job, and what ranks it beside what is known of it."""

    entry: Entry
    offer: ModelOffer
    known: Standing
    stated: Stated


def _judge_all(
    entries: Sequence[Entry],
    request: RouteRequest,
    need: Need,
    directory: Directory,
    around: Surroundings,
    tried: Collection[NodeId],
    wall_ms: int,
) -> list[Verdict]:
    """What speaks against each of these nodes, or where it ranks among them; in their order."""
    found = [_look_at(entry, request, around, tried, wall_ms) for entry in entries]
    fits = [one for one in found if isinstance(one, _Fit)]
    # How far one is believed depends on the others.
    counted = iter(believed([fit.known for fit in fits], [fit.stated for fit in fits], need))
    return [_ranked(one, next(counted), need, directory) if isinstance(one, _Fit) else one for one in found]


def _look_at(
    entry: Entry, request: RouteRequest, around: Surroundings, tried: Collection[NodeId], wall_ms: int
) -> Verdict | _Fit:
    """What speaks against a node; or that nothing does."""
    node = entry.heartbeat.node
    against = exclusion(
        entry,
        request,
        wall_ms,
        ourselves=around.ourselves,
        tried=tried,
        connected=around.connected,
        has_address=around.has_address,
    )
    if against is not None:
        return Verdict(node, request.model or model_for(entry, request), against, None)
    model = model_for(entry, request)
    assert model is not None
    offer = entry.offer(model)
    assert offer is not None
    known = around.standing(node, model)
    # Most state nothing, or are known too well for it to matter.
    has_said = entry.heartbeat.extensions and is_open(known)
    stated = Stated(*speeds_of(entry.heartbeat, offer)) if has_said else NOTHING_STATED
    return _Fit(entry, offer, known, stated)


def _ranked(fit: _Fit, counted: Standing, need: Need, directory: Directory) -> Verdict:
    heartbeat = fit.entry.heartbeat
    load, wait_ms = directory.load_of(heartbeat.node)
    wait_s = wait_ms / 1000 if wait_ms else None
    by = rank(fit.offer, heartbeat.free_policy, load, wait_s, counted, need)
    return Verdict(heartbeat.node, fit.offer.name, None, by)


def _sample(
    request: RouteRequest, directory: Directory, around: Surroundings, size: int, rng: random.Random
) -> list[Entry]:
    """Up to `size` providers of the model, and those that served us before; of all nodes when no model is named."""
    if request.model is not None:
        providers = directory.providers_of(request.model)
        drawn = rng.sample(providers, min(size, len(providers)))
    else:
        # Not by way of the models' names: whoever lists many of them would be drawn for each.
        drawn = directory.sample(size, rng)
    nodes = dict.fromkeys([*drawn, *around.favourites(request.model)])
    # A favourite may be gone.
    return [entry for node in nodes if (entry := directory.get(node)) is not None]


def explain(request: RouteRequest, directory: Directory, around: Surroundings, wall_ms: int) -> list[Verdict]:
    """Every node of the directory, judged: candidates first, best ranked first, then the others by reason.

    As no choice is made here, none of the candidates has anything against it.
    """
    need = _need(request)
    judged = _judge_all(directory.entries(), request, need, directory, around, (), wall_ms)
    candidates = sorted((v for v in judged if v.rank is not None), key=lambda v: _rank(v).key)
    others = sorted((v for v in judged if v.against is not None), key=_reason_number)
    return [*candidates, *others]


def _reason_number(verdict: Verdict) -> int:
    assert verdict.against is not None
    return verdict.against.number
