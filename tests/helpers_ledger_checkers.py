"""The invariants of the ledger, one checker each, after every step.

A checker compares what the ledger shows (balances, leases, entries) with what really happened (`History`). It knows
nothing of how the rules are written. Each is as narrow as its invariant, so that it can be told which of them catches a
fault. None uses `assert`: they must see what `python -O` lets through.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import msgpack

from protocol.ids import LeaseId
from protocol.ledger import (
    Budget,
    Claim,
    Deposit,
    Entry,
    ExpireLease,
    Lease,
    MoneyRefusal,
    OpenLease,
    OrderPayout,
    Refused,
    ReleaseHold,
    ReturnPayout,
    SettlePayout,
)
from tests.helpers_ledger_history import History, Step, state_of

LEASE_COMMANDS = (OpenLease, Claim, ExpireLease)
_AS_ASKED = (
    *("account", "payer", "provider", "relay", "relay_bps", "fee_bps", "cap_uusd"),
    *("serve_until_ms", "claim_by_ms"),
)
_INSIDE = ("available:", "lease:", "sponsor:", "fee")


class Violation(Exception):
    """An invariant does not hold; `found` says for each checker what it saw."""

    def __init__(self, found: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in found.items()))
        self.found = found


class Checker:
    """One invariant. `after` says what is wrong, or nothing."""

    name = ""

    def __init__(self, history: History) -> None:
        self.history = history

    def after(self, step: Step) -> str | None:
        """Look at a step that was carried out."""
        raise NotImplementedError


class Sums(Checker):
    """I1: the postings sum to zero in every asset, and so does all there is."""

    name = "I1"

    def after(self, step: Step) -> str | None:
        sums: defaultdict[str, int] = defaultdict(int)
        for posting in step.postings:
            sums[posting.asset] += posting.amount
        if any(sums.values()):
            return f"an entry makes {dict(sums)}"
        return None if sum(step.book.accounts.values()) == 0 else "the accounts do not sum to zero"


class Solvent(Checker):
    """I2: nobody below zero; what is locked is there; a client has what it paid in and did not spend."""

    name = "I2"

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self._due: defaultdict[str, int] = defaultdict(int)

    def after(self, step: Step) -> str | None:
        book, command = step.book, step.command
        for posting in step.postings:
            if posting.account.startswith(_INSIDE) and book.balance(posting.account) < 0:
                return f"{posting.account} is below zero"
        if isinstance(command, LEASE_COMMANDS):
            asked, lease = self.history.leases[command.lease], book.lease(command.lease)
            if lease is None:
                return "a lease is granted and nobody knows it"
            locked_uusd = 0 if lease.is_closed else max(0, asked.cap_uusd - lease.claimed_uusd)
            if book.balance(f"lease:{command.lease.hex()}") != locked_uusd:
                return f"{locked_uusd} are locked and not there"
        account, change_uusd = self._change(step)
        if account not in self.history.clients:
            return None
        self._due[account] += change_uusd
        if book.balance(account) != self._due[account]:
            return f"{account} has {book.balance(account)} and paid in {self._due[account]} more than it spent"
        return None

    def _change(self, step: Step) -> tuple[str, int]:
        command = step.command
        if isinstance(command, OpenLease):
            asked = self.history.leases[command.lease]
            return asked.account, -asked.cap_uusd
        if isinstance(command, (Claim, ExpireLease)):
            lease = step.book.lease(command.lease)
            asked = self.history.leases[command.lease]
            if lease is None or not lease.is_closed or asked.is_closed:
                return "", 0
            return asked.account, max(0, asked.cap_uusd - lease.claimed_uusd)
        if isinstance(command, (Deposit, ReleaseHold)):
            # Whether that is what was owed, I8 sees.
            account = f"available:{command.key.hex()}"
            return account, sum(posting.amount for posting in step.postings if posting.account == account)
        if isinstance(command, OrderPayout):
            return f"available:{command.key.hex()}", -command.amount_uusd
        if isinstance(command, ReturnPayout):
            ordered = self.history.payouts[command.intent]
            return f"available:{ordered.key.hex()}", ordered.amount_uusd
        return "", 0


class Bounded(Checker):
    """I3: 0 <= claimed <= cap, claimed never falls, and nothing but that ever changes; closed stays closed."""

    name = "I3"

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self._before: dict[LeaseId, Lease] = {}

    def after(self, step: Step) -> str | None:
        if not isinstance(step.command, LEASE_COMMANDS):
            return None
        lease = step.book.lease(step.command.lease)
        if lease is None:
            return None
        asked, before = self.history.leases[lease.lease], self._before.get(lease.lease)
        self._before[lease.lease] = lease
        if not 0 <= lease.claimed_uusd <= asked.cap_uusd:
            return f"{lease.claimed_uusd} of {asked.cap_uusd} are claimed"
        for name in _AS_ASKED:
            if getattr(lease, name) != getattr(asked, name):
                return f"{name} is not what was asked for"
        if before is None:
            return None
        if lease.claimed_uusd < before.claimed_uusd:
            return "what was claimed has fallen"
        if before.is_closed and not lease.is_closed:
            return "a closed lease is open again"
        return None if lease.downtime_ms == before.downtime_ms else "its time for claims has changed"


class SignedFor(Checker):
    """I4: no more is claimed, and no more has left, than the payer of that lease has signed."""

    name = "I4"

    def after(self, step: Step) -> str | None:
        if not isinstance(step.command, Claim):
            return None
        lease = step.book.lease(step.command.lease)
        if lease is None:
            return None
        asked = self.history.leases[lease.lease]
        return (
            f"{lease.claimed_uusd} are claimed, {asked.signed_uusd} signed"
            if lease.claimed_uusd > asked.signed_uusd
            else None
        )


class Repeats(Checker):
    """I7: a signed message that was carried out changes nothing when it comes again."""

    name = "I7"

    def after(self, step: Step) -> str | None:
        if step.is_repeat and state_of(step.book) != step.state_before:
            return f"repeating a {type(step.command).__name__} changes something"
        return None


class Deposits(Checker):
    """I8: what was confirmed is credited to whom it belongs, once, and what is held only when it was released."""

    name = "I8"

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self._credited: set[str] = set()
        self._seen: set[str] = set()

    def after(self, step: Step) -> str | None:
        command = step.command
        if not isinstance(command, (Deposit, ReleaseHold)):
            return None
        payment = self.history.payments[command.payment]
        credited = {p.account: p.amount for p in step.postings if p.account.startswith("available:")}
        if isinstance(command, Deposit):
            if command.payment in self._seen:
                return "a payment is entered twice"
            self._seen.add(command.payment)
            if payment.is_held:
                return "a payment that is held is credited" if credited else None
        if command.payment in self._credited:
            return "a payment is credited twice"
        self._credited.add(command.payment)
        owed = {f"available:{payment.key.hex()}": payment.credit_uusd} if payment.credit_uusd else {}
        return None if credited == owed else f"{credited} is credited for {owed}"


class Payouts(Checker):
    """I9, the ledger's part: money is set aside once per intent, and leaves or comes back once."""

    name = "I9"

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self._ordered: set[bytes] = set()
        self._resolved: set[bytes] = set()

    def after(self, step: Step) -> str | None:
        command = step.command
        if not isinstance(command, (OrderPayout, SettlePayout, ReturnPayout)):
            return None
        seen = self._ordered if isinstance(command, OrderPayout) else self._resolved
        if command.intent in seen:
            return f"a second {type(command).__name__} of one payout"
        seen.add(command.intent)
        is_resolved = command.intent in self._resolved
        owed_uusd = 0 if is_resolved else self.history.payouts[command.intent].amount_uusd
        payout = step.book.payout(command.intent)
        if payout is None or payout.is_resolved != is_resolved:
            return "a payout is not marked as what it is"
        there_uusd = step.book.balance(f"payout:{command.intent.hex()}")
        return None if there_uusd == owed_uusd else f"{there_uusd} are set aside instead of {owed_uusd}"


