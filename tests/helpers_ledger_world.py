"""Honest and dishonest people around one ledger, and what they do to it, one step at a time.

Clients ask for more than they have; payers sign little, much, or absurd sums; providers claim early, late, twice and
out of order; thieves claim with what they found; payments are reported often; payouts end in every way and twice; the
coordinator goes away. What reaches the ledger has passed the check of signatures: here by asking who really signed it,
in `helpers_ledger_signed` by checking real signatures.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from protocol import constants as c
from protocol.book import Book
from protocol.ids import LeaseId, NodeId
from protocol.ledger import (
    AMOUNT_MAX,
    AnyCommand,
    Budget,
    Claim,
    Deposit,
    Entry,
    ExpireLease,
    OpenLease,
    OrderPayout,
    ReleaseHold,
    Resume,
    ReturnPayout,
    SettlePayout,
    SweepBudget,
    Unchanged,
)
from protocol.records import Signed
from tests.helpers_ledger_checkers import NAMES, Checks
from tests.helpers_ledger_history import Asked, History, Ordered, Payment, Step, state_of

NOW_MS = 1_795_000_000_000
DAY = 20_775
GRACE_S = 60
SERVE_S_MAX = 60
# High ones too: where all cuts grow at once, rounding shows.
FEES_BPS = (0, 100, 3_000, 6_000)
UNSIGNED = Signed(b"\x00", bytes(64))
NONSENSE = (True, 1.0, -1, c.INTEGER_MAX + 1, None, "1")
REPEATS_KEPT = 64
# Of what was refused every eighth is tried to be used all the same.
REFUSED_KEPT = 8


def name_of(*parts: object) -> bytes:
    """32 bytes that stand for a key or an id."""
    return hashlib.sha256(repr(parts).encode()).digest()


class World:
    """One ledger, its people, and the checks after every step. All sums in micro-USD."""

    def __init__(self, checks: Iterable[str] = NAMES, fee_bps: int = 100) -> None:
        self.clients = [self.key("client", n) for n in range(3)]
        self.providers = [self.key("provider", n) for n in range(3)]
        self.relays = [self.key("relay", 0), self.providers[2]]
        self.fee_bps = fee_bps
        self.book = Book()
        self.history = History(NOW_MS)
        self.history.clients = frozenset(f"available:{key.hex()}" for key in self.clients)
        self.checks = Checks(self.history, checks)
        self.leases: list[LeaseId] = []
        self.payments: list[Deposit] = []
        self.intents: list[bytes] = []
        self.repeats: list[AnyCommand] = []
        self.asked = 0
        self.steps = 0

    def key(self, *parts: object) -> NodeId:
        """Somebody's key."""
        return NodeId(name_of(*parts))

    # ------------------------------------------------------------ what reaches the ledger

    def deliver(
        self,
        command: AnyCommand,
        *,
        is_signed: bool = False,
        is_repeat: bool = False,
        is_nonsense: bool = False,
        owed_uusd: int | None = None,
        must_succeed: bool = False,
    ) -> bool:
        """Let the ledger decide a command, and the checkers look. Whether something came of it. Raises Violation."""
        book = self.book
        state_before = state_of(book) if is_repeat else None
        head_before = book.head
        verdict = book.command(command, self.history.now_ms)
        self.steps += 1
        step = Step(book, command, verdict, head_before)
        step.is_repeat, step.is_nonsense, step.state_before = is_repeat, is_nonsense, state_before
        step.owed_uusd, step.must_succeed = owed_uusd, must_succeed
        is_entry = isinstance(verdict, Entry)
        if isinstance(verdict, Entry):
            step.postings = verdict.postings
        self.checks.after(step)
        if is_signed and not is_repeat and isinstance(verdict, (Entry, Unchanged)) and len(self.repeats) < REPEATS_KEPT:
            self.repeats.append(command)
        return is_entry

    def repeat(self, index: int) -> None:
        """A signed message comes again, perhaps much later, when the coordinator would answer with other times."""
        if not self.repeats:
            return
        command = self.repeats[index % len(self.repeats)]
        if isinstance(command, OpenLease):
            late_ms = self.history.now_ms - NOW_MS
            command = replace(
                command, serve_until_ms=command.serve_until_ms + late_ms, claim_by_ms=command.claim_by_ms + late_ms
            )
        self.deliver(command, is_signed=True, is_repeat=True)

    # ------------------------------------------------------------ time

    def wait(self, ms: int) -> None:
        """Time passes."""
        self.history.now_ms += ms

    def away(self, ms: int) -> None:
        """The coordinator cannot be reached for so long; it notices when it starts."""
        start_ms = self.history.now_ms
        self.history.now_ms += ms
        self.history.absences.append((start_ms, self.history.now_ms))
        self.deliver(Resume(ms), must_succeed=True)

    # ------------------------------------------------------------ money in

    def deposit(self, client: int, credit_uusd: int, *, is_held: bool = False) -> None:
        """A payment is confirmed, and reported."""
        key = self.clients[client % len(self.clients)]
        command = Deposit(f"payment-{len(self.payments)}", key, "USDC", credit_uusd, credit_uusd, int(is_held))
        self.history.payments[command.payment] = Payment(key, credit_uusd, is_held)
        self.payments.append(command)
        self.deliver(command, must_succeed=True)

    def report_again(self, index: int, more_uusd: int = 0) -> None:
        """A payment is reported once more, perhaps with another value."""
        if self.payments:
            command = self.payments[index % len(self.payments)]
            self.deliver(replace(command, credit_uusd=command.credit_uusd + more_uusd))

    def release(self, index: int, client: int, more_uusd: int = 0) -> None:
        """Somebody looks at a deposit, and may take it for another one."""
        if not self.payments:
            return
        held = [payment for payment in self.payments if payment.is_held] if index % 8 else self.payments
        if not held:
            return
        command = held[index % len(held)]
        key = command.key if client < 0 else self.clients[client % len(self.clients)]
        self.deliver(ReleaseHold(command.payment, key, command.credit_uusd + more_uusd))

    def budget(self, day: int, amount_uusd: int) -> None:
        """The operator gives the public chat its budget, perhaps again."""
        self.history.budgets.setdefault(day, amount_uusd)
        self.deliver(Budget(day, amount_uusd), must_succeed=True)

    def sweep(self, day: int) -> None:
        """A day of the public chat is over."""
        self.deliver(SweepBudget(day), must_succeed=True)

    # ------------------------------------------------------------ leases

    def ask(
        self,
        client: int,
        provider: int,
        relay: int | None,
        relay_bps: int,
        cap_uusd: int,
        serve_s: int,
        day: int | None,
    ) -> None:
        """Somebody asks for a lease, perhaps for more than there is; with `day` it is the public chat."""
        number = self.asked
        self.asked += 1
        key = self.clients[client % len(self.clients)]
        serve_until_ms = self.history.now_ms + 1000 * min(serve_s, SERVE_S_MAX)
        asked = Asked(
            account=f"available:{key.hex()}" if day is None else f"sponsor:{day}",
            payer=self.payer(number),
            provider=self.providers[provider % len(self.providers)],
            relay=None if relay is None else self.relays[relay % len(self.relays)],
            relay_bps=0 if relay is None else relay_bps,
            fee_bps=self.fee_bps,
            cap_uusd=cap_uusd,
            serve_until_ms=serve_until_ms,
            claim_by_ms=serve_until_ms + 1000 * GRACE_S,
        )
        command = self.request(number, key, asked, serve_s)
        if day is not None:
            command = replace(command, day=day)
        self.history.leases[command.lease] = asked
        is_granted = asked.is_granted = self.deliver(command, is_signed=True)
        if is_granted or not number % REFUSED_KEPT:
            self.leases.append(command.lease)

    def payer(self, number: int) -> NodeId:
        """The key made for the lease of this number."""
        return self.key("payer", number)

    def request(self, number: int, client: NodeId, asked: Asked, serve_s: int) -> OpenLease:
        """What the coordinator makes of a request."""
        return OpenLease(
            lease=LeaseId(name_of("lease", number)),
            client=client,
            day=None,
            payer=asked.payer,
            provider=asked.provider,
            relay=asked.relay,
            relay_bps=asked.relay_bps,
            fee_bps=asked.fee_bps,
            cap_uusd=asked.cap_uusd,
            serve_until_ms=asked.serve_until_ms,
            claim_by_ms=asked.claim_by_ms,
            request=Signed(number.to_bytes(4, "big"), bytes(64)),
        )

    def claim(self, index: int, paid_uusd: int, *, is_final: bool = False) -> None:
        """The payer signs so much in all, perhaps less than before or more than the cap, and the provider claims it."""
        if not self.leases:
            return
        lease = self.leases[index % len(self.leases)]
        asked = self.history.leases[lease]
        asked.signed_uusd = max(asked.signed_uusd, paid_uusd)
        row = self.book.lease(lease)
        is_open = asked.is_granted and not asked.is_closed and row is not None
        owed_uusd = max(row.claimed_uusd, min(paid_uusd, asked.cap_uusd)) if is_open and row is not None else None
        command = self.voucher_claim(lease, paid_uusd, asked.provider, is_final=is_final)
        self._claim(command, owed_uusd=owed_uusd, must_succeed=is_open)

    def steal(self, index: int, thief: int, paid_uusd: int, *, is_final: bool) -> None:
        """Somebody else claims with a voucher that its payer has really signed."""
        if not self.leases:
            return
        lease = self.leases[index % len(self.leases)]
        asked = self.history.leases[lease]
        keys = [key for key in (*self.providers, *self.clients) if key != asked.provider]
        paid_uusd = min(paid_uusd, asked.signed_uusd)
        self._claim(self.voucher_claim(lease, paid_uusd, keys[thief % len(keys)], is_final=is_final))

    def voucher_claim(self, lease: LeaseId, paid_uusd: int, claimant: NodeId, *, is_final: bool) -> Claim:
        """What the coordinator makes of a claim with a good voucher."""
        return Claim(lease, claimant, paid_uusd, int(is_final), UNSIGNED)

    def _claim(self, command: Claim, *, owed_uusd: int | None = None, must_succeed: bool = False) -> None:
        if not self.history.leases[command.lease].is_granted:
            # Nobody knows this lease: the ledger must not either.
            self.deliver(command, is_nonsense=True)
            return
        is_entry = self.deliver(command, is_signed=True, owed_uusd=owed_uusd, must_succeed=must_succeed)
        if is_entry and command.is_final:
            self.history.leases[command.lease].is_closed = True

    def expire(self, index: int) -> None:
        """The coordinator thinks that a lease may be over."""
        granted = [lease for lease in self.leases if self.history.leases[lease].is_granted]
        if not granted:
            return
        lease = granted[index % len(granted)]
        asked = self.history.leases[lease]
        # With every absence there ever was, the time for claims must be over some time.
        away_ms = sum(end_ms - start_ms for start_ms, end_ms in self.history.absences)
        is_over = self.history.now_ms > asked.claim_by_ms + away_ms
        if self.deliver(ExpireLease(lease), must_succeed=is_over):
            asked.is_closed = True

    # ------------------------------------------------------------ money out

    def order_payout(self, owner: int, amount_uusd: int) -> None:
        """Somebody wants money, perhaps more than there is."""
        keys = [*self.clients, *self.providers, *self.relays]
        intent = name_of("intent", len(self.history.payouts))[:16]
        command = OrderPayout(intent, keys[owner % len(keys)], amount_uusd)
        self.history.payouts[intent] = Ordered(command.key, amount_uusd)
        if self.deliver(command, is_signed=True) or not len(self.history.payouts) % REFUSED_KEPT:
            self.intents.append(intent)

    def settle(self, index: int, units: int) -> None:
        """The gateway says that a payout was sent, whatever it said before."""
        if self.intents:
            self.deliver(SettlePayout(self.intents[index % len(self.intents)], "USDC", units))

    def give_back(self, index: int) -> None:
        """The gateway says that a payout was not sent, whatever it said before."""
        if self.intents:
            self.deliver(ReturnPayout(self.intents[index % len(self.intents)]))

    # ------------------------------------------------------------ nonsense

    def nonsense(self, index: int, value: int) -> None:
        """A command with something in it that is no amount."""
        lease = self.leases[index % len(self.leases)] if self.leases else LeaseId(bytes(32))
        wrong = NONSENSE[value % len(NONSENSE)]
        commands: tuple[Callable[[], AnyCommand], ...] = (
            lambda: Deposit("nonsense", self.clients[0], "USDC", 1, wrong, 0),
            lambda: Claim(lease, self.providers[0], wrong, 0, UNSIGNED),
            lambda: OrderPayout(bytes(16), self.clients[0], wrong),
            lambda: Budget(DAY + 9, wrong),
            lambda: Resume(wrong),
        )
        self.deliver(commands[index % len(commands)](), is_nonsense=True)


