"""`infernet model`: what is here, getting more, choosing one, and removing none that is being served."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from infernet.config import load, read_file, save
from infernet.engines import fitting
from infernet.engines.fitting import Memory
from infernet.engines.models import STARTER
from infernet.host.turns import one_at_a_time
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_gguf import model
from tests.helpers_ipc import FakeNode
from tests.helpers_openai_servers import Asked, OddServer, Reply

pytestmark = pytest.mark.anyio

Capture = pytest.CaptureFixture[str]
WEIGHTS = model(weights=50_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
GB = 10**9


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine has 4 GB."""
    monkeypatch.setattr(fitting, "machine_memory", lambda: Memory(4 * GB, 3 * GB))


@pytest.fixture
def tiny(home: Home) -> Path:
    """A model in the store."""
    home.config.models_dir.mkdir(parents=True)
    path = home.config.models_dir / "tiny.gguf"
    path.write_bytes(WEIGHTS)
    return path


def file_server(content: bytes = WEIGHTS) -> OddServer:
    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin(content_length=str(len(content)))
        await reply.send(content)
        await reply.end()

    return OddServer({"/Tiny.gguf": page})


# ---------------------------------------------------------------- looking


def test_an_empty_store_says_how_to_fill_it(home: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "model", "list")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"{STARTER.name} (Apache-2.0, 93 MB) is not here: infernet model pull\n"
    assert invoke(capsys, "model", "list", "--json").json["models"] == []


def test_what_is_no_model_fits_nowhere(tiny: Path, capsys: Capture) -> None:
    tiny.write_bytes(b"nonsense")
    (row,) = invoke(capsys, "model", "list", "--json").json["models"]
    assert (row["fits"], row["problem"]) == (None, "is no GGUF file")
    shown = invoke(capsys, "model", "show", "tiny")
    assert "needs" not in shown.out
    assert "is no GGUF file" in shown.out


def test_a_model_whose_name_is_cut_is_chosen_by_either_and_is_the_right_one(
    home: Home, tiny: Path, capsys: Capture
) -> None:
    names = ["m" * 200 + end for end in ("a", "B")]
    for name in names:
        (tiny.parent / f"{name}.gguf").write_bytes(WEIGHTS)
    listed = invoke(capsys, "model", "list", "--json").json["models"]
    assert [row["name"] for row in listed] == ["m" * 128, "m" * 128, "tiny"]
    for name in names:
        used = invoke(capsys, "model", "use", name, "--json").json
        assert used["path"] == str(tiny.parent / f"{name}.gguf")
        chosen = [row["path"] for row in invoke(capsys, "model", "list", "--json").json["models"] if row["is_set"]]
        assert chosen == [used["path"]]
    assert invoke(capsys, "model", "use", "m" * 128, "--json").json["path"] == str(tiny.parent / f"{names[1]}.gguf")


def test_a_file_whose_ending_is_in_capitals_is_a_model_like_others(tiny: Path, capsys: Capture) -> None:
    tiny.rename(tiny.with_name("My-Model.GGUF"))
    (row,) = invoke(capsys, "model", "list", "--json").json["models"]
    assert row["name"] == "my-model"
    assert invoke(capsys, "model", "use", "My-Model", "--json").json["model"] == "my-model"


def test_the_list_tells_what_a_model_is_and_whether_it_fits(home: Home, tiny: Path, capsys: Capture) -> None:
    (row,) = invoke(capsys, "model", "list", "--json").json["models"]
    assert (row["name"], row["quantisation"], row["context_tokens"]) == ("tiny", "Q4_K_M", 512)
    assert (row["file_bytes"], row["fits"], row["check"], row["is_set"]) == (len(WEIGHTS), "fits", "unknown", False)
    shown = invoke(capsys, "model", "list").out
    assert "tiny" in shown
    assert "Q4_K_M" in shown


def test_what_a_header_says_cannot_do_anything_to_a_terminal(home: Home, tiny: Path, capsys: Capture) -> None:
    tiny.write_bytes(model(**{"general.name": "evil\x1b[2J\nname", "general.license": "\u202emit"}))
    (tiny.parent / "bad.gguf").write_bytes(b"\x1b[2J")
    for words in (["list"], ["show", "tiny"]):
        outcome = invoke(capsys, "model", *words)
        assert outcome.code == 0
        assert "\x1b" not in outcome.out + outcome.err
        assert "\u202e" not in outcome.out


