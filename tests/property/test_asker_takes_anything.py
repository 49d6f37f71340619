"""Every message about money at an asker in every state, well encoded and as wrong as it can be: it raises nothing.

And whatever came: no more is signed than its user allows, than a lease holds and than the disk knows, and the job ends.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol import events as e
from protocol.codec import decode_record
from protocol.effects import JobDone, JobFailed
from protocol.envelope import SigningKey, sign_record
from protocol.errors import Refusal
from protocol.ids import JobId, LeaseId
from protocol.messages import (
    Cancel,
    Chunk,
    Fault,
    Heads,
    JobAccept,
    JobOpen,
    JobReject,
    Message,
    Part,
    Progress,
    Queued,
    Receipt,
    Voucher,
)
from protocol.money_records import Credited, LeaseRecord, LedgerHeadRecord, VoucherRecord
from protocol.records import JobRequest, Kind, Outcome, Signed
from tests.helpers_claims import acknowledged
from tests.helpers_hostile_provider import (
    PREFILL_UUSD,
    PRICED,
    SPEND_UUSD,
    PaidProvider,
    PayingBench,
    paid_chat,
    priced_record,
)
from tests.helpers_machines import provider_record
from tests.helpers_records import NOW_MS, OFFER, acceptance, order, receipt, signing_key

MOST = c.INTEGER_MAX
TOKENS_MOST = 2**32 - 1
BANK = signing_key("bank")
OTHER = signing_key("other")
JOB = paid_chat().job
WINDOW_UUSD = 16
# Each is answered in another way.
_CODES = (Refusal.BUSY, Refusal.PRICE, Refusal.LEASE, Refusal.CANNOT_OPEN_SEAL, Refusal.DEADLINE, Refusal.UNPAID)


class World:
    """An asker, a provider of whom it has ordered or will, and a stranger that gossips."""

    def __init__(self) -> None:
        #: How many tokens of an order may have come that the asker has to take for real.
        self.tokens_max = 5
        self.bench = PayingBench()
        self.provider = PaidProvider("p")
        self.ends: list[JobDone | JobFailed] = []
        self.bench.connect(OTHER.node, inbound=True)
        self.gossip = self.bench.accept_stream(OTHER.node, c.GOSSIP_PROTOCOL)

    # ------------------------------------------------------------ into a state

    def know(self) -> None:
        for name in ("p", "q"):
            self.bench.feed(priced_record(self.bench, name, load=0 if name == "p" else 1))
            self.bench.connect(signing_key(name).node)

    def ask(self, **changes: Any) -> None:
        self.feed(paid_chat(timeout_s=40.0, **changes))

    def order(self, **changes: Any) -> None:
        self.know()
        self.ask(**changes)
        self.provider.take(self.bench)

    def accept(self) -> None:
        self.order()
        self.hear(self.provider.accept())

    def run(self) -> None:
        self.accept()
        self.hear(self.provider.chunk("a few words ", 3))

    def follow(self) -> None:
        """The provider of the last order is whom we speak for from now on."""
        streams = [number for number, opened in self.bench.opened.items() if opened.protocol == c.JOB_PROTOCOL]
        if streams and any(isinstance(message, JobOpen) for message in self.bench.said[streams[-1]]):
            node = self.bench.opened[streams[-1]].peer
            self.provider = next(each for name in ("p", "q") if (each := PaidProvider(name)).node == node)
            self.provider.take(self.bench, streams[-1])

    # ------------------------------------------------------------ what comes

    def feed(self, *events: e.Event) -> None:
        self.bench.feed(*events)
        self.look()

    def hear(self, *messages: Message) -> None:
        if hasattr(self.provider, "stream"):
            self.bench.hear(self.provider.stream, *messages)
            self.look()

    def look(self) -> None:
        """What must hold after every step."""
        self.ends += [effect for effect in self.bench.effects if isinstance(effect, (JobDone, JobFailed))]
        sides = self.bench.peer.purse.sides()
        signed_uusd = sum(side.signed_uusd for side in sides)
        assert signed_uusd <= SPEND_UUSD
        # Each order's prompt, and at most one window beyond the text that came, or that was claimed and spelt nothing.
        orders = sum(opened.protocol == c.JOB_PROTOCOL for opened in self.bench.opened.values())
        assert signed_uusd <= orders * (PREFILL_UUSD + WINDOW_UUSD + 2 * self.tokens_max)
        for side in sides:
            assert side.signed_uusd <= min(side.record.cap_uusd, max(side.mark_uusd, 0)), "signed above the mark"
            assert side.record.coordinator == BANK.node

    def end(self) -> None:
        """The job ends, once; and what is left can be asked with."""
        self.bench.effects = []
        if self.bench.peer.statistics().jobs_asked:
            self.bench.wait(60)
        self.look()
        assert self.bench.peer.statistics().jobs_asked == 0
        assert [each.job if isinstance(each, JobFailed) else each.receipt.job for each in self.ends].count(JOB) <= 1


STATES: dict[str, Callable[[World], None]] = {}


def state(build: Callable[[World], None]) -> Callable[[World], None]:
    STATES[build.__name__] = build
    return build


@state
def idle(world: World) -> None:
    world.know()


@state
def searching(world: World) -> None:
    world.ask()


@state
def reaching(world: World) -> None:
    world.bench.feed(priced_record(world.bench, "p"))
    world.ask()


@state
def funding(world: World) -> None:
    world.bench.grants = False
    world.know()
    world.ask()


@state
def funding_again(world: World) -> None:
    funding(world)
    world.feed(e.LeaseDenied(world.bench.requests[0].request, "too little", is_final=True))


@state
def funding_without_a_coordinator(world: World) -> None:
    """It was left when it was found to keep two ledgers."""
    funding(world)
    world.feed(e.UseCoordinator(None))


@state
def funding_what_costs_nothing(world: World) -> None:
    world.bench.grants = False
    embedder = replace(PRICED, kinds=(Kind.EMBEDDING,), price_in_uusd=0)
    world.bench.feed(priced_record(world.bench, "p", embedder))
    world.bench.connect(signing_key("p").node)
    world.ask(kind=Kind.EMBEDDING, request=JobRequest(inputs=("a",)), output_tokens_max=0)


@state
def offered(world: World) -> None:
    world.order()


@state
def offered_for_nothing(world: World) -> None:
    world.bench.feed(e.LearnRecord(provider_record("p", models=(OFFER,))))
    world.bench.connect(signing_key("p").node)
    world.ask()
    world.provider.take(world.bench)


@state
def queued(world: World) -> None:
    world.bench.feed(priced_record(world.bench, "p"))
    world.bench.connect(signing_key("p").node)
    world.ask()
    world.provider.take(world.bench)
    world.hear(world.provider.reject(Refusal.BUSY, retry_after_ms=1_000))
    world.provider.take(world.bench)
    assert world.provider.order is not None
    world.hear(Queued(JOB, world.provider.order.attempt, 3, 1_000))


@state
def accepted_without_a_mark(world: World) -> None:
    world.bench.stores = False
    world.order()
    world.hear(world.provider.accept())


@state
def accepted(world: World) -> None:
    world.accept()


@state
def running(world: World) -> None:
    world.run()


@state
def cancelling_before_the_acceptance(world: World) -> None:
    world.order()
    world.feed(e.StopAsking(JOB))


@state
def cancelling(world: World) -> None:
    world.run()
    world.feed(e.StopAsking(JOB))


@state
def failed_over(world: World) -> None:
    world.run()
    world.hear(world.provider.receipt(Outcome.FAILED, 64))
    other = PaidProvider("q")
    other.take(world.bench)
    world.provider = other


@state
def done(world: World) -> None:
    world.run()
    world.hear(world.provider.receipt())


# ---------------------------------------------------------------- everything that can come


def signed_by(key: SigningKey, record: Any, **changes: Any) -> Signed:
    return sign_record(replace(record, **changes), key)


def of_provider(world: World) -> list[Message]:
    """Whatever can be encoded on the stream of an order, for it and for others."""
    provider = world.provider
    named = provider.order if provider.order is not None else order()
    key = provider.key
    base = {"job": named.job, "attempt": named.attempt, "provider": provider.node, "lease": named.lease}
    hashes = {"open_hash": provider.order_hash or bytes(32)}
    agreed = replace(acceptance(), **base, **hashes, fingerprint=PRICED.fingerprint)
    over = replace(receipt(), **base, **hashes, asker=named.asker, fingerprint=PRICED.fingerprint)
    said: list[Message] = []
    agreements: list[dict[str, Any]] = [
        {},
        {"prompt_tokens": 0},
        {"prompt_tokens": TOKENS_MOST, "prefill_uusd": MOST},
        {"paid_before_uusd": MOST},
        {"prefill_uusd": MOST},
        {"prompt_tokens": 3, "prefill_uusd": 3, "window_uusd": MOST},
        {"prompt_tokens": 3, "prefill_uusd": 3, "window_tokens": TOKENS_MOST},
        {"lease": None},
        {"lease": LeaseId(bytes(32))},
        {"job": JobId(bytes(16))},
        {"attempt": TOKENS_MOST},
        {"open_hash": bytes(32)},
        {"fingerprint": bytes(32)},
        {"accepted_at_ms": MOST},
    ]
    said += [JobAccept(signed_by(key, agreed, **changes)) for changes in agreements]
    said.append(JobAccept(signed_by(OTHER, replace(agreed, provider=OTHER.node))))
    said.append(JobAccept(Signed(sign_record(agreed, key).body, bytes(64))))
    said.append(JobAccept(Signed(b"\xc0", bytes(64)), Signed(b"\xc1", bytes(64))))
    said.append(JobAccept(sign_record(agreed, key), foreign_voucher(named.lease)))
    said += [JobAccept(sign_record(agreed, key), each.voucher) for each in own_vouchers(world)]
    accounts: list[dict[str, Any]] = [
        {},
        {"output_tokens": TOKENS_MOST, "chunks": MOST, "owed_uusd": MOST},
        {"running_hash": bytes(32)},
        {"chunks": 0, "output_tokens": 0},
        {"paid_before_uusd": MOST},
        {"job": JobId(bytes(16))},
        {"asker": OTHER.node},
        {"lease": None},
        {"outcome": Outcome.UNKNOWN},
        {"outcome": Outcome.UNPAID, "code": 255},
        {"accepted_at_ms": MOST, "first_token_ms": MOST, "last_token_ms": 0},
    ]
    said += [Receipt(signed_by(key, over, **changes)) for changes in accounts]
    honest = replace(
        over,
        chunks=provider.chunks,
        output_tokens=provider.output_tokens,
        running_hash=provider.running_hash or bytes(32),
        prompt_tokens=provider.prompt_tokens,
        paid_before_uusd=0,
        owed_uusd=3 + 2 * provider.output_tokens,
    )
    said += [Receipt(sign_record(replace(honest, outcome=outcome), key)) for outcome in (Outcome.STOP, Outcome.FAILED)]
    said.append(Receipt(Signed(b"\x90", bytes(64))))
    for number, tokens, owed in (
        (1, 0, 3),
        (1, 8, 19),
        (1, 100, 203),
        (2, 8, 19),
        (2, 100, 203),
        (0, 0, 0),
        (MOST, TOKENS_MOST, MOST),
    ):
        said.append(Chunk(named.job, named.attempt, number, tokens, owed, bytes(80)))
    said += [
        JobReject(named.job, named.attempt, code, retry_after_ms, "no\nreason", better, reservation)
        for code in (0, *map(int, _CODES), 255)
        for retry_after_ms, better, reservation in ((0, (), None), (MOST, (Signed(b"\x90", bytes(64)),), bad_signed()))
    ]
    said += [Progress(named.job, named.attempt, *figures) for figures in ((0, 0), (TOKENS_MOST, TOKENS_MOST), (1, 0))]
    said += [Queued(named.job, named.attempt, position, MOST) for position in (0, 65535)]
    said += [Voucher(bad_signed()), Voucher(foreign_voucher(named.lease)), Cancel(named.job, named.attempt, 255)]
    said += [JobOpen(bad_signed(), b"", bad_signed()), Part(named.job, named.attempt, MOST, b"x")]
    said += [Fault(code, "because") for code in (0, 2, 64, 255)]
    return said


def whole_answers(world: World) -> list[tuple[Message, ...]]:
    """Chunks that open, and receipts that match whatever they counted."""
    provider = world.provider
    if provider.order is None:
        return []
    answers: list[tuple[Message, ...]] = []
    figures = (provider.chunks, provider.output_tokens, provider.running_hash)
    for text, tokens in (("more words", 2), ("", 8), ("", 90), ("many words" * 100, 90)):
        for outcome in (None, Outcome.STOP, Outcome.CANCELLED):
            chunk = provider.chunk(text, tokens)
            answers.append((chunk,) if outcome is None else (chunk, provider.receipt(outcome)))
            provider.chunks, provider.output_tokens, provider.running_hash = figures
    return answers


def bad_signed() -> Signed:
    return Signed(b"\x91\x01", bytes(64))


def foreign_voucher(lease: LeaseId | None) -> Signed:
    record = VoucherRecord(
        *(1, lease or LeaseId(bytes(32)), OTHER.node, MOST, MOST, JOB, 1, MOST, TOKENS_MOST, bytes(32), ())
    )
    return sign_record(record, OTHER)


def own_vouchers(world: World) -> list[Voucher]:
    said = [message for messages in world.bench.said.values() for message in messages]
    return [message for message in said if isinstance(message, Voucher)]


def of_coordinator(world: World) -> list[e.Event]:
    """Whatever it can answer, to what was asked and to what was not, and what the disk can say."""
    events: list[e.Event] = []
    requests = [effect.request for effect in world.bench.requests] + [bytes(16)]
    granted = [world.bench.answer(effect) for effect in world.bench.requests]
    lease = next((answer.signed for answer in granted if isinstance(answer, e.LeaseGranted)), None)
    for request in requests:
        events += [e.LeaseDenied(request, "no", is_final=final) for final in (False, True)]
        events.append(e.LeaseGranted(request, bad_signed()))
        if lease is None:
            continue
        record = decode_record(lease.body, LeaseRecord)
        for changes in (
            {},
            {"cap_uusd": c.LEASE_CAP_UUSD_MAX},
            {"cap_uusd": 1},
            {"price_in_uusd": 0, "price_out_uusd": 0},
            {"price_out_uusd": 10**12},
            {"provider": OTHER.node},
            {"payer": OTHER.node},
            {"lease": LeaseId(bytes(32))},
            {"relay": OTHER.node, "relay_bps": 10_000},
            {"fee_bps": 10_000},
            {"serve_until_ms": 0, "claim_by_ms": 0},
            {"serve_until_ms": MOST, "claim_by_ms": MOST},
            {"issued_at_ms": MOST, "entry": MOST},
        ):
            events.append(e.LeaseGranted(request, signed_by(BANK, record, **changes)))
        events.append(e.LeaseGranted(request, signed_by(OTHER, record, coordinator=OTHER.node)))
    leases = [LeaseId(side.record.lease) for side in world.bench.peer.purse.sides()] + [LeaseId(bytes(32))]
    for held in leases:
        word = acknowledged(BANK, Credited(held, MOST, 1, MOST, bytes(32), MOST))
        events += [e.MarkStored(held, 0), e.CloseLease(held)]
        events += [e.ClaimAnswered(held, word), e.ClaimAnswered(held, bad_signed())]
        events += [e.ClaimFailed(held, "no", is_final=final) for final in (False, True)]
    events += [e.LearnHead(head) for head in heads()]
    events += [e.RestorePayer(bytes(16), bad_signed(), 0, None), e.UseCoordinator(None), e.UseCoordinator(OTHER.node)]
    if lease is not None:
        events.append(e.RestorePayer(requests[0], lease, MOST, bad_signed()))
        events.append(e.RestorePayer(requests[0], lease, MOST, foreign_voucher(LeaseId(bytes(32)))))
        events.append(e.RestorePayer(bytes(16), lease, 0, None))
    return events


def heads() -> list[Signed]:
    record = LedgerHeadRecord(1, BANK.node, 5, bytes(32), NOW_MS, ())
    return [
        sign_record(record, BANK),
        signed_by(BANK, record, head=b"\x01" * 32),
        signed_by(BANK, record, entry=MOST),
        signed_by(BANK, record, signed_at_ms=MOST),
        signed_by(OTHER, record, coordinator=OTHER.node),
        Signed(sign_record(record, BANK).body, bytes(64)),
        bad_signed(),
    ]


@dataclass(frozen=True)
class Thing:
    """What comes, and by which way: on the stream of the order, from a neighbour, or from coordinator and disk."""

    way: str
    what: Any

    def come(self, world: World) -> None:
        if self.way == "order":
            world.hear(*self.what)
        elif self.way == "gossip":
            world.bench.hear(world.gossip, self.what)
            world.look()
        else:
            world.feed(self.what)


def everything(world: World) -> list[Thing]:
    """All that can come now. Worlds are made the same each time, so it is as good in another one in the same state."""
    return [
        *(Thing("order", (message,)) for message in of_provider(world)),
        *(Thing("order", messages) for messages in whole_answers(world)),
        *(Thing("coordinator", event) for event in of_coordinator(world)),
        *(Thing("gossip", Heads((head,))) for head in heads()),
        Thing("gossip", Heads(tuple(heads()[:4]))),
    ]


# ---------------------------------------------------------------- every one in every state


def world_in(name: str) -> World:
    world = World()
    STATES[name](world)
    return world


def meet(name: str, *, every: int = 1) -> None:
    """Each thing twice in a state, or each so many-th of them."""
    things = everything(world_in(name))
    assert len(things) > 80
    for thing in things[sorted(STATES).index(name) % every :: every]:
        world = world_in(name)
        thing.come(world)
        thing.come(world)
        world.end()


@pytest.mark.parametrize("name", sorted(STATES))
def test_messages_about_money_in_any_state_raise_nothing(name: str) -> None:
    meet(name, every=3)


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(STATES))
def test_each_message_about_money_in_each_state_raises_nothing(name: str) -> None:
    meet(name)


def play(seed: int, steps: int) -> None:
    """Some of them, one after another, with time and the user's own wishes between."""
    rng = random.Random(seed)
    world = world_in(rng.choice(sorted(STATES)))
    world.tokens_max = c.TEXTLESS_TOKENS_MAX + steps * len("more words")
    things: list[Thing] = []
    for step in range(steps):
        if step % 8 == 0:
            things = everything(world)
        chance = rng.random()
        if chance < 0.75:
            rng.choice(things).come(world)
        elif chance < 0.85:
            world.bench.effects = []
            world.bench.wait(rng.choice((0.1, 2.0, 12.0)))
            world.look()
        elif chance < 0.88:
            world.feed(e.StopAsking(JOB))
        elif chance < 0.95:
            world.bench.stores = world.bench.grants = rng.random() < 0.5
            world.feed(*world.bench.marks)
        else:
            world.follow()
    world.end()


@pytest.mark.parametrize("seed", range(8))
def test_messages_about_money_in_any_order_raise_nothing(seed: int) -> None:
    play(seed, 40)


@pytest.mark.nightly
def test_messages_about_money_in_any_order_raise_nothing_all_night() -> None:
    for seed in range(1_000, 3_000):
        play(seed, 120)
