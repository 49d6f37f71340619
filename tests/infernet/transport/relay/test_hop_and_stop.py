"""Hostile clients of a relay, hostile relays, and what a relay can see."""

from __future__ import annotations

import gc
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
import trio

from infernet.transport.channel import ByteReader, ChannelBroken
from infernet.transport.contract import DialFailed, Stream, StreamBroken
from infernet.transport.libp2p_host import Libp2pTransport
from infernet.transport.noise_channel import secure_outbound
from infernet.transport.relay import hop, splice, stop, wire
from infernet.transport.relay.circuit import CircuitStream
from infernet.transport.relay.wire import HOP_PROTOCOL, STOP_PROTOCOL, Answer, Limit, Status
from tests.helpers_relay import ASKER, HIDDEN, RELAY, RelayedPair, circuit, node, relay_limits, relay_world
from tests.helpers_transport import ECHO, eventually, identity, read_to_end

pytestmark = pytest.mark.anyio


async def answer_of(stream: Stream) -> Answer:
    return wire.decode_hop_answer(await wire.read_message(ByteReader(stream.receive)))


async def connected_to_relay(c: RelayedPair) -> None:
    await c.asker.dial(c.relay.node_id, c.relay.addresses())


async def still_works(c: RelayedPair) -> None:
    """Whatever came before, an honest circuit stands and works."""
    await c.connect()
    stream = await c.asker.open_stream(c.hidden.node_id, ECHO)
    await stream.send(b"honest")
    await stream.finish()
    assert await read_to_end(stream) == b"honest"


# ---------------------------------------------------------------- what a relay can see


async def test_the_relay_sees_nothing_of_what_it_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    marker = b"a prompt that is nobody else's business"
    seen = bytearray()
    carry = splice._Direction._carry

    async def listen(self: splice._Direction, data: bytes) -> None:
        seen.extend(data)
        await carry(self, data)

    monkeypatch.setattr(splice._Direction, "_carry", listen)
    async with circuit() as c:
        await c.connect()
        stream = await c.asker.open_stream(c.hidden.node_id, ECHO)
        await stream.send(marker * 100)
        await stream.finish()
        assert await read_to_end(stream) == marker * 100

    assert len(seen) > 200 * len(marker), "the bytes did pass here"
    assert b"/noise" in seen, "and so did the beginning of the handshake, which is open"
    assert marker[:8] not in seen
    assert ECHO.encode() not in seen, "not even the protocol is seen"


async def test_a_relay_that_alters_a_byte_ends_the_circuit(monkeypatch: pytest.MonkeyPatch) -> None:
    carry = splice._Direction._carry
    altering = trio.Event()

    async def alter(self: splice._Direction, data: bytes) -> None:
        if altering.is_set():
            data = data[:-1] + bytes((data[-1] ^ 1,))
        await carry(self, data)

    monkeypatch.setattr(splice._Direction, "_carry", alter)
    async with circuit() as c:
        await c.connect()
        stream = await c.asker.open_stream(c.hidden.node_id, ECHO)
        altering.set()
        await stream.send(b"pay 1 to Bob")
        with pytest.raises(StreamBroken):
            await stream.receive()
        assert c.hidden_handler.received_bytes == 0


# ---------------------------------------------------------------- hostile clients


async def test_hostile_requests_are_answered_or_dropped_and_nothing_else_suffers() -> None:
    rng = random.Random(9)
    good = [wire.encode_reserve(), wire.encode_hop_connect(identity(HIDDEN)), wire.encode_hop_answer(Status.OK)]
    async with circuit() as c:
        await connected_to_relay(c)
        for _ in range(300):
            data = bytearray(rng.choice(good))
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            stream = c.asker.open_direct_stream(c.relay.node_id, HOP_PROTOCOL)
            await stream.send(bytes(data) + rng.randbytes(rng.randrange(3)))
            await stream.finish()
            with trio.fail_after(10), suppress(StreamBroken):
                await read_to_end(stream)
        await eventually(lambda: c.relay.relay_statistics().circuits == 0)
        assert c.relay.node_id in c.asker.peers()
        await still_works(c)


