"""The rules of a job that both sides share: states, order, cost, running hash.

The two machines that live by them are `asking` and `providing`. A job attempt moves

    offered -> accepted -> running -> done | failed | cancelled

and the attempt number is its fencing token: a provider runs one (asker, job, attempt) at most once (specs/05).
"""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import Final, Protocol

from protocol import constants as c
from protocol.envelope import tagged_hash
from protocol.errors import LocalProtocolError
from protocol.records import Extensions, JobOpenRecord, JobRequest, Kind, Sampling

# In a heartbeat: orders are acknowledged at once, and signs of life follow until the receipt (specs/01, specs/05).
FEATURE_ACKNOWLEDGES: Final = 5
# Extensions of an order (specs/01).
EXTENSION_HANDOFF: Final = 1
EXTENSION_QUEUE: Final = 3

# What a chat template may add to each message and to the whole, system prompts of providers included.
TEMPLATE_TOKENS: Final = 256

_ROLES: Final = frozenset({"system", "user", "assistant"})


class Priced(Protocol):
    """Whatever states the three prices: an offer, an order, a lease."""

    @property
    def price_in_uusd(self) -> int: ...
    @property
    def price_out_uusd(self) -> int: ...
    @property
    def price_job_uusd(self) -> int: ...


class JobState(Enum):
    """Where a job attempt is; `TRANSITIONS` says what can follow."""

    OFFERED = "offered"
    QUEUED = "queued"
    ACCEPTED = "accepted"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.OFFERED: frozenset(
        {JobState.QUEUED, JobState.ACCEPTED, JobState.FAILED, JobState.CANCELLING, JobState.CANCELLED}
    ),
    JobState.QUEUED: frozenset({JobState.OFFERED, JobState.FAILED, JobState.CANCELLED}),
    JobState.ACCEPTED: frozenset({JobState.RUNNING, JobState.DONE, JobState.FAILED, JobState.CANCELLING}),
    JobState.RUNNING: frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLING}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.DONE, JobState.FAILED}),
    JobState.DONE: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
ENDED: Final = frozenset(state for state, following in TRANSITIONS.items() if not following)


def advance(old: JobState, new: JobState) -> JobState:
    """The new state, asserted to be reachable: a wrong transition is a bug of ours, not of a peer."""
    assert new in TRANSITIONS[old], f"job cannot go from {old.value} to {new.value}"
    return new


def order_hash(body: bytes) -> bytes:
    """The identity of a signed order, and the start of its running hash."""
    return tagged_hash(JobOpenRecord.TAG, body)


def running_hash(previous: bytes, number: int, output_tokens: int, owed_uusd: int, sealed: bytes) -> bytes:
    """Fold one chunk into the running hash."""
    # SPEC 05: Both sides MUST fold every chunk into the running hash in the order of its number.
    counts = number.to_bytes(8, "big") + output_tokens.to_bytes(8, "big") + owed_uusd.to_bytes(8, "big")
    return hashlib.sha256(previous + counts + sealed).digest()


