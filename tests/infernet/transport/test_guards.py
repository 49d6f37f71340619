"""The guards together, on real sockets: strangers come from many addresses of loopback, and nobody is exempt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from ipaddress import ip_address

import pytest
import trio

from infernet.transport import connections as connections_module
from infernet.transport import guards, libp2p_host, multistream
from infernet.transport import yamux_frames as frames
from infernet.transport.addresses import parse_tcp
from infernet.transport.channel import ChannelBroken
from infernet.transport.connections import ConnectionLimits
from infernet.transport.contract import DialFailed
from infernet.transport.crowd import origin_of_ip
from infernet.transport.handshakes import HandshakeLimits
from infernet.transport.libp2p_host import HostLimits, Libp2pTransport
from infernet.transport.libp2p_library import Identity
from infernet.transport.noise_channel import NoiseChannel, secure_outbound
from infernet.transport.unproven import UNPROVEN_BYTES_MAX
from infernet.transport.yamux_frames import INITIAL_WINDOW_BYTES, header
from tests.helpers_relay import node as relay_node
from tests.helpers_relay import relay_world
from tests.helpers_transport import (
    ECHO,
    HOLD,
    PATIENCE_S,
    Libp2pWorld,
    RecordingHandler,
    eventually,
    identity,
    running_world,
    secret,
)

pytestmark = pytest.mark.anyio

Node = tuple[Libp2pWorld, Libp2pTransport, RecordingHandler]


@asynccontextmanager
async def our_node(limits: HostLimits | None = None) -> AsyncIterator[Node]:
    """A node to which programs of this machine are strangers like any others."""
    with trio.fail_after(PATIENCE_S * 2):
        async with running_world(Libp2pWorld) as world:
            assert isinstance(world, Libp2pWorld)
            handler = RecordingHandler()
            yield world, await world.start(1, handler, limits, allow_private=False), handler


async def knock(node: Libp2pTransport, source: str) -> trio.SocketStream:
    """A bare TCP connection from an address of ours."""
    endpoint = parse_tcp(node.addresses()[0])
    return await trio.open_tcp_stream(endpoint.host, endpoint.port, local_address=source)


async def until_closed(stream: trio.SocketStream) -> None:
    """Wait until the node closes a connection; what it says before is swallowed."""
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


@asynccontextmanager
async def peer_from(node: Libp2pTransport, source: str, seed: int) -> AsyncIterator[NoiseChannel]:
    """Somebody who has proven an identity, from an address of ours."""
    async with await knock(node, source) as stream:
        yield await secure_outbound(stream, Identity(secret(seed)), node.node_id)


async def is_taken(node: Libp2pTransport, source: str, seed: int, stack: AsyncExitStack) -> bool:
    """Whether somebody gets a connection that lasts; it stands as long as the stack."""
    before = node.statistics()
    try:
        await stack.enter_async_context(peer_from(node, source, seed))
    except (ChannelBroken, OSError):
        return False
    await eventually(
        lambda: (
            node.statistics().handshakes_in + node.statistics().connections_refused
            > before.handshakes_in + before.connections_refused
        )
    )
    return node.statistics().handshakes_in > before.handshakes_in


async def assert_served(world: Libp2pWorld, node: Libp2pTransport, seed: int = 99) -> None:
    """A newcomer can connect and be served."""
    newcomer = await world.start(seed, RecordingHandler())
    await newcomer.dial(node.node_id, node.addresses())
    stream = await newcomer.open_stream(node.node_id, ECHO)
    await stream.send(b"alive?")
    assert await stream.receive() == b"alive?"
    await newcomer.disconnect(node.node_id)


# ---------------------------------------------------------------- before anybody has proven anything


async def test_half_open_connections_have_few_places_by_host_and_network_and_in_all() -> None:
    limits = HandshakeLimits(total_max=6, per_network_max=4, per_host_max=2)
    async with our_node(HostLimits(handshakes=limits)) as (world, node, _), AsyncExitStack() as stack:
        for source in ("127.1.1.1", "127.1.1.2", "127.1.1.3", "127.2.1.1", "127.3.1.1"):
            for _ in range(20):
                await stack.enter_async_context(await knock(node, source))
        await eventually(lambda: node.statistics().connections_refused >= 80)
        assert len(node._guards.handshakes) == 6
        await assert_served(world, node)


async def test_a_stranger_that_talks_and_proves_nothing_is_cut_off() -> None:
    async with our_node() as (world, node, _):
        long_first = b"\xff\xff" + secret(1) + bytes(65_535 - 32)
        async with await knock(node, "127.1.1.1") as stream, trio.open_nursery() as nursery:
            nursery.start_soon(until_closed, stream)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(multistream.proposal("/noise") + long_first + b"\xff\xff" + bytes(10**6))
        await eventually(lambda: node.statistics().handshakes_failed == 1)
        assert UNPROVEN_BYTES_MAX < 70 * 1024
        await assert_served(world, node)


async def test_an_honest_handshake_is_not_thrown_out_by_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one host floods the port, a handshake that takes its time from elsewhere still ends well."""
    async with our_node() as (_, node, handler), trio.open_nursery() as nursery:

        async def flood(source: str) -> None:
            async with AsyncExitStack() as stack:
                for _ in range(150):
                    await stack.enter_async_context(await knock(node, source))
                await trio.sleep_forever()

        async with await knock(node, "127.5.0.1") as stream:
            await stream.send_all(multistream.proposal("/noise")[:5])
            for source in ("127.6.0.1", "127.6.0.2", "127.7.0.1", "127.5.0.2"):
                nursery.start_soon(flood, source)
            await eventually(lambda: node.statistics().connections_refused > 400)
            await stream.send_all(multistream.proposal("/noise")[5:])
            slow = _Slow(stream)
            await secure_outbound(slow, Identity(secret(2)), node.node_id)
            await eventually(lambda: handler.infos)
        nursery.cancel_scope.cancel()


