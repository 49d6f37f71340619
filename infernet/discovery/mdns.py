"""Finding nodes on the local network, and being found there, by multicast DNS over IPv4.

The packets are in `mdns_packets`; here are the socket and the manners: who asks when, who answers how fast. On each
link a node tells only the address that it has on this link, and takes an address only from the host that has it: so
nothing of one network is told in another, and nobody can send us to somebody else's door.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Final

import psutil
import structlog
import trio

from infernet.discovery.contract import Finds
from infernet.discovery.mdns_packets import PACKET_BYTES_MAX, answer, question, read
from infernet.host.files import reason_of
from infernet.transport.addresses import parse_tcp
from protocol.rates import Rates

log = structlog.get_logger(__name__)

GROUP: Final = "224.0.0.251"
PORT: Final = 5353
# Packets of one hop: RFC 6762, section 11.
HOPS: Final = 255
# On arriving: say that we are here, and ask who is, a few times, because packets get lost.
ARRIVING_S: Final = (0.1, 1.0, 3.0)
# Afterwards newcomers announce themselves; asking now and then finds those whom a broken cable hid.
ASK_S: Final = 600.0
# How often it is looked whether this machine has moved to another network.
LINKS_S: Final = 15.0
# Several nodes answer one question: each waits a moment of its own, and none answers more than once in a second.
# Source: RFC 6762, section 6.
ANSWER_DELAY_S: Final = (0.02, 0.12)
ANSWER_PAUSE_S: Final = 1.0
# What is read in a second, in all: a flood stays in the kernel, which drops it.
PACKETS_PER_S: Final = 100
PAUSE_S: Final = 0.1
NODES_PER_MINUTE: Final = 60
# Everybody repeats what they said. The peer forgets, so it is told again, but not at every repetition.
TELL_AGAIN_S: Final = 60.0
# Addresses that may be dialled though they are private: a host of this network that makes up many gets no more.
TOLD_MAX: Final = 256
FORGET_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Link:
    """One network that this machine is on: its address there, and which addresses are neighbours."""

    address: IPv4Interface

    @property
    def host(self) -> str:
        return str(self.address.ip)


def links() -> tuple[Link, ...]:
    """The networks that this machine is on now, its own loopback left out."""
    found: list[Link] = []
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if name in up and address.family == socket.AF_INET and address.netmask:
                link = Link(IPv4Interface(f"{address.address}/{address.netmask}"))
                if not link.address.is_loopback:
                    found.append(link)
    return tuple(sorted(found, key=lambda link: link.address))


class Mdns:
    """A source: asks who is there, and answers unless the node does not listen."""

    name = "mdns"
    per_minute = NODES_PER_MINUTE

    def __init__(
        self,
        listening: Callable[[], list[str]],
        permit: Callable[[str], None],
        rng: random.Random,
        *,
        find_links: Callable[[], tuple[Link, ...]] = links,
        port: int = PORT,
    ) -> None:
        """`listening` gives the full multiaddrs that may be told here, none when the node is not to be found.

        `permit` allows dialling an address that strangers could not send us to.
        """
        self._listening = listening
        self._permit = permit
        self._rng = rng
        self._find_links = find_links
        self._port = port
        # Random, so that it tells nothing of machine or node.
        self._label = secrets.token_hex(16)
        self._asked = trio.Event()
        self._rates: Rates[None] = Rates(PACKETS_PER_S, PACKETS_PER_S)
        self._told_s: dict[str, float] = {}

    async def run(self, finds: Finds) -> None:
        while True:
            here = self._find_links()
            try:
                with _joined(here, self._port) as sock:
                    await self._run_on(sock, here, finds)
            except OSError as error:
                # No multicast on these links, or the port is somebody's alone: perhaps later, on others.
                log.info("mdns.unavailable", reason=reason_of(error))
                await trio.sleep(LINKS_S)

    async def _run_on(self, sock: socket.socket, here: tuple[Link, ...], finds: Finds) -> None:
        """Speak and listen as long as the links are the same."""
        stream = trio.socket.from_stdlib_socket(sock)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, stream, here, finds)
                nursery.start_soon(self._ask, stream, here)
                nursery.start_soon(self._answer, stream, here)
                await self._links_to_change(here)
                nursery.cancel_scope.cancel()
        finally:
            self._say_goodbye(sock, here)

    async def _links_to_change(self, here: tuple[Link, ...]) -> None:
        while True:
            await trio.sleep(LINKS_S)
            if self._find_links() != here:
                return

    # ------------------------------------------------------------ speaking

    async def _ask(self, stream: trio.socket.SocketType, here: tuple[Link, ...]) -> None:
        for pause_s in ARRIVING_S:
            await trio.sleep(pause_s * (0.5 + self._rng.random()))
            self._asked.set()
            await self._send(stream, here, lambda _: question())
        while True:
            await trio.sleep(ASK_S * (0.5 + self._rng.random()))
            await self._send(stream, here, lambda _: question())

    async def _answer(self, stream: trio.socket.SocketType, here: tuple[Link, ...]) -> None:
        while True:
            await self._asked.wait()
            # SPEC 03: A node MUST wait for a random time from 20 to 120 ms before it answers, and MUST NOT answer more
            #   often than once in a second.
            await trio.sleep(self._rng.uniform(*ANSWER_DELAY_S))
            self._asked = trio.Event()
            await self._send(stream, here, self._answer_on)
            await trio.sleep(ANSWER_PAUSE_S)

    def _answer_on(self, link: Link, **lifetime: int) -> bytes | None:
        """That we are here, at the address that we have on this link; None where we do not listen."""
        # SPEC 03: A node MUST answer on a link only with the IPv4 address that it has on this link, and only if it
        #   listens there.
        start = f"/ip4/{link.host}/tcp/"
        address = next((text for text in self._listening() if text.startswith(start)), None)
        return answer(self._label, address, **lifetime) if address is not None else None

    async def _send(
        self, stream: trio.socket.SocketType, here: tuple[Link, ...], packet_on: Callable[[Link], bytes | None]
    ) -> None:
        for link in here:
            packet = packet_on(link)
            if packet is not None:
                try:
                    stream.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, link.address.ip.packed)
                    await stream.sendto(packet, (GROUP, self._port))
                except OSError as error:
                    log.debug("mdns.not_sent", link=link.host, reason=reason_of(error))

    def _say_goodbye(self, sock: socket.socket, here: tuple[Link, ...]) -> None:
        """So that others forget us at once; when that does not work they do so by themselves."""
        for link in here:
            packet = self._answer_on(link, lifetime_s=0)
            if packet is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, link.address.ip.packed)
                    sock.sendto(packet, (GROUP, self._port))

    # ------------------------------------------------------------ listening

    async def _listen(self, stream: trio.socket.SocketType, here: tuple[Link, ...], finds: Finds) -> None:
        while True:
            data, (host, port) = await stream.recvfrom(PACKET_BYTES_MAX + 1)
            if not self._rates.take(None, trio.current_time()):
                await trio.sleep(PAUSE_S)
            # SPEC 03: The receiver MUST ignore packets that come from another port than 5353, or from an address that
            #   is not in the network of the link.
            elif port == self._port and _is_neighbour(host, here):
                await self._take(data, host, finds)

    async def _take(self, data: bytes, host: str, finds: Finds) -> None:
        packet = read(data)
        if packet.asks:
            self._asked.set()
        for text in packet.addresses:
            try:
                address = parse_tcp(text)
            except ValueError:
                continue
            # SPEC 03: The receiver MUST ignore an address that is not the one that the packet came from.
            if address.host == host and address.peer is not None and self._is_worth_telling(text):
                self._permit(text)
                await finds.addresses(address.peer, [text])

    def _is_worth_telling(self, address: str) -> bool:
        """Whether an address was not told a moment ago, and is not one too many."""
        now_s = trio.current_time()
        told_s = self._told_s.get(address)
        if told_s is not None and now_s - told_s < TELL_AGAIN_S:
            return False
        if told_s is None and len(self._told_s) >= TOLD_MAX:
            oldest, oldest_s = next(iter(self._told_s.items()))
            if now_s - oldest_s < FORGET_S:
                return False
            del self._told_s[oldest]
        # The one told longest ago comes first.
        self._told_s.pop(address, None)
        self._told_s[address] = now_s
        return True


def _is_neighbour(host: str, here: tuple[Link, ...]) -> bool:
    ip = IPv4Address(host)
    return any(ip in link.address.network for link in here)


@contextlib.contextmanager
def _joined(here: tuple[Link, ...], port: int) -> Iterator[socket.socket]:
    """A socket that gets what is sent to the group on these links, next to those of other programs. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # To the group's own address, so that nothing gets in here that was sent to this machine alone.
        sock.bind((GROUP, port))
        for link in here:
            # Some links know no multicast; the others are good enough.
            with contextlib.suppress(OSError):
                membership = socket.inet_aton(GROUP) + link.address.ip.packed
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, HOPS)
        # Another node may run on this very machine.
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        sock.setblocking(False)
        yield sock
