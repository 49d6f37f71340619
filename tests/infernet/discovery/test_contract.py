"""infernet/discovery/contract.py: what a source may cost, and what of it reaches the peer."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from protocol import constants as c
from protocol.events import LearnAddresses, LearnRecord
from protocol.ids import NodeId, peer_id
from protocol.records import Signed
from tests.helpers_discovery import RecordingDriver
from tests.helpers_records import ASKER, PROVIDER

pytestmark = pytest.mark.anyio

HOME = "/ip4/203.0.113.7/tcp/46337"
RECORD = Signed(b"body", bytes(64))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


async def test_what_is_found_reaches_the_peer() -> None:
    driver = RecordingDriver()
    finds = driver.finds()
    await finds.addresses(PROVIDER.node, [HOME, f"{HOME}/p2p/{peer_id(PROVIDER.node)}"], connect=True)
    await finds.record(RECORD)
    assert driver.events == [
        LearnAddresses(PROVIDER.node, (HOME, f"{HOME}/p2p/{peer_id(PROVIDER.node)}"), connect=True),
        LearnRecord(RECORD),
    ]
    assert (finds.found, finds.dropped) == (2, 0)


@pytest.mark.parametrize(
    "address",
    [f"{HOME}/p2p/{peer_id(ASKER.node)}", f"{HOME}/p2p/nonsense", f"{HOME}/p2p/", "/" + "x" * c.ADDRESS_CHARACTERS_MAX],
    ids=["somebody else", "nobody", "empty", "endless"],
)
async def test_an_address_that_leads_elsewhere_or_is_endless_is_left_out(address: str) -> None:
    driver = RecordingDriver()
    finds = driver.finds()
    await finds.addresses(PROVIDER.node, [address])
    assert driver.events == []
    await finds.addresses(PROVIDER.node, [address, HOME])
    assert driver.addresses()[0].addresses == (HOME,)


async def test_a_circuit_leads_to_whoever_is_at_its_end() -> None:
    driver = RecordingDriver()
    finds = driver.finds()
    circuit = f"{HOME}/p2p/{peer_id(ASKER.node)}/p2p-circuit"
    await finds.addresses(PROVIDER.node, [circuit, f"{circuit}/p2p/{peer_id(PROVIDER.node)}", f"{circuit}/p2p/x"])
    assert driver.addresses()[0].addresses == (circuit, f"{circuit}/p2p/{peer_id(PROVIDER.node)}")


async def test_nobody_learns_of_itself_or_of_more_addresses_than_a_node_has() -> None:
    driver = RecordingDriver()
    finds = driver.finds()
    await finds.addresses(ASKER.node, [HOME])
    await finds.addresses(PROVIDER.node, [f"{HOME}{number}" for number in range(20)])
    assert [len(event.addresses) for event in driver.addresses()] == [c.HEARTBEAT_ADDRESSES_MAX]


async def test_a_flood_costs_what_the_source_was_given_and_no_more() -> None:
    driver = RecordingDriver()
    finds = driver.finds(per_minute=30)
    for number in range(10_000):
        await finds.addresses(NodeId(number.to_bytes(32, "big")), [HOME])
    assert (len(driver.events), finds.found, finds.dropped) == (30, 30, 9970)
    await trio.sleep(20)
    for number in range(100):
        await finds.record(Signed(b"%d" % number, bytes(64)))
    assert len(driver.records()) == 10
