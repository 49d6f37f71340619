"""infernet chat: the answer and nothing else on standard output, and a way out whenever nobody answers."""

from __future__ import annotations

import io
import signal
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from infernet import identity
from infernet.cli.conversation import ADVICE
from infernet.host.lock import hold_lock
from infernet.ipc.server import ChatTurn
from protocol.effects import JobAccepted, JobDone, JobFailed, JobQueued, JobResumed, JobText, Served
from protocol.errors import Refusal
from protocol.ids import npub, peer_id
from protocol.records import Outcome
from tests.helpers_cli import DEADLINE_S, Home, invoke, invoke_beside, running
from tests.helpers_ipc import ACCEPTED, DONE, JOB, NOBODY, PARIS, FakeNode, done
from tests.helpers_records import PROVIDER, receipt, signing_key

ADDRESS = f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id(PROVIDER.node)}"
Capture = pytest.CaptureFixture[str]


def node(*events: Any) -> FakeNode:
    """A running node that serves nothing itself."""
    return FakeNode(events or (ACCEPTED, PARIS, DONE))


@pytest.mark.anyio
async def test_the_answer_is_on_standard_output_and_the_account_on_standard_error(home: Home, capsys: Capture) -> None:
    async with running(node(), home.config) as fake:
        outcome = await invoke_beside(capsys, "chat", "What is", "the capital?")
    assert (outcome.code, outcome.out) == (0, "Paris\n")
    assert outcome.err.startswith(f"[served by {PROVIDER.node.hex()[:8]}, tiny-135m, 17 + 5 tokens, first after ")
    assert outcome.err.endswith("; node]\n")
    (request,) = fake.requests
    assert request.messages == (ChatTurn("user", "What is the capital?"),)
    assert (request.max_tokens, request.temperature, request.seed, request.model) == (512, 0.7, None, None)


@pytest.mark.anyio
async def test_every_option_reaches_the_node(home: Home, capsys: Capture) -> None:
    words = ["--system", "Be brief.", "--model", "tiny-135m", "--temperature", "0", "--max-tokens", "9", "--seed", "7"]
    async with running(node(), home.config) as fake:
        assert (await invoke_beside(capsys, "chat", *words, "--timeout", "33", "--peer", ADDRESS, "Hi")).code == 0
    (request,) = fake.requests
    assert request.messages == (ChatTurn("system", "Be brief."), ChatTurn("user", "Hi"))
    assert (request.model, request.temperature, request.max_tokens, request.seed) == ("tiny-135m", 0, 9, 7)
    assert (request.timeout_s, request.peer) == (33, ADDRESS)


@pytest.mark.anyio
async def test_with_json_there_is_one_object_at_the_end(home: Home, capsys: Capture) -> None:
    async with running(node(), home.config):
        outcome = await invoke_beside(capsys, "chat", "--json", "Where?")
    assert (outcome.code, outcome.err) == (0, "")
    answer = outcome.json
    assert isinstance(answer.pop("first_token_s"), float)
    assert isinstance(answer.pop("duration_s"), float)
    assert answer == {
        "text": "Paris",
        "outcome": "stop",
        "provider": PROVIDER.node.hex(),
        "provider_name": None,
        "model": "tiny-135m",
        "job": JOB.hex(),
        "prompt_tokens": 17,
        "output_tokens": 5,
        "tokens_per_s": None,
        "route": "node",
        "via": None,
        "served": [
            {"provider": PROVIDER.node.hex(), "attempt": 1, "prompt_tokens": 17, "output_tokens": 5, "paid_uusd": 0}
        ],
        "paid_uusd": 0,
    }


