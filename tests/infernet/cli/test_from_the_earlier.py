"""docs/from-the-earlier-infernet.md: what it says of flags and variables of the earlier program is what happens."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infernet.cli.__main__ import VERBS
from infernet.cli.command import make_parser
from infernet.cli.start import FOREGROUND_VARIABLE
from infernet.settings.environment import EARLIER, EARLIER_KEYS, EARLIER_SERVERS, VENDOR_ADDRESSES
from infernet.settings.table import SETTINGS
from tests.helpers_cli import ROOT, Home, invoke
from tests.helpers_processes import free_port

PAGE = ROOT / "docs" / "from-the-earlier-infernet.md"
Capture = pytest.CaptureFixture[str]

#: What the earlier program took, by command.
FLAGS = {
    "init": "--url --role --name --nostr-pubkey --nostr-privkey --p2p-port --address --no-advertise "
    "--skip-firewall-hint --force --yes",
    "login": "--url --token --status --logout",
    "register": "--address --port --gpu-model --price --no-advertise",
    "update": "--binary",
    "upgrade": "--skip-register",
    "remove": "--yes --keep-config --keep-binary --keep-remote",
    "start": "--foreground --heartbeat-interval --poll-interval --p2p-port --bind-port --no-p2p --no-advertise --once",
    "stop": "--signal --force",
    "status": "--json",
    "stats": "--json",
    "logs": "--follow --lines",
    "payout": "set list --network",
    "payments": "list --limit",
    "gpu": "list json --json",
    "firewall": "--port",
    "chat": "--remote --local --model --system --temperature --max-tokens --json --url --backend --host",
    "model": "list pull remove use show",
    "doctor": "--skip-e2e --json",
    "service": "install uninstall enable disable status logs unit",
}
COMMANDS = ("setup", "pubkey", "debug", "deploy", "console")
VARIABLES = (
    *("INFERNET_DAEMON_FOREGROUND", "INFERNET_BIND_PORT", "INFERNET_PUBLIC_PORT", "INFERNET_P2P_PORT", "PORT"),
    *("INFERNET_PUBLIC_ADDRESS", "INFERNET_NONINTERACTIVE", "INFERNET_CONTROL_PLANE_URL", "INFERNET_NODE_NAME"),
    *("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "INFERNET_BEARER"),
    *("OLLAMA_HOST", *VENDOR_ADDRESSES, *EARLIER, *EARLIER_SERVERS, *EARLIER_KEYS),
)


def rows() -> list[tuple[str, str, str]]:
    """The rows of the page's tables."""
    text = PAGE.read_text("utf-8")
    return re.findall(r"^\| `([^`]+)` \| ([^|]+?) \| ?([^|]*?) ?\|$", text, re.MULTILINE)


ORDERS = ("model_install", "model_remove")
COMMAND_ROWS = [row for row in rows() if row[0].startswith("infernet ")]
VARIABLE_ROWS = [row for row in rows() if not row[0].startswith("infernet ") and row[0] not in ORDERS]


def knows(command: str) -> bool:
    """Whether this program knows a command with its words and its flags."""
    _, verb, *words = command.split()
    if verb not in VERBS:
        return False
    parser = make_parser(verb, importlib.import_module(f"infernet.cli.{verb.replace('-', '_')}"))
    known = {option for action in parser._actions for option in action.option_strings}
    known |= {str(choice) for action in parser._actions if not action.option_strings for choice in action.choices or ()}
    return set(words) <= known


def test_each_thing_that_the_earlier_program_took_has_a_row() -> None:
    told = {word for row in COMMAND_ROWS for word in [tuple(row[0].split()[1:])]}
    for verb, flags in FLAGS.items():
        for flag in flags.split():
            assert any(row[0] == verb and flag in row for row in told), f"{verb} {flag}"
    assert {(command,) for command in COMMANDS} <= told
    assert {row[0] for row in VARIABLE_ROWS} >= set(VARIABLES)


@pytest.mark.parametrize(("earlier", "here", "why"), COMMAND_ROWS)
def test_a_row_of_commands_is_true(earlier: str, here: str, why: str) -> None:
    if here in ("same", "no effect"):
        assert knows(earlier)
        assert why or here == "same"
    elif here == "gone":
        assert not knows(earlier)
        assert why
    else:
        names = re.findall(r"`(infernet [^`]+)`", here)
        assert names
        assert here.startswith("now ")
        assert all(map(knows, names))
        assert not knows(earlier) or why


@pytest.mark.parametrize(("earlier", "here", "why"), VARIABLE_ROWS)
def test_a_row_of_variables_is_true(earlier: str, here: str, why: str) -> None:
    known = {name for setting in SETTINGS for name in setting.variables}
    known |= {FOREGROUND_VARIABLE, "INFERNET_NONINTERACTIVE", "INFERNET_DEBUG", "OLLAMA_HOST", *VENDOR_ADDRESSES}
    assert (earlier in known) is (here == "same")
    assert here in ("same", "gone")
    assert why or here == "same"


