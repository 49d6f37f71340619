"""The provider's process of the relay benchmark: a real node, whose engine can also be asked directly.

Both ways end at the same engine in the same process, so that what differs is the network and the protocol alone. The
paced engine is the tests' double; it can be had here and nowhere in the product.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from _relay_worker import Stream, ask_all, question, run, say, serve

from infernet.config import Config
from infernet.engines.contract import Engine, EngineEvent, EngineStatistics, Report
from infernet.engines.selection import open_engine
from infernet.node import AGENT, Node
from infernet.transport.libp2p_host import Libp2pTransport
from protocol import constants as c
from protocol.effects import RunEngine
from protocol.envelope import SigningKey
from protocol.events import EngineFailed, EngineFinished, EngineText
from protocol.ids import RunId, node_id_from_text
from protocol.jobs import default_sampling
from protocol.records import ChatMessage, JobRequest, Kind, ModelOffer, Role
from tests.helpers_engine import PacedEngine

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PACED_SLOTS: Final = 64
REAL_SLOTS: Final = 4
# The node numbers its runs from 1.
FIRST_DIRECT_RUN: Final = 2**32


class SharedEngine:
    """An engine that a node uses and that the benchmark asks too, each hearing of its own runs alone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = itertools.count(FIRST_DIRECT_RUN)
        self._report: Report | None = None
        self._direct: dict[RunId, Callable[[EngineEvent], None]] = {}
        self.on_change: Callable[[], None] = lambda: None

    async def run(self, report: Report, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As `Engine.run`."""
        self._report = report
        self._engine.on_change = self.on_change
        await self._engine.run(self._pass_on, task_status=task_status)

    def start(self, run: RunEngine) -> None:
        """As `Engine.start`."""
        self._engine.start(run)

    def cancel(self, run: RunId) -> None:
        """As `Engine.cancel`."""
        self._engine.cancel(run)

    def proceed(self, run: RunId) -> None:
        """As `Engine.proceed`."""
        self._engine.proceed(run)

    def models(self) -> tuple[ModelOffer, ...]:
        """As `Engine.models`."""
        return self._engine.models()

    def statistics(self) -> EngineStatistics:
        """As `Engine.statistics`."""
        return self._engine.statistics()

    def _pass_on(self, event: EngineEvent) -> None:
        direct = self._direct.get(event.run)
        if direct is not None:
            direct(event)
        else:
            assert self._report is not None
            self._report(event)

    async def ask(self, text: str, max_tokens: int) -> Stream:
        """Put a question to the engine itself."""
        number = RunId(next(self._numbers))
        [offer] = self.models()
        ended = trio.Event()

        def hear(event: EngineEvent) -> None:
            if isinstance(event, EngineText):
                stream.piece()
            elif isinstance(event, EngineFinished):
                stream.done(event.output_tokens)
                ended.set()
            else:
                assert not isinstance(event, EngineFailed), event.text

        self._direct[number] = hear
        request = JobRequest(messages=(ChatMessage("user", text),))
        sampling = default_sampling(1, temperature=0.0)
        stream = Stream()
        self.start(RunEngine(number, Kind.CHAT, offer.name, request, sampling, offer.context_tokens, max_tokens))
        await ended.wait()
        del self._direct[number]
        return stream


def configuration(arguments: argparse.Namespace) -> Config:
    """A provider on loopback, with its files where the benchmark says."""
    return Config(
        config_dir=arguments.home,
        state_dir=arguments.home,
        data_dir=ROOT / ".cache",
        name="benchmark",
        role=Role.PROVIDER,
        listen_hosts=("127.0.0.1",),
        threads=1,
        slots=REAL_SLOTS,
        coordinator_url=arguments.coordinator_url,
        coordinator_key=node_id_from_text(arguments.coordinator_key) if arguments.coordinator_key else None,
    )


async def provide(arguments: argparse.Namespace) -> None:
    """Run the node, and answer requests about it."""
    config = configuration(arguments)
    key = SigningKey(random.SystemRandom().randbytes(32), os.urandom)
    if arguments.engine == "paced":
        engine: Engine | None = PacedEngine(tokens_per_s=arguments.pace, slots=PACED_SLOTS)
    else:
        engine = await open_engine(config)
    assert engine is not None
    shared = SharedEngine(engine)
    transport = Libp2pTransport(
        key.secret_bytes(),
        agent=AGENT,
        protocols=c.PROTOCOLS,
        randomness=random.SystemRandom(),
        listen_hosts=config.listen_hosts,
        port=0,
        allow_private=True,
    )
    node = Node(config, key, transport=transport, engine=shared)

    async def handle(request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "status":
            return node.status()
        return await ask_all(request, lambda index: shared.ask(question(request, index), request["max_tokens"]))

    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await node.wait_loaded()
        say({"address": node.addresses()[0]})
        await serve(handle)
        node.stop()


def main() -> None:
    """Read the command line and provide until standard input closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=["real", "paced"], required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--pace", type=float, required=True)
    parser.add_argument("--coordinator-url")
    parser.add_argument("--coordinator-key")
    parser.add_argument("--profile", type=Path)
    arguments = parser.parse_args()
    run(partial(provide, arguments), arguments.profile)


if __name__ == "__main__":
    main()
