"""The node's configuration: where its files are, what was set, and where each value came from.

Later ones win: the default, `config.toml`, the environment (`INFERNET_...`), flags. `INFERNET_HOME` moves all files
below one folder, into `config`, `state` and `data`; otherwise they lie where the XDG directories say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from infernet.host.files import FilesError, make_private_directory, reason_of, way_out, write_private
from infernet.host.turns import one_at_a_time
from infernet.settings.environment import ENGINE_KEY_VARIABLE, place_of_vendor, without_effect
from infernet.settings.models import ModelSettings
from infernet.settings.readers import NO_MONEY, Dollars, as_plain
from infernet.settings.table import BY_NAME, SETTINGS, Setting
from protocol.constants import P2P_PORT
from protocol.ids import NodeId, short
from protocol.locality import ip_of
from protocol.networks import is_globally_routable, read_ip
from protocol.records import Role

SCHEMA_VERSION: Final = 1
FILE_NAME: Final = "config.toml"
# `sun_path` has 108 bytes on Linux and 104 on macOS, the final zero included.
SOCKET_PATH_BYTES_MAX: Final = 99
STARTER_MODEL: Final = "smollm2-135m-instruct"


class ConfigError(FilesError):
    """A file or a value cannot be used; one line: where, what, what is allowed."""


class FlagError(ConfigError):
    """A flag has a value that it does not take."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings, and the three folders of the node. Immutable; made by `load`."""

    config_dir: Path
    state_dir: Path
    data_dir: Path

    schema_version: int = SCHEMA_VERSION
    role: Role = Role.PROVIDER
    #: Empty until the key is known: see `named_after`.
    name: str = ""
    coordinator_url: str | None = None
    coordinator_key: NodeId | None = None
    p2p_enabled: bool = True
    p2p_port: int = P2P_PORT
    #: See `listen_port`.
    bind_port: int | None = None
    listen_hosts: tuple[str, ...] = ("0.0.0.0", "::")  # noqa: S104 - a peer-to-peer port is for everybody
    address: str | None = None
    advertise: bool = True
    mdns: bool = True
    allow_private: bool = False
    #: `socks5h://address:port`; see infernet/proxy.py.
    proxy: str | None = None
    proxy_login_file: str | None = None
    relay: str = "auto"
    forward: bool = False
    peers: tuple[str, ...] = ()
    dht: bool = False
    dht_port: int | None = None
    dht_peers: tuple[str, ...] = ()
    free_for: str = "known"
    allow: tuple[NodeId, ...] = ()
    #: For a million tokens of prompt and of answer, and for each job.
    price_in_usd: Dollars = NO_MONEY
    price_out_usd: Dollars = NO_MONEY
    price_job_usd: Dollars = NO_MONEY
    #: What one answer may cost this node.
    spend_usd_max: Dollars = NO_MONEY
    reports: bool = True
    engine: str = "llama"
    engine_url: str | None = None
    engine_models: tuple[str, ...] = ()
    engine_key_file: str | None = None
    #: GB of each card; empty: one after the other is filled.
    gpu_split: tuple[float, ...] = ()
    tensor_parallel: bool = False
    cache: str = "fp16"
    model: str = STARTER_MODEL
    models: tuple[str, ...] = ()
    model_settings: tuple[ModelSettings, ...] = ()
    context_tokens: int = 2048
    slots: int = 4
    threads: int | None = None
    confine: bool = True
    #: Windows as `infernet/settings/hours.py` writes them; none: at any time.
    serve_hours: tuple[str, ...] = ()
    serve_zone: str | None = None
    cluster_head: NodeId | None = None
    #: Public keys or multiaddrs, as text.
    cluster_workers: tuple[str, ...] = ()
    cluster_split: tuple[int, ...] = ()
    llama_server: str | None = None
    log_level: str = "info"
    log_format: str = "auto"
    #: 0: none is opened.
    metrics_port: int = 0
    metrics_host: str = "127.0.0.1"
    metrics_token_file: str | None = None

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that run models here, in the order in which they are asked."""
        return tuple(word for word in self.engine.split(",") if word != "none")

    @property
    def llama_models(self) -> tuple[str, ...]:
        """The models that the embedded engine is to serve; none where it is not used."""
        return (self.models or (self.model,)) if "llama" in self.engines else ()

    @property
    def config_file(self) -> Path:
        return self.config_dir / FILE_NAME

    @property
    def key_file(self) -> Path:
        return self.config_dir / "identity.key"

    @property
    def listen_port(self) -> int:
        """The port of this machine; others may be told another one, `p2p_port`."""
        return self.p2p_port if self.bind_port is None else self.bind_port

    @property
    def pid_file(self) -> Path:
        """Holds the process id of the running node, which keeps it locked."""
        return self.state_dir / "daemon.pid"

    @property
    def log_file(self) -> Path:
        return self.state_dir / "daemon.log"

    @property
    def store_file(self) -> Path:
        return self.state_dir / "node.sqlite3"

    @property
    def money_file(self) -> Path:
        """Marks, vouchers and claims; nothing in it can be had again from anywhere else."""
        return self.state_dir / "money.sqlite3"

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "models"

    @property
    def socket_path(self) -> Path:
        """Where the running node listens for this user's commands; short enough for a Unix socket."""
        path = self.state_dir / "daemon.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            return path
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return _short_runtime_dir() / f"{digest}.sock"

    def named_after(self, node: NodeId) -> Config:
        """This configuration with a name: the one that was set, or role and key, never user or host."""
        if self.name:
            return self
        return dataclasses.replace(self, name=default_name(self.role, node))


