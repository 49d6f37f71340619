"""Leases, claims, closes and complaints: signed requests in, what the ledger says to them out.

Who has sent a request is known before (`auth`, or the link); here it is checked that it is theirs. `mark` runs in the
transaction of the effect, before it: that is where an envelope is used up. Once the ledger does not agree with itself
(`stopped_because`), all of this is refused and nothing else is; so it is for as long as the journal's disk is full
(`paused_because`).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from msgspec.structs import replace

from coordinator.config import Config
from coordinator.core.http import ApiError
from coordinator.core.intake import ClaimIntake, ClaimRequest, Mark, Outcome
from coordinator.core.money import (
    CONFLICTING_REQUEST,
    TOO_MANY_COMPLAINTS,
    TOO_MANY_LEASES,
    MoneyRefused,
    of_protocol,
    of_verdict,
    stopped,
    unknown_lease,
    wrong_sender,
)
from coordinator.store import leases
from coordinator.store.db import Database
from coordinator.store.ledger import Ledger
from protocol.claims import Terms, check_close, lease_id, lease_record, open_lease_request
from protocol.codec import decode_record
from protocol.envelope import RecordType, Signer, open_record, sign_record
from protocol.errors import RemoteProtocolError
from protocol.ids import NodeId
from protocol.ledger import Budget, Lease, OpenLease, Refused, available
from protocol.money_records import CloseRecord, ComplaintRecord, LeaseRequestRecord
from protocol.records import Signed

# Each is a row and an account; who needs more waits until some are released.
OPEN_LEASES_PER_CLIENT_MAX: Final = 1000
SPONSOR_PREFIX: Final = "sponsor:"
DAY_MS: Final = 24 * 60 * 60 * 1000

OnCloseWish = Callable[[NodeId, Signed], None]

log = structlog.get_logger(__name__)


class Settlement:
    """What the core does about money. `on_close_wish` hears of each wish, for the provider."""

    def __init__(
        self, config: Config, key: Signer, database: Database, wall_ms: Callable[[], int], on_close_wish: OnCloseWish
    ) -> None:
        self.ledger = Ledger()
        self.terms = Terms(fee_bps=config.fee_bps)
        self.stopped_because: str | None = None
        self.paused_because: str | None = None
        self._sponsor_budget_uusd = config.sponsor_budget_uusd
        self._key = key
        self._database = database
        self._wall_ms = wall_ms
        self._on_close_wish = on_close_wish
        self._intake = ClaimIntake(database, self.ledger, key, wall_ms)

    def stop_because(self, reason: str) -> None:
        """Refuse everything about money from now on, until a restart finds the ledger in order."""
        log.critical("ledger_stopped", reason=reason)
        self.stopped_because = self.stopped_because or reason

    def pause_because(self, reason: str | None) -> None:
        """Refuse everything about money for as long as there is a reason, which None takes back."""
        log.error("ledger_paused", reason=reason) if reason is not None else log.info("ledger_goes_on")
        self.paused_because = reason

    @property
    def is_running(self) -> bool:
        """Whether money moves: neither stopped nor paused. On the writer's thread this holds for what is on disk."""
        return self.stopped_because is None and self.paused_because is None

    def check_running(self) -> None:
        """Raises MoneyRefused when the ledger has been stopped, or paused."""
        # SPEC 07: The coordinator MUST stop answering about money, and nothing else, when its ledger does not agree
        #   with itself.
        if not self.is_running:
            raise stopped()

    def _check_still_running(self) -> None:
        """Of an entry that was made before, and is not in the journal, nobody is told either. Raises MoneyRefused."""
        self.check_running()

    @property
    def downtime_ms(self) -> int:
        """How long claims were impossible in all, as far as it has been counted."""
        return self.ledger.downtime_ms

    def close(self) -> None:
        """End the threads."""
        self._intake.close()

    # ------------------------------------------------------------ leases

    async def open_lease(self, sender: NodeId, signed: Signed, mark: Mark | None = None) -> Signed:
        """Lock money for a provider; returns the signed lease, the same bytes for the same request. Raises ApiError."""
        self.check_running()
        now_ms = self._wall_ms()
        asked = await asyncio.to_thread(self._check_request, signed, now_ms)

        def write(tx: sqlite3.Connection) -> Signed | ApiError:
            if mark is not None:
                mark(tx)
            # SPEC 07: The coordinator MUST answer a request for a lease that it has granted with the same bytes,
            #   however old the request is, and MUST refuse another request of that client under the same number.
            before = leases.find_record(tx, lease_id(signed.body), sender)
            if before is not None:
                return before
            return asked if isinstance(asked, ApiError) else self._open(tx, sender, *asked)

        # SPEC 06: The coordinator MUST have an entry on disk before it answers for it.
        answer = await self._database.write(write)
        self._check_still_running()
        return _raised(answer)

    def _check_request(self, signed: Signed, now_ms: int) -> tuple[LeaseRequestRecord, OpenLease] | ApiError:
        try:
            return open_lease_request(signed, self._key.node, self.terms, now_ms)
        except RemoteProtocolError as error:
            return of_protocol(error)

    def _open(
        self, tx: sqlite3.Connection, sender: NodeId, request: LeaseRequestRecord, command: OpenLease
    ) -> Signed | ApiError:
        now_ms = self._wall_ms()
        if request.client != sender:
            return wrong_sender("client")
        if leases.is_request_used(tx, sender, request.request):
            return MoneyRefused(409, CONFLICTING_REQUEST, "another lease was asked for under this number")
        if leases.count_open(tx, available(sender)) >= OPEN_LEASES_PER_CLIENT_MAX:
            return MoneyRefused(429, TOO_MANY_LEASES, "too many leases are open; wait until some are released")
        with self.ledger.begin(tx) as ledger:
            if request.client == self._key.node:
                # The first of a day may come before the upkeep has renewed the budget: it need not wait for that.
                command = replace(command, day=now_ms // DAY_MS)
                if self._sponsor_budget_uusd:
                    ledger.command(Budget(now_ms // DAY_MS, self._sponsor_budget_uusd), now_ms)
            verdict = ledger.command(command, now_ms)
            entry = ledger.head.entry
        if isinstance(verdict, Refused):
            return of_verdict(verdict)
        signed = sign_record(lease_record(request, command, self._key.node, entry, now_ms), self._key)
        leases.put_record(tx, command.lease, sender, request.request, signed)
        return signed

    async def wish_closed(self, sender: NodeId, signed: Signed, mark: Mark | None = None) -> Lease:
        """Note that a lease's payer wants no more of it, and tell the provider. Raises ApiError."""
        self.check_running()
        close = _decoded(signed, CloseRecord)
        now_ms = self._wall_ms()

        def write(tx: sqlite3.Connection) -> Lease | ApiError:
            if mark is not None:
                mark(tx)
            with self.ledger.begin(tx) as ledger:
                lease = ledger.lease(close.lease)
            # Who has not paid for a lease is not told that it exists.
            if lease is None or not self._has_paid(sender, lease):
                return unknown_lease()
            try:
                check_close(signed, lease)
            except RemoteProtocolError as error:
                return of_protocol(error)
            if not lease.is_closed:
                leases.put_close_wish(tx, lease.lease, signed, now_ms)
            return lease

        lease = await self._database.write(write)
        if isinstance(lease, ApiError):
            raise lease
        # SPEC 06: The coordinator MUST pass the wish of a payer to close a lease on to its provider.
        if not lease.is_closed:
            self._on_close_wish(lease.provider, signed)
        return lease

    def _has_paid(self, sender: NodeId, lease: Lease) -> bool:
        return lease.account == available(sender) or (
            sender == self._key.node and lease.account.startswith(SPONSOR_PREFIX)
        )

    async def complain(self, sender: NodeId, signed: Signed, mark: Mark | None = None) -> None:
        """Keep what one side of a lease says of the other; no money moves. Raises ApiError."""
        self.check_running()
        now_ms = self._wall_ms()
        try:
            complaint = open_record(signed, ComplaintRecord)
        except RemoteProtocolError as error:
            raise of_protocol(error) from None

        def write(tx: sqlite3.Connection) -> ApiError | None:
            if mark is not None:
                mark(tx)
            with self.ledger.begin(tx) as ledger:
                lease = ledger.lease(complaint.lease)
            # The provider knows its client by the payer's key alone, so that is who complains for the client.
            if lease is None or not (
                complaint.complainant == lease.provider == sender
                or (complaint.complainant == lease.payer and self._has_paid(sender, lease))
            ):
                return unknown_lease()
            if not leases.put_complaint(tx, complaint, signed, now_ms):
                return MoneyRefused(429, TOO_MANY_COMPLAINTS, "there are many complaints about this lease already")
            return None

        refused = await self._database.write(write)
        if refused is not None:
            raise refused

    # ------------------------------------------------------------ claims

    async def claim(self, sender: NodeId, signed: Signed, mark: Mark | None = None) -> Signed:
        """Credit a provider; returns the signed acknowledgement once it is on disk. Raises ApiError."""
        self.check_running()
        word = await self._intake.claim(ClaimRequest(sender, signed, mark))
        self._check_still_running()
        return word

    async def claim_many(self, sender: NodeId, claims: Sequence[Signed]) -> list[Outcome]:
        """The same for claims that came together: for each why not, or the acknowledgement of all that are credited.

        Raises as `claim` does.
        """
        self.check_running()
        words = await self._intake.claim_many([ClaimRequest(sender, signed) for signed in claims])
        self._check_still_running()
        return words


def _decoded(signed: Signed, cls: type[RecordType]) -> RecordType:
    """What it says, before anybody has checked who says it."""
    try:
        return decode_record(signed.body, cls)
    except RemoteProtocolError as error:
        raise of_protocol(error) from None


def _raised(answer: Signed | ApiError) -> Signed:
    if isinstance(answer, ApiError):
        raise answer
    return answer
