"""Claims on their way to the coordinator: over the link, as many together as the peer wants at once, or over HTTP.

Each ends in one answer: what the coordinator has signed, or why there is nothing. A claim that takes the place of an
earlier one on the same lease ends that one without a word.
"""

from __future__ import annotations

import itertools
from typing import Final, Protocol

import trio

from infernet.carriers.link import LinkCarrier
from infernet.coordinator_client import CoordinatorError
from infernet.money.client import FINAL_CLAIM_CODES, MoneyClient, is_final
from protocol.effects import SendClaim
from protocol.ids import LeaseId
from protocol.link import LINK_CLAIMS_MAX, ClaimAnswer, split_claims
from protocol.records import Signed

CLAIM_TIMEOUT_S: Final = 25.0
REQUESTS_AT_ONCE: Final = 8


class ClaimOutcome(Protocol):
    """Hears how a claim ended; `acknowledgement` is None when it failed, and `text` says why."""

    def __call__(self, lease: LeaseId, acknowledgement: Signed | None, text: str, *, is_final: bool) -> None: ...


class Claims:
    """Those of one node. `send` never waits; `attach` gives it tasks to run in, `detach` takes them away."""

    def __init__(self, client: MoneyClient, on_outcome: ClaimOutcome) -> None:
        self._client = client
        self._on_outcome = on_outcome
        self._link: LinkCarrier | None = None
        self._nursery: trio.Nursery | None = None
        self._turn = trio.CapacityLimiter(REQUESTS_AT_ONCE)
        self._numbers = itertools.count(1)
        # Wanted since the last frames; and on their way over the link, by the number of their frame, with None for a
        # claim that another has taken the place of.
        self._wanted: dict[LeaseId, SendClaim] = {}
        self._by_number: dict[int, list[LeaseId | None]] = {}
        self._by_http = 0

    def __len__(self) -> int:
        """How many have no answer yet."""
        return len(self._wanted) + self._by_http + sum(lease is not None for lease in self._leases_on_link())

    def attach(self, nursery: trio.Nursery) -> None:
        """Send from now on."""
        self._nursery = nursery

    def detach(self) -> None:
        """The node is ending: what is wanted from now on fails at once."""
        self._nursery = None

    def use_link(self, link: LinkCarrier) -> None:
        """Claims go over this link from now on, whenever it stands."""
        self._link = link

    def send(self, effect: SendClaim) -> None:
        """Bring this claim to the coordinator."""
        self._forget(effect.lease)
        if self._nursery is None:
            self._on_outcome(effect.lease, None, "this node is ending", is_final=False)
            return
        if not self._wanted:
            self._nursery.start_soon(self._send_wanted)
        self._wanted[effect.lease] = effect

    def _forget(self, lease: LeaseId) -> None:
        """The peer gave up waiting for the answer to an earlier one."""
        self._wanted.pop(lease, None)
        for leases in self._by_number.values():
            if lease in leases:
                leases[leases.index(lease)] = None

    def _leases_on_link(self) -> list[LeaseId | None]:
        return [lease for leases in self._by_number.values() for lease in leases]

    async def _send_wanted(self) -> None:
        """Send what the peer has wanted in one go."""
        wanted, self._wanted = list(self._wanted.values()), {}
        room = max(0, LINK_CLAIMS_MAX - len(self._leases_on_link())) if self._link is not None else 0
        sent = 0
        for claims in split_claims([effect.claim for effect in wanted[:room]]):
            number = next(self._numbers)
            if self._link is None or not self._link.claim(number, claims):
                break
            self._by_number[number] = [effect.lease for effect in wanted[sent : sent + len(claims)]]
            sent += len(claims)
        assert self._nursery is not None
        for effect in wanted[sent:]:
            self._by_http += 1
            self._nursery.start_soon(self._send_over_http, effect)

    async def _send_over_http(self, effect: SendClaim) -> None:
        acknowledgement, text, is_over = None, "the coordinator did not answer in time", False
        try:
            with trio.move_on_after(CLAIM_TIMEOUT_S):
                async with self._turn:
                    acknowledgement = await self._client.claim(effect.claim)
        except CoordinatorError as error:
            text, is_over = str(error), is_final(error, FINAL_CLAIM_CODES)
        finally:
            self._by_http -= 1
        self._on_outcome(effect.lease, acknowledgement, text, is_final=is_over)

    def on_answer(self, answer: ClaimAnswer) -> None:
        """What came over the link."""
        leases = self._by_number.pop(answer.number, [])
        refusals = {refusal.position: refusal for refusal in answer.refusals}
        for position, lease in enumerate(leases):
            if lease is None:
                continue
            refusal = refusals.get(position)
            if refusal is not None:
                text = f"the coordinator refused: {refusal.text}"
                self._on_outcome(lease, None, text, is_final=refusal.code in FINAL_CLAIM_CODES)
            else:
                self._on_outcome(lease, answer.acknowledgement, "the coordinator's answer is empty", is_final=False)

    def on_link_lost(self) -> None:
        """What was on its way over it has no answer."""
        lost, self._by_number = self._leases_on_link(), {}
        for lease in lost:
            if lease is not None:
                self._on_outcome(lease, None, "the link to the coordinator was lost", is_final=False)
