"""The ledger's rules: what a command does to whose money, or why not.

`apply(state, command, at_ms)` looks and decides; it changes nothing. What it returns as an `Entry` is carried out by
whoever keeps the state: `book` in memory, the coordinator's store on disk, and both are compared with each other.
Every entry is double: its postings sum to zero in every asset. Nothing is ever altered or removed; what was wrong is
put right by another entry.

Whether a command is signed by whom it must be is checked before (`claims`). The page is specs/06.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final, assert_never

from msgspec.structs import replace

from protocol import constants as c
from protocol.formats.amounts import say_usd
from protocol.ids import NodeId
from protocol.ledger import (
    AMOUNT_MAX,
    CREDIT,
    FEE,
    OUTSIDE,
    TREASURY,
    AnyCommand,
    Budget,
    Claim,
    Deposit,
    Entry,
    ExpireLease,
    Lease,
    MoneyRefusal,
    OpenLease,
    OrderPayout,
    Payout,
    Posting,
    Refused,
    ReleaseHold,
    Resume,
    ReturnPayout,
    SettlePayout,
    State,
    SweepBudget,
    Unchanged,
    Verdict,
    available,
    digest,
    sponsor,
)

_UNCHANGED: Final = Unchanged()


def cut_uusd(total_uusd: int, basis_points: int) -> int:
    """The part of a running total that goes to somebody else, rounded down.

    Taken of totals, and never of differences, so that it does not depend on how often one claims.
    """
    # SPEC 06: A cut is the difference of two cuts of running totals, each rounded down.
    return total_uusd * basis_points // c.BASIS_POINTS


def cuts_uusd(total_uusd: int, fee_bps: int, relay_bps: int) -> tuple[int, int]:
    """What coordinator and relay get of a running total; the provider gets the rest.

    None of the three ever falls while the total grows, so that no claim takes from anybody. Two parts of the total,
    rounded down each on its own, may both grow by one where the total does, and the provider would pay for it: so the
    relay's part is taken of what the fee has left, in proportion.
    """
    fee_uusd = cut_uusd(total_uusd, fee_bps)
    left_bps = c.BASIS_POINTS - fee_bps
    return fee_uusd, (total_uusd - fee_uusd) * relay_bps // left_bps if left_bps else 0


def apply(state: State, command: AnyCommand, at_ms: int) -> Verdict:
    """What this command does now. Never raises for what a command says: whatever is wrong is a `Refused`."""
    wrong = _amount_refusal(command)
    if wrong is not None:
        return wrong
    verdict = _decide(state, command, at_ms)
    if isinstance(verdict, Entry):
        check_entry(state, verdict, at_ms)
    return verdict


def _decide(state: State, command: AnyCommand, at_ms: int) -> Verdict:  # one arm per command
    match command:
        case Claim():
            return _claim(state, command)
        case OpenLease():
            return _open(state, command)
        case ExpireLease():
            return _expire(state, command, at_ms)
        case Deposit():
            return _deposit(state, command)
        case ReleaseHold():
            return _release(state, command)
        case Budget():
            return _budget(state, command)
        case SweepBudget():
            left = state.balance(sponsor(command.day))
            return _UNCHANGED if not left else Entry(command, _move(sponsor(command.day), TREASURY, left))
        case Resume():
            return Entry(command, (), downtime_ms=command.gap_ms)
        case OrderPayout():
            return _order_payout(state, command)
        case SettlePayout():
            return _settle_payout(state, command)
        case ReturnPayout():
            return _return_payout(state, command)
        case _:
            assert_never(command)


# ---------------------------------------------------------------- leases


def _open(state: State, command: OpenLease) -> Verdict:
    # SPEC 06: The coordinator MUST answer the same request with the same lease, and MUST refuse another one with the
    #   same number.
    reference = f"lease:{command.lease.hex()}"
    if (repeated := _repeated(state, reference, command)) is not None:
        return repeated
    account = available(command.client) if command.day is None else sponsor(command.day)
    if command.relay_bps + command.fee_bps > c.BASIS_POINTS:
        return Refused(MoneyRefusal.BAD_AMOUNT, "the cuts of relay and coordinator are more than the whole")
    if command.relay is None and command.relay_bps:
        return Refused(MoneyRefusal.BAD_AMOUNT, "a cut for a relay, and no relay")
    if command.claim_by_ms <= command.serve_until_ms:
        return Refused(MoneyRefusal.BAD_AMOUNT, "a lease that cannot be claimed after it was served")
    # SPEC 06: The coordinator MUST lock the whole cap before it signs a lease, and MUST refuse one for more than is
    #   available.
    if (missing := _missing(state, account, command.cap_uusd)) is not None:
        return missing
    lease = Lease(
        lease=command.lease,
        account=account,
        payer=command.payer,
        provider=command.provider,
        relay=command.relay,
        relay_bps=command.relay_bps,
        fee_bps=command.fee_bps,
        cap_uusd=command.cap_uusd,
        claimed_uusd=0,
        is_closed=False,
        serve_until_ms=command.serve_until_ms,
        claim_by_ms=command.claim_by_ms,
        downtime_ms=state.downtime_ms,
    )
    return Entry(command, _move(account, lease.held, command.cap_uusd), reference, lease=lease)


def _claim(state: State, command: Claim) -> Verdict:
    lease = state.lease(command.lease)
    if lease is None:
        return Refused(MoneyRefusal.UNKNOWN_LEASE, "this coordinator has issued no such lease")
    # SPEC 06: The coordinator MUST credit nobody but the provider that the lease names.
    if command.provider != lease.provider:
        return Refused(MoneyRefusal.WRONG_PROVIDER, "the lease names another provider")
    # SPEC 06: The coordinator MUST credit at most the cap, whatever the voucher says,
    total_uusd = max(lease.claimed_uusd, min(command.paid_uusd, lease.cap_uusd))
    more_uusd = total_uusd - lease.claimed_uusd
    if lease.is_closed:
        # SPEC 06: The coordinator MUST NOT change a lease that is closed; it answers a claim that says nothing new as
        #   before.
        return _UNCHANGED if not more_uusd else Refused(MoneyRefusal.LEASE_CLOSED, "the lease has been closed")
    if not more_uusd and not command.is_final:
        return _UNCHANGED
    postings = [*_credit(lease, lease.claimed_uusd, total_uusd)]
    if command.is_final:
        postings += _move(lease.held, lease.account, lease.cap_uusd - total_uusd)
    after = replace(lease, claimed_uusd=total_uusd, is_closed=bool(command.is_final))
    return Entry(command, tuple(postings), lease=after)


def _credit(lease: Lease, before_uusd: int, after_uusd: int) -> Iterable[Posting]:
    """What a claim moves, from one total to the next."""
    more_uusd = after_uusd - before_uusd
    if not more_uusd:
        return
    fee_before_uusd, relay_before_uusd = cuts_uusd(before_uusd, lease.fee_bps, lease.relay_bps)
    fee_after_uusd, relay_after_uusd = cuts_uusd(after_uusd, lease.fee_bps, lease.relay_bps)
    fee_uusd, relay_uusd = fee_after_uusd - fee_before_uusd, relay_after_uusd - relay_before_uusd
    yield Posting(lease.held, CREDIT, -more_uusd)
    if more_uusd > fee_uusd + relay_uusd:
        yield Posting(available(lease.provider), CREDIT, more_uusd - fee_uusd - relay_uusd)
    if fee_uusd:
        yield Posting(FEE, CREDIT, fee_uusd)
    if relay_uusd:
        assert lease.relay is not None
        yield Posting(available(lease.relay), CREDIT, relay_uusd)


def _expire(state: State, command: ExpireLease, at_ms: int) -> Verdict:
    lease = state.lease(command.lease)
    if lease is None:
        return Refused(MoneyRefusal.UNKNOWN_LEASE, "this coordinator has issued no such lease")
    if lease.is_closed:
        return _UNCHANGED
    # SPEC 06: The coordinator MUST NOT close a lease on its own before it could be reached for the whole time for
    #   claims.
    if at_ms <= lease.grace_until_ms(state.downtime_ms):
        return Refused(MoneyRefusal.NOT_YET, "the provider may still claim on this lease")
    postings = _move(lease.held, lease.account, lease.cap_uusd - lease.claimed_uusd)
    return Entry(command, postings, lease=replace(lease, is_closed=True))


# ---------------------------------------------------------------- money in


def _deposit(state: State, command: Deposit) -> Verdict:
    # SPEC 06: The coordinator MUST credit a payment once, however often and in whatever order it hears of it.
    reference = f"deposit:{command.payment}"
    if (repeated := _repeated(state, reference, command)) is not None:
        return repeated
    to = _hold(command.payment, command.key) if command.is_held else available(command.key)
    bought = _move("fx:credit", to, command.credit_uusd)
    postings = _move(f"gateway:{command.asset}", f"fx:{command.asset}", command.units, command.asset) + bought
    return Entry(command, postings, reference)


def _hold(payment: str, key: NodeId) -> str:
    """Where a deposit waits. It names its owner: nobody else can have it released to them."""
    return f"suspense:{payment}:{key.hex()}"


def _release(state: State, command: ReleaseHold) -> Verdict:
    reference = f"release:{command.payment}"
    if (repeated := _repeated(state, reference, command)) is not None:
        return repeated
    held = _hold(command.payment, command.key)
    if not command.credit_uusd or state.balance(held) != command.credit_uusd:
        return Refused(MoneyRefusal.UNKNOWN_HOLD, "no such deposit is held")
    return Entry(command, _move(held, available(command.key), command.credit_uusd), reference)


def _budget(state: State, command: Budget) -> Verdict:
    # SPEC 06: The coordinator MUST give the public chat its budget once a day, and no more than that.
    reference = f"budget:{command.day}"
    if state.recorded(reference) is not None:
        return _UNCHANGED  # also when the operator has changed the amount since: from tomorrow on
    return Entry(command, _move(TREASURY, sponsor(command.day), command.amount_uusd), reference)


# ---------------------------------------------------------------- money out


def _order_payout(state: State, command: OrderPayout) -> Verdict:
    reference = f"payout:{command.intent.hex()}"
    if (repeated := _repeated(state, reference, command)) is not None:
        return repeated
    account = available(command.key)
    if not command.amount_uusd:
        return Refused(MoneyRefusal.BAD_AMOUNT, "a payout of nothing")
    # SPEC 06: The coordinator MUST set the money of a payout aside before it asks anybody to send it.
    if (missing := _missing(state, account, command.amount_uusd)) is not None:
        return missing
    payout = Payout(command.intent, account, command.amount_uusd, is_resolved=False)
    return Entry(command, _move(account, payout.held, command.amount_uusd), reference, payout=payout)


def _settle_payout(state: State, command: SettlePayout) -> Verdict:
    reference = f"settle:{command.intent.hex()}"
    if (repeated := _repeated(state, reference, command)) is not None:
        return repeated
    payout = state.payout(command.intent)
    if (refused := _unresolved(payout)) is not None:
        return refused
    assert payout is not None
    postings = _move(payout.held, "fx:credit", payout.amount_uusd)
    postings += _move(f"fx:{command.asset}", f"gateway:{command.asset}", command.units, command.asset)
    return Entry(command, postings, reference, payout=replace(payout, is_resolved=True))


def _return_payout(state: State, command: ReturnPayout) -> Verdict:
    reference = f"return:{command.intent.hex()}"
    if (repeated := _repeated(state, reference, command)) is not None:
        return repeated
    payout = state.payout(command.intent)
    if (refused := _unresolved(payout)) is not None:
        return refused
    assert payout is not None
    postings = _move(payout.held, payout.account, payout.amount_uusd)
    return Entry(command, postings, reference, payout=replace(payout, is_resolved=True))


def _unresolved(payout: Payout | None) -> Refused | None:
    # SPEC 06: The coordinator MUST resolve each payout once: it has left, or it has come back.
    if payout is None:
        return Refused(MoneyRefusal.UNKNOWN_PAYOUT, "no such payout was ordered")
    if payout.is_resolved:
        return Refused(MoneyRefusal.PAYOUT_RESOLVED, "this payout has been resolved")
    return None


# ---------------------------------------------------------------- common to all


def _move(source: str, target: str, amount: int, asset: str = CREDIT) -> tuple[Posting, ...]:
    return (Posting(source, asset, -amount), Posting(target, asset, amount)) if amount else ()


def _missing(state: State, account: str, amount: int) -> Refused | None:
    there = state.balance(account)
    if there >= amount:
        return None
    text = (
        f"{say_usd(amount)} is wanted and {say_usd(there)} is available: ask for less, deposit more, or wait until "
        "leases are released"
    )
    return Refused(MoneyRefusal.INSUFFICIENT, text)


def _repeated(state: State, reference: str, command: AnyCommand) -> Unchanged | Refused | None:
    """Whether this reference has been used: for the same command it is no news, for another one a conflict."""
    before = state.recorded(reference)
    if before is None:
        return None
    if before == digest(command):
        return _UNCHANGED
    return Refused(MoneyRefusal.CONFLICT, "another command was carried out under this number")


def _amount_refusal(command: AnyCommand) -> Refused | None:
    # SPEC 06: Amounts are whole numbers from 0 up, and nothing else is taken for one.
    for name in command.__struct_fields__:
        value = getattr(command, name)
        if name.endswith(("_uusd", "_ms", "_bps")) or name in ("units", "day"):
            # What a payer has signed may be any number, for it counts only up to the cap. Otherwise a payer could hand
            # out a voucher that cannot be redeemed, in place of those before it.
            most = c.INTEGER_MAX if name == "paid_uusd" else AMOUNT_MAX
            is_whole = type(value) is int and 0 <= value <= most
            if not is_whole and not (value is None and name == "day" and isinstance(command, OpenLease)):
                return Refused(MoneyRefusal.BAD_AMOUNT, f"{name} is no whole number from 0 to {most}")
    return None


def check_entry(state: State, entry: Entry, at_ms: int) -> None:
    """The invariants of specs/06 that one entry can break, asserted each time. An AssertionError is a bug of ours."""
    sums: defaultdict[str, int] = defaultdict(int)
    moved: defaultdict[str, int] = defaultdict(int)
    for posting in entry.postings:
        assert type(posting.amount) is int, "money is a whole number"
        sums[posting.asset] += posting.amount
        moved[posting.account] += posting.amount
    assert not any(sums.values()), "I1: the postings of an entry sum to zero in every asset"
    for account, amount in moved.items():
        is_outside = account.partition(":")[0] in OUTSIDE
        assert is_outside or state.balance(account) + amount >= 0, f"I2: {account.partition(':')[0]} below zero"
    assert entry.reference is None or state.recorded(entry.reference) is None, (
        "I7: carried out under this number before"
    )
    if entry.lease is not None:
        _check_lease(state, entry.command, entry.lease, at_ms)
    if entry.payout is not None:
        _check_payout(state, entry.command, entry.payout)
    if isinstance(entry.command, (Deposit, ReleaseHold)):
        is_held = isinstance(entry.command, Deposit) and entry.command.is_held
        credited_uusd = moved[available(entry.command.key)]
        assert entry.reference is not None, "I8: a payment that could be credited again"
        assert credited_uusd == (0 if is_held else entry.command.credit_uusd), "I8: another credit than was confirmed"


def _check_lease(state: State, command: AnyCommand, lease: Lease, at_ms: int) -> None:
    before = state.lease(lease.lease)
    claimed_uusd = before.claimed_uusd if before is not None else 0
    assert claimed_uusd <= lease.claimed_uusd <= lease.cap_uusd, "I3: a claim falls, or exceeds the cap"
    assert before is None or not before.is_closed, "I12: a lease changes after its end"
    if isinstance(command, Claim):
        assert lease.claimed_uusd <= max(claimed_uusd, command.paid_uusd), "I4: more than was signed"
        assert command.provider == lease.provider, "I10: a claim of somebody else"
        assert lease != before, "I7: an entry for a claim that is no news"
    if isinstance(command, ExpireLease):
        away_ms = state.downtime_ms - lease.downtime_ms
        assert at_ms - away_ms > lease.claim_by_ms, "I11: a lease is closed before its time for claims is over"


def _check_payout(state: State, command: AnyCommand, payout: Payout) -> None:
    before = state.payout(payout.intent)
    assert (before is None) == isinstance(command, OrderPayout), "I9: money is set aside for a payout once"
    assert before is None or not before.is_resolved, "I9: a payout that has left or come back does so again"
