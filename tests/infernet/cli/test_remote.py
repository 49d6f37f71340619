"""infernet chat --remote: server-sent events, resumed where they broke, and errors with the coordinator's own hints."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.cli import remote
from infernet.cli.command import Failure
from infernet.cli.remote import read_events
from tests.helpers_cli import Home, invoke

Capture = pytest.CaptureFixture[str]
PROVIDER = {"id": "ab" * 32, "name": "kitchen\x1b[31m", "nodeId": "provider-abababab", "model": "tiny"}
META = {
    "provider_node_id": "provider-abababab",
    "provider_name": PROVIDER["name"],
    "provider": PROVIDER,
    "model": "tiny",
}
DONE = {"text": "Paris.", "reason": "stop", "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}}


def frame(number: int, event: str, data: object) -> bytes:
    return f"id: {number}\nevent: {event}\ndata: {json.dumps(data)}\n\n".encode()


ANSWER = [
    frame(1, "job", {"id": "j1"}),
    frame(2, "meta", META | {"prompt_tokens": 9}),
    b": ping\n\n",
    frame(3, "token", {"text": "Par"}),
    frame(4, "token", {"text": "is."}),
    frame(5, "done", DONE),
]


class FakeCoordinator:
    """A double of the public chat: what it answers to the question, and what it sends to each reader in turn."""

    def __init__(self, status: int = 200, reply: object = None, streams: list[list[bytes]] | None = None) -> None:
        self.status = status
        self.reply = {"jobId": "j1", "streamUrl": "/api/chat/stream/j1"} if reply is None else reply
        self.headers: dict[str, str] = {}
        self.streams = [ANSWER] if streams is None else streams
        self.asked: list[dict[str, Any]] = []
        self.resumed_from: list[str | None] = []


@contextmanager
def serving(fake: FakeCoordinator) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            fake.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            body = fake.reply if isinstance(fake.reply, bytes) else json.dumps(fake.reply).encode()
            self.send_response(fake.status)
            for name, value in fake.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            fake.resumed_from.append(self.headers["last-event-id"])
            pieces = fake.streams.pop(0) if fake.streams else []
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def ask(home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Ask a double of a coordinator."""
    monkeypatch.setattr(remote, "RECONNECT_PAUSE_S", 0.0)

    def run(fake: FakeCoordinator, *words: str) -> Any:
        with serving(fake) as url:
            return invoke(capsys, "chat", "--remote", "--url", url, *words, "Where?")

    return run


def test_the_answer_streams_and_the_account_names_the_provider(ask: Any) -> None:
    fake = FakeCoordinator()
    outcome = ask(fake, "--model", "tiny", "--max-tokens", "7", "--system", "Be brief.")
    assert (outcome.code, outcome.out) == (0, "Paris.\n")
    assert outcome.err.startswith("[served by kitchen, tiny, 9 + 2 tokens, first after ")
    assert outcome.err.endswith("; coordinator]\n")
    assert fake.asked == [
        {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}],
            "maxTokens": 7,
            "temperature": 0.7,
            "modelName": "tiny",
        }
    ]


def test_queues_and_providers_that_take_over_are_told_in_the_coordinators_words(ask: Any) -> None:
    other = {"id": "cd" * 32, "name": "attic", "nodeId": "provider-cdcdcdcd", "model": "tiny"}
    events = [
        frame(1, "queued", {"provider": PROVIDER, "position": 1, "wait_ms": 2_600}),
        frame(2, "meta", META | {"prompt_tokens": 9}),
        frame(3, "token", {"text": "Par"}),
        frame(4, "resumed", {"provider": other, "lost": PROVIDER, "prompt_tokens": 10, "output_tokens_before": 1}),
        frame(5, "token", {"text": "is."}),
        frame(6, "done", DONE | {"served": [{"provider": PROVIDER, "completion_tokens": 1}, {"provider": other}]}),
    ]
    outcome = ask(FakeCoordinator(streams=[list(events)]))
    assert outcome.out == "Paris.\n"
    assert outcome.err.splitlines()[:2] == [
        "[every slot is taken: it waits at kitchen, 1 before it, about 3 s]",
        "[provider kitchen went away; attic goes on (reads 10 tokens again)]",
    ]
    assert outcome.err.splitlines()[2].startswith("[served by attic after 1 other, tiny, 9 + 2 tokens")
    answer = ask(FakeCoordinator(streams=[events]), "--json").json
    assert [part["provider"] for part in answer["served"]] == [PROVIDER["id"], other["id"]]


def test_nothing_that_the_coordinator_says_about_the_answer_reaches_the_terminal_as_it_is(ask: Any) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\u202e\nforged"
    said = {"id": "\x1b[2J\x1b[2J"}
    meta = {"provider": said, "provider_name": None, "model": evil, "prompt_tokens": evil}
    usage = {"prompt_tokens": evil, "completion_tokens": 1}
    stream = [
        frame(1, "meta", meta),
        frame(2, "token", {"text": f"a{evil}b"}),
        frame(3, "done", {"reason": "stop", "usage": usage}),
    ]
    fake = FakeCoordinator(streams=[stream])
    outcome = ask(fake)
    for forbidden in ("\x1b", "\x07", "\u202e"):
        assert forbidden not in outcome.out + outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_with_json_there_is_one_object(ask: Any) -> None:
    answer = ask(FakeCoordinator(), "--json").json
    assert (answer["text"], answer["outcome"], answer["route"], answer["job"]) == (
        "Paris.",
        "stop",
        "coordinator",
        "j1",
    )
    assert (answer["provider"], answer["prompt_tokens"], answer["output_tokens"]) == ("ab" * 32, 9, 2)


