"""A node out of its configuration: what it needs is opened in order, and closed again."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace

import trio

from infernet.cluster.membership import spoken_in_clusters
from infernet.config import Config
from infernet.driver import wall_ms
from infernet.engines.contract import Engine
from infernet.engines.selection import open_engine
from infernet.hardware.watch import Watch
from infernet.money.store import MoneyStore
from infernet.node import AGENT, Node
from infernet.proxy import open_proxy
from infernet.store import Store
from infernet.transport.contract import Transport
from infernet.transport.libp2p_host import HostLimits, Libp2pTransport
from infernet.transport.yamux_session import YamuxConfig
from protocol import constants as c
from protocol.clusters import CLUSTER_PROTOCOL
from protocol.envelope import SigningKey
from protocol.records import Role


async def run_node(
    config: Config,
    key: SigningKey,
    *,
    engine_of: Callable[[Config], Awaitable[Engine | None]] = open_engine,
    clock_ms: Callable[[], int] = wall_ms,
    task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the node that the configuration describes until it is stopped or cancelled.

    Raises StoreError or TransportError before `started()`, and EngineUnavailable then or when the first load has
    failed, each one line for people.
    """
    engine = await engine_of(config)
    with closing(Store(config.store_file)) as store, _money_store(config) as money_store:
        transport = _transport(config, key, listen=True)
        node = Node(
            *(config, key),
            transport=transport,
            engine=engine,
            store=store,
            money_store=money_store,
            # Only who serves has a use for telling.
            hardware=Watch() if config.role is Role.PROVIDER else None,
            clock_ms=clock_ms,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            task_status.started(node)


@contextmanager
def _money_store(config: Config) -> Iterator[MoneyStore | None]:
    """The money store of a node that has a coordinator, closed afterwards."""
    if config.coordinator_url is None:
        yield None
        return
    with closing(MoneyStore(config.money_file)) as store:
        yield store


@asynccontextmanager
async def client_node(config: Config, key: SigningKey, *, peers: Sequence[str] = ()) -> AsyncIterator[Node]:
    """A short-lived node that only asks: it listens nowhere, offers and reports nothing, and knows these multiaddrs."""
    config = replace(config, role=Role.CLIENT, advertise=False, reports=False, forward=False)
    config = replace(config, peers=tuple(peers), p2p_enabled=True)
    node = Node(config, key, transport=_transport(config, key, listen=False), engine=None)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        node.stop()


def _transport(config: Config, key: SigningKey, *, listen: bool) -> Transport | None:
    if not config.p2p_enabled:
        return None
    return Libp2pTransport(
        key.secret_bytes(),
        agent=AGENT,
        protocols=(*c.PROTOCOLS, *spoken_in_clusters(config)),
        randomness=random.SystemRandom(),
        listen_hosts=config.listen_hosts if listen else (),
        port=config.listen_port,
        limits=HostLimits(yamux=YamuxConfig(inbound_streams_max=_streams_max(config))),
        allow_private=config.allow_private,
        proxy=proxy.connect if (proxy := open_proxy(config)) is not None else None,
        watched=(c.JOB_PROTOCOL, CLUSTER_PROTOCOL),
    )


def _streams_max(config: Config) -> int:
    """Streams that one connection may have: those that the protocol grants its peer, and some that are just ending."""
    of_server = max(1, len(config.engine_models)) if "openai" in config.engines else 0
    slots = max([config.slots, *(own.slots or 0 for own in config.model_settings)])
    jobs = max(c.JOB_STREAMS_PER_PEER_MAX, 2 * slots * max(1, len(config.llama_models) + of_server))
    return max(YamuxConfig().inbound_streams_max, jobs + 2 * c.CONTROL_STREAMS_PER_PEER_MAX)
