"""A real node's process with a double for an engine and a clock that can jump: what networks of many are made of.

    python -m tests.helpers_paced_node MODELS SETTINGS      one node, in INFERNET_HOME
    python -m tests.helpers_paced_node --fork               forks such nodes on request, after one import of everything

Everything but the engine and the wall clock is the product, started as `infernet start --foreground` starts it. No
option of the product leads here: that a node of this kind cannot offer itself to real people is what keeps them apart.

A node is asked about its insides, and told to jump, on a socket of its own, `test.sock` beside `daemon.sock`: one line
of JSON each way. The forking process is asked on its standard input.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import trio

from _dev_network_namespaces import end_with_parent, enter
from infernet import log
from infernet.assembly import run_node
from infernet.cli.command import innermost
from infernet.cli.settings_flags import add_settings, load_node
from infernet.config import Config
from infernet.daemon import run_daemon
from infernet.driver import wall_ms
from infernet.engines.contract import Engine, EngineState, EngineStatistics, Report
from infernet.host.lock import hold_lock
from infernet.node import Node
from protocol.effects import RunEngine
from protocol.envelope import SigningKey
from protocol.errors import Refusal
from protocol.events import EngineFailed
from protocol.ids import RunId
from protocol.records import ModelOffer
from tests.helpers_engine import PacedEngine

SOCKET_NAME = "test.sock"
LINE_BYTES_MAX = 65536


class PacedEngines:
    """Test double: one engine that serves several models, each with slots of its own."""

    def __init__(self, engines: list[PacedEngine]) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._engines = engines
        self._report: Report | None = None

    async def run(self, report: Report, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As `Engine.run`."""
        self._report = report
        async with trio.open_nursery() as nursery:
            for engine in self._engines:
                engine.on_change = self.on_change
                await nursery.start(engine.run, report)
            task_status.started()

    def start(self, run: RunEngine) -> None:
        """As `Engine.start`."""
        assert self._report is not None
        for engine in self._engines:
            if engine.offer.name == run.model:
                engine.start(run)
                return
        self._report(EngineFailed(run.run, Refusal.NO_MODEL, "none of these"))

    def cancel(self, run: RunId) -> None:
        """As `Engine.cancel`."""
        for engine in self._engines:
            engine.cancel(run)

    def proceed(self, run: RunId) -> None:
        """As `Engine.proceed`."""
        for engine in self._engines:
            engine.proceed(run)

    def models(self) -> tuple[ModelOffer, ...]:
        """As `Engine.models`."""
        return tuple(offer for engine in self._engines for offer in engine.models())

    def statistics(self) -> EngineStatistics:
        """As `Engine.statistics`."""
        all_ = [engine.statistics() for engine in self._engines]
        return EngineStatistics(
            EngineState.READY if all(each.state is EngineState.READY for each in all_) else EngineState.WAITING,
            sum(each.runs_active for each in all_),
            sum(each.runs_total for each in all_),
            sum(each.restarts for each in all_),
            sum(each.slots_leaked for each in all_),
            "",
        )


class JumpingClock:
    """The wall clock, off by as much as a test says."""

    def __init__(self) -> None:
        self.offset_ms = 0

    def __call__(self) -> int:
        return wall_ms() + self.offset_ms


# ---------------------------------------------------------------- one node


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line of one node."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paced", action="append", default=[], metavar="MODEL", help="serve this; again for more")
    parser.add_argument("--tokens-per-s", type=float, default=200.0)
    parser.add_argument("--prompt-tokens-per-s", type=float, default=math.inf)
    parser.add_argument("--engine-slots", type=int, default=4)
    parser.add_argument("--answer-tokens", type=int, default=20)
    add_settings(parser, "settings")
    return parser.parse_args([*words, "--engine=none"])


def main(words: list[str]) -> None:
    """Run one node until it is told to end."""
    arguments = parse(words)
    config, key = load_node(arguments)
    clock = JumpingClock()
    engine = _engine(arguments, config)

    async def engine_of(_: Config) -> Engine | None:
        return engine

    with hold_lock(config.pid_file):
        log.configure(config.log_level)
        trio.run(_run, config, key, partial(run_node, engine_of=engine_of, clock_ms=clock), clock)