class Named(Checker):
    """I10: nobody is credited by a lease but the provider and the relay that it names."""

    name = "I10"

    def after(self, step: Step) -> str | None:
        command = step.command
        if not isinstance(command, Claim):
            return None
        asked = self.history.leases[command.lease]
        if command.provider != asked.provider:
            return "a claim of somebody whom the lease does not name"
        named = {f"available:{asked.provider.hex()}", asked.account, f"lease:{command.lease.hex()}", "fee"}
        if asked.relay is not None:
            named.add(f"available:{asked.relay.hex()}")
        strangers = {posting.account for posting in step.postings} - named
        return f"{strangers} are not named by the lease" if strangers else None


class Reachable(Checker):
    """I11: a lease that nobody gave up is closed only when the coordinator could be reached for the whole grace."""

    name = "I11"

    def after(self, step: Step) -> str | None:
        if not isinstance(step.command, ExpireLease):
            return None
        asked = self.history.leases[step.command.lease]
        reachable_ms = self.history.reachable_ms(asked.serve_until_ms)
        grace_ms = asked.claim_by_ms - asked.serve_until_ms
        return f"closed after {reachable_ms} of {grace_ms} ms" if reachable_ms < grace_ms else None


class AfterClose(Checker):
    """I12: no claim is carried out on a lease that is closed."""

    name = "I12"

    def after(self, step: Step) -> str | None:
        is_late = isinstance(step.command, Claim) and self.history.leases[step.command.lease].is_closed
        return "a claim after the end" if is_late else None


