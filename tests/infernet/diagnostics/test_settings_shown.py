"""infernet/diagnostics/settings_shown.py: of a setting, its kind; of one that is new, nothing."""

from __future__ import annotations

import pytest

from infernet.config import load
from infernet.diagnostics import settings_shown
from infernet.settings.table import SETTINGS
from tests.helpers_secrets import ALICES_HOME


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("INFERNET_NAME", "alice", "set"),
        ("INFERNET_ROLE", "client", "client"),
        ("INFERNET_ADDRESS", "alice.example", "a name"),
        ("INFERNET_ADDRESS", "8.8.8.8", "a public IPv4 address"),
        (
            "INFERNET_LISTEN_HOSTS",
            "127.0.0.1,::,10.0.0.1,fe80::1",
            "this machine, all IPv6, a private IPv4 address, a private IPv6 address",
        ),
        ("INFERNET_MODEL", f"{ALICES_HOME}/m.gguf", "another file"),
        ("INFERNET_MODEL", "smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("INFERNET_PRICE_OUT_USD", "0.5", "set"),
        ("INFERNET_PRICE_OUT_USD", "0", "not set"),
        ("INFERNET_ALLOW", "ab" * 32, "1"),
        ("INFERNET_SLOTS", "3", "3"),
        ("INFERNET_MDNS", "off", "no"),
    ],
)
def test_values(variable: str, value: str, shown: str) -> None:
    name = variable.removeprefix("INFERNET_").lower()
    row = settings_shown.shown(load(environ={"INFERNET_HOME": "/nonexistent", variable: value}))[name]
    assert row == {"value": shown, "from": "environment"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://alice.example:8443", "https, a name"),
        ("http://127.0.0.1:8080", "http, this machine"),
        ("http://localhost", "http, this machine"),
        ("http://[2001:4860:4860::8888]", "http, a public IPv6 address"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    environ = {"INFERNET_HOME": "/nonexistent", "INFERNET_COORDINATOR_URL": url, "INFERNET_COORDINATOR_KEY": "ab" * 32}
    rows = settings_shown.shown(load(environ=environ))
    assert (rows["coordinator_url"]["value"], rows["coordinator_key"]["value"]) == (shown, "set")


def test_a_setting_that_nobody_thought_of_shows_as_set_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {setting.name for setting in SETTINGS} - set(settings_shown._SHOWN) >= {
        "name", "coordinator_key", "price_in_usd", "price_out_usd", "price_job_usd", "spend_usd_max",
    }  # fmt: skip
    monkeypatch.delitem(settings_shown._SHOWN, "role")
    rows = settings_shown.shown(load(environ={"INFERNET_HOME": "/nonexistent"}))
    assert rows["role"]["value"] == "set"