# ---------------------------------------------------------------- anything may happen


def amount(dice: random.Random) -> int:
    """A sum: often small, so that rounding shows, sometimes absurd."""
    kind = dice.random()
    if kind < 0.6:
        return dice.randrange(1, 400)
    return dice.randrange(1, 2_000_000) if kind < 0.97 else dice.choice((0, AMOUNT_MAX, AMOUNT_MAX - 1))


def a_claim(world: World, dice: random.Random) -> None:
    """A claim for a little more than before, for any sum, or for the most that can be signed."""
    if not world.leases:
        return
    index = dice.randrange(len(world.leases))
    signed_uusd = world.history.leases[world.leases[index]].signed_uusd
    kind = dice.random()
    if kind < 0.2:
        paid_uusd = min(signed_uusd + 1, c.INTEGER_MAX)
    elif kind < 0.6:
        paid_uusd = min(signed_uusd + dice.randrange(1, 60), c.INTEGER_MAX)
    elif kind < 0.97:
        paid_uusd = dice.randrange(signed_uusd + 1)
    else:
        paid_uusd = dice.choice((c.INTEGER_MAX, AMOUNT_MAX))
    world.claim(index, paid_uusd, is_final=dice.random() < 0.1)


def a_request(world: World, dice: random.Random) -> None:
    """A request for a lease."""
    day = DAY + dice.randrange(2) if dice.random() < 0.15 else None
    relay = dice.choice((None, 0, 1))
    cap_uusd = dice.randrange(1, 3_000) if dice.random() < 0.9 else min(max(1, amount(dice)), c.LEASE_CAP_UUSD_MAX)
    relay_bps = dice.choice((2_000, dice.randrange(2_001)))
    world.ask(dice.randrange(3), dice.randrange(3), relay, relay_bps, cap_uusd, dice.randrange(1, 90), day)