def _short_runtime_dir() -> Path:
    # Whoever listens or connects there checks that the folder is this user's alone.
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and len(os.fsencode(runtime)) <= 60:
        return Path(runtime) / "infernet"
    return Path("/tmp") / f"infernet-{os.getuid()}"  # noqa: S108 - see above


def default_name(role: Role, node: NodeId) -> str:
    """What a node is called that was given no name."""
    return f"{role.name.lower()}-{short(node)}"


# Later ones win.
_PLACES: Final = ("default", "file", "environment", "flag")


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration, the source of each of its values, and what was odd about the sources."""

    config: Config
    #: Setting name -> "default", "file", "environment" or "flag".
    origins: Mapping[str, str]
    warnings: tuple[str, ...]
    has_file: bool

    def plain(self) -> dict[str, Any]:
        """All settings as JSON holds them."""
        return {setting.name: as_plain(getattr(self.config, setting.name)) for setting in SETTINGS}


@dataclass
class _Sources:
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def read(self, setting: Setting, value: object, origin: str, place: str) -> None:
        try:
            self.values[setting.name] = setting.read(value)
        except ValueError as error:
            # The value itself is not repeated: it may be a key that was put in the wrong place.
            kind = FlagError if origin == "flag" else ConfigError
            raise kind(f"{place} {error}") from None
        self.origins[setting.name] = origin


def directories(environ: Mapping[str, str] = os.environ) -> tuple[Path, Path, Path]:
    """The folders for configuration, state and data. Raises ConfigError."""
    home = environ.get("INFERNET_HOME")
    if home is not None:
        if not home.strip():
            raise ConfigError("INFERNET_HOME is empty: set it to a folder, or unset it")
        base = Path(home).expanduser().absolute()
        return base / "config", base / "state", base / "data"
    import platformdirs

    return (
        platformdirs.user_config_path("infernet", appauthor=False),
        platformdirs.user_state_path("infernet", appauthor=False),
        platformdirs.user_data_path("infernet", appauthor=False),
    )


def places(environ: Mapping[str, str] = os.environ) -> Config:
    """Where the files are, and no setting: for what must work even when the file is broken. Raises ConfigError."""
    config_dir, state_dir, data_dir = directories(environ)
    return Config(config_dir=config_dir, state_dir=state_dir, data_dir=data_dir)


def load(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    overwrites: Collection[str] = (),
) -> LoadedConfig:
    """Everything that is set, with its sources. `flags` holds those that were given, by setting name.

    What the file has for settings that the caller `overwrites` in it is not looked at: it may be what has to be mended.
    Raises ConfigError.
    """
    config_dir, state_dir, data_dir = directories(environ)
    path = config_dir / FILE_NAME
    document = read_file(path)
    sources = _Sources()
    stays = {name: value for name, value in (document or {}).items() if name not in overwrites}
    _read_document(stays, path, sources)
    for setting in SETTINGS:
        # An empty variable counts as unset, as in most programs.
        variable = next((name for name in setting.variables if environ.get(name)), None)
        if variable is not None:
            sources.read(setting, environ[variable], "environment", variable)
        if flags is not None and flags.get(setting.name) is not None:
            sources.read(setting, flags[setting.name], "flag", setting.flag)
    _take_place_of_vendor(sources, environ)
    for setting in SETTINGS:
        sources.origins.setdefault(setting.name, "default")
    _let_one_model_win(sources)
    values = _follow_from_role(sources)
    if sources.values.get("listen_hosts") and not values["listen_hosts"]:
        sources.warnings.append("listen_hosts has no effect: with advertise off this node does not listen")
    config = Config(config_dir=config_dir, state_dir=state_dir, data_dir=data_dir, **values)
    has_key = bool(config.engine_key_file or environ.get(ENGINE_KEY_VARIABLE))
    has_url = config.engine_url is not None
    sources.warnings += without_effect(environ, config.engines, has_url=has_url, has_key=has_key)
    if config.engine_url is not None and _is_open(config.engine_url):
        sources.warnings.append(
            f"engine_url {config.engine_url} is not encrypted and not of this machine or its network, so others can "
            "read every prompt and the API key on the way: use https"
        )
    sources.warnings += _around_proxy(config, sources.values)
    _check_together(config)
    return LoadedConfig(config, sources.origins, tuple(sources.warnings), document is not None)


def _take_place_of_vendor(sources: _Sources, environ: Mapping[str, str]) -> None:
    """Where the owner says nothing of it, what the vendor says of the way here counts; with a proxy nobody is told."""
    if sources.values.get("proxy") is not None or "address" in sources.values:
        return
    told = place_of_vendor(environ)
    if {"p2p_port", "bind_port"} & sources.values.keys():
        # The owner knows which port leads here.
        told = {name: value for name, value in told.items() if name == "address"}
    sources.values |= told
    sources.origins |= dict.fromkeys(told, "environment")


def _let_one_model_win(sources: _Sources) -> None:
    """Whoever names one model, in a later place than several were named, means that one."""
    one, several = sources.origins["model"], sources.origins["models"]
    if sources.values.get("models") and _PLACES.index(one) > _PLACES.index(several):
        del sources.values["models"]
        sources.origins["models"] = one


def why_nobody_pays(config: Config) -> str | None:
    """What a node with prices lacks; None where nothing. For where prices are set or begin to hold, not everywhere."""
    if config.role is not Role.PROVIDER or config.coordinator_url is not None or not _has_prices(config):
        return None
    return "this node has prices and no coordinator, so nobody can pay it: `infernet login --url URL`, or `price free`"


def _has_prices(config: Config) -> bool:
    if any((config.price_in_usd, config.price_out_usd, config.price_job_usd)):
        return True
    return any(any((own.price_in_usd, own.price_out_usd, own.price_job_usd)) for own in config.model_settings)


def values_in(path: Path) -> dict[str, Any]:
    """What one file sets, without defaults, environment or flags. Raises ConfigError."""
    sources = _Sources()
    _read_document(read_file(path) or {}, path, sources)
    return sources.values


def _follow_from_role(sources: _Sources) -> dict[str, Any]:
    """Complete the values with defaults that depend on others: who offers nothing, opens nothing."""
    values = dict(sources.values)
    role = values.get("role", Role.PROVIDER)
    values.setdefault("engine", "llama" if role is Role.PROVIDER else "none")
    values.setdefault("advertise", role is not Role.CLIENT)
    values.setdefault("forward", role is Role.AGGREGATOR)
    values.setdefault("allow_private", _is_market_of_ones_own(values))
    if not values["advertise"]:
        values.setdefault("listen_hosts", ())
    if values.get("proxy") is not None:
        # Whoever connects from outside sees where this machine is. What forwards an address of its own to it, as an
        # onion service does, comes from this machine.
        values.setdefault("listen_hosts", ("127.0.0.1",) if values.get("address") else ())
    if sources.values.get("advertise") is False:
        # Whoever is not to be found has no open door either.
        values["listen_hosts"] = ()
    return values


def _is_market_of_ones_own(values: Mapping[str, Any]) -> bool:
    """Whether what was named lies on this machine or its local network: the coordinator, else peers, else ourselves."""
    url = values.get("coordinator_url")
    if url is not None:
        return _is_private(urlsplit(url).hostname)
    peers = [str(ip_of(peer) or "") for peer in values.get("peers", ())]
    return all(map(_is_private, hosts)) if (hosts := peers or values.get("listen_hosts", ())) else False


def _around_proxy(config: Config, given: Mapping[str, Any]) -> list[str]:
    """What was set and does not go together with a proxy."""
    if config.proxy is None:
        return []
    warnings = [
        f"{name} has no effect with a proxy, which carries nothing of the kind"
        for name in ("mdns", "dht")
        if given.get(name)
    ]
    if config.address is not None and config.free_for == "known":
        warnings.append(
            "what forwards to this node, as an onion service does, looks like this machine, so free_for = known lets "
            "everybody in who comes that way: set it to nobody, or to all"
        )
    if config.listen_hosts and not all(map(_is_this_machine, config.listen_hosts)):
        warnings.append(
            "whoever connects to listen_hosts does not come through the proxy, and sees where this machine is: listen "
            "on 127.0.0.1 alone, and let an onion service forward to it"
        )
    return warnings


def _is_this_machine(host: str) -> bool:
    ip = read_ip(host)
    return ip is not None and ip.is_loopback


def _is_open(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and not _is_private(parts.hostname)


def _is_private(host: str | None) -> bool:
    """Whether a host is given by an IP address that the Internet does not have, or is this machine by name."""
    ip = read_ip(host or "")
    if ip is None:
        return host == "localhost"
    return not ip.is_unspecified and not is_globally_routable(ip)


def _check_together(config: Config) -> None:
    if config.coordinator_url is not None and config.coordinator_key is None:
        raise ConfigError(
            f"coordinator_url is set without coordinator_key, so anybody could pose as {config.coordinator_url}: "
            "run `infernet init`, which fetches the key, or set coordinator_key"
        )
    if config.metrics_port and config.p2p_enabled and config.metrics_port == config.listen_port:
        raise ConfigError(
            f"metrics_port and the port for peers are both {config.metrics_port}: choose another with --metrics-port"
        )
    if config.metrics_port and config.metrics_token_file is None and not ip_address(config.metrics_host).is_loopback:
        raise ConfigError(
            f"metrics_host is {config.metrics_host}, where others can read the metrics, and no token is set that they "
            "must show: name a file that holds one with --metrics-token-file, or serve this machine alone with "
            "--metrics-host 127.0.0.1"
        )


def _read_document(document: Mapping[str, Any], path: Path, sources: _Sources) -> None:
    version = document.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigError(f"{path}: schema_version must be {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path} was written by a newer infernet (schema {version}, this one reads up to {SCHEMA_VERSION}): "
            "upgrade infernet, or move the file away and run `infernet init`"
        )
    for name, value in document.items():
        if name in BY_NAME:
            sources.read(BY_NAME[name], value, "file", f"{path}: {name}")
        elif name != "schema_version":
            near = difflib.get_close_matches(name, BY_NAME, n=1)
            hint = f"did you mean {near[0]}?" if near else "`infernet config show` lists those there are"
            sources.warnings.append(f"{path}: unknown setting {name[:64]!r} is kept and has no effect; {hint}")


def read_file(path: Path) -> dict[str, Any] | None:
    """The file as TOML holds it; None when there is none. Raises ConfigError."""
    try:
        # Reading from a pipe would wait for a writer, perhaps for ever.
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a file: move it away")
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({reason_of(error)}): check its owner and mode") from None
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} is not UTF-8 text (line {line}): save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}; mend it, or run `infernet init --force`") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply; mend it, or run `infernet init --force`") from None
    except ValueError:
        # TOML allows more digits than Python reads.
        raise ConfigError(f"{path} has a number that is too long; mend it, or run `infernet init --force`") from None


def save(path: Path, values: Mapping[str, object], *, keep: bool) -> None:
    """Write settings to the file, whole or not at all. With `keep`, whatever else is in it stays, comments too.

    A value of None removes the setting. Raises FilesError.
    """
    with changing(path) as write:
        write(values, keep=keep)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[Write]:
    """For what follows from the settings that are there: between its reading and its writing nobody else writes.

    Gives what writes them, which raises FilesError. Raises FilesError when the turn does not come.
    """
    with contextlib.ExitStack() as turn:
        try:
            make_private_directory(path.parent)
            turn.enter_context(one_at_a_time(path.parent))
        except TimeoutError as error:
            raise ConfigError(f"{error}, and nothing was written: end it, and try again") from None
        except OSError as error:
            raise ConfigError(f"cannot write {path} ({reason_of(error)}): {way_out(error)}") from None
        yield functools.partial(_save, path)


class Write(Protocol):
    """Writes settings to a file; a value of None removes the setting."""

    def __call__(self, values: Mapping[str, object], *, keep: bool) -> None:
        """Whole or not at all. Raises FilesError."""


def pinned(path: Path) -> tuple[str, NodeId] | None:
    """The coordinator that this file names, with its key; None where it cannot be read, too."""
    try:
        document = read_file(path) or {}
        url, key = (BY_NAME[name].read(document[name]) for name in ("coordinator_url", "coordinator_key"))
    except (ConfigError, ValueError, KeyError):
        return None
    return url, key


def _save(path: Path, values: Mapping[str, object], *, keep: bool) -> None:
    import tomlkit

    document = tomlkit.document()
    if keep and read_file(path) is not None:
        document = tomlkit.parse(path.read_text("utf-8"))
    else:
        document.add(tomlkit.comment("Settings of this node. `infernet config show` lists all, with their defaults."))
    document["schema_version"] = SCHEMA_VERSION
    for name, value in values.items():
        if value is None:
            document.pop(name, None)
        else:
            document[name] = as_plain(value)
    write_private(path, tomlkit.dumps(document).encode())
