"""A worker: lends this machine to one head, and to nobody else.

llama.cpp's RPC server runs only while the head is attached, on loopback, so that a node whose head is away holds no
memory for it, and every session has a fresh process. Its code is not made for strangers: whoever may speak to it owns
it. So the one key that the owner of this machine named is let in, by the proof of the connection itself.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
import trio

from infernet.cluster import binaries
from infernet.cluster.binaries import BinaryMissing
from infernet.cluster.framing import read_message
from infernet.cluster.piping import pipe
from infernet.cluster.program import Program, ProgramGone, open_program, private_directory
from infernet.transport.channel import ByteReader
from infernet.transport.contract import Stream, StreamBroken
from protocol import clusters
from protocol.clusters import Attach, Attached, Build, Carry, Device, Ready, Refused, Why
from protocol.ids import NodeId, npub, peer_id

log = structlog.get_logger(__name__)

_LISTENS_FOR: Final = {
    "version": binaries.RPC_VERSION,
    "device": binaries.RPC_DEVICE,
    "accepted": binaries.RPC_ACCEPTED,
}
_CONNECT_AGAIN_S: Final = 0.05


@dataclass(frozen=True)
class WorkerPatience:
    """How long others may take, in seconds."""

    first_word_s: float = 10.0
    # A driver that wakes its GPUs.
    start_s: float = 60.0
    connect_s: float = 5.0
    # The session before, which ends its program.
    handover_s: float = 20.0


@dataclass(eq=False)
class _Session:
    token: bytes
    port: int
    pid: int = 0
    rpc: str = ""
    devices: tuple[Device, ...] = ()
    carried: set[trio.CancelScope] = field(default_factory=set)
    bytes_carried: int = 0
    since_s: float = field(default_factory=trio.current_time)


def _program_build(named: str | None) -> tuple[binaries.Binaries, Build]:
    found = binaries.find(named)
    assert found.rpc is not None
    return found, binaries.read_build(found.server)


class Worker:
    """Serves streams of `CLUSTER_PROTOCOL`. One instance for the life of a node."""

    def __init__(
        self,
        head: NodeId,
        llama_server: str | None,
        *,
        threads: int | None = None,
        patience: WorkerPatience = WorkerPatience(),
        program_build: Callable[[str | None], tuple[binaries.Binaries, Build]] = _program_build,
    ) -> None:
        self._head = head
        self._llama_server = llama_server
        self._threads = threads
        self._patience = patience
        self._program_build = program_build
        self._session: _Session | None = None
        self._attaching: trio.CancelScope | None = None
        self._turn = trio.Lock()
        self._sessions = 0
        self._strangers = 0
        self._problem = ""

    def status(self) -> dict[str, Any]:
        """What `infernet cluster status` shows of a worker."""
        session = self._session
        return {
            "head": npub(self._head),
            "attached": session is not None,
            "since_s": round(trio.current_time() - session.since_s, 1) if session is not None else None,
            "pid": session.pid if session is not None else None,
            "rpc": session.rpc if session is not None else None,
            "devices": [
                {"name": device.name, "total_bytes": device.total_bytes, "free_bytes": device.free_bytes}
                for device in (session.devices if session is not None else ())
            ],
            "connections": len(session.carried) if session is not None else 0,
            "carried_bytes": session.bytes_carried if session is not None else 0,
            "sessions": self._sessions,
            "strangers_refused": self._strangers,
            "problem": self._problem,
        }

    async def serve(self, stream: Stream) -> None:
        """Serve one stream that a peer opened, to its end. Raises StreamBroken."""
        # SPEC 11: A worker MUST reset every stream of a peer whose key its owner did not name, before it reads from it.
        if stream.peer != self._head:
            self._strangers += 1
            log.debug("cluster.stranger", peer=peer_id(stream.peer))
            raise StreamBroken("a stranger asked for this machine")
        reader = ByteReader(stream.receive)
        try:
            with trio.fail_after(self._patience.first_word_s):
                first = await read_message(reader)
        except trio.TooSlowError:
            raise StreamBroken("nothing was asked of the cluster in time") from None
        match first:
            case Attach():
                await self._attach(stream, first)
            case Carry():
                await self._carry(stream, reader, first)
            case _:
                raise StreamBroken("a stream of a cluster begins with Attach or Carry")

    # ------------------------------------------------------------ the session

    async def _attach(self, stream: Stream, attach: Attach) -> None:
        try:
            found, build = await trio.to_thread.run_sync(
                self._program_build, self._llama_server, abandon_on_cancel=True
            )
        except BinaryMissing as error:
            await self._refuse(stream, Why.NO_SERVER, str(error), None)
            return
        # SPEC 11: A worker MUST refuse a head whose build is not its own.
        trouble = clusters.why_not_together(build, attach.build)
        if trouble is not None:
            await self._refuse(stream, Why.OTHER_BUILD, f"the head cannot be served: {trouble}", build)
            return
        # SPEC 11: A worker MUST serve one session at a time, and a new one of its head MUST end the one before.
        if self._attaching is not None:
            self._attaching.cancel()
        with trio.CancelScope() as scope:
            self._attaching = scope
            with trio.move_on_after(self._patience.handover_s):
                await self._turn.acquire()
            if self._turn.statistics().owner is not trio.lowlevel.current_task():
                raise StreamBroken("the session before does not end")
            try:
                await self._hold(stream, found, build)
            finally:
                self._turn.release()
                if self._attaching is scope:
                    self._attaching = None
        if scope.cancelled_caught:
            raise StreamBroken("the head has attached anew")

    async def _refuse(self, stream: Stream, why: Why, text: str, build: Build | None) -> None:
        self._problem = text
        log.warning("cluster.refused", peer=peer_id(stream.peer), reason=text)
        await stream.send(clusters.encode(Refused(why, text[:256], build)))

    async def _hold(self, stream: Stream, found: binaries.Binaries, build: Build) -> None:
        """Run the RPC server for as long as the stream and the program last. Raises StreamBroken."""
        session = _Session(secrets.token_bytes(clusters.SESSION_BYTES), _free_port())
        words = [str(found.rpc), "--host", "127.0.0.1", "--port", str(session.port)]
        if self._threads is not None:
            words += ["--threads", str(self._threads)]
        try:
            with private_directory() as directory:
                async with open_program(words, str(directory), _LISTENS_FOR) as program:
                    session.pid = program.pid
                    # In here nothing is raised: what leaves a nursery is a group, and nobody catches those.
                    problem = await self._start(program, session)
                    if problem is None and await self._tell(stream, session, build):
                        await self._until_over(stream, program)
        except ProgramGone as error:
            problem = str(error)
        finally:
            for carried in session.carried:
                carried.cancel()
            if self._session is session:
                self._session = None
                log.info("cluster.head_gone", peer=peer_id(stream.peer))
        if problem is not None:
            await self._refuse(stream, Why.NO_SERVER, problem, build)

    async def _start(self, program: Program, session: _Session) -> str | None:
        """Wait until the RPC server answers; why it does not, in one line."""
        problem = None
        # It says what it has only once somebody has connected: until then its words wait in a buffer. That it says
        # them shows that it is ours that answers at this port.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_knock, session.port)
            try:
                await program.hear("accepted", self._patience.start_s)
            except ProgramGone as error:
                problem = str(error)
            nursery.cancel_scope.cancel()
        session.rpc = next((line[1] for line in program.all_heard("version")), "")
        session.devices = binaries.devices_of(program.all_heard("device"))
        return problem

    async def _tell(self, stream: Stream, session: _Session, build: Build) -> bool:
        """Let the head begin; whether it is still there."""
        # Before it is told, so that its first connection finds the session.
        self._session, self._problem = session, ""
        self._sessions += 1
        log.info("cluster.head_attached", peer=peer_id(stream.peer), count=len(session.devices))
        try:
            await stream.send(clusters.encode(Attached(session.token, build, session.rpc, session.devices)))
        except StreamBroken:
            return False
        return True

    async def _until_over(self, stream: Stream, program: Program) -> None:
        """Return when the head ends the session, or the RPC server dies."""
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await program.gone.wait()
                self._problem = program.why_gone()
                log.warning("cluster.rpc_server_gone", reason=self._problem)
                # SPEC 11: A worker whose RPC server has ended MUST reset the session and all that it carries.
                stream.reset()

            nursery.start_soon(watch)
            try:
                # There is nothing that a head has to say here; the bytes are not kept.
                while await stream.receive():
                    pass
            except StreamBroken:
                pass  # the head is gone, or will be told so by the reset
            nursery.cancel_scope.cancel()

    # ------------------------------------------------------------ connections

    async def _carry(self, stream: Stream, reader: ByteReader, carry: Carry) -> None:
        session = self._session
        # SPEC 11: A worker MUST refuse what is to be carried for any session but the one that stands.
        if session is None or not secrets.compare_digest(session.token, carry.session):
            await stream.send(clusters.encode(Refused(Why.NO_SESSION, "this session is over", None)))
            return
        if len(session.carried) >= clusters.CARRIED_MAX:
            text = f"more than {clusters.CARRIED_MAX} connections of one session"
            await stream.send(clusters.encode(Refused(Why.TOO_MANY, text, None)))
            return
        with trio.CancelScope() as scope:
            session.carried.add(scope)
            try:
                await self._connect(stream, reader.rest(), session)
            finally:
                session.carried.discard(scope)
        if scope.cancelled_caught:
            raise StreamBroken("this session is over")

    async def _connect(self, stream: Stream, first: bytes, session: _Session) -> None:
        try:
            with trio.fail_after(self._patience.connect_s):
                connection = await trio.open_tcp_stream("127.0.0.1", session.port)
        except (OSError, trio.TooSlowError):
            raise StreamBroken("the RPC server does not take a connection") from None

        def count(size: int) -> None:
            session.bytes_carried += size

        async with connection:
            await stream.send(clusters.encode(Ready()))
            await pipe(stream, connection, first, count)


async def _knock(port: int) -> None:
    """Connect until somebody answers, and hang up."""
    while True:
        try:
            connection = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            await trio.sleep(_CONNECT_AGAIN_S)
            continue
        await trio.aclose_forcefully(connection)
        return


def _free_port() -> int:
    """A port of loopback that nobody has now: the RPC server takes no socket, and none of its own choice."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
