"""Nodes as processes of this machine: started, asked, watched, killed, and all of them gone when the block ends.

A node is the product's own command with a home of its own, talked to over its socket like any node. For networks of
many there are nodes with the tests' paced engine, forked from one process that has imported everything; they answer
at once, with the same words again and again, and need a tenth of the memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import trio

from _dev_network_faults import FaultProxy, SocketOwners, Weather
from _dev_network_namespaces import Place, end_with_parent
from _environment import ROOT, Failure, clean_environ
from infernet import identity
from infernet.config import places
from infernet.settings.table import BY_NAME
from protocol.ids import NodeId, peer_id

PACED_NODE: Final = "tests.helpers_paced_node"
P2P_PORT: Final = 46337
# A large model from a cold disk; a node by itself is up in a second or two.
STARTING_S: Final = 120.0
# A node says goodbye to its peers and stops its engine; what has not ended by then is killed.
STOPPING_S: Final = 10.0
CALL_TIMEOUT_S: Final = 10.0
POLL_INTERVAL_S: Final = 0.05


@dataclass(frozen=True)
class Plan:
    """A node as it is to be. `models` are those that it serves; the real engine has the starter model only."""

    name: str
    role: str = "client"
    models: tuple[str, ...] = ()
    paced: bool = True
    words: tuple[str, ...] = ()


@dataclass
class Answer:
    """How a question went. `code` is empty when it was answered to the end."""

    text: str = ""
    code: str = ""
    reason: str = ""
    provider: str = ""
    attempts: int = 0
    output_tokens: int = 0
    first_text_s: float = 0.0
    duration_s: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether the provider said that this is the end."""
        return not self.code


