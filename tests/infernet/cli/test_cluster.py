"""infernet/cli/cluster.py: who is lent to whom, in the file and in words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infernet import identity
from infernet.config import load, save
from infernet.host.lock import hold_lock
from protocol.ids import npub, peer_id
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode
from tests.helpers_rpc_cluster import FIRST, HEAD, SECOND, programs

Capture = pytest.CaptureFixture[str]
ADDRESS = f"/ip4/192.168.1.20/tcp/46337/p2p/{peer_id(FIRST)}"


@pytest.fixture
def home(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home with a configuration, a model, and no llama.cpp on PATH."""
    save(home.config.config_file, {"slots": 2}, keep=False)
    home.config.models_dir.mkdir(parents=True)
    (home.config.models_dir / "big.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("PATH", str(home.path))
    return home


def test_a_worker_is_lent_to_one_key_and_taken_back(home: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "cluster", "join", npub(HEAD))
    assert (outcome.code, outcome.err) == (0, "")
    assert f"lent to {npub(HEAD)} and to nobody else" in outcome.out
    assert load().config.cluster_head == HEAD
    # Another head takes its place.
    assert invoke(capsys, "cluster", "join", SECOND.hex(), "--json").json["lent_to"] == npub(SECOND)
    assert invoke(capsys, "cluster", "leave").out == "This machine is lent to nobody.\n"
    assert load().config.cluster_head is None
    # Once more: it is so.
    before = home.config.config_file.read_text()
    again = invoke(capsys, "cluster", "leave")
    assert (again.code, again.out, again.err) == (0, "This machine is lent to nobody.\n", "")
    assert home.config.config_file.read_text() == before


def test_a_head_serves_a_model_on_workers_that_come_and_go(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERNET_LLAMA_SERVER", programs(home.path / "build"))
    outcome = invoke(capsys, "cluster", "serve", "big", "--workers", f"{ADDRESS},{npub(SECOND)}", "--split", "3,1")
    assert (outcome.code, outcome.err) == (0, "")
    assert "big is spread over 2 workers:" in outcome.out
    config = load().config
    assert (config.engine, config.model, config.slots) == ("cluster", "big", 2)
    assert config.cluster_workers == (ADDRESS, npub(SECOND))
    assert config.cluster_split == (3, 1)
    # The same one by another name.
    gone = invoke(capsys, "cluster", "remove", FIRST.hex())
    assert gone.code == 0
    assert "--split is forgotten" in gone.err
    assert load().config.cluster_workers == (npub(SECOND),)
    assert load().config.cluster_split == ()
    assert invoke(capsys, "cluster", "add", FIRST.hex(), "--json").json["workers"] == [npub(SECOND), npub(FIRST)]
    # Its address, later.
    assert invoke(capsys, "cluster", "add", ADDRESS, "--json").json["workers"] == [npub(SECOND), ADDRESS]
    assert invoke(capsys, "cluster", "serve", "big", "--split", "1,1", "--json").json["split"] == [1, 1]
    # Leaving ends what is lent, and says what ends the rest.
    left = invoke(capsys, "cluster", "leave")
    assert "It serves big on 2 workers still: `infernet model use MODEL`" in left.out
    # Nor is the last one gone without a word.
    assert invoke(capsys, "cluster", "remove", FIRST.hex()).code == 0
    last = invoke(capsys, "cluster", "remove", SECOND.hex(), "--json")
    assert (last.code, last.json["workers"], last.json["engine"]) == (0, [], "cluster")
    assert "without workers, so no node starts: `infernet cluster add KEY`, or `infernet model use MODEL`" in last.err


def test_what_no_machine_can_serve_is_refused_or_written_down_with_a_warning(home: Home, capsys: Capture) -> None:
    words = ("cluster", "serve", "big", "--workers", npub(FIRST))
    before = home.config.config_file.read_text()
    for more, complaint in (
        ((), "there is no llama-server on PATH"),
        (("--llama-server", programs(home.path / "plain", has_rpc=False)), "was built without RPC"),
    ):
        refused = invoke(capsys, *words, *more)
        assert refused.code == 1
        assert f"no cluster is served here yet: {refused.complaint.partition('yet: ')[2]}" in refused.complaint
        assert complaint in refused.complaint
        assert "--force writes it down all the same" in refused.complaint
        assert home.config.config_file.read_text() == before
    forced = invoke(capsys, *words, "--force")
    assert forced.code == 0
    assert "warning: no node starts with this yet: there is no llama-server on PATH" in forced.err
    assert load().config.engine == "cluster"


def test_what_changes_nothing_asks_for_no_new_start(home: Home, capsys: Capture) -> None:
    save(home.config.config_file, {"engine": "cluster"}, keep=True)
    with hold_lock(home.config.pid_file):
        left = invoke(capsys, "cluster", "leave")
    assert (left.code, left.out) == (0, "This machine is lent to nobody.\n")
    assert "the node is running" not in left.err
    assert "without workers" in left.err


def test_workers_need_peers(home: Home, capsys: Capture) -> None:
    save(home.config.config_file, {"p2p_enabled": False}, keep=True)
    refused = invoke(capsys, "cluster", "serve", "big", "--workers", npub(FIRST))
    assert (refused.code, "`infernet config set --p2p`" in refused.complaint) == (1, True)


@pytest.mark.slow
def test_two_commands_at_once_each_add_a_worker(home: Home) -> None:
    both = [
        subprocess.Popen(home.command("cluster", "add", npub(key)), env=home.environment(), stdout=subprocess.DEVNULL)
        for key in (FIRST, SECOND)
    ]
    assert [one.wait(60) for one in both] == [0, 0]
    assert sorted(load().config.cluster_workers) == sorted((npub(FIRST), npub(SECOND)))


RUNNING = {
    "worker": {
        "head": npub(HEAD),
        "attached": False,
        "since_s": None,
        "devices": [],
        "carried_bytes": 0,
        "strangers_refused": 0,
        "problem": "",
    },
    "head": {
        "model": "big",
        "serving": False,
        "restarts": 0,
        "last_error": "",
        "split": [3],
        "workers": [
            {
                "npub": npub(FIRST),
                "node_id": FIRST.hex(),
                "attached": False,
                "devices": [],
                "carried_bytes": 0,
                "problem": "",
            }
        ],
    },
}


@pytest.mark.anyio
async def test_what_the_running_node_does_not_have_yet_is_marked(home: Home, capsys: Capture) -> None:
    node = FakeNode()
    same = {"engine": "cluster", "model": "big", "cluster_workers": (ADDRESS,), "cluster_split": (3,)}
    save(home.config.config_file, same | {"cluster_head": HEAD}, keep=True)
    async with running(node, home.config):
        node.state["cluster"] = RUNNING
        assert "from the next start on" not in (await invoke_beside(capsys, "cluster")).out
        more = {"cluster_workers": (ADDRESS, npub(SECOND)), "cluster_split": None, "cluster_head": None}
        save(home.config.config_file, more, keep=True)
        shown = (await invoke_beside(capsys, "cluster")).out
        assert f"  workers  {ADDRESS}, from the next start on\n" in shown
        assert f"           {npub(SECOND)}, from the next start on\n" in shown
        assert "by memory, from the next start on" in shown
        assert "nobody, from the next start on" in shown
        answer = (await invoke_beside(capsys, "cluster", "--json")).json
        assert answer["from_next_start"] == ["workers", "split", "lent_to"]
        # Set on a node that has no part in one, and taken back on one that has.
        node.state["cluster"] = None
        assert "big, from the next start on" in (await invoke_beside(capsys, "cluster")).out
        node.state["cluster"] = {"worker": None, "head": RUNNING["head"]}
        save(home.config.config_file, {"engine": "none"}, keep=True)
        assert "none on a cluster, from the next start on" in (await invoke_beside(capsys, "cluster")).out
    assert "none on a cluster" not in invoke(capsys, "cluster").out


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["join"], 2, "infernet cluster join KEY"),
        (["join", "me"], 2, "must be a public key"),
        (["status", "x"], 2, "takes nothing"),
        (["serve"], 2, "which model?"),
        (["serve", "big"], 2, "--workers KEY,KEY"),
        (["serve", "big", "--workers", "x"], 2, "--workers must be a public key"),
        (["serve", "big", "--workers", "/ip4/1.2.3.4/tcp/1"], 2, "--workers must be like"),
        (["serve", "big", "--workers", f"{npub(FIRST)},{FIRST.hex()},{ADDRESS}"], 2, "names one of them twice"),
        (["serve", "big", "--workers", f"{npub(FIRST)},{npub(SECOND)}", "--split", "1"], 2, "1 shares for 2 workers"),
        (["serve", "big", "--workers", npub(FIRST), "--split", "a"], 2, "--split must be whole numbers"),
        (["serve", "big", "--workers", npub(FIRST), "--split", "0"], 2, "--split must have a share"),
        (["serve", "small", "--workers", npub(FIRST)], 1, "there is no model small"),
        (["serve", "/nonexistent.gguf", "--workers", npub(FIRST)], 1, "there is no model file"),
        (["remove", npub(FIRST)], 1, "no worker of this node"),
        (["add", "x"], 2, "KEY must be a public key"),
        (["join", npub(HEAD), "--split", "1"], 2, "go with `infernet cluster serve MODEL`"),
        (["leave", "--llama-server", "x"], 2, "--llama-server goes with"),
        (["add", npub(FIRST), "--force"], 2, "--force goes with"),
    ],
)
def test_what_cannot_be_is_one_line(home: Home, capsys: Capture, words: list[str], code: int, complaint: str) -> None:
    before = home.config.config_file.read_text()
    outcome = invoke(capsys, "cluster", *words)
    assert outcome.code == code
    assert complaint in outcome.complaint
    assert home.config.config_file.read_text() == before
    assert invoke(capsys, "cluster", *words, "--json").json["error"]


