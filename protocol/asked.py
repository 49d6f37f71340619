"""A job of ours between question and receipt: the record that `asking` and its helpers keep of it.

No machine: who changes it is `asking`, and `searching` as long as the job looks for a provider.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from msgspec.structs import replace

from protocol import constants as c
from protocol.attempt import Attempt
from protocol.codec import SEALED_LIMITS, decode_struct, encode_value
from protocol.effects import Served
from protocol.errors import LocalProtocolError, Refusal, RemoteProtocolError
from protocol.events import Ask
from protocol.formats.amounts import say_usd
from protocol.ids import NodeId
from protocol.jobs import check_request, cost_bound_uusd, prompt_tokens_bound
from protocol.records import ChunkBody, JobRequest, Kind, ModelOffer, ReservationRecord, SealedPrompt
from protocol.sealing import sealed_size

#: The provider went away or broke, and did not refuse: another one may be sought, and this one tried once more.
LOST: Final = frozenset(
    {
        Refusal.PEER_LOST,
        Refusal.DEADLINE,
        Refusal.ENGINE_FAILED,
        Refusal.ENGINE_UNAVAILABLE,
        Refusal.SHUTDOWN,
        Refusal.NO_ROUTE,
    }
)
# What ends an answer that has begun, because another provider would end it in the same way.
_FINAL: Final = frozenset({Refusal.CANCELLED, Refusal.SLOW_READER, Refusal.UNPAID})


class Stage(Enum):
    """Where our job is. From OFFERED on the names are those of `jobs.JobState`."""

    SEARCHING = "searching"
    REACHING = "reaching"
    FUNDING = "funding"
    OFFERED = "offered"
    QUEUED = "queued"
    ACCEPTED = "accepted"
    RUNNING = "running"
    CANCELLING = "cancelling"


@dataclass(slots=True)
class Job:
    """One job. `provider` is whom it reaches for or has ordered from, and `model` what is wanted of it.

    `attempts` counts orders, `failures` those since the last piece of text that were no refusals for want of a slot;
    `busy` says how long those who had no slot would have let us wait, in milliseconds.
    """

    ask: Ask
    stage: Stage
    deadline_s: float
    sealed_bytes: int = 0
    prompt_tokens: int = 0
    provider: NodeId | None = None
    model: str | None = None
    attempts: int = 0
    failures: int = 0
    attempt: Attempt | None = None
    #: The aggregator by way of which the provider is reached; None: directly.
    via: NodeId | None = None
    #: A slot that is held for us, at `provider` once we go there.
    reservation: ReservationRecord | None = None
    #: Told to the next provider: how long the order waits in its queue.
    queue_wait_ms: int = 0
    #: The sealing key that the provider no longer has.
    stale_key: bytes | None = None
    tried: set[NodeId] = field(default_factory=set)
    busy: dict[NodeId, int] = field(default_factory=dict)
    lost: list[NodeId] = field(default_factory=list)
    #: Peers that were asked in this search who serves the model.
    searched: set[NodeId] = field(default_factory=set)
    #: Whom we did not even dial, because their addresses had failed not long ago.
    not_dialled: list[NodeId] = field(default_factory=list)
    #: Whom we dialled whatever had failed before.
    urged: set[NodeId] = field(default_factory=set)
    retried: set[NodeId] = field(default_factory=set)
    resealed: set[NodeId] = field(default_factory=set)
    #: Who took our lease no more, and was asked once more with another one.
    releases: set[NodeId] = field(default_factory=set)
    detoured: set[NodeId] = field(default_factory=set)
    #: Aggregators of which we have heard during a search.
    aggregators: set[NodeId] = field(default_factory=set)
    last_failure: tuple[Refusal, str, int] | None = None
    #: The weights that the answer has begun with, and what its last provider so far calls them.
    fingerprint: bytes | None = None
    model_begun: str | None = None
    text: list[str] = field(default_factory=list)
    text_characters: int = 0
    token_ids: bytearray = field(default_factory=bytearray)
    output_tokens: int = 0
    served: list[Served] = field(default_factory=list)
    #: What we have signed for it so far, and how often we have asked for a lease.
    spent_uusd: int = 0
    leases_asked: int = 0

    @property
    def has_begun(self) -> bool:
        """Whether a piece of the answer has arrived: from then on it can only be continued."""
        return self.fingerprint is not None

    @property
    def hop(self) -> NodeId:
        """Whom we must be connected to: the provider, or the aggregator on the way to it."""
        assert self.provider is not None
        return self.via or self.provider

    @property
    def model_wanted(self) -> str | None:
        """The model that the next provider must serve; None: any.

        It may be another one's alias. An answer that has begun goes on with what its provider called the model, unless
        the user named it: others may know those weights by that name alone.
        """
        return self.ask.model or self.model_begun

    @property
    def output_tokens_left(self) -> int:
        """How many tokens the next attempt may still bring."""
        return self.ask.output_tokens_max - self.output_tokens

    @property
    def is_paid(self) -> bool:
        """Whether its user pays for it, where that is asked."""
        return self.ask.spend_uusd_max > 0

    @property
    def spend_uusd_left(self) -> int:
        """What it may still cost."""
        return max(0, self.ask.spend_uusd_max - self.spent_uusd)

    def cost_bound_uusd(self, offer: ModelOffer) -> int:
        """The most that the next attempt can cost at this offer."""
        return cost_bound_uusd(offer, self.prompt_tokens_max(offer), self.output_tokens_left)

    def prompt_tokens_max(self, offer: ModelOffer) -> int:
        """How many tokens a provider may count for the prompt: as many as may be, where nothing is paid for them."""
        if offer.is_free or not self.is_paid:
            return offer.context_tokens
        return min(offer.context_tokens, self.prompt_tokens)

    def request(self) -> JobRequest:
        """What the next provider is asked: to go on from the text so far, where there is one."""
        request = self.ask.request
        if not self.text:
            return request
        continuation = request.continuation + "".join(self.text)
        return replace(request, continuation=continuation, continuation_ids=bytes(self.token_ids))

    def measure(self) -> None:
        """Find out how large the next order's prompt is, sealed."""
        self.sealed_bytes = sealed_size(SealedPrompt(bytes(32), self.request()))
        self.prompt_tokens = prompt_tokens_bound(self.request())

    def take_text(self, body: ChunkBody, attempt: Attempt) -> None:
        """A piece of the answer has arrived."""
        self.fingerprint = attempt.order.fingerprint
        self.model_begun = attempt.order.model
        self.failures = 0
        self.text_characters += len(body.text)
        if self.text_characters <= c.SEALED_BYTES_MAX:
            self.text.append(body.text)
        else:
            self.text.clear()  # no seal could hold it
        if len(self.token_ids) + len(body.token_ids) <= c.TOKEN_ID_BYTES * c.OUTPUT_TOKENS_MAX:
            self.token_ids += body.token_ids

    def settle(self, attempt: Attempt) -> None:
        """An attempt is over: keep account of what it brought."""
        self.attempt = None
        self.spent_uusd += attempt.paid_uusd
        if attempt.started:
            self.served.append(served_by(attempt))
            self.output_tokens += attempt.output_tokens

    def fail(self, provider: NodeId, code: Refusal, text: str, retry_after_ms: int, *, had_order: bool) -> None:
        """This provider did not do it, or not to the end."""
        self.tried.add(provider)
        # That somebody who went away is not back yet is no news.
        if had_order or provider not in self.retried:
            self.last_failure = (code, text, retry_after_ms)
        if code is Refusal.BUSY and not self.queue_wait_ms:
            self.busy[provider] = retry_after_ms
            return
        self.busy.pop(provider, None)
        self.failures += 1
        if had_order and code in LOST:
            self.lost.append(provider)

    def may_go_on(self, code: Refusal) -> bool:
        """Whether another provider may take over after this failure."""
        # SPEC 05: The asker MUST bound how many orders it sends for one job.
        if self.failures >= c.ATTEMPTS_MAX or self.attempts >= c.ORDERS_MAX:
            return False
        if not self.has_begun:
            return True
        # SPEC 05: The asker MUST continue an answer only with a provider that offers the same known weights.
        is_known = self.fingerprint is not None and any(self.fingerprint)
        is_whole = self.text_characters <= c.SEALED_BYTES_MAX and self.sealed_bytes <= c.SEALED_BYTES_MAX
        is_text = self.ask.kind is not Kind.EMBEDDING
        return code not in _FINAL and is_text and is_known and is_whole and self.output_tokens_left > 0