def test_what_a_control_plane_could_order_is_gone() -> None:
    told = {row[0]: row for row in rows()}
    for order in ORDERS:
        _, here, why = told[order]
        assert here == "gone"
        assert why
        # Nothing that comes over the wire, or from anywhere else, is called so.
        for package in ("infernet", "protocol"):
            assert not [path for path in (ROOT / package).rglob("*.py") if order in path.read_text("utf-8")]


# ---------------------------------------------------------------- what is the same does the same


@pytest.mark.parametrize(
    ("variable", "value", "setting", "shown"),
    [
        ("INFERNET_P2P_PORT", "5001", "p2p_port", 5001),
        ("INFERNET_BIND_PORT", "5002", "bind_port", 5002),
        ("INFERNET_PUBLIC_PORT", "5003", "p2p_port", 5003),
        ("INFERNET_PUBLIC_ADDRESS", "198.51.100.7", "address", "198.51.100.7"),
        ("INFERNET_NODE_NAME", "attic", "name", "attic"),
        ("RUNPOD_PUBLIC_IP", "9.9.9.9", "address", "9.9.9.9"),
        ("PUBLIC_IPADDR", "9.9.9.9", "address", "9.9.9.9"),
    ],
)
def test_a_variable_sets_what_it_set(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, setting: str, shown: object
) -> None:
    monkeypatch.setenv(variable, value)
    # Without a public port of the vendor's its address is of no use.
    monkeypatch.setenv("RUNPOD_TCP_PORT_46337", "40123" if variable in VENDOR_ADDRESSES else "")
    outcome = invoke(capsys, "config", "show", "--json")
    assert outcome.json["settings"][setting]["value"] == shown
    assert outcome.json["settings"][setting]["from"] == "environment"
    assert outcome.err == ""


