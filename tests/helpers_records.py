"""Records with plausible values, each field replaceable, and keys that are the same in every run."""

from __future__ import annotations

import hashlib
from typing import Any

from msgspec.structs import replace

from protocol.envelope import SigningKey
from protocol.ids import JobId
from protocol.jobs import default_sampling
from protocol.records import (
    Availability,
    FreePolicy,
    Gpu,
    GpuVendor,
    Heartbeat,
    JobAcceptRecord,
    JobOpenRecord,
    Kind,
    ModelOffer,
    Outcome,
    ReceiptRecord,
    Role,
    VramTier,
)

NOW_MS = 1_795_000_000_000
JOB = JobId(bytes(range(16)))


def signing_key(name: str) -> SigningKey:
    """The key of somebody in a test; its auxiliary randomness is zero."""
    return SigningKey(hashlib.sha256(name.encode()).digest(), bytes)


ASKER = signing_key("asker")
PROVIDER = signing_key("provider")

OFFER = ModelOffer(
    name="tiny-135m",
    fingerprint=b"\x11" * 32,
    kinds=(Kind.CHAT, Kind.COMPLETION),
    context_tokens=2048,
    concurrency=2,
    price_in_uusd=0,
    price_out_uusd=0,
    price_job_uusd=0,
)

_HEARTBEAT = Heartbeat(
    version=1,
    node=PROVIDER.node,
    sequence=7,
    issued_at_ms=NOW_MS,
    expires_at_ms=NOW_MS + 600_000,
    role=Role.PROVIDER,
    availability=Availability.AVAILABLE,
    name="somebody's node",
    agent="infernet/0.1",
    addresses=("/ip4/192.0.2.1/tcp/46337",),
    gpus=(Gpu(GpuVendor.NVIDIA, VramTier.FROM_24, "RTX 4090"),),
    models=(OFFER,),
    load=0,
    free_policy=FreePolicy.KNOWN,
    sealing_key=b"\x22" * 32,
    sealed_bytes_max=262_144,
    features=(1,),
    coordinators=(),
    extensions=(),
)

_ORDER = JobOpenRecord(
    version=1,
    job=JOB,
    attempt=1,
    asker=ASKER.node,
    provider=PROVIDER.node,
    lease=None,
    reservation=None,
    kind=Kind.CHAT,
    model=OFFER.name,
    fingerprint=OFFER.fingerprint,
    sampling=default_sampling(7),
    prompt_tokens_max=2048,
    output_tokens_max=128,
    price_in_uusd=0,
    price_out_uusd=0,
    price_job_uusd=0,
    prepay_max_uusd=0,
    sealed_hash=b"\x33" * 32,
    sealed_bytes=1072,
    created_at_ms=NOW_MS,
    expires_at_ms=NOW_MS + 60_000,
    extensions=(),
)

_ACCEPTANCE = JobAcceptRecord(
    version=1,
    job=JOB,
    attempt=1,
    provider=PROVIDER.node,
    lease=None,
    open_hash=b"\x44" * 32,
    fingerprint=OFFER.fingerprint,
    prompt_tokens=17,
    paid_before_uusd=0,
    prefill_uusd=0,
    window_tokens=0,
    window_uusd=0,
    accepted_at_ms=NOW_MS + 40,
    extensions=(),
)

_RECEIPT = ReceiptRecord(
    version=1,
    job=JOB,
    attempt=1,
    provider=PROVIDER.node,
    asker=ASKER.node,
    lease=None,
    open_hash=b"\x44" * 32,
    fingerprint=OFFER.fingerprint,
    prompt_tokens=17,
    output_tokens=5,
    chunks=2,
    running_hash=b"\x55" * 32,
    paid_before_uusd=0,
    owed_uusd=0,
    accepted_at_ms=NOW_MS + 40,
    first_token_ms=120,
    last_token_ms=260,
    outcome=Outcome.STOP,
    code=0,
    extensions=(),
)


def heartbeat(**changes: Any) -> Heartbeat:
    """A provider's heartbeat."""
    return replace(_HEARTBEAT, **changes)


def order(**changes: Any) -> JobOpenRecord:
    """A free order for a chat."""
    return replace(_ORDER, **changes)


def acceptance(**changes: Any) -> JobAcceptRecord:
    """The acceptance of that order."""
    return replace(_ACCEPTANCE, **changes)


def receipt(**changes: Any) -> ReceiptRecord:
    """The receipt for that order."""
    return replace(_RECEIPT, **changes)