@dataclass
class NodeProcess:
    """One node: its key and its place stay, its process may come and go."""

    plan: Plan
    home: Path
    node: NodeId
    #: The full multiaddr that others are told; None when nobody can connect to it.
    address: str | None
    words: tuple[str, ...]
    place: Place | None = None
    pid: int = 0
    handle: int = field(default=-1, repr=False)

    @property
    def name(self) -> str:
        """What it is called here."""
        return self.plan.name

    @property
    def log(self) -> Path:
        """What it said on standard output and standard error, over all its lives."""
        return self.home / "output.log"

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self.handle >= 0 and not select.select([self.handle], [], [], 0)[0]

    def send_signal(self, number: int) -> None:
        """Send a signal, if it is there to get one."""
        if self.handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, number)

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text("utf-8", "replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else "it said nothing"

    # ------------------------------------------------------------ asking it

    async def call(self, command: str, payload: object = None) -> Any:
        """One command over its socket. Raises OSError when it does not answer."""
        request = {"cmd": command} if payload is None else {"cmd": command, "payload": payload}
        async with _connected(_socket_of(self.home, "daemon.sock")) as lines:
            reply = await lines.exchange(request)
        if not reply.get("ok"):
            raise ConnectionError(f"{self.name} refuses {command}: {reply.get('error')}")
        return reply["data"]

    async def status(self) -> dict[str, Any]:
        """What `infernet status --json` prints. Raises OSError."""
        status: dict[str, Any] = await self.call("status")
        return status

    async def known(self) -> list[dict[str, Any]]:
        """What `infernet peers --json` prints. Raises OSError."""
        peers: list[dict[str, Any]] = await self.call("peers")
        return peers

    async def ask(self, model: str | None, text: str = "why", max_tokens: int = 16, timeout_s: float = 60.0) -> Answer:
        """Let it ask a question; never raises for what becomes of it."""
        payload = {
            "messages": [{"role": "user", "content": text}],
            "model": model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "seed": 1,
            "timeout_s": timeout_s,
        }
        answer = Answer(code="unreachable", reason="the node does not answer on its socket")
        started_s = trio.current_time()
        try:
            async with _connected(_socket_of(self.home, "daemon.sock"), timeout_s + CALL_TIMEOUT_S) as lines:
                await lines.send({"cmd": "chat", "payload": payload})
                while answer.code == "unreachable":
                    _take(answer, await lines.receive(), trio.current_time() - started_s)
        except OSError as error:
            answer.reason = str(error)
        answer.duration_s = trio.current_time() - started_s
        return answer

    async def insides(self, **request: object) -> dict[str, Any]:
        """What a paced node counts of itself; `do="clock", offset_ms=...` sets its clock first. Raises OSError."""
        async with _connected(_socket_of(self.home, "test.sock")) as lines:
            return await lines.exchange({"do": "count", **request})

    def cpu_s(self) -> float:
        """CPU time used so far, its engine's process included."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            times = [each.cpu_times() for each in (process, *process.children())]
            return sum(time.user + time.system for time in times)
        return 0.0

    def memory_bytes(self) -> int:
        """Resident memory, its engine's process included."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            return sum(each.memory_info().rss for each in (process, *process.children()))
        return 0


def _take(answer: Answer, reply: dict[str, Any], at_s: float) -> None:
    data = reply.get("data") or {}
    if not reply.get("ok"):
        answer.code = str(reply.get("cause") or reply.get("error"))
        answer.reason = str(reply.get("error"))
        return
    if reply["event"] == "accepted":
        answer.provider, answer.attempts = data["provider"], data["attempt"]
    elif reply["event"] == "text":
        answer.first_text_s = answer.first_text_s or at_s
        answer.text += data["text"]
    elif reply["event"] == "done":
        answer.code = ""
        answer.reason = ""
        answer.output_tokens = data["output_tokens"]


def _socket_of(home: Path, name: str) -> Path:
    return places({"INFERNET_HOME": str(home)}).socket_path.with_name(name)


class _Lines:
    """JSON lines on a Unix socket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffered = b""

    async def exchange(self, request: object) -> dict[str, Any]:
        await self.send(request)
        return await self.receive()

    async def send(self, request: object) -> None:
        await self._stream.send_all(json.dumps(request).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        while b"\n" not in self._buffered:
            data = await self._stream.receive_some(65536)
            if not data:
                raise ConnectionError("the node went away in the middle")
            self._buffered += data
        line, _, self._buffered = self._buffered.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply


@asynccontextmanager
async def _connected(path: Path, timeout_s: float = CALL_TIMEOUT_S) -> AsyncIterator[_Lines]:
    try:
        with trio.fail_after(timeout_s):
            async with await trio.open_unix_socket(path) as stream:
                yield _Lines(stream)
    except trio.TooSlowError:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise ConnectionError("the node went away in the middle") from None


# ---------------------------------------------------------------- the processes


class _Forker:
    """The process that forks paced nodes. They all end with it."""

    def __init__(self) -> None:
        environ = {name: value for name, value in clean_environ().items() if not name.startswith("INFERNET_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", PACED_NODE, "--fork"],
            env=environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = trio.lowlevel.FdStream(os.dup(self._process.stdin.fileno()))
        self._replies = trio.lowlevel.FdStream(os.dup(self._process.stdout.fileno()))

    async def exchange(self, request: object) -> dict[str, Any]:
        """One line there and one back. Raises `Failure` when the process is gone."""
        line = b""
        with contextlib.suppress(trio.BrokenResourceError):
            await self._requests.send_all(json.dumps(request).encode() + b"\n")
            while not line.endswith(b"\n") and (data := await self._replies.receive_some()):
                line += data
        if not line:
            raise Failure("the process that forks nodes has ended: its words stand above")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        for stream in (self._requests, self._replies):
            stream.close()


class Nodes:
    """All nodes of a network. Use `nodes()`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.all: dict[str, NodeProcess] = {}
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._forker: _Forker | None = None
        self._forking = trio.Lock()

    def __getitem__(self, name: str) -> NodeProcess:
        return self.all[name]

    def names(self) -> dict[int, str]:
        """Those that run, by process id."""
        return {node.pid: node.name for node in self.all.values() if node.handle >= 0}

    def add(self, plan: Plan, *words: str, address: str | None = None, place: Place | None = None) -> NodeProcess:
        """Make the home and the key of a node. `address` is without the peer; it gets that."""
        home = self.home / plan.name
        key = identity.generate()
        identity.create(places({"INFERNET_HOME": str(home)}).key_file, key)
        full = f"{address}/p2p/{peer_id(key.node)}" if address is not None else None
        self.all[plan.name] = NodeProcess(plan, home, key.node, full, (*words, *plan.words), place)
        return self.all[plan.name]

    async def start(self, node: NodeProcess) -> None:
        """Start its process, and wait until it answers. Raises `Failure` with its last words when it ends instead."""
        await self.launch(node)
        await self.until_up(node)

    async def launch(self, node: NodeProcess) -> None:
        """Start its process. A socket that a dead one left behind goes first: it must not look alive."""
        _socket_of(node.home, "daemon.sock").unlink(missing_ok=True)
        settings = ("--name", node.name, "--role", node.plan.role, "--free-for", "all", *node.words)
        if node.plan.paced:
            served = [f"--paced={model}" for model in node.plan.models]
            await self._fork(node, (*served, *settings))
        else:
            engine = ("--threads", "1", "--slots", "2") if node.plan.role == "provider" else ("--engine", "none")
            self._start(node, (*engine, *settings))
        node.handle = os.pidfd_open(node.pid)

    async def until_up(self, node: NodeProcess) -> None:
        """Wait until it answers on its socket. Raises `Failure`."""
        with trio.move_on_after(STARTING_S):
            while node.is_running:
                with contextlib.suppress(OSError):
                    await node.call("ping")
                    return
                await trio.sleep(POLL_INTERVAL_S)
        what = "was not up in time" if node.is_running else "ended"
        raise Failure(f"{node.name} {what}: {node.last_words()} (log: {node.log})")

    async def kill(self, node: NodeProcess) -> None:
        """End it at once, as a power cut does."""
        node.send_signal(signal.SIGKILL)
        await self._collect(node)

    async def stop(self, node: NodeProcess) -> bool:
        """End it as its owner does; False when it had to be killed after all."""
        node.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOPPING_S) as scope:
            if node.handle >= 0:
                await trio.lowlevel.wait_readable(node.handle)
        await self.kill(node)
        return not scope.cancelled_caught

    async def stop_all(self) -> None:
        """End all of them, and whatever they started."""
        async with trio.open_nursery() as nursery:
            for node in self.all.values():
                nursery.start_soon(self.stop, node)

    # ------------------------------------------------------------ starting and collecting

    def _environ(self, node: NodeProcess) -> dict[str, str]:
        inherited = {name: value for name, value in clean_environ().items() if not name.startswith("INFERNET_")}
        return inherited | {"INFERNET_HOME": str(node.home), "PYTHONPATH": str(ROOT)}

    def _start(self, node: NodeProcess, words: Sequence[str]) -> None:
        command = [sys.executable, "-P", "-m", "infernet.cli", "start", "--foreground", *words]
        if node.place is not None:
            command = ["nsenter", "--target", str(node.place.holder), "--net", *command]
        with node.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self._environ(node),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal reaches this command alone, which then ends the others in order.
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._started[node.name] = process
        node.pid = process.pid

    async def _fork(self, node: NodeProcess, words: Sequence[str]) -> None:
        environ = {"INFERNET_HOME": str(node.home)}
        holder = node.place.holder if node.place is not None else None
        request = {"words": words, "environ": environ, "log": str(node.log), "holder": holder}
        node.pid = (await self._ask_forker(request))["pid"]

    async def _ask_forker(self, request: object) -> dict[str, Any]:
        async with self._forking:
            if self._forker is None:
                self._forker = _Forker()
            with trio.CancelScope(shield=True), trio.fail_after(STARTING_S):
                reply = await self._forker.exchange(request)
        return reply

    async def _collect(self, node: NodeProcess) -> None:
        """Wait for the end of a process that was killed, and let its id go."""
        if node.handle < 0:
            return
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(node.handle)
            os.close(node.handle)
            node.handle = -1
            if node.plan.paced:
                await self._ask_forker({"reap": node.pid})
            else:
                process = self._started.pop(node.name)
                process.wait()
                # Its engine, in case the node had no time to end it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End everything."""
        with trio.CancelScope(shield=True):
            await self.stop_all()
            if self._forker is not None:
                self._forker.close()
                self._forker = None


