"""The DHT process: takes part in the DHT, publishes what the node tells it to, and searches for what it asks.

It is started by `dht_process.py`, as `python -m infernet.discovery.dht_worker` or, in a packaged binary, by the hidden
verb `dht-worker`. It has a key of its own, made for this run, and knows nothing that is not public. It ends when its
standard input closes, which is how it learns that the node is gone.
"""

from __future__ import annotations

import os
import random
import resource
import sys
from collections.abc import Iterable
from itertools import chain, islice, zip_longest
from types import TracebackType
from typing import Any, Final, NoReturn

import structlog
import trio
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from infernet.confinement.profiles import confine_dht
from infernet.discovery.dht_frames import (
    ADDRESSES_MAX,
    Begin,
    Begun,
    Command,
    Found,
    FrameCutter,
    Meet,
    NotBegun,
    Ping,
    Pong,
    Publish,
    Report,
    Search,
    encode,
    read_command,
)
from infernet.discovery.dht_host import HostUnavailable, Providers, configure_library, running_dht
from infernet.discovery.dht_records import REPUBLISH_S, heartbeat_key
from infernet.host.hardening import harden
from protocol import constants as c
from protocol.errors import LocalProtocolError
from protocol.ids import NodeId, node_id_from_peer_id

log = structlog.get_logger(__name__)

_READ_BYTES: Final = 64 * 1024
# The library itself takes a good part of this.
MEMORY_BYTES_MAX: Final = 1536 * 1024 * 1024
FILES_MAX: Final = 512
# A search is given up after this long; an asker waits no longer (protocol/constants.py, SEARCH_DEADLINE_S).
SEARCH_TIMEOUT_S: Final = 5.0
# Of the peers nearest to a key this many are asked, so that none of them alone decides.
ASKED_MAX: Final = 8
NODES_MAX: Final = 16
SEARCHES_MAX: Final = 8
PUBLISH_TIMEOUT_S: Final = 60.0
MEET_TIMEOUT_S: Final = 10.0


def main() -> NoReturn:
    """Serve the node on standard input and output until it is gone, then end this process."""
    sys.excepthook = _name_only
    frames = os.dup(1)
    os.dup2(2, 1)
    harden()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MAX, FILES_MAX))
    # What is not on here, `infernet doctor` tells of the engine's process: it is the same kernel.
    confine_dht()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.stderr))
    try:
        trio.run(_serve, frames)
    except BaseException as error:  # noqa: BLE001 - the process ends here, with one word about why
        _name_only(type(error), error, None)
        os._exit(1)
    os._exit(0)


def _name_only(kind: type[BaseException], error: BaseException | None, _trace: TracebackType | None) -> None:
    leaf = error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    sys.stderr.write(f"dht process: {type(leaf).__name__ if leaf is not None else kind.__name__}\n")


async def _serve(descriptor: int) -> None:
    """The first command begins; then one after the other, until the node closes the pipe."""
    async with trio.lowlevel.FdStream(os.dup(0)) as commands, trio.lowlevel.FdStream(descriptor) as reports:
        cutter = FrameCutter()
        pending: list[Command] = []

        async def next_command() -> Command | None:
            while not pending:
                data = await commands.receive_some(_READ_BYTES)
                if not data:
                    return None
                pending.extend(map(read_command, cutter.feed(bytes(data))))
            return pending.pop(0)

        begin = await next_command()
        if begin is None:
            return
        assert isinstance(begin, Begin), "the node begins with something else"
        send = _Sender(reports)
        try:
            configure_library()
            # Whoever is not to be found opens no port.
            hosts = begin.listen_hosts if begin.announced_hosts else ()
            async with (
                running_dht(hosts, begin.port, begin.announced_hosts, allow_private=begin.allow_private) as (host, dht),
                trio.open_nursery() as nursery,
            ):
                participant = Participant(host, dht, send, nursery)
                await send(Begun(participant.addresses()))
                participant.meet(begin.peers)
                while (command := await next_command()) is not None:
                    await participant.handle(command)
                os._exit(0)  # the library takes its time to close; nobody waits for it
        except HostUnavailable as error:
            await send(NotBegun(str(error)))


class _Sender:
    """Writes frames one after the other; waits while the node does not read."""

    def __init__(self, stream: trio.lowlevel.FdStream) -> None:
        self._stream = stream
        self._lock = trio.Lock()

    async def __call__(self, report: Report) -> None:
        async with self._lock:
            await self._stream.send_all(encode(report))


