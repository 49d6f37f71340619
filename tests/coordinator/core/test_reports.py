"""Providers on links learn from the coordinator why the public chat went elsewhere, and how it went with them."""

from __future__ import annotations

import pytest

from protocol import reporting
from protocol.hearsay import HOUR_MS
from tests.helpers_coordinator import MODEL, Served, ask, linked, stream, until

pytestmark = pytest.mark.anyio


async def test_a_linked_provider_is_told_how_its_jobs_went(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "REPORT_INTERVAL_S", 0.2)
    async with linked(served) as node:
        answer = (await ask(served, "Why?")).json()
        await stream(served, answer["jobId"])

        hearsay = node.peer.experience.hearsay
        await until(lambda: hearsay.about_us(0).askers, "the coordinator's report")
        heard = hearsay.about_us(node.now().wall_ms - HOUR_MS)
        assert (heard.askers, heard.chosen, heard.jobs_done, heard.jobs_failed) == (1, 1, 1, 0)
        standing = served.app.core.driver.peer.experience.reputation.standing(node.node, MODEL, node.now().wall_ms)
        assert (standing.jobs, standing.has_served) == (pytest.approx(1, abs=0.01), True)
