"""infernet/cli/init.py: all of it or nothing, the key is never lost, and a missing answer is never a default."""

from __future__ import annotations

import io
import json
import re
import stat
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from infernet import identity
from infernet.config import load
from protocol.ids import npub
from protocol.records import Role
from tests.helpers_cli import Home, Outcome, invoke
from tests.helpers_records import PROVIDER as COORDINATOR

SECRET = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa"
NSEC = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5"
NPUB = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg"
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run init with lines to answer its questions."""

    def run(lines: str, *words: str) -> Outcome:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return invoke(capsys, "init", *words)

    return run


def files(home: Home) -> dict[str, bytes]:
    """Every file of a home that init could write."""
    folder = home.path / "config"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@contextmanager
def coordinator(body: bytes) -> Iterator[str]:
    """A double of a coordinator that answers one thing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/v1/coordinator" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


KEY_SHOWN = json.dumps({"key": COORDINATOR.node.hex(), "npub": npub(COORDINATOR.node)}).encode()


def test_yes_takes_the_defaults_and_says_what_it_made(home: Home, answer: Any) -> None:
    outcome = answer("", "--yes", "--json")
    key = identity.load(home.config.key_file)
    assert outcome.code == 0
    assert outcome.json == {
        "name": f"provider-{key.node.hex()[:8]}",
        "role": "provider",
        "npub": npub(key.node),
        "node_id": key.node.hex(),
        "peer_id": outcome.json["peer_id"],
        "config_file": str(home.config.config_file),
        "key_file": str(home.config.key_file),
        "coordinator_url": None,
        "coordinator_key": None,
    }
    assert outcome.json["peer_id"].startswith("16Uiu2HA")
    assert {name: stat.S_IMODE((home.path / "config" / name).stat().st_mode) for name in files(home)} == {
        "config.toml": 0o600,
        "identity.key": 0o600,
    }
    assert tomllib.loads(files(home)["config.toml"].decode()) == {"schema_version": 1, "role": "provider"}


def test_the_name_that_is_made_up_tells_nothing_of_user_or_host(
    home: Home, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "alice")
    outcome = answer("", "--yes")
    first, *_ = outcome.out.splitlines()
    assert re.fullmatch(r"This node is provider-[0-9a-f]{8} \(provider\)\.", first)
    assert "alice" not in outcome.out
    assert "Back up the key file" in outcome.out


def test_the_walk_asks_and_only_what_was_decided_is_written(home: Home, answer: Any) -> None:
    outcome = answer("aggregator\n\nmy kitchen\n\n203.0.113.7\n")
    assert outcome.code == 0, outcome.err
    assert tomllib.loads(files(home)["config.toml"].decode()) == {
        "schema_version": 1,
        "role": "aggregator",
        "name": "my kitchen",
        "address": "203.0.113.7",
    }
    assert "What should this node do" in outcome.err
    assert "What should this node do" not in outcome.out


def test_a_client_is_not_asked_about_ports(home: Home, answer: Any) -> None:
    outcome = answer("client\n\n\n")
    assert outcome.code == 0
    assert "TCP port" not in outcome.err


def test_a_bad_answer_is_asked_again_and_not_for_ever(home: Home, answer: Any) -> None:
    outcome = answer("king\nclient\n\n\n")
    assert outcome.code == 0
    assert "it must be one of provider, aggregator, client" in outcome.err
    outcome = answer("king\nqueen\njack\n", "--force")
    assert (outcome.code, outcome.complaint) == (2, "infernet: no usable answer in 3 tries: give --role")


@pytest.mark.parametrize(
    ("lines", "flag"), [("", "--role"), ("provider\n", "--url"), ("provider\n\n", "--name"), ("\n\n\n", "--p2p-port")]
)
def test_an_input_that_ends_fails_loudly_with_the_flag_and_writes_nothing(
    home: Home, answer: Any, lines: str, flag: str
) -> None:
    outcome = answer(lines)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.complaint.startswith(f"infernet: the input ended before an answer came: give {flag}, or --yes")
    assert files(home) == {}


