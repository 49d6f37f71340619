"""infernet/config.py: later sources win, bad values are named, nothing is lost or half-written."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest

from infernet import config as configuration
from infernet.config import Config, ConfigError, LoadedConfig, load, save
from infernet.host.files import FilesError
from infernet.settings.table import BY_NAME, SETTINGS
from protocol.ids import node_id, npub, peer_id
from protocol.records import Role

NODE = node_id(bytes.fromhex("f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "config").mkdir(mode=0o700)
    return tmp_path


def loaded(home: Path, flags: dict[str, object] | None = None, **environ: str) -> LoadedConfig:
    """The configuration of a home, with some variables set."""
    return load(flags, {"INFERNET_HOME": str(home), **environ})


def write(home: Path, text: str) -> Path:
    path = home / "config" / "config.toml"
    path.write_text(text, "utf-8")
    return path


def test_without_any_source_the_defaults_hold(home: Path) -> None:
    result = loaded(home)
    config = result.config
    assert not result.has_file
    assert set(result.origins.values()) == {"default"}
    assert config == Config(config_dir=home / "config", state_dir=home / "state", data_dir=home / "data")
    assert (config.p2p_port, config.free_for, config.role) == (46337, "known", Role.PROVIDER)


def test_later_sources_win_and_each_value_knows_where_it_came_from(home: Path) -> None:
    write(home, 'schema_version = 1\nslots = 2\nthreads = 2\nmodel = "from-file"\n')
    result = loaded(home, {"model": "from-flag", "name": None}, INFERNET_THREADS="3", INFERNET_MODEL="from-environment")
    assert (result.config.slots, result.config.threads, result.config.model) == (2, 3, "from-flag")
    assert [result.origins[name] for name in ("slots", "threads", "model", "name")] == [
        "file",
        "environment",
        "flag",
        "default",
    ]


def test_an_empty_variable_is_as_if_it_were_not_set(home: Path) -> None:
    assert loaded(home, INFERNET_P2P_PORT="").origins["p2p_port"] == "default"


def test_every_setting_is_a_field_and_every_field_but_the_folders_is_a_setting(home: Path) -> None:
    fields = set(Config.__dataclass_fields__) - {"config_dir", "state_dir", "data_dir", "schema_version"}
    assert fields == set(BY_NAME)


def test_a_setting_has_its_old_name_in_the_environment_too(home: Path) -> None:
    old = {"INFERNET_CONTROL_PLANE_URL": "http://127.0.0.1:8080", "INFERNET_NODE_NAME": "old"}
    result = loaded(home, {"coordinator_key": NODE.hex()}, **old)
    assert (result.config.coordinator_url, result.config.name) == ("http://127.0.0.1:8080", "old")
    assert (result.origins["name"], result.warnings) == ("environment", ())
    assert loaded(home, INFERNET_NODE_NAME="old", INFERNET_NAME="new").config.name == "new"
    with pytest.raises(ConfigError, match=r"^INFERNET_CONTROL_PLANE_URL must be like"):
        loaded(home, INFERNET_CONTROL_PLANE_URL="ftp://x")


def test_text_from_the_environment_gets_its_type(home: Path) -> None:
    result = loaded(
        home,
        INFERNET_ROLE="Aggregator",
        INFERNET_P2P_ENABLED="no",
        INFERNET_LISTEN_HOSTS="127.0.0.1, ::1",
        INFERNET_ALLOW=f"{npub(NODE)} {NODE.hex()},{peer_id(NODE)}",
        INFERNET_PEERS=f"/ip4/127.0.0.1/tcp/46337/p2p/{peer_id(NODE)}",
        INFERNET_COORDINATOR_URL="http://127.0.0.1:8080/",
        INFERNET_COORDINATOR_KEY=npub(NODE),
        INFERNET_ADDRESS="[2001:db8::1]",
    ).config
    assert result.role is Role.AGGREGATOR
    assert result.p2p_enabled is False
    assert result.listen_hosts == ("127.0.0.1", "::1")
    assert result.allow == (NODE,)
    assert len(result.peers) == 1
    assert (result.coordinator_url, result.coordinator_key) == ("http://127.0.0.1:8080", NODE)
    assert result.address == "2001:db8::1"


@pytest.mark.parametrize(
    ("key", "bad", "allowed"),
    [
        ("role", "king", "one of provider, aggregator, client"),
        ("role", 1, "one of provider"),
        ("name", "", "1 to 48 printable"),
        ("name", "x" * 49, "1 to 48 printable"),
        ("name", "a\x1b[31mb", "1 to 48 printable"),
        ("coordinator_url", "ftp://x", "must be like https://"),
        ("coordinator_url", "http://", "must be like https://"),
        ("coordinator_url", "http://user:pw@host", "must be like https://"),
        ("coordinator_url", "http://host:99999", "must be like https://"),
        ("coordinator_url", "http://host/path", "without a path"),
        ("coordinator_url", "http://a host", "must be like https://"),
        ("coordinator_url", "http://host;id", "must be like https://"),
        ("coordinator_url", "http://host$(id)", "must be like https://"),
        ("engine_url", "http://host`id`/v1", "must be like http://"),
        ("coordinator_key", "npub1xyz", "must be a public key"),
        ("p2p_enabled", "maybe", "true or false"),
        ("p2p_enabled", 1, "true or false"),
        ("p2p_port", 65536, "from 0 to 65535"),
        ("p2p_port", -1, "from 0 to 65535"),
        ("p2p_port", True, "from 0 to 65535"),
        ("p2p_port", "46337 ", "from 0 to 65535"),
        ("p2p_port", 4.5, "from 0 to 65535"),
        ("listen_hosts", ["localhost"], "IP addresses of this machine"),
        ("listen_hosts", 7, "must be a list"),
        ("address", "host:46337", "without port"),
        ("address", "999.1.1.1", "without port"),
        ("peers", ["/ip4/1.2.3.4/tcp/1"], "/p2p/ part"),
        ("peers", ["1.2.3.4:46337"], "must be like /ip4/"),
        ("free_for", "some", "one of nobody, known, all"),
        ("allow", ["friend"], "must be a public key"),
        ("engine", "magic", "one of llama, exllamav2, exllamav3, openai, cluster, none"),
        ("model", " ", "the path of a GGUF file"),
        ("engine_url", "localhost:11434", "like http://127.0.0.1:11434"),
        ("engine_models", [""], "names of models"),
        ("context_tokens", 10, "of tokens from 128"),
        ("slots", 0, "from 1 to 256"),
        ("threads", 0, "from 1 to 1024"),
        ("log_level", "loud", "one of debug, info, warning, error"),
        ("log_format", "xml", "one of auto, text, json"),
    ],
)
def test_a_bad_value_is_named_with_its_file_and_what_is_allowed(home: Path, key: str, bad: Any, allowed: str) -> None:
    path = configuration.directories({"INFERNET_HOME": str(home)})[0] / "config.toml"
    with pytest.raises(ConfigError) as refused:
        configuration._Sources().read(BY_NAME[key], bad, "file", f"{path}: {key}")
    message = str(refused.value)
    assert message.startswith(f"{path}: {key} must be")
    assert allowed in message
    assert "\n" not in message


def test_a_bad_variable_and_a_bad_flag_are_named_as_such(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"^INFERNET_SLOTS must be a whole number"):
        loaded(home, INFERNET_SLOTS="many")
    with pytest.raises(ConfigError, match=r"^--p2p-port must be a whole number"):
        loaded(home, {"p2p_port": "x"})


def test_a_secret_in_the_wrong_place_is_not_repeated(home: Path) -> None:
    secret = "nsec1" + "q" * 58
    with pytest.raises(ConfigError) as refused:
        loaded(home, INFERNET_COORDINATOR_KEY=secret)
    assert secret not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"slots = ", "is not TOML"),
        (b"name = '\xff\xfe'", "is not UTF-8 text (line 1)"),
        (b"schema_version = 2\n", "newer infernet (schema 2, this one reads up to 1): upgrade"),
        (b"schema_version = 'one'\n", "schema_version must be 1"),
        (b"schema_version = 0\n", "schema_version must be 1"),
        (b"slots = " + b"1" * 5000, "has a number that is too long"),
        (b"models = " + b"[" * 5000, "is nested too deeply"),
        (b"gpu_split = [1" + b"0" * 400 + b"]", "gpu_split must be auto, or GB for each card"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(home: Path, content: bytes, complaint: str) -> None:
    path = home / "config" / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        loaded(home)
    assert str(path) in str(refused.value)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == content


def test_unknown_settings_are_warned_about_and_survive_a_save(home: Path) -> None:
    path = write(home, "# my own words\nslotz = 3\nslots = 2 # two\n\n[future]\nx = 1\n")
    result = loaded(home)
    assert len(result.warnings) == 2
    assert "unknown setting 'slotz' is kept" in result.warnings[0]
    assert "did you mean slots?" in result.warnings[0]
    save(path, {"slots": 5}, keep=True)
    text = path.read_text("utf-8")
    assert "# my own words" in text
    assert "# two" in text
    assert tomllib.loads(text) == {"slotz": 3, "slots": 5, "schema_version": 1, "future": {"x": 1}}


def test_a_misspelt_variable_is_warned_about(home: Path) -> None:
    result = loaded(
        home, INFERNET_P2PPORT="1", INFERNET_DEBUG="1", INFERNET_COORDINATOR_PORT="1", INFERNET_ENGINE_KEY="k"
    )
    assert result.warnings == ("unknown variable INFERNET_P2PPORT has no effect; did you mean INFERNET_P2P_PORT?",)


@pytest.mark.parametrize(
    ("url", "is_warned"),
    [
        ("http://gpu.example:8000", True),
        ("http://8.8.8.8", True),
        ("https://gpu.example/v1", False),
        ("http://127.0.0.1:11434", False),
        ("http://192.168.1.7:8000", False),
        ("http://localhost:8000", False),
    ],
)
def test_prompts_that_anybody_could_read_on_the_way_are_warned_about(home: Path, url: str, is_warned: bool) -> None:
    warnings = loaded(home, INFERNET_ENGINE_URL=url).warnings
    assert any("use https" in warning for warning in warnings) is is_warned


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    home = tmp_path / "new"
    path = home / "config" / "config.toml"
    values = {
        "role": Role.CLIENT,
        "name": "kitchen",
        "coordinator_url": "https://c.example",
        "coordinator_key": NODE,
        "p2p_port": 5000,
        "allow": (NODE,),
        "threads": None,
    }
    save(path, values, keep=False)
    config = loaded(home).config
    assert {name: getattr(config, name) for name in values} == values
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["config.toml"]


def test_a_save_that_fails_leaves_the_old_file_and_no_draft(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(home, "slots = 2\n")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FilesError, match=r"cannot write .*config\.toml \(no space left on device\)"):
        save(path, {"slots": 3}, keep=True)
    assert path.read_text() == "slots = 2\n"
    assert os.listdir(path.parent) == ["config.toml"]


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FilesError, match=r"cannot write .* INFERNET_HOME"):
        save(tmp_path / "file" / "config" / "config.toml", {}, keep=False)


def test_a_client_opens_no_port_and_runs_no_engine(home: Path) -> None:
    config = loaded(home, INFERNET_ROLE="client").config
    assert (config.advertise, config.listen_hosts, config.engine) == (False, (), "none")


def test_whoever_does_not_advertise_does_not_listen_whatever_else_is_set(home: Path) -> None:
    write(home, "advertise = false\n")
    assert loaded(home).config.listen_hosts == ()
    result = loaded(home, INFERNET_LISTEN_HOSTS="127.0.0.1")
    assert result.config.listen_hosts == ()
    assert result.warnings == ("listen_hosts has no effect: with advertise off this node does not listen",)


def test_a_client_listens_where_it_is_told_to_and_tells_nobody(home: Path) -> None:
    result = loaded(home, INFERNET_ROLE="client", INFERNET_LISTEN_HOSTS="127.0.0.1")
    assert (result.config.listen_hosts, result.config.advertise) == (("127.0.0.1",), False)
    assert result.warnings == ()


def test_a_coordinator_without_its_key_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="without coordinator_key"):
        loaded(home, INFERNET_COORDINATOR_URL="http://127.0.0.1:8080")


def test_the_name_tells_of_the_role_and_the_key_and_not_of_the_host(home: Path) -> None:
    config = loaded(home).config
    assert config.name == ""
    assert config.named_after(NODE).name == "provider-f9308a01"
    assert loaded(home, INFERNET_NAME="mine").config.named_after(NODE).name == "mine"


def test_the_socket_of_a_deep_home_moves_to_a_short_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(Path("/h")).config.socket_path == Path("/h/state/daemon.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    deep = tmp_path / ("d" * 100)
    paths = {loaded(deep / name).config.socket_path for name in ("one", "two")}
    assert len(paths) == 2
    assert all(len(os.fsencode(path)) < 100 for path in paths)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert loaded(deep).config.socket_path.parent == Path("/run/user/1000/infernet")


def test_without_a_home_the_xdg_folders_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("CONFIG", "STATE", "DATA"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", f"/x/{kind.lower()}")
    config = load(environ={}).config
    assert (config.config_dir, config.state_dir, config.data_dir) == (
        Path("/x/config/infernet"),
        Path("/x/state/infernet"),
        Path("/x/data/infernet"),
    )


def test_an_empty_home_is_refused() -> None:
    with pytest.raises(ConfigError, match="INFERNET_HOME is empty"):
        load(environ={"INFERNET_HOME": " "})


def test_all_settings_can_be_shown_as_json(home: Path) -> None:
    plain = loaded(home, INFERNET_ALLOW=NODE.hex()).plain()
    assert list(plain) == [setting.name for setting in SETTINGS]
    assert (plain["role"], plain["allow"], plain["threads"]) == ("provider", [NODE.hex()], None)


@pytest.mark.parametrize(
    ("settings", "is_refused"),
    [
        ("metrics_port = 5000\np2p_port = 5000", True),
        ("metrics_port = 5000\np2p_port = 6000\nbind_port = 5000", True),
        ("metrics_port = 5000\np2p_port = 5000\nbind_port = 6000", False),
        ("metrics_port = 5000\np2p_port = 5000\np2p_enabled = false", False),
        ("metrics_port = 0\np2p_port = 0", False),
    ],
)
def test_metrics_and_peers_cannot_have_one_port(home: Path, settings: str, is_refused: bool) -> None:
    write(home, settings)
    if is_refused:
        with pytest.raises(ConfigError, match="are both 5000: choose another with --metrics-port"):
            loaded(home)
    else:
        loaded(home)


@pytest.mark.parametrize(
    ("settings", "is_refused"),
    [
        ('metrics_port = 5000\nmetrics_host = "0.0.0.0"', True),
        ('metrics_port = 5000\nmetrics_host = "192.168.1.20"', True),
        ('metrics_port = 5000\nmetrics_host = "::"', True),
        ('metrics_port = 5000\nmetrics_host = "192.168.1.20"\nmetrics_token_file = "/token"', False),
        ('metrics_port = 5000\nmetrics_host = "127.0.0.2"', False),
        ('metrics_port = 5000\nmetrics_host = "::1"', False),
        # No port is opened.
        ('metrics_host = "0.0.0.0"', False),
    ],
)
def test_metrics_that_others_can_reach_need_a_token(home: Path, settings: str, is_refused: bool) -> None:
    write(home, settings)
    if is_refused:
        with pytest.raises(
            ConfigError, match=r"no token is set .* name a file that holds one with --metrics-token-file"
        ):
            loaded(home)
    else:
        loaded(home)
