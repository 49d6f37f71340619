"""Where a dial may go: an address that a stranger told us must not open a door inside our own network.

An address is parsed strictly, a name is looked up once, and what is dialled is the IP address that was checked: a name
cannot mean something else a moment later. Whatever the owner of this node gave, in the configuration, on the command
line or in an invite, is dialled as it is.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final

import trio

from infernet.transport.addresses import CircuitAddress, TcpAddress, parse, parse_tcp
from protocol.networks import IpAddress, is_globally_routable, read_ip

# What needs a privilege to listen on is no node, and may be somebody's mail or DNS server.
PORT_MIN: Final = 1024
# Of all that a name stands for: two of each family are enough for a node.
ADDRESSES_OF_NAME_MAX: Final = 4
# A lookup goes on in its thread when nobody waits for it any more; strangers' names must not use up the threads.
LOOKUPS_MAX: Final = 8
PERMITTED_MAX: Final = 1024

# Of several addresses of one name, each but the last gets this long: it may be of a family that leads nowhere.
CONNECT_TIMEOUT_S: Final = 3.0

Resolve = Callable[[str], Awaitable[list[str]]]
Connect = Callable[[str, int], Awaitable[trio.SocketStream]]


_NOT_PUBLIC: Final = "it is no address of the Internet: --allow-private, an invite or --peers permits it"


class AddressRefused(Exception):
    """This address is not dialled; the message says why."""


class DialGuard:
    """`allow_private`: whatever strangers say, dial it; for networks of one's own, and for tests.

    `proxy`: connects by way of a proxy, which takes names, too; then nothing is dialled or looked up without it.
    """

    def __init__(
        self,
        *,
        allow_private: bool,
        resolve: Resolve | None = None,
        connect: Connect = trio.open_tcp_stream,
        proxy: Connect | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._resolve = resolve or Resolver()
        self._connect = connect
        self._proxy = proxy
        self._permitted: dict[tuple[str, int], None] = {}

    def permit(self, address: str) -> None:
        """The owner gave this multiaddr, or that of a circuit: it may lead anywhere. Nothing when it is none."""
        try:
            parsed = parse(address)
        except ValueError:
            return
        target = parse_tcp(parsed.relay_address) if isinstance(parsed, CircuitAddress) else parsed
        key = (target.host.lower(), target.port)
        self._permitted.pop(key, None)
        self._permitted[key] = None
        if len(self._permitted) > PERMITTED_MAX:
            del self._permitted[next(iter(self._permitted))]

    async def connect(self, address: TcpAddress) -> trio.SocketStream:
        """Connect to an address; the caller owns the deadline. Raises AddressRefused or OSError."""
        if self._proxy is not None:
            self._check_without_looking_up(address)
            return await self._proxy(address.host, address.port)
        *others, last = await self.endpoints(address)
        for ip in others:
            with suppress(OSError), trio.move_on_after(CONNECT_TIMEOUT_S):
                return await self._connect(str(ip), address.port)
        return await self._connect(str(last), address.port)

    @property
    def is_direct(self) -> bool:
        """Whether a connection begins at this machine, so that its other end and ours see each other's address."""
        return self._proxy is None

    def _check_without_looking_up(self, address: TcpAddress) -> None:
        """Refuse what a stranger may have us open, where only the proxy learns what a name means. Raises
        AddressRefused.
        """
        if self._is_free(address):
            return
        self._check_port(address)
        literal = read_ip(address.host)
        if literal is None and not is_onion(address.host):
            raise AddressRefused("a name that strangers tell is not looked up by way of a proxy: --peers permits it")
        if literal is not None and not is_globally_routable(literal):
            raise AddressRefused(_NOT_PUBLIC)

    def _is_free(self, address: TcpAddress) -> bool:
        return self._allow_private or (address.host.lower(), address.port) in self._permitted

    def _check_port(self, address: TcpAddress) -> None:
        if address.port < PORT_MIN:
            raise AddressRefused(f"nodes do not listen on port {address.port}")

    async def endpoints(self, address: TcpAddress) -> list[IpAddress]:
        """The IP addresses to connect to, at least one. Raises AddressRefused or OSError."""
        # SPEC 01: A node MUST NOT dial an address that it has from others unless that is an address of the Internet and
        #   its port is 1024 or higher.
        is_free = self._is_free(address)
        if not is_free:
            self._check_port(address)
        if is_onion(address.host):
            # Its name must not reach a resolver (RFC 7686).
            raise AddressRefused("an onion service is reached through Tor alone: --proxy socks5://127.0.0.1:9050")
        literal = read_ip(address.host)
        found = [literal] if literal is not None else await self._look_up(address.host)
        allowed = [ip for ip in found if is_free or is_globally_routable(ip)]
        if not allowed:
            raise AddressRefused(_NOT_PUBLIC)
        return allowed

    async def _look_up(self, name: str) -> list[IpAddress]:
        found = (read_ip(text) for text in await self._resolve(name))
        return _alternating(dict.fromkeys(ip for ip in found if ip is not None))[:ADDRESSES_OF_NAME_MAX]


def is_onion(host: str) -> bool:
    """Whether a name is that of an onion service."""
    return host.lower().rstrip(".").endswith(".onion")


def _alternating(addresses: Iterable[IpAddress]) -> list[IpAddress]:
    """The families in turn, beginning with the first one's (RFC 8305): one that does not work costs one attempt."""
    found = list(addresses)
    if not found:
        return []
    first = [ip for ip in found if ip.version == found[0].version]
    others = [ip for ip in found if ip.version != found[0].version]
    turns = list(zip(first, others, strict=False))
    rest = first[len(turns) :] + others[len(turns) :]
    return [ip for pair in turns for ip in pair] + rest


class Resolver:
    """Looks names up as the system does, a few at a time."""

    def __init__(self) -> None:
        self._places = trio.CapacityLimiter(LOOKUPS_MAX)

    async def __call__(self, name: str) -> list[str]:
        """The addresses of a name. Raises OSError."""
        return await trio.to_thread.run_sync(_lookup, name, limiter=self._places, abandon_on_cancel=True)


def _lookup(name: str) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
