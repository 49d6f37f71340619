"""Where a dial may go. The corpus of S6 is in tests/helpers_addresses.py."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import trio
import trio.testing

from infernet.transport import dial_guard
from infernet.transport.addresses import parse_tcp
from infernet.transport.contract import DialFailed
from infernet.transport.dial_guard import ADDRESSES_OF_NAME_MAX, CONNECT_TIMEOUT_S, AddressRefused, DialGuard, Resolver
from infernet.transport.libp2p_host import Libp2pTransport
from protocol.constants import ADDRESS_CHARACTERS_MAX
from protocol.ids import NodeId, peer_id
from tests.helpers_addresses import GLOBAL, PORT, Names, allowed, forbidden
from tests.helpers_transport import PATIENCE_S, PROTOCOLS, RecordingHandler, identity, secret

pytestmark = pytest.mark.anyio

PEER, RELAY = identity(2), identity(3)


class Wire:
    """Test double: writes down where it is to connect to, and never does."""

    def __init__(self) -> None:
        self.dialled: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> trio.SocketStream:
        self.dialled.append((host, port))
        raise ConnectionRefusedError("nobody there")


@asynccontextmanager
async def node(wire: Wire, *, allow_private: bool = False) -> AsyncIterator[Libp2pTransport]:
    """A node that listens nowhere and has nothing but the wire to dial with."""
    transport = Libp2pTransport(
        secret(1),
        agent="x",
        protocols=PROTOCOLS,
        randomness=random.Random(1),
        listen_hosts=(),
        dial_guard=DialGuard(allow_private=allow_private, resolve=Names(), connect=wire),
    )
    with trio.fail_after(PATIENCE_S * 3):
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run, RecordingHandler())
            yield transport
            nursery.cancel_scope.cancel()


async def dial(transport: Libp2pTransport, peer: NodeId, address: str) -> str:
    """Try one address; gives why that failed."""
    with pytest.raises(DialFailed) as failure:
        await transport.dial(peer, [address])
    return next(iter(failure.value.reasons.values()), "")


# ---------------------------------------------------------------- S6


async def test_r10_no_way_of_writing_an_address_leads_out_of_the_internet() -> None:
    """R10: addresses were compared as text, and names that lead inside were not looked up."""
    corpus = forbidden(PEER, RELAY)
    assert len(corpus) >= 500
    wire = Wire()
    async with node(wire) as transport:
        for address in corpus:
            assert await dial(transport, PEER, address)
    assert wire.dialled == []


async def test_the_addresses_of_the_internet_are_dialled() -> None:
    wire = Wire()
    async with node(wire) as transport:
        for address in allowed():
            await dial(transport, PEER, address)
    assert len(wire.dialled) == len(allowed())
    for host, port in wire.dialled:
        assert port >= 1024
        assert ip_address(host).is_global or host == "64:ff9b::808:404"


async def test_the_corpus_would_be_dialled_without_the_guard() -> None:
    """Where private addresses are allowed, what is an address at all is dialled: the refusals above are the guard's."""
    wire = Wire()
    async with node(wire, allow_private=True) as transport:
        for address in forbidden(PEER, RELAY):
            await dial(transport, PEER, address)
    assert len(wire.dialled) > 300


async def test_a_name_is_looked_up_once_for_each_dial_and_the_checked_address_is_dialled() -> None:
    wire, names = Wire(), Names()
    guard = DialGuard(allow_private=False, resolve=names, connect=wire)
    address = parse_tcp(f"/dns/rebinding.example/tcp/{PORT}")
    for turn in range(20):
        with pytest.raises(AddressRefused if turn % 2 else OSError):
            await guard.connect(address)
    assert len(names.asked) == 20
    assert wire.dialled == [(GLOBAL[0], PORT)] * 10


# ---------------------------------------------------------------- what the owner gave


@pytest.mark.parametrize(
    ("given", "dialled"),
    [
        (f"/ip4/192.168.1.5/tcp/{PORT}", ("192.168.1.5", PORT)),
        ("/ip4/127.0.0.1/tcp/80", ("127.0.0.1", 80)),
        (f"/ip6/fd00::1/tcp/{PORT}/p2p/{peer_id(PEER)}", ("fd00::1", PORT)),
    ],
)
async def test_what_the_owner_gave_is_dialled(given: str, dialled: tuple[str, int]) -> None:
    wire = Wire()
    async with node(wire) as transport:
        assert "Internet" in await dial(transport, PEER, f"/ip4/10.9.9.9/tcp/{PORT}")
        transport.permit(given)
        await dial(transport, PEER, given)
        assert "Internet" in await dial(transport, PEER, "/ip4/192.168.1.6/tcp/4001"), "that, and no other"
    assert wire.dialled == [dialled]


