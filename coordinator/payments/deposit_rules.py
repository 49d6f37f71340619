"""What becomes of a deposit when the gateway was asked about it. Pure: a row and an answer in, a row and a command out.

    new -> open -> credited            the amount is known, and the payment is the one that was asked for
                -> held                credited to nobody yet: it is large, or much came within an hour
                -> review              a person has to look: `reason` says why
                -> closed              a day has passed since it ended, and nothing came

A payment that was closed and is paid after all goes on from there. Nothing that was credited is ever taken back.

Without a received amount nothing is credited, though the gateway says "confirmed": to the gateway 99 % are enough for
that, its own programs differ about it, and a status is one word that may be wrong. The coins are there, so waiting for
a person loses nothing; credit that was spent could not be called back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from msgspec.structs import replace as msgspec_replace

from coordinator.payments.gateway import Invoice
from coordinator.payments.status import PaymentState, PaymentStatus, Progress, join
from protocol.formats.amounts import AmountFault, BadAmount, credited_uusd
from protocol.formats.coins import Pair, find_pair
from protocol.ids import NodeId
from protocol.ledger import AMOUNT_MAX
from protocol.ledger import Deposit as DepositCommand

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
POLL_MS_MIN: Final = 30_000
POLL_MS_MAX: Final = 10 * MINUTE_MS
# When a payment is to be asked about of which a webhook says that it was made: before all others.
TOLD_PAID_MS: Final = 0
# An invoice that never ends is asked about so long after it was made.
NEVER_ENDING_MS: Final = 3 * DAY_MS


class Stage(StrEnum):
    """How far a deposit has come with us."""

    NEW = "new"
    OPEN = "open"
    CREDITED = "credited"
    HELD = "held"
    REVIEW = "review"
    CLOSED = "closed"


HELD_REASON: Final = "a large amount: somebody has to look at it"
SETTLED: Final = frozenset({Stage.CREDITED, Stage.HELD, Stage.REVIEW})


@dataclass(frozen=True, slots=True)
class Deposit:
    """A row. Amounts of coins in ledger units; `ended_ms` is when it was credited, or was first said to be over."""

    deposit: bytes
    node: NodeId
    request: str
    amount_uusd: int
    code: str
    network: str
    stage: Stage
    gateway_id: str | None = None
    address: str | None = None
    expected_units: int | None = None
    expected_raw: str | None = None
    received_units: int | None = None
    received_raw: str | None = None
    progress: int = 0
    is_expired: bool = False
    is_failed: bool = False
    credited_uusd: int = 0
    reason: str = ""
    tx_hash: str | None = None
    created_ms: int = 0
    expires_ms: int | None = None
    ended_ms: int | None = None
    next_poll_ms: int | None = None
    polls: int = 0

    @property
    def pair(self) -> Pair:
        """The coin and its network."""
        return find_pair(self.code, self.network)

    @property
    def state(self) -> PaymentState:
        """What the gateway has said of it so far."""
        return PaymentState(Progress(self.progress), self.is_expired, self.is_failed)


@dataclass(frozen=True, slots=True)
class Limits:
    """Above which credit waits for a person: of one payment, and of one hour."""

    payment_uusd: int
    hour_uusd: int


@dataclass(frozen=True, slots=True)
class Judged:
    """The row afterwards, and what the ledger is to do."""

    deposit: Deposit
    command: DepositCommand | None = None


def opened(deposit: Deposit, invoice: Invoice, now_ms: int) -> Deposit:
    """A deposit whose invoice has just been made."""
    return replace(
        deposit,
        stage=Stage.OPEN,
        gateway_id=invoice.gateway_id,
        address=invoice.address,
        expected_units=invoice.amount,
        expected_raw=invoice.amount_raw,
        expires_ms=invoice.expires_at_ms,
        next_poll_ms=now_ms + POLL_MS_MIN,
    )


def hinted(deposit: Deposit, told: PaymentStatus | None, now_ms: int) -> Deposit:
    """The gateway says that something has happened: it is asked now, and for a day again if all seemed over.

    It is asked before everything else where it says that the payment was made.
    """
    if deposit.stage is Stage.CLOSED:
        deposit = replace(deposit, stage=Stage.OPEN, ended_ms=now_ms)
    if told in (PaymentStatus.CONFIRMED, PaymentStatus.FORWARDED):
        return replace(deposit, next_poll_ms=TOLD_PAID_MS)
    due_ms = now_ms if deposit.next_poll_ms is None else min(now_ms, deposit.next_poll_ms)
    return replace(deposit, next_poll_ms=due_ms)


def with_hint(asked: Deposit, before: Deposit, after: Deposit, now_ms: int) -> Deposit:
    """A row after an answer to a question that was asked before a webhook came: the webhook knows more."""
    came_meanwhile = before.next_poll_ms == TOLD_PAID_MS != asked.next_poll_ms
    if not came_meanwhile or after.stage in SETTLED:
        return after
    return hinted(after, PaymentStatus.CONFIRMED, now_ms)


def judge(deposit: Deposit, invoice: Invoice, now_ms: int, hour_uusd: int, limits: Limits) -> Judged:
    """What the gateway's own answer to a question means; `hour_uusd` was credited within the last hour."""
    deposit = replace(deposit, polls=deposit.polls + 1, next_poll_ms=None)
    if deposit.stage in SETTLED:
        return Judged(deposit)
    # SPEC 06: The coordinator MUST NOT credit on a webhook's word: it asks the gateway, and compares payment, asset,
    #   network, address and amount with its own invoice.
    if (differing := _difference(deposit, invoice)) is not None:
        return Judged(_review(deposit, f"another {differing} than on the invoice", now_ms))
    state = join(deposit.state, invoice.status).state
    deposit = replace(
        deposit,
        progress=int(state.progress),
        is_expired=state.expired,
        is_failed=state.failed,
        tx_hash=invoice.tx_hash or deposit.tx_hash,
    )
    if invoice.received is not None:
        deposit = replace(deposit, received_units=invoice.received, received_raw=invoice.received_raw)
    if state.is_paid:
        return _paid(deposit, invoice.received, now_ms, hour_uusd, limits)
    return Judged(_waiting(deposit, now_ms))


