"""The peers that the coordinator lists. It could leave somebody out, never make somebody up: records are signed."""

from __future__ import annotations

from typing import Final

import structlog
import trio

from infernet.coordinator_client import CoordinatorError, fetch_peers
from infernet.discovery.contract import Finds
from infernet.proxy import Proxy
from protocol.records import Signed

log = structlog.get_logger(__name__)

# How often the coordinator is asked whom it knows: as often as it forgets a node that is gone.
ASK_S: Final = 60.0
# ... and how often while it lists nobody or does not answer: whoever waits for a first provider looks at a clock.
ASK_AGAIN_S: Final = 5.0
RECORDS_MAX: Final = 100


class CoordinatorList:
    """A source: asks the coordinator at a URL now and then."""

    name = "coordinator"
    per_minute = 12 * RECORDS_MAX

    def __init__(self, url: str, proxy: Proxy | None = None) -> None:
        self._url = url
        self._proxy = proxy

    async def run(self, finds: Finds) -> None:
        while True:
            records: list[Signed] = []
            try:
                records = await fetch_peers(self._url, RECORDS_MAX, self._proxy)
            except CoordinatorError as error:
                log.info("coordinator.no_peers", reason=str(error))
            for record in records:
                await finds.record(record)
            await trio.sleep(ASK_S if records else ASK_AGAIN_S)
