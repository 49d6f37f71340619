"""infernet/diagnostics/bundle.py and page.py: a whole report, word for word, and what never gets into one."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from infernet.config import save
from infernet.diagnostics import bundle
from infernet.diagnostics.bundle import gather
from infernet.diagnostics.page import render
from infernet.doctor.contract import Check, Finding, Status, in_thread
from infernet.doctor.contract import ok as well
from infernet.doctor.examination import Result
from infernet.ipc import client as ipc
from infernet.settings.table import SETTINGS
from protocol.ids import bech32_encode, npub, peer_id, short
from tests.helpers_cli import Home
from tests.helpers_node import key_of
from tests.helpers_secrets import ALICES_HOME, KINDS, Secret, leaked, letters

GOLDEN = Path(__file__).with_name("golden_report.md")
COUNT = 1000
LINES = 50
KEY, PEER = key_of(7), key_of(8)


def result(name: str, status: Status, found: str, ms: int = 3) -> Result:
    check = Check(id=name, title=name, looks="It.", remedy="It.", examine=in_thread(lambda _: well("")))
    return Result(check, Finding(status, found, "do this"), ms)


def plant_everything(home: Home, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A node with something of every kind, on a machine that is always the same; gives its status."""
    here = home.config
    settings = {
        "name": "alices-gpu",
        "coordinator_url": "https://market.alice.example",
        "coordinator_key": PEER.node.hex(),
        "address": "gpu.alice.example",
        "peers": [f"/ip4/203.0.113.7/tcp/46337/p2p/{peer_id(PEER.node)}"],
        "allow": [PEER.node.hex()],
        "price_out_usd": "0.77",
        "model": f"{ALICES_HOME}/secret-project.gguf",
    }
    save(here.config_file, settings, keep=False)
    with here.config_file.open("a") as file:
        file.write('\n[cloudCredentials]\nvast = "letmein-alice"\n')
    lines: list[str | dict[str, Any]] = [
        {"event": "node.started", "version": "0.1.0", "role": "provider", "pid": 4711, "peer_id": peer_id(KEY.node)},
        {"event": "peer.hang_up", "peer": short(PEER.node), "reason": f"{npub(PEER.node)} sent 3 bad frames"},
        {"event": "coordinator.link_lost", "reason": "cannot reach https://market.alice.example/x: timed out"},
        {"event": "peer.banned", "peer": short(PEER.node), "ip": "203.0.113.7", "score": 12.5, "until": "x"},
        {"event": "store.failed", "reason": f"the store {here.store_file} cannot be used now: disk full"},
        {"event": "money.claimed", "lease": "ab" * 4, "claimed_uusd": 123456},
        {
            "event": "a library spoke of alice@alice.example",
            "logger": "some.library",
            "exception": "KeyError at x.py:7 y",
        },
        {"event": "dht.begun", "addresses": ["/ip4/203.0.113.7/tcp/1"], "unknown_field": "letmein-alice"},
        f"ggml: cannot open {ALICES_HOME}/secret-project.gguf on falcon (letmein2)",
        "{broken json with Bearer abcdef",
    ]
    stamped = [
        json.dumps({"timestamp": f"2026-11-29T10:00:{number:02}.123456Z", "level": "info"} | line)
        if isinstance(line, dict)
        else line
        for number, line in enumerate(lines)
    ]
    here.state_dir.mkdir(parents=True)
    here.log_file.write_text("\n".join(stamped) + "\n")
    (here.state_dir / "crash.log").write_text(f"KeyError at wallet.py:7 run > {ALICES_HOME}/x.py\n")
    monkeypatch.setattr(socket, "gethostname", lambda: "falcon.alice.example")
    monkeypatch.setattr(bundle, "_versions", lambda: {"infernet": "0.1.0"})
    monkeypatch.setattr(bundle, "_machine", lambda: {"system": "Linux"})
    return {
        "node_id": KEY.node.hex(),
        "name": "alices-gpu",
        "uptime_s": 3600.4,
        "peers": 3,
        "jobs_asked": "letmein",
        "addresses": ["/ip4/203.0.113.9/tcp/46337"],
        "models": ["secret-project"],
        "engine": {"state": "ready", "runs_total": 9, "restarts": 1, "last_error": f"died at {ALICES_HOME}/x"},
        "coordinator": {"state": "letmein", "url": "https://market.alice.example", "last_error": "no 203.0.113.9"},
        "reached": {"reachability": "not_reached", "advice": "forward to 192.168.7.7"},
        "transport": {"connections": 4, "bytes_in": True, "letmein": 5},
        "discovered": {"mdns": 2, "alice": 7},
        "money": {"earned_uusd": 987654, "trouble": ""},
    }


RESULTS = (
    result("config.known", Status.WARN, f"{ALICES_HOME}/config.toml: unknown setting 'hf_abcDEF123456' is kept"),
    result(
        "coordinator.key", Status.FAIL, f"the coordinator shows the key {npub(PEER.node)}, not {npub(KEY.node)}", 12
    ),
    result("disk.free", Status.OK, f"9 MB are free at {ALICES_HOME}"),
)


