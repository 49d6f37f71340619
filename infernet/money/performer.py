"""The node's money: performs what the peer decides about leases, marks, vouchers and claims, and tells it the outcome.

`perform` never waits. What must be on disk goes through `writer`; requests for leases go over HTTP, claims over
the link where one stands. What was left open by an earlier run is taken up before anything is asked or served.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from infernet.carriers.link import LinkCarrier
from infernet.coordinator_client import CoordinatorError, CoordinatorRefused
from infernet.driver import Driver, MoneyEffect
from infernet.money.claims import Claims
from infernet.money.client import MoneyClient, is_final, read_signed
from infernet.money.store import MoneyStore, accusation
from infernet.money.writer import MoneyWriter
from protocol.constants import LEASE_DEADLINE_S
from protocol.effects import Equivocation, RequestLease, SendClaim, StoreClaimed, StoreClosing, StoreMark
from protocol.envelope import open_record, sign_record
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.events import (
    ClaimAnswered,
    ClaimFailed,
    ClaimNow,
    CloseLease,
    ClosingStored,
    LearnHead,
    LeaseDenied,
    LeaseGranted,
    MarkStored,
)
from protocol.formats.text import clean_line
from protocol.ids import LeaseId, NodeId, short
from protocol.leases import PayerSide, ProviderSide
from protocol.link import ClaimAnswer
from protocol.money_records import CloseRecord
from protocol.records import Signed

# The job that waits for a lease has its own deadline; an answer that comes later still brings a lease for the next one.
LEASE_TIMEOUT_S: Final = LEASE_DEADLINE_S + 5.0
LEASE_RETRY_S: Final = 0.5
REQUESTS_AT_ONCE: Final = 8
# Who wants its lease back is told over the link at once; without one, or when that was missed, so often.
LOOK_INTERVAL_S: Final = 300.0

log = structlog.get_logger(__name__)


class Money:
    """One node's, with one coordinator. `changed` is called when what can be paid or taken has changed."""

    def __init__(
        self,
        store: MoneyStore,
        coordinator: NodeId,
        client: MoneyClient,
        driver: Driver,
        changed: Callable[[], None],
    ) -> None:
        self.coordinator = coordinator
        self._store = store
        self._client = client
        self._driver = driver
        self._changed = changed
        self._writer = MoneyWriter(store, self._on_stored, changed)
        self._claims = Claims(client, self._on_claim_outcome)
        self._nursery: trio.Nursery | None = None
        self._lease_turn = trio.CapacityLimiter(REQUESTS_AT_ONCE)
        self._look_wanted = trio.Event()
        self._elsewhere_uusd = 0
        self._last_error = ""
        self._equivocation = ""

    # ------------------------------------------------------------ life

    async def restore(self) -> None:
        """Take up what an earlier run has left. Raises StoreError."""
        now_ms = self._driver.now().wall_ms
        await trio.to_thread.run_sync(self._store.forget_old, now_ms)
        payers = await trio.to_thread.run_sync(self._store.restore_payers)
        providers = await trio.to_thread.run_sync(self._store.restore_providers, self.coordinator, now_ms)
        totals = self._writer.totals = await trio.to_thread.run_sync(self._store.totals)
        # SPEC 06: A node MUST give nothing for the promises of such a coordinator any more, over restarts too:
        proof = await trio.to_thread.run_sync(self._store.proof_against, self.coordinator)
        if proof is not None:
            self._equivocation = accusation(proof)
            log.critical("money.equivocation", coordinator=short(proof.coordinator), entry=proof.entry)
        for payer in payers:
            self._driver.command(payer)
        for provider in providers:
            self._driver.command(provider)
        self._elsewhere_uusd = max(0, totals.unclaimed_uusd - self._unclaimed_uusd())
        if payers or providers:
            log.info("money.restored", leases_ours=len(payers), leases_given=len(providers))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write, ask and look, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._claims.attach(self._nursery)
                self._nursery.start_soon(self._writer.run)
                self._nursery.start_soon(self._look_for_wishes)
                task_status.started()
        finally:
            self._nursery = None
            self._claims.detach()
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await self._client.aclose()

    def use_link(self, link: LinkCarrier) -> None:
        """Claims go over this link from now on, whenever it stands."""
        self._claims.use_link(link)
        link.money = self

    async def settle(self) -> None:
        """Redeem what can be redeemed, and put on disk what is not there yet; for the end of a node."""
        self._driver.command(ClaimNow())
        await self._writer.flush()
        # The peer must have heard of each answer as well: what it says to it is what goes to disk.
        await self._driver.wait_for(lambda: not self._claims and not self._driver.peer.till.claims_sent)
        await self._writer.flush()

    async def flush(self) -> None:
        """Put on disk what is not there yet."""
        await self._writer.flush()

    # ------------------------------------------------------------ effects

    @property
    def trouble(self) -> str:
        """Why nothing can be paid or taken now, in one line; empty when all is well."""
        return self._writer.trouble or self._equivocation

    def perform(self, effect: MoneyEffect) -> None:
        """Do, or begin to do, what the peer wants."""
        if isinstance(effect, RequestLease):
            if self._nursery is not None and not self.trouble:
                self._nursery.start_soon(self._get_lease, effect)
            else:
                self._driver.post(LeaseDenied(effect.request, self.trouble or "this node is ending", False))
        elif isinstance(effect, SendClaim):
            self._claim(effect)
        elif isinstance(effect, Equivocation):
            self._accuse(effect)
        else:
            self._writer.put(effect)
            if isinstance(effect, StoreClaimed):
                self._note_claimed(effect)

    def _on_stored(self, write: StoreMark | StoreClosing) -> None:
        if isinstance(write, StoreMark):
            self._driver.post(MarkStored(write.lease, write.mark_uusd))
        else:
            # At once: `settle` waits for the claims that are on their way, and this is what sends the last of them.
            self._driver.command(ClosingStored(write.lease, write.paid_uusd))

    async def _get_lease(self, effect: RequestLease) -> None:
        text, final = "the coordinator did not answer in time", False
        with trio.move_on_after(LEASE_TIMEOUT_S):
            pause_s = LEASE_RETRY_S
            while True:
                try:
                    async with self._lease_turn:
                        signed = await self._client.open_lease(effect.signed)
                except CoordinatorError as error:
                    text, final = str(error), is_final(error)
                else:
                    self._driver.post(LeaseGranted(effect.request, signed))
                    return
                if final:
                    break
                # The same request again gets the same lease, if the coordinator had granted one.
                await trio.sleep(pause_s)
                pause_s *= 2
        self._last_error = text
        log.warning("money.no_lease", reason=text)
        self._driver.post(LeaseDenied(effect.request, clean_line(text, 200), final))

    # ------------------------------------------------------------ claims

    def _claim(self, effect: SendClaim) -> None:
        if effect.coordinator != self.coordinator:
            self._driver.post(ClaimFailed(effect.lease, "its coordinator is not the one configured now", False))
            return
        self._claims.send(effect)

    def on_claim_answer(self, answer: ClaimAnswer) -> None:
        """What came over the link."""
        self._claims.on_answer(answer)

    def on_link(self, *, is_up: bool) -> None:
        """What was on its way over a link that is lost has no answer; after a new one there may be news."""
        if is_up:
            self._look_wanted.set()
        else:
            self._claims.on_link_lost()

    def _on_claim_outcome(self, lease: LeaseId, acknowledgement: Signed | None, text: str, *, is_final: bool) -> None:
        if acknowledgement is not None:
            self._driver.post(ClaimAnswered(lease, acknowledgement))
            return
        self._last_error = text
        self._driver.post(ClaimFailed(lease, clean_line(text, 200), is_final))

    def _accuse(self, effect: Equivocation) -> None:
        """The coordinator keeps two ledgers: from now on nothing is given for its promises, and the proof is kept."""
        self._equivocation = accusation(effect)
        log.critical("money.equivocation", coordinator=short(effect.coordinator), entry=effect.entry)
        self._writer.keep_proof(effect)
        self._changed()

    def _note_claimed(self, effect: StoreClaimed) -> None:
        if effect.acknowledgement is not None:
            log.info("money.claimed", lease=effect.lease.hex()[:8], claimed_uusd=effect.claimed_uusd)

    # ------------------------------------------------------------ payers who want the rest back

    async def _look_for_wishes(self) -> None:
        while True:
            try:
                if self._sides():
                    for row in await self._client.open_wishes():
                        self._take_wish(row.get("close_wish"))
                head = await self._client.head()
                if head is not None:
                    self._driver.post(LearnHead(head))
            except CoordinatorError as error:
                log.info("money.nothing_heard", reason=str(error))
            self._look_wanted = trio.Event()
            with trio.move_on_after(LOOK_INTERVAL_S):
                await self._look_wanted.wait()

    def _take_wish(self, encoded: object) -> None:
        record = read_signed(encoded)
        if record is not None:
            self.on_closing(record)

    def on_closing(self, record: Signed) -> None:
        """A payer wants the rest of its lease back, if it is really the payer who says so."""
        try:
            close = open_record(record, CloseRecord)
        except RemoteProtocolError as error:
            log.info("money.bad_close", reason=str(error))
            return
        side = self._sides().get(close.lease)
        if side is not None and side.record.payer == close.payer and not side.is_final_wanted:
            self._driver.post(CloseLease(LeaseId(close.lease)))

    # ------------------------------------------------------------ what the owner wants

    def claim_now(self) -> dict[str, Any]:
        """Redeem everything; gives what that is."""
        wanted_uusd, leases = self._unclaimed_uusd(), sum(side.unclaimed_uusd > 0 for side in self._sides().values())
        self._driver.command(ClaimNow())
        return {"leases": leases, "unclaimed_uusd": wanted_uusd}

    async def close_leases(self, lease: LeaseId | None) -> list[dict[str, Any]]:
        """Give back one lease of ours, or all that no question uses; a row for each.

        Raises LocalProtocolError, StoreError, or CoordinatorError.
        """
        now = self._driver.now()
        # Also those of which the coordinator may not have heard.
        sides = [side for side in self._driver.peer.purse.sides() if lease in (None, side.record.lease)]
        if lease is not None and not sides:
            raise LocalProtocolError("this node holds no such lease")
        if lease is not None and sides[0].job is not None:
            raise LocalProtocolError("a question is being paid from this lease: wait for its answer")
        # SPEC 06: A lease of a coordinator that is not its own any more, or that is paid with another key than it
        #   derives, it leaves alone:
        if lease is not None and sides[0].record.coordinator != self.coordinator:
            raise LocalProtocolError("another coordinator holds this lease: its rest comes back when its time is over")
        rows: list[dict[str, Any]] = []
        refused: CoordinatorRefused | None = None
        for side in sides:
            if side.job is not None or side.record.coordinator != self.coordinator:
                continue
            self._driver.command(CloseLease(LeaseId(side.record.lease)))
            try:
                rows.append(await self._client.close_lease(close_of(side, now.wall_ms)))
            except CoordinatorRefused as error:
                # Of one that it does not know there is nothing to come back; the others are not to wait for that.
                if not is_final(error):
                    raise
                refused = error
            await trio.to_thread.run_sync(self._store.note_closing, LeaseId(side.record.lease))
        if refused is not None and not rows:
            raise refused
        return rows

    async def ask(self, name: str, fields: dict[str, Any]) -> Any:
        """What the coordinator says to one of `TARGETS`. Raises CoordinatorError."""
        return await self._client.ask(name, fields)

    def check_spending(self) -> None:
        """Raises LocalProtocolError where nothing can be paid now."""
        if self.trouble:
            raise LocalProtocolError(f"nothing can be paid now: {self.trouble}")

    # ------------------------------------------------------------ figures

    def status(self) -> dict[str, Any]:
        """Sums in micro-USD; earned is what the coordinator has acknowledged, and nothing else."""
        purse, sides = self._driver.peer.purse.sides(), self._sides()
        return {
            "coordinator_key": self.coordinator.hex(),
            "trouble": self.trouble,
            "last_error": self._last_error,
            "earned_uusd": self._writer.totals.earned_uusd,
            "unclaimed_uusd": self._unclaimed_uusd(),
            "unclaimed_leases": sum(side.unclaimed_uusd > 0 for side in sides.values()),
            "unclaimed_elsewhere_uusd": self._elsewhere_uusd,
            "lost_uusd": self._writer.totals.lost_uusd,
            "leases_given": len(sides),
            "leases_held": len(purse),
            "held_uusd": sum(side.record.cap_uusd for side in purse),
            "signed_uusd": sum(side.signed_uusd for side in purse),
            "waiting_for_disk": self._writer.unwritten,
        }

    def _sides(self) -> dict[LeaseId, ProviderSide]:
        """Leases given to us that are open; the peer remembers closed ones for a while."""
        return {LeaseId(side.record.lease): side for side in self._driver.peer.till.sides() if not side.is_closed}

    def _unclaimed_uusd(self) -> int:
        return sum(side.unclaimed_uusd for side in self._sides().values())


def close_of(side: PayerSide, now_ms: int) -> Signed:
    """What tells the coordinator that no more than was signed already will be signed on this lease."""
    close = CloseRecord(
        version=1,
        lease=side.record.lease,
        payer=side.signer.node,
        paid_uusd=side.signed_uusd,
        closed_at_ms=now_ms,
        extensions=(),
    )
    return sign_record(close, side.signer)
