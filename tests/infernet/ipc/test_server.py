"""infernet/ipc/server.py: the commands and error names that tools know, limits, and chats that end when hung up."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from infernet.host.files import FilesError
from infernet.ipc import server as ipc_server
from infernet.ipc.client import LINE_BYTES_MAX
from infernet.ipc.server import CONNECTIONS_MAX, ChatTurn, serve
from protocol.effects import JobText
from tests.helpers_ipc import ACCEPTED, DEADLINE_S, DONE, JOB, NOBODY, PARIS, FakeNode, Talker, served, talking
from tests.helpers_records import PROVIDER

pytestmark = pytest.mark.anyio

QUESTION = {"messages": [{"role": "user", "content": "Where?"}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s" / "daemon.sock"


async def test_who_pauses_it_is_told_in_json_what_is_left(path: Path) -> None:
    node = FakeNode()
    async with served(node, path), talking(path) as talker:
        for command in ("pause", "resume"):
            reply = await talker.ask({"cmd": command})
            left = {"running": 2, "asked": 0, "forwarded": 0}
            assert reply == {"ok": True, "data": {"paused": command == "pause", **left}}
            assert node.state["paused"] is (command == "pause")


async def test_commands_have_the_replies_that_tools_know(path: Path) -> None:
    node = FakeNode()
    async with served(node, path), talking(path) as talker:
        pong = await talker.ask({"cmd": "ping"})
        assert pong is not None
        assert isinstance(pong["data"].pop("pong"), int)
        assert pong == {"ok": True, "data": {}}
        for command in ("status", "stats"):
            assert await talker.ask({"cmd": command}) == {"ok": True, "data": node.state}
        assert await talker.ask({"cmd": "peers", "payload": None}) == {"ok": True, "data": []}
        assert not node.stopped.is_set()
        assert await talker.ask({"cmd": "shutdown"}) == {"ok": True, "data": {"shuttingDown": True}}
        with trio.fail_after(DEADLINE_S):
            await node.stopped.wait()


async def test_a_node_that_drains_says_what_is_left_until_it_is_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipc_server, "_DRAIN_REPORT_S", 0.01)
    node = FakeNode()
    left = {"running": 2, "asked": 0, "forwarded": 0, "ends_in_s": 9.5}
    async with served(node, path), talking(path) as talker:
        await talker.send({"cmd": "drain", "payload": {"limit_s": 60}})
        for _ in range(3):
            assert await talker.reply() == {"ok": True, "event": "draining", "data": left}
    assert node.drained == [60.0]


@pytest.mark.parametrize("payload", [{"limit_s": -1}, {"limit_s": "soon"}, {"limit": 3}, []])
async def test_a_limit_that_is_none_does_not_stop_the_node(path: Path, payload: object) -> None:
    node = FakeNode()
    async with served(node, path), talking(path) as talker:
        assert (await talker.ask({"cmd": "drain", "payload": payload}) or {})["error"] == "bad-payload"
    assert node.drained == []


@pytest.mark.parametrize(
    "line", [b"\n", b"{\n", b"[]\n", b"1\n", b'{"cmd": 1}\n', b"{}\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"]
)
async def test_a_line_that_is_no_request_is_bad_json_and_the_connection_goes_on(path: Path, line: bytes) -> None:
    async with served(FakeNode(), path), talking(path) as talker:
        assert await talker.ask(line) == {"ok": False, "error": "bad-json"}
        assert (await talker.ask({"cmd": "ping"}) or {})["ok"]


async def test_an_unknown_command_is_named_without_its_control_characters(path: Path) -> None:
    async with served(FakeNode(), path), talking(path) as talker:
        assert await talker.ask({"cmd": "dance\x1b[2J"}) == {"ok": False, "error": "unknown-cmd: dance"}


async def test_lines_may_come_in_pieces_and_together(path: Path) -> None:
    async with served(FakeNode(), path), talking(path) as talker:
        for piece in (b'{"cmd": ', b'"pi', b'ng"}\n{"cmd": "ping"}\n{"cmd"', b': "ping"}\n'):
            await talker.send(piece)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            assert (await talker.reply() or {})["ok"]


async def test_a_line_without_end_is_refused(path: Path) -> None:
    async with served(FakeNode(), path), talking(path) as talker:
        reply = await talker.ask(b"x" * (LINE_BYTES_MAX + 1))
        assert reply is not None
        assert reply["error"] == "line-too-long"
        assert str(LINE_BYTES_MAX) in reply["cause"]
        assert await talker.reply() is None


async def test_there_is_a_most_of_connections_and_the_next_gets_a_reason(path: Path) -> None:
    async with served(FakeNode(), path):
        streams = [await trio.open_unix_socket(path) for _ in range(CONNECTIONS_MAX)]
        for stream in streams:
            assert (await Talker(stream).ask({"cmd": "ping"}) or {})["ok"]
        async with talking(path) as talker:
            assert await talker.reply() == {"ok": False, "error": "too-many-connections"}
            assert await talker.reply() is None
        for stream in streams:
            await stream.aclose()
        with trio.fail_after(DEADLINE_S):
            while True:
                async with talking(path) as talker:
                    reply = await talker.ask({"cmd": "ping"})
                    if reply is not None and reply["ok"]:
                        break


async def test_a_silent_connection_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc_server, "REQUEST_TIMEOUT_S", 0.05)
    async with served(FakeNode(), path), talking(path) as talker:
        await talker.send(b'{"cmd": "pi')
        assert await talker.reply() is None


async def test_a_chat_streams_its_events_to_the_last_and_then_closes(path: Path) -> None:
    node = FakeNode()
    async with served(node, path), talking(path) as talker:
        payload = QUESTION | {"model": "tiny-135m", "max_tokens": 5, "temperature": 0, "seed": 7, "stop": ["x"]}
        await talker.send({"cmd": "chat", "payload": payload})
        accepted, text, done = [await talker.reply() for _ in range(3)]
        assert accepted == {
            "ok": True,
            "event": "accepted",
            "data": {
                "job": JOB.hex(),
                "provider": PROVIDER.node.hex(),
                "attempt": 1,
                "model": "tiny-135m",
                "prompt_tokens": 17,
                "via": None,
            },
        }
        assert text == {"ok": True, "event": "text", "data": {"text": "Paris", "output_tokens": 1}}
        assert done is not None
        assert (done["event"], done["data"]["outcome"], done["data"]["output_tokens"]) == ("done", "stop", 5)
        assert await talker.reply() is None
    (request,) = node.requests
    assert request.messages == (ChatTurn("user", "Where?"),)
    assert (request.model, request.max_tokens, request.temperature, request.seed) == ("tiny-135m", 5, 0.0, 7)


async def test_a_chat_that_fails_says_why(path: Path) -> None:
    async with served(FakeNode([NOBODY]), path), talking(path) as talker:
        assert await talker.ask({"cmd": "chat", "payload": QUESTION}) == {
            "ok": False,
            "error": "no provider is known",
            "cause": "no_provider",
            "data": {"retry_after_ms": 2000},
        }


async def test_a_question_that_the_protocol_refuses_says_why(path: Path) -> None:
    node = FakeNode()
    node.refuses = "a question this long cannot be asked"
    async with served(node, path), talking(path) as talker:
        reply = await talker.ask({"cmd": "chat", "payload": QUESTION})
        assert reply == {"ok": False, "error": node.refuses, "cause": "bad_request"}


async def test_an_answer_that_was_given_up_is_no_clean_end(path: Path) -> None:
    async with served(FakeNode([ACCEPTED, PARIS]), path), talking(path) as talker:
        await talker.send({"cmd": "chat", "payload": QUESTION})
        replies = [await talker.reply() for _ in range(3)]
        assert (replies[2] or {})["cause"] == "slow_reader"


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [],
        {},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": "Where?"},
        QUESTION | {"temperature": 9},
        QUESTION | {"max_tokens": 0},
        QUESTION | {"max_tokens": "many"},
        QUESTION | {"timeout_s": -1},
        QUESTION | {"colour": "red"},
        QUESTION | {"seed": 2**70},
    ],
)
async def test_a_payload_that_is_wrong_is_refused_before_anything_is_asked(path: Path, payload: object) -> None:
    node = FakeNode()
    async with served(node, path), talking(path) as talker:
        reply = await talker.ask({"cmd": "chat", "payload": payload})
        assert reply is not None
        assert (reply["ok"], reply["error"]) == (False, "bad-payload")
    assert node.requests == []


@pytest.mark.parametrize("waits_after", [0, 2])
async def test_hanging_up_cancels_the_chat(path: Path, waits_after: int) -> None:
    node = FakeNode()
    node.waits_after = waits_after
    async with served(node, path):
        async with talking(path) as talker:
            await talker.send({"cmd": "chat", "payload": QUESTION})
            for _ in range(waits_after):
                await talker.reply()
            with trio.fail_after(DEADLINE_S):
                while not node.requests:
                    await trio.testing.wait_all_tasks_blocked()
            assert not node.left.is_set()
        with trio.fail_after(DEADLINE_S):
            await node.left.wait()


async def test_a_reader_that_stands_still_loses_its_chat(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc_server, "WRITE_TIMEOUT_S", 0.05)
    node = FakeNode([JobText(JOB, "x" * 65536, 1)] * 1000)
    async with served(node, path), talking(path) as talker:
        await talker.send({"cmd": "chat", "payload": QUESTION})
        with trio.fail_after(DEADLINE_S):
            await node.left.wait()


async def test_a_mistake_in_one_command_does_not_end_the_others(path: Path) -> None:
    node = FakeNode()
    node.state = {"unserialisable": object()}
    async with served(node, path), talking(path) as other:
        async with talking(path) as talker:
            assert await talker.ask({"cmd": "status"}) == {"ok": False, "error": "internal-error"}
            assert await talker.reply() is None
        assert (await other.ask({"cmd": "ping"}) or {})["ok"]


async def test_the_socket_is_private_and_gone_afterwards(path: Path) -> None:
    async with served(FakeNode(), path):
        assert [stat.S_IMODE(os.stat(place).st_mode) for place in (path, path.parent)] == [0o600, 0o700]
    assert os.listdir(path.parent) == []


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    os.mkdir(path.parent, 0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with served(FakeNode(), path), talking(path) as talker:
        assert (await talker.ask({"cmd": "ping"}) or {})["ok"]


async def test_a_folder_that_others_may_write_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(FilesError, match="chmod 700"):
        await serve(path, FakeNode().handlers())


def test_a_question_is_in_no_representation() -> None:
    assert "secret" not in repr(ipc_server.ChatRequest(messages=(ChatTurn("user", "secret"),)))
    assert DONE.receipt.output_tokens == 5
