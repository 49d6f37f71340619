"""Vectors of handing orders on (specs/05) and of passing jobs on (specs/08)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from _vectors_common import ASKER, JOB, NOW_MS, PROVIDER, Vector, file, invalid, plain, signing_key, valid
from _vectors_jobs import FINGERPRINT, SEALING_KEY, Conversation, secret_of
from protocol import constants as c
from protocol.codec import encode_message, encode_value
from protocol.envelope import SigningKey, sign_record
from protocol.ids import JobId
from protocol.jobs import default_sampling, order_extensions
from protocol.messages import Fault, Forward, JobOpen, JobReject, Message, Progress, Reserve, Reserved
from protocol.records import (
    Availability,
    FreePolicy,
    Heartbeat,
    JobOpenRecord,
    Kind,
    ModelOffer,
    Outcome,
    ReservationRecord,
    Role,
    Signed,
)

OTHER = signing_key("other provider")
AGGREGATOR = signing_key("aggregator")
MODEL = "smollm2:135m"
CONSENT = order_extensions(may_hand_off=True, queue_wait_ms=0)
RESERVATION = JobId(secret_of("reservation")[:16])

# ---------------------------------------------------------------- handing on


def _order(**changes: Any) -> JobOpenRecord:
    sealed = changes.pop("sealed", _sealed(1))
    order = JobOpenRecord(
        version=1,
        job=JOB,
        attempt=1,
        asker=ASKER.node,
        provider=PROVIDER.node,
        lease=None,
        reservation=None,
        kind=Kind.CHAT,
        model=MODEL,
        fingerprint=FINGERPRINT,
        sampling=default_sampling(42),
        prompt_tokens_max=8_192,
        output_tokens_max=64,
        price_in_uusd=0,
        price_out_uusd=0,
        price_job_uusd=0,
        prepay_max_uusd=0,
        sealed_hash=hashlib.sha256(sealed).digest(),
        sealed_bytes=len(sealed),
        created_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 60_000,
        extensions=CONSENT,
    )
    return replace(order, **changes)


def _sealed(number: int) -> bytes:
    """What nobody here opens: bytes of the right length."""
    return hashlib.shake_256(f"sealed prompt {number}".encode()).digest(1_072)


def _heartbeat(key: SigningKey, name: str, availability: Availability) -> Signed:
    record = Heartbeat(
        version=1,
        node=key.node,
        sequence=NOW_MS,
        issued_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 1_800_000,
        role=Role.PROVIDER,
        availability=availability,
        name=name,
        agent="infernet/1.0",
        addresses=("/ip4/203.0.113.7/tcp/46337",),
        gpus=(),
        models=(ModelOffer(MODEL, FINGERPRINT, (Kind.CHAT,), 8_192, 4, 0, 0, 0),),
        load=0,
        free_policy=FreePolicy.ALL,
        sealing_key=SEALING_KEY,
        sealed_bytes_max=262_192,
        features=(),
        coordinators=(),
        extensions=(),
    )
    return sign_record(record, key)


HEARTBEAT = _heartbeat(OTHER, "other", Availability.AVAILABLE)


def _reservation(**changes: Any) -> ReservationRecord:
    record = ReservationRecord(
        version=1,
        reservation=RESERVATION,
        provider=OTHER.node,
        asker=ASKER.node,
        job=JOB,
        model=MODEL,
        issued_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + c.RESERVATION_LIFETIME_MS_MAX,
        extensions=(),
    )
    return replace(record, **changes)


class _Talk:
    """Three parties, message by message. Each pair has one job stream, but for the asker's two."""

    def __init__(self) -> None:
        self.steps: list[Vector] = []

    def say(self, at_ms: int, sender: str, receiver: str, message: Message, *, free: tuple[str, ...] = ()) -> None:
        """Somebody sends a message; the fields named in `free` are its own choice."""
        step: Vector = {"at_ms": at_ms, "from": sender, "to": receiver, "message": type(message).__name__}
        step |= {"fields": plain(message), **({"free": list(free)} if free else {})}
        self.steps.append({**step, "frame": encode_message(message).hex()})


def handoff() -> Vector:
    """handoff.json."""
    return file(
        "A provider that drains hands an order on (specs/05). `kind` says what a vector is. `conversation`: asker, "
        "provider and other (whose heartbeat, `known`, the provider holds) say what `steps` list, each at `at_ms` "
        "after `started_at_ms` and without delay; fields in `free` are the sender's own choice; the other draws "
        "`reservation` for its reservation. `question`: the other gets `frame` from "
        "`sender`; it answers a valid one, and what is not valid breaks the protocol. `reservation`: the asker gets it "
        "in the refusal of `order` at `at_ms`; what is not valid it ignores.",
        [_handed_on(), _nobody_has_room(), _not_shown(), *_questions(), *_reservations()],
    )


