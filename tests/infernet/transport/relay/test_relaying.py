"""A node that nobody can dial is reached through a relay, over real TCP; and whatever goes wrong there, ends."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

import pytest
import trio
import trio.lowlevel
import trio.testing

from infernet.transport.connections import Circuit
from infernet.transport.contract import DialFailed, StreamBroken
from infernet.transport.dialer import ADDRESS_TIMEOUT_S
from infernet.transport.relay.renewing import renew
from infernet.transport.relay.service import _claimed_address
from infernet.transport.relay.wire import Limit
from protocol.ids import peer_id
from protocol.locality import is_circuit, is_loopback
from tests.helpers_relay import HIDDEN, RelayedPair, circuit, node, relay_limits, relay_world
from tests.helpers_transport import ECHO, HOLD, SINK, eventually, identity, read_to_end

pytestmark = pytest.mark.anyio


async def say(c: RelayedPair, data: bytes) -> bytes:
    """What the hidden node echoes."""
    stream = await c.asker.open_stream(c.hidden.node_id, ECHO)
    await stream.send(data)
    await stream.finish()
    return await read_to_end(stream)


async def test_a_node_that_only_dials_out_is_reached_through_its_relay() -> None:
    async with circuit() as c:
        assert c.hidden.addresses() == []
        [address] = c.addresses
        assert address == f"{c.relay.addresses()[0]}/p2p-circuit/p2p/{peer_id(identity(HIDDEN))}"

        await c.connect()

        assert await say(c, b"hello") == b"hello"
        data = os.urandom(1_000_000)
        stream = await c.asker.open_stream(c.hidden.node_id, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, data)
            received = bytearray()
            while len(received) < len(data):
                received += await stream.receive()
        assert received == data


async def test_both_ends_see_a_circuit_and_never_a_process_of_their_own_machine() -> None:
    async with circuit() as c:
        await c.connect()
        await eventually(lambda: len(c.hidden_handler.infos) == 2)
        outward = next(info for info in c.asker_handler.infos if info.peer == c.hidden.node_id)
        inward = next(info for info in c.hidden_handler.infos if info.peer == c.asker.node_id)

        assert (outward.inbound, inward.inbound) == (False, True)
        for info in (outward, inward):
            assert is_circuit(info.remote_address)
            assert not is_loopback(info.remote_address)
            assert peer_id(c.relay.node_id) in (info.remote_address or "")


async def test_the_hidden_node_opens_streams_to_whoever_came_through_the_relay() -> None:
    async with circuit() as c:
        await c.connect()
        await eventually(lambda: c.asker.node_id in c.hidden.peers())
        stream = await c.hidden.open_stream(c.asker.node_id, ECHO)
        await stream.send(b"the other way")
        await stream.finish()
        assert await read_to_end(stream) == b"the other way"


async def test_the_end_of_the_relay_breaks_streams_at_once_and_says_so() -> None:
    async with circuit() as c:
        await c.connect()
        stream = await c.asker.open_stream(c.hidden.node_id, HOLD)
        await stream.send(b"held")
        await eventually(lambda: c.hidden_handler.held)

        c.world.kill(c.relay)
        with trio.fail_after(2.0), pytest.raises(StreamBroken):
            await stream.receive()
        await eventually(lambda: c.hidden.node_id in c.asker_handler.lost)
        await eventually(lambda: c.asker.node_id in c.hidden_handler.lost)
        await eventually(lambda: c.place.lost)
        assert "lost" in c.place.lost[0]
        assert (c.asker.peers(), c.hidden.peers()) == ([], [])


@pytest.mark.parametrize("who", ["asker", "hidden"])
async def test_hanging_up_on_either_end_ends_the_circuit_and_leaves_the_relay_empty(who: str) -> None:
    async with circuit() as c:
        await c.connect()
        assert await say(c, b"x") == b"x"
        first, other = (c.asker, c.hidden) if who == "asker" else (c.hidden, c.asker)
        await first.disconnect(other.node_id)
        await eventually(lambda: first.node_id not in other.peers())
        await eventually(lambda: c.relay.relay_statistics().circuits == 0)
        assert c.relay.node_id in c.asker.peers(), "the connection to the relay stays"
        await c.connect()
        assert await say(c, b"again") == b"again"


async def test_two_nodes_that_cannot_be_dialled_reach_each_other_through_different_relays() -> None:
    async with relay_world() as world:
        first, second = await world.start_relay(21), await world.start_relay(22)
        left, right = node(23, listens=False), node(24, listens=False)
        left_handler, right_handler = await world.run(left), await world.run(right)
        at_first, at_second = await world.reserve(left, first), await world.reserve(right, second)

        await left.dial(right.node_id, at_second.heard[0])
        await eventually(lambda: left.node_id in right.peers())
        await right.disconnect(left.node_id)
        await eventually(lambda: left.node_id in right_handler.lost)
        await right.dial(left.node_id, at_first.heard[0])
        await eventually(lambda: right.node_id in left.peers())
        assert left_handler.infos[-1].inbound


async def test_one_of_two_relays_may_go() -> None:
    async with relay_world() as world:
        relays = [await world.start_relay(seed) for seed in (21, 22)]
        hidden, asker = node(HIDDEN, listens=False), node(13, listens=False)
        await world.run(hidden)
        handler = await world.run(asker)
        places = [await world.reserve(hidden, relay) for relay in relays]
        addresses = [address for place in places for address in place.heard[0]]

        await asker.dial(hidden.node_id, addresses)
        used = handler.infos[-1].remote_address or ""
        gone = next(relay for relay in relays if peer_id(relay.node_id) in used)
        world.kill(gone)
        await eventually(lambda: hidden.node_id in handler.lost)

        await asker.dial(hidden.node_id, addresses)
        stream = await asker.open_stream(hidden.node_id, ECHO)
        await stream.send(b"still there")
        await stream.finish()
        assert await read_to_end(stream) == b"still there"
        assert sorted(map(bool, (places[0].lost, places[1].lost))) == [False, True]


async def test_a_direct_address_is_taken_before_a_circuit() -> None:
    async with relay_world() as world:
        relay = await world.start_relay()
        open_node, asker = node(HIDDEN), node(13, listens=False)
        await world.run(open_node)
        handler = await world.run(asker)
        place = await world.reserve(open_node, relay)

        await asker.dial(open_node.node_id, [*place.heard[0], *open_node.addresses()])
        assert handler.infos[0].peer == open_node.node_id
        assert not is_circuit(handler.infos[0].remote_address)
        assert relay.node_id not in asker.peers(), "the relay was not needed"


async def test_a_circuit_is_tried_when_the_direct_address_is_dead() -> None:
    async with circuit() as c:
        await c.asker.dial(c.hidden.node_id, ["/ip4/127.0.0.1/tcp/1", *c.addresses])
        assert await say(c, b"x") == b"x"


async def test_who_names_a_dead_address_of_a_relay_keeps_nobody_from_that_relay() -> None:
    async with circuit() as c:
        [silent] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = silent.socket.getsockname()[1]
        dead = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id(c.relay.node_id)}/p2p-circuit"
        async with silent, trio.open_nursery() as nursery:

            async def dial_in_vain() -> None:
                with suppress(DialFailed):
                    await c.asker.dial(identity(99), [dead])

            nursery.start_soon(dial_in_vain)
            knocking = await silent.accept()
            with trio.fail_after(ADDRESS_TIMEOUT_S / 2):
                await c.asker.dial(c.relay.node_id, c.relay.addresses())
            assert c.relay.node_id in c.asker.peers()
            await knocking.aclose()
            nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- who is refused


async def refusal(c: RelayedPair, *addresses: str) -> str:
    with pytest.raises(DialFailed) as failure:
        await c.asker.dial(c.hidden.node_id, addresses)
    return str(failure.value)


async def test_a_relay_that_is_told_to_stop_gives_no_circuits() -> None:
    async with circuit() as c:
        c.relay.relays_connections = False
        assert "does not relay" in await refusal(c, *c.addresses)
        assert c.relay.relay_statistics().places == 0


async def test_a_node_that_was_not_told_to_relay_gives_no_places() -> None:
    async with relay_world() as world:
        other, hidden = node(14), node(HIDDEN, listens=False)
        await world.run(other)
        await world.run(hidden)
        place = await world.reserve(hidden, other)
        assert place.heard == []
        assert "does not relay" in place.lost[0]


async def test_who_has_no_place_is_not_reached() -> None:
    async with relay_world() as world:
        relay = await world.start_relay()
        hidden, asker = node(HIDDEN, listens=False), node(13, listens=False)
        await world.run(hidden)
        await world.run(asker)
        await hidden.dial(relay.node_id, relay.addresses())
        address = f"{relay.addresses()[0]}/p2p-circuit/p2p/{peer_id(hidden.node_id)}"
        with pytest.raises(DialFailed, match="no place"):
            await asker.dial(hidden.node_id, [address])


async def test_a_place_ends_with_the_connection() -> None:
    async with circuit() as c:
        await c.hidden.disconnect(c.relay.node_id)
        await eventually(lambda: c.relay.relay_statistics().places == 0)
        assert "no place" in await refusal(c, *c.addresses)


async def test_after_letting_go_of_a_place_no_circuit_is_taken() -> None:
    async with circuit() as c:
        c.place.scope.cancel()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert "cannot connect" in await refusal(c, *c.addresses)


async def test_a_circuit_inside_a_circuit_is_refused_everywhere() -> None:
    async with circuit() as c:
        await c.connect()
        # The hidden node would relay, too; it is connected with the asker only through the first relay.
        c.hidden.relays_connections = True
        place = await c.world.reserve(c.asker, c.hidden)
        assert place.heard == []
        assert "no direct connection" in place.lost[0]
        [address] = c.addresses
        inner = f"{address}/p2p-circuit/p2p/{peer_id(identity(77))}"
        with pytest.raises(DialFailed, match="a circuit inside a circuit"):
            await c.asker.dial(identity(77), [inner])
        assert c.hidden.relay_statistics().places == 0


async def test_the_relay_cannot_be_an_end_of_its_own_circuit() -> None:
    async with circuit() as c:
        address = f"{c.relay.addresses()[0]}/p2p-circuit"
        with pytest.raises(DialFailed, match="neither end"):
            await c.asker.dial(c.relay.node_id, [address])


# ---------------------------------------------------------------- limits


async def test_places_are_bounded_for_one_network() -> None:
    async with relay_world() as world:
        relay = await world.start_relay(limits=relay_limits(places_per_network_max=2))
        places = []
        for seed in range(30, 33):
            hidden = node(seed, listens=False)
            await world.run(hidden)
            places.append(await world.reserve(hidden, relay))
        assert [bool(place.lost) for place in places] == [False, False, True]
        assert "gives no place" in places[2].lost[0]
        assert relay.relay_statistics().places == 2


async def test_circuits_of_one_peer_are_bounded() -> None:
    async with relay_world() as world:
        relay = await world.start_relay(limits=relay_limits(circuits_from_peer_max=2))
        asker = node(13, listens=False)
        await world.run(asker)
        for seed in range(30, 33):
            hidden = node(seed, listens=False)
            await world.run(hidden)
            place = await world.reserve(hidden, relay)
            if seed < 32:
                await asker.dial(hidden.node_id, place.heard[0])
            else:
                with pytest.raises(DialFailed, match="no room left"):
                    await asker.dial(hidden.node_id, place.heard[0])
        assert relay.relay_statistics().circuits == 2
        assert relay.relay_statistics().circuits_refused == 1


async def test_circuits_to_one_peer_are_bounded() -> None:
    async with circuit(relay_limits(circuits_to_peer_max=1)) as c:
        await c.connect()
        another = node(14, listens=False)
        await c.world.run(another)
        with pytest.raises(DialFailed, match="no room left"):
            await another.dial(c.hidden.node_id, c.addresses)


async def test_circuits_in_all_are_bounded() -> None:
    async with circuit(relay_limits(circuits_max=1)) as c:
        await c.connect()
        await c.world.reserve(c.asker, c.relay)
        address = f"{c.relay.addresses()[0]}/p2p-circuit/p2p/{peer_id(c.asker.node_id)}"
        another = node(14, listens=False)
        await c.world.run(another)
        with pytest.raises(DialFailed, match="no room left"):
            await another.dial(c.asker.node_id, [address])


async def test_who_asks_for_circuits_too_often_is_refused() -> None:
    limits = relay_limits(circuits_per_network_per_s=1e-6, circuits_per_network_burst=1)
    async with circuit(limits) as c:
        await c.connect()
        await c.asker.disconnect(c.hidden.node_id)
        assert "no room left" in await refusal(c, *c.addresses)


async def test_a_circuit_carries_no_more_than_its_share() -> None:
    async with circuit(relay_limits(circuit=Limit(duration_s=600, data_bytes=200_000))) as c:
        await c.connect()
        stream = await c.asker.open_stream(c.hidden.node_id, SINK)
        with pytest.raises(StreamBroken, match="200000 bytes"):
            await stream.send(bytes(1_000_000))
        await eventually(lambda: c.hidden_handler.endings)
        assert c.hidden_handler.received_bytes < 200_000
        assert c.relay.relay_statistics().bytes_carried <= 2 * 200_000
        await eventually(lambda: c.relay.relay_statistics().circuits == 0)


async def test_a_circuit_lasts_no_longer_than_its_time() -> None:
    async with circuit(relay_limits(circuit=Limit(duration_s=1, data_bytes=0))) as c:
        await c.connect()
        stream = await c.asker.open_stream(c.hidden.node_id, HOLD)
        with pytest.raises(StreamBroken, match="for 1 s"):
            await stream.receive()
        await eventually(lambda: c.relay.relay_statistics().circuits == 0)
        await eventually(lambda: c.asker.node_id in c.hidden_handler.lost)


async def test_a_circuit_in_which_nothing_moves_ends() -> None:
    async with circuit(relay_limits(idle_s=0.3)) as c:
        await c.connect()
        assert await say(c, b"x") == b"x"
        await eventually(lambda: c.relay.relay_statistics().circuits == 0)
        await eventually(lambda: c.hidden.node_id in c.asker_handler.lost)


async def test_a_place_is_asked_for_again_before_it_ends() -> None:
    async with circuit(relay_limits(place_s=3.0)) as c:
        await eventually(lambda: len(c.place.heard) >= 3)
        assert c.place.heard[0] == c.place.heard[-1]
        assert not c.place.lost
        await c.connect()
        assert await say(c, b"x") == b"x"


async def test_a_relay_keeps_to_its_speed() -> None:
    async with circuit(relay_limits(bytes_per_circuit_per_s=400_000.0)) as c:
        await c.connect()
        stream = await c.asker.open_stream(c.hidden.node_id, SINK)
        started_s = trio.current_time()
        await stream.send(bytes(800_000))
        await stream.finish()
        await eventually(lambda: c.hidden_handler.received_bytes == 800_000)
        # A second's worth may pass at once.
        assert trio.current_time() - started_s > 0.9


# ---------------------------------------------------------------- longer than a circuit lasts


async def test_a_circuit_in_use_is_followed_by_another_before_it_ends() -> None:
    async with circuit(relay_limits(circuit=Limit(duration_s=3, data_bytes=0))) as c:
        await c.connect()
        held = await c.asker.open_stream(c.hidden.node_id, HOLD)
        await held.send(b"as long as it may")
        for _ in range(8):
            # A stream that is opened late in one circuit is carried to its end by the next.
            late = await c.asker.open_stream(c.hidden.node_id, ECHO)
            await trio.sleep(0.4)
            await late.send(b"late")
            await late.finish()
            assert await read_to_end(late) == b"late"
        assert c.asker_handler.lost == [], "to everybody above it is one connection"
        assert c.hidden_handler.lost == []
        with pytest.raises(StreamBroken):
            await held.receive()
        await eventually(lambda: c.relay.relay_statistics().circuits <= 2)


async def test_a_circuit_that_nobody_uses_is_not_renewed() -> None:
    async with circuit(relay_limits(circuit=Limit(duration_s=1, data_bytes=0))) as c:
        await c.connect()
        assert await say(c, b"x") == b"x"
        await eventually(lambda: c.hidden.node_id in c.asker_handler.lost)
        assert c.asker.statistics().handshakes_out == 2, "the relay and one circuit"


async def test_the_circuit_that_was_followed_ends_with_its_last_stream() -> None:
    async with circuit(relay_limits(circuit=Limit(duration_s=60, data_bytes=0))) as c:
        await c.connect()
        [connection] = c.asker._running.connections.of(c.hidden.node_id)
        stream = await c.asker.open_stream(c.hidden.node_id, ECHO)
        await renew(
            connection,
            Circuit(connection.circuit.address, renew_after_s=0.0),
            c.asker._attempt,
            partial(c.asker._add_dialled, c.asker._running),
        )
        await eventually(lambda: c.relay.relay_statistics().circuits == 2)
        await stream.send(b"to its end")
        await stream.finish()
        assert await read_to_end(stream) == b"to its end"
        await eventually(lambda: c.relay.relay_statistics().circuits == 1)
        assert await say(c, b"and on") == b"and on"
        assert c.asker_handler.lost == []


async def test_a_relay_inside_our_own_network_is_dialled_only_where_that_is_allowed() -> None:
    async with circuit() as c:
        careful = node(14, listens=False, allow_private=False)
        await c.world.run(careful)
        with pytest.raises(DialFailed, match="no address of the Internet"):
            await careful.dial(c.hidden.node_id, c.addresses)
        assert careful.peers() == []


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        ("/ip4/8.8.4.4/tcp/46337/p2p/RELAY", "/ip4/8.8.4.4/tcp/46337"),
        ("/ip6/2606:4700::1111/tcp/46337", "/ip6/2606:4700::1111/tcp/46337"),
        ("/ip4/192.168.1.1/tcp/46337/p2p/RELAY", None),
        ("/ip4/8.8.4.4/tcp/46337/p2p/SOMEBODY", None),
        ("/ip4/8.8.4.4/tcp/46337/p2p/RELAY/p2p-circuit", None),
        ("/ip4/8.8.4.4/udp/46337/quic-v1", None),
        ("/dns/victim.example/tcp/46337", None),
    ],
)
def test_of_what_a_relay_claims_only_its_own_addresses_on_the_internet_are_published(
    claimed: str, expected: str | None
) -> None:
    text = claimed.replace("RELAY", peer_id(identity(11))).replace("SOMEBODY", peer_id(identity(12)))
    assert _claimed_address(text, identity(11)) == expected
