"""What this node has learnt of providers, and what it tells and hears of them: the machines for that, composed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Protocol

from protocol.directory import Directory
from protocol.envelope import Signer
from protocol.events import Now
from protocol.hearsay import Hearsay
from protocol.ids import NodeId
from protocol.links import Outgoing
from protocol.messages import Reports
from protocol.reporting import Reporting
from protocol.reputation import Reputation
from protocol.router import Listeners, Router
from protocol.routing import NodeTest


class Spread(Protocol):
    """Passes on what is new of these signers, to all neighbours that it concerns but its source."""

    def __call__(
        self, kind: Hearsay, signers: Iterable[NodeId], now: Now, *, source: NodeId | None
    ) -> list[Outgoing]: ...


class Experience:
    """The machines, wired. `reports` is whether this node tells others what it decided and measured."""

    def __init__(
        self,
        signer: Signer,
        directory: Directory,
        rng: random.Random,
        *,
        connected: Callable[[], Iterable[NodeId]],
        is_connected: NodeTest,
        has_address: NodeTest,
        spread: Spread,
        reports: bool,
    ) -> None:
        self._spread = spread
        self.reputation = Reputation(signer.node)
        self.hearsay = Hearsay(signer.node, directory, self.reputation)
        self.reporting = Reporting(signer, rng, is_active=reports, connected=connected)
        self.router = Router(
            signer.node,
            directory,
            self.reputation,
            rng,
            connected=is_connected,
            has_address=has_address,
            listeners=Listeners(self.reporting.decided, self.reporting.ended),
        )

    def next_deadline(self) -> float | None:
        return self.reporting.next_deadline()

    def on_deadline(self, now: Now) -> list[Outgoing]:
        """Say what is due, to the providers concerned and to those who are interested."""
        outgoing: list[Outgoing] = []
        for report in self.reporting.on_deadline(now):
            # SPEC 10: A node MUST send a report itself to each provider that it names and is connected with,
            outgoing += [Outgoing(node, Reports((report.signed,))) for node in report.receivers]
            if report.to_all:
                self.hearsay.keep(report.signed, report.record)
                outgoing += self._spread(self.hearsay, [report.record.asker], now, source=None)
        return outgoing

    def on_reports(self, source: NodeId, message: Reports, now: Now) -> list[Outgoing]:
        """Take what somebody reports, and pass news on. Raises RemoteProtocolError for what nobody honest sends."""
        news, _ = self.hearsay.take(source, message.records, now)
        return self._spread(self.hearsay, news, now, source=source)