class Participant:
    """One node's part in the DHT."""

    def __init__(self, host: Any, dht: Any, send: _Sender, nursery: trio.Nursery) -> None:
        self._host = host
        self._dht = dht
        self._send = send
        self._nursery = nursery
        self._searches = trio.CapacityLimiter(SEARCHES_MAX)
        self._publishing: trio.CancelScope | None = None

    def addresses(self) -> tuple[str, ...]:
        """Where we are, for others to begin with."""
        return tuple(str(address) for address in self._host.get_addrs())[:ADDRESSES_MAX]

    async def handle(self, command: Command) -> None:
        """Take a command; what takes longer goes on beside."""
        match command:
            case Ping():
                await self._send(Pong(command.number, self._peers()))
            case Meet():
                self.meet(command.peers)
            case Publish():
                if self._publishing is not None:
                    self._publishing.cancel()
                self._publishing = trio.CancelScope()
                self._nursery.start_soon(self._publish, command, self._publishing)
            case Search():
                if self._searches.available_tokens > 0:
                    self._nursery.start_soon(self._search, command.key)
            case Begin():
                raise AssertionError("the node begins twice")

    # ------------------------------------------------------------ peers of the DHT

    def meet(self, addresses: Iterable[str]) -> None:
        """Connect to these peers, and look around from there."""
        self._nursery.start_soon(self._meet, tuple(addresses))

    async def _meet(self, addresses: tuple[str, ...]) -> None:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(self._meet_one, address)
        if addresses:
            await self._dht.refresh_routing_table()

    async def _meet_one(self, address: str) -> None:
        place, _, peer = address.rpartition("/p2p/")
        try:
            info = PeerInfo(ID.from_string(peer), [Multiaddr(place)])
            with trio.move_on_after(MEET_TIMEOUT_S):
                await self._host.connect(info)
                await self._dht.add_peer(info.peer_id, skip_server_mode_check=True)
        except Exception as error:  # noqa: BLE001 - whatever bad addresses and bad peers can cause in the library
            log.debug("dht.not_met", error=type(error).__name__)

    def _peers(self) -> tuple[str, ...]:
        """Some peers with their addresses, for the next run."""
        store = self._host.get_peerstore()
        found = [
            f"{address}/p2p/{peer}"
            for peer in self._dht.routing_table.get_peer_ids()
            for address in islice(_addresses_of(store, peer), 1)
        ]
        good = [text for text in found if len(text) <= c.ADDRESS_CHARACTERS_MAX]
        return tuple(random.sample(good, min(ADDRESSES_MAX, len(good))))

    # ------------------------------------------------------------ publishing

    async def _publish(self, publish: Publish, scope: trio.CancelScope) -> None:
        """Say what the node provides, again and again, until told something else."""
        providers: Providers = self._dht.provider_store
        providers.node_addresses = [Multiaddr(address) for address in publish.addresses]
        with scope:
            while publish.keys:
                with trio.move_on_after(PUBLISH_TIMEOUT_S):
                    await self._publish_once(publish)
                await trio.sleep(REPUBLISH_S)

    async def _publish_once(self, publish: Publish) -> None:
        try:
            await self._dht.put_value(heartbeat_key(publish.node), publish.record)
            for key in publish.keys:
                await self._dht.provider_store.provide(key)
        except Exception as error:  # noqa: BLE001 - whatever bad peers can cause in the library
            log.debug("dht.not_published", error=type(error).__name__)

    # ------------------------------------------------------------ searching

    async def _search(self, key: bytes) -> None:
        """Ask those nearest to a key who provides it, and tell of each node found."""
        with trio.move_on_after(SEARCH_TIMEOUT_S):
            async with self._searches, trio.open_nursery() as nursery:
                for node, addresses in (await self._providers(key)).items():
                    nursery.start_soon(self._tell_of, node, tuple(addresses)[: c.HEARTBEAT_ADDRESSES_MAX])

    async def _providers(self, key: bytes) -> dict[NodeId, list[str]]:
        """The nodes that peers name, with the addresses that they name; no peer's answer displaces another's."""
        answers: list[list[PeerInfo]] = [self._dht.provider_store.get_providers(key)]

        async def ask(peer: ID) -> None:
            store = self._dht.provider_store
            with trio.move_on_after(SEARCH_TIMEOUT_S / 2):
                providers, _ = await store._get_providers_from_peer_with_closers(peer, key)
                answers.append(providers)

        nearest = await self._dht.peer_routing.find_closest_peers_network(key)
        async with trio.open_nursery() as nursery:
            for peer in nearest[:ASKED_MAX]:
                nursery.start_soon(ask, peer)
        found: dict[NodeId, list[str]] = {}
        # SPEC 03: The receiver MUST ask several peers, and MUST NOT let the answer of one displace those of others.
        # So: one from each answer in turn.
        for info in filter(None, chain.from_iterable(zip_longest(*answers))):
            for node, address in _nodes_at(info.addrs):
                if node in found or len(found) < NODES_MAX:
                    found.setdefault(node, []).append(address)
        return found

    async def _tell_of(self, node: NodeId, addresses: tuple[str, ...]) -> None:
        # Where it is can be used at once; what it says of itself may come later, or from itself.
        await self._send(Found(node, tuple(dict.fromkeys(addresses)), None))
        try:
            record = await self._dht.get_value(heartbeat_key(node))
        except Exception as error:  # noqa: BLE001 - whatever bad peers can cause in the library
            log.debug("dht.no_heartbeat", error=type(error).__name__)
            return
        if record is not None:
            await self._send(Found(node, (), record))


def _addresses_of(store: Any, peer: ID) -> list[str]:
    try:
        return [str(address).partition("/p2p/")[0] for address in store.addrs(peer)]
    except Exception as error:  # noqa: BLE001 - the library raises for a peer without addresses
        log.debug("dht.no_addresses", error=type(error).__name__)
        return []


def _nodes_at(addresses: Iterable[Multiaddr]) -> Iterable[tuple[NodeId, str]]:
    """The nodes that multiaddrs lead to, as far as they name one."""
    for address in islice(addresses, ADDRESSES_MAX):
        text = str(address)
        place, separator, name = text.rpartition("/p2p/")
        if separator and place and len(text) <= c.ADDRESS_CHARACTERS_MAX:
            try:
                yield node_id_from_peer_id(name), text
            except LocalProtocolError:
                continue


if __name__ == "__main__":
    main()
