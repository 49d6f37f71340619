"""For tests of an asker that pays: a bench with money at a real ledger, and a provider that can lie about all of it.

The coordinator and the disk answer at once unless a test tells them otherwise.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from protocol.codec import decode_record
from protocol.effects import Effect, RequestLease, StoreMark
from protocol.events import LearnRecord, LeaseGranted, MarkStored, UseCoordinator
from protocol.jobs import cost_uusd
from protocol.leases import window_uusd
from protocol.messages import JobAccept, Receipt, Voucher
from protocol.money_records import VoucherRecord
from protocol.records import ModelOffer, Outcome
from protocol.sim.bank import Bank
from tests.helpers_machines import Bench, chat, provider_record
from tests.helpers_puppets import Provider
from tests.helpers_records import OFFER, signing_key

PRICED = replace(OFFER, price_in_uusd=1_000_000, price_out_uusd=2_000_000)
# What the puppet counts for its prompts, at one micro-USD a token.
PREFILL_UUSD = 3
SPEND_UUSD = 100_000


class PayingBench(Bench):
    """An asker whose coordinator and disk answer at once."""

    def __init__(self, deposit_uusd: int = 10_000_000) -> None:
        super().__init__()
        self.bank = Bank(signing_key("bank"))
        self.bank.deposit(self.peer.node, deposit_uusd, self.now().wall_ms)
        self.grants = True
        self.stores = True
        self.requests: list[RequestLease] = []
        self.marks: list[MarkStored] = []
        self.feed(UseCoordinator(self.bank.node))

    def _take(self, effects: list[Effect]) -> None:
        super()._take(effects)
        for effect in effects:
            if isinstance(effect, RequestLease):
                self.requests.append(effect)
                if self.grants:
                    self._take(self.peer.handle(self.answer(effect), self.now()))
            elif isinstance(effect, StoreMark):
                self.marks.append(MarkStored(effect.lease, effect.mark_uusd))
                if self.stores:
                    self._take(self.peer.handle(self.marks[-1], self.now()))

    def answer(self, effect: RequestLease) -> Any:
        """What the coordinator says to this request."""
        return self.bank.open_lease(effect, self.now().wall_ms)

    def grant(self, effect: RequestLease) -> LeaseGranted:
        granted = self.answer(effect)
        assert isinstance(granted, LeaseGranted)
        return granted

    def signed_uusd(self) -> int:
        """What was signed on all leases."""
        return sum(side.signed_uusd for side in self.peer.purse.sides())

    def vouchers(self, provider: Provider) -> list[VoucherRecord]:
        """What was signed on the stream of this provider's last order."""
        said = self.said[provider.stream]
        return [decode_record(each.voucher.body, VoucherRecord) for each in said if isinstance(each, Voucher)]


class PaidProvider(Provider):
    """A provider with prices, honest where it is not told to lie."""

    paid_before_uusd = 0

    def accept(self, **lies: Any) -> JobAccept:
        assert self.order is not None
        honest = {
            "lease": self.order.lease,
            "prefill_uusd": cost_uusd(self.order, self.prompt_tokens, 0),
            "paid_before_uusd": self.paid_before_uusd,
            "window_tokens": 8,
            "window_uusd": window_uusd(self.order, 8, 0),
        }
        return super().accept(**(honest | lies))

    def receipt(self, outcome: Outcome = Outcome.STOP, code: int = 0, **lies: Any) -> Receipt:
        assert self.order is not None
        honest = {
            "lease": self.order.lease,
            "paid_before_uusd": self.paid_before_uusd,
            "owed_uusd": cost_uusd(self.order, self.prompt_tokens, self.output_tokens),
        }
        return super().receipt(outcome, code, **(honest | lies))


def priced_record(bench: PayingBench, name: str, offer: ModelOffer = PRICED, **changes: Any) -> LearnRecord:
    """The heartbeat of a provider that takes leases of the bench's coordinator."""
    fields = {"models": (offer,), "coordinators": (bank_node(bench),)} | changes
    return LearnRecord(provider_record(name, **fields))


def bank_node(bench: PayingBench) -> Any:
    return bench.bank.node


def paying(*names: str, offer: ModelOffer = PRICED, **changes: Any) -> tuple[PayingBench, list[PaidProvider]]:
    """A bench that knows these providers, connected, in the order in which it will try them."""
    bench = PayingBench()
    for load, name in enumerate(names):
        bench.feed(priced_record(bench, name, offer, load=load, **changes))
        bench.connect(signing_key(name).node)
    return bench, [PaidProvider(name) for name in names]


def ordered(*names: str, **changes: Any) -> tuple[PayingBench, PaidProvider]:
    """The first of these providers has the order."""
    bench, (provider, *_) = paying(*(names or ("p",)))
    bench.feed(paid_chat(**changes))
    provider.take(bench)
    return bench, provider


def accepted(*names: str, **changes: Any) -> tuple[PayingBench, PaidProvider]:
    """It has accepted the order, and its prompt is paid."""
    bench, provider = ordered(*names, **changes)
    bench.hear(provider.stream, provider.accept())
    assert bench.signed_uusd() == PREFILL_UUSD
    return bench, provider


def paid_chat(number: int = 1, **changes: Any) -> Any:
    return chat(number, **({"spend_uusd_max": SPEND_UUSD} | changes))