async def test_a_malformed_request_is_told_so() -> None:
    async with circuit() as c:
        await connected_to_relay(c)
        stream = c.asker.open_direct_stream(c.relay.node_id, HOP_PROTOCOL)
        await stream.send(b"\x03\x08\x01\xff")
        assert (await answer_of(stream)).status == Status.MALFORMED_MESSAGE


async def test_whoever_asks_for_himself_is_refused() -> None:
    async with circuit() as c:
        stream = c.hidden.open_direct_stream(c.relay.node_id, HOP_PROTOCOL)
        await stream.send(wire.encode_hop_connect(identity(HIDDEN)))
        assert (await answer_of(stream)).status == Status.PERMISSION_DENIED


async def test_a_thousand_half_finished_connects_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hop, "REQUEST_TIMEOUT_S", 0.3)
    monkeypatch.setattr(stop, "HANDSHAKE_TIMEOUT_S", 0.3)
    request = wire.encode_hop_connect(identity(HIDDEN))
    process = psutil.Process()
    async with circuit() as c:
        await still_works(c)
        await c.asker.disconnect(c.hidden.node_id)
        await eventually(lambda: c.relay.relay_statistics().circuits == 0)
        gc.collect()
        sockets, tasks = process.num_fds(), trio.lowlevel.current_statistics().tasks_living
        rng = random.Random(10)
        for _ in range(20):
            streams = []
            for _ in range(50):
                stream = c.asker.open_direct_stream(c.relay.node_id, HOP_PROTOCOL)
                streams.append(stream)
                try:
                    await stream.send(request[: rng.randrange(len(request) + 1)])
                except StreamBroken:
                    continue  # more than the relay serves at a time
            await trio.sleep(0.01)
            for stream in streams:
                if rng.random() < 0.7:
                    stream.reset()
        await eventually(lambda: c.relay.relay_statistics().circuits == 0, "the end of all circuits")
        await eventually(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks, "the end of all tasks")
        assert process.num_fds() <= sockets
        assert c.relay.statistics().streams == 0
        await still_works(c)


async def test_an_asker_that_leaves_while_the_node_is_asked_costs_nothing() -> None:
    async with circuit() as c:
        await connected_to_relay(c)
        for _ in range(20):
            stream = c.asker.open_direct_stream(c.relay.node_id, HOP_PROTOCOL)
            await stream.send(wire.encode_hop_connect(identity(HIDDEN)))
            stream.reset()
        await eventually(lambda: c.relay.relay_statistics().circuits == 0)
        with trio.fail_after(stop.HANDSHAKE_TIMEOUT_S / 2):
            await eventually(lambda: c.relay.statistics().streams == 0, "the end of the other leg")
        await still_works(c)


async def test_an_end_that_does_not_read_holds_back_the_other_and_fills_nobody() -> None:
    async with circuit() as c:
        await c.connect()
        stream = await c.asker.open_stream(c.hidden.node_id, ECHO)
        sent = 0
        # The echo waits for us to read, so after two windows on each hop nothing moves any more.
        with trio.move_on_after(1.0):
            while True:
                await stream.send(bytes(16 * 1024))
                sent += 16 * 1024
        assert sent < 4 * 1024 * 1024
        other = await c.asker.open_stream(c.hidden.node_id, ECHO)
        await other.send(b"beside it")
        await other.finish()
        assert await read_to_end(other) == b"beside it"


# ---------------------------------------------------------------- hostile relays and nodes


@asynccontextmanager
async def false_relay() -> AsyncIterator[tuple[Libp2pTransport, Libp2pTransport, Stream]]:
    """A relay in the hands of the test, a node that holds a place there, and the stream to bring it a circuit."""
    async with relay_world() as world:
        relay = await world.start_relay()
        hidden = node(HIDDEN, listens=False)
        await world.run(hidden)
        await world.reserve(hidden, relay)
        yield relay, hidden, relay.open_direct_stream(hidden.node_id, STOP_PROTOCOL)


