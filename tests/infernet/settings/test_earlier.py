"""infernet/settings/earlier.py: once, whole or not at all, and no secret but the key goes on living."""

from __future__ import annotations

import json
import os
import platform
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infernet import identity
from infernet.config import Config, ConfigError, load, places
from infernet.settings import earlier as earlier_config
from infernet.settings.earlier import TakenOver, find, read, take_over
from protocol.ids import npub
from protocol.records import Role

# The private key 3, whose public key has an even y.
SECRET = "00" * 31 + "03"
PUBLIC = "f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9"
SERVICE_KEY, BEARER, CLOUD = "service-role-key-1", "bearer-token-2", "cloud-key-3"


def document(**changes: Any) -> dict[str, Any]:
    """A file as the earlier program wrote it."""
    return {
        "controlPlane": {"url": "https://infernet.example"},
        "node": {
            "id": "6f1c",
            "nodeId": "provider-35372324",
            "role": "provider",
            "name": "alice@laptop:35372324",
            "publicKey": PUBLIC,
            "privateKey": SECRET,
            "address": "203.0.113.7",
            "port": 46337,
        },
        "engine": {"backend": "ollama", "ollamaHost": "http://localhost:11434", "model": "qwen2.5:7b"},
        "auth": {"userId": "1", "email": "alice@example.org", "bearerToken": BEARER},
        "cloudCredentials": {"runpod": CLOUD},
        "supabase": {"url": "https://x.supabase.co", "serviceRoleKey": SERVICE_KEY},
    } | changes


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("INFERNET_HOME", str(tmp_path))
    (tmp_path / "config").mkdir(mode=0o700)
    return places()


def write(here: Config, content: object) -> Path:
    path = here.config_dir / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(0o600)
    return path


def taken(here: Config) -> TakenOver:
    done = take_over(here)
    assert done is not None
    return done


