"""Whatever an asker and a coordinator say about money, in whatever order: a provider says no, and goes on.

Every message is well encoded and well signed; what is wrong is what it says, and when. Orders, vouchers, cancels and
lost streams come from askers, answers to claims and wishes from the coordinator, and time passes in between. What the
provider has its disk keep must be something that the disk takes.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from infernet.money.store import MoneyStore
from protocol import constants as c
from protocol.codec import encode_message
from protocol.effects import (
    RunEngine,
    Send,
    SendClaim,
    StoreClaimed,
    StoreClosing,
    StoreVoucher,
)
from protocol.envelope import SigningKey, sign_record
from protocol.errors import Refusal
from protocol.events import (
    BytesReceived,
    ClaimAnswered,
    ClaimFailed,
    ClaimNow,
    CloseLease,
    ClosingStored,
    Drain,
    EngineFailed,
    EngineFinished,
    EngineStarted,
    EngineText,
    EngineVector,
    LearnHead,
    LeaseDenied,
    LeaseGranted,
    MarkStored,
    OutboxFull,
    PeerConnected,
    PeerDisconnected,
    Pressure,
    RestoreProvider,
    SetOffer,
    Shutdown,
    StreamBroken,
    StreamFinished,
    StreamOpened,
)
from protocol.ids import JobId, LeaseId, RunId, StreamId
from protocol.jobs import order_extensions, order_hash, running_hash
from protocol.messages import Cancel, Chunk, JobAccept, JobOpen, Message, Part, Receipt, Reserve, Voucher
from protocol.money_records import Credited, LeaseRecord, VoucherRecord
from protocol.records import (
    ChatMessage,
    FreePolicy,
    JobOpenRecord,
    JobRequest,
    Kind,
    Outcome,
    SealedPrompt,
    Signed,
)
from protocol.sealing import seal_context, seal_prompt
from tests.helpers_claims import acknowledged
from tests.helpers_machines import ADDRESS, Bench, offer, sealer_of
from tests.helpers_records import NOW_MS, order, signing_key
from tests.protocol.test_leases import PRICED, lease

SEEDS, SEEDS_NIGHTLY = 12, 1_000
STEPS = 300
# Leases with which nothing is wrong.
GOOD = 8

BANK, OTHER_BANK = signing_key("bank"), signing_key("another bank")
PAYER, THIEF = signing_key("payer"), signing_key("thief")
KEYS: Final[dict[bytes, SigningKey]] = {key.node: key for key in (BANK, OTHER_BANK, PAYER, THIEF)}
PEERS = (PAYER.node, THIEF.node)
HUGE: Final = c.INTEGER_MAX
SERVED: Final = replace(PRICED, kinds=(Kind.CHAT, Kind.EMBEDDING), concurrency=4)
START_MS: Final = NOW_MS + 100_000


def lease_of(number: int) -> LeaseId:
    return LeaseId(number.to_bytes(32, "big"))


@cache
def leases() -> tuple[tuple[LeaseRecord, Signed], ...]:
    """Good ones, and those in which one thing is odd each."""
    provider = signing_key("provider").node
    odd: tuple[dict[str, Any], ...] = (
        *({},) * GOOD,
        *({"cap_uusd": 1}, {"cap_uusd": c.LEASE_CAP_UUSD_MAX}),
        {"coordinator": OTHER_BANK.node},
        {"payer": THIEF.node},
        {"provider": THIEF.node},
        {"serve_until_ms": 0, "claim_by_ms": 0},
        {"serve_until_ms": HUGE, "claim_by_ms": HUGE},
        {"issued_at_ms": HUGE},
        {"relay": THIEF.node, "relay_bps": 2_000},
        {"relay": None, "relay_bps": c.BASIS_POINTS, "fee_bps": c.BASIS_POINTS},
        {"price_in_uusd": 0, "price_out_uusd": 0},
        {"price_in_uusd": 10**12, "price_out_uusd": 10**12, "price_job_uusd": 10**12, "cap_uusd": 10**12},
        {"model": "nothing of ours"},
    )
    made = []
    for number, changes in enumerate(odd, 1):
        times = {"issued_at_ms": START_MS, "serve_until_ms": START_MS + 900_000, "claim_by_ms": START_MS + 999_000}
        fields = {"lease": lease_of(number), "provider": provider, "payer": PAYER.node, **times, **changes}
        record = lease(**fields)
        made.append((record, sign_record(record, KEYS[record.coordinator])))
    return tuple(made)


class Hostile:
    """A provider, and all that is known of it to those who mean it harm."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(f"hostile money {seed}")
        self.bench = Bench("provider")
        self.writes: list[Any] = []
        self.streams: list[StreamId] = []
        self.orders: dict[StreamId, tuple[JobOpenRecord, Signed]] = {}
        #: What an honest asker would know of the answer on a stream: chunks, output tokens, what is owed, hash.
        self.heard: dict[StreamId, tuple[int, int, int, bytes]] = {}
        self.runs: dict[RunId, tuple[RunEngine, int]] = {}
        self.vouchers: list[Signed] = []
        self.claims: list[SendClaim] = []
        self.acknowledgements: list[Signed] = []
        self.accepted = self.ended = 0
        for peer in PEERS:
            self.do(PeerConnected(peer, ADDRESS, inbound=True))
        self.provide()

    def do(self, *events: Any) -> None:
        """Have it happen, and keep account of what comes of it."""
        self.bench.feed(*events)
        self.note()

    def pass_time(self) -> None:
        self.bench.wait(self.dice.choice((*(0.01, 0.1, 0.3, 1.0) * 3, 5.0, 5.0, 11.0, 61.0, 400.0)))
        self.note()

    def note(self) -> None:
        for effect in self.bench.effects:
            if isinstance(effect, (StoreVoucher, StoreClaimed, StoreClosing)):
                self.writes.append(effect)
            elif isinstance(effect, SendClaim):
                self.claims.append(effect)
            elif isinstance(effect, RunEngine):
                self.runs[effect.run] = (effect, 0)
            elif isinstance(effect, Send):
                self._hear(effect.stream)
        for side in self.bench.peer.till.sides():
            assert 0 <= side.paid_uusd <= side.record.cap_uusd
            assert side.unclaimed_uusd >= 0
        self.bench.effects = []

    def _hear(self, stream: StreamId) -> None:
        if stream not in self.orders:
            return
        said, self.bench.said[stream] = self.bench.said[stream], []
        for message in said:
            if isinstance(message, JobAccept):
                self.accepted += 1
                self.heard[stream] = (0, 0, 0, order_hash(self.orders[stream][1].body))
            elif isinstance(message, Chunk):
                counts = (message.number, message.output_tokens, message.owed_uusd)
                self.heard[stream] = (*counts, running_hash(self.heard[stream][3], *counts, message.sealed))
            elif isinstance(message, Receipt):
                self.ended += 1

    # ------------------------------------------------------------ askers

    def open(self) -> None:
        stream = self.bench._next_inbound
        self.bench._next_inbound += 2
        self.do(StreamOpened(StreamId(stream), self.dice.choice(PEERS), c.JOB_PROTOCOL))
        self.streams = [*self.streams[-2:], StreamId(stream)]

    def say(self, stream: StreamId, *messages: Message) -> None:
        self.do(BytesReceived(stream, b"".join(map(encode_message, messages))))

    def order(self) -> None:
        dice = self.dice
        if not self.streams or dice.random() < 0.9:
            self.open()
        stream = self.streams[-1] if dice.random() < 0.9 else dice.choice(self.streams)
        is_good = dice.random() < 0.6
        record, signed = dice.choice(leases()[:GOOD] if is_good else leases())
        kind = Kind.CHAT if is_good or dice.random() < 0.7 else Kind.EMBEDDING
        at_ms = self.bench.now().wall_ms
        fields: dict[str, Any] = {
            "job": JobId(dice.randrange(1 if is_good else 3, 10_000 if is_good else 6).to_bytes(16, "big")),
            "asker": record.payer,
            "provider": self.bench.peer.node,
            "lease": record.lease,
            "kind": kind,
            "model": record.model,
            "prompt_tokens_max": 2_048,
            "output_tokens_max": 0 if kind is Kind.EMBEDDING else dice.choice((8, 64)),
            "price_in_uusd": record.price_in_uusd,
            "price_out_uusd": record.price_out_uusd,
            "price_job_uusd": record.price_job_uusd,
            "prepay_max_uusd": 100,
            "created_at_ms": at_ms,
            "expires_at_ms": at_ms + dice.choice((2_000, 30_000)),
            "extensions": order_extensions(
                may_hand_off=dice.random() < 0.2, queue_wait_ms=dice.choice((0, 0, 0, 500, 20_000, 2**32 - 1))
            ),
        }
        if not is_good:
            odd: tuple[dict[str, Any], ...] = (
                *({}, {"lease": None}, {"lease": lease_of(dice.randrange(20))}, {"asker": THIEF.node}),
                *({"attempt": dice.choice((1, 2, 2**32 - 1))}, {"prepay_max_uusd": dice.choice((0, 1, HUGE))}),
                *({"price_in_uusd": 10**12}, {"price_out_uusd": 0, "price_in_uusd": 0}, {"fingerprint": None}),
                *({"output_tokens_max": c.OUTPUT_TOKENS_MAX}, {"prompt_tokens_max": 2**32 - 1}),
                *({"prompt_tokens_max": 0}, {"expires_at_ms": HUGE}, {"created_at_ms": 0}),
            )
            fields |= dice.choice(odd)
        context = seal_context(
            fields["job"], fields.get("attempt", 1), fields["asker"], fields["provider"], fields["lease"]
        )
        request = JobRequest(messages=(ChatMessage("user", "hello"),))
        if kind is Kind.EMBEDDING:
            request = JobRequest(inputs=("one", "two"))
        sealer = sealer_of("provider")
        sealed = seal_prompt(SealedPrompt(bytes(32), request), sealer, sealer.public_key(at_ms), context)
        fields |= {"sealed_hash": hashlib.sha256(sealed).digest(), "sealed_bytes": len(sealed)}
        made = order(**fields)
        opening = sign_record(made, KEYS[made.asker])
        attached = signed if is_good else dice.choice((signed, signed, None, dice.choice(leases())[1]))
        if stream not in self.orders:
            self.orders[stream] = made, opening
        if dice.random() < 0.05:
            self.say(stream, Reserve(opening))
            return
        cut = len(sealed) if is_good or dice.random() < 0.7 else 100
        self.say(stream, JobOpen(opening, sealed[:cut], attached))
        if cut < len(sealed) and dice.random() < 0.7:
            self.say(stream, Part(made.job, made.attempt, 0, sealed[cut:]))

    def pay(self) -> None:
        """As an asker would that pays for all that has come."""
        stream = self._stream()
        if stream is None or stream not in self.heard:
            return
        chunks, tokens, owed_uusd, hash_ = self.heard[stream]
        made = self.orders[stream][0]
        more_uusd = self.dice.choice((17, 17, 100, 400, 1_000))
        side = next((each for each in self.bench.peer.till.sides() if each.record.lease == made.lease), None)
        before_uusd = side.paid_uusd if side is not None else 0
        total_uusd = before_uusd + more_uusd if not chunks else before_uusd + self.dice.choice((0, 2, 16))
        self._voucher(
            stream,
            lease=made.lease or lease_of(1),
            payer=made.asker,
            paid_uusd=max(total_uusd, owed_uusd),
            job=made.job,
            attempt=made.attempt,
            chunks=chunks,
            output_tokens=tokens,
            running_hash=hash_,
        )

    def _voucher(self, stream: StreamId, **fields: Any) -> None:
        record = VoucherRecord(version=1, sequence=self.dice.choice((0, 1, HUGE)), extensions=(), **fields)
        self.vouchers.append(sign_record(record, KEYS[record.payer]))
        self.say(stream, Voucher(self.vouchers[-1]))

    def cheat(self) -> None:
        """A voucher in which something is odd."""
        stream, dice = self._stream(), self.dice
        if stream is None:
            return
        made = self.orders[stream][0] if stream in self.orders else order()
        chunks, tokens, owed_uusd, hash_ = self.heard.get(stream, (0, 0, 0, bytes(32)))
        self._voucher(
            stream,
            lease=dice.choice((made.lease or lease_of(1), made.lease or lease_of(2), lease_of(dice.randrange(20)))),
            payer=dice.choice((PAYER.node, PAYER.node, THIEF.node)),
            paid_uusd=dice.choice((0, 1, owed_uusd, 100_000, 100_001, HUGE)),
            job=dice.choice((made.job, made.job, JobId(bytes(16)))),
            attempt=dice.choice((made.attempt, made.attempt, 2**32 - 1)),
            chunks=dice.choice((chunks, chunks, 0, chunks + 1, HUGE)),
            output_tokens=dice.choice((tokens, tokens, 0, tokens + 1, 2**32 - 1)),
            running_hash=dice.choice((hash_, hash_, bytes(32))),
        )

    def repeat(self) -> None:
        """A voucher from before, on any stream."""
        stream = self._stream()
        if stream is not None and self.vouchers:
            self.say(stream, Voucher(self.dice.choice(self.vouchers)))

    def cancel(self) -> None:
        stream = self._stream()
        if stream is not None:
            made = self.orders[stream][0] if stream in self.orders else order()
            self.say(stream, Cancel(made.job, made.attempt, self.dice.choice((0, 1, 255))))

    def leave(self) -> None:
        """A stream ends, or the whole connection."""
        stream = self._stream()
        if self.dice.random() < 0.1:
            peer = self.dice.choice(PEERS)
            self.do(PeerDisconnected(peer), PeerConnected(peer, ADDRESS, inbound=True))
        elif stream is not None:
            ways = (StreamFinished(stream), StreamBroken(stream, "gone"), OutboxFull(stream))
            self.do(self.dice.choice(ways))

    def _stream(self) -> StreamId | None:
        return self.dice.choice(self.streams) if self.streams else None

    # ------------------------------------------------------------ the engine

    def compute(self) -> None:
        """The engine gets on with something."""
        if not self.runs:
            return
        dice = self.dice
        run = dice.choice(list(self.runs)[-2:])
        wanted, made = self.runs[run]
        step = dice.random()
        if not made and step < 0.9:
            self.do(EngineStarted(run, dice.choice((0, 17, 17, 17, 17, 101, 4_000))))
            self.runs[run] = wanted, 1
        elif step < 0.9 and wanted.kind is Kind.EMBEDDING:
            self.do(EngineVector(run, dice.randrange(2), bytes(4)))
        elif step < 0.9:
            made += dice.choice((1, 1, 3, 40))
            self.do(EngineText(run, dice.choice((" word", "", " long" * 9_000)), made - 1))
            self.runs[run] = wanted, made
        else:
            del self.runs[run]
            outcome = dice.choice((Outcome.STOP, Outcome.LENGTH, Outcome.CANCELLED))
            failed = EngineFailed(run, Refusal.ENGINE_FAILED, "it broke")
            self.do(failed if dice.random() < 0.3 else EngineFinished(run, outcome, max(0, made - 1)))

    # ------------------------------------------------------------ the coordinator, the disk and the owner

    def answer(self) -> None:
        """The coordinator answers a claim: truly, falsely, again, or for a lease of which nobody asked."""
        dice = self.dice
        claim = dice.choice(self.claims[-2:]) if self.claims and dice.random() < 0.8 else None
        lease_id = claim.lease if claim is not None else lease_of(dice.randrange(20))
        if dice.random() < 0.2:
            self.do(ClaimFailed(lease_id, "no", dice.random() < 0.3))
            return
        side = next((each for each in self.bench.peer.till.sides() if each.record.lease == lease_id), None)
        paid_uusd = side.paid_uusd if side is not None else 0
        credited = Credited(
            lease=dice.choice((lease_id, lease_id, lease_id, lease_id, lease_of(1))),
            claimed_uusd=dice.choice((paid_uusd, paid_uusd, paid_uusd, 0, max(0, paid_uusd - 1), 100_001, HUGE)),
            is_closed=int(dice.random() < 0.2),
            entry=dice.choice((0, 1, HUGE)),
            head=dice.choice((bytes(32), b"h" * 32)),
            credited_at_ms=dice.choice((0, HUGE)),
        )
        others = [replace(credited, lease=lease_of(number)) for number in range(dice.choice((0, 0, 2, 31)))]
        coordinator = dice.choice((BANK, BANK, BANK, OTHER_BANK))
        self.acknowledgements.append(acknowledged(coordinator, *others, credited))
        odd = (Signed(b"\x90", bytes(64)), leases()[0][1], *self.vouchers[-1:])
        is_record = dice.random() < 0.8
        self.do(ClaimAnswered(lease_id, dice.choice(self.acknowledgements[-2:] if is_record else odd)))

    def wish(self) -> None:
        self.do(CloseLease(lease_of(self.dice.randrange(24))))

    def keep(self) -> None:
        """The disk says what it has, late or out of turn."""
        closings = [write for write in self.writes if isinstance(write, StoreClosing)]
        write = self.dice.choice(closings) if closings else StoreClosing(lease_of(1), HUGE)
        self.do(ClosingStored(write.lease, self.dice.choice((write.paid_uusd, 0, HUGE))))

    def restore(self) -> None:
        """As if there had been another life."""
        dice = self.dice
        voucher = dice.choice((None, *self.vouchers[-3:], Signed(b"\x90", bytes(64))))
        claimed_uusd, flags = dice.choice((0, 1, HUGE)), {"is_closing": dice.random() < 0.3}
        restored = RestoreProvider(dice.choice(leases())[1], voucher, None, claimed_uusd, **flags)
        self.do(restored)

    def odd(self) -> None:
        """What this node did not ask for."""
        events = (
            *(LeaseGranted(bytes(16), leases()[0][1]), LeaseDenied(bytes(16), "no", True)),
            *(MarkStored(lease_of(1), HUGE), LearnHead(leases()[0][1]), ClaimNow()),
            *(Pressure(True), Pressure(False), Pressure(False)),
        )
        self.do(self.dice.choice(events))

    def provide(self) -> None:
        coordinators = self.dice.choice((*((BANK.node,),) * 6, (BANK.node, OTHER_BANK.node), ()))
        policy = self.dice.choice((FreePolicy.ALL, FreePolicy.NOBODY))
        self.do(SetOffer(offer(models=(SERVED,), coordinators=coordinators, free_policy=policy)))

    def step(self) -> None:
        common = (self.order, *(self.pay, self.compute) * 4, *([self.answer] if self.claims else []))
        odd = (self.cheat, self.repeat, self.cancel, self.leave, self.answer, self.wish, self.keep, self.restore)
        rare = (self.odd, self.provide, self.pass_time, self.pass_time)
        self.dice.choice((*common * 6, *odd, *rare))()


