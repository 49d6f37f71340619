"""infernet/cli/start.py: what is told of a node that has started."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from infernet import identity
from infernet.cli.start import set_for_nobody
from infernet.host.lock import hold_lock
from infernet.settings.models import ModelSettings
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode
from tests.helpers_node import config_of_nobody

Capture = pytest.CaptureFixture[str]


def test_settings_for_a_model_that_nobody_serves_are_told_and_none_for_one_that_is_not_up_yet() -> None:
    own = tuple(ModelSettings(name=name, slots=2) for name in ("Served", "loading", "spread-7b", "misspelt"))
    status: dict[str, Any] = {
        "models": ["served"],
        "engines": [{"engine": "llama", "models": ["served"]}, {"engine": "llama", "models": ["loading"]}],
        "cluster": {"worker": None, "head": {"model": "spread-7b"}},
    }
    config = config_of_nobody(model_settings=own)
    assert set_for_nobody(config, status) == ["misspelt"]
    assert set_for_nobody(config, {}) == ["Served", "loading", "spread-7b", "misspelt"]
    assert set_for_nobody(config, {"cluster": {"head": None}, "engines": None, "models": None})[-1] == "misspelt"


@pytest.mark.anyio
@pytest.mark.parametrize("words", [(), ("--foreground",), ("--once",)])
async def test_beside_a_node_that_ends_it_says_when_to_try_again(
    home: Home, capsys: Capture, words: tuple[str, ...]
) -> None:
    identity.create(home.config.key_file, identity.generate())
    node = FakeNode()
    node.state["ends_in_s"] = 27.3
    async with running(node, home.config):
        ending = await invoke_beside(capsys, "start", *words)
        node.state["ends_in_s"] = None
        well = await invoke_beside(capsys, "start", *words)
    assert (ending.code, well.code) == (1, 1)
    assert "is ending, within 27 s: try again then, or have it end at once with `infernet stop --now`" in ending.err
    assert "this node is running already" in well.complaint


def test_beside_one_that_does_not_listen_any_more_it_is_not_taken_for_running(home: Home, capsys: Capture) -> None:
    identity.create(home.config.key_file, identity.generate())
    with hold_lock(home.config.pid_file):
        outcome = invoke(capsys, "start")
    assert outcome.code == 1
    assert "is starting or ending here" in outcome.complaint


def test_a_node_that_ends_while_it_is_asked_has_ended(home: Home, capsys: Capture) -> None:
    home.config.state_dir.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home.config.socket_path))
        listening.listen()

        def hang_up() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)

        ending = threading.Thread(target=hang_up)
        ending.start()
        outcome = invoke(capsys, "status")
        ending.join(10)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.complaint == f"infernet: the node here has just ended; log: {home.config.log_file}"
