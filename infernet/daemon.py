"""The node of this user on this machine: at most one, found by its lock, ended by signals or over its socket.

The lock is on the file with the process id. The kernel frees it when the process is gone, however it went, so a file
left behind by a crash means nothing, and a process id is believed only while the lock is held.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog
import trio

import infernet
from infernet import ipc_server
from infernet.config import Config, ConfigError, make_private_directory
from infernet.identity import forbid_core_dumps
from infernet.ipc_server import ChatRequest, Handlers, JobEvent
from infernet.node import AskOptions, Node, run_node
from infernet.settings import read_node, read_peer
from protocol.envelope import SigningKey
from protocol.errors import LocalProtocolError
from protocol.ids import NodeId, peer_id
from protocol.messages import ChatMessage

log = structlog.get_logger(__name__)

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class AlreadyRunning(Exception):
    """Another process of this user runs this node."""

    def __init__(self, pid: int | None) -> None:
        which = f"process {pid}" if pid is not None else "another process"
        super().__init__(
            f"this node is running already ({which}): see `infernet status`, or end it with `infernet stop`"
        )
        self.pid = pid


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Be the one process that runs this node. Raises AlreadyRunning or ConfigError."""
    try:
        make_private_directory(path.parent)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"cannot write {path} ({reason}): make the folder yours, or choose another with INFERNET_HOME"
        ) from None
    try:
        if not _try_lock(file, fcntl.LOCK_EX):
            raise AlreadyRunning(_read_pid(file))
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(file, 0)
    finally:
        os.close(file)


def running_pid(path: Path) -> int | None:
    """The process that runs this node, None when there is none. Raises ConfigError when that cannot be told."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({(error.strerror or str(error)).lower()}): check its owner") from None
    try:
        # Shared, so that two commands that look at the same time do not see each other.
        return None if _try_lock(file, fcntl.LOCK_SH) else _read_pid(file)
    finally:
        os.close(file)


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _read_pid(file: int) -> int | None:
    text = os.pread(file, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None


async def run_daemon(config: Config, key: SigningKey, ready: Callable[[dict[str, Any]], None]) -> None:
    """Run the node with its socket and its signals until it is stopped. The caller holds the lock.

    `ready` is called once with the node's status. Raises what `run_node` raises, ConfigError or OSError.
    """
    forbid_core_dumps()
    async with trio.open_nursery() as nursery:
        stop = _Stop(nursery.cancel_scope)
        await nursery.start(stop.on_signals)
        node: Node = await nursery.start(_run_to_its_end, config, key, nursery.cancel_scope)
        stop.node = node
        await nursery.start(ipc_server.serve, config.socket_path, handlers(node))
        log.info(
            "node.started",
            version=infernet.__version__,
            role=config.role.name.lower(),
            peer_id=peer_id(key.node),
            addresses=node.addresses(),
            pid=os.getpid(),
        )
        ready(node.status())
    log.info("node.stopped", pid=os.getpid())


class _Stop:
    """What a signal does: the first one ends the node gracefully, the next one at once."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.node: Node | None = None
        self._scope = scope

    async def on_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(*_SIGNALS) as received:
            task_status.started()
            is_first = True
            async for number in received:
                log.info("node.stopping", reason=signal.Signals(number).name)
                if self.node is None or not is_first:
                    self._scope.cancel()
                else:
                    self.node.stop()
                is_first = False


async def _run_to_its_end(
    config: Config, key: SigningKey, scope: trio.CancelScope, *, task_status: trio.TaskStatus[Node]
) -> None:
    await run_node(config, key, task_status=task_status)
    scope.cancel()


def handlers(node: Node) -> Handlers:
    """What the socket may ask of a node."""

    @asynccontextmanager
    async def chat(request: ChatRequest) -> AsyncIterator[AsyncIterator[JobEvent]]:
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
        )
        async with node.ask(options) as events:
            yield events

    return Handlers(
        status=lambda: {"pid": os.getpid(), **node.status()}, peers=node.peers, shutdown=node.stop, chat=chat
    )


def _provider(node: Node, request: ChatRequest) -> NodeId | None:
    """Who is to answer, if the request says so. Raises LocalProtocolError."""
    try:
        if request.peer is not None:
            return node.learn_peer(read_peer(request.peer))
        return read_node(request.provider) if request.provider is not None else None
    except ValueError as error:
        what = "peer" if request.peer is not None else "provider"
        raise LocalProtocolError(f"{what} {error}") from None
