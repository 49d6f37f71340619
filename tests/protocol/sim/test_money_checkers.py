"""Every judge of money can find somebody guilty, and an honest course of things guiltless."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec import encode_message
from protocol.effects import RequestLease, Send, StoreVoucher
from protocol.envelope import sign_record
from protocol.events import BytesReceived, LeaseGranted
from protocol.ids import StreamId
from protocol.ledger import (
    CREDIT,
    Claim,
    Entry,
    ExpireLease,
    OpenLease,
    Posting,
    Resume,
    available,
)
from protocol.messages import Chunk, JobAccept, JobOpen, Voucher
from protocol.money_records import VoucherRecord
from protocol.records import Signed
from protocol.sim.bank import Bank
from protocol.sim.checkers import Checker, Crashed, Ending, Seen
from protocol.sim.money_checkers import (
    Balanced,
    Grace,
    LedgerChanged,
    NothingTwice,
    OneWindow,
    OnlyReceived,
    OnlySigned,
    money_checkers,
)
from tests.helpers_records import ASKER, JOB, NOW_MS, PROVIDER, signing_key
from tests.protocol.test_leases import HASH, LEASE, PAYER, accepted, paid_order, voucher
from tests.protocol.test_purse import Bench

OPENED = OpenLease(
    *(LEASE, ASKER.node, None, PAYER.node, PROVIDER.node, None, 0, 0, 1_000),
    *(NOW_MS + 1_000, NOW_MS + 2_000, Signed(b"x", bytes(64))),
)
HELD = f"lease:{LEASE.hex()}"
MINE, THEIRS = available(ASKER.node), available(PROVIDER.node)


def moved(command: Any, *postings: tuple[str, int], at_ms: int = NOW_MS) -> LedgerChanged:
    return LedgerChanged(Entry(command, tuple(Posting(account, CREDIT, amount) for account, amount in postings)), at_ms)


DEPOSITED = moved(Resume(0), ("fx:credit", -5_000), (MINE, 5_000))
LOCKED = moved(OPENED, (MINE, -1_000), (HELD, 1_000))
CLAIMED = moved(Claim(LEASE, PROVIDER.node, 40, 0, None), (HELD, -40), (THEIRS, 40))
FINAL = moved(Claim(LEASE, PROVIDER.node, 40, 1, None), (HELD, -960), (MINE, 960))


def judge(checker: Checker, *items: Any, ending: Ending | None = None) -> str:
    """Show the items in order, those of providers as such; what was found."""
    for item in items:
        provider = isinstance(item, (StoreVoucher, LedgerChanged)) or getattr(item, "stream", 1) % 2 == 0
        seen = Seen(1.0, 0, PROVIDER.node if provider else ASKER.node, 0, item)
        if callback := checker.interests().get(type(item)):
            callback(seen)
    if ending is not None:
        checker.finish(ending)
    return "\n".join(checker.violations)


def test_there_is_a_judge_for_every_invariant_that_a_simulation_can_break() -> None:
    assert len(money_checkers()) == 6


def test_an_honest_ledger_is_balanced() -> None:
    assert judge(Balanced(), DEPOSITED, LOCKED, CLAIMED, FINAL) == ""


@pytest.mark.parametrize(
    ("items", "invariant"),
    [
        ((moved(Resume(0), (MINE, 1)),), "I1"),
        (
            (LedgerChanged(Entry(Resume(0), (Posting("gateway:BTC", "BTC", 1), Posting("fx:BTC", CREDIT, -1))), 0),),
            "I1",
        ),
        ((DEPOSITED, LOCKED, CLAIMED, moved(CLAIMED.entry.command, (HELD, 5), (THEIRS, -5))), "I3"),
        ((DEPOSITED, LOCKED, moved(Resume(0), (HELD, -5), (THEIRS, 5))), "I3"),
        ((DEPOSITED, moved(Claim(LEASE, PROVIDER.node, 9, 0, None), (MINE, -9), (THEIRS, 9))), "I10"),
        ((LOCKED,), "I2"),
        ((DEPOSITED, LOCKED, moved(Claim(LEASE, PROVIDER.node, 9, 1, None), (HELD, -9), (THEIRS, 9))), "I3"),
        ((DEPOSITED, LOCKED, moved(Claim(LEASE, PAYER.node, 9, 0, None), (HELD, -9), ("available:00", 9))), "I10"),
        ((DEPOSITED, LOCKED, CLAIMED, FINAL, moved(ExpireLease(LEASE))), "I12"),
    ],
)
def test_a_ledger_that_breaks_a_rule_is_found(items: tuple[LedgerChanged, ...], invariant: str) -> None:
    assert f"{invariant}:" in judge(Balanced(), *items)


def sent_voucher(paid_uusd: int, **changes: Any) -> Send:
    return Send(StreamId(1), encode_message(Voucher(voucher(paid_uusd, **changes))))


def test_no_more_is_claimed_than_was_signed() -> None:
    assert judge(OnlySigned(), LOCKED, sent_voucher(40), CLAIMED) == ""
    assert "I4:" in judge(OnlySigned(), LOCKED, sent_voucher(39), CLAIMED)
    forged = Voucher(Signed(voucher(40).body, voucher(39).signature))
    assert "I4:" in judge(OnlySigned(), LOCKED, Send(StreamId(1), encode_message(forged)), CLAIMED)
    others = VoucherRecord(1, LEASE, PROVIDER.node, 1, 40, JOB, 1, 0, 0, HASH, ())
    own = Voucher(sign_record(others, PROVIDER))
    assert "I4:" in judge(OnlySigned(), LOCKED, Send(StreamId(1), encode_message(own)), CLAIMED)


OPEN = Send(StreamId(1), encode_message(JobOpen(sign_record(paid_order(), PAYER), b"x")))
ACCEPT = Send(StreamId(2), encode_message(JobAccept(sign_record(accepted(), PROVIDER))))


def chunk(output_tokens: int, owed_uusd: int = 0) -> Send:
    """What it says of the price is nothing to a judge."""
    return Send(StreamId(2), encode_message(Chunk(JOB, 1, 1, output_tokens, owed_uusd, bytes(80))))


def arrived(*sent: Send, split: int = 7) -> list[BytesReceived]:
    """The same bytes as they come to the asker, in pieces."""
    data = b"".join(each.data for each in sent)
    return [BytesReceived(StreamId(1), data[start : start + split]) for start in range(0, len(data), split)]


def held(paid_uusd: int) -> StoreVoucher:
    return StoreVoucher(LEASE, voucher(paid_uusd), voucher(paid_uusd), None, paid_uusd)


def dear(price_out_uusd: int) -> Send:
    """An order whose output tokens cost so much, in micro-USD per million."""
    return Send(
        StreamId(1), encode_message(JobOpen(sign_record(paid_order(price_out_uusd=price_out_uusd), PAYER), b"x"))
    )


@pytest.mark.parametrize(
    ("price_out_uusd", "paid_uusd", "vouched_tokens", "window_uusd"),
    [
        (2_000_000, 17, 0, 16),  # eight tokens
        (2_000_000, 17, 50, 100),  # as many as were signed for
        (300_000_000, 17, 0, 1_000),
        (300_000_000, 32_000, 0, 2_000),  # a sixteenth of what was paid
        (5_000_000_000, 17, 0, 5_000),  # one token
    ],
)
def test_a_provider_delivers_no_more_than_one_window_ahead(
    price_out_uusd: int, paid_uusd: int, vouched_tokens: int, window_uusd: int
) -> None:
    order = dear(price_out_uusd)
    kept = StoreVoucher(LEASE, voucher(0), voucher(paid_uusd, output_tokens=vouched_tokens), None, paid_uusd)
    tokens = (window_uusd + paid_uusd - 17) * 1_000_000 // price_out_uusd
    for again in ([], [order]):
        assert judge(OneWindow(), order, ACCEPT, kept, *again, chunk(tokens)) == ""
        assert "I5:" in judge(OneWindow(), order, ACCEPT, kept, *again, chunk(tokens + 1))


def test_a_provider_that_is_owed_something_serves_that_lease_no_more() -> None:
    again = Send(StreamId(1), encode_message(JobOpen(sign_record(paid_order(attempt=2), PAYER), b"x")))
    accepts = Send(
        StreamId(2), encode_message(JobAccept(sign_record(accepted(attempt=2, paid_before_uusd=17), PROVIDER)))
    )
    begun = (OPEN, ACCEPT, held(17), chunk(3))
    assert judge(OneWindow(), *begun, held(23), again, accepts) == ""
    assert "I5:" in judge(OneWindow(), *begun, held(22), again, accepts)
    forgot = OneWindow()
    assert judge(forgot, *begun) == ""
    forgot.interests()[Crashed](Seen(1.0, 0, PROVIDER.node, 0, Crashed()))
    assert judge(forgot, again, accepts) == "", "it does not know better after a crash"


def test_an_asker_signs_for_what_has_arrived() -> None:
    accepted_ = arrived(ACCEPT)
    assert judge(OnlyReceived(), OPEN, *accepted_, sent_voucher(17), *arrived(chunk(6)), sent_voucher(29)) == ""
    assert "I6:" in judge(OnlyReceived(), OPEN, *accepted_, sent_voucher(18))
    assert "I6:" in judge(OnlyReceived(), OPEN, *accepted_, *arrived(chunk(6)), sent_voucher(30))
    assert "I6:" in judge(OnlyReceived(), OPEN, *accepted_, *arrived(chunk(6, owed_uusd=99)), sent_voucher(30))
    assert "I6:" in judge(OnlyReceived(), OPEN, *accepted_, chunk(6), sent_voucher(29)), "it is on its way"
    assert "I6:" in judge(OnlyReceived(), OPEN, ACCEPT, sent_voucher(17)), "it is on its way"
    assert "I6:" in judge(OnlyReceived(), OPEN, sent_voucher(0, running_hash=HASH))


def test_who_sends_an_order_again_is_judged_by_all_that_came_of_it() -> None:
    assert judge(OnlyReceived(), OPEN, *arrived(ACCEPT), OPEN, sent_voucher(17)) == ""
    assert "I6:" in judge(OnlyReceived(), OPEN, *arrived(ACCEPT), OPEN, sent_voucher(18))


def test_what_was_signed_before_may_be_signed_again() -> None:
    came = arrived(ACCEPT, chunk(6))
    assert judge(OnlyReceived(), OPEN, *came, sent_voucher(29), *arrived(ACCEPT), sent_voucher(29)) == ""


def test_no_lease_is_closed_before_its_time() -> None:
    early, late = moved(ExpireLease(LEASE), at_ms=NOW_MS + 2_000), moved(ExpireLease(LEASE), at_ms=NOW_MS + 2_001)
    assert judge(Grace(), LOCKED, late) == ""
    assert "I11:" in judge(Grace(), LOCKED, early)
    assert "I11:" in judge(Grace(), LOCKED, moved(Resume(1_000)), late)


def test_what_is_asked_again_moves_nothing_or_is_found() -> None:
    bench = Bench()
    effect = bench.ask()
    bench.bank.open_lease(effect, NOW_MS)
    ending = Ending([], 0, 0, bank=bench.bank, wall_ms=NOW_MS)
    assert judge(NothingTwice(), effect, ending=ending) == ""

    class Forgetful(Bank):
        """Test double: takes each request for another one."""

        def copy(self) -> Bank:
            return self

        def open_lease(self, effect: RequestLease, now_ms: int) -> Any:
            self.deposit(ASKER.node, 1, now_ms)
            return super().open_lease(effect, now_ms)

    bank = Forgetful(signing_key("bank"))
    assert "I7:" in judge(NothingTwice(), effect, ending=replace_bank(ending, bank))
    assert isinstance(bench.bank.open_lease(effect, NOW_MS), LeaseGranted)


def replace_bank(ending: Ending, bank: Bank) -> Ending:
    return Ending(ending.statistics, 0, 0, bank=bank, wall_ms=ending.wall_ms)


def test_a_coordinator_that_is_away_is_not_judged() -> None:
    bank = Bank(signing_key("bank"))
    bank.is_away = True
    assert judge(NothingTwice(), ending=Ending([], 0, 0, bank=bank)) == ""