class _Slow(trio.abc.Stream):
    """A stream whose first proposal has been sent already."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._is_first = True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_first:
            self._is_first = False
            return
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_handshakes_of_one_host_are_not_made_at_any_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    async with our_node() as (world, node, _):
        made = 0
        for seed in range(2, 2 + guards.KNOCKS_BURST + 10):
            with suppress(ChannelBroken, OSError):
                async with peer_from(node, "127.1.1.1", seed):
                    made += 1
        assert made <= guards.KNOCKS_BURST + 2
        await assert_served(world, node)


# ---------------------------------------------------------------- afterwards


async def test_connections_are_few_by_host_and_by_network_and_one_more_may_come_when_one_has_gone() -> None:
    limits = ConnectionLimits(per_host_max=2, per_network_max=3)
    async with our_node(HostLimits(limits)) as (world, node, _), AsyncExitStack() as stack:
        first = AsyncExitStack()
        assert await is_taken(node, "127.1.1.1", 2, first)
        assert await is_taken(node, "127.1.1.1", 3, stack)
        assert not await is_taken(node, "127.1.1.1", 4, stack)
        assert await is_taken(node, "127.1.1.2", 5, stack)
        assert not await is_taken(node, "127.1.1.3", 6, stack)
        assert await is_taken(node, "127.1.2.1", 7, stack)
        await first.aclose()
        await eventually(lambda: node.statistics().connections == 3)
        assert await is_taken(node, "127.1.1.3", 8, stack)
        await assert_served(world, node)


async def test_when_all_places_are_taken_an_unused_one_of_the_most_crowded_makes_room() -> None:
    async with our_node(HostLimits(ConnectionLimits(total_max=3))) as (_, node, handler), AsyncExitStack() as stack:
        used = await stack.enter_async_context(peer_from(node, "127.1.1.1", 4))
        await open_raw(used, HOLD)
        await eventually(lambda: handler.held)
        for seed in (2, 3):
            assert await is_taken(node, "127.1.1.1", seed, stack)
        assert not await is_taken(node, "127.1.1.1", 5, stack), "not for one more of the same host"
        assert await is_taken(node, "127.2.1.1", 6, stack)
        await eventually(lambda: handler.lost == [identity(2)])
        assert await is_taken(node, "127.3.1.1", 7, stack) is True
        assert not await is_taken(node, "127.4.1.1", 8, stack), "nobody is more crowded, and unused"
        assert identity(4) in node.peers()


async def test_two_who_come_at_once_take_two_places() -> None:
    async with our_node(HostLimits(ConnectionLimits(total_max=3))) as (_, node, handler), AsyncExitStack() as stack:
        for seed in (2, 3, 4):
            assert await is_taken(node, "127.1.1.1", seed, stack)
        running = node._require_running()
        for source in ("127.2.1.1", "127.3.1.1"):
            assert running.connections.make_room(origin_of_ip(ip_address(source)))
        await eventually(lambda: set(handler.lost) == {identity(2), identity(3)})


async def test_a_connection_that_holds_a_place_at_a_relay_is_no_unused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "IDLE_S", 0.3)
    monkeypatch.setattr(libp2p_host, "IDLE_LOOK_S", 0.05)
    async with relay_world() as world:
        relay, unused = await world.start_relay(), relay_node(5, listens=False)
        hidden = relay_node(6, listens=False)
        for other in (unused, hidden):
            await world.run(other)
        place = await world.reserve(hidden, relay)
        for _ in range(2):
            await unused.dial(relay.node_id, relay.addresses())
            await eventually(lambda: not unused.peers())
        assert place.lost == []
        assert relay.peers() == [hidden.node_id]


async def open_raw(channel: NoiseChannel, protocol: str, stream_id: int = 1) -> None:
    """Open a stream under a protocol, by hand."""
    proposal = multistream.proposal(protocol)
    await channel.send(header(frames.DATA, frames.SYN, stream_id, len(proposal)) + proposal)


async def test_an_unused_connection_is_closed_after_a_while_and_a_used_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections_module, "IDLE_S", 0.3)
    monkeypatch.setattr(libp2p_host, "IDLE_LOOK_S", 0.05)
    async with our_node() as (world, node, handler):
        unused, used, known = [await world.start(seed, RecordingHandler()) for seed in (2, 3, 4)]
        node.trust({known.node_id})
        known.trust({node.node_id})
        for other in (used, known):
            await other.dial(node.node_id, node.addresses())
        await used.open_stream(node.node_id, HOLD)
        await eventually(lambda: handler.held)
        await unused.dial(node.node_id, node.addresses())
        await eventually(lambda: handler.lost == [unused.node_id])
        await eventually(lambda: not unused.peers())
        assert set(node.peers()) == {used.node_id, known.node_id}
        assert used.peers() == [node.node_id]


async def test_what_all_peers_together_make_us_hold_is_bounded() -> None:
    limit_bytes = 6 * INITIAL_WINDOW_BYTES
    async with our_node(HostLimits(held_bytes_max=limit_bytes)) as (world, node, handler):
        async with AsyncExitStack() as stack:
            piece = bytes(INITIAL_WINDOW_BYTES // 2)
            for seed in range(2, 10):
                with suppress(ChannelBroken):
                    channel = await stack.enter_async_context(peer_from(node, f"127.{seed}.1.1", seed))
                    # The last ones fill more streams than the first ones.
                    for stream_id in range(1, 2 * seed, 2):
                        await open_raw(channel, HOLD, stream_id)
                        await channel.send(header(frames.DATA, 0, stream_id, len(piece)) + piece)
                assert node._guards.budget.total_bytes <= limit_bytes
            await eventually(lambda: node._guards.budget.cuts)
            assert identity(2) in node.peers(), "those who hold little stay"
            await eventually(lambda: identity(9) in handler.lost, "whoever holds most is cut")
        await assert_served(world, node)


# ---------------------------------------------------------------- those who do not behave


async def test_a_host_without_manners_is_refused_before_it_costs_anything(caplog: pytest.LogCaptureFixture) -> None:
    async with our_node() as (world, node, _):
        for _ in range(20):
            async with await knock(node, "127.1.1.1") as stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(
                        b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: text/html, image/png, */*\r\n\r\n"
                    )
                await until_closed(stream)
        assert node._guards.bans.count() == 1
        failed = node.statistics().handshakes_failed
        async with await knock(node, "127.1.1.1") as stream:
            await until_closed(stream)
        assert node.statistics().handshakes_failed == failed
        await assert_served(world, node)


async def test_a_key_that_breaks_yamux_again_and_again_is_banned_from_any_address_and_not_dialled() -> None:
    async with our_node() as (_, node, handler), AsyncExitStack() as stack:
        for turn in range(3):
            with suppress(ChannelBroken):
                async with peer_from(node, f"127.{turn + 1}.1.1", 2) as channel:
                    await channel.send(b"\x09" * 24)
                    while await channel.receive():
                        pass
            await eventually(lambda: len(handler.lost) == turn + 1)  # noqa: B023 - awaited at once
        assert not await is_taken(node, "127.9.1.1", 2, stack)
        assert await is_taken(node, "127.1.1.1", 3, stack), "its hosts have done less"
        with pytest.raises(DialFailed, match="banned for a while: it breaks the rules of yamux"):
            await node.dial(identity(2), ["/ip4/127.0.0.1/tcp/4001"])


async def test_what_is_said_on_streams_counts_too_and_the_banned_are_disconnected() -> None:
    async with our_node() as (world, node, handler):
        other = await world.start(2, RecordingHandler())
        await other.dial(node.node_id, node.addresses())
        await eventually(lambda: handler.infos)
        for _ in range(4):
            node.misbehaved(other.node_id, "a bad frame", 1)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert node.peers() == [other.node_id]
        node.misbehaved(other.node_id, "a bad frame", 1)
        await eventually(lambda: handler.lost == [other.node_id])
        await eventually(lambda: not other.peers())
        node.misbehaved(identity(7), "somebody who has gone", 1)


async def test_those_whom_the_owner_knows_are_taken_whatever_they_did_and_however_full_it_is() -> None:
    async with our_node(HostLimits(ConnectionLimits(per_host_max=1))) as (_, node, _handler), AsyncExitStack() as stack:
        node.misbehaved(identity(2), "before", 100)
        node.trust({identity(2)})
        assert await is_taken(node, "127.1.1.1", 2, stack)
        node.misbehaved(identity(2), "afterwards", 100)
        assert node.peers() == [identity(2)]
        assert not await is_taken(node, "127.1.1.1", 3, stack)
