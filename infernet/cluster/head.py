"""The head's side of the network: a session with each worker, and a door on loopback for llama-server to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
import trio

from infernet.cluster.framing import read_message
from infernet.cluster.network import Network
from infernet.cluster.piping import pipe
from infernet.transport.channel import ByteReader
from infernet.transport.contract import Stream, StreamBroken, TransportError
from protocol import clusters
from protocol.clusters import Attach, Attached, Build, Carry, Ready, Refused
from protocol.formats.text import clean_line
from protocol.ids import NodeId, npub, peer_id, short

log = structlog.get_logger(__name__)

_BACKLOG: Final = 16


@dataclass(frozen=True)
class HeadPatience:
    """How long workers may take, and how soon they are asked again, in seconds."""

    # A worker reads its build, and starts a server that wakes its GPUs.
    attach_s: float = 120.0
    carry_s: float = 15.0
    again_first_s: float = 1.0
    again_max_s: float = 30.0
    # A session that lasted this long was well.
    healthy_s: float = 60.0


class _NotAttached(Exception):
    """No session came of it; one line for people."""


class Member:
    """One worker. `changed` is called whenever it has come or gone."""

    def __init__(
        self, worker: NodeId, build: Build, network: Network, changed: Callable[[], None], patience: HeadPatience
    ) -> None:
        self.worker = worker
        self._build = build
        self._network = network
        self._changed = changed
        self._patience = patience
        self.attached: Attached | None = None
        self.problem = "it was not asked yet"
        #: Where llama-server finds it while `run` runs.
        self.port = 0
        self._carried: set[trio.CancelScope] = set()
        self._bytes_carried = 0
        self._sessions = 0

    @property
    def name(self) -> str:
        """Which one it is, for people."""
        return short(self.worker)

    def status(self) -> dict[str, Any]:
        """What `infernet cluster status` shows of it."""
        attached = self.attached
        return {
            "npub": npub(self.worker),
            "node_id": self.worker.hex(),
            "attached": attached is not None,
            "rpc": attached.rpc if attached is not None else None,
            "devices": [
                {"name": clean_line(device.name), "total_bytes": device.total_bytes, "free_bytes": device.free_bytes}
                for device in (attached.devices if attached is not None else ())
            ],
            "connections": len(self._carried),
            "carried_bytes": self._bytes_carried,
            "sessions": self._sessions,
            "problem": self.problem,
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a session with the worker, and a door to it, until cancelled. `started()` comes with the door."""
        # SPEC 11: Both MUST listen for llama.cpp's connections on loopback only.
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=_BACKLOG)
        self.port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._let_in, [listener])
            task_status.started()
            await self._keep_attached()

    # ------------------------------------------------------------ the session

    async def _keep_attached(self) -> None:
        patience = self._patience
        wait_s = patience.again_first_s
        while True:
            began_s = trio.current_time()
            problem = await self._one_session()
            was_attached, self.attached = self.attached, None
            if was_attached is not None:
                log.warning("cluster.worker_lost", peer=peer_id(self.worker), reason=problem)
            elif problem != self.problem:
                log.warning("cluster.no_worker", peer=peer_id(self.worker), reason=problem)
            self.problem = problem
            if was_attached is not None:
                for scope in list(self._carried):
                    scope.cancel()
                self._changed()
                if trio.current_time() - began_s > patience.healthy_s:
                    wait_s = patience.again_first_s
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, patience.again_max_s)

    async def _one_session(self) -> str:
        """From attaching to the end of the session; why there is none any more, in one line."""
        stream: Stream | None = None
        try:
            with trio.fail_after(self._patience.attach_s):
                stream = await self._network.open_stream(self.worker)
                reader = ByteReader(stream.receive)
                await stream.send(clusters.encode(Attach(self._build)))
                self.attached = self._checked(await read_message(reader))
            self.problem = ""
            self._sessions += 1
            memory_mib = sum(device.free_mib for device in self.attached.devices)
            log.info(
                "cluster.worker_ready",
                peer=peer_id(self.worker),
                count=len(self.attached.devices),
                bytes=memory_mib << 20,
            )
            self._changed()
            # A worker has nothing more to say; what it says is not kept.
            while await stream.receive():
                pass
        except _NotAttached as error:
            return str(error)
        except trio.TooSlowError:
            return f"it did not answer within {self._patience.attach_s:.0f} s"
        except StreamBroken as error:
            if self.attached is not None:
                return "the connection with it, or its RPC server, is gone"
            return f"it does not take this node as its head: run `infernet cluster join KEY` there ({error})"
        except TransportError as error:
            return str(error)
        finally:
            if stream is not None:
                stream.reset()
        return "it has ended the session"

    def _checked(self, answer: clusters.AnyClusterMessage) -> Attached:
        """The worker's answer, if something comes of it. Raises _NotAttached."""
        match answer:
            case Attached():
                # SPEC 11: A head MUST end a session with a worker whose build is not its own.
                trouble = clusters.why_not_together(self._build, answer.build)
                if trouble is not None:
                    raise _NotAttached(trouble)
                if not answer.devices:
                    raise _NotAttached("it offers nothing to compute with")
                return answer
            case Refused(build=build) if build is not None and build != self._build:
                raise _NotAttached(clusters.why_not_together(self._build, build) or "")
            case Refused():
                raise _NotAttached(f"it refuses: {clean_line(answer.text)}")
            case _:
                raise _NotAttached("it answers in a way that this version does not know")

    # ------------------------------------------------------------ connections

    async def _let_in(self, socket: trio.SocketStream) -> None:
        """Carry one connection of llama-server to the worker, to its end."""
        attached = self.attached
        if attached is None or len(self._carried) >= clusters.CARRIED_MAX:
            return
        with trio.CancelScope() as scope:
            self._carried.add(scope)
            try:
                await self._carry(socket, attached)
            finally:
                self._carried.discard(scope)

    async def _carry(self, socket: trio.SocketStream, attached: Attached) -> None:
        stream: Stream | None = None
        try:
            with trio.fail_after(self._patience.carry_s):
                stream = await self._network.open_stream(self.worker)
                await stream.send(clusters.encode(Carry(attached.session)))
                reader = ByteReader(stream.receive)
                answer = await read_message(reader)
            if isinstance(answer, Ready):
                await pipe(stream, socket, reader.rest(), self._count)
                return
            reason = clean_line(answer.text) if isinstance(answer, Refused) else "an unknown answer"
            log.warning("cluster.not_carried", peer=peer_id(self.worker), reason=reason)
        except (TransportError, trio.TooSlowError) as error:
            log.warning(
                "cluster.not_carried", peer=peer_id(self.worker), reason=str(error) or "it did not answer in time"
            )
        finally:
            if stream is not None:
                stream.reset()

    def _count(self, size: int) -> None:
        self._bytes_carried += size


