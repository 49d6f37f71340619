"""A job of ours between question and receipt: the record that `asking` and its helpers keep of it.

No machine: who changes it is `asking`, and `searching` as long as the job looks for a provider.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from protocol import constants as c
from protocol.attempt import Attempt
from protocol.codec import SEALED_LIMITS, decode_struct, encode_value
from protocol.errors import LocalProtocolError, Refusal, RemoteProtocolError
from protocol.events import Ask
from protocol.ids import NodeId
from protocol.jobs import check_request
from protocol.records import Kind


class Stage(Enum):
    """Where our job is. From OFFERED on the names are those of `jobs.JobState`."""

    SEARCHING = "searching"
    REACHING = "reaching"
    OFFERED = "offered"
    ACCEPTED = "accepted"
    RUNNING = "running"
    CANCELLING = "cancelling"


@dataclass(slots=True)
class Job:
    """One job. `provider` is whom it reaches for or has ordered from, and `model` what is wanted of it."""

    ask: Ask
    stage: Stage
    deadline_s: float
    sealed_bytes: int
    provider: NodeId | None = None
    model: str | None = None
    attempts: int = 0
    tried: set[NodeId] = field(default_factory=set)
    attempt: Attempt | None = None
    last_failure: tuple[Refusal, str, int] | None = None


def check_ask(ask: Ask) -> None:
    """Find here what a provider would refuse, or blame us for. Raises LocalProtocolError."""
    wrong = check_request(ask.kind, ask.request)
    if wrong is not None:
        raise LocalProtocolError(wrong)
    if not (0 if ask.kind is Kind.EMBEDDING else 1) <= ask.output_tokens_max <= c.OUTPUT_TOKENS_MAX:
        raise LocalProtocolError(f"between 1 and {c.OUTPUT_TOKENS_MAX} output tokens can be asked for")
    if not 0 < ask.timeout_s <= c.JOB_LIFETIME_MS_MAX / 1000:
        raise LocalProtocolError(f"a job may take up to {c.JOB_LIFETIME_MS_MAX // 1000} s")
    if ask.model is not None and not 0 < len(ask.model) <= c.MODEL_NAME_CHARACTERS_MAX:
        raise LocalProtocolError(f"the name of a model has 1 to {c.MODEL_NAME_CHARACTERS_MAX} characters")
    encode_value(ask.model)  # a name that is no Unicode text would raise later, when nobody who asked is there
    # Building a struct checks no bounds: the decoder does.
    for value in (ask.sampling, ask.request):
        try:
            decode_struct(encode_value(value), type(value), SEALED_LIMITS)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"this cannot be asked: {error}") from None