def failed_to_ask(deposit: Deposit, now_ms: int) -> Deposit:
    """The gateway gave no answer that could be used; an invoice that nobody can ask about is closed in the end."""
    return _waiting(replace(deposit, polls=deposit.polls + 1), now_ms)


def by_hand(deposit: Deposit, received: int, now_ms: int) -> Judged:
    """A person has seen so many units on the chain. Raises BadAmount, or ValueError for a deposit that is settled."""
    if deposit.stage not in (Stage.OPEN, Stage.REVIEW, Stage.CLOSED):
        raise ValueError("this deposit is settled, or has no invoice")
    credit_uusd = _credit(deposit, received)
    if not credit_uusd:
        raise BadAmount(AmountFault.NOT_A_NUMBER, "that is worth less than a millionth of a dollar: nothing to credit")
    after = replace(deposit, received_units=received, received_raw="by hand")
    return _settled(after, received, credit_uusd, now_ms, is_held=False)


def _paid(deposit: Deposit, received: int | None, now_ms: int, hour_uusd: int, limits: Limits) -> Judged:
    # SPEC 07: The coordinator MUST NOT credit a payment whose received amount the gateway does not tell, however it
    #   calls its state; a person decides.
    if received is None:
        return Judged(_review(deposit, "the gateway does not say how much came", now_ms))
    try:
        credit_uusd = _credit(deposit, received)
    except BadAmount:
        return Judged(_review(deposit, "an amount that cannot be", now_ms))
    if not credit_uusd:
        return Judged(_review(deposit, "less than a millionth of a dollar came", now_ms))
    is_large = credit_uusd > limits.payment_uusd or hour_uusd + credit_uusd > limits.hour_uusd
    return _settled(deposit, received, credit_uusd, now_ms, is_held=is_large)


