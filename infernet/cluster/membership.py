"""A node's part in a cluster, if it has one: worker, head, both or none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from infernet.cluster.engine import ClusterEngine
from infernet.cluster.network import TransportNetwork
from infernet.cluster.worker import Worker
from infernet.cluster.workers import addresses_in, worker_of
from infernet.config import Config
from infernet.driver import Driver
from infernet.engines.contract import Engine
from infernet.own_addresses import peer_of
from infernet.transport.contract import Stream, Transport
from protocol.clusters import CLUSTER_PROTOCOL
from protocol.ids import NodeId


def spoken_in_clusters(config: Config) -> tuple[str, ...]:
    """The protocols beyond those of every node: a node that is nobody's worker does not speak this one at all."""
    # SPEC 11: A node whose owner named no head MUST NOT speak this protocol.
    return (CLUSTER_PROTOCOL,) if config.cluster_head is not None else ()


class Cluster:
    """What of a cluster a node is. `services` are for the transport's carrier; `known` are never refused."""

    def __init__(self, config: Config, engine: Engine | None, transport: Transport | None, driver: Driver) -> None:
        self._driver = driver
        self._peers = config.peers
        self._head = engine if isinstance(engine, ClusterEngine) else None
        self._worker = (
            Worker(config.cluster_head, config.llama_server, threads=config.threads)
            if config.cluster_head is not None
            else None
        )
        workers = config.cluster_workers if self._head is not None else ()
        self.addresses = addresses_in(workers)
        self.known: frozenset[NodeId] = frozenset(map(worker_of, workers))
        if config.cluster_head is not None:
            self.known |= {config.cluster_head}
        if self._head is not None and transport is not None:
            self._head.use_network(TransportNetwork(transport, self._addresses_of))

    @property
    def services(self) -> Mapping[str, Callable[[Stream], Awaitable[None]]]:
        """Who serves which protocol."""
        return {CLUSTER_PROTOCOL: self._worker.serve} if self._worker is not None else {}

    def status(self) -> dict[str, Any] | None:
        """What `infernet cluster status --json` shows of the running node; None for a node that has no part in one."""
        if self._worker is None and self._head is None:
            return None
        return {
            "worker": self._worker.status() if self._worker is not None else None,
            "head": self._head.cluster_status() if self._head is not None else None,
        }

    def _addresses_of(self, peer: NodeId) -> list[str]:
        """Where a worker is: as the owner wrote it, else as its heartbeat says."""
        named = [address for address in (*self.addresses, *self._peers) if peer_of(address) == peer]
        entry = self._driver.peer.directory.get(peer)
        heard = list(entry.heartbeat.addresses) if entry is not None else []
        return list(dict.fromkeys((*named, *heard)))
