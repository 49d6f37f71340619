"""Claims, from signed bytes to signed acknowledgements, many at a time.

Three steps: check the signatures on a pool of threads (the library lets go of the interpreter's lock), decide and write
on the writer's thread, sign what is on disk on the pool again. Claims that arrive while earlier ones are on their way
share the next batch, so one alone waits for nobody and many share a commit; those of one provider share a signature,
too. A batch in which something fails that no claim can be blamed for is tried again one by one: no claim can take
others with it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import structlog

from coordinator.core.claim_checks import Checked, ClaimChecks
from coordinator.core.http import ApiError
from coordinator.core.money import (
    INTERNAL,
    INTERNAL_TEXT,
    MoneyRefused,
    busy,
    of_protocol,
    of_verdict,
    unknown_lease,
    wrong_sender,
)
from coordinator.store.db import Database, StoreClosed
from coordinator.store.ledger import LeaseRow, Ledger, LedgerTransaction
from protocol.claims import CheckedClaim, command_of
from protocol.constants import CLAIMS_MAX
from protocol.envelope import Signer, sign_record
from protocol.errors import RemoteProtocolError
from protocol.ids import NodeId
from protocol.ledger import Refused
from protocol.money_records import ClaimAckRecord, Credited
from protocol.records import Signed

BATCH_CLAIMS_MAX: Final = 128
# One is checked, one is written, one is signed, and one more so that none of them waits.
BATCHES_AT_ONCE: Final = 4
WAITING_CLAIMS_MAX: Final = 8192

Mark = Callable[[sqlite3.Connection], None]
Outcome = Signed | ApiError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A claim, and who brought it. `mark` runs in the transaction of its effect, before it, and may refuse it."""

    sender: NodeId
    signed: Signed
    mark: Mark | None = None


@dataclass(slots=True)
class _Group:
    """Claims of one provider that came together and are answered together."""

    claims: Sequence[ClaimRequest]
    future: asyncio.Future[list[Outcome]]


class ClaimIntake:
    """Takes claims on the event loop; `close` ends its threads."""

    def __init__(self, database: Database, ledger: Ledger, key: Signer, wall_ms: Callable[[], int]) -> None:
        self._database = database
        self._ledger = ledger
        self._key = key
        self._wall_ms = wall_ms
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "claims")
        self._checks = ClaimChecks()
        self._waiting: deque[_Group] = deque()
        self._waiting_claims = 0
        self._batches: dict[asyncio.Task[None], list[_Group]] = {}
        self._is_closed = False

    async def claim(self, request: ClaimRequest) -> Signed:
        """Settle one claim; returns the signed acknowledgement once it is on disk. Raises ApiError."""
        outcome = (await self.claim_many([request]))[0]
        if isinstance(outcome, ApiError):
            raise outcome
        return outcome

    async def claim_many(self, requests: Sequence[ClaimRequest]) -> list[Outcome]:
        """Settle claims of one provider that came together; an outcome for each, in order.

        Those that are acknowledged together have the same acknowledgement, which names each of their leases. Raises
        MoneyRefused when too many wait, StoreClosed, and what `Database.write` raises: then none was kept.
        """
        if self._is_closed:
            raise StoreClosed
        if self._waiting_claims + len(requests) > WAITING_CLAIMS_MAX:
            raise busy()
        loop = asyncio.get_running_loop()
        groups = [
            _Group(requests[start : start + CLAIMS_MAX], loop.create_future())
            for start in range(0, len(requests), CLAIMS_MAX)
        ]
        self._waiting.extend(groups)
        self._waiting_claims += len(requests)
        self._pump()
        if len(groups) == 1:  # nearly always; gathering one costs a tenth of settling it
            return await groups[0].future
        parts = await asyncio.gather(*(group.future for group in groups))
        return [outcome for part in parts for outcome in part]

    def close(self) -> None:
        """End the threads. What is on its way is not waited for: its callers hear StoreClosed, and ask again."""
        self._is_closed = True
        for task, groups in self._batches.items():
            task.cancel()
            _fail(groups, StoreClosed())
        _fail(self._waiting, StoreClosed())
        self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._checks.close()

    # ------------------------------------------------------------ batches

    def _pump(self) -> None:
        while self._waiting and len(self._batches) < BATCHES_AT_ONCE:
            groups = self._next_batch()
            task = asyncio.get_running_loop().create_task(self._run(groups))
            self._batches[task] = groups
            task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        del self._batches[task]
        if not task.cancelled():
            self._pump()

    def _next_batch(self) -> list[_Group]:
        groups = [self._waiting.popleft()]
        claims = len(groups[0].claims)
        while self._waiting and claims + len(self._waiting[0].claims) <= BATCH_CLAIMS_MAX:
            groups.append(self._waiting.popleft())
            claims += len(groups[-1].claims)
        self._waiting_claims -= claims
        return groups

    async def _run(self, groups: list[_Group]) -> None:
        try:
            answers = await self._settle(groups)
        except Exception as error:  # noqa: BLE001 - whoever waits is told, each of them
            _fail(groups, error)
            return
        for group, outcomes in zip(groups, answers, strict=True):
            if not group.future.done():  # else its caller is gone; the claims are settled all the same
                group.future.set_result(outcomes)

    async def _settle(self, groups: list[_Group]) -> list[list[Outcome]]:
        loop = asyncio.get_running_loop()
        requests = [claim for group in groups for claim in group.claims]
        checked = await loop.run_in_executor(self._pool, self._check_all, requests)
        # SPEC 07: The coordinator MUST NOT acknowledge a claim before it is on disk.
        rows = iter(await self._write(requests, checked))
        parts = [[next(rows) for _ in group.claims] for group in groups]
        return await loop.run_in_executor(self._pool, self._acknowledge_all, groups, parts)

    def _check_all(self, requests: list[ClaimRequest]) -> list[CheckedClaim | ApiError]:
        try:
            found = self._checks.check([request.signed for request in requests])
        except Exception:
            log.exception("claims_not_checked", claims=len(requests))
            if len(requests) == 1:
                return [MoneyRefused(500, INTERNAL, INTERNAL_TEXT)]
            return [self._check_all([request])[0] for request in requests]
        return [_of_sender(request, checked) for request, checked in zip(requests, found, strict=True)]

    async def _write(
        self, requests: list[ClaimRequest], checked: list[CheckedClaim | ApiError]
    ) -> list[LeaseRow | ApiError]:
        now_ms = self._wall_ms()

        def write(tx: sqlite3.Connection) -> list[LeaseRow | ApiError]:
            with self._ledger.begin(tx) as ledger:
                return [
                    _decide(tx, ledger, request, claim, now_ms)
                    for request, claim in zip(requests, checked, strict=True)
                ]

        try:
            return await self._database.write(write)
        except (AssertionError, sqlite3.IntegrityError):
            log.exception("claims_failed", claims=len(requests))
        if len(requests) == 1:
            return [MoneyRefused(500, INTERNAL, INTERNAL_TEXT)]
        return [(await self._write([request], [claim]))[0] for request, claim in zip(requests, checked, strict=True)]

    def _acknowledge_all(self, groups: list[_Group], parts: list[list[LeaseRow | ApiError]]) -> list[list[Outcome]]:
        answers: list[list[Outcome]] = [[] for _ in groups]
        for together in _shared(groups):
            outcomes = iter(acknowledge([row for at in together for row in parts[at]], self._key))
            for at in together:
                answers[at] = [next(outcomes) for _ in parts[at]]
        return answers