def test_todays_name_counts_before_the_old_one(home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERNET_PUBLIC_PORT", "5003")
    monkeypatch.setenv("INFERNET_P2P_PORT", "5001")
    assert invoke(capsys, "config", "show", "--json").json["settings"]["p2p_port"]["value"] == 5001


def test_init_asks_nothing_where_the_environment_says_so(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home.run("init").code == 2
    assert not home.config.key_file.exists()
    assert home.run("init", INFERNET_NONINTERACTIVE="0").code == 2
    assert home.run("init", INFERNET_NONINTERACTIVE="1").code == 0
    assert home.config.key_file.exists()


@pytest.mark.parametrize("flag", ["--heartbeat-interval", "--poll-interval"])
def test_an_interval_is_taken_with_a_word_about_it(home: Home, capsys: Capture, flag: str) -> None:
    # Without a key it does not start; the word comes before that.
    outcome = invoke(capsys, "start", flag, "5000")
    assert outcome.code == 1
    assert f"infernet: warning: {flag} has no effect" in outcome.err
    outcome = invoke(capsys, "start", flag, "soon")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "an interval is a whole number of milliseconds" in outcome.err


def test_once_is_up_and_down_again(home: Home) -> None:
    assert home.run("init", "--yes", "--role", "client").code == 0
    outcome = home.run("start", "--once", "--json", "--no-mdns")
    assert outcome.code == 0, outcome.err
    assert outcome.json["running"] is True
    assert home.run("status").code == 1
    assert not any(line.startswith("{") for line in outcome.err.splitlines())
    assert outcome.json["log_file"] == str(home.config.log_file)
    events = [json.loads(line)["event"] for line in home.config.log_file.read_text().splitlines()]
    assert (events[0], events[-1]) == ("node.started", "node.stopped")


def test_once_says_that_it_was_ended_and_logs_where_that_is_asked_for(home: Home) -> None:
    assert home.run("init", "--yes", "--role", "client", "--name", "me").code == 0
    outcome = home.run("start", "--once", "--foreground", "--no-mdns")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("me came up, and was ended (client, process ")
    events = [json.loads(line)["event"] for line in outcome.err.splitlines() if line.startswith("{")]
    assert (events[0], events[-1]) == ("node.started", "node.stopped")
    assert not home.config.log_file.exists()


def test_once_fails_where_the_coordinator_does_not_hear_of_it(home: Home) -> None:
    words = ["init", "--yes", "--engine", "none", "--url", "http://127.0.0.1:9", "--coordinator-key", "ab" * 32]
    assert home.run(*words).code == 0
    program = (
        "import sys\n"
        "from infernet import daemon\n"
        "from infernet.cli.__main__ import main\n"
        "daemon._LINK_TIMEOUT_S = 0.5\n"
        "sys.exit(main(['start', '--once', '--no-mdns', '--p2p-port', '0', '--listen-hosts', '127.0.0.1']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], check=False, capture_output=True, text=True, env=home.environment()
    )
    assert done.returncode == 1
    assert "was up, and not connected to http://127.0.0.1:9" in done.stderr
    assert done.stdout == ""


def test_a_port_is_listened_on_and_another_one_told(home: Home) -> None:
    assert home.run("init", "--yes", "--engine", "none", "--address", "127.0.0.1").code == 0
    port = free_port()
    words = ["--bind-port", str(port), "--p2p-port", "6000", "--listen-hosts", "127.0.0.1", "--no-mdns"]
    outcome = home.run("start", "--once", "--json", *words)
    assert outcome.code == 0, outcome.err
    assert [f"/tcp/{port}/" in address for address in outcome.json["addresses"]] == [True]
    assert ["/tcp/6000/" in address for address in outcome.json["advertised_addresses"]] == [True]


def test_the_environment_keeps_a_node_in_the_foreground(home: Home) -> None:
    assert home.run("init", "--yes", "--role", "client").code == 0
    outcome = home.run("start", INFERNET_DAEMON_FOREGROUND="perhaps")
    assert (outcome.code, outcome.complaint) == (2, "infernet: INFERNET_DAEMON_FOREGROUND must be 1 or 0")
    with subprocess.Popen(
        home.command("start", "--json", "--no-mdns"),
        env=home.environment(INFERNET_DAEMON_FOREGROUND="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        told = b""
        while not told.endswith(b"\n}\n"):
            told += process.stdout.readline()
        assert json.loads(told)["pid"] == process.pid
        stopped = home.run("stop", "--json", "--signal", "term")
        assert (stopped.json["how"], stopped.json["pid"]) == ("signalled", process.pid)
        assert process.wait(timeout=30) == 0


def test_a_secret_key_is_not_taken_from_the_command_line(home: Home, capsys: Capture) -> None:
    secret = "00" * 31 + "03"
    outcome = invoke(capsys, "init", "--yes", "--nostr-privkey", secret)
    assert outcome.code == 2
    assert "--nostr-privkey @FILE" in outcome.complaint
    assert secret not in outcome.out + outcome.err
    assert not home.config.key_file.exists()


def test_a_public_key_that_is_another_is_refused(home: Home, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("00" * 31 + "03\n")
    public = "f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9"
    for word, code in (("zz", 2), ("ab" * 32, 2), (public, 0)):
        outcome = invoke(capsys, "init", "--yes", "--nostr-privkey", f"@{path}", "--nostr-pubkey", word)
        assert outcome.code == code, outcome.err
        assert home.config.key_file.exists() is (code == 0)


def test_the_first_verb_that_needs_settings_takes_the_earlier_ones_over(home: Home) -> None:
    home.config.config_dir.mkdir(mode=0o700)
    earlier = home.config.config_dir / "config.json"
    document = {"node": {"role": "client", "privateKey": "00" * 31 + "03", "name": "Kitchen"}}
    earlier.write_text(json.dumps(document))
    earlier.chmod(0o600)
    # Looking changes nothing.
    assert home.run("status").code == 1
    assert home.run("version").code == 0
    assert earlier.exists()
    outcome = home.run("init", "--yes", "--json")
    assert outcome.code == 0, outcome.err
    assert (outcome.json["name"], outcome.json["role"]) == ("Kitchen", "client")
    assert outcome.json["npub"].startswith("npub1lycg5qvjtrp3qjf5f7zl382j9x6nrjz9sdhenvyxq8c3808qxmus6gq266")
    assert "was taken over into" in outcome.err
    assert home.run("config", "show").err == ""
    # It can be removed like any node.
    assert home.run("remove", "--yes").code == 0
    assert not home.config.config_dir.exists()


def test_an_earlier_file_that_is_broken_stops_the_verb_with_one_line(home: Home) -> None:
    home.config.config_dir.mkdir(mode=0o700)
    (home.config.config_dir / "config.json").write_text("{")
    (home.config.config_dir / "config.json").chmod(0o600)
    outcome = home.run("init", "--yes")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "is not JSON" in outcome.err
    assert [path.name for path in home.config.config_dir.iterdir()] == ["config.json"]


def test_choices_of_signals_are_those_of_the_page() -> None:
    parser = make_parser("stop", importlib.import_module("infernet.cli.stop"))
    (action,) = (each for each in parser._actions if "--signal" in each.option_strings)
    assert isinstance(action, argparse.Action)
    assert tuple(action.choices or ()) == ("TERM", "INT", "HUP", "KILL")
    assert parser.parse_args(["--signal", "sigterm"]).signal == "TERM"