def _engine(arguments: argparse.Namespace, config: Config) -> PacedEngines | None:
    prices = (int(config.price_in_usd), int(config.price_out_usd), int(config.price_job_usd))
    engines = [
        PacedEngine(
            name,
            tokens_per_s=arguments.tokens_per_s,
            prompt_tokens_per_s=arguments.prompt_tokens_per_s,
            slots=arguments.engine_slots,
            answer_tokens=arguments.answer_tokens,
            prices=prices,
        )
        for name in arguments.paced
    ]
    return PacedEngines(engines) if engines else None


async def _run(config: Config, key: SigningKey, run: Any, clock: JumpingClock) -> None:
    nodes: list[Node] = []

    async def run_and_tell(
        config: Config, key: SigningKey, *, task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with trio.open_nursery() as nursery:
            node = await nursery.start(run, config, key)
            nodes.append(node)
            task_status.started(node)

    async with trio.open_nursery() as nursery:
        await nursery.start(_serve_tests, config.socket_path.with_name(SOCKET_NAME), nodes, clock)
        await run_daemon(config, key, lambda _: None, run_and_tell)
        nursery.cancel_scope.cancel()


async def _serve_tests(
    path: Path, nodes: list[Node], clock: JumpingClock, *, task_status: trio.TaskStatus[None]
) -> None:
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(_bound(path)))

    async def answer(stream: trio.SocketStream) -> None:
        # Whoever asked a node that stood still has gone meanwhile; the node is not to end of that.
        with contextlib.suppress(trio.BrokenResourceError):
            await answer_one(stream)

    async def answer_one(stream: trio.SocketStream) -> None:
        line = b""
        while not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
            line += await stream.receive_some(LINE_BYTES_MAX) or b"\n"
        request = json.loads(line)
        if request["do"] == "clock":
            clock.offset_ms = request["offset_ms"]
        await stream.send_all(json.dumps(_insides(nodes)).encode() + b"\n")

    task_status.started()
    await trio.serve_listeners(answer, [listener])


def _bound(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.bind(str(path))
    bound.listen()
    return bound


def _insides(nodes: list[Node]) -> dict[str, Any]:
    """What must not grow: counted here and now, after what is garbage is gone."""
    gc.collect()
    return {
        "tasks": dict(_tasks(trio.lowlevel.current_root_task())),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "open_streams": sum(node.driver.open_streams for node in nodes),
        "peer_streams": sum(node.driver.peer.statistics().streams for node in nodes),
        "transport_streams": sum(node.status()["transport"]["streams"] for node in nodes),
        "peers": sum(len(node.driver.connected_peers()) for node in nodes),
        "jobs": sum(
            node.driver.peer.statistics().jobs_asked + node.driver.peer.statistics().jobs_running for node in nodes
        ),
    }


def _tasks(task: trio.lowlevel.Task | None) -> Counter[str]:
    """How many tasks run which function, below one of them."""
    if task is None:
        return Counter()
    names = Counter([task.name])
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            names += _tasks(child)
    return names


# ---------------------------------------------------------------- forking


def fork() -> NoReturn:
    """Fork a node for every line on standard input, to its end. Answers with the process id."""
    for line in sys.stdin:
        request = json.loads(line)
        if "reap" in request:
            os.waitpid(request["reap"], 0)
            reply = {"reaped": request["reap"]}
        else:
            process = os.fork()
            if process == 0:
                _be_a_node(request)
            reply = {"pid": process}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    os._exit(0)


def _be_a_node(request: dict[str, Any]) -> NoReturn:
    """In the new process: everything that a command started by itself would have, then the node."""
    code = 1
    try:
        end_with_parent()
        os.setsid()
        os.environ.update(request["environ"])
        nothing = os.open(os.devnull, os.O_RDONLY)
        output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.closerange(3, 256)
        if request.get("holder") is not None:
            enter(request["holder"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main(request["words"])
        code = 0
    except BaseException as error:  # noqa: BLE001 - nothing may return into the parent's loop
        sys.stderr.write(f"the node ended: {innermost(error)!r}\n")
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:] == ["--fork"]:
        fork()
    main(sys.argv[1:])
