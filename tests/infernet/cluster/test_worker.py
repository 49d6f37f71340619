"""infernet/cluster/worker.py: who is let in, how long, and what becomes of the program that is lent."""

from __future__ import annotations

import errno
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from infernet.cluster.framing import read_message
from infernet.cluster.worker import Worker, WorkerPatience
from infernet.transport.channel import ByteReader
from infernet.transport.contract import Stream, StreamBroken
from protocol import clusters
from protocol.clusters import CLUSTER_PROTOCOL, AnyClusterMessage, Attach, Attached, Build, Carry, Ready, Refused, Why
from protocol.ids import NodeId, peer_id
from tests.helpers_rpc_cluster import BUILD, FIRST, HEAD, STRANGER, Lent, Machines, machines, programs
from tests.helpers_transport import eventually, read_to_end

pytestmark = pytest.mark.anyio


async def opened(world: Machines, peer: NodeId = HEAD) -> Stream:
    """A stream of a peer to the worker."""
    transport = world.net._running.get(peer) or await world.start(peer, Lent())
    await transport.dial(FIRST, [f"/memory/1/p2p/{peer_id(FIRST)}"])
    return await transport.open_stream(FIRST, CLUSTER_PROTOCOL)


async def said(stream: Stream, message: AnyClusterMessage) -> tuple[AnyClusterMessage, ByteReader]:
    """What the worker answers."""
    await stream.send(clusters.encode(message))
    reader = ByteReader(stream.receive)
    with trio.fail_after(20):
        return await read_message(reader), reader


async def attached(stream: Stream) -> Attached:
    answer, _ = await said(stream, Attach(BUILD))
    assert isinstance(answer, Attached), answer
    return answer


async def broken(stream: Stream) -> None:
    """Wait until the stream is reset."""
    with trio.fail_after(20), pytest.raises(StreamBroken):
        await read_to_end(stream)


async def over(stream: Stream) -> None:
    """Wait until the stream has ended, well or not: a process that is killed closes its connections, too."""
    with trio.fail_after(20), suppress(StreamBroken):
        await read_to_end(stream)


async def test_the_head_is_told_what_it_gets_and_reaches_the_server_behind_it(tmp_path: Path) -> None:
    async with machines() as world:
        worker = await world.lend(FIRST, programs(tmp_path))
        session = await opened(world)
        answer = await attached(session)
        assert (answer.build, answer.rpc) == (BUILD, "7.0.0")
        assert [(device.name, device.total_mib, device.free_mib) for device in answer.devices] == [
            ("CPU: A test double", 3072, 2048)
        ]
        stream = await opened(world)
        ready, reader = await said(stream, Carry(answer.session))
        assert ready == Ready()
        await stream.send(b"over there and back")
        with trio.fail_after(20):
            assert await reader.read(19) == b"over there and back"
        status = worker.status()
        assert (status["attached"], status["connections"], status["carried_bytes"]) == (True, 1, 38)
        await stream.finish()
        with trio.fail_after(20):
            assert await stream.receive() == b""
        await eventually(lambda: worker.status()["connections"] == 0)


async def test_a_stranger_is_reset_before_he_has_said_a_word(tmp_path: Path) -> None:
    async with machines() as world:
        worker = await world.lend(FIRST, programs(tmp_path))
        token = (await attached(await opened(world))).session
        for message in (Attach(BUILD), Carry(token)):
            stream = await opened(world, STRANGER)
            with pytest.raises(StreamBroken):
                await said(stream, message)
        silent = await opened(world, STRANGER)
        await broken(silent)
        assert worker.status()["strangers_refused"] == 3
        # The head goes on.
        ready, _ = await said(await opened(world), Carry(token))
        assert ready == Ready()


async def test_another_build_is_refused_by_both_numbers(tmp_path: Path) -> None:
    async with machines() as world:
        worker = await world.lend(FIRST, programs(tmp_path))
        stream = await opened(world)
        answer, _ = await said(stream, Attach(Build(11500, "abc")))
        assert isinstance(answer, Refused)
        assert (answer.why, answer.build) == (Why.OTHER_BUILD, BUILD)
        assert "b11500 (abc)" in answer.text
        assert "b11434 (unknown)" in answer.text
        assert worker.status()["attached"] is False
        assert "b11500" in worker.status()["problem"]


async def test_without_the_program_the_head_hears_why(tmp_path: Path) -> None:
    async with machines() as world:
        await world.lend(FIRST, str(tmp_path / "llama-server"))
        answer, _ = await said(await opened(world), Attach(BUILD))
        assert isinstance(answer, Refused)
        assert answer.why == Why.NO_SERVER
        assert "is no program" in answer.text


