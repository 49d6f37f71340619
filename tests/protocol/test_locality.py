"""protocol/locality.py: where an address says that its other end is."""

from __future__ import annotations

import pytest

from protocol.locality import is_circuit, is_loopback, network_of


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/127.8.9.10/tcp/46337",
        "/ip6/::1/tcp/1",
        "/ip6/::ffff:127.0.0.1/tcp/1",
        "/ip6/::ffff:7f00:1/tcp/1",
    ],
)
def test_a_loopback_address_is_of_this_machine(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        None,
        "",
        "/ip4",
        "/ip4/10.0.0.1/tcp/1",
        "/ip4/256.0.0.1/tcp/1",
        "/ip6/::2/tcp/1",
        "/ip6/::ffff:7f1:203/tcp/1",
        "/ip4/128.0.0.1/tcp/1",
        "/ip4/127.evil/tcp/1",
        "/dns/localhost/tcp/1",
        "/ip4/127.0.0.1/tcp/1/p2p/16Uiu2/p2p-circuit",
        "127.0.0.1",
    ],
)
def test_anything_else_is_not(address: str | None) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("/ip4/203.0.113.7/tcp/46337", "203.0.0.0/16"),
        ("/ip4/203.0.113.7/tcp/46337/p2p/16Uiu2", "203.0.0.0/16"),
        ("/ip6/2001:db8:1::1/tcp/1", "2001:db8::/32"),
        ("/ip6/::ffff:203.0.113.7/tcp/1", "203.0.0.0/16"),
        ("/ip4/203.0.113.7/tcp/1/p2p/16Uiu2/p2p-circuit", "203.0.0.0/16"),
        ("/dns/Node.Example/tcp/1", "node.example"),
        ("/p2p/16Uiu2/p2p-circuit", "16uiu2"),
        ("nothing", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_network_of_an_address(address: str | None, network: str) -> None:
    assert network_of(address) == network


def test_a_circuit_says_so() -> None:
    assert is_circuit("/ip4/127.0.0.1/tcp/1/p2p/16Uiu2/p2p-circuit/p2p/16Uiu3")
    assert not is_circuit("/ip4/127.0.0.1/tcp/1/p2p/16Uiu2")
    assert not is_circuit(None)
