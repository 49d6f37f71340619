"""infernet why: both views in words, tables in pipes as in terminals, strangers' names cleaned, JSON for programs."""

from __future__ import annotations

from typing import Any

import pytest

from infernet.ipc.why import WhyRequest
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode

Capture = pytest.CaptureFixture[str]
CANDIDATE = {
    "node_id": "ab" * 32,
    "name": "stranger\x1b[31m [bold]x[/bold]\nforged",
    "model": "tiny\u202e",
    "says": {
        "quantisation": "Q4_K_M\x1b[31m",
        "engine": "llama_cpp",
        "prompt_tokens_per_s": 640,
        "tokens_per_s": 56,
        "aliases": ["smol"],
    },
    "verdict": "candidate",
    "place": 1,
    "tier": "ready",
    "score_s": 20.23,
    "expected_s": 12.34,
    "wait_s": 0,
    "first_token_s": 0.25,
    "tokens_per_s": 41.7,
    "is_measured": True,
    "reliability": 0.61,
    "load": 3,
    "own_ok": 5.0,
    "own_bad": 1.0,
    "own_refused": 0,
    "others_ok": 0.4,
    "others_bad": 0,
    "askers": 2,
}
STRANGER = CANDIDATE | {
    "name": "new",
    "says": None,
    "place": 2,
    "tier": "full",
    "is_measured": False,
    "own_ok": 0.0,
    "own_bad": 0.0,
    "askers": 0,
}
LEFT_OUT = {
    "node_id": "cd" * 32,
    "name": "gone",
    "model": None,
    "says": None,
    "verdict": "left out",
    "reason": {"number": 6, "name": "offline"},
    "text": "it says it is offline",
}
ASKING = {
    "model": None,
    "kind": "chat",
    "summary": "chat jobs would go to abababab, and 1 more could do them",
    "advice": None,
    "candidates": 2,
    "left_out": 1,
    "nodes": [CANDIDATE, STRANGER, LEFT_OUT],
}
SERVING = {
    "summary": "in the last hour 3 askers considered this node 42 times and chose it 5 times",
    "facts": [{"text": "nobody is connected to it", "advice": "infernet join"}],
    "hour": {},
    "day": {},
    "reasons": [
        {
            "number": 33,
            "name": "full",
            "text": "all its slots were taken, and another one had room",
            "hour": 2,
            "day": 9,
            "advice": "run more jobs at once (--slots)",
        }
    ],
}


def node(serving: dict[str, Any] | None = None, **asking: Any) -> FakeNode:
    fake = FakeNode()
    fake.explanation = {"asking": ASKING | asking, "serving": serving}
    return fake


@pytest.mark.anyio
async def test_an_asker_sees_everybody_with_place_or_reason(home: Home, capsys: Capture) -> None:
    async with running(node(), home.config) as fake:
        outcome = await invoke_beside(capsys, "why")
    assert (outcome.code, outcome.err) == (0, "")
    assert fake.explained == [WhyRequest()]
    lines = outcome.out.splitlines()
    assert lines[:2] == [
        "Who would answer a question of this node",
        "  Chat jobs would go to abababab, and 1 more could do them.",
    ]
    assert [line.split()[0] for line in lines[3:]] == ["PLACE", "1", "2", "-"]
    assert "stranger [bold]x[/bold] forged" in lines[4]
    for part in ("abababab", "12.3 s", "0.25 s", "42", "61 %", "3/8", "6 jobs of ours, 1 failed; 2 others report"):
        assert part in lines[4]
    assert "Q4_K_M, llama_cpp, 56 tokens/s" in lines[4]
    assert "~12.3 s" in lines[5]
    assert "  -  " in lines[5]  # it says nothing
    assert lines[5].endswith("full; no job of ours yet")
    assert lines[6].endswith("it says it is offline")
    assert "\x1b" not in outcome.out
    assert "\u202e" not in outcome.out
    assert "Why this node gets" not in outcome.out


@pytest.mark.anyio
async def test_one_job_is_one_job(home: Home, capsys: Capture) -> None:
    async with running(node(nodes=[CANDIDATE | {"own_ok": 0.9, "own_bad": 0.0, "askers": 0}]), home.config):
        outcome = await invoke_beside(capsys, "why")
    assert outcome.out.splitlines()[4].endswith("  1 job of ours, 0 failed")


@pytest.mark.anyio
async def test_an_owner_sees_what_others_decided_and_what_to_do(home: Home, capsys: Capture) -> None:
    async with running(node(SERVING), home.config):
        outcome = await invoke_beside(capsys, "why")
    lines = outcome.out.splitlines()
    assert lines[:2] == [
        "Why this node gets the jobs it gets",
        "  In the last hour 3 askers considered this node 42 times and chose it 5 times.",
    ]
    assert lines[3].split() == ["NOT", "CHOSEN", "BECAUSE", "HOUR", "DAY", "WHAT", "TO", "DO"]
    assert lines[4].startswith("all its slots were taken, and another one had room  2     9    run more jobs at once")
    assert lines[6:9] == ["What may keep jobs away:", "  nobody is connected to it", "    -> infernet join"]
    assert "Who would answer a question of this node" in lines


@pytest.mark.anyio
async def test_nobody_and_what_to_do(home: Home, capsys: Capture) -> None:
    nobody = node(summary="nobody can do chat jobs", advice="connect with somebody\x07", nodes=[], candidates=0)
    async with running(nobody, home.config):
        outcome = await invoke_beside(capsys, "why", "--model", "big", "--kind", "completion")
    assert outcome.out.splitlines() == [
        "Who would answer a question of this node",
        "  Nobody can do chat jobs.",
        "  -> connect with somebody",
    ]
    assert nobody.explained == [WhyRequest("big", "completion")]


@pytest.mark.anyio
async def test_a_long_list_is_cut_on_the_screen_and_not_in_json(home: Home, capsys: Capture) -> None:
    async with running(node(nodes=[LEFT_OUT] * 50), home.config):
        outcome = await invoke_beside(capsys, "why")
        as_json = await invoke_beside(capsys, "why", "--json")
    assert outcome.out.splitlines()[-1] == "... and 10 more: --json shows all"
    assert len(as_json.json["asking"]["nodes"]) == 50
    assert as_json.json["serving"] is None


@pytest.mark.anyio
async def test_what_the_node_cannot_read_is_refused_in_one_line(home: Home, capsys: Capture) -> None:
    async with running(node(), home.config):
        outcome = await invoke_beside(capsys, "why", "--model", "m" * 200)
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert "bad-payload" in outcome.complaint


def test_without_a_node_it_says_so(home: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "why")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.complaint == "infernet: no node is running here: run `infernet start`"
    assert invoke(capsys, "why", "--kind", "painting").code == 2
