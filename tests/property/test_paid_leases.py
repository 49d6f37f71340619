"""One lease between an honest payer and an honest provider, whatever gets lost, late, doubled or forgotten in crashes.

I5: the provider has never delivered more than is paid by its best voucher and one window. I6: the payer has never
signed for more than its jobs have brought. Both are reckoned here from what was sent and has arrived, with nothing of
what the two sides remember.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from protocol.envelope import open_record, sign_record
from protocol.events import RestorePayer, RestoreProvider
from protocol.jobs import cost_uusd
from protocol.leases import Meter, PayerSide, ProviderSide, most_uusd
from protocol.money_records import VoucherRecord
from protocol.purse import Purse
from protocol.records import JobOpenRecord, Signed
from protocol.till import Till
from tests.helpers_machines import now
from tests.helpers_records import ASKER, PROVIDER
from tests.protocol.test_leases import BANK, HASH, accepted, lease, paid_order

REQUEST = bytes(16)
PRICES = st.sampled_from([(1_000_000, 2_000_000), (1_000, 300_000_000), (3, 999_999), (10**6, 10**10), (0, 1)])


@dataclass
class Job:
    """What was really sent and has really arrived; `answer` is on its way: tokens, chunks and hash so far."""

    order: JobOpenRecord
    meter: Meter
    prompt_tokens: int
    #: Tokens and worth, as the acceptance states them.
    window: tuple[int, int]
    sent: tuple[int, int, bytes] = (0, 0, HASH)
    arrived: tuple[int, int, bytes] = (0, 0, HASH)
    answer: list[tuple[int, int, bytes]] = field(default_factory=list)
    #: Whether the payer knows of the acceptance.
    is_known: bool = False

    def cost_uusd(self, tokens: int) -> int:
        return cost_uusd(self.order, self.prompt_tokens, tokens)


class PaidLease(RuleBasedStateMachine):
    """Both sides of a lease, the lines between them, and their disks."""

    @initialize(prices=PRICES, cap_uusd=st.sampled_from([100_000, 10**12, 10**12, 10**12]))
    def open(self, prices: tuple[int, int], cap_uusd: int) -> None:
        terms = {"price_in_uusd": prices[0], "price_out_uusd": prices[1], "cap_uusd": cap_uusd}
        self.record = lease(payer=ASKER.payer(REQUEST).node, **terms)
        self.signed = sign_record(self.record, BANK)
        self.mark_uusd = 0
        self.payer = self.restored_payer(None)
        self.provider = self.restored_provider(None)
        self.job: Job | None = None
        self.number, self.now_s = 0, 0.0
        # Vouchers on their way, all that were ever signed, and the marks and vouchers on the two disks.
        self.line: list[Signed] = []
        self.most_signed_uusd = self.brought_uusd = 0
        self.kept_by_payer: Signed | None = None
        self.kept_by_provider: Signed | None = None
        self.vouched_tokens: dict[int, int] = {}

    @rule(
        what=st.sampled_from(["write", "write", "chunk", "chunk", "voucher", "voucher", "voucher", "end"]),
        tokens=st.integers(1, 40),
        seconds=st.sampled_from([0.01, 0.5, 5.0]),
        place=st.sampled_from([0, 0, 0, 1, 3]),
        times=st.sampled_from([1, 1, 1, 2, 0]),
        coin=st.booleans(),
        how=st.sampled_from(["goes on"] * 3 + ["ends", "provider crashes", "payer crashes"]),
    )
    def something_happens(
        self, what: str, tokens: int, seconds: float, place: int, times: int, coin: bool, how: str
    ) -> None:  # hypothesis draws it
        """One rule for all, or Hypothesis would leave some of them out of most histories."""
        self.now_s += seconds
        if self.job is None:
            self._order(prompt_tokens=tokens, output_tokens_max=10 * tokens)
        elif not self.job.is_known:
            self._acceptance_arrives()
        elif what == "end":
            self._job_may_end(how)
        elif what == "voucher" and self.line:
            self._voucher_arrives(place, times, is_flushed=coin)
        elif what == "chunk" and self.job.answer:
            self._chunk_arrives(is_half=coin)
        else:
            self._engine_writes(tokens)

    # ------------------------------------------------------------ jobs

    def _order(self, prompt_tokens: int, output_tokens_max: int) -> None:
        prices = {"price_in_uusd": self.record.price_in_uusd, "price_out_uusd": self.record.price_out_uusd}
        self.number += 1
        of = {"asker": self.record.payer, "attempt": self.number, "output_tokens_max": output_tokens_max}
        ordered = paid_order(**prices, **of)
        ordered = replace(ordered, prepay_max_uusd=cost_uusd(ordered, prompt_tokens, 0))
        fits = self.payer.left_uusd >= most_uusd(ordered) <= self.record.cap_uusd - self.provider.paid_uusd
        if not fits:
            return
        self.mark_uusd = self.payer.mark_uusd = min(self.record.cap_uusd, self.payer.signed_uusd + most_uusd(ordered))
        self.kept_by_payer = self.payer.voucher
        meter = Meter(self.provider, ordered)
        meter.accept(cost_uusd(ordered, prompt_tokens, 0), HASH, self.now_s)
        self.job = Job(ordered, meter, prompt_tokens, (meter.window_tokens, meter.window_uusd))

    def _acceptance_arrives(self) -> None:
        assert self.job is not None
        meter, self.job.is_known = self.job.meter, True
        fields = {"paid_before_uusd": meter.base_uusd, "prefill_uusd": meter.prefill_uusd}
        fields |= {"window_tokens": self.job.window[0], "window_uusd": self.job.window[1]}
        record = accepted(**fields, prompt_tokens=self.job.prompt_tokens, attempt=self.job.order.attempt)
        self.payer.accept(self.job.order, record, self.provider.voucher)
        self.brought_uusd += meter.prefill_uusd
        # What it had forgotten in a crash, it knows again: and may sign as far as before, from there.
        self.mark_uusd = self.payer.mark_uusd = min(
            self.record.cap_uusd, self.payer.signed_uusd + most_uusd(self.job.order)
        )
        self._pay()

    def _engine_writes(self, tokens: int) -> None:
        assert self.job is not None
        sent, chunks, running_hash = self.job.sent
        wanted = min(sent + tokens, self.job.order.output_tokens_max)
        self.job.meter.measure(wanted, 0.1)
        fits = self.job.meter.tokens_that_fit(self.job.prompt_tokens, sent, wanted)
        if fits > sent:
            running_hash = hashlib.sha256(running_hash + bytes([chunks % 256])).digest()
            self.job.sent = fits, chunks + 1, running_hash
            self.job.meter.sent(chunks + 1, running_hash, fits, self.job.cost_uusd(fits), self.now_s)
            self.job.answer.append(self.job.sent)

    def _chunk_arrives(self, *, is_half: bool) -> None:
        assert self.job is not None
        before_uusd = self.job.cost_uusd(self.job.arrived[0])
        self.job.arrived = self.job.answer.pop(0)
        self.brought_uusd += self.job.cost_uusd(self.job.arrived[0]) - before_uusd
        if not is_half:  # else it signs for the next chunk together with this one
            self._pay()

    def _pay(self) -> None:
        assert self.job is not None
        tokens, chunks, running_hash = self.job.arrived
        signed = self.payer.pay(self.job.order, self.job.cost_uusd(tokens), chunks, tokens, running_hash)
        assert signed is not None, "an order that fits its lease can be paid to its end"
        self.line.append(signed)
        self.most_signed_uusd = max(self.most_signed_uusd, open_record(signed, VoucherRecord).paid_uusd)

    # ------------------------------------------------------------ the line

    def _voucher_arrives(self, place: int, times: int, *, is_flushed: bool) -> None:
        assert self.job is not None
        signed = self.line.pop(min(place, len(self.line) - 1))
        voucher = open_record(signed, VoucherRecord)
        for _ in range(times):
            self.job.meter._vouchers = 0  # how many it takes is not what is asked here
            self.job.meter.take(signed, self.now_s)
            before = self.vouched_tokens.get(voucher.attempt, 0)
            self.vouched_tokens[voucher.attempt] = max(before, voucher.output_tokens)
        if is_flushed:
            self.kept_by_provider = self.provider.voucher

    # ------------------------------------------------------------ ends and crashes

    def _job_may_end(self, how: str) -> None:
        if how == "goes on":
            return
        self.job = None
        self.line.clear()
        if how == "ends":
            self.payer.mark_uusd, self.kept_by_payer = self.payer.signed_uusd, self.payer.voucher
        elif how == "provider crashes":
            self.vouched_tokens.clear()
            self.provider = self.restored_provider(self.kept_by_provider)
        else:
            self.payer = self.restored_payer(self.kept_by_payer)

    def restored_payer(self, voucher: Signed | None) -> PayerSide:
        purse = Purse(ASKER, random.Random(1))
        assert purse.restore(RestorePayer(REQUEST, self.signed, self.mark_uusd, voucher)) == []
        return purse.sides()[0]

    def restored_provider(self, voucher: Signed | None) -> ProviderSide:
        till = Till(PROVIDER)
        assert till.restore(RestoreProvider(self.signed, voucher, None, 0), now()) == []
        return till.sides()[0]

    # ------------------------------------------------------------ what must hold

    @invariant()
    def no_more_is_delivered_than_is_paid_and_one_window(self) -> None:
        if self.job is None:
            return
        paid_uusd = self.provider.paid_uusd
        tokens = max(8, sum(self.vouched_tokens.values()))
        one, several = (-(-count * self.record.price_out_uusd // 1_000_000) for count in (1, tokens))
        window_uusd = max(one, min(several, max(1_000, paid_uusd // 16)))
        owed_uusd = self.job.cost_uusd(self.job.sent[0]) if self.job.sent[0] else 0
        assert self.job.meter.base_uusd + owed_uusd - paid_uusd <= window_uusd, "I5"

    @invariant()
    def no_more_is_signed_than_was_brought(self) -> None:
        assert self.most_signed_uusd <= self.brought_uusd, "I6"
        assert self.most_signed_uusd <= self.record.cap_uusd
        assert self.payer.signed_uusd <= self.most_signed_uusd


TestPaidLease = PaidLease.TestCase
TestPaidLease.settings = settings(settings.default, stateful_step_count=100)
TestPaidLease.pytestmark = [pytest.mark.slow]