def everything(folder: Path) -> bytes:
    """All that lies in a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_all_that_a_node_has_is_taken_over(here: Config) -> None:
    path = write(here, document())
    done = taken(here)
    assert identity.load(here.key_file).node.hex() == PUBLIC
    loaded = load()
    config = loaded.config
    assert (config.role, config.name, config.address, config.p2p_port) == (Role.PROVIDER, "", "203.0.113.7", 46337)
    assert (config.engine, config.engine_url, config.engine_models) == (
        "openai",
        "http://localhost:11434",
        ("qwen2.5:7b",),
    )
    # Nobody knows whose key it has: it is not used before that was looked at.
    assert config.coordinator_url is None
    assert "# infernet init --url https://infernet.example\n" in here.config_file.read_text()
    assert not path.exists()
    assert npub(identity.load(here.key_file).node) in done.text
    for place in (
        "supabase.serviceRoleKey",
        "auth.bearerToken",
        "cloudCredentials",
        "node.name (it told user and host)",
    ):
        assert place in done.text
    assert "\n" not in done.text
    assert loaded.warnings == ()


def test_no_secret_and_no_name_of_a_host_is_written_anywhere(here: Config) -> None:
    write(here, document())
    done = taken(here)
    left = everything(here.config_dir)
    for secret in (SERVICE_KEY, BEARER, CLOUD, "alice", "laptop"):
        assert secret.encode() not in left
        assert secret not in done.text
    assert SECRET not in done.text
    assert left.count(SECRET.encode()) == 1
    assert SECRET.encode() not in done.left.read_bytes()
    assert {stat.S_IMODE(path.stat().st_mode) for path in here.config_dir.iterdir()} == {0o600}
    assert sorted(path.name for path in here.config_dir.iterdir()) == [
        "config.json.old",
        "config.toml",
        "identity.key",
    ]


def test_it_is_done_once(here: Config) -> None:
    write(here, document())
    taken(here)
    before = everything(here.config_dir)
    assert take_over(here) is None
    assert everything(here.config_dir) == before


@pytest.mark.parametrize("broken", ["save", "write_private", "replace_whole", "_overwrite"])
def test_whatever_breaks_nothing_is_lost_and_the_next_try_goes_on(
    here: Config, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    content = document() if broken != "save" else document(controlPlane={}, supabase={})
    path = write(here, content)

    def fail(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device") if broken in ("replace_whole", "_overwrite") else ConfigError("no")

    with monkeypatch.context() as patch:
        patch.setattr(earlier_config, broken, fail)
        with pytest.raises(ConfigError):
            take_over(here)
    assert json.loads(path.read_bytes()) == content
    taken(here)
    assert identity.load(here.key_file).node.hex() == PUBLIC
    assert load().config.address == "203.0.113.7"
    assert not path.exists()


@pytest.mark.parametrize("has_file", [False, True])
def test_a_node_that_has_a_key_of_its_own_is_left_alone(here: Config, has_file: bool) -> None:
    path = write(here, document())
    identity.create(here.key_file, identity.generate())
    if has_file:
        here.config_file.write_text("schema_version = 1\n")
    before = everything(here.config_dir)
    assert take_over(here) is None
    assert everything(here.config_dir) == before
    assert path.exists()


def test_settings_of_our_own_are_never_touched(here: Config) -> None:
    here.config_file.write_text('schema_version = 1\nrole = "client"\n')
    write(here, document())
    assert take_over(here) is None
    assert not here.key_file.exists()


def test_a_broken_file_of_the_past_does_not_stop_a_node_of_today(here: Config) -> None:
    here.config_file.write_text("schema_version = 1\n")
    identity.create(here.key_file, identity.generate())
    write(here, b"{")
    assert take_over(here) is None


def changed(part: str, **changes: Any) -> dict[str, Any]:
    """The usual file with some fields of one part changed."""
    usual = document()
    return document(**{part: usual[part] | changes})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "is not JSON (line 1)"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 50_000, "is not JSON"),
        (b"[]", "holds no settings"),
        (b"1" * 10_000, "is not JSON"),
        (b" " * 70_000, "has more than 65536 bytes"),
        (document(node=[]), "node must be an object"),
        (document(engine="ollama"), "engine must be an object"),
        (changed("node", privateKey="secret"), "node.privateKey is no secret key"),
        (changed("node", privateKey=3), "node.privateKey is no secret key"),
        (changed("node", privateKey="00" * 32), "node.privateKey is no secret key"),
        (changed("node", publicKey="00" * 32), "node.publicKey does not belong"),
        (changed("node", publicKey=7), "node.publicKey does not belong"),
    ],
)
def test_a_bad_file_is_told_in_one_line_and_left_as_it_is(here: Config, content: Any, complaint: str) -> None:
    path = write(here, content)
    before = path.read_bytes()
    with pytest.raises(ConfigError) as caught:
        take_over(here)
    assert complaint in str(caught.value)
    assert "nothing was changed" in str(caught.value)
    assert len(str(caught.value)) < 600
    assert path.read_bytes() == before
    assert [each.name for each in here.config_dir.iterdir()] == ["config.json"]


def test_a_file_that_others_can_read_is_refused(here: Config) -> None:
    write(here, document()).chmod(0o644)
    with pytest.raises(ConfigError, match="has mode 0644, so others may have read the key in it"):
        take_over(here)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_refused_at_once(here: Config, kind: str, tmp_path: Path) -> None:
    path = here.config_dir / "config.json"
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(b"{}")
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    else:
        path.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="nothing was changed"):
        take_over(here)


@pytest.mark.parametrize(
    ("content", "setting", "value"),
    [
        (changed("node", name="Kitchen"), "name", "Kitchen"),
        (changed("node", name="bob@host"), "name", ""),
        (changed("node", name=platform.node()), "name", ""),
        (changed("node", name="a\nb"), "name", ""),
        (changed("node", role="aggregator"), "role", Role.AGGREGATOR),
        (changed("node", role="king"), "role", Role.PROVIDER),
        (changed("node", port=5000), "p2p_port", 5000),
        (changed("node", port="no"), "p2p_port", 46337),
        (changed("node", address="not an address"), "address", None),
        # What somebody hides stays hidden.
        (changed("node", address=None, port=None), "advertise", False),
        (changed("node", address=None), "advertise", True),
        (changed("engine", backend="vllm"), "engine", "openai"),
        (changed("engine", backend="vllm"), "engine_url", None),
        (changed("engine", backend="stub"), "engine", "llama"),
        (changed("engine", ollamaHost=None), "engine_url", "http://127.0.0.1:11434"),
        (changed("engine", ollamaHost="http://user:pass@host"), "engine_url", None),
        (changed("node", role="client"), "engine", "none"),
    ],
)
def test_each_setting_means_here_what_it_meant(here: Config, content: Any, setting: str, value: object) -> None:
    write(here, content)
    done = taken(here)
    assert getattr(load().config, setting) == value
    assert "pass" not in everything(here.config_dir).decode()
    assert "user:pass" not in done.text


@pytest.mark.parametrize(
    ("content", "url"),
    [
        (document(), "https://infernet.example"),
        (document(controlPlane=None), "https://x.supabase.co"),
        (document(controlPlane={"url": "ftp://x"}), None),
        (document(controlPlane={"url": "https://x\n[engine]"}), None),
        (document(controlPlane=None, supabase=None), None),
    ],
)
def test_the_coordinator_is_noted_and_cannot_write_settings(here: Config, content: Any, url: str | None) -> None:
    write(here, content)
    taken(here)
    assert (f"# infernet init --url {url}\n" in here.config_file.read_text()) is (url is not None)
    assert load().config.coordinator_url is None
    assert load().config.engine == "openai"


def test_without_a_key_the_settings_are_taken_all_the_same(here: Config) -> None:
    write(here, changed("node", privateKey=None, publicKey=None))
    taken(here)
    assert not here.key_file.exists()
    assert load().config.address == "203.0.113.7"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["node", "engine", "controlPlane", "supabase", "auth", "cloudCredentials", "else"]),
    st.sampled_from(
        ["role", "name", "privateKey", "address", "port", "backend", "model", "ollamaHost", "url", "serviceRoleKey"]
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_it_it_is_read_or_refused(here: Config, value: Any, part: str, name: str) -> None:
    for content in (document(**{part: value}), document(**{part: {**document().get(part, {}), name: value}})):
        path = write(here, content)
        try:
            earlier = read(path)
        except ConfigError:
            continue
        assert all("\n" not in each for each in (*earlier.taken, *earlier.dropped))


def test_it_is_looked_for_where_the_earlier_program_kept_it(tmp_path: Path) -> None:
    (tmp_path / "xdg" / "infernet").mkdir(parents=True)
    path = tmp_path / "xdg" / "infernet" / "config.json"
    path.touch()
    assert find({"XDG_CONFIG_HOME": str(tmp_path / "xdg")}) == path
    # Another home has another past.
    assert find({"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "INFERNET_HOME": str(tmp_path / "home")}) is None
