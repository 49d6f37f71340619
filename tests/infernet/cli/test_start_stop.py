"""infernet start, stop and status as real processes: up or one line why not, at most one, and gone without a trace."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infernet.cli import stop
from infernet.cli.__main__ import main
from infernet.host.lock import running_pid
from tests.helpers_cli import DEADLINE_S, Home, invoke

# Without an engine a node is up in a second.
QUICK = ("--p2p-port", "0", "--engine", "none", "--listen-hosts", "127.0.0.1")


@pytest.fixture
def ready_home(home: Home, capsys: pytest.CaptureFixture[str]) -> Home:
    """A home after init."""
    assert main(["init", "--yes"]) == 0
    capsys.readouterr()
    return home


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def log_lines(home: Home) -> list[dict[str, object]]:
    return [json.loads(line) for line in home.config.log_file.read_text().splitlines()]


@pytest.mark.slow
def test_a_node_starts_once_tells_its_state_and_stops(ready_home: Home) -> None:
    home = ready_home
    started = home.run("start", "--json", *QUICK)
    assert started.code == 0, started.err
    try:
        pid = started.json["pid"]
        assert started.json["running"] is True
        assert running_pid(home.config.pid_file) == pid
        status = home.run("status", "--json")
        assert status.code == 0
        for name in ("node_id", "npub", "peer_id", "name", "role", "pid", "addresses"):
            assert status.json[name] == started.json[name]
        (address,) = status.json["addresses"]
        assert address.startswith("/ip4/127.0.0.1/tcp/")
        assert address.endswith(f"/p2p/{status.json['peer_id']}")
        with socket.create_connection(("127.0.0.1", int(address.split("/")[4])), DEADLINE_S):
            pass
        shown = home.run("status")
        assert shown.out.startswith(f"{status.json['name']} (provider) has been running for ")
        assert address in shown.out

        second = home.run("start", *QUICK)
        assert second.code == 1
        assert f"running already (process {pid})" in second.complaint
        foreground = home.run("start", "--foreground", *QUICK)
        assert foreground.code == 1
        assert f"running already (process {pid})" in foreground.complaint
        assert running_pid(home.config.pid_file) == pid

        again = home.run("init", "--yes")
        assert "the node is running" in again.err
    finally:
        stopped = home.run("stop", "--json")
    assert stopped.code == 0
    assert stopped.json == {"stopped": True, "pid": pid, "how": "asked"}
    assert running_pid(home.config.pid_file) is None
    assert not home.config.socket_path.exists()
    assert {path.stat().st_mode & 0o777 for path in home.config.state_dir.iterdir()} == {0o600}
    assert [line["event"] for line in log_lines(home)][-1] == "node.stopped"
    for words in (["stop"], ["status"], ["peers"]):
        after = home.run(*words)
        assert (after.code, after.out) == (1, "")
        assert "no node is running here" in after.complaint
    assert home.run("status", "--json").json["running"] is False


@pytest.mark.slow
def test_it_stays_in_the_foreground_and_ends_on_ctrl_c(ready_home: Home) -> None:
    command = ready_home.command("start", "--foreground", "--json", *QUICK)
    with subprocess.Popen(
        command, env=ready_home.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], DEADLINE_S)[0], "it never came up"
        status = json.loads(read_object(process))
        assert status["pid"] == process.pid
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    # In the foreground the log is on standard error, one JSON object per line because that is no terminal.
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert events[-4:] == ["node.stopping", "node.draining", "node.drained", "node.stopped"]


@pytest.mark.slow
def test_in_the_foreground_the_log_goes_to_its_file_when_that_is_asked_for(ready_home: Home) -> None:
    command = ready_home.command("start", "--foreground", "--log-to-file", "--json", *QUICK)
    with subprocess.Popen(
        command, env=ready_home.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert json.loads(read_object(process))["log_file"] == str(ready_home.config.log_file)
        process.terminate()
        _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (0, "")
    assert [line["event"] for line in log_lines(ready_home)][-1] == "node.stopped"


def test_a_detached_node_logs_to_its_file_anyhow(ready_home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "start", "--log-to-file")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)


def read_object(process: subprocess.Popen[str]) -> str:
    """The lines of one indented JSON object."""
    lines: list[str] = []
    assert process.stdout is not None
    while not lines or lines[-1] != "}\n":
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()
    return "".join(lines)


@pytest.mark.slow
def test_a_node_that_was_killed_is_started_again_over_its_leavings(ready_home: Home) -> None:
    home = ready_home
    with home.started(*QUICK) as status:
        os.kill(status["pid"], signal.SIGKILL)
        wait_until(lambda: running_pid(home.config.pid_file) is None)
        assert home.config.socket_path.exists()
        assert home.config.pid_file.read_text() == f"{status['pid']}\n"
        gone = home.run("status")
        assert (gone.code, "no node is running here" in gone.complaint) == (1, True)
        with home.started(*QUICK) as second:
            assert second["node_id"] == status["node_id"]
            os.kill(second["pid"], signal.SIGTERM)
            wait_until(lambda: running_pid(home.config.pid_file) is None)
            assert not home.config.socket_path.exists()


@pytest.mark.slow
def test_a_node_that_hangs_is_told_of_and_killed_only_with_force(
    ready_home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SHUTDOWN_TIMEOUT_S", "END_TIMEOUT_S"):
        monkeypatch.setattr(stop, name, 0.1)
    monkeypatch.setattr("infernet.cli.running_node.STATUS_TIMEOUT_S", 0.1)
    with ready_home.started(*QUICK) as status:
        os.kill(status["pid"], signal.SIGSTOP)
        assert "did not answer within 0.1 s" in invoke(capsys, "status").complaint
        outcome = invoke(capsys, "stop")
        assert outcome.code == 1
        assert f"(process {status['pid']}) does not end" in outcome.complaint
        assert running_pid(ready_home.config.pid_file) == status["pid"]
        assert invoke(capsys, "stop", "--force", "--json").json["how"] == "killed"


@pytest.mark.slow
@pytest.mark.parametrize("detached", [True, False])
def test_a_taken_port_is_told_in_one_line(ready_home: Home, detached: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["start", "--engine", "none", "--listen-hosts", "127.0.0.1", "--p2p-port", str(port)]
        outcome = ready_home.run(*words, *([] if detached else ["--foreground"]))
    assert outcome.code == 1
    assert f"port {port} is taken" in outcome.complaint
    assert "--p2p-port" in outcome.complaint
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert running_pid(ready_home.config.pid_file) is None
    assert not ready_home.config.socket_path.exists()


@pytest.mark.slow
def test_a_missing_model_is_told_in_one_line(ready_home: Home) -> None:
    outcome = ready_home.run("start", "--p2p-port", "0", "--json")
    assert outcome.code == 1
    assert "infernet model pull" in outcome.json["error"]
    assert outcome.json["log_file"] == str(ready_home.config.log_file)
    assert outcome.err.count("\n") == 1


def without_init(home: Home) -> None:
    """Nothing is there."""


def loose_key(home: Home) -> None:
    home.config.key_file.chmod(0o644)


def loose_folder(home: Home) -> None:
    home.config.config_dir.chmod(0o755)


def damaged_key(home: Home) -> None:
    home.config.key_file.write_bytes(b"\xff" * 32)


def foreign_text(home: Home) -> None:
    home.config.config_file.write_bytes(b'name = "\xe9"\n')


def no_toml(home: Home) -> None:
    home.config.config_file.write_text("slots = = 3\n")


def newer_file(home: Home) -> None:
    home.config.config_file.write_text("schema_version = 7\n")


def bad_value(home: Home) -> None:
    home.config.config_file.write_text("slots = 0\n")


def file_for_state(home: Home) -> None:
    home.config.state_dir.write_text("in the way")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without_init, "run `infernet init`"),
        (loose_key, "chmod 600"),
        (loose_folder, "chmod 700"),
        (damaged_key, "is damaged"),
        (foreign_text, "is not UTF-8 text (line 1)"),
        (no_toml, "is not TOML"),
        (newer_file, "newer infernet (schema 7"),
        (bad_value, "slots must be a whole number from 1 to 256"),
        (file_for_state, "INFERNET_HOME"),
    ],
)
@pytest.mark.parametrize("foreground", [[], ["--foreground"]])
def test_what_is_wrong_is_told_in_one_line(
    home: Home,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Home], None],
    complaint: str,
    foreground: list[str],
) -> None:
    if spoil is not without_init:
        assert main(["init", "--yes"]) == 0
        spoil(home)
    outcome = invoke(capsys, "start", *QUICK, *foreground)
    assert (outcome.code, outcome.out) == (1, "")
    assert complaint in outcome.complaint
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("home_path", ["/dev/null/home", "/proc/infernet"])
@pytest.mark.parametrize("words", [["init", "--yes"], ["start"], ["stop"], ["status"], ["peers"], ["chat", "Hi"]])
def test_a_home_that_cannot_be_written_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home_path: str, words: list[str]
) -> None:
    monkeypatch.setenv("INFERNET_HOME", home_path)
    outcome = invoke(capsys, *words)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.count("\n") == 1
    if words[0] == "init":
        assert home_path in outcome.complaint


@pytest.mark.slow
def test_a_newer_store_is_told_of_by_the_process_that_was_to_run(ready_home: Home) -> None:
    ready_home.config.state_dir.mkdir(mode=0o700)
    with sqlite3.connect(ready_home.config.store_file) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    outcome = ready_home.run("start", *QUICK)
    assert outcome.code == 1
    assert "newer infernet (schema 99" in outcome.complaint
    assert outcome.err.count("\n") == 1


@pytest.mark.slow
def test_one_run_with_settings_of_its_own_in_a_deep_home_without_a_port(home: Home) -> None:
    deep = Home(home.path / ("d" * 100), {"XDG_RUNTIME_DIR": str(home.path)})
    assert deep.run("init", "--yes", "--no-advertise").code == 0
    before = deep.config.config_file.read_bytes()
    secret = deep.config.key_file.read_text().strip()
    with deep.started("--role", "aggregator", "--name", "for one run", "--log-level", "debug") as status:
        assert (status["role"], status["name"]) == ("aggregator", "for one run")
        # Whoever does not advertise opens no port.
        assert (status["addresses"], status["advertised_addresses"]) == ([], [])
        shown = deep.run("status", "--json")
        assert shown.json["pid"] == status["pid"]
        assert [path.name for path in (home.path / "infernet").iterdir()] != []
        seen = shown.out + deep.config.log_file.read_text() + Path(f"/proc/{status['pid']}/cmdline").read_text()
    assert secret not in seen
    assert deep.config.config_file.read_bytes() == before
