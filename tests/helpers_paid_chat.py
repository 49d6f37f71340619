"""Providers on links that want to be paid for the public chat: real peers, real claims, and a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from protocol import events as e
from protocol import link as wire
from protocol.effects import ContinueEngine, Effect, RunEngine, SendClaim
from protocol.ids import LeaseId, RunId
from protocol.records import FreePolicy
from tests.helpers_coordinator import Closed, Script, ScriptedNode, Served, model_offer

PRICE_OUT_UUSD = 1_000_000_000  # a thousandth of a dollar for a token


class PaidNode(ScriptedNode):
    """A scripted node that waits for its money, and claims it over its link."""

    def __init__(self, served: Served, script: Script | None = None, **offer: Any):
        priced = model_offer(price_in_uusd=0, price_out_uusd=PRICE_OUT_UUSD, concurrency=64)
        fields = {
            "models": (priced,),
            "coordinators": (served.key.node,),
            "free_policy": FreePolicy.NOBODY,
            **offer,
        }
        super().__init__(served, script, **fields)
        self.claims: dict[int, LeaseId] = {}
        self.acknowledged: list[wire.ClaimAnswer] = []
        self.may_read: dict[RunId, asyncio.Event] = {}

    def _perform(self, effect: Effect) -> None:
        match effect:
            case ContinueEngine():
                self.may_read[effect.run].set()
            case SendClaim():
                number = len(self.claims) + 1
                self.claims[number] = effect.lease
                self.link.claim(number, (effect.claim,))
                self.wake.set()
            case _:
                super()._perform(effect)

    async def _run(self, run: RunEngine) -> None:
        go_on = self.may_read.setdefault(run.run, asyncio.Event())
        if run.holds:
            self.handle(e.EngineStarted(run.run, 5))
            await go_on.wait()
        await super()._run(run)

    async def _read(self) -> None:
        while True:
            try:
                message = await self.socket.receive()
            except Closed as closed:
                self.closed = closed
                return
            for event in self.link.receive(message):
                if isinstance(event, wire.ClaimAnswer):
                    self.acknowledged.append(event)
                    lease = self.claims[event.number]
                    if event.acknowledgement is not None:
                        self.handle(e.ClaimAnswered(lease, event.acknowledgement))
                elif isinstance(event, wire.Announce | wire.ClaimFrame | wire.Closing):
                    continue
                else:
                    self.handle(event)
            self.wake.set()


@asynccontextmanager
async def paid_linked(served: Served, script: Script | None = None, **offer: Any) -> AsyncIterator[PaidNode]:
    """A provider that wants money, for the length of a block."""
    node = PaidNode(served, script, **offer)
    await node.connect()
    try:
        yield node
    finally:
        await node.close()