def served_by(attempt: Attempt) -> Served:
    """What this attempt has brought, and cost."""
    order = attempt.order
    return Served(order.provider, order.attempt, attempt.prompt_tokens, attempt.output_tokens, attempt.paid_uusd)


def is_above_limit(ask: Ask, offer: ModelOffer) -> bool:
    """Whether a token costs more at this offer than the user allows."""
    limits = ((offer.price_in_uusd, ask.price_in_uusd_max), (offer.price_out_uusd, ask.price_out_uusd_max))
    return any(limit is not None and price > limit for price, limit in limits)


def check_ask(ask: Ask) -> None:
    """Find here what a provider would refuse, or blame us for. Raises LocalProtocolError."""
    wrong = check_request(ask.kind, ask.request)
    if wrong is not None:
        raise LocalProtocolError(wrong)
    if not (0 if ask.kind is Kind.EMBEDDING else 1) <= ask.output_tokens_max <= c.OUTPUT_TOKENS_MAX:
        raise LocalProtocolError(f"between 1 and {c.OUTPUT_TOKENS_MAX} output tokens can be asked for")
    if not 0 < ask.timeout_s <= c.JOB_LIFETIME_MS_MAX / 1000:
        raise LocalProtocolError(f"a job may take up to {c.JOB_LIFETIME_MS_MAX // 1000} s")
    if not 0 <= ask.spend_uusd_max <= c.LEASE_CAP_UUSD_MAX:
        raise LocalProtocolError(f"a job may cost from nothing to {say_usd(c.LEASE_CAP_UUSD_MAX)}")
    if ask.model is not None and not 0 < len(ask.model) <= c.MODEL_NAME_CHARACTERS_MAX:
        raise LocalProtocolError(f"the name of a model has 1 to {c.MODEL_NAME_CHARACTERS_MAX} characters")
    encode_value(ask.model)  # a name that is no Unicode text would raise later, when nobody who asked is there
    # Building a struct checks no bounds: the decoder does.
    for value in (ask.sampling, ask.request):
        try:
            decode_struct(encode_value(value), type(value), SEALED_LIMITS)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"this cannot be asked: {error}") from None