class Members:
    """All workers of a head. They are ready together or not at all: the model is split over all of them."""

    def __init__(
        self, workers: tuple[NodeId, ...], build: Build, network: Network, patience: HeadPatience = HeadPatience()
    ) -> None:
        make = partial(Member, build=build, network=network, changed=self._on_change, patience=patience)
        self.members = tuple(make(worker) for worker in workers)
        self._news = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep sessions with all of them until cancelled. `started()` comes with the doors."""
        async with trio.open_nursery() as nursery:
            for member in self.members:
                await nursery.start(member.run)
            task_status.started()

    def missing(self) -> list[Member]:
        """Those without a session."""
        return [member for member in self.members if member.attached is None]

    async def until_complete(self) -> None:
        """Wait until there is a session with each."""
        while self.missing():
            await self._news.wait()

    def sessions(self) -> list[Attached | None]:
        """The session with each, as it stands now."""
        return [member.attached for member in self.members]

    async def until_broken(self, sessions: Sequence[Attached | None]) -> Member:
        """Wait until one of these sessions is lost; whose."""
        while True:
            for member, session in zip(self.members, sessions, strict=True):
                # Another session is as bad as none: its server knows nothing of what was loaded.
                if session is None or member.attached is not session:
                    return member
            await self._news.wait()

    def doors(self) -> str:
        """Where llama-server finds them, as it takes it."""
        return ",".join(f"127.0.0.1:{member.port}" for member in self.members)

    def _on_change(self) -> None:
        self._news.set()
        self._news = trio.Event()