def _shared(groups: Sequence[_Group]) -> list[list[int]]:
    """Which groups share an acknowledgement, by their place in the batch: those of one provider that fit in one."""
    shared: list[list[int]] = []
    open_of: dict[NodeId, tuple[list[int], int]] = {}
    for at, group in enumerate(groups):
        sender = group.claims[0].sender
        together, claims = open_of.get(sender, ([], CLAIMS_MAX))
        if claims + len(group.claims) > CLAIMS_MAX:
            together, claims = [], 0
            shared.append(together)
        together.append(at)
        open_of[sender] = together, claims + len(group.claims)
    return shared


def _fail(groups: Iterable[_Group], error: Exception) -> None:
    for group in groups:
        if not group.future.done():
            group.future.set_exception(error)


def _of_sender(request: ClaimRequest, checked: Checked) -> CheckedClaim | ApiError:
    if isinstance(checked, RemoteProtocolError):
        return of_protocol(checked)
    # SPEC 07: The coordinator MUST take a claim from nobody but the provider that has signed it.
    return checked if checked.claim.provider == request.sender else wrong_sender("provider")


def _decide(
    tx: sqlite3.Connection,
    ledger: LedgerTransaction,
    request: ClaimRequest,
    checked: CheckedClaim | ApiError,
    now_ms: int,
) -> LeaseRow | ApiError:
    if isinstance(checked, ApiError):
        return checked
    try:
        if request.mark is not None:
            request.mark(tx)
        lease = ledger.lease(checked.claim.lease)
        if lease is None:
            return unknown_lease()
        verdict = ledger.command(command_of(checked, lease), now_ms)
    except ApiError as error:
        return error
    except RemoteProtocolError as error:
        return of_protocol(error)
    if isinstance(verdict, Refused):
        return of_verdict(verdict)
    row = ledger.lease_row(checked.claim.lease)
    assert row is not None
    return row


def acknowledge(rows: Sequence[LeaseRow | ApiError], key: Signer) -> list[Outcome]:
    """One signed word for all of these leases, in place of each. The same claims again get the entries of then."""
    # Of a lease that was claimed on twice the last row says everything.
    credited = {row.lease.lease: _credited(row) for row in rows if not isinstance(row, ApiError)}
    if not credited:
        return [row for row in rows if isinstance(row, ApiError)]
    # SPEC 06: The coordinator SHOULD acknowledge claims that came together with one record, and MUST NOT name leases of
    #   two providers in it.
    assert len({row.lease.provider for row in rows if not isinstance(row, ApiError)}) == 1
    signed = sign_record(ClaimAckRecord(1, key.node, tuple(credited.values()), ()), key)
    return [row if isinstance(row, ApiError) else signed for row in rows]


def _credited(row: LeaseRow) -> Credited:
    return Credited(
        lease=row.lease.lease,
        claimed_uusd=row.lease.claimed_uusd,
        is_closed=int(row.lease.is_closed),
        entry=row.entry,
        head=row.head,
        credited_at_ms=row.at_ms,
    )
