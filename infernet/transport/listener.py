"""The listening sockets, and the addresses that they stand for.

Our sockets do not share their port (no SO_REUSEPORT), so a second node of the same user fails loudly instead of
taking a random half of the connections.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from typing import Final

import psutil
import structlog
import trio

from infernet.host.files import reason_of
from infernet.transport.addresses import tcp_multiaddr
from infernet.transport.contract import ListenFailed, PortTaken

log = structlog.get_logger(__name__)

# A free port for one address family may be taken for the other; then we ask for another one.
_FREE_PORT_ATTEMPTS: Final = 8
# The machine has no such address family, or not this address.
_UNAVAILABLE: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


async def open_listeners(hosts: Sequence[str], port: int) -> list[trio.SocketListener]:
    """Listen on one port of all hosts (literal IP addresses), port 0 meaning any free one.

    An address that the machine does not have, as `::` without IPv6, is left out as long as another one works.
    Raises PortTaken or ListenFailed, and then holds nothing.
    """
    attempts = 1 if port else _FREE_PORT_ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            return await _open_all(hosts, port)
        except PortTaken:
            if attempt == attempts:
                raise
    raise AssertionError


async def _open_all(hosts: Sequence[str], port: int) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    missing: list[str] = []
    try:
        for host in hosts:
            try:
                opened = await trio.open_tcp_listeners(port, host=host)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise PortTaken(port) from error
                if error.errno not in _UNAVAILABLE:
                    raise ListenFailed(f"cannot listen on {host} port {port}: {error}") from error
                missing.append(f"{host} ({reason_of(error)})")
                continue
            listeners += opened
            port = port or opened[0].socket.getsockname()[1]
        if hosts and not listeners:
            raise ListenFailed(
                f"cannot listen on {', '.join(missing)}: give addresses that this machine has (--listen-hosts), "
                "or 0.0.0.0 and :: for all of them"
            )
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    for reason in missing:
        log.info("transport.not_listening", reason=reason)
    return listeners


def listening_addresses(listeners: Sequence[trio.SocketListener]) -> list[str]:
    """The multiaddrs without a peer that others on the right network can dial: interfaces instead of wildcards."""
    addresses = []
    for listener in listeners:
        host, port = listener.socket.getsockname()[:2]
        addresses += [tcp_multiaddr(each, port) for each in _expand(host)]
    return addresses


def _expand(host: str) -> Iterator[str]:
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        yield host
        return
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    found = [
        ipaddress.ip_address(entry.address.partition("%")[0])
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == family
    ]
    # Link-local addresses mean nothing without the name of an interface. Loopback is of use to this machine only.
    for each in sorted(found, key=lambda each: each.is_loopback):
        if not each.is_link_local:
            yield str(each)
