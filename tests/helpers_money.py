<<<<<<< HEAD
"""Signed records about money, as asker, provider and coordinator would sign them; and what the money store is given."""

from __future__ import annotations

from typing import Any

from protocol.effects import StoreClaimed, StoreMark, StoreVoucher
from protocol.envelope import sign_record
from protocol.ids import LeaseId
from protocol.money_records import ClaimAckRecord, LeaseRecord, VoucherRecord
from protocol.records import Signed
from tests.helpers_records import ASKER, JOB, NOW_MS, PROVIDER, signing_key

BANK = signing_key("bank")
CAP_UUSD = 50_000


def request_of(number: int) -> bytes:
    """The number of the request for a numbered lease, from which its payer's key follows."""
    return number.to_bytes(16, "big")


def lease_of(number: int) -> LeaseId:
    """The id of a numbered lease."""
    return LeaseId(number.to_bytes(32, "big"))


def lease(number: int = 1, **changes: Any) -> Signed:
    """A lease that the bank has signed: of ASKER for PROVIDER."""
    fields: dict[str, Any] = {
        "version": 1,
        "coordinator": BANK.node,
        "lease": lease_of(number),
        "payer": ASKER.payer(request_of(number)).node,
        "provider": PROVIDER.node,
        "relay": None,
        "relay_bps": 0,
        "fee_bps": 0,
        "cap_uusd": CAP_UUSD,
        "model": "tiny-135m",
        "fingerprint": bytes(32),
        "price_in_uusd": 1_000_000,
        "price_out_uusd": 2_000_000,
        "price_job_uusd": 0,
        "entry": number,
        "issued_at_ms": NOW_MS,
        "serve_until_ms": NOW_MS + 86_400_000,
        "claim_by_ms": NOW_MS + 90_000_000,
        "extensions": (),
    }
    return sign_record(LeaseRecord(**(fields | changes)), BANK)


def voucher(paid_uusd: int, number: int = 1) -> Signed:
    """A voucher of the payer of a numbered lease."""
    key = ASKER.payer(request_of(number))
    record = VoucherRecord(1, lease_of(number), key.node, paid_uusd, paid_uusd, JOB, 1, 1, 1, bytes(32))
    return sign_record(record, key)


def acknowledgement(claimed_uusd: int, number: int = 1, *, is_closed: bool = False) -> Signed:
    """The bank's word for a claim."""
    record = ClaimAckRecord(1, BANK.node, lease_of(number), claimed_uusd, int(is_closed), number, bytes(32), NOW_MS, ())
    return sign_record(record, BANK)


def mark(mark_uusd: int, number: int = 1, paid_uusd: int | None = None) -> StoreMark:
    """What an asker puts on disk before it signs."""
    signed = voucher(paid_uusd, number) if paid_uusd is not None else None
    return StoreMark(lease_of(number), request_of(number), lease(number), mark_uusd, signed)


def paid(paid_uusd: int, number: int = 1, **changes: Any) -> StoreVoucher:
    """What a provider puts on disk when a better voucher has come."""
    signed = voucher(paid_uusd, number) if paid_uusd else None
    return StoreVoucher(lease_of(number), lease(number, **changes), signed, None, paid_uusd)


def claimed(claimed_uusd: int, number: int = 1, *, is_closed: bool = False) -> StoreClaimed:
    """What a provider puts on disk when the coordinator has answered."""
    word = acknowledgement(claimed_uusd, number, is_closed=is_closed)
    return StoreClaimed(lease_of(number), claimed_uusd, is_closed, word)
=======
"""Clients, payers and providers at a served coordinator: they sign what moves money and send it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import httpx

from protocol import codec
from protocol.claims import lease_id
from protocol.envelope import SigningKey, open_record, sign_record
from protocol.ids import JobId, LeaseId, NodeId
from protocol.ledger import Deposit, Entry, Lease
from protocol.money_records import (
    ClaimAckRecord,
    ClaimRecord,
    CloseRecord,
    ComplaintKind,
    ComplaintRecord,
    LeaseRecord,
    LeaseRequestRecord,
    VoucherRecord,
)
from protocol.records import Signed
from tests.helpers_coordinator import NodeClient, Served, make_key

JOB = JobId(b"j" * 16)
_numbers = itertools.count(1)


def read_signed(answer: httpx.Response) -> Signed:
    """The signed record in an answer."""
    assert answer.status_code == 200, answer.text
    return codec.decode_struct(answer.content, Signed, codec.CONTROL_LIMITS)


def refused(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, which always has a sentence, too."""
    fields = answer.json()
    assert fields["error"]
    return answer.status_code, fields["code"]


def sign_voucher(payer: SigningKey, lease: LeaseId, paid_uusd: int, **changes: Any) -> Signed:
    """The payer owes so much in all."""
    fields = {
        "version": 1,
        "lease": lease,
        "payer": payer.node,
        "sequence": 1,
        "paid_uusd": paid_uusd,
        "job": JOB,
        "attempt": 1,
        "chunks": 1,
        "output_tokens": 8,
        "running_hash": bytes(32),
        "extensions": (),
        **changes,
    }
    return sign_record(VoucherRecord(**fields), payer)