def test_a_closed_or_garbled_input_fails_loudly_too(home: Home) -> None:
    garbled = home.run("init", stdin=b"\xff\xfe\n")
    assert garbled.code == 2
    words = " ".join(home.command("init"))
    closed = subprocess.run(
        ["sh", "-c", f"{words} <&-"], check=False, capture_output=True, text=True, env=home.environment()
    )
    assert closed.returncode == 2
    assert "give --role" in closed.stderr
    assert "Traceback" not in garbled.err + closed.stderr
    assert files(home) == {}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--role", "king"], "--role must be one of"),
        (["--p2p-port", "99999"], "--p2p-port must be a whole number from 0 to 65535"),
        (["--name", "a\nb"], "--name must be one line"),
        (["--url", "example.org"], "--url must be like https://"),
        (["--coordinator-key", "npub1"], "--coordinator-key must be a public key"),
        (["--nostr-privkey", "@/nonexistent"], "--nostr-privkey: cannot read /nonexistent"),
        (["--nostr-privkey", SECRET], "--nostr-privkey takes no key from the command line"),
        (["--nostr-privkey", NSEC], "--nostr-privkey takes no key from the command line"),
    ],
)
def test_a_bad_flag_is_named_and_nothing_is_written(home: Home, answer: Any, words: list[str], complaint: str) -> None:
    outcome = answer("", "--yes", *words)
    assert outcome.code == 2
    assert complaint in outcome.complaint
    # Nor is what was given repeated.
    assert SECRET not in outcome.err
    assert NSEC not in outcome.err
    assert files(home) == {}


def test_running_it_again_keeps_the_key_and_what_was_set(home: Home, answer: Any) -> None:
    answer("", "--yes", "--name", "kitchen", "--no-advertise")
    key = files(home)["identity.key"]
    home.config.config_file.write_bytes(files(home)["config.toml"] + b"# my own words\n")
    assert answer("", "--yes", "--p2p-port", "5000").code == 0
    assert files(home)["identity.key"] == key
    assert b"# my own words" in files(home)["config.toml"]
    config = load().config
    assert (config.name, config.advertise, config.p2p_port) == ("kitchen", False, 5000)
    # In the walk, what was set before is what an empty answer takes.
    outcome = answer("\n\n\n\n\n")
    assert outcome.code == 0
    assert "[kitchen]" in outcome.err
    config = load().config
    assert (config.name, config.advertise, config.p2p_port) == ("kitchen", False, 5000)


def test_what_was_set_can_be_unset_in_the_walk(home: Home, answer: Any) -> None:
    answer("", "--yes", "--name", "kitchen", "--address", "203.0.113.7")
    assert answer("\n\nnone\n\nnone\n").code == 0
    config = load().config
    assert (config.name, config.address) == ("", None)


def test_force_begins_anew_and_keeps_the_old_file_aside(home: Home, answer: Any) -> None:
    answer("", "--yes", "--name", "kitchen")
    before = files(home)
    assert answer("", "--yes", "--force", "--role", "client").code == 0
    after = files(home)
    assert after["config.toml.old"] == before["config.toml"]
    assert after["identity.key"] == before["identity.key"]
    assert load().config.name == ""


def test_force_mends_a_file_that_cannot_be_read(home: Home, answer: Any) -> None:
    answer("", "--yes")
    (home.path / "config" / "config.toml").write_bytes(b"\xff")
    outcome = answer("", "--yes")
    assert outcome.code == 1
    assert "is not UTF-8" in outcome.complaint
    assert answer("", "--yes", "--force").code == 0
    assert files(home)["config.toml.old"] == b"\xff"


def test_beginning_anew_again_loses_nothing_that_was_kept(home: Home, answer: Any) -> None:
    for name in ("one", "two", "three"):
        assert answer("", "--yes", "--force", "--name", name).code == 0
    kept = {name: content for name, content in files(home).items() if name.startswith("config.toml.old")}
    assert sorted(kept) == ["config.toml.old", "config.toml.old.2"]
    assert b'"one"' in kept["config.toml.old"]
    assert b'"two"' in kept["config.toml.old.2"]


