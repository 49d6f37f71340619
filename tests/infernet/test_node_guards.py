"""A whole node among strangers: what is said on its streams decides who may come back."""

from __future__ import annotations

import io
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from infernet import log
from infernet.node import Node
from infernet.transport.contract import ConnectionInfo, DialFailed, Stream, StreamBroken
from infernet.transport.libp2p_host import Libp2pTransport
from protocol import constants as c
from protocol.envelope import SigningKey
from protocol.ids import NodeId, peer_id
from tests.helpers_log import logging_restored
from tests.helpers_node import config_of_nobody, key_of
from tests.helpers_transport import PATIENCE_S, eventually

pytestmark = pytest.mark.anyio

BAD_FRAME = b"\x00\x00\x00\x01\xc1"


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    with logging_restored():
        stream = io.StringIO()
        log.configure("info", stream=stream)
        yield stream


def transport_of(key: SigningKey, *, listens: bool, allow_private: bool) -> Libp2pTransport:
    return Libp2pTransport(
        key.secret_bytes(),
        agent="x",
        protocols=c.PROTOCOLS,
        randomness=random.Random(1),
        listen_hosts=("127.0.0.1",) if listens else (),
        port=0,
        allow_private=allow_private,
    )


class Deaf:
    """Wants nothing of its peers."""

    def connected(self, info: ConnectionInfo) -> None: ...

    def disconnected(self, peer: NodeId) -> None: ...

    async def stream_opened(self, stream: Stream) -> None: ...


@asynccontextmanager
async def node_and_peer(**config: object) -> AsyncIterator[tuple[Node, Libp2pTransport]]:
    """A node to which this machine is as far away as any other, and a peer that can say anything."""
    key = key_of(1)
    transport = transport_of(key, listens=True, allow_private=False)
    node = Node(config_of_nobody(**config), key, transport=transport, engine=None)
    peer = transport_of(key_of(2), listens=False, allow_private=True)
    with trio.fail_after(PATIENCE_S * 2):
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            await nursery.start(peer.run, Deaf())
            yield node, peer
            nursery.cancel_scope.cancel()


async def misbehave(node: Node, peer: Libp2pTransport, count: int) -> None:
    """Send so many bad frames, connecting anew whenever the node hangs up."""
    for _ in range(count):
        before = node.status()["bad_frames"]
        await peer.dial(node.node_id, node.addresses())
        stream = await peer.open_stream(node.node_id, c.FIND_PROTOCOL)
        try:
            await stream.send(BAD_FRAME)
            while await stream.receive():
                pass
        except StreamBroken:
            pass
        await eventually(lambda: node.status()["bad_frames"] > before, "the frame is counted")  # noqa: B023
        if before % c.BAD_FRAMES_MAX == c.BAD_FRAMES_MAX - 1:
            await eventually(lambda: not peer.peers(), "the node hangs up")


async def test_whoever_sends_bad_frames_again_and_again_is_banned_and_named(output: io.StringIO) -> None:
    async with node_and_peer() as (node, peer):
        await misbehave(node, peer, 5)
        await eventually(lambda: node.status()["transport"]["bans"] == 1)
        await eventually(lambda: not peer.peers())
        await peer.disconnect(node.node_id)
        refused = node.status()["transport"]["connections_refused"]
        # The handshake may end well for the dialler before it hears that it is not welcome.
        with suppress(DialFailed):
            await peer.dial(node.node_id, node.addresses())
        await eventually(lambda: not peer.peers())
        await eventually(lambda: node.status()["transport"]["connections_refused"] > refused)
        assert node.status()["peers"] == 0
    told = [json.loads(line) for line in output.getvalue().splitlines()]
    [banned] = [entry for entry in told if entry["event"] == "peer.banned"]
    assert (banned["peer"], banned["ip"]) == (peer_id(key_of(2).node), "127.0.0.1")


async def test_whom_the_owner_allows_is_hung_up_on_and_may_come_back(output: io.StringIO) -> None:
    async with node_and_peer(allow=(key_of(2).node,)) as (node, peer):
        await misbehave(node, peer, 3 * c.BAD_FRAMES_MAX)
        await peer.dial(node.node_id, node.addresses())
        assert node.status()["transport"]["bans"] == 0
    assert "peer.banned" not in output.getvalue()


async def test_a_configured_peer_is_dialled_wherever_it_is_and_others_are_not() -> None:
    async with node_and_peer() as (node, _):
        address = node.addresses()[0]
        asker = Node(
            config_of_nobody(peers=(address,)),
            key_of(3),
            transport=transport_of(key_of(3), listens=False, allow_private=False),
            engine=None,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(asker.run)
            await eventually(lambda: asker.status()["peers"] == 1)
            stranger = transport_of(key_of(4), listens=False, allow_private=False)
            await nursery.start(stranger.run, Deaf())
            with pytest.raises(DialFailed, match="no address of the Internet: --allow-private"):
                await stranger.dial(node.node_id, [address])
            nursery.cancel_scope.cancel()
