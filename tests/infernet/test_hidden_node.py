"""A node that is not to be found: it dials out, its record names no address, and it earns all the same."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from infernet.node import Node
from protocol.effects import JobDone
from protocol.records import Outcome
from tests.helpers_engine import PacedEngine
from tests.helpers_node import ask, config_of_nobody, key_of, question, settle, world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


async def test_a_provider_that_only_dials_out_does_the_jobs_of_those_it_is_connected_to() -> None:
    async with world() as w:
        asker = await w.start(None)
        provider = await w.start(PacedEngine(answer_tokens=20), asker, advertise=False)
        await settle(asker, lambda: asker.status()["records"] >= 1)
        events = await ask(asker, question(max_tokens=10))
        done = events[-1]
        assert isinstance(done, JobDone)
        assert (done.receipt.provider, done.receipt.outcome) == (provider.node_id, Outcome.LENGTH)
        (seen,) = [peer for peer in asker.peers() if peer["node_id"] == provider.node_id.hex()]
        assert seen["addresses"] == provider.status()["advertised_addresses"] == []


@pytest.mark.parametrize("advertise", [True, False])
async def test_what_it_tells_a_coordinator_names_no_address(advertise: bool) -> None:
    config = config_of_nobody(advertise=advertise, address="node.example.org", p2p_port=46400)
    told = Node(config, key_of(1), transport=None, engine=None)._registration()
    assert (told.get("address"), told.get("port")) == (("node.example.org", 46400) if advertise else (None, None))
