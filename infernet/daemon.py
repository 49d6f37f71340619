"""The node as a process: with its socket, its signals and its secret out of core dumps."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
import trio

import infernet
from infernet.answers import AnswerEvent, AskOptions
from infernet.assembly import run_node
from infernet.config import Config
from infernet.coordinator_client import CoordinatorError
from infernet.coordinators import remember
from infernet.driver import wall_ms
from infernet.host.files import FilesError
from infernet.host.notify import Notifier
from infernet.identity import forbid_core_dumps
from infernet.ipc import server as ipc_server
from infernet.ipc.server import (
    DRAIN_LIMIT_S,
    ChatRequest,
    CloseLeaseRequest,
    Handlers,
    JoinRequest,
    MoneyRequest,
)
from infernet.metrics.exposition import NodeMetrics
from infernet.money.client import TARGETS
from infernet.node import Node
from infernet.own_addresses import peer_of
from infernet.settings.readers import read_node, read_peer
from protocol.envelope import SigningKey
from protocol.errors import LocalProtocolError
from protocol.ids import LeaseId, NodeId, peer_id
from protocol.records import ChatMessage

if TYPE_CHECKING:
    from infernet.metrics.server import MetricsDoor

log = structlog.get_logger(__name__)

_LINK_TIMEOUT_S: Final = 20.0
_LINK_POLL_S: Final = 0.1
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _nobody_waits() -> None:
    """Where nobody does."""


class RunNode(Protocol):
    """As `run_node`."""

    async def __call__(self, config: Config, key: SigningKey, *, task_status: trio.TaskStatus[Node]) -> None: ...


async def run_daemon(
    config: Config,
    key: SigningKey,
    ready: Callable[[dict[str, Any]], None],
    run: RunNode = run_node,
    *,
    once: bool = False,
    loading: Callable[[], None] = _nobody_waits,
) -> None:
    """Run the node with its socket and its signals until it is stopped. The caller holds the lock.

    A service manager that started this process hears that it is ready as soon as the node listens and answers its
    owner. Where the engine takes longer, `loading` is called then; `ready` is called once with the node's status, when
    it has loaded. With `once` the node is stopped then, which is not before it is linked to its coordinator, if it has
    one. Raises what `run` raises, ConfigError, OSError, and CoordinatorError where it could not be linked.
    """
    forbid_core_dumps()
    notifier = Notifier.of(os.environ, os.getpid())
    async with _metrics_door(config) as door, trio.open_nursery() as nursery:
        stop = _Stop(nursery.cancel_scope)
        await nursery.start(stop.on_signals)
        node: Node = await nursery.start(_run_to_its_end, run, config, key, nursery.cancel_scope)
        stop.node = node
        node.on_linked = lambda: nursery.start_soon(_remember, config)
        if node.is_linked:
            node.on_linked()
        metrics = NodeMetrics(lambda: status_of(node), node.find_cards)
        await nursery.start(ipc_server.serve, config.socket_path, handlers(node, metrics))
        if door is not None:
            nursery.start_soon(door.serve, metrics, wall_ms)
        log.info(
            "node.started",
            version=infernet.__version__,
            role=config.role.name.lower(),
            peer_id=peer_id(key.node),
            addresses=node.addresses(),
            pid=os.getpid(),
        )
        nursery.start_soon(notifier.run)
        nursery.start_soon(_tell_the_end, node, notifier)
        is_up = await until_loaded(node, f"{config.role.name.lower()} {config.name}", notifier, loading)
        if is_up and once:
            await _linked(node)
        if is_up:
            ready(status_of(node))
        # What is there now stays to the end. Without this, the garbage collector looks through all of it again and
        # again, and nobody is answered meanwhile: a quarter of a second each time.
        gc.collect()
        gc.freeze()
        if once:
            node.stop()
    gc.unfreeze()
    log.info("node.stopped", pid=os.getpid())


async def _remember(config: Config) -> None:
    """What the coordinator holds for this key later must be found by somebody whose environment does not name it."""
    if config.coordinator_url is None or config.coordinator_key is None:
        return
    try:
        await trio.to_thread.run_sync(remember, config.config_dir, config.coordinator_url, config.coordinator_key)
    except FilesError as error:
        log.warning("coordinator.not_remembered", detail=str(error))


async def until_loaded(node: Node, who: str, notifier: Notifier, loading: Callable[[], None]) -> bool:
    """Say that the node is there, and wait until its engine is; whether the node goes on."""
    if not node.is_loading:
        notifier.ready(who)
        return True
    models = ", ".join(node.models_loading()) or "its engine"
    # Loading does not hold it up: the end of it is nobody's to foretell, and the node is there for its owner.
    notifier.ready(f"{who}, loading {models}")
    log.info("node.loading", model=models)
    loading()
    began_s = trio.current_time()
    if not await node.wait_loaded():
        return False
    log.info("node.loaded", duration_s=round(trio.current_time() - began_s, 1))
    notifier.status(who)
    return True


async def _linked(node: Node) -> None:
    """Wait until the coordinator has heard of this node. Raises CoordinatorError."""
    link = node.status()["coordinator"]
    with trio.move_on_after(_LINK_TIMEOUT_S):
        while link is not None and link["state"] != "connected":
            await trio.sleep(_LINK_POLL_S)
            link = node.status()["coordinator"]
    if link is not None and link["state"] != "connected":
        raise CoordinatorError(
            f"the node was up, and not connected to {link['url']} within {_LINK_TIMEOUT_S:.0f} s "
            f"({link['last_error'] or 'it does not answer'}): `infernet doctor` looks further"
        )


@asynccontextmanager
async def _metrics_door(config: Config) -> AsyncIterator[MetricsDoor | None]:
    """The port for metrics, where one is set: opened first, so that a taken one is known before a model is loaded."""
    if not config.metrics_port:
        yield None
        return
    # The library that reads HTTP is for those who want it.
    from infernet.metrics.server import open_door
    from infernet.metrics.token import open_token

    async with open_door(config.metrics_host, config.metrics_port, open_token(config)) as door:
        yield door


class _Stop:
    """What a signal does: the first lets running jobs finish, the second does not, the third asks nobody."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.node: Node | None = None
        self._scope = scope

    async def on_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        # The end of a terminal ends a node in its foreground like any other stop, unless `nohup` has said otherwise.
        signals = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        with trio.open_signal_receiver(*signals) as received:
            task_status.started()
            count = 0
            async for number in received:
                log.info("node.stopping", reason=signal.Signals(number).name)
                if self.node is None or count > 1:
                    self._scope.cancel()
                elif count == 1:
                    self.node.stop()
                else:
                    self.node.drain(DRAIN_LIMIT_S)
                count += 1


