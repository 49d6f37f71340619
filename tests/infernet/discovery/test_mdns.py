"""infernet/discovery/mdns.py: nodes of one network find each other, and whoever else is there can do no more than talk.

Over a real multicast group, on a link that this machine has; every test has a port of its own, so that tests, and real
nodes on this network, do not hear each other.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Interface

import dns.message
import pytest
import trio
import trio.testing

from infernet.discovery import mdns as module
from infernet.discovery.mdns import GROUP, PORT, Link, Mdns, links
from infernet.discovery.mdns_packets import answer, question, read
from protocol.ids import NodeId, peer_id
from tests.helpers_discovery import RecordingDriver, wait_for
from tests.helpers_processes import free_port
from tests.helpers_records import ASKER, PROVIDER, signing_key

pytestmark = pytest.mark.anyio

LOOPBACK = Link(IPv4Interface("127.0.0.1/8"))


def multicast_reason() -> str | None:
    """Why multicast does not work on this machine's loopback, or None when it does."""
    try:
        with group_socket(free_port()) as ours:
            ours.settimeout(1)
            ours.sendto(b"hello", (GROUP, ours.getsockname()[1]))
            ours.recv(100)
    except OSError as error:
        return f"no multicast over loopback here ({error})"
    return None


@contextlib.contextmanager
def group_socket(port: int) -> Iterator[socket.socket]:
    """A member of the group that says and hears what a test wants."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((GROUP, port))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + LOOPBACK.address.packed)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, LOOPBACK.address.packed)
        yield sock


REASON = multicast_reason()
needs_multicast = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def full(host: str, port: int, node: NodeId) -> str:
    return f"/ip4/{host}/tcp/{port}/p2p/{peer_id(node)}"


class Network:
    """A multicast group of its own, with nodes on loopback and a stranger who says what a test tells it to."""

    def __init__(self, nursery: trio.Nursery, port: int, stranger: socket.socket) -> None:
        self._nursery = nursery
        self.port = port
        self.stranger = stranger
        self.permitted: list[str] = []

    def start(
        self, node: NodeId, *listening: str, link: Link = LOOPBACK, scope: trio.CancelScope | None = None
    ) -> RecordingDriver:
        """A node that looks and answers here, and listens at these addresses."""
        driver = RecordingDriver(node)
        source = Mdns(
            lambda: list(listening), self.permitted.append, random.Random(1), find_links=lambda: (link,), port=self.port
        )

        async def run() -> None:
            with scope or trio.CancelScope():
                await source.run(driver.finds())

        self._nursery.start_soon(run)
        return driver

    def say(self, *packets: bytes) -> None:
        for packet in packets:
            self.stranger.sendto(packet, (GROUP, self.port))

    async def hear(self, within_s: float = 10) -> bytes:
        """The next packet in the group."""
        with trio.fail_after(within_s):
            await trio.lowlevel.wait_readable(self.stranger)
            return self.stranger.recv(2000)

    def heard(self) -> list[bytes]:
        """Every packet that has arrived."""
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packets.append(self.stranger.recv(2000))
        return packets


@asynccontextmanager
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    """A group at a port that nobody else uses; nodes that arrive do not wait long."""
    monkeypatch.setattr(module, "ARRIVING_S", (0.02, 0.05))
    port = free_port()
    with group_socket(port) as stranger:
        stranger.setblocking(False)
        async with trio.open_nursery() as nursery:
            yield Network(nursery, port, stranger)
            nursery.cancel_scope.cancel()


HOME = full("127.0.0.1", 46337, PROVIDER.node)


@needs_multicast
async def test_two_nodes_find_each_other_whoever_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async with network(monkeypatch) as n:
        first = n.start(PROVIDER.node, HOME)
        await n.hear()
        second = n.start(ASKER.node, full("127.0.0.1", 46338, ASKER.node))
        await wait_for(lambda: first.events and second.events)
        assert {event.peer: event.addresses for event in first.addresses()} == {
            ASKER.node: (full("127.0.0.1", 46338, ASKER.node),)
        }
        assert {event.peer: event.addresses for event in second.addresses()} == {PROVIDER.node: (HOME,)}
        assert not any(event.connect for event in first.addresses()), "a hint, not a wish of the owner"
        assert HOME in n.permitted


@needs_multicast
async def test_a_node_that_does_not_listen_asks_and_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with network(monkeypatch) as n:
        n.start(PROVIDER.node)
        assert read(await n.hear()).asks
        n.say(question())
        await n.hear()
        n.start(ASKER.node, full("127.0.0.1", 46338, ASKER.node))
        with trio.fail_after(10):
            while not (addresses := read(await n.hear()).addresses):
                pass
        assert addresses == (full("127.0.0.1", 46338, ASKER.node),), "only the other one has answered"


@needs_multicast
async def test_only_the_address_of_this_link_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with network(monkeypatch) as n:
        n.start(PROVIDER.node, full("9.9.9.9", 1, PROVIDER.node), HOME, full("127.0.0.2", 1, PROVIDER.node))
        with trio.fail_after(10):
            while not (addresses := read(await n.hear()).addresses):
                pass
        assert addresses == (HOME,)


@needs_multicast
async def test_a_question_is_answered_soon_and_a_flood_of_questions_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_PAUSE_S", 30)
    monkeypatch.setattr(module, "ANSWER_DELAY_S", (0, 0))
    async with network(monkeypatch) as n:
        n.start(PROVIDER.node, HOME)
        n.say(*[question()] * 50)
        await wait_for(lambda: any(read(packet).addresses for packet in n.heard()))
        for number in range(1, 6):
            n.say(question())
            # What comes later in the same socket has been read when this has, and an answer without delay is out.
            n.say(answer("x", full("127.0.0.1", number, ASKER.node)))
            await wait_for(lambda number=number: len(n.permitted) >= number)
        assert not any(HOME in read(packet).addresses for packet in n.heard())


@needs_multicast
async def test_leaving_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async with network(monkeypatch) as n:
        scope = trio.CancelScope()
        n.start(PROVIDER.node, HOME, scope=scope)
        await n.hear()
        scope.cancel()
        await wait_for(lambda: any(_lifetimes(packet) == [0, 0] for packet in n.heard()))


def _lifetimes(packet: bytes) -> list[int]:
    message = dns.message.from_wire(packet)
    return [record.ttl for record in (*message.answer, *message.additional)]


@needs_multicast
@pytest.mark.parametrize(
    "address",
    [
        full("192.168.1.1", 46337, PROVIDER.node),
        full("127.0.0.2", 46337, PROVIDER.node),
        full("9.9.9.9", 46337, PROVIDER.node),
        f"/dns/router.local/tcp/46337/p2p/{peer_id(PROVIDER.node)}",
        "/ip4/127.0.0.1/tcp/46337",
        "/ip4/127.0.0.1/tcp/0/p2p/x",
        "nonsense",
    ],
)
async def test_nobody_is_sent_to_somebody_elses_door(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    async with network(monkeypatch) as n:
        driver = n.start(ASKER.node)
        await n.hear()
        n.say(answer("x", address), answer("y", HOME))
        await wait_for(lambda: driver.events)
        assert [event.addresses for event in driver.addresses()] == [(HOME,)]
        assert n.permitted == [HOME]


@needs_multicast
async def test_a_packet_from_outside_the_link_or_from_another_port_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with network(monkeypatch) as n:
        elsewhere = Link(IPv4Interface("127.0.0.1/32"))
        driver = n.start(ASKER.node, link=elsewhere)
        await n.hear()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.9", n.port))
            other.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, LOOPBACK.address.packed)
            other.sendto(answer("x", full("127.0.0.9", 1, PROVIDER.node)), (GROUP, n.port))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            other.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, LOOPBACK.address.packed)
            other.sendto(answer("x", full("127.0.0.1", 1, PROVIDER.node)), (GROUP, n.port))
        n.say(answer("y", HOME))
        await wait_for(lambda: driver.events)
        assert n.permitted == [HOME]


@needs_multicast
async def test_garbage_and_floods_cost_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLD_MAX", 20)
    rng = random.Random(3)
    async with network(monkeypatch) as n:
        driver = n.start(ASKER.node)
        await n.hear()
        seeds = [answer("x", HOME), question()]
        for number in range(400):
            packet = bytearray(rng.choice(seeds))
            packet[rng.randrange(len(packet))] = rng.randrange(256)
            n.say(bytes(packet), rng.randbytes(rng.randrange(1500)))
            key = signing_key(f"{number % 30}")
            n.say(answer("x", full("127.0.0.1", 1000 + number, key.node)))
            await trio.lowlevel.checkpoint()
        await wait_for(lambda: len(n.permitted) == 20)
        # It is alive: what was told a while ago makes room.
        monkeypatch.setattr(module, "FORGET_S", 0)
        monkeypatch.setattr(module, "PACKETS_PER_S", 1000)
        late = full("127.0.0.1", 9, signing_key("late").node)
        with trio.fail_after(20):
            while late not in n.permitted:
                n.say(answer("x", late))
                await trio.sleep(0.05)
        assert len(driver.events) == len(n.permitted)


@needs_multicast
async def test_who_repeats_itself_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with network(monkeypatch) as n:
        driver = n.start(ASKER.node)
        await n.hear()
        n.say(answer("x", HOME), answer("x", HOME), answer("x", full("127.0.0.1", 2, PROVIDER.node)))
        await wait_for(lambda: len(n.permitted) >= 2)
        assert [event.addresses for event in driver.addresses()] == [(HOME,), (full("127.0.0.1", 2, PROVIDER.node),)]
        monkeypatch.setattr(module, "TELL_AGAIN_S", 0)
        n.say(answer("x", HOME))
        await wait_for(lambda: len(driver.events) == 3)


@needs_multicast
async def test_when_the_machine_moves_to_another_network_it_speaks_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINKS_S", 0.02)
    here: list[tuple[Link, ...]] = [()]
    async with network(monkeypatch) as n:
        source = Mdns(lambda: [HOME], n.permitted.append, random.Random(1), find_links=lambda: here[0], port=n.port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, RecordingDriver(PROVIDER.node).finds())
            await trio.testing.wait_all_tasks_blocked()
            assert n.heard() == []
            here[0] = (LOOPBACK,)
            await n.hear()
            nursery.cancel_scope.cancel()


async def test_a_machine_without_multicast_goes_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINKS_S", 0.01)
    tries: list[int] = []

    @contextlib.contextmanager
    def refused(_here: tuple[Link, ...], port: int) -> Iterator[socket.socket]:
        tries.append(port)
        raise OSError(19, "No such device")
        yield

    monkeypatch.setattr(module, "_joined", refused)
    source = Mdns(list, lambda _: None, random.Random(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run, RecordingDriver().finds())
        await wait_for(lambda: len(tries) >= 3)
        nursery.cancel_scope.cancel()
    assert set(tries) == {PORT}


def test_loopback_is_no_link() -> None:
    assert not any(link.address.is_loopback for link in links())