async def stop_answer(stream: Stream) -> int:
    return wire.decode_stop_answer(await wire.read_message(ByteReader(stream.receive))).status


async def test_hostile_circuits_are_answered_or_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "REQUEST_TIMEOUT_S", 0.2)
    monkeypatch.setattr(stop, "HANDSHAKE_TIMEOUT_S", 0.2)
    rng = random.Random(11)
    good = wire.encode_stop_connect(identity(ASKER), Limit(60, 1000))
    async with false_relay() as (relay, hidden, _):

        async def attack(data: bytes) -> None:
            stream = relay.open_direct_stream(hidden.node_id, STOP_PROTOCOL)
            await stream.send(data)
            await stream.finish()
            with trio.fail_after(10), suppress(StreamBroken):
                await read_to_end(stream)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                data = bytearray(good)
                for _ in range(rng.randrange(3)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                nursery.start_soon(attack, bytes(data) + rng.randbytes(rng.randrange(200)))
        assert hidden.peers() == [relay.node_id]
        await eventually(lambda: hidden.statistics().streams == 0)


async def test_a_relay_cannot_bring_somebody_under_the_name_of_another() -> None:
    async with false_relay() as (_, hidden, stream):
        await stream.send(wire.encode_stop_connect(identity(77), Limit()))
        assert await stop_answer(stream) == Status.OK
        liar = node(ASKER, listens=False)
        channel = await secure_outbound(CircuitStream(stream, b"", Limit()), liar._identity, hidden.node_id)
        with suppress(ChannelBroken):
            while await channel.receive():
                pass
        assert liar.node_id not in hidden.peers()


async def test_nobody_but_our_relays_brings_circuits() -> None:
    async with relay_world() as world:
        stranger, hidden = node(RELAY), node(HIDDEN, listens=False)
        await world.run(stranger)
        await world.run(hidden)
        await hidden.dial(stranger.node_id, stranger.addresses())
        await eventually(lambda: hidden.node_id in stranger.peers())
        stream = stranger.open_direct_stream(hidden.node_id, STOP_PROTOCOL)
        await stream.send(wire.encode_stop_connect(identity(ASKER), Limit()))
        assert await stop_answer(stream) == Status.PERMISSION_DENIED


async def test_a_node_that_takes_a_circuit_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hop, "STOP_TIMEOUT_S", 0.3)

    async def silent(self: stop.StopService, stream: Stream, remote: str | None) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(stop.StopService, "serve", silent)
    async with circuit() as c:
        with pytest.raises(DialFailed, match="cannot connect"):
            await c.connect()
        assert c.relay.relay_statistics().circuits == 0


async def test_a_relay_that_answers_nonsense_is_no_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nonsense(self: hop.HopService, stream: Stream, remote: str | None) -> None:
        await stream.send(b"\x04\xff\xff\xff\xff")

    async with circuit() as c:
        monkeypatch.setattr(hop.HopService, "serve", nonsense)
        with pytest.raises(DialFailed, match="does not relay"):
            await c.connect()


async def test_a_full_node_takes_no_circuit() -> None:
    async with circuit() as c:
        c.hidden._relaying._stop._is_full = lambda: True
        with pytest.raises(DialFailed, match="cannot connect"):
            await c.connect()


async def test_a_relay_that_brings_nobody_keeps_nobody_from_coming_through_another() -> None:
    async with relay_world() as world:
        false, honest = [await world.start_relay(seed) for seed in (RELAY, RELAY + 10)]
        hidden, asker = node(HIDDEN, listens=False), node(ASKER, listens=False)
        await world.run(hidden)
        await world.run(asker)
        place = [await world.reserve(hidden, relay) for relay in (false, honest)][-1]
        answers = []
        for _ in range(40):
            stream = false.open_direct_stream(hidden.node_id, STOP_PROTOCOL)
            await stream.send(wire.encode_stop_connect(identity(77), Limit()))
            answers.append(await stop_answer(stream))
        assert set(answers) == {Status.OK, Status.RESOURCE_LIMIT_EXCEEDED}
        await asker.dial(hidden.node_id, place.heard[-1])
        assert hidden.node_id in asker.peers()