def _conversation(comment: str, talk: _Talk) -> Vector:
    secrets = {"asker": ASKER, "provider": PROVIDER, "other": OTHER}
    fields = {f"{name}_secret": key.secret_bytes() for name, key in secrets.items()}
    return {
        **valid(comment, kind="conversation", **fields, started_at_ms=NOW_MS, known=HEARTBEAT, reservation=RESERVATION),
        "steps": talk.steps,
    }


def _asked(order: JobOpenRecord) -> tuple[_Talk, Signed]:
    talk, signed = _Talk(), sign_record(order, ASKER)
    talk.say(0, "asker", "provider", JobOpen(signed, _sealed(1)))
    return talk, signed


def _refuse(talk: _Talk, at_ms: int, reservation: Signed | None) -> None:
    reject = JobReject(JOB, 1, 2, 0, "this node is finishing its jobs and takes no new ones", (HEARTBEAT,), reservation)
    talk.say(at_ms, "provider", "asker", reject, free=("text",))


def _handed_on() -> Vector:
    order = _order()
    talk, signed = _asked(order)
    talk.say(0, "provider", "other", Reserve(signed))
    held = sign_record(_reservation(), OTHER)
    talk.say(0, "other", "provider", Reserved(JOB, held, 0))
    _refuse(talk, 0, held)
    again = _order(
        attempt=2, provider=OTHER.node, reservation=RESERVATION, sealed=_sealed(2), created_at_ms=NOW_MS + 40
    )
    talk.say(40, "asker", "other", JobOpen(sign_record(again, ASKER), _sealed(2)), free=("order", "sealed"))
    talk.say(40, "other", "asker", Progress(JOB, 2, 0, 0))
    return _conversation("an order is handed on, and its asker goes where a slot is held", talk)


def _nobody_has_room() -> Vector:
    order = _order()
    talk, signed = _asked(order)
    talk.say(0, "provider", "other", Reserve(signed))
    talk.say(0, "other", "provider", Reserved(JOB, None, 1))
    _refuse(talk, 0, None)
    return _conversation("the other has no slot either", talk)


def _not_shown() -> Vector:
    order = _order(extensions=())
    talk, _ = _asked(order)
    _refuse(talk, 0, None)
    return _conversation("the asker does not agree, and nobody hears of its order", talk)


def _questions() -> Iterator[Vector]:
    def question(verdict: Any, comment: str, signed: Signed, sender: SigningKey = PROVIDER) -> Vector:
        made: Vector = verdict(comment, kind="question", sender=sender.node, frame=encode_message(Reserve(signed)))
        return made

    yield question(valid, "a question by the provider that has the order", sign_record(_order(), ASKER))
    yield question(invalid, "by somebody else, who has seen the order", sign_record(_order(), ASKER), ASKER)
    yield question(invalid, "of an order whose asker does not agree", sign_record(_order(extensions=()), ASKER))
    forged = replace(sign_record(_order(), ASKER), signature=bytes(64))
    yield question(invalid, "of an order that its asker did not sign", forged)
    yield question(invalid, "of what is no order", Signed(encode_value([1, 2, 3]), bytes(64)))


def _reservations() -> Iterator[Vector]:
    def reservation(verdict: Any, comment: str, signed: Signed, *, at_ms: int = 50, **changes: Any) -> Vector:
        fields = {"order": sign_record(_order(**changes), ASKER), "reservation": signed}
        made: Vector = verdict(comment, kind="reservation", **fields, started_at_ms=NOW_MS, at_ms=at_ms)
        return made

    good = sign_record(_reservation(), OTHER)
    yield reservation(valid, "a slot that is held for the asker", good)
    yield reservation(
        valid,
        "by a clock that is ten seconds ahead",
        sign_record(_reservation(issued_at_ms=NOW_MS + 10_020, expires_at_ms=NOW_MS + 20_020), OTHER),
    )
    for comment, changes in (
        ("for another asker", {"asker": PROVIDER.node}),
        ("for another job", {"job": JobId(bytes(16))}),
        ("for another model", {"model": "another"}),
        ("for eleven seconds", {"expires_at_ms": NOW_MS + 11_000}),
        ("that ends when it begins", {"expires_at_ms": NOW_MS}),
    ):
        yield reservation(invalid, f"a slot {comment}", sign_record(_reservation(**changes), OTHER))
    yield reservation(invalid, "a slot two minutes later", good, at_ms=120_000)
    own = sign_record(_reservation(provider=PROVIDER.node), PROVIDER)
    yield reservation(invalid, "a slot at the very provider that refuses", own)
    yield reservation(invalid, "a slot that its provider did not sign", replace(good, signature=bytes(64)))
    yield reservation(invalid, "a slot that the asker did not agree to", good, extensions=())