def sign_claim(
    provider: SigningKey, lease: LeaseId, voucher: Signed | None, now_ms: int, *, is_final: int = 0
) -> Signed:
    """The provider redeems a voucher."""
    return sign_record(ClaimRecord(1, provider.node, lease, voucher, None, is_final, now_ms, ()), provider)


async def deposit(served: Served, node: NodeId, credit_uusd: int, payment: str | None = None) -> None:
    """Credit a key, as the gateway would."""
    command = Deposit(payment or f"payment-{next(_numbers)}", node, "BTC", 1, credit_uusd, 0)
    core = served.app.core
    verdict = await core.database.write(lambda tx: core.settlement.ledger.command(tx, command, core.wall_ms()))
    assert isinstance(verdict, Entry)


async def balance(served: Served, account: str) -> int:
    """What is in an account on disk."""
    async with served.app.core.database.reader() as reader:
        rows = await reader.execute_fetchall("SELECT balance FROM accounts WHERE name = ?", (account,))
    return next((int(row[0]) for row in rows), 0)


@dataclass
class Market:
    """A client with money, a provider, and the leases between them."""

    served: Served
    client: NodeClient
    provider: NodeClient
    payers: dict[LeaseId, SigningKey] = field(default_factory=dict)

    @classmethod
    async def opened(cls, served: Served, credit_uusd: int = 1_000_000) -> Market:
        """Both are registered, and the client has made a deposit."""
        market = cls(served, NodeClient(served), NodeClient(served))
        for node, role in ((market.client, "client"), (market.provider, "provider")):
            assert (await node.register(role=role)).status_code == 200
        await deposit(served, market.client.key.node, credit_uusd)
        return market

    def moved(self, served: Served) -> Market:
        """The same keys at a coordinator that was started again."""
        return Market(served, NodeClient(served, self.client.key), NodeClient(served, self.provider.key), self.payers)

    def request(self, payer: SigningKey | None = None, **changes: Any) -> Signed:
        """What the client signs to get a lease of 100,000."""
        payer = payer or make_key()
        fields = {
            "version": 1,
            "coordinator": self.served.key.node,
            "request": next(_numbers).to_bytes(16, "big"),
            "client": self.client.key.node,
            "payer": payer.node,
            "provider": self.provider.key.node,
            "relay": None,
            "relay_bps": 0,
            "cap_uusd": 100_000,
            "model": "m",
            "fingerprint": bytes(32),
            "price_in_uusd": 1,
            "price_out_uusd": 1,
            "price_job_uusd": 0,
            "serve_s": 600,
            "created_at_ms": self.served.clock(),
            "extensions": (),
            **changes,
        }
        signed = sign_record(LeaseRequestRecord(**fields), self.client.key)
        self.payers[lease_id(signed.body)] = payer
        return signed

    async def ask_for(self, request: Signed, sender: NodeClient | None = None) -> httpx.Response:
        """POST a request for a lease."""
        sender = sender or self.client
        return await sender.post("leases/open", codec.encode_value(request), "application/vnd.infernet.lease-request")

    async def lease(self, **changes: Any) -> LeaseId:
        """An open lease."""
        return open_record(read_signed(await self.ask_for(self.request(**changes))), LeaseRecord).lease

    def claim_of(self, lease: LeaseId, paid_uusd: int | None, *, is_final: int = 0) -> Signed:
        """A good claim; None claims nothing."""
        voucher = sign_voucher(self.payers[lease], lease, paid_uusd) if paid_uusd is not None else None
        return sign_claim(self.provider.key, lease, voucher, self.served.clock(), is_final=is_final)

    async def send(self, claim: Signed, sender: NodeClient | None = None) -> httpx.Response:
        """POST a claim."""
        return await (sender or self.provider).post("claims", codec.encode_value(claim), "application/msgpack")

    async def claim(self, lease: LeaseId, paid_uusd: int | None, *, is_final: int = 0) -> ClaimAckRecord:
        """POST a good claim, and read what the coordinator signed."""
        answer = await self.send(self.claim_of(lease, paid_uusd, is_final=is_final))
        return open_record(read_signed(answer), ClaimAckRecord)

    def close_of(self, lease: LeaseId, payer: SigningKey | None = None) -> Signed:
        """The payer wants no more of it."""
        payer = payer or self.payers[lease]
        return sign_record(CloseRecord(1, lease, payer.node, 0, self.served.clock(), ()), payer)

    def complaint_of(self, lease: LeaseId, complainant: SigningKey, attempt: int = 1) -> Signed:
        """One side is not content."""
        record = ComplaintRecord(
            *(1, complainant.node, lease, JOB, attempt, ComplaintKind.STALLED, bytes(32), self.served.clock(), ())
        )
        return sign_record(record, complainant)

    async def row(self, lease: LeaseId) -> Lease:
        """The lease in the ledger."""
        core = self.served.app.core

        def read(tx: Any) -> Lease | None:
            with core.settlement.ledger.begin(tx) as ledger:
                return ledger.lease(lease)

        found = await core.database.write(read)
        assert found is not None
        return found
>>>>>>> ledger
