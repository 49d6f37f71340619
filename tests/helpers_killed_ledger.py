"""What is killed to test the ledger: the real one with its journal, written to directly and through the claims' intake.

Each line of standard output is JSON, and what was acknowledged.
"""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Final

from coordinator.core.intake import ClaimIntake, ClaimRequest
from coordinator.store.db import Database, open_database
from coordinator.store.journal import Journal, JournalFollower
from coordinator.store.ledger import Ledger
from protocol.envelope import SigningKey
from protocol.ids import LeaseId
from protocol.ledger import AnyCommand
from protocol.records import Signed
from tests.helpers_claims import credited_in
from tests.helpers_journaled_ledger import JOURNAL
from tests.helpers_killed_store import acknowledge, keep_writing, open_with_small_log, say
from tests.helpers_ledger import (
    CAP_UUSD,
    COORDINATOR,
    PROVIDER,
    claim_record,
    deposit,
    open_lease,
    signed,
    voucher,
)
from tests.helpers_ledger_workload import LedgerWorkload
from tests.helpers_records import NOW_MS, signing_key

LEASES: Final = 4
ROUNDS: Final = 6
FEE_BPS: Final = 300
#: What there is when every claim has been settled once: a deposit, the leases, and an entry for each claim.
ENTRIES: Final = 1 + LEASES + LEASES * ROUNDS


def write_until_killed(home: str, seed: int, rounds: int, first_step: int = 1) -> None:
    """Write rounds of the workload's steps into the ledger in this directory."""
    workload = LedgerWorkload(first_step)
    asyncio.run(keep_writing(Path(home), workload, seed, rounds, acknowledge, lambda: followed(Path(home))))


def claim_until_killed(home: str) -> None:
    """Open leases and claim on them, round after round, each claim twice at once; from the start, whatever is there.

    Its lines are `[lease, claimed_uusd, entry, head]`, which is what the signed acknowledgements say.
    """
    asyncio.run(_claim(Path(home)))


def followed(home: Path) -> JournalFollower:
    """The journal of the ledger in this directory."""

    def tell(reason: str | None) -> None:
        say(["broken", reason])

    return JournalFollower(Journal(home / JOURNAL), tell, tell)


async def _claim(home: Path) -> None:
    database = open_database(home, open_with_small_log)
    database.follower = followed(home)
    ledger = Ledger()
    intake = ClaimIntake(database, ledger, COORDINATOR, lambda: NOW_MS)
    for command in opening():
        await _carry_out(database, ledger, command)
    for number in range(1, ROUNDS + 1):
        await asyncio.gather(*(_claim_once(intake, lease, number) for lease in range(LEASES) for _ in range(2)))
    intake.close()
    await database.close()


async def _carry_out(database: Database, ledger: Ledger, command: AnyCommand) -> None:
    await database.write(lambda tx: ledger.command(tx, command, NOW_MS))


async def _claim_once(intake: ClaimIntake, lease: int, number: int) -> None:
    word = await intake.claim(ClaimRequest(PROVIDER.node, claim(lease, number)))
    credited = credited_in(word, lease_id(lease), is_checked=False)
    say([lease, credited.claimed_uusd, credited.entry, credited.head.hex()])


def opening() -> list[AnyCommand]:
    """What there must be before anybody can claim."""
    return [
        deposit(),
        *(
            open_lease(lease=lease_id(lease), payer=payer(lease).node, cap_uusd=CAP_UUSD, fee_bps=FEE_BPS)
            for lease in range(LEASES)
        ),
    ]


def lease_id(lease: int) -> LeaseId:
    """The id of a numbered lease."""
    return LeaseId(bytes(31) + bytes([lease]))


@cache
def payer(lease: int) -> SigningKey:
    """Who signs the vouchers of a numbered lease."""
    return signing_key(f"killed ledger's payer {lease}")


def paid_uusd(number: int) -> int:
    """What has been paid in all in this round; no part of the cap divides evenly."""
    return CAP_UUSD * number // (ROUNDS + 1)


@cache
def claim(lease: int, number: int) -> Signed:
    """The provider's claim of this round; the last one gives up the rest."""
    record = voucher(lease=lease_id(lease), payer=payer(lease).node, paid_uusd=paid_uusd(number))
    return signed(
        claim_record(lease=lease_id(lease), voucher=signed(record, payer(lease)), is_final=int(number == ROUNDS)),
        PROVIDER,
    )


# Made once, and not again in each process that is forked to be killed.
for _lease in range(LEASES):
    for _number in range(1, ROUNDS + 1):
        claim(_lease, _number)