def test_nothing_is_written_beside_a_file_that_is_no_model(home: Home, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "elsewhere" / "accounts"
    path.parent.mkdir()
    path.write_text("somebody's own")
    outcome = invoke(capsys, "model", "show", str(path))
    assert outcome.code == 0
    assert "problem" in outcome.out
    assert [each.name for each in path.parent.iterdir()] == ["accounts"]


def test_a_model_is_shown_with_its_hash(home: Home, tiny: Path, capsys: Capture) -> None:
    outcome = invoke(capsys, "model", "show", "tiny")
    assert SHA256 in outcome.out
    assert "512 tokens at most" in outcome.out
    missing = invoke(capsys, "model", "show", "other")
    assert (missing.code, missing.out) == (1, "")
    assert "there is no model other here: see `infernet model list`" in missing.complaint


def test_a_file_that_is_no_model_is_listed_with_what_is_wrong(home: Home, tiny: Path, capsys: Capture) -> None:
    tiny.write_bytes(b"<html>")
    outcome = invoke(capsys, "model", "list")
    assert outcome.code == 0
    assert "is no GGUF file" in outcome.err


# ---------------------------------------------------------------- fetching


async def test_a_model_is_pulled_by_its_address_and_can_then_be_used(home: Home, capsys: Capture) -> None:
    async with file_server().running() as server:
        pulled = await invoke_beside(capsys, "model", "pull", f"{server.url}/Tiny.gguf", "--sha256", SHA256)
        again = await invoke_beside(capsys, "model", "pull", f"{server.url}/Tiny.gguf", "--json")
    assert pulled.code == 0, pulled.err
    assert pulled.out.splitlines()[0] == str(home.config.models_dir / "tiny.gguf")
    assert "infernet model use tiny" in pulled.out
    assert "\x1b" not in pulled.out + pulled.err
    assert again.json == {
        "model": "tiny",
        "path": str(home.config.models_dir / "tiny.gguf"),
        "sha256": SHA256,
        "vouched_by": "--sha256",
    }
    assert invoke(capsys, "model", "use", "tiny").code == 0
    (row,) = invoke(capsys, "model", "list", "--json").json["models"]
    assert (row["is_verified"], row["is_set"]) == (True, True)


async def test_a_file_of_which_nobody_told_the_hash_is_warned_about(home: Home, capsys: Capture) -> None:
    async with file_server().running() as server:
        outcome = await invoke_beside(capsys, "model", "pull", f"{server.url}/Tiny.gguf", "--name", "mine")
    assert outcome.code == 0
    assert "nobody told the hash" in outcome.complaint
    assert "infernet model use mine" in outcome.out


async def test_a_model_that_is_larger_than_the_machine_is_fetched_only_by_force(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "machine_memory", lambda: Memory(GB // 10, GB // 10))
    async with file_server().running() as server:
        refused = await invoke_beside(capsys, "model", "pull", f"{server.url}/Tiny.gguf")
        assert (refused.code, refused.out) == (1, "")
        assert "more than the memory of this machine: --force" in refused.complaint
        assert list(home.config.models_dir.iterdir()) == []
        assert (await invoke_beside(capsys, "model", "pull", f"{server.url}/Tiny.gguf", "--force")).code == 0


# ---------------------------------------------------------------- choosing


def test_what_is_used_is_written_by_name_or_by_path(home: Home, tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    assert invoke(capsys, "model", "use", "tiny").code == 0
    assert (load().config.model, load().config.engine) == ("tiny", "llama")
    elsewhere = tmp_path / "other.gguf"
    elsewhere.write_bytes(WEIGHTS)
    assert invoke(capsys, "model", "use", str(elsewhere)).code == 0
    assert load().config.model == str(elsewhere)
    listed = invoke(capsys, "model", "list", "--json").json["models"]
    assert [(row["name"], row["is_set"]) for row in listed] == [("tiny", False), ("other", True)]


@pytest.mark.parametrize(
    ("content", "told"), [(b"<html>", "is no GGUF file: it cannot be served"), (None, "there is no model tiny")]
)
def test_what_cannot_be_served_is_not_used(
    home: Home, tiny: Path, content: bytes | None, told: str, capsys: Capture
) -> None:
    if content is None:
        tiny.unlink()
    else:
        tiny.write_bytes(content)
    outcome = invoke(capsys, "model", "use", "tiny")
    assert (outcome.code, outcome.out) == (1, "")
    assert told in outcome.complaint
    assert not home.config.config_file.exists()


def test_a_model_that_does_not_fit_is_used_only_by_force(
    home: Home, tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "machine_memory", lambda: Memory(GB // 10, GB // 10))
    refused = invoke(capsys, "model", "use", "tiny")
    assert refused.code == 1
    assert "more than this machine has: set fewer, or give --force" in refused.complaint
    assert invoke(capsys, "model", "use", "tiny", "--force").code == 0
    monkeypatch.setattr(fitting, "machine_memory", lambda: Memory(4 * GB, 0))
    tight = invoke(capsys, "model", "use", "tiny")
    assert (tight.code, "only if other programs" in tight.err) == (0, True)


# ---------------------------------------------------------------- removing


def test_a_model_is_removed_when_that_is_meant(
    home: Home, tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = home.run("model", "remove", "tiny", stdin="n\n")
    assert (kept.code, kept.complaint.endswith("tiny was kept")) == (1, True)
    silent = home.run("model", "remove", "tiny")
    assert (silent.code, "--yes" in silent.complaint) == (2, True)
    assert tiny.exists()
    invoke(capsys, "model", "use", "tiny")
    outcome = invoke(capsys, "model", "remove", "tiny", "--yes", "--json")
    assert outcome.json == {"model": "tiny", "path": str(tiny), "removed": True}
    assert "no model is set that is here" in outcome.err
    assert list(tiny.parent.iterdir()) == []


def test_models_are_set_beside_each_other_and_one_alone_takes_their_place(
    home: Home, tiny: Path, capsys: Capture
) -> None:
    (tiny.parent / "second.gguf").write_bytes(WEIGHTS)
    assert invoke(capsys, "model", "use", "tiny").code == 0
    outcome = invoke(capsys, "model", "use", "second", "--also", "--json")
    assert (outcome.json["model"], outcome.json["beside"]) == ("second", ["tiny"])
    assert load().config.llama_models == ("tiny", "second")
    assert all(row["is_set"] for row in invoke(capsys, "model", "list", "--json").json["models"])
    again = invoke(capsys, "model", "use", "tiny", "--also")
    assert "tiny is served beside second from the next" in again.out
    assert invoke(capsys, "model", "use", "second").code == 0
    assert load().config.llama_models == ("second",)
    assert "models" not in (read_file(home.config.config_file) or {})


def test_two_commands_at_once_each_add_their_model(
    home: Home, tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny.parent / "second.gguf").write_bytes(WEIGHTS)
    invoke(capsys, "model", "use", "tiny")
    save(home.config.config_file, {"slots": 2}, keep=True)
    turn = one_at_a_time(home.config.config_file.parent)
    turn.__enter__()

    def the_other_writes(_seconds: float) -> None:
        text = home.config.config_file.read_text() + 'models = ["tiny", "third"]\n'
        home.config.config_file.write_text(text)
        (tiny.parent / "third.gguf").write_bytes(WEIGHTS)
        turn.__exit__(None, None, None)

    monkeypatch.setattr("infernet.host.turns.time.sleep", the_other_writes)
    assert invoke(capsys, "model", "use", "second", "--also").code == 0
    assert load().config.llama_models == ("tiny", "third", "second")


def test_a_model_that_is_removed_while_others_are_set_is_told_as_that(home: Home, tiny: Path, capsys: Capture) -> None:
    (tiny.parent / "second.gguf").write_bytes(WEIGHTS)
    invoke(capsys, "model", "use", "tiny")
    invoke(capsys, "model", "use", "second", "--also")
    outcome = invoke(capsys, "model", "remove", "tiny", "--yes")
    assert outcome.code == 0
    assert "tiny is set still, so no node starts: `infernet model use second --also` sets what is left" in outcome.err
    assert invoke(capsys, "model", "use", "second", "--also").code == 0
    assert load().config.llama_models == ("second",)


def test_models_that_do_not_fit_together_are_refused_although_each_would(
    home: Home, tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny.parent / "second.gguf").write_bytes(WEIGHTS)
    monkeypatch.setattr(fitting, "machine_memory", lambda: Memory(GB // 2, GB // 2))
    assert invoke(capsys, "model", "use", "tiny").code == 0
    refused = invoke(capsys, "model", "use", "second", "--also")
    assert (refused.code, refused.out) == (1, "")
    assert "second and what is set beside it need" in refused.complaint
    assert invoke(capsys, "model", "use", "second", "--also", "--force").code == 0


def test_the_embedded_engine_is_set_beside_a_server(home: Home, tiny: Path, capsys: Capture) -> None:
    assert invoke(capsys, "config", "set", "--engine", "openai").code == 0
    assert invoke(capsys, "model", "use", "tiny", "--also").code == 0
    assert (load().config.engines, load().config.llama_models) == (("openai", "llama"), ("tiny",))
    assert invoke(capsys, "config", "set", "--engine", "openai").code == 0
    assert invoke(capsys, "model", "use", "tiny").code == 0
    assert load().config.engines == ("llama",)


async def test_what_a_model_runs_on_is_listed_while_the_node_runs(home: Home, tiny: Path, capsys: Capture) -> None:
    node = FakeNode()
    part = {"engine": "llama", "models": ["tiny"], "state": "ready", "where": "RTX\x1b[2J (nvidia 0)", "trouble": ""}
    node.state = {"models": ["tiny"], "engines": [part]}
    async with running(node, home.config):
        listed = await invoke_beside(capsys, "model", "list")
        refused = await invoke_beside(capsys, "model", "remove", "tiny", "--yes")
        node.state = {"models": [], "engines": [part | {"state": "waiting", "where": "", "trouble": "it broke"}]}
        down = await invoke_beside(capsys, "model", "remove", "tiny", "--yes")
    assert "(nvidia 0)" in listed.out
    assert "\x1b" not in listed.out
    assert all("tiny is being served" in outcome.complaint for outcome in (refused, down))


async def test_a_model_that_is_being_served_is_not_removed(home: Home, tiny: Path, capsys: Capture) -> None:
    node = FakeNode()
    node.state = {"models": ["tiny"]}
    async with running(node, home.config):
        refused = await invoke_beside(capsys, "model", "remove", "tiny", "--yes")
        assert "tiny is being served: run `infernet stop` first" in refused.complaint
        node.state = {"models": ["another"]}
        assert (await invoke_beside(capsys, "model", "remove", "tiny", "--yes")).code == 0
    assert invoke(capsys, "model", "show", "tiny").code == 1


async def test_a_model_whose_engine_is_down_for_a_moment_is_not_removed(
    home: Home, tiny: Path, capsys: Capture
) -> None:
    await invoke_beside(capsys, "model", "use", "tiny")
    node = FakeNode()
    node.state = {"models": []}
    async with running(node, home.config):
        assert "is being served" in (await invoke_beside(capsys, "model", "remove", "tiny", "--yes")).complaint
    assert invoke(capsys, "model", "show", "tiny").code == 0


def test_a_file_of_the_owners_is_not_ours_to_remove(home: Home, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(WEIGHTS)
    assert "not ours to remove" in invoke(capsys, "model", "remove", str(path), "--yes").complaint
    assert path.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["show"], "name the model: infernet model show MODEL"),
        (["list", "x"], "list takes no name"),
        (["pull", "x"], "what to pull must be an address"),
        (["pull", "http://127.0.0.1:9/"], "give another one with --name"),
        (["pull", "http://127.0.0.1:9/a.gguf", "--sha256", "12"], "--sha256 must be the 64 hex digits"),
        (["pull", "http://127.0.0.1:9/a.gguf", "--name", "../a"], "--name must be lower-case"),
        (["pull", "--name", "x"], "the starter model has a name and a hash of its own"),
        (["use", "x", "--yes"], "--yes is of remove"),
        (["list", "--force"], "--force is of pull and use"),
        (["fetch"], "there is no action 'fetch': there are list, pull, show, use and remove"),
    ],
)
def test_misuse_is_one_line(home: Home, capsys: Capture, words: list[str], told: str) -> None:
    outcome = invoke(capsys, "model", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert told in outcome.complaint
    assert outcome.err.count("\n") == 1