async def _run_to_its_end(
    run: RunNode, config: Config, key: SigningKey, scope: trio.CancelScope, *, task_status: trio.TaskStatus[Node]
) -> None:
    await run(config, key, task_status=task_status)
    scope.cancel()


async def _tell_the_end(node: Node, notifier: Notifier) -> None:
    # Not before: from then on systemd counts how long the end takes, and jobs that drain may take longer.
    await node.wait_stopping()
    notifier.stopping()


def status_of(node: Node) -> dict[str, Any]:
    """The node's status and its process id."""
    return {"pid": os.getpid(), **node.status()}


def handlers(node: Node, metrics: NodeMetrics | None = None) -> Handlers:
    """What the socket may ask of a node; the metrics are those that its port shows, where it has one."""
    shown = metrics or NodeMetrics(lambda: status_of(node), node.find_cards)

    @asynccontextmanager
    async def chat(request: ChatRequest) -> AsyncIterator[AsyncIterator[AnswerEvent]]:
        provider = _provider(node, request)
        options = AskOptions(
            messages=tuple(ChatMessage(turn.role, turn.content) for turn in request.messages),
            model=request.model,
            provider=provider,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop=request.stop,
            seed=request.seed,
            timeout_s=request.timeout_s,
            via=_via(node, request),
            spend_uusd_max=_spend(node, request),
        )
        async with node.ask(options) as events:
            yield events

    async def join(request: JoinRequest) -> dict[str, str]:
        peers: dict[NodeId, list[str]] = {}
        for address in request.peers:
            try:
                peers.setdefault(peer_of(read_peer(address)), []).append(address)
            except ValueError as error:
                raise LocalProtocolError(f"peer {error}") from None
        return {node_id.hex(): reason for node_id, reason in (await node.join(peers)).items()}

    async def money(request: MoneyRequest) -> object:
        if request.ask not in TARGETS:
            raise LocalProtocolError(f"the coordinator can be asked for {', '.join(TARGETS)}")
        answer = await node.money.ask(request.ask, dict(request.fields))
        await _remember(node.config)
        return answer

    async def close_leases(request: CloseLeaseRequest) -> list[dict[str, Any]]:
        return await node.money.close_leases(LeaseId(request.lease) if request.lease is not None else None)

    return Handlers(
        status=lambda: status_of(node),
        peers=node.peers,
        live=node.live,
        shutdown=node.stop,
        drain=node.drain,
        pause=node.pause,
        jobs_left=node.jobs_left,
        chat=chat,
        join=join,
        why=node.why,
        money=money,
        claim=lambda: node.money.claim_now(),
        close_leases=close_leases,
        metrics=shown.text,
    )


def _spend(node: Node, request: ChatRequest) -> int:
    """What the answer may cost: what was said, else what this node is set to, where it can pay at all."""
    if request.spend_uusd_max is not None:
        return request.spend_uusd_max
    return int(node.config.spend_usd_max) if node.can_pay else 0


def _via(node: Node, request: ChatRequest) -> NodeId | None:
    """Who is to pass the order on, if the request says so. Raises LocalProtocolError."""
    if request.via is None:
        return None
    try:
        if request.via.startswith("/"):
            return node.learn_peer(read_peer(request.via))
        return read_node(request.via)
    except ValueError as error:
        raise LocalProtocolError(f"via {error}") from None


def _provider(node: Node, request: ChatRequest) -> NodeId | None:
    """Who is to answer, if the request says so. Raises LocalProtocolError."""
    try:
        if request.peer is not None:
            return node.learn_peer(read_peer(request.peer))
        return read_node(request.provider) if request.provider is not None else None
    except ValueError as error:
        what = "peer" if request.peer is not None else "provider"
        raise LocalProtocolError(f"{what} {error}") from None
