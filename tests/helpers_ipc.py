"""A double of the node behind the IPC socket: it answers what the test tells it to."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from infernet.answers import AnswerEvent
from infernet.draining import JobsLeft
from infernet.ipc.server import ChatRequest, CloseLeaseRequest, Handlers, JoinRequest, MoneyRequest, serve
from infernet.ipc.why import WhyRequest
from protocol.effects import JobAccepted, JobDone, JobFailed, JobText, Served
from protocol.errors import LocalProtocolError, Refusal
from protocol.ids import JobId
from protocol.records import ReceiptRecord
from tests.helpers_records import PROVIDER, receipt

#: How long a reply may take, on a machine that is busy.
DEADLINE_S = 20.0

JOB = JobId(bytes(range(16)))
ACCEPTED = JobAccepted(JOB, PROVIDER.node, 1, "tiny-135m", 17)
PARIS = JobText(JOB, "Paris", 1)


def done(record: ReceiptRecord) -> JobDone:
    """The end of a job that one provider has done alone."""
    served = Served(record.provider, record.attempt, record.prompt_tokens, record.output_tokens)
    return JobDone(JOB, record, (served,))


DONE = done(receipt())
NOBODY = JobFailed(JOB, Refusal.NO_PROVIDER, "no provider is known", 2000)
# Those that listen somewhere now.
_served: list[FakeNode] = []


class FakeNode:
    """Answers every chat with the same events; after them, or between them, it can be made to wait."""

    def __init__(self, events: Sequence[AnswerEvent] = (ACCEPTED, PARIS, DONE)) -> None:
        self.events = events
        self.refuses: str | None = None
        self.waits_after: int | None = None
        self.requests: list[ChatRequest] = []
        self.asked = trio.Event()
        self.left = trio.Event()
        self.stopped = trio.Event()
        self.drained: list[float] = []
        self.state: dict[str, Any] = {"name": "fake", "addresses": []}
        self.known: list[dict[str, Any]] = []
        self.live: dict[str, Any] = {"status": self.state, "jobs": [], "peers": []}
        self.joined: list[JoinRequest] = []
        self.join_results: dict[str, str] = {}
        self.explained: list[WhyRequest] = []
        self.explanation: dict[str, Any] = {}
        self.money_asked: list[MoneyRequest] = []
        self.money_answers: dict[str, object] = {}
        self.closed: list[CloseLeaseRequest] = []
        self.close_rows: list[dict[str, Any]] = []
        self.metrics = ""

    def handlers(self) -> Handlers:
        return Handlers(
            status=lambda: self.state,
            peers=lambda: self.known,
            live=lambda: self.live,
            shutdown=self.stopped.set,
            drain=self.drained.append,
            pause=self._pause,
            jobs_left=lambda: JobsLeft(running=2, asked=0, forwarded=0, ends_in_s=9.5),
            chat=self._chat,
            join=self._join,
            why=self._why,
            money=self._money,
            claim=lambda: {"leases": 1, "unclaimed_uusd": 90},
            close_leases=self._close_leases,
            metrics=self._metrics,
        )

    def _pause(self, until_told: bool) -> None:
        self.state["paused"] = until_told

    async def _metrics(self) -> str:
        return self.metrics

    async def _money(self, request: MoneyRequest) -> object:
        self.money_asked.append(request)
        answer = self.money_answers.get(request.ask, LocalProtocolError("the coordinator does not do that"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _close_leases(self, request: CloseLeaseRequest) -> list[dict[str, Any]]:
        self.closed.append(request)
        return self.close_rows

    def _why(self, request: WhyRequest) -> dict[str, Any]:
        self.explained.append(request)
        return self.explanation

    async def _join(self, request: JoinRequest) -> dict[str, str]:
        self.joined.append(request)
        return self.join_results

    @asynccontextmanager
    async def _chat(self, request: ChatRequest) -> AsyncIterator[AsyncIterator[AnswerEvent]]:
        self.requests.append(request)
        self.asked.set()
        if self.refuses is not None:
            raise LocalProtocolError(self.refuses)
        try:
            async with aclosing(self._answer()) as answer:
                yield answer
        finally:
            self.left.set()

    async def _answer(self) -> AsyncGenerator[AnswerEvent]:
        for number, event in enumerate(self.events):
            if number == self.waits_after:
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
            yield event


@asynccontextmanager
async def served(node: FakeNode, path: Path) -> AsyncIterator[None]:
    """The double listens at a path as long as the block lasts."""
    _served.append(node)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, path, node.handlers())
            yield
            nursery.cancel_scope.cancel()
    finally:
        _served.remove(node)


def is_served() -> bool:
    """Whether a double listens somewhere now."""
    return bool(_served)


class Talker:
    """Speaks raw lines to the server."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, request: object) -> None:
        data = request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n"
        await self.stream.send_all(data)

    async def reply(self) -> dict[str, Any] | None:
        """The next line, None at the end."""
        with trio.fail_after(DEADLINE_S):
            while b"\n" not in self._buffer:
                data = await self.stream.receive_some()
                if not data:
                    return None
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def ask(self, request: object) -> dict[str, Any] | None:
        await self.send(request)
        return await self.reply()


@asynccontextmanager
async def talking(path: Path) -> AsyncIterator[Talker]:
    async with await trio.open_unix_socket(path) as stream:
        yield Talker(stream)
