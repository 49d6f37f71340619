"""A dial-back is a fresh connection whatever stands already, tells apart who answers, and always ends."""

from __future__ import annotations

import pytest
import trio

from infernet.transport import dial_back as room
from infernet.transport.libp2p_host import Libp2pTransport
from protocol.ids import NodeId
from protocol.records import Reachability
from tests.helpers_relay import node, relay_world
from tests.helpers_transport import PATIENCE_S, RecordingHandler, eventually, identity

pytestmark = pytest.mark.anyio

NOBODY = "/ip4/127.0.0.1/tcp/1025"


async def tried(transport: Libp2pTransport, peer: NodeId, address: str) -> Reachability:
    with trio.fail_after(PATIENCE_S):
        reachability, text = await transport.dial_back(peer, address)
    assert text
    assert "\n" not in text
    return reachability


def address_of(listener: trio.SocketListener) -> str:
    return f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"


async def test_whoever_answers_is_reached_and_the_connection_is_closed_again() -> None:
    async with relay_world() as world:
        left, right = node(1), node(2)
        left_handler, right_handler = await world.run(left), await world.run(right)
        [address] = right.addresses()
        bare = address.partition("/p2p/")[0]
        assert await tried(left, right.node_id, bare) is Reachability.REACHED
        assert left_handler.infos == []
        await eventually(lambda: right_handler.lost == [left.node_id])
        assert await tried(left, identity(3), bare) is Reachability.WRONG_NODE


async def test_another_program_is_no_node() -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 mail.example ESMTP\r\n")
        await stream.receive_some()

    async with relay_world() as world, trio.open_nursery() as nursery:
        left = node(1)
        await world.run(left)
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, greet, [listener])
        assert await tried(left, identity(2), address_of(listener)) is Reachability.NO_NODE
        nursery.cancel_scope.cancel()


async def test_who_answers_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(room, "DIAL_BACK_TIMEOUT_S", 0.2)
    async with relay_world() as world, trio.open_nursery() as nursery:
        left = node(1)
        await world.run(left)
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, say_nothing, [listener])
        started_s = trio.current_time()
        assert await tried(left, identity(2), address_of(listener)) is Reachability.NO_NODE
        assert trio.current_time() - started_s < 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "address",
    [
        "nonsense",
        "/ip4/127.0.0.1/tcp/22",
        "/ip4/127.0.0.1/tcp/46337/p2p/16Uiu2HAmJtC7xqT4yeKB7xBDWKNv2gPjjLkJKPPDWvRhrRBGKFPN/p2p-circuit",
    ],
)
async def test_what_is_no_address_to_dial_back_is_not_tried(address: str) -> None:
    async with relay_world() as world:
        left = node(1)
        await world.run(left)
        assert await tried(left, identity(2), address) is Reachability.NOT_TRIED


async def test_nobody_is_dialled_inside_our_own_network_unless_that_is_allowed() -> None:
    async with relay_world() as world:
        left, right = node(1, allow_private=False), node(2)
        await world.run(left)
        handler: RecordingHandler = await world.run(right)
        bare = right.addresses()[0].partition("/p2p/")[0]
        assert await tried(left, right.node_id, bare) is Reachability.NOT_TRIED
        assert handler.infos == []