@asynccontextmanager
async def nodes() -> AsyncIterator[Nodes]:
    """A network for as long as the block lasts; nothing of it is left afterwards."""
    # Short, because sockets lie below it and their paths may have 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="infernet-"))
    network = Nodes(home)
    try:
        yield network
    finally:
        await network.close()
        shutil.rmtree(home, ignore_errors=True)


# ---------------------------------------------------------------- where they are


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def known_words(*words: str) -> list[str]:
    """Those flags that this version of the node has."""
    flags = {setting.flag for setting in BY_NAME.values()}
    return [word for word in words if word.replace("--no-", "--", 1).partition("=")[0] in flags]


def add_on_loopback(network: Nodes, plan: Plan, number: int, *words: str, behind_proxy: bool = False) -> NodeProcess:
    """A node on this machine, at a loopback address of a /16 of its own, where a proxy listens if it is to have one."""
    private = known_words("--allow-private", "--no-mdns")
    if plan.role == "client":
        return network.add(plan, "--no-advertise", *private, *words)
    host, port = f"127.{number}.0.1", free_port()
    listen = "127.0.0.1" if behind_proxy else f"127.0.0.1,{host}"
    place = ("--p2p-port", str(port), "--listen-hosts", listen, "--address", host)
    return network.add(plan, *place, *private, *words, address=f"/ip4/{host}/tcp/{port}")


async def serve_proxy(network: Nodes, weather: Weather, node: NodeProcess, nursery: trio.Nursery) -> FaultProxy:
    """Put a proxy with faults in front of a node that was added so."""
    assert node.address is not None
    _, _, host, _, port, *_ = node.address.split("/")
    proxy = FaultProxy(weather, node.name, ("127.0.0.1", int(port)), SocketOwners(network.names), random.Random(1))
    await nursery.start(proxy.serve, host, int(port))
    return proxy


def add_at(network: Nodes, plan: Plan, place: Place, *words: str, is_public: bool = True) -> NodeProcess:
    """A node in a network namespace; it finds out by itself which addresses it has."""
    words = (*known_words("--no-mdns"), *words)
    if plan.role == "client":
        return network.add(plan, "--no-advertise", *words, place=place)
    address = f"/ip4/{place.host}/tcp/{P2P_PORT}" if is_public else None
    return network.add(plan, *words, address=address, place=place)
