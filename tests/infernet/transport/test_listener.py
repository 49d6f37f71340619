"""Listening sockets: the port is ours alone, or we say so."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from infernet.transport.contract import ListenFailed, PortTaken
from infernet.transport.listener import listening_addresses, open_listeners
from tests.helpers_transport import Libp2pWorld, RecordingHandler, libp2p_transport, running_world

pytestmark = pytest.mark.anyio


@contextmanager
def closing(listeners: list[trio.SocketListener]) -> Iterator[list[trio.SocketListener]]:
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.socket.close()


def port_of(listener: trio.SocketListener) -> int:
    port: int = listener.socket.getsockname()[1]
    return port


async def test_both_families_get_the_same_free_port() -> None:
    with closing(await open_listeners(("127.0.0.1", "::1"), 0)) as listeners:
        assert len({port_of(listener) for listener in listeners}) == 1
        port = port_of(listeners[0])
        assert listening_addresses(listeners) == [f"/ip4/127.0.0.1/tcp/{port}", f"/ip6/::1/tcp/{port}"]


async def test_a_wildcard_stands_for_the_interfaces() -> None:
    with closing(await open_listeners(("0.0.0.0", "::"), 0)) as listeners:
        port = port_of(listeners[0])
        addresses = listening_addresses(listeners)
        assert f"/ip4/127.0.0.1/tcp/{port}" in addresses
        assert not any("0.0.0.0" in address or "/::/" in address or "fe80" in address for address in addresses)


async def test_an_address_that_this_machine_lacks_is_left_out() -> None:
    with closing(await open_listeners(("127.0.0.1", "2001:db8::1"), 0)) as listeners:
        assert len(listeners) == 1


async def test_no_address_at_all_is_an_error() -> None:
    with pytest.raises(ListenFailed, match=r"192\.0\.2\.1"):
        await open_listeners(("192.0.2.1",), 0)


async def test_a_taken_port_is_named_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} .*--p2p-port") as taken:
            await open_listeners(("127.0.0.1",), port)
        assert taken.value.port == port


async def test_a_port_taken_in_one_family_holds_none_in_the_other() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken):
            await open_listeners(("127.0.0.1", "::1"), port)
        with socket.create_server(("127.0.0.1", port)):
            pass


async def test_a_port_shared_by_another_program_is_taken_all_the_same() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortTaken):
            await open_listeners(("127.0.0.1",), other.getsockname()[1])


async def test_a_second_node_of_the_same_user_fails_before_it_has_started() -> None:
    async with running_world(Libp2pWorld) as world:
        first = await world.start(1, RecordingHandler())
        port = int(first.addresses()[0].split("/")[4])
        started = False

        class Status:
            def started(self, value: None = None) -> None:
                nonlocal started
                started = True

        with pytest.raises(PortTaken):
            await libp2p_transport(2, port=port).run(RecordingHandler(), task_status=Status())
        assert not started
        assert first.addresses()
