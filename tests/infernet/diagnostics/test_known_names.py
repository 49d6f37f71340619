"""infernet/diagnostics/known_names.py: what of this machine and this node names somebody, and what is everybody's."""

from __future__ import annotations

import pwd
import socket

import pytest

from infernet.config import load
from infernet.diagnostics.known_names import known_names

NOWHERE = {"INFERNET_HOME": "/nonexistent/of/mine"}


@pytest.fixture(autouse=True)
def somebodys_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.struct_passwd(("alice", "x", 1000, 1000, "Alice de Smith,Room 7,555", "/x", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)
    monkeypatch.setattr(socket, "gethostname", lambda: "falcon.corp.example")


def test_users_and_hosts_whole_and_in_parts() -> None:
    names = known_names({"SUDO_USER": "bob", "HOSTNAME": "kite"}, None)
    assert {text for text, kind in names.items() if kind == "user"} == {
        "alice",
        "Alice de Smith",
        "Alice",
        "Smith",
        "bob",
    }
    assert {text for text, kind in names.items() if kind == "host"} == {"falcon.corp.example", "falcon", "kite"}


def test_what_is_everybodys_stays() -> None:
    names = known_names({"USER": "root", "HOME": "/root", "HOSTNAME": "localhost", "LOGNAME": "infernet"}, None)
    assert not {"root", "/root", "localhost", "infernet"} & set(names)


def test_values_of_variables_that_sound_secret() -> None:
    names = known_names(
        {"HF_TOKEN": "abc longer-word", "TOKENIZERS_PARALLELISM": "false", "PATH": "/bin", "X": "y"}, None
    )
    assert {text for text, kind in names.items() if kind == "secret"} == {"abc longer-word", "longer-word"}


def test_what_the_configuration_names() -> None:
    environ = NOWHERE | {
        "INFERNET_NAME": "my gpu",
        "INFERNET_ADDRESS": "gpu.example",
        "INFERNET_COORDINATOR_URL": "https://c.example:8443",
        "INFERNET_COORDINATOR_KEY": "ab" * 32,
        "INFERNET_MODEL": "/models/our-secret.gguf",
        "INFERNET_MODEL_SETTINGS": '{"our-secret": {"aliases": ["our-pet"]}}',
    }
    names = known_names(environ, load(environ=environ).config)
    assert {text: kind for text, kind in names.items() if kind in ("name", "model")} == {
        "my gpu": "name",
        "our-secret.gguf": "model",
        "our-secret": "model",
        "our-pet": "model",
    }
    assert names["gpu.example"] == names["c.example"] == "host"
    assert names["/models/our-secret.gguf"] == names["/nonexistent/of/mine"] == "path"


def test_a_user_that_the_system_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> pwd.struct_passwd:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert known_names({"USER": "carol"}, None)["carol"] == "user"