def test_a_stream_that_breaks_is_resumed_where_it_broke(ask: Any) -> None:
    fake = FakeCoordinator(streams=[ANSWER[:4], ANSWER[4:]])
    outcome = ask(fake)
    assert (outcome.code, outcome.out) == (0, "Paris.\n")
    assert fake.resumed_from == [None, "3"]


def test_a_stream_that_breaks_again_and_again_is_given_up(ask: Any) -> None:
    fake = FakeCoordinator(streams=[ANSWER[:3]])
    outcome = ask(fake)
    assert outcome.code == 1
    assert "was lost (the stream ended in the middle)" in outcome.complaint
    assert len(fake.resumed_from) == 1 + remote.RECONNECTIONS_MAX


def test_an_error_of_the_job_is_told(ask: Any) -> None:
    stream = [*ANSWER[:4], frame(9, "error", {"message": "the provider\nleft", "code": "peer_lost"})]
    outcome = ask(FakeCoordinator(streams=[stream]))
    assert (outcome.code, outcome.out) == (1, "Par\n")
    assert "the answer broke off: the provider left; ask again" in outcome.complaint


def test_a_refusal_is_told_with_the_coordinators_own_hint(ask: Any) -> None:
    fake = FakeCoordinator(503, {"error": "no provider is online", "hint": "start one with `infernet start`"})
    fake.headers["Retry-After"] = "4"
    outcome = ask(fake)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.complaint == ("infernet: no answer: no provider is online; start one with `infernet start` (in 4 s)")


def test_a_budget_that_is_spent_is_told_with_its_code_and_the_time_to_come_back(ask: Any) -> None:
    reply = {"error": "the budget is spent", "hint": "come back after midnight UTC", "code": "budget_spent"}
    fake = FakeCoordinator(503, reply)
    fake.headers["Retry-After"] = "62940"
    outcome = ask(fake, "--json")
    assert (outcome.code, outcome.json["code"]) == (1, "budget_spent")
    assert outcome.complaint.endswith("the budget is spent; come back after midnight UTC (in 17 h 29 min)")


@pytest.mark.parametrize("retry_after", ["\u00b2", "-1", "1e9", "9" * 400, "soon", "0"])
def test_a_time_to_come_back_that_is_none_is_left_out(ask: Any, retry_after: str) -> None:
    fake = FakeCoordinator(503, {"error": "not now", "code": ["lease"]})
    fake.headers["Retry-After"] = retry_after
    assert ask(fake).complaint == "infernet: no answer: not now"


@pytest.mark.parametrize("reply", [b"", b"<html>", [], {}, {"jobId": "../../etc"}, {"jobId": 1.5}])
def test_what_is_no_coordinator_is_told(ask: Any, reply: object) -> None:
    outcome = ask(FakeCoordinator(reply=reply))
    assert outcome.code == 1
    assert "is the URL right?" in outcome.complaint


def test_an_answer_without_end_is_refused(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RESPONSE_BYTES_MAX", 1000)
    outcome = ask(FakeCoordinator(reply=b"x" * 5000))
    assert (outcome.code, "more than it should" in outcome.complaint) == (1, True)


def test_a_coordinator_out_of_reach_is_told(home: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "chat", "--remote", "--url", "http://127.0.0.1:9", "Hi")
    assert outcome.code == 1
    assert "the coordinator at http://127.0.0.1:9 cannot be reached" in outcome.complaint
    assert outcome.err.count("\n") == 1


# ---------------------------------------------------------------- the format


def parsed(data: bytes, *cuts: int) -> list[tuple[str, str, dict[str, Any]]]:
    bounds = [0, *sorted(cuts), len(data)]
    return list(read_events(data[a:b] for a, b in itertools.pairwise(bounds)))


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b'event: token\ndata: {"a": 1}\n\n', [("", "token", {"a": 1})]),
        (b'id: 7\r\nevent: token\r\ndata: {"a": 1}\r\n\r\n', [("7", "token", {"a": 1})]),
        (b'data:{"a":\ndata:1}\n\n', [("", "message", {"a": 1})]),
        (b"id: 1\n\ndata: {}\n\ndata: {}\n\n", [("1", "message", {}), ("1", "message", {})]),
        (b": comment\nretry: 5\nother\ndata: {}\n\n", [("", "message", {})]),
        (b"data: no json\n\ndata: []\n\ndata: {}\n\n", [("", "message", {})]),
        ('data: {"a": "x\u2028y\u0085z"}\n\n'.encode(), [("", "message", {"a": "x\u2028y\u0085z"})]),
        (b'data: {"cut": 1}\n', []),
        (b"", []),
    ],
)
def test_events_are_read_as_the_standard_says(data: bytes, events: list[Any]) -> None:
    assert parsed(data) == events


@given(st.lists(st.integers(0, 400), max_size=10))
def test_the_cut_into_pieces_does_not_matter(cuts: list[int]) -> None:
    data = b"".join(ANSWER)
    assert parsed(data, *(cut for cut in cuts if cut < len(data))) == parsed(data)


@pytest.mark.parametrize("data", [b"x" * 2000, b"data: x\n" * 2000])
def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(remote, "EVENT_BYTES_MAX", 1000)
    with pytest.raises(Failure, match="without end"):
        parsed(data)