_ACTIONS: tuple[tuple[int, Callable[[World, random.Random], None]], ...] = (
    (30, a_claim),
    (10, lambda w, d: w.steal(d.randrange(64), d.randrange(8), amount(d), is_final=d.random() < 0.3)),
    (12, a_request),
    (16, lambda w, d: w.repeat(d.randrange(REPEATS_KEPT))),
    (5, lambda w, d: w.deposit(d.randrange(3), amount(d), is_held=d.random() < 0.3)),
    (4, lambda w, d: w.report_again(d.randrange(64), d.choice((0, 0, 1)))),
    (3, lambda w, d: w.release(d.randrange(64), d.choice((-1, -1, -1, 0, 1)), d.choice((0, 0, 0, 1)))),
    (7, lambda w, d: w.expire(d.randrange(64))),
    (5, lambda w, d: w.wait(d.choice((1, 1_000, 30_000, 60_000)))),
    (2, lambda w, d: w.away(d.choice((1, 20_000, 90_000)))),
    (4, lambda w, d: w.order_payout(d.randrange(8), amount(d))),
    (3, lambda w, d: w.settle(d.randrange(64), d.choice((998, amount(d))))),
    (3, lambda w, d: w.give_back(d.randrange(64))),
    (1, lambda w, d: w.budget(DAY + d.randrange(2), d.randrange(1, 1_000_000))),
    (1, lambda w, d: w.sweep(DAY + d.randrange(2))),
    (1, lambda w, d: w.nonsense(d.randrange(64), d.randrange(64))),
)
_DOERS = [action for _, action in _ACTIONS]
_WEIGHTS = [weight for weight, _ in _ACTIONS]


def live(world: World, dice: random.Random, steps: int) -> None:
    """Let anything happen until the ledger has decided so many commands. Raises Violation."""
    while world.steps < steps:
        for action in dice.choices(_DOERS, _WEIGHTS, k=16):
            action(world, dice)


def histories(seed: int, count: int, steps: int, checks: Iterable[str] = NAMES) -> int:
    """Live through so many histories of so many steps; how many steps there were. Raises Violation."""
    names = tuple(checks)
    total = 0
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        world = World(names, fee_bps=dice.choice(FEES_BPS))
        for client in range(3):
            world.deposit(client, dice.randrange(1_000, 1_000_000))
        live(world, dice, steps)
        total += world.steps
    return total
