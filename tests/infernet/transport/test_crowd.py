"""Who comes from where, and who is the most crowded."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
import trio

from infernet.transport.crowd import Crowd, Origin, origin_of, origin_of_circuit, origin_of_ip
from tests.helpers_transport import identity

pytestmark = pytest.mark.anyio


def from_(text: str) -> Origin:
    return origin_of_ip(ip_address(text))


def crowd_of(*texts: str) -> Crowd[int]:
    crowd: Crowd[int] = Crowd()
    for number, text in enumerate(texts):
        crowd.add(number, from_(text))
    return crowd


async def test_a_socket_s_origin_is_its_other_end() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        origin = origin_of(stream)
        assert origin is not None
        assert origin.ip == ip_address("127.0.0.77")
        assert str(origin.network) == "127.0.0.0/24"
        assert origin.is_loopback
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        await trio.open_tcp_stream(*listener.socket.getsockname(), local_address="127.0.0.77")
        await trio.sleep_forever()


async def test_a_mapped_address_is_the_ipv4_host() -> None:
    """A dual-stack socket tells IPv4 peers so; they must not get the places of a /48."""

    async def serve(stream: trio.SocketStream) -> None:
        origin = origin_of(stream)
        assert origin is not None
        assert str(origin.host) == "127.0.0.1/32"
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        with trio.socket.socket(trio.socket.AF_INET6) as both:
            both.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 0)
            await both.bind(("::", 0))
            both.listen()
            nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(both)])
            await trio.open_tcp_stream("127.0.0.1", both.getsockname()[1])
            await trio.sleep_forever()


async def test_a_socket_that_is_gone_has_no_origin() -> None:
    gone = trio.SocketStream(trio.socket.socket())
    await gone.aclose()
    assert origin_of(gone) is None


def test_whoever_comes_through_a_relay_is_counted_under_the_relay() -> None:
    remote = "/ip4/192.0.2.1/tcp/4000/p2p/R/p2p-circuit"
    origin, other = origin_of_circuit(remote, identity(1)), origin_of_circuit(remote, identity(2))
    assert origin.ip is None
    assert not origin.is_loopback
    crowd = crowd_of("192.0.2.1")
    crowd.add(1, origin)
    crowd.add(2, other)
    assert (crowd.of_host(origin), crowd.of_network(origin)) == (1, 2)
    assert crowd.of_network(from_("192.0.2.1")) == 1


def test_counts_follow_who_comes_and_goes() -> None:
    crowd = crowd_of("192.0.2.1", "192.0.2.1", "192.0.2.2", "198.51.100.1")
    assert (len(crowd), crowd.of_host(from_("192.0.2.1")), crowd.of_network(from_("192.0.2.9"))) == (4, 2, 3)
    crowd.remove(0)
    crowd.remove(0)
    assert (len(crowd), crowd.of_host(from_("192.0.2.1")), crowd.of_network(from_("192.0.2.9"))) == (3, 1, 2)
    assert 0 not in crowd
    assert list(crowd) == [1, 2, 3]


def test_the_most_crowded_is_the_oldest_of_the_greediest_host_in_the_greediest_network() -> None:
    crowd = crowd_of("198.51.100.1", "198.51.100.1", "192.0.2.3", "192.0.2.1", "192.0.2.1", "192.0.2.2")
    assert crowd.most_crowded() == 3
    assert crowd.most_crowded(lambda member, _: member != 3) == 4
    assert crowd.most_crowded(lambda _, origin: origin.host == from_("198.51.100.1").host) == 0
    assert Crowd[int]().most_crowded() is None


@pytest.mark.parametrize(
    ("members", "newcomer", "less"),
    [
        (["192.0.2.1", "192.0.2.1"], "198.51.100.1", True),
        (["192.0.2.1"], "198.51.100.1", False),
        (["192.0.2.1", "192.0.2.1"], "192.0.2.2", True),
        (["192.0.2.1", "192.0.2.2"], "192.0.2.3", False),
        (["192.0.2.1", "192.0.2.1"], "192.0.2.1", False),
        (["192.0.2.1", "192.0.2.2", "198.51.100.1"], "198.51.100.2", False),
        (["192.0.2.1", "192.0.2.1", "198.51.100.1"], "198.51.100.2", True),
    ],
)
def test_a_newcomer_is_less_crowded_only_if_that_holds_after_the_exchange(
    members: list[str], newcomer: str, less: bool
) -> None:
    assert crowd_of(*members).is_less_crowded(from_(newcomer), 0) is less


def test_taking_the_place_of_the_more_crowded_comes_to_an_end() -> None:
    """Whoever takes a place thereby can never be thrown out by the one it replaced: no two chase each other."""
    rng = random.Random(1)
    for _ in range(300):
        hosts = [f"10.0.{rng.randrange(3)}.{rng.randrange(3)}" for _ in range(8)]
        crowd = crowd_of(*hosts[:-1])
        newcomer, victim = from_(hosts[-1]), crowd.most_crowded()
        assert victim is not None
        if crowd.is_less_crowded(newcomer, victim):
            crowd.remove(victim)
            crowd.add(99, newcomer)
            assert not crowd.is_less_crowded(from_(hosts[victim]), 99)
