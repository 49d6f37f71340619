"""A question and its answer cross TCP between two processes, and nobody between them can read either."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.helpers_cli import Home
from tests.helpers_end_to_end import PARIS, NodeProcess

pytestmark = [pytest.mark.anyio, pytest.mark.model, pytest.mark.slow]


class Tap:
    """A TCP proxy in front of a port, and every byte that has crossed it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self.there = bytearray()
        self.back = bytearray()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pass on until cancelled."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._pass_on, [listener])

    async def _pass_on(self, near: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._target) as far, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, near, far, self.there)
            nursery.start_soon(self._copy, far, near, self.back)

    @staticmethod
    async def _copy(source: trio.SocketStream, sink: trio.SocketStream, record: bytearray) -> None:
        try:
            async for data in source:
                record += data
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(sink)


@asynccontextmanager
async def tapped(port: int) -> AsyncIterator[Tap]:
    """A tap for as long as the block lasts."""
    tap = Tap(port)
    async with trio.open_nursery() as nursery:
        await nursery.start(tap.serve)
        yield tap
        nursery.cancel_scope.cancel()


async def test_an_answer_crosses_the_port_and_cannot_be_read_there(
    shared_provider: NodeProcess, empty_home: Home
) -> None:
    async with tapped(shared_provider.port) as tap:
        address = shared_provider.address.replace(f"/tcp/{shared_provider.port}/", f"/tcp/{tap.port}/")
        outcome = await trio.to_thread.run_sync(
            lambda: empty_home.run("chat", "--json", "--temperature", "0", "--peer", address, PARIS)
        )

        assert outcome.code == 0, outcome.err
        answer = outcome.json
        assert "Paris" in answer["text"]
        assert answer["route"] == "peer"
        assert answer["provider"] == shared_provider.status()["node_id"]
        assert answer["output_tokens"] > 3
        # The prompt is padded to a kibibyte before it is sealed, each piece of the answer to 64 bytes.
        assert len(tap.there) > 1500
        assert len(tap.back) > 1000
        for crossed in (bytes(tap.there), bytes(tap.back)):
            assert b"/noise" in crossed, "the tap sees the handshake, which nothing hides"
            for word in (b"capital", b"France", b"Paris", b"infernet", b"smollm"):
                assert word not in crossed