async def test_a_name_that_the_owner_gave_may_lead_inside_and_its_port_counts() -> None:
    wire = Wire()
    guard = DialGuard(allow_private=False, resolve=Names(), connect=wire)
    guard.permit(f"/dns/LOCALHOST/tcp/{PORT}")
    with pytest.raises(OSError, match="nobody there"):
        await guard.connect(parse_tcp(f"/dns/localhost/tcp/{PORT}"))
    assert {host for host, _ in wire.dialled} == {"::1", "127.0.0.1", "169.254.169.254"}
    with pytest.raises(AddressRefused):
        await guard.connect(parse_tcp("/dns/localhost/tcp/4001"))


async def test_a_circuit_that_the_owner_gave_permits_its_relay() -> None:
    guard = DialGuard(allow_private=False, connect=Wire())
    guard.permit(f"/ip4/10.0.0.1/tcp/{PORT}/p2p/{peer_id(RELAY)}/p2p-circuit/p2p/{peer_id(PEER)}")
    assert await guard.endpoints(parse_tcp(f"/ip4/10.0.0.1/tcp/{PORT}")) == [ip_address("10.0.0.1")]


async def test_what_is_no_address_permits_nothing_and_permissions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial_guard, "PERMITTED_MAX", 4)
    guard = DialGuard(allow_private=False)
    guard.permit("nonsense")
    guard.permit("/memory/1")
    for last in range(10):
        guard.permit(f"/ip4/10.0.0.{last}/tcp/{PORT}")
    with pytest.raises(AddressRefused):
        await guard.endpoints(parse_tcp(f"/ip4/10.0.0.5/tcp/{PORT}"))
    assert await guard.endpoints(parse_tcp(f"/ip4/10.0.0.9/tcp/{PORT}"))


# ---------------------------------------------------------------- names


async def test_of_many_addresses_of_a_name_a_few_are_tried_both_families_in_turn() -> None:
    async def resolve(_: str) -> list[str]:
        return ["2606:4700::1", "2606:4700::2", "2606:4700::3", "2606:4700::1", "8.8.8.8", "8.8.4.4", "8.8.1.1"]

    guard = DialGuard(allow_private=False, resolve=resolve)
    found = await guard.endpoints(parse_tcp(f"/dns/x.example/tcp/{PORT}"))
    assert [str(ip) for ip in found] == ["2606:4700::1", "8.8.8.8", "2606:4700::2", "8.8.4.4"]
    assert len(found) == ADDRESSES_OF_NAME_MAX


@pytest.mark.parametrize("anyio_backend", [("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})])
async def test_an_address_of_a_name_that_leads_nowhere_does_not_hide_the_next(
    anyio_backend: tuple[str, dict[str, object]],
) -> None:
    async def resolve(_: str) -> list[str]:
        return ["2606:4700::1", "8.8.8.8"]

    async def connect(host: str, _port: int) -> trio.SocketStream:
        if ":" in host:
            await trio.sleep_forever()
        return trio.SocketStream(trio.socket.socket())

    start_s = trio.current_time()
    guard = DialGuard(allow_private=False, resolve=resolve, connect=connect)
    async with await guard.connect(parse_tcp(f"/dns/x.example/tcp/{PORT}")):
        assert trio.current_time() - start_s == pytest.approx(CONNECT_TIMEOUT_S)


async def test_the_systems_resolver_reads_numbers_as_c_programs_do() -> None:
    resolver = Resolver()
    for spelling in ("2130706433", "0x7f.1", "127.1"):
        assert set(await resolver(spelling)) == {"127.0.0.1"}
    with pytest.raises(socket.gaierror):
        await resolver("no such name")


def test_the_corpus_is_of_what_strangers_can_send() -> None:
    long = [address for address in forbidden(PEER, RELAY) if len(address) > ADDRESS_CHARACTERS_MAX]
    assert len(long) < 5