def test_a_report_word_for_word(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewrite the file with what is shown when the change is meant: it is what people will paste."""
    status = plant_everything(home, monkeypatch)
    monkeypatch.setattr(ipc, "call", lambda *_arguments, **_options: status)
    environ = {"INFERNET_HOME": str(home.path), "USER": "alice", "HF_TOKEN": "letmein", "INFERNET_SLOTS": "2", "X": "y"}
    page = render(gather(RESULTS, environ))
    for word in (
        "alice",
        "falcon",
        "letmein",
        "203.0.113",
        "192.168",
        "market",
        "secret-project",
        KEY.node.hex()[:8],
        "0.77",
    ):
        assert word not in page, word
    assert page == GOLDEN.read_text("utf-8")


def test_without_a_node_a_log_or_a_home_there_is_a_report_too(home: Home) -> None:
    report = gather((), {"INFERNET_HOME": str(home.path)})
    assert (report["counters"], report["log"], report["last_crash"]) == ({}, [], "")
    assert set(report["settings"]) == {setting.name for setting in SETTINGS}
    assert gather((), {"INFERNET_HOME": ""})["settings"] == {}
    (home.path / "config").mkdir()
    home.config.config_file.write_text("= letmein")
    report = gather((), {"INFERNET_HOME": str(home.path)})
    assert report["settings"] == {}
    assert "letmein" not in json.dumps(report)


def test_nothing_in_a_log_ends_the_block_it_stands_in(home: Home) -> None:
    home.config.state_dir.mkdir(parents=True)
    home.config.log_file.write_text("```\n# shout\n<script>\n")
    page = render(gather((), {"INFERNET_HOME": str(home.path)}))
    assert page.count("```") == 2 * page.count("```text")
    assert "'''" in page


def test_only_the_end_of_a_large_log_is_read(home: Home) -> None:
    home.config.state_dir.mkdir(parents=True)
    home.config.log_file.write_text("first\n" + "x" * 400_000 + "\n" + "word\n" * 100)
    log = gather((), {"INFERNET_HOME": str(home.path)})["log"]
    assert log == ["word"] * 60


@pytest.mark.parametrize(
    "status", [[], "x", {"engine": [], "transport": 7, "uptime_s": "x", "models": 7, "peers": None}]
)
def test_a_node_that_answers_nonsense(home: Home, monkeypatch: pytest.MonkeyPatch, status: Any) -> None:
    monkeypatch.setattr(ipc, "call", lambda *_arguments, **_options: status)
    assert gather((), {"INFERNET_HOME": str(home.path)})["counters"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_secrets_in_settings_log_and_environment_never_come_out(
    home: Home, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # They are the same each time, and take longer than the rest.
    for part in (bundle._versions(), bundle._machine()):
        name = "_versions" if "python" in part else "_machine"
        monkeypatch.setattr(bundle, name, lambda part=part: part)
    rng, make = random.Random(f"bundle {kind}"), KINDS[kind]
    home.config.state_dir.mkdir(parents=True)
    home.config.config_dir.mkdir()
    for _ in range(COUNT // LINES):
        secrets = [make(rng) for _ in range(LINES)]
        page = render(gather([result("proxy", Status.FAIL, secrets[0].text)], plant(home, rng, secrets)))
        for secret in secrets:
            assert not leaked(secret, page), secret


def plant(home: Home, rng: random.Random, secrets: list[Secret]) -> dict[str, str]:
    """Put secrets into the files of a home, and give the environment that goes with it."""
    lines = [
        json.dumps(
            {
                "event": rng.choice(["peer.fault", secret.text]),
                "level": "info",
                rng.choice(["reason", "path", "x"]): secret.text,
            }
        )
        if rng.random() < 0.7
        else f"it said {secret.text}, and ended"
        for secret in secrets
    ]
    home.config.log_file.write_text("\n".join(lines) + "\n")
    (home.config.state_dir / "crash.log").write_text(f"KeyError ({secrets[1].text}) at wallet.py:7 run")
    values = {"name": secrets[2].text[:32], "model": secrets[3].text, "mystery": secrets[4].text}
    # Not all of these can be settings, and a file that is refused must not be shown either.
    home.config.config_file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    environ = {"INFERNET_HOME": str(home.path), "INFERNET_ADDRESS": secrets[5].text, "HTTPS_PROXY": secrets[6].text}
    return environ | {"MY_API_KEY": secrets[7].text, "HOSTNAME": secrets[8].text, secrets[9].text: "1"}


@pytest.mark.slow
def test_names_that_only_this_machine_knows_never_come_out(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that look like any other: host, user, node and the value of a secret variable."""
    rng = random.Random(5)
    home.config.state_dir.mkdir(parents=True)

    def make(rng: random.Random) -> Secret:
        text = letters(rng, 7, 12)
        return Secret(text, (text,))

    for _ in range(COUNT // 20):
        host, user, name, token = (make(rng) for _ in range(4))
        monkeypatch.setattr(socket, "gethostname", lambda host=host: f"{host.text}.example")
        save(home.config.config_file, {"name": name.text}, keep=False)
        said = [f"{each.text} and {each.text.upper()}, ({each.text})" for each in (host, user, name, token)]
        home.config.log_file.write_text("\n".join([*said, *(json.dumps({"reason": text}) for text in said)]))
        environ = {"INFERNET_HOME": str(home.path), "USER": user.text, "MY_SECRET": token.text}
        page = render(gather([result("dns", Status.FAIL, " ".join(said))], environ))
        for secret in (host, user, name, token):
            assert not leaked(secret, page)


def test_the_key_of_this_node_is_never_read(home: Home) -> None:
    secret = key_of(9).secret_bytes()
    home.config.config_dir.mkdir(parents=True)
    home.config.key_file.write_text(secret.hex())
    home.config.key_file.chmod(0o600)
    page = render(gather((), {"INFERNET_HOME": str(home.path)}))
    for form in (secret.hex(), bech32_encode("nsec", secret), npub(key_of(9).node)):
        assert form not in page