def test_a_node_is_not_its_own_worker_or_head(home: Home, capsys: Capture) -> None:
    key = identity.generate()
    identity.create(home.config.key_file, key)
    own = key.node
    for words in (["join", own.hex()], ["serve", "big", "--workers", own.hex()], ["add", own.hex()]):
        outcome = invoke(capsys, "cluster", *words)
        assert outcome.code == 2
        assert "this node" in outcome.complaint


def test_the_status_says_which_llama_cpp_is_here_or_how_to_get_it(home: Home, capsys: Capture) -> None:
    shown = invoke(capsys, "cluster")
    assert shown.code == 0
    assert "there is no llama-server on PATH: build llama.cpp with -DGGML_RPC=ON" in shown.out
    assert "This node has no part in a cluster" in shown.out
    server = programs(home.path / "build")
    assert invoke(capsys, "cluster", "join", npub(HEAD), "--llama-server", server).code == 0
    shown = invoke(capsys, "cluster")
    assert "b11434 (unknown)" in shown.out
    assert str(home.path / "build" / "ggml-rpc-server") in shown.out
    assert "No node is running here" in shown.out
    (home.path / "build" / "ggml-rpc-server").unlink()
    answer = invoke(capsys, "cluster", "status", "--json").json
    assert "there is no ggml-rpc-server beside" in answer["programs"]["problem"]
    assert (answer["running"], answer["lent_to"]) == (False, npub(HEAD))


def test_without_a_configuration_there_is_nothing_to_change(home: Home, capsys: Capture) -> None:
    home.config.config_file.unlink()
    assert "infernet init" in invoke(capsys, "cluster", "join", npub(HEAD)).complaint


def test_a_running_node_is_told_of(home: Home, capsys: Capture) -> None:
    with hold_lock(home.config.pid_file):
        outcome = invoke(capsys, "cluster", "join", npub(HEAD))
    assert outcome.code == 0
    assert "the node is running" in outcome.err
    assert Path(home.config.config_file).exists()