@pytest.mark.anyio
@pytest.mark.parametrize("via", [ADDRESS, PROVIDER.node.hex(), npub(PROVIDER.node)])
@pytest.mark.parametrize("peer", [None, ADDRESS])
async def test_the_aggregator_that_is_named_reaches_the_node_and_the_account(
    home: Home, capsys: Capture, via: str, peer: str | None
) -> None:
    accepted = replace(ACCEPTED, via=PROVIDER.node)
    words = ["--peer", peer] if peer is not None else []
    async with running(node(accepted, PARIS, DONE), home.config) as fake:
        outcome = await invoke_beside(capsys, "chat", "--via", via, *words, "Where?")
    assert outcome.code == 0
    route = "node" if peer is None else "peer"
    assert outcome.err.endswith(f"; {route}, passed on by {PROVIDER.node.hex()[:8]}]\n")
    (request,) = fake.requests
    assert (request.via, request.peer) == (via, peer)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--via", "nonsense"], "--via must be a public key"),
        (["--via", "/ip4/192.0.2.1/tcp/1"], "--via must be like"),
        (["--via", ADDRESS, "--remote"], "--via goes with peers"),
    ],
)
def test_an_aggregator_that_is_none_is_a_misuse(home: Home, capsys: Capture, words: list[str], part: str) -> None:
    outcome = invoke(capsys, "chat", *words, "Hi")
    assert (outcome.code, outcome.out) == (2, "")
    assert part in outcome.complaint


def test_an_aggregators_key_alone_is_no_way_where_no_node_runs(home: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "chat", "--via", PROVIDER.node.hex(), "Hi")
    assert outcome.code == 1
    assert "give --via its multiaddr" in outcome.complaint


@pytest.mark.anyio
async def test_the_question_may_come_from_standard_input(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))
    async with running(node(), home.config) as fake:
        assert (await invoke_beside(capsys, "chat")).code == 0
    assert fake.requests[0].messages[0].content == "two\nlines\n"


