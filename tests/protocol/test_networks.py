"""protocol/networks.py: which addresses are on the Internet, and what is inside others."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.networks import host_of, is_globally_routable, is_host, read_ip, subnet_of

GLOBAL = ["8.8.8.8", "1.1.1.1", "192.0.1.1", "172.32.0.1", "100.128.0.1", "223.255.255.255", "2606:4700::1", "2a00::1"]
NOT_GLOBAL = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "100::1",
    "2001:2::1",
    "2001:20::1",
    "2001:db8::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "64:ff9b:1::8.8.8.8",
]


@pytest.mark.parametrize("text", GLOBAL)
def test_an_address_of_the_internet(text: str) -> None:
    assert is_globally_routable(ip_address(text))


@pytest.mark.parametrize("text", NOT_GLOBAL)
def test_an_address_of_somewhere_else(text: str) -> None:
    assert not is_globally_routable(ip_address(text))


def teredo(server: str, client: str) -> IPv6Address:
    hidden = int(IPv4Address(client)) ^ 0xFFFF_FFFF
    return IPv6Address(0x2001_0000 << 96 | int(IPv4Address(server)) << 64 | hidden)


EMBEDDINGS = {
    "mapped": lambda v4: IPv6Address(f"::ffff:{v4}"),
    "compatible": lambda v4: IPv6Address(f"::{v4}"),
    "translated": lambda v4: IPv6Address(f"::ffff:0:{v4}"),
    "NAT64": lambda v4: IPv6Address(f"64:ff9b::{v4}"),
    "6to4": lambda v4: IPv6Address(0x2002 << 112 | int(IPv4Address(v4)) << 80 | 1),
    "Teredo client": lambda v4: teredo("8.8.8.8", v4),
    "Teredo server": lambda v4: teredo(v4, "8.8.8.8"),
    "ISATAP": lambda v4: IPv6Address(f"2606:4700::5efe:{v4}"),
    "ISATAP, global": lambda v4: IPv6Address(f"2606:4700::200:5efe:{v4}"),
}


@pytest.mark.parametrize("embed", EMBEDDINGS.values(), ids=EMBEDDINGS.keys())
def test_what_is_inside_an_address_counts(embed: object) -> None:
    assert is_globally_routable(embed("9.9.9.9"))  # type: ignore[operator]
    for inside in NOT_GLOBAL[:20]:
        assert not is_globally_routable(embed(inside)), inside  # type: ignore[operator]


def test_an_interface_s_name_does_not_make_its_network_global() -> None:
    assert not is_globally_routable(ip_address("fe80::5efe:8.8.8.8"))


@given(st.ip_addresses())
def test_nothing_is_more_liberal_than_the_standard_library(ip: IPv4Address | IPv6Address) -> None:
    if is_globally_routable(ip) and not (isinstance(ip, IPv6Address) and (ip.teredo or ip.sixtofour)):
        plain = read_ip(str(ip))
        assert plain is not None
        assert plain.is_global


def test_a_socket_s_address_is_read_without_zone_and_mapping() -> None:
    assert read_ip("::ffff:192.0.2.1") == IPv4Address("192.0.2.1")
    assert read_ip("fe80::1%eth0") == IPv6Address("fe80::1")
    assert read_ip("example.org") is None
    assert read_ip("") is None


def test_hosts_and_subnets() -> None:
    v4, v6 = ip_address("192.0.2.77"), ip_address("2001:db8:1:2:3::4")
    assert str(host_of(v4)) == "192.0.2.77/32"
    assert str(subnet_of(v4)) == "192.0.2.0/24"
    assert str(host_of(v6)) == "2001:db8:1:2::/64"
    assert str(subnet_of(v6)) == "2001:db8:1::/48"
    assert [is_host(prefix) for prefix in (host_of(v4), subnet_of(v4), host_of(v6), subnet_of(v6))] == [True, False] * 2


@given(st.ip_addresses(), st.ip_addresses())
def test_a_prefix_is_the_same_exactly_for_addresses_of_one_network(
    left: IPv4Address | IPv6Address, right: IPv4Address | IPv6Address
) -> None:
    for prefix in (host_of, subnet_of):
        network = ip_network(str(prefix(left)))
        assert left in network
        assert (prefix(left) == prefix(right)) == (right in network)