def test_a_key_can_be_given_out_of_sight(home: Home, answer: Any, tmp_path: Path) -> None:
    outcome = answer(f"{NSEC}\n", "--yes", "--json", "--nostr-privkey", "-")
    assert (outcome.json["npub"], "command line" in outcome.err) == (NPUB, False)
    (tmp_path / "key").write_text(f"{SECRET}\n")
    outcome = answer("", "--yes", "--json", "--nostr-privkey", f"@{tmp_path / 'key'}")
    assert (outcome.json["npub"], "command line" in outcome.err) == (NPUB, False)


@pytest.mark.parametrize(("mode", "is_warned"), [(0o600, False), (0o644, True)])
def test_a_key_in_a_file_that_others_can_read_is_warned_about(
    home: Home, answer: Any, tmp_path: Path, mode: int, is_warned: bool
) -> None:
    path = tmp_path / "key"
    path.write_text(f"{SECRET}\n")
    path.chmod(mode)
    outcome = answer("", "--yes", "--nostr-privkey", f"@{path}")
    assert outcome.code == 0
    assert (f"{path} can be read by others" in outcome.err) is is_warned
    assert SECRET not in outcome.err


@pytest.mark.parametrize("form", ["", "hello", NPUB, NSEC[:-1] + "q", "00" * 32])
def test_what_is_no_key_is_refused_and_not_repeated(home: Home, answer: Any, form: str) -> None:
    outcome = answer(form + "\n", "--yes", "--nostr-privkey", "-")
    assert outcome.code == 1
    assert not form or form not in outcome.err
    assert files(home) == {}


def test_another_key_replaces_the_old_one_only_with_force_and_never_destroys_it(home: Home, answer: Any) -> None:
    answer("", "--yes")
    old = files(home)["identity.key"]
    outcome = answer(f"{NSEC}\n", "--yes", "--nostr-privkey", "-")
    assert outcome.code == 1
    assert "add --force" in outcome.complaint
    assert files(home)["identity.key"] == old
    outcome = answer(f"{NSEC}\n", "--yes", "--force", "--nostr-privkey", "-")
    assert outcome.code == 0
    assert npub(identity.load(home.config.key_file).node) == NPUB
    assert old in [content for name, content in files(home).items() if name.startswith("identity.key.")]
    # The same key again changes nothing.
    assert answer(f"{SECRET}\n", "--yes", "--nostr-privkey", "-").code == 0


def test_force_alone_keeps_the_key_for_what_is_earned_belongs_to_it(home: Home, answer: Any) -> None:
    answer("", "--yes", "--name", "attic")
    old = files(home)["identity.key"]
    outcome = answer("", "--yes", "--force")
    assert outcome.code == 0
    after = files(home)
    assert after["identity.key"] == old
    assert b"attic" in after["config.toml.old"]
    assert b"attic" not in after["config.toml"]
    assert "the key stays, unless --nostr-privkey gives another" in " ".join(answer("", "--help").out.split())


def test_a_damaged_key_is_refused_until_one_is_given_in_its_place_and_is_kept_aside(home: Home, answer: Any) -> None:
    answer("", "--yes")
    home.config.key_file.write_bytes(b"half a key\n")
    before = files(home)
    for words in ((), ("--force",), ("--nostr-privkey", "-")):
        refused = answer(f"{NSEC}\n", "--yes", *words)
        assert refused.code == 1
        assert "`infernet init --force --nostr-privkey @BACKUP` keeps it aside" in refused.complaint
        assert files(home) == before
    for kept in ("identity.key.unreadable", "identity.key.unreadable.2"):
        outcome = answer(f"{NSEC}\n", "--yes", "--force", "--nostr-privkey", "-")
        assert outcome.code == 0
        assert f"the key that this node had lies now at {home.config.config_dir / kept}" in outcome.err
        assert files(home)[kept] == b"half a key\n"
        assert npub(identity.load(home.config.key_file).node) == NPUB
        home.config.key_file.write_bytes(b"half a key\n")


def test_a_key_that_others_can_read_is_refused_before_anything_is_written(home: Home, answer: Any) -> None:
    answer("", "--yes")
    before = files(home)
    home.config.key_file.chmod(0o644)
    outcome = answer("", "--yes", "--name", "x")
    assert outcome.code == 1
    assert f"chmod 600 {home.config.key_file}" in outcome.complaint
    assert files(home) == before