def cost_uusd(order: Priced, prompt_tokens: int, output_tokens: int) -> int:
    """What cumulative counts cost, in whole micro-USD, rounded up once."""
    # SPEC 05: Both sides MUST compute the cost from cumulative counts and round it up once.
    # SPEC 05: Both sides MUST compute it from the prices in the order, whatever the heartbeat says by then.
    token_price = prompt_tokens * order.price_in_uusd + output_tokens * order.price_out_uusd
    return order.price_job_uusd + -(-token_price // 1_000_000)


def prompt_tokens_bound(request: JobRequest) -> int:
    """More tokens than any vocabulary needs for this request: each spells a byte at least, and templates add some."""
    texts = (request.prompt, request.continuation, *request.inputs, *(message.content for message in request.messages))
    return sum(len(text.encode()) for text in texts) + TEMPLATE_TOKENS * (1 + len(request.messages))


def cost_bound_uusd(priced: Priced, prompt_tokens: int, output_tokens: int) -> int:
    """The most that so many tokens can cost, when the prompt is paid before and the output after it."""
    return cost_uusd(priced, prompt_tokens, 0) + -(-output_tokens * priced.price_out_uusd // 1_000_000)


def is_own(order: JobOpenRecord) -> bool:
    """Whether a node orders from itself, for its owner: such an order is signed with the key that is to serve it."""
    return order.asker == order.provider


def is_free(order: JobOpenRecord) -> bool:
    """Whether the order offers no money at all."""
    return order.price_in_uusd == order.price_out_uusd == order.price_job_uusd == 0


def order_extensions(*, may_hand_off: bool, queue_wait_ms: int) -> Extensions:
    """What an order allows beyond being run at once by its provider; a wait of 0 is none."""
    extensions: list[tuple[int, bytes]] = []
    if may_hand_off:
        extensions.append((EXTENSION_HANDOFF, b""))
    if queue_wait_ms:
        extensions.append((EXTENSION_QUEUE, min(queue_wait_ms, 2**32 - 1).to_bytes(4, "big")))
    # SPEC 01: The signer of a record MUST write its extensions in strictly ascending order of type.
    return tuple(extensions)


def may_hand_off(order: JobOpenRecord) -> bool:
    """Whether the asker agrees that others hear of its order."""
    return any(kind == EXTENSION_HANDOFF for kind, _ in order.extensions)


def queue_wait_ms(order: JobOpenRecord) -> int:
    """How long the asker waits in a queue; 0: not at all, which is also how a value of the wrong size is read."""
    for kind, value in order.extensions:
        if kind == EXTENSION_QUEUE and len(value) == 4:
            return int.from_bytes(value, "big")
    return 0


def check_request(kind: Kind, request: JobRequest) -> str | None:
    """One sentence why a request cannot be run as this kind, or None."""
    if kind is Kind.CHAT:
        if not request.messages:
            return "a chat needs at least one message"
        if any(message.role not in _ROLES for message in request.messages):
            return "the role of a message is system, user or assistant"
        if request.prompt or request.inputs:
            return "a chat has messages, neither prompt nor inputs"
    elif kind is Kind.COMPLETION:
        if not request.prompt:
            return "a completion needs a prompt"
        if request.messages or request.inputs:
            return "a completion has a prompt, neither messages nor inputs"
    elif kind is Kind.EMBEDDING:
        if not request.inputs:
            return "an embedding needs at least one input"
        if request.messages or request.prompt or request.continuation or request.stop or request.continuation_ids:
            return "an embedding has inputs and nothing else"
    else:
        return "this kind of job is not known here"
    if len(request.continuation_ids) % c.TOKEN_ID_BYTES:
        return "the tokens of a continuation are whole tokens"
    return None


def default_sampling(seed: int, *, temperature: float = 0.7) -> Sampling:
    """The sampling of a user who states none. Raises LocalProtocolError for a temperature out of 0..2."""
    if not 0 <= temperature <= 2:
        raise LocalProtocolError(f"a temperature lies between 0 and 2, not at {temperature}")
    return Sampling(
        temperature_milli=round(temperature * 1000),
        top_p_milli=950,
        min_p_milli=50,
        top_k=40,
        presence_penalty_milli=0,
        frequency_penalty_milli=0,
        repetition_penalty_milli=1000,
        seed=seed,
    )


def parts(sealed: bytes) -> tuple[bytes, list[bytes]]:
    """Cut a sealed prompt into what travels in `JobOpen` and what follows in `Part` messages."""
    first = sealed[: c.SEALED_INLINE_BYTES_MAX]
    rest = sealed[c.SEALED_INLINE_BYTES_MAX :]
    return first, [
        rest[start : start + c.SEALED_PART_BYTES_MAX] for start in range(0, len(rest), c.SEALED_PART_BYTES_MAX)
    ]