class Cuts(Checker):
    """Coordinator and relay get what was agreed, to the unit, and no claim takes anything from anybody."""

    name = "cuts"

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self._got: defaultdict[tuple[LeaseId, str], int] = defaultdict(int)

    def after(self, step: Step) -> str | None:
        command = step.command
        lease = step.book.lease(command.lease) if isinstance(command, Claim) else None
        if lease is None or not isinstance(command, Claim):
            return None
        asked = self.history.leases[command.lease]
        for posting in step.postings:
            if posting.account != f"lease:{command.lease.hex()}" and posting.account != asked.account:
                if posting.amount <= 0:
                    return f"a claim takes {-posting.amount} from {posting.account}"
                self._got[command.lease, posting.account] += posting.amount
        claimed_uusd = min(lease.claimed_uusd, asked.cap_uusd)
        fee_uusd = claimed_uusd * asked.fee_bps // 10_000
        if self._got[command.lease, "fee"] != fee_uusd:
            return f"a fee of {self._got[command.lease, 'fee']} instead of {fee_uusd}"
        if asked.relay is None or asked.relay == asked.provider:
            return None
        exact = claimed_uusd * asked.relay_bps
        relay_uusd = self._got[command.lease, f"available:{asked.relay.hex()}"]
        is_agreed = exact // 10_000 <= relay_uusd <= -(-exact // 10_000)
        return None if is_agreed else f"{relay_uusd} for the relay instead of {exact / 10_000}"


class Chain(Checker):
    """Entries are numbered, say what was moved, and the head is their hash."""

    name = "chain"

    def __init__(self, history: History) -> None:
        super().__init__(history)
        tag = hashlib.sha256(b"infernet/ledger-entry/1").digest()
        self._tag = tag + tag
        self._head = bytes(32)
        self._number = 0

    def after(self, step: Step) -> str | None:
        self._number += 1
        body = step.book.entries[-1]
        self._head = hashlib.sha256(self._tag + self._head + body).digest()
        if step.book.head != self._head or len(step.book.entries) != self._number:
            return "the head is not the hash of the entries"
        version, number, at_ms, _, postings = msgpack.unpackb(body)
        if [version, number, at_ms] != [1, self._number, self.history.now_ms]:
            return f"entry {self._number} calls itself {number} of {at_ms}"
        is_same = postings == [[p.account, p.asset, p.amount] for p in step.postings]
        return None if is_same else "an entry says something else than was moved"


class Budgets(Checker):
    """A day of the public chat spends no more than its first budget."""

    name = "budget"

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self._given: defaultdict[int, int] = defaultdict(int)

    def after(self, step: Step) -> str | None:
        if not isinstance(step.command, Budget):
            return None
        day = step.command.day
        self._given[day] += sum(p.amount for p in step.postings if p.account == f"sponsor:{day}")
        return None if self._given[day] == self.history.budgets[day] else f"day {day} has got {self._given[day]}"


class Served(Checker):
    """Whoever is honest gets what is due: a claim is credited in full, and what must be granted is. Nonsense is not."""

    name = "served"

    def after(self, step: Step) -> str | None:
        if step.must_succeed and isinstance(step.verdict, Refused):
            return f"an honest {type(step.command).__name__} is refused: {step.verdict.code}"
        if step.is_repeat and isinstance(step.verdict, Refused) and step.verdict.code == MoneyRefusal.CONFLICT:
            return f"the same {type(step.command).__name__} is called another one"
        if step.owed_uusd is not None and isinstance(step.command, Claim):
            lease = step.book.lease(step.command.lease)
            if lease is None or lease.claimed_uusd < step.owed_uusd:
                return f"an honest provider has got less than {step.owed_uusd}"
        return None


class Trace(Checker):
    """What is refused, or nothing new, or nonsense, leaves no trace."""

    name = "trace"

    def after(self, step: Step) -> str | None:
        if step.is_nonsense and not isinstance(step.verdict, Refused):
            return f"nonsense is taken for a {type(step.command).__name__}"
        is_entry = isinstance(step.verdict, Entry)
        return None if is_entry == (step.book.head != step.head_before) else "there is a trace and no entry, or none"


# Look at every step, also where nothing was carried out. Of nonsense there is no history to compare with.
ALWAYS: tuple[type[Checker], ...] = (Repeats, Served)
ENTRIES: tuple[type[Checker], ...] = (
    *(Sums, Solvent, Bounded, SignedFor, Deposits, Payouts, Named, Reachable, AfterClose),
    *(Cuts, Chain, Budgets),
)
NAMES = tuple(checker.name for checker in (*ENTRIES, *ALWAYS, Trace))


class Checks:
    """The checkers that are switched on, for one history."""

    def __init__(self, history: History, names: Iterable[str] = NAMES) -> None:
        wanted = frozenset(names)
        self._trace = [Trace(history)] if Trace.name in wanted else []
        self._always = [checker(history) for checker in ALWAYS if checker.name in wanted]
        self._entries = [checker(history) for checker in ENTRIES if checker.name in wanted]

    def after(self, step: Step) -> None:
        """Let all of them look. Raises Violation with what they found."""
        checkers: list[Checker] = [*self._trace, *self._always]
        if step.is_nonsense:
            checkers = [*self._trace]
        elif step.book.head != step.head_before:
            checkers += self._entries
        found = {checker.name: text for checker in checkers if (text := checker.after(step)) is not None}
        if found:
            raise Violation(found)