@lru_cache(maxsize=SEEDS)
def live(seed: int) -> Hostile:
    """A life of one provider among such people, and what its disk says to that."""
    hostile = Hostile(seed)
    for _ in range(STEPS):
        hostile.step()
    hostile.do(*((Drain(),) if seed % 2 else ()), *((Shutdown(),) if seed % 3 else ()))
    hostile.bench.wait(10_000)
    hostile.note()
    with tempfile.TemporaryDirectory() as folder:
        store = MoneyStore(Path(folder) / "money.sqlite3")
        store.apply(hostile.writes)
        totals = store.totals()
        assert min(totals.earned_uusd, totals.claimed_uusd, totals.unclaimed_uusd, totals.lost_uusd) >= 0
        store.close()
    return hostile


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_provider_withstands_whatever_is_said_about_money(seed: int) -> None:
    live(seed)


def test_what_is_tried_gets_far_enough_to_matter() -> None:
    """A test of this kind that is refused at the door finds nothing."""
    lives = [live(seed) for seed in range(SEEDS)]
    assert sum(each.accepted for each in lives) > 20
    assert sum(each.ended for each in lives) > 5
    assert sum(len(each.claims) for each in lives) > 30
    assert sum(isinstance(write, StoreClaimed) for each in lives for write in each.writes) > 5
    assert any(max((heard[0] for heard in each.heard.values()), default=0) > 9 for each in lives)


@pytest.mark.nightly
def test_a_provider_withstands_it_for_long() -> None:
    for seed in range(SEEDS, SEEDS_NIGHTLY):
        live(seed)