async def test_a_program_that_does_not_start_is_told_too(tmp_path: Path) -> None:
    server = programs(tmp_path)
    (tmp_path / "ggml-rpc-server").write_text("#!/bin/sh\necho 'Failed to create server socket' >&2\nexit 3\n")
    async with machines() as world:
        await world.lend(FIRST, server)
        answer, _ = await said(await opened(world), Attach(BUILD))
        assert isinstance(answer, Refused)
        assert "ggml-rpc-server exited with status 3" in answer.text
        assert "taken meanwhile" in answer.text


async def test_a_session_that_is_over_carries_nothing(tmp_path: Path) -> None:
    async with machines() as world:
        worker = await world.lend(FIRST, programs(tmp_path))
        session = await opened(world)
        token = (await attached(session)).session
        stream = await opened(world)
        await said(stream, Carry(token))
        session.reset()
        # The program goes with the session, and what it carried with the program.
        await over(stream)
        await eventually(lambda: not worker.status()["attached"])
        answer, _ = await said(await opened(world), Carry(token))
        assert isinstance(answer, Refused)
        assert answer.why == Why.NO_SESSION


async def test_a_head_that_comes_anew_has_the_machine_at_once(tmp_path: Path) -> None:
    async with machines() as world:
        worker = await world.lend(FIRST, programs(tmp_path))
        old = await opened(world)
        token = (await attached(old)).session
        new = await attached(await opened(world))
        assert new.session != token
        await broken(old)
        answer, _ = await said(await opened(world), Carry(token))
        assert isinstance(answer, Refused)
        assert worker.status()["sessions"] == 2
        assert worker.status()["attached"] is True


async def test_the_end_of_the_program_is_the_end_of_the_session(tmp_path: Path) -> None:
    async with machines() as world:
        worker = await world.lend(FIRST, programs(tmp_path))
        session = await opened(world)
        token = (await attached(session)).session
        stream = await opened(world)
        await said(stream, Carry(token))
        await stream.send(b"die")
        await broken(session)
        await over(stream)
        assert "ended by SIGABRT" in worker.status()["problem"]
        await attached(await opened(world))


async def test_there_are_only_so_many_connections(tmp_path: Path) -> None:
    async with machines() as world:
        await world.lend(FIRST, programs(tmp_path))
        token = (await attached(await opened(world))).session
        for _ in range(clusters.CARRIED_MAX):
            answer, _ = await said(await opened(world), Carry(token))
            assert answer == Ready()
        answer, _ = await said(await opened(world), Carry(token))
        assert isinstance(answer, Refused)
        assert answer.why == Why.TOO_MANY


@pytest.mark.parametrize("data", [b"\xff" * 64, b"\0\0\0\0", clusters.encode(Ready()), b"\0\0\0\x02\x92\x02"])
async def test_what_is_no_first_word_breaks_the_stream(tmp_path: Path, data: bytes) -> None:
    async with machines() as world:
        worker = Worker(HEAD, str(tmp_path))
        await world.start(FIRST, Lent(worker))
        stream = await opened(world)
        await stream.send(data)
        await broken(stream)


async def test_who_says_nothing_does_not_stay(tmp_path: Path) -> None:
    async with machines() as world:
        await world.start(FIRST, Lent(Worker(HEAD, str(tmp_path), patience=WorkerPatience(first_word_s=0.05))))
        stream = await opened(world)
        await broken(stream)


async def test_who_does_not_read_stops_who_sends(tmp_path: Path) -> None:
    async with machines() as world:
        worker = await world.lend(FIRST, programs(tmp_path))
        token = (await attached(await opened(world))).session
        stream = await opened(world)
        _, reader = await said(stream, Carry(token))
        sent = 0
        # What fits into pipes and sockets is taken; then nothing is, for nobody reads the echo.
        with trio.move_on_after(0.5) as stuck:
            while sent < 256 * 1024 * 1024:
                await stream.send(b"x" * 4096)
                sent += 4096
                stuck.deadline = trio.current_time() + 0.5
        assert stuck.cancelled_caught
        assert sent < 64 * 1024 * 1024
        assert worker.status()["carried_bytes"] < 2 * 64 * 1024 * 1024
        assert reader is not None


async def test_a_disk_that_is_full_is_told_to_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_words: str) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with machines() as world:
        worker = await world.lend(FIRST, programs(tmp_path))
        monkeypatch.setattr(tempfile, "mkdtemp", full)
        answer, _ = await said(await opened(world), Attach(BUILD))
        assert isinstance(answer, Refused)
        assert (answer.why, "no space left on device" in answer.text) == (Why.NO_SERVER, True)
        assert "no space left on device" in worker.status()["problem"]
