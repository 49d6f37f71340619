"""Addresses come from strangers: what is not exactly of our form is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.transport.addresses import TcpAddress, parse, tcp_multiaddr, with_peer
from protocol.ids import peer_id
from tests.helpers_transport import identity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/ip4/203.0.113.7/tcp/46337", TcpAddress("203.0.113.7", 46337, None)),
        ("/ip6/2001:db8::1/tcp/1", TcpAddress("2001:db8::1", 1, None)),
        ("/dns/node.example.org/tcp/46337", TcpAddress("node.example.org", 46337, None)),
        ("/dns4/x/tcp/65535", TcpAddress("x", 65535, None)),
        (f"/ip4/127.0.0.1/tcp/9/p2p/{peer_id(identity(1))}", TcpAddress("127.0.0.1", 9, identity(1))),
    ],
)
def test_forms_that_we_speak(text: str, expected: TcpAddress) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "203.0.113.7:46337",
        "/ip4/203.0.113.7/udp/46337/quic-v1",
        "/ip4/203.0.113.7/tcp/46337/",
        "/ip4/203.0.113.7/tcp/46337/ws",
        "/ip4/203.0.113.7/tcp/46337/p2p/x/p2p-circuit",
        "/ip4/203.0.113.7/tcp/46337\n",
        "/ip4/203.0.113.7/tcp/٤٦",
        "/ip4/203.0.113.7/tcp/-1",
        "/ip4/203.0.113.7/tcp/0",
        "/ip4/203.0.113.7/tcp/65536",
        "/ip4/203.0.113.007/tcp/1",
        "/ip4/2001:db8::1/tcp/1",
        "/ip4/example.org/tcp/1",
        "/ip6/203.0.113.7/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/dns/exa mple/tcp/1",
        "/dns/a..b/tcp/1",
        "/dns/" + "a" * 300 + "/tcp/1",
        "/ip4/127.0.0.1/tcp/9/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


@given(st.text(max_size=80) | st.from_regex(r"/(ip4|ip6|dns)/[0-9a-f.:%]{1,30}/tcp/[0-9]{1,5}(/p2p/.{1,60})?"))
def test_nothing_raises_anything_but_a_value_error(text: str) -> None:
    try:
        address = parse(text)
    except ValueError:
        return
    assert 0 < address.port < 2**16


@given(st.ip_addresses(), st.integers(1, 65535))
def test_what_we_write_we_read(address: object, port: int) -> None:
    assert parse(with_peer(tcp_multiaddr(str(address), port), identity(1))) == TcpAddress(
        str(address).partition("%")[0], port, identity(1)
    )
