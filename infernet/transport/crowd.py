"""Who comes from where, and how many come from there already.

One machine has one IPv4 address or a /64 of IPv6, one customer of a provider a /24 or a /48: keys are free, and these
are not. So everything that strangers may hold is counted by host and by network, and whoever holds most of it loses
first. Nobody can throw out others from elsewhere by coming again and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from protocol.ids import NodeId
from protocol.networks import IpAddress, Prefix, host_of, read_ip, subnet_of


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection comes from. Through a relay, that is the relay: there is no address then."""

    ip: IpAddress | None
    host: Prefix | str
    network: Prefix | str

    @property
    def is_loopback(self) -> bool:
        """Whether it comes from this machine."""
        return self.ip is not None and self.ip.is_loopback


def origin_of_ip(ip: IpAddress) -> Origin:
    """The origin of somebody with this address."""
    return Origin(ip, host_of(ip), subnet_of(ip))


def origin_of_circuit(remote: str, peer: NodeId) -> Origin:
    """The origin of somebody who comes through a relay, which `remote` names and which counts as a network.

    Behind it everybody is a host of their own: a relay bounds how many circuits lead to one node.
    """
    return Origin(None, f"{remote}/p2p/{peer.hex()}", remote)


def origin_of(stream: trio.SocketStream) -> Origin | None:
    """The origin of a socket's other end; None when it is gone already."""
    try:
        host = stream.socket.getpeername()[0]
    except OSError:
        return None
    ip = read_ip(host)
    return origin_of_ip(ip) if ip is not None else None


Member = TypeVar("Member", bound=Hashable)


class Crowd(Generic[Member]):
    """Members and where they come from, the oldest first."""

    def __init__(self) -> None:
        self._members: dict[Member, Origin] = {}
        self._hosts: Counter[Prefix | str] = Counter()
        self._networks: Counter[Prefix | str] = Counter()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, member: Member) -> bool:
        return member in self._members

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members)

    def add(self, member: Member, origin: Origin) -> None:
        """Somebody came."""
        assert member not in self._members
        self._members[member] = origin
        self._hosts[origin.host] += 1
        self._networks[origin.network] += 1

    def remove(self, member: Member) -> None:
        """Somebody went; nothing if they were not here."""
        origin = self._members.pop(member, None)
        if origin is None:
            return
        for counter, key in ((self._hosts, origin.host), (self._networks, origin.network)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]

    def of_host(self, origin: Origin) -> int:
        """How many come from the same host."""
        return self._hosts[origin.host]

    def of_network(self, origin: Origin) -> int:
        """How many come from the same network."""
        return self._networks[origin.network]

    def most_crowded(self, may: Callable[[Member, Origin], bool] = lambda _member, _origin: True) -> Member | None:
        """The oldest member of the most crowded host in the most crowded network, among those that `may` allows."""
        worst, worst_rank = None, (0, 0)
        for member, origin in self._members.items():
            rank = (self._networks[origin.network], self._hosts[origin.host])
            if rank > worst_rank and may(member, origin):
                worst, worst_rank = member, rank
        return worst

    def is_less_crowded(self, newcomer: Origin, member: Member) -> bool:
        """Whether somebody who takes a member's place still has fewer like them here than the member has."""
        origin = self._members[member]
        in_network = self._networks[newcomer.network] + (newcomer.network != origin.network)
        of_host = self._hosts[newcomer.host] + (newcomer.host != origin.host)
        return (in_network, of_host) < (self._networks[origin.network], self._hosts[origin.host])