def _credit(deposit: Deposit, received: int) -> int:
    """What these units are worth by the quote. Raises BadAmount, also for more than an entry of the ledger holds."""
    credit_uusd = credited_uusd(received, deposit.expected_units or 0, deposit.amount_uusd)
    if max(received, credit_uusd) > AMOUNT_MAX:
        raise BadAmount(AmountFault.TOO_LARGE, "more than the ledger takes in one entry")
    return credit_uusd


def _settled(deposit: Deposit, received: int, credit_uusd: int, now_ms: int, *, is_held: bool) -> Judged:
    assert deposit.gateway_id is not None
    after = replace(
        deposit,
        stage=Stage.HELD if is_held else Stage.CREDITED,
        credited_uusd=credit_uusd,
        reason=HELD_REASON if is_held else "",
        ended_ms=now_ms,
        next_poll_ms=None,
    )
    command = DepositCommand(
        deposit.gateway_id, deposit.node, deposit.pair.asset, received, credit_uusd, 1 if is_held else 0
    )
    return Judged(after, command)


def as_it_was(judged: Judged) -> Judged:
    """The same credit, held where it was not to be, and the other way round: as another hour may have seen it."""
    assert judged.command is not None
    was_held = not judged.command.is_held
    stage, reason = (Stage.HELD, HELD_REASON) if was_held else (Stage.CREDITED, "")
    return Judged(
        replace(judged.deposit, stage=stage, reason=reason), msgspec_replace(judged.command, is_held=int(was_held))
    )


def _review(deposit: Deposit, reason: str, now_ms: int) -> Deposit:
    return replace(deposit, stage=Stage.REVIEW, reason=reason, ended_ms=now_ms, next_poll_ms=None)


def _waiting(deposit: Deposit, now_ms: int) -> Deposit:
    """Not paid as far as is known: when to ask again, if at all."""
    is_over = deposit.is_expired or deposit.is_failed
    if is_over and deposit.ended_ms is None:
        deposit = replace(deposit, ended_ms=now_ms)
    # SPEC 06: The coordinator MUST ask for every open invoice again until it is decided, so that a webhook that is lost
    #   loses nothing.
    last_ms = deposit.created_ms + NEVER_ENDING_MS if deposit.ended_ms is None else deposit.ended_ms + DAY_MS
    if now_ms < last_ms:
        # An answer that came late can end one that was closed without an end: it has its day like any other.
        stage = Stage.OPEN if deposit.stage is Stage.CLOSED else deposit.stage
        return replace(deposit, stage=stage, next_poll_ms=now_ms + _pause_ms(deposit, now_ms))
    if deposit.received_units:
        return _review(deposit, "less came than was asked for", now_ms)
    return replace(deposit, stage=Stage.CLOSED, next_poll_ms=None)


def _pause_ms(deposit: Deposit, now_ms: int) -> int:
    if deposit.ended_ms is not None:
        return HOUR_MS
    if deposit.progress >= Progress.DETECTED:
        return MINUTE_MS
    return min(POLL_MS_MAX, max(POLL_MS_MIN, (now_ms - deposit.created_ms) // 8))


def _difference(deposit: Deposit, invoice: Invoice) -> str | None:
    """What of the gateway's answer is not what we asked for. What it does not tell differs in nothing."""
    pairs = {
        "payment": (invoice.gateway_id, deposit.gateway_id),
        "coin": (invoice.code, deposit.code),
        "network": (invoice.network, deposit.network),
        "address": (invoice.address, deposit.address),
        "amount of coins": (invoice.amount, deposit.expected_units),
        "amount of dollars": (invoice.amount_uusd, deposit.amount_uusd),
        "order": (invoice.order_id, deposit.deposit.hex()),
    }
    for name, (told, wanted) in pairs.items():
        if told != wanted and not (told is None and name in ("amount of dollars", "order")):
            return name
    return None