async def test_ends_that_ignore_the_limits_are_cut_by_the_relay() -> None:
    async with relay_world() as world:
        relay = await world.start_relay(limits=relay_limits(circuit=Limit(duration_s=600, data_bytes=100_000)))
        near, far = node(ASKER, listens=False), node(HIDDEN, listens=False)
        await world.run(near)
        await world.run(far)
        await world.reserve(far, relay)
        await near.dial(relay.node_id, relay.addresses())
        received = 0

        async def take(stream: Stream, remote: str | None) -> None:
            nonlocal received
            await wire.read_message(ByteReader(stream.receive))
            await stream.send(wire.encode_stop_answer(Status.OK))
            while data := await stream.receive():
                received += len(data)

        far._relaying._stop.serve = take
        stream = near.open_direct_stream(relay.node_id, HOP_PROTOCOL)
        await stream.send(wire.encode_hop_connect(far.node_id))
        assert (await answer_of(stream)).status == Status.OK
        with suppress(StreamBroken):
            await stream.send(bytes(1_000_000))
        with pytest.raises(StreamBroken):
            await stream.receive()
        await eventually(lambda: relay.relay_statistics().circuits == 0)
        assert received <= 100_000
        assert relay.relay_statistics().bytes_carried <= 100_000


async def test_a_circuit_ends_in_halves() -> None:
    """Each direction of a circuit can end on its own: what the relay splices are streams with two halves."""
    async with relay_world() as world:
        relay = await world.start_relay()
        near, far = node(ASKER, listens=False), node(HIDDEN, listens=False)
        await world.run(near)
        await world.run(far)
        await world.reserve(far, relay)
        await near.dial(relay.node_id, relay.addresses())
        taken: list[Stream] = []

        async def take(stream: Stream, remote: str | None) -> None:
            await wire.read_message(ByteReader(stream.receive))
            await stream.send(wire.encode_stop_answer(Status.OK))
            taken.append(stream)
            assert await read_to_end(stream) == b"all of it"
            await stream.send(b"and an answer")

        far._relaying._stop.serve = take
        stream = near.open_direct_stream(relay.node_id, HOP_PROTOCOL)
        await stream.send(wire.encode_hop_connect(far.node_id) + b"all ")
        await stream.send(b"of it")
        await stream.finish()
        reader = ByteReader(stream.receive)
        assert wire.decode_hop_answer(await wire.read_message(reader)).status == Status.OK
        assert await reader.read(len(b"and an answer")) == b"and an answer"
        assert await stream.receive() == b""
        await eventually(lambda: relay.relay_statistics().circuits == 0)
        assert taken


async def test_neither_places_nor_circuits_are_given_to_who_asks_through_a_circuit() -> None:
    async with circuit() as c:
        await c.connect()
        c.hidden.relays_connections = True
        for request in (wire.encode_reserve(), wire.encode_hop_connect(identity(RELAY))):
            stream = await c.asker.open_stream(c.hidden.node_id, HOP_PROTOCOL)
            await stream.send(request)
            assert (await answer_of(stream)).status == Status.PERMISSION_DENIED
        assert c.hidden.relay_statistics().places == 0


async def test_a_relay_that_is_itself_reached_through_a_relay_brings_nobody() -> None:
    async with circuit() as c:
        await c.connect()
        await eventually(lambda: c.asker.node_id in c.hidden.peers())
        # As if the asker held a place at the hidden node.
        c.asker._relaying._lost[c.hidden.node_id] = trio.Event()
        stream = await c.hidden.open_stream(c.asker.node_id, STOP_PROTOCOL)
        await stream.send(wire.encode_stop_connect(identity(77), Limit()))
        assert await stop_answer(stream) == Status.PERMISSION_DENIED
