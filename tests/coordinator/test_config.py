"""Settings: which source wins, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.config import Config, ConfigRefused, load


def test_later_sources_win(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("port = 1001\nchats_per_hour = 1\nhost = '10.0.0.1'\n")
    environment = {"INFERNET_COORDINATOR_PORT": "1002", "INFERNET_COORDINATOR_CHATS_PER_HOUR": "2", "OTHER": "x"}
    config = load({"home": str(tmp_path), "port": 1003}, environment)
    assert (config.port, config.chats_per_hour, config.host, config.log_level) == (1003, 2, "10.0.0.1", "info")
    assert config.home_path == tmp_path


def test_the_home_may_come_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("port = 1001\n")
    assert load({}, {"INFERNET_COORDINATOR_HOME": str(tmp_path)}).port == 1001


def test_text_of_the_environment_is_read_as_numbers_lists_and_truth(tmp_path: Path) -> None:
    environment = {
        "INFERNET_COORDINATOR_HOME": str(tmp_path),
        "INFERNET_COORDINATOR_WEB": "false",
        "INFERNET_COORDINATOR_CHAT_GRACE_S": "2.5",
        "INFERNET_COORDINATOR_TRUSTED_PROXIES": "10.0.0.0/8,192.168.1.1",
    }
    config = load({}, environment)
    assert (config.web, config.chat_grace_s, config.trusted_proxies) == (False, 2.5, ("10.0.0.0/8", "192.168.1.1"))


def test_what_a_node_is_told_of_its_coordinator_is_no_setting_of_the_coordinator(tmp_path: Path) -> None:
    environment = {"INFERNET_COORDINATOR_URL": "http://127.0.0.1:8080", "INFERNET_COORDINATOR_KEY": "npub1"}
    assert load({"home": str(tmp_path)}, environment) == Config(home=str(tmp_path))


def test_the_settings_of_a_node_in_the_same_environment_are_not_ours(tmp_path: Path) -> None:
    environment = {"INFERNET_COORDINATOR_URL": "http://x", "INFERNET_COORDINATOR_KEY": "k"}
    assert load({"home": str(tmp_path)}, environment) == Config(home=str(tmp_path))


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    assert load({"home": str(tmp_path)}, {}) == Config(home=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("chat_per_hour = 1", "did you mean chats_per_hour?"),
        ("zzz = 1", "known settings: host, port"),
        ("port = 'eighty'", "Expected `int`"),
        ("port = 70000", "<= 65535"),
        ("chats_per_hour = -1", ">= 0"),
        ("chat_grace_s = 0", "> 0"),
        ("log_level = 'loud'", "log_level is debug, info"),
        ("trusted_proxies = ['everyone']", "write for example 10.0.0.0/8"),
        ("chat_prompt_bytes_max = 10000000", "<="),
        ("port = ", "is not TOML"),
        ("home = 'x'", "use --home"),
        ("\x00", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_what_would_be_right(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigRefused) as refused:
        load({"home": str(tmp_path)}, {})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_wrong_environment_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigRefused, match="environment: Expected `int`"):
        load({"home": str(tmp_path)}, {"INFERNET_COORDINATOR_PORT": "x"})


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigRefused, match="cannot read"):
        load({"home": str(tmp_path)}, {})
