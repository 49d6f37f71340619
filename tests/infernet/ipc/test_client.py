"""infernet/ipc/client.py: what a command learns when the node answers, refuses, stalls, dies or is not there."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from infernet.ipc import client as ipc
from infernet.ipc.client import IpcError, NotRunning, Refused
from tests.helpers_ipc import ACCEPTED, NOBODY, PARIS, FakeNode, served

DEADLINE_S = 10.0
QUESTION = {"messages": [{"role": "user", "content": "Where?"}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "s").mkdir(mode=0o700)
    return tmp_path / "s" / "daemon.sock"


@contextmanager
def scripted(path: Path, script: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server of one connection that does what a test says: for answers that the real one never gives."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(DEADLINE_S)

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(DEADLINE_S)
                script(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            thread.join(DEADLINE_S)


def replying(*replies: bytes) -> Callable[[socket.socket], None]:
    """Read one request, send these bytes, hang up."""

    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        for reply in replies:
            connection.sendall(reply)

    return script


def silent(connection: socket.socket) -> None:
    """Read until the client gives up, and never say a word."""
    while connection.recv(65536):
        pass


async def in_thread(function: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(function)


@pytest.mark.anyio
async def test_a_call_gives_the_data_of_the_real_server(path: Path) -> None:
    node = FakeNode()
    node.known = [{"name": "x"}]
    async with served(node, path):
        assert await in_thread(lambda: ipc.call(path, "status")) == node.state
        assert await in_thread(lambda: ipc.call(path, "peers")) == [{"name": "x"}]
        assert await in_thread(lambda: ipc.is_alive(path)) is True
        with pytest.raises(Refused) as refused:
            await in_thread(lambda: ipc.call(path, "dance"))
        assert refused.value.code == "unknown-cmd: dance"
    assert await in_thread(lambda: ipc.is_alive(path)) is False


@pytest.mark.anyio
async def test_a_stream_gives_events_to_the_last(path: Path) -> None:
    async with served(FakeNode(), path):
        events = await in_thread(lambda: list(ipc.stream(path, "chat", QUESTION, silence_s=DEADLINE_S)))
    assert [name for name, _ in events] == ["accepted", "text", "done"]
    assert events[1][1] == {"text": "Paris", "output_tokens": 1}


@pytest.mark.anyio
async def test_a_stream_that_fails_says_why(path: Path) -> None:
    async with served(FakeNode([ACCEPTED, PARIS, NOBODY]), path):
        with pytest.raises(Refused) as refused:
            await in_thread(lambda: list(ipc.stream(path, "chat", QUESTION, silence_s=DEADLINE_S)))
    assert (refused.value.cause, refused.value.data) == ("no_provider", {"retry_after_ms": 2000})
    assert str(refused.value) == "no provider is known"


@pytest.mark.anyio
async def test_closing_a_stream_cancels_it(path: Path) -> None:
    node = FakeNode()
    node.waits_after = 2
    async with served(node, path):
        stream = ipc.stream(path, "chat", QUESTION, silence_s=DEADLINE_S)
        await in_thread(lambda: [next(stream), next(stream)])
        stream.close()
        with trio.fail_after(DEADLINE_S):
            await node.left.wait()


def test_without_a_node_the_way_out_is_told(path: Path) -> None:
    with pytest.raises(NotRunning, match="run `infernet start`") as refused:
        ipc.call(path, "status")
    assert refused.value.code == "daemon-unreachable"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunning):
        ipc.call(path, "status")


def test_a_node_that_stalls_is_given_up(path: Path) -> None:
    with scripted(path, silent), pytest.raises(IpcError, match=r"within 0\.05 s") as refused:
        ipc.call(path, "status", timeout_s=0.05)
    assert refused.value.code == "daemon-timeout"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"", "connection-closed"),
        (b'{"ok": true', "connection-closed"),
        (b"hello\n", "bad-response"),
        (b"[]\n", "bad-response"),
        (b'{"ok": 1}\n', "bad-response"),
        (b"[" * 100_000 + b"\n", "bad-response"),
        (b"\xff\n", "bad-response"),
    ],
)
def test_an_answer_that_is_none_has_its_name(path: Path, reply: bytes, code: str) -> None:
    with scripted(path, replying(reply)), pytest.raises(IpcError) as refused:
        ipc.call(path, "status", timeout_s=DEADLINE_S)
    assert refused.value.code == code


def test_an_endless_line_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc, "LINE_BYTES_MAX", 100_000)
    with scripted(path, replying(b"x" * 200_000)), pytest.raises(IpcError, match="never ends"):
        ipc.call(path, "status", timeout_s=DEADLINE_S)


def test_a_node_that_dies_in_the_middle_of_an_answer_is_no_clean_end(path: Path) -> None:
    first = json.dumps({"ok": True, "event": "text", "data": {"text": "Par", "output_tokens": 1}}).encode() + b"\n"
    with scripted(path, replying(first)):
        stream = ipc.stream(path, "chat", QUESTION, silence_s=DEADLINE_S)
        assert next(stream)[0] == "text"
        with pytest.raises(IpcError) as refused:
            next(stream)
    assert refused.value.code == "connection-closed"


def test_a_stream_of_something_else_is_refused(path: Path) -> None:
    with scripted(path, replying(b'{"ok": true, "data": 1}\n')), pytest.raises(IpcError) as refused:
        list(ipc.stream(path, "chat", QUESTION, silence_s=DEADLINE_S))
    assert refused.value.code == "bad-response"


def test_a_question_that_is_too_long_is_not_sent(path: Path) -> None:
    with pytest.raises(IpcError, match="too long") as refused:
        ipc.call(path, "chat", "x" * ipc.LINE_BYTES_MAX)
    assert refused.value.code == "write-failed"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_socket_in_somebody_elses_folder_is_not_trusted(path: Path) -> None:
    os.chown(path.parent, 12345, 12345)
    with pytest.raises(IpcError, match="belongs to another user"):
        ipc.call(path, "ping")