# ---------------------------------------------------------------- passing on


def forwarding() -> Vector:
    """forwarding.json."""
    return file(
        "What an aggregator (`aggregator_secret`) passes on (specs/08): between the asker, who opens a job stream to "
        "it, and the provider, to which it is connected. It passes on every frame after `Forward`, as it is. A step "
        "without `frame` is the end of what somebody says (`close`), or of a stream (`reset`). Steps from `aggregator` "
        "are its own; the text of a Fault is its choice. In what is not valid, the aggregator sends the provider "
        "nothing, and resets the asker's stream.",
        [_passed_on(), _provider_lost(), _asker_lost(), *_not_passed_on()],
    )


def _pass_on(comment: str, steps: list[Vector], verdict: Any = valid) -> Vector:
    secrets = {"asker": ASKER, "provider": PROVIDER, "aggregator": AGGREGATOR}
    fields = {f"{name}_secret": key.secret_bytes() for name, key in secrets.items()}
    return {**verdict(comment, **fields, started_at_ms=NOW_MS), "steps": steps}


def _forward(at_ms: int = 0) -> Vector:
    message = Forward(PROVIDER.node)
    frame = encode_message(message).hex()
    return {"from": "asker", "at_ms": at_ms, "message": "Forward", "fields": plain(message), "frame": frame}


def _job() -> list[Vector]:
    """A whole job as in job-conversation.json, without what the engine reports."""
    talk = Conversation()
    talk.open()
    talk.accept(40, 37)
    talk.chunk(1_500, "Paris", 1)
    talk.receipt(1_600, 37, (40, 1_500, 1_500), Outcome.STOP, 0)
    return [step for step in talk.steps if step["from"] != "engine"]


def _end(at_ms: int, sender: str, event: str) -> Vector:
    return {"from": sender, "at_ms": at_ms, "event": event}


def _passed_on() -> Vector:
    steps = [_forward(), *_job(), _end(1_600, "provider", "close"), _end(1_610, "asker", "close")]
    return _pass_on("a job from order to receipt", steps)


def _provider_lost() -> Vector:
    fault = Fault(66, "the provider's stream is lost")
    told = {"from": "aggregator", "at_ms": 1_550, "to": "asker", "message": "Fault", "fields": plain(fault)}
    steps = [_forward(), *_job()[:-1], _end(1_550, "provider", "reset"), {**told, "frame": encode_message(fault).hex()}]
    return _pass_on("the provider is lost in the middle of its answer", [*steps, _end(1_550, "aggregator", "reset")])


def _asker_lost() -> Vector:
    steps = [_forward(), *_job()[:-1], _end(1_550, "asker", "reset"), _end(1_550, "aggregator", "reset")]
    return _pass_on("the asker is lost in the middle of its answer, and the provider hears so", steps)


def _not_passed_on() -> Iterator[Vector]:
    def refused(comment: str, *messages: Message) -> Vector:
        steps = [_forward()]
        for message in messages:
            frame = encode_message(message).hex()
            step = {"from": "asker", "at_ms": 0, "message": type(message).__name__, "fields": plain(message)}
            steps.append({**step, "frame": frame})
        return _pass_on(comment, steps, invalid)

    order = _order()
    good = JobOpen(sign_record(order, ASKER), _sealed(1))
    yield refused(
        "an order that somebody else has signed",
        JobOpen(sign_record(replace(order, asker=OTHER.node), OTHER), _sealed(1)),
    )
    yield refused(
        "an order for another provider", JobOpen(sign_record(replace(order, provider=OTHER.node), ASKER), _sealed(1))
    )
    yield refused("an order whose signature is wrong", JobOpen(replace(good.order, signature=bytes(64)), _sealed(1)))
    yield refused("more of the prompt than the order states", JobOpen(good.order, _sealed(1) + b"\0"))
    yield refused("no order", Progress(JOB, 1, 0, 0))
    yield refused("another Forward", Forward(OTHER.node), good)