@pytest.mark.parametrize("with_key", [False, True])
def test_a_disk_that_fails_in_the_middle_leaves_what_was_there(
    home: Home, answer: Any, monkeypatch: pytest.MonkeyPatch, with_key: bool
) -> None:
    if with_key:
        answer("", "--yes")
    before = files(home)
    monkeypatch.setattr(Path, "replace", fail_with_a_full_disk)
    outcome = answer(f"{NSEC}\n", "--yes", "--force", "--nostr-privkey", "-")
    assert outcome.code == 1
    assert "no space left" in outcome.complaint
    assert files(home) == before


def fail_with_a_full_disk(*_args: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_home_that_cannot_be_written_is_explained(home: Home, answer: Any) -> None:
    (home.path / "config").write_text("in the way")
    outcome = answer("", "--yes")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert str(home.path / "config") in outcome.complaint


# ---------------------------------------------------------------- the coordinator


def test_a_key_that_is_given_is_pinned_without_asking_anybody(home: Home, answer: Any) -> None:
    assert answer("", "--yes", "--url", UNREACHABLE, "--coordinator-key", npub(COORDINATOR.node)).code == 0
    config = load().config
    assert (config.coordinator_url, config.coordinator_key) == (UNREACHABLE, COORDINATOR.node)


def test_with_yes_the_key_that_is_shown_is_trusted_and_that_is_said(home: Home, answer: Any) -> None:
    with coordinator(KEY_SHOWN) as url:
        outcome = answer("", "--yes", "--json", "--url", url)
    assert outcome.code == 0, outcome.err
    assert outcome.json["coordinator_key"] == COORDINATOR.node.hex()
    assert f"trusting the key that {url} shows now: {npub(COORDINATOR.node)}" in outcome.err
    # It is pinned: the same URL is not asked again, though it is gone.
    assert answer("", "--yes", "--name", "x").code == 0
    assert load().config.coordinator_key == COORDINATOR.node


def test_without_yes_the_user_is_asked_whether_to_trust_it(home: Home, answer: Any) -> None:
    with coordinator(KEY_SHOWN) as url:
        outcome = answer("client\n\nyes\n", "--url", url)
        assert (outcome.code, load().config.coordinator_key) == (0, COORDINATOR.node)
        assert npub(COORDINATOR.node) in outcome.err
        before = files(home)
        outcome = answer("client\n\nno\n", "--force", "--url", url)
        assert (outcome.code, files(home)) == (1, before)
        assert "nothing was written" in outcome.complaint
        outcome = answer("client\n\n", "--force", "--url", url)
        assert (outcome.code, files(home)) == (2, before)
        assert "--coordinator-key" in outcome.complaint


@pytest.mark.parametrize("body", [b"", b"hello", b"[]", b"{}", b'{"key": 1}', b'{"key": "' + b"0" * 62 + b'"}'])
def test_what_is_no_coordinator_is_refused(home: Home, answer: Any, body: bytes) -> None:
    with coordinator(body) as url:
        outcome = answer("", "--yes", "--url", url)
    assert (outcome.code, files(home)) == (1, {})
    assert "nothing was written" in outcome.complaint


def test_a_coordinator_out_of_reach_is_explained(home: Home, answer: Any) -> None:
    outcome = answer("", "--yes", "--url", UNREACHABLE)
    assert (outcome.code, files(home)) == (1, {})
    assert f"the coordinator at {UNREACHABLE}" in outcome.complaint
    assert "give its key with --coordinator-key" in outcome.complaint


def test_what_init_wrote_is_what_the_node_reads(home: Home, answer: Any) -> None:
    words = ["--role", "aggregator", "--name", "x", "--p2p-port", "1234", "--address", "example.org", "--no-advertise"]
    words += ["--free-for", "all", "--allow", NPUB, "--slots", "2", "--threads", "1", "--engine", "none"]
    assert answer("", "--yes", *words).code == 0
    config = load().config
    assert (config.role, config.name, config.p2p_port) == (Role.AGGREGATOR, "x", 1234)
    assert (config.address, config.advertise, config.free_for) == ("example.org", False, "all")
    assert (npub(config.allow[0]), config.slots, config.threads, config.engine) == (NPUB, 2, 1, "none")