@pytest.mark.parametrize("stdin", ["", " \n", "x" * (1024 * 1024 + 1)])
def test_a_question_that_is_none_is_refused(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch, stdin: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    outcome = invoke(capsys, "chat")
    assert (outcome.code, outcome.out) == (2, "")
    assert "question" in outcome.complaint


def test_a_question_that_is_no_text_is_refused(home: Home) -> None:
    outcome = home.run("chat", stdin=b"caf\xe9", PYTHONUTF8="1")
    assert (outcome.code, outcome.out) == (2, "")
    assert "not UTF-8" in outcome.complaint


@pytest.mark.parametrize(
    "words",
    [
        ["--temperature", "3"],
        ["--temperature", "nan"],
        ["--max-tokens", "0"],
        ["--max-tokens", "1e3"],
        ["--max-tokens", "9" * 5000],
        ["--seed", "-1"],
        ["--timeout", "0"],
        ["--peer", ADDRESS, "--remote"],
        ["--peer", "127.0.0.1:46337"],
        ["--peer", "/ip4/127.0.0.1/tcp/1"],
        ["--url", "http://127.0.0.1"],
        ["--remote", "--url", "nonsense"],
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(home: Home, capsys: Capture, words: list[str]) -> None:
    outcome = invoke(capsys, "chat", *words, "Hi")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert len(outcome.err) < 300


@pytest.mark.anyio
async def test_what_a_stranger_writes_cannot_command_the_terminal(home: Home, capsys: Capture) -> None:
    # The sequence is cut in two, as a hostile provider would.
    pieces = [JobText(JOB, "Par\x1b]52;c;aGk", 1), JobText(JOB, "=\x07is\x1b[2", 2), JobText(JOB, "J!\u202e", 3)]
    hostile = JobAccepted(JOB, PROVIDER.node, 1, "evil\x1b[31m\nmodel", 17)
    async with running(node(hostile, *pieces, DONE), home.config):
        outcome = await invoke_beside(capsys, "chat", "Hi")
    assert outcome.out == "Paris!\n"
    assert "evil model" in outcome.err
    assert "\x1b" not in outcome.err


@pytest.mark.anyio
async def test_the_place_in_a_queue_is_told_when_it_changes(home: Home, capsys: Capture) -> None:
    waits = [JobQueued(JOB, PROVIDER.node, place, 4_000 * place + 300) for place in (2, 2, 1, 0)]
    async with running(node(*waits, ACCEPTED, PARIS, DONE), home.config):
        outcome = await invoke_beside(capsys, "chat", "hello")
    name = PROVIDER.node.hex()[:8]
    assert outcome.err.splitlines()[:3] == [
        f"[every slot is taken: it waits at {name}, 2 before it, about 8 s]",
        f"[every slot is taken: it waits at {name}, 1 before it, about 4 s]",
        f"[every slot is taken: it waits at {name}, next, about 1 s]",
    ]
    assert outcome.out == "Paris\n"


@pytest.mark.anyio
async def test_an_answer_that_another_provider_continues_says_so_in_one_line(home: Home, capsys: Capture) -> None:
    other = signing_key("another provider").node
    resumed = JobResumed(JOB, other, 2, 23, 1, PROVIDER.node)
    record = receipt(provider=other, attempt=2, prompt_tokens=23, output_tokens=2)
    both = (Served(PROVIDER.node, 1, 17, 1), Served(other, 2, 23, 2))
    events = (ACCEPTED, PARIS, resumed, JobText(JOB, ", France", 3), JobDone(JOB, record, both))
    async with running(node(*events), home.config):
        outcome = await invoke_beside(capsys, "chat", "hello")
    assert outcome.out == "Paris, France\n"
    first, summary = outcome.err.splitlines()
    assert first == (
        f"[provider {PROVIDER.node.hex()[:8]} went away; {other.hex()[:8]} goes on (reads 23 tokens again)]"
    )
    assert summary.startswith(f"[served by {other.hex()[:8]} after 1 other, tiny-135m, 17 + 3 tokens")
    async with running(node(*events), home.config):
        answer = (await invoke_beside(capsys, "chat", "--json", "hello")).json
    assert (answer["provider"], answer["prompt_tokens"], answer["output_tokens"]) == (other.hex(), 17, 3)
    assert [(part["provider"], part["output_tokens"]) for part in answer["served"]] == [
        (PROVIDER.node.hex(), 1),
        (other.hex(), 2),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("code", [Refusal.NO_PROVIDER, Refusal.NOT_FREE, Refusal.BUSY, Refusal.CONTEXT_EXCEEDED])
async def test_nobody_answering_is_exit_code_1_with_reason_and_way_out(
    home: Home, capsys: Capture, code: Refusal
) -> None:
    name = code.name.lower()
    async with running(node(JobFailed(JOB, code, "this is the reason.", 3000)), home.config):
        outcome = await invoke_beside(capsys, "chat", "Hi")
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err == f"infernet: no answer: this is the reason; {ADVICE[name]} (in 3 s)\n"
        outcome = await invoke_beside(capsys, "chat", "--json", "Hi")
    assert (outcome.code, outcome.json["code"]) == (1, name)
    assert "this is the reason" in outcome.json["error"]


@pytest.mark.anyio
async def test_who_is_not_allowed_free_jobs_hears_so_once_and_how_that_changes(home: Home, capsys: Capture) -> None:
    refused = JobFailed(JOB, Refusal.NOT_FREE, "this node runs free jobs only for those its owner knows")
    async with running(node(refused), home.config):
        outcome = await invoke_beside(capsys, "chat", "Hi")
    assert outcome.complaint.count("free jobs") == 1
    assert "--allow" in outcome.complaint
    assert "infernet status" in outcome.complaint


@pytest.mark.anyio
async def test_who_named_no_aggregator_is_not_sent_to_another_one(home: Home, capsys: Capture) -> None:
    async with running(node(JobFailed(JOB, Refusal.NO_ROUTE, "the aggregator does not pass it on")), home.config):
        outcome = await invoke_beside(capsys, "chat", "Hi")
    assert "ask again in a moment, or name an aggregator" in outcome.complaint
    assert "another aggregator" not in outcome.complaint


@pytest.mark.anyio
async def test_an_answer_that_breaks_off_is_no_success(home: Home, capsys: Capture) -> None:
    async with running(node(ACCEPTED, PARIS, JobFailed(JOB, Refusal.PEER_LOST, "it is gone")), home.config):
        outcome = await invoke_beside(capsys, "chat", "Hi")
    assert (outcome.code, outcome.out) == (1, "Paris\n")
    assert "infernet: the answer broke off: it is gone" in outcome.complaint


@pytest.mark.anyio
async def test_an_answer_that_was_cut_is_a_success_that_says_so(home: Home, capsys: Capture) -> None:
    cut = done(receipt(outcome=Outcome.LENGTH))
    async with running(node(ACCEPTED, PARIS, cut), home.config):
        outcome = await invoke_beside(capsys, "chat", "Hi")
    assert outcome.code == 0
    assert "cut at --max-tokens" in outcome.err


@pytest.mark.anyio
async def test_an_answer_that_ended_otherwise_is_none(home: Home, capsys: Capture) -> None:
    async with running(node(ACCEPTED, PARIS, done(receipt(outcome=Outcome.FAILED))), home.config):
        outcome = await invoke_beside(capsys, "chat", "Hi")
    assert (outcome.code, "it ended with failed" in outcome.complaint) == (1, True)


def test_advice_is_only_given_for_refusals_that_exist() -> None:
    assert set(ADVICE) <= {refusal.name.lower() for refusal in Refusal}


def test_without_a_node_every_way_out_is_named(home: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "chat", "Hi")
    assert outcome.code == 1
    assert outcome.complaint == (
        "infernet: no node is running here: run `infernet start`, or `infernet chat --peer MULTIADDR`"
    )
    key = PROVIDER.node.hex()
    assert invoke(capsys, "init", "--yes", "--url", "http://127.0.0.1:9", "--coordinator-key", key).code == 0
    outcome = invoke(capsys, "chat", "--json", "Hi")
    assert "`infernet chat --remote` (asks through http://127.0.0.1:9" in outcome.json["error"]
    assert outcome.json["code"] == "daemon-unreachable"


def test_remote_without_a_coordinator_is_explained(home: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "chat", "--remote", "Hi")
    assert (outcome.code, "no coordinator is configured" in outcome.complaint) == (1, True)


def test_a_peer_that_is_not_there_is_explained(home: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "chat", "--timeout", "20", "--peer", ADDRESS, "Hi")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.count("\n") == 1
    assert "no answer: " in outcome.complaint
    # The address, and why, once.
    assert (outcome.complaint.count(ADDRESS), "('" in outcome.complaint) == (1, False)


@pytest.mark.parametrize("runs", [False, True])
def test_its_own_address_is_no_peer(home: Home, capsys: Capture, runs: bool) -> None:
    key = identity.generate()
    identity.create(home.config.key_file, key)
    own = f"/ip4/127.0.0.1/tcp/46337/p2p/{peer_id(key.node)}"
    with hold_lock(home.config.pid_file) if runs else nullcontext():
        outcome = invoke(capsys, "chat", "--peer", own, "Hi")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--peer is this node's own address" in outcome.complaint
    assert "without --peer the node here answers by itself" in outcome.complaint


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["waiting", "streaming"])
async def test_ctrl_c_cancels_the_job_and_ends_with_130(home: Home, when: str) -> None:
    fake = node()
    fake.waits_after = 0 if when == "waiting" else 2
    async with running(fake, home.config):
        process = await trio.lowlevel.open_process(
            home.command("chat", "Hi"), env=home.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with trio.fail_after(DEADLINE_S):
            await fake.asked.wait()
            if when == "streaming":
                assert await process.stdout.receive_some() == b"Paris"
            assert not fake.left.is_set()
            process.send_signal(signal.SIGINT)
            await fake.left.wait()
            assert await process.wait() == 130
            assert await process.stdout.receive_some() == (b"\n" if when == "streaming" else b"")
            assert await process.stderr.receive_some() == b""
        await process.stdout.aclose()
        await process.stderr.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("model", "models", "asks_itself"),
    [
        (None, ["tiny-135m"], True),
        ("big", ["tiny-135m", "big"], True),
        ("big", ["tiny-135m"], False),
        ("little", ["tiny-135m"], True),
        ("little", ["big"], False),
        (None, [], False),
    ],
)
@pytest.mark.parametrize("words", [[], ["--pay", "0.01"]])
async def test_a_node_that_serves_the_model_is_asked_to_answer_itself(
    home: Home, capsys: Capture, model: str | None, models: list[str], asks_itself: bool, words: list[str]
) -> None:
    """Whoever else it knows, with or without a port."""
    fake = node()
    fake.state |= {"models": models, "node_id": PROVIDER.node.hex(), "addresses": []}
    fake.state["aliases"] = {"tiny-135m": ["little"]}
    async with running(fake, home.config):
        named = ["--model", model] if model is not None else []
        outcome = await invoke_beside(capsys, "chat", *words, *named, "Hi")
    assert outcome.code == 0
    assert outcome.err.endswith("; self]\n" if asks_itself else "; node]\n")
    (request,) = fake.requests
    assert (request.provider, request.peer, request.via) == (PROVIDER.node.hex() if asks_itself else None, None, None)


@pytest.mark.anyio
async def test_a_node_of_an_older_version_is_not_asked_to_answer_itself(home: Home, capsys: Capture) -> None:
    fake = node()
    fake.state |= {"models": ["tiny-135m"], "node_id": PROVIDER.node.hex()}
    async with running(fake, home.config):
        assert (await invoke_beside(capsys, "chat", "Hi")).code == 0
    assert [request.provider for request in fake.requests] == [None]


@pytest.mark.anyio
@pytest.mark.parametrize("words", [["--peer", ADDRESS], ["--via", ADDRESS]])
async def test_whoever_is_named_is_asked_although_the_node_serves(
    home: Home, capsys: Capture, words: list[str]
) -> None:
    fake = node()
    fake.state |= {"models": ["tiny-135m"], "node_id": signing_key("own").node.hex()}
    async with running(fake, home.config):
        assert (await invoke_beside(capsys, "chat", *words, "Hi")).code == 0
    assert [request.provider for request in fake.requests] == [None]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("code", "asks_others"),
    [
        (Refusal.NO_MODEL, True),
        (Refusal.UNSUPPORTED, True),
        (Refusal.BUSY, False),
        (Refusal.ENGINE_FAILED, False),
        (Refusal.PEER_LOST, False),
    ],
)
async def test_others_are_asked_where_the_own_engine_cannot_do_it_and_not_where_it_fails(
    home: Home, capsys: Capture, code: Refusal, asks_others: bool
) -> None:
    fake = node(JobFailed(JOB, code, "it did not"))
    fake.state |= {"models": ["embeds-only"], "aliases": {}, "node_id": PROVIDER.node.hex()}
    async with running(fake, home.config):
        outcome = await invoke_beside(capsys, "chat", "--json", "Hi")
    assert (outcome.code, outcome.json["code"]) == (1, code.name.lower())
    providers = [request.provider for request in fake.requests]
    assert providers == [PROVIDER.node.hex(), None][: 1 + asks_others]


@pytest.mark.model
@pytest.mark.nightly
def test_a_real_model_answers_over_libp2p(home: Home, capsys: Capture, starter_model_path: Path) -> None:
    assert invoke(capsys, "init", "--yes", "--p2p-port", "0", "--listen-hosts", "127.0.0.1").code == 0
    home.config.models_dir.mkdir(parents=True)
    for path in (starter_model_path, starter_model_path.with_name(starter_model_path.name + ".verified")):
        if path.exists():
            (home.config.models_dir / path.name).symlink_to(path)
    asker = Home(home.path / "asker")
    words = ["chat", "--json", "--temperature", "0", "--max-tokens", "12", "What is the capital of France?"]
    with home.started() as status:
        direct = asker.run(*words, "--peer", status["addresses"][0])
        assert direct.code == 0, direct.err
        itself = home.run(*words)
        assert itself.code == 0, itself.err
        counts = home.run("stats", "--json").json
        assert (counts["asked"]["answered"], counts["jobs"]["taken"]) == (1, 1)
    for outcome, route in ((direct, "peer"), (itself, "self")):
        assert "Paris" in outcome.json["text"]
        assert (outcome.json["route"], outcome.json["provider"]) == (route, status["node_id"])
        assert outcome.json["output_tokens"] > 0
    assert not (asker.path / "config").exists()


@pytest.mark.anyio
async def test_a_model_that_is_loading_here_is_told_where_nobody_else_has_it(home: Home, capsys: Capture) -> None:
    parts = [{"engine": "llama", "models": ["large"], "state": "starting", "loading_s": 61.0}]
    async with running(FakeNode((NOBODY,)), home.config) as fake:
        fake.state |= {"models": [], "engines": parts, "aliases": {"large": ["big"]}}
        outcome = await invoke_beside(capsys, "chat", "Why?")
        named = await invoke_beside(capsys, "chat", "--model", "large", "Why?")
        by_alias = await invoke_beside(capsys, "chat", "--model", "big", "Why?")
        other = await invoke_beside(capsys, "chat", "--model", "other", "Why?")
    assert (outcome.code, named.code, by_alias.code, other.code) == (1, 1, 1, 1)
    assert outcome.complaint.startswith(
        "infernet: no answer: no provider is known; this node's own engine is not there yet (large: loading for 1 min "
        "1 s): ask again when `infernet status` shows it"
    )
    assert "large: loading for" in named.complaint
    assert "large: loading for" in by_alias.complaint
    assert "loading" not in other.complaint
