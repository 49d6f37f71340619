"""What the processes of the relay benchmark share: requests and answers as JSON lines, and how a stream is measured."""

from __future__ import annotations

import cProfile
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

import infernet.log

Handle = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass
class Stream:
    """When the pieces of one answer came, in milliseconds since it was asked for."""

    started_s: float = field(default_factory=time.perf_counter)
    pieces_ms: list[float] = field(default_factory=list)
    done_ms: float = 0.0
    tokens: int = 0

    def piece(self) -> None:
        """A piece of the answer is here."""
        self.pieces_ms.append(self._now_ms())

    def done(self, tokens: int) -> None:
        """The answer is complete, and has this many tokens by the provider's count."""
        self.done_ms = self._now_ms()
        self.tokens = tokens

    def _now_ms(self) -> float:
        return (time.perf_counter() - self.started_s) * 1000


def summary(streams: Sequence[Stream]) -> dict[str, Any]:
    """What one run showed: rate per stream from question to end, first tokens, gaps between pieces."""
    tokens = sum(stream.tokens for stream in streams)
    gaps_ms = [
        later - earlier
        for stream in streams
        for earlier, later in zip(stream.pieces_ms, stream.pieces_ms[1:], strict=False)
    ]
    return {
        "tokens": tokens,
        "pieces": sum(len(stream.pieces_ms) for stream in streams),
        "tokens_per_s": tokens / sum(stream.done_ms for stream in streams) * 1000,
        "first_token_ms": statistics.median(stream.pieces_ms[0] for stream in streams),
        "gap_p95_ms": statistics.quantiles(gaps_ms, n=20)[-1] if len(gaps_ms) > 1 else 0.0,
    }


async def ask_all(request: dict[str, Any], ask: Callable[[int], Awaitable[Stream]]) -> dict[str, Any]:
    """Ask as many questions at once as the request says, each a little after the last: tokens do not march in step."""
    streams: list[Stream] = []

    async def one(index: int) -> None:
        await trio.sleep(index * request["stagger_s"])
        streams.append(await ask(index))

    async with trio.open_nursery() as nursery:
        for index in range(request["streams"]):
            nursery.start_soon(one, index)
    return summary(streams)


def question(request: dict[str, Any], index: int) -> str:
    """A question with a long answer. Each is asked once, so that no cache knows more than the first words of it."""
    return f"Tell me a very long story about a dragon and the number {request['number'] + index}."


async def serve(handle: Handle) -> None:
    """Answer the requests on standard input, one line of JSON each, until it closes."""
    requests = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    buffered = b""
    async for data in requests:
        *lines, buffered = (buffered + data).split(b"\n")
        for line in lines:
            say(await handle(json.loads(line)))


def say(answer: dict[str, Any]) -> None:
    """Write one line to whoever started this process."""
    print(json.dumps(answer), flush=True)


def run(main: Callable[[], Awaitable[None]], profile: Path | None) -> None:
    """Run a process of the benchmark, perhaps under the profiler. Its log goes to standard error."""
    infernet.log.configure("warning")
    if profile is None:
        trio.run(main)
        return
    profiler = cProfile.Profile()
    try:
        profiler.runcall(partial(trio.run, main))
    finally:
        profiler.dump_stats(profile)
