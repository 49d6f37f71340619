"""The settings of the earlier Infernet, the program in JavaScript: read once, taken over, and left without a secret.

That program kept everything in one `config.json`: its key, its settings, and what it had been given to speak for others
with (a database's service key, a session's token, keys of cloud vendors). Those last are no business of a node: they
are neither kept nor written anywhere again. What we cannot know to be right, such as whose key a coordinator has, is
noted in our file for a person, and not used.

The order is: our key, our settings, then the old file's end. Whatever comes between, the next try goes on.
"""

from __future__ import annotations

import json
import os
import platform
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from infernet import identity
from infernet.config import Config, ConfigError, directories, save
from infernet.host.files import reason_of, replace_whole, write_private
from infernet.settings.readers import as_plain
from infernet.settings.table import BY_NAME
from protocol.envelope import SigningKey
from protocol.formats.text import clean_line
from protocol.ids import npub
from protocol.records import Role

EARLIER_NAME: Final = "config.json"
#: What is left of it: no key, no token.
LEFT_NAME: Final = "config.json.old"
_BYTES_MAX: Final = 64 * 1024
_NAMES_SHOWN: Final = 8
# Credentials, by where they stood. Of other fields only the names are told.
_SECRETS: Final = ("supabase.serviceRoleKey", "auth.bearerToken", "cloudCredentials")
_OLLAMA_URL: Final = "http://127.0.0.1:11434"
_SERVERS: Final = ("ollama", "vllm", "nim", "sglang", "llama-cpp", "llama.cpp", "llamacpp", "llama-server")


@dataclass
class Earlier:
    """What an earlier file says, as far as it can be used."""

    path: Path
    key: SigningKey | None = None
    #: By the name of our setting.
    values: dict[str, Any] = field(default_factory=dict)
    #: The coordinator that it used, whose key nobody here knows.
    url: str | None = None
    taken: list[str] = field(default_factory=list)
    #: What is not taken over, with the reason.
    dropped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TakenOver:
    """What was done; `text` is the one line for people."""

    text: str
    left: Path


def find(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The earlier file that belongs to this home, if there is one. Raises ConfigError."""
    config_dir = directories(environ)[0]
    places = [config_dir / EARLIER_NAME]
    if not environ.get("INFERNET_HOME"):
        # The earlier program knew no other place, on macOS either.
        base = environ.get("XDG_CONFIG_HOME") or "~/.config"
        places.append(Path(base).expanduser() / "infernet" / EARLIER_NAME)
    return next((path for path in places if os.path.lexists(path)), None)


def take_over(here: Config, environ: Mapping[str, str] = os.environ) -> TakenOver | None:
    """Take an earlier file over, unless there is none, or this node has settings or a key of its own.

    Raises ConfigError or IdentityError; then nothing was lost, and nothing was taken by halves.
    """
    path = find(environ)
    if path is None:
        return None
    own_key = _own_key(here)
    has_file = here.config_file.exists()
    if has_file and own_key is None:
        return None
    try:
        earlier = read(path)
    except ConfigError:
        if has_file:
            return None  # what is done needs it no more
        raise
    if own_key is not None and (earlier.key is None or earlier.key.node != own_key.node):
        return None  # this node was made by itself: that file is somebody else's past
    if earlier.key is not None and own_key is None:
        identity.create(here.key_file, earlier.key)
    if not has_file:
        _write(here, earlier)
    left = _leave(earlier)
    return TakenOver(_told(earlier, left, here.config_file), left)


def _own_key(here: Config) -> SigningKey | None:
    try:
        return identity.load(here.key_file)
    except identity.NoIdentity:
        return None


# ---------------------------------------------------------------- reading


def read(path: Path) -> Earlier:
    """What an earlier file says. Raises ConfigError, which repeats nothing of the file."""
    document = _document(path)
    earlier = Earlier(path)
    node, engine = _part(document, "node", path), _part(document, "engine", path)
    _read_key(node, earlier)
    _read_node(node, earlier)
    _read_url(_part(document, "controlPlane", path), _part(document, "supabase", path), earlier)
    if earlier.values.get("role", Role.PROVIDER) is Role.PROVIDER:
        _read_engine(engine, earlier)
    _note_secrets(document, earlier)
    return earlier


def _document(path: Path) -> dict[str, Any]:
    data = _bytes(path)
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigError(f"{path} is not JSON{where}: {_MEND}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no settings of the earlier Infernet: {_MEND}")
    return document


_MEND: Final = "mend it, or move it away and run `infernet init`; nothing was changed"


def _bytes(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({reason_of(error)}): {_MEND}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a file: move it away; nothing was changed")
        if status.st_uid != os.getuid():
            raise ConfigError(f"{path} belongs to another user: make it yours, or move it away; nothing was changed")
        if status.st_mode & 0o077:
            raise ConfigError(
                f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, so others may have read the key in it: run "
                f"`chmod 600 {path}` if you are sure that nobody has, else move it away; nothing was changed"
            )
        data = os.read(descriptor, _BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(data) > _BYTES_MAX:
        raise ConfigError(f"{path} has more than {_BYTES_MAX} bytes, which no settings have: {_MEND}")
    return data


def _part(document: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    part = document.get(name)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise ConfigError(f"{path}: {name} must be an object: {_MEND}")
    return part


def _read_key(node: Mapping[str, Any], earlier: Earlier) -> None:
    secret, public = node.get("privateKey"), node.get("publicKey")
    if secret is None:
        return
    try:
        key = identity.import_secret(secret if isinstance(secret, str) else "")
    except identity.IdentityError:
        raise ConfigError(f"{earlier.path}: node.privateKey is no secret key of 64 hex digits: {_MEND}") from None
    if public is not None and (not isinstance(public, str) or public.lower() != key.node.hex()):
        raise ConfigError(f"{earlier.path}: node.publicKey does not belong to node.privateKey: {_MEND}")
    earlier.key = key
    earlier.taken.append(f"the key ({npub(key.node)})")


def _read_node(node: Mapping[str, Any], earlier: Earlier) -> None:
    _take(earlier, "role", node.get("role"), "node.role")
    name = node.get("name")
    if isinstance(name, str) and _names_host(name):
        earlier.dropped.append("node.name (it told user and host)")
    else:
        _take(earlier, "name", name, "node.name")
    _take(earlier, "address", node.get("address"), "node.address")
    _take(earlier, "p2p_port", node.get("port"), "node.port")
    if "address" in node and "port" in node and node["address"] is None and node["port"] is None:
        # How the earlier program kept --no-advertise. What somebody hides stays hidden.
        earlier.values["advertise"] = False
        earlier.taken.append("--no-advertise")
    if node.get("payoutPublicKey") not in (None, node.get("publicKey")):
        earlier.dropped.append("node.payoutPublicKey (a coordinator takes it when it first hears of a node)")


def _names_host(name: str) -> bool:
    """Whether a name is what the earlier program made up: `user@host:slug`, or the host's name in a container."""
    host = platform.node().lower()
    return "@" in name or (bool(host) and name.lower() in (host, host.partition(".")[0]))


def _read_url(control_plane: Mapping[str, Any], supabase: Mapping[str, Any], earlier: Earlier) -> None:
    url = control_plane.get("url") or supabase.get("url")
    if url is None:
        return
    try:
        earlier.url = BY_NAME["coordinator_url"].read(url)
    except ValueError:
        earlier.dropped.append("controlPlane.url (it is no address of a coordinator)")


def _read_engine(engine: Mapping[str, Any], earlier: Earlier) -> None:
    backend = engine.get("backend")
    if not isinstance(backend, str) or backend.lower() not in _SERVERS:
        if backend is not None:
            earlier.dropped.append("engine.backend (nothing here has that name)")
        return
    # Every one of them is a server by the side of the node, which the earlier program did not bring along either.
    earlier.values["engine"] = "openai"
    earlier.taken.append("the engine's server")
    if backend.lower() == "ollama":
        _take(earlier, "engine_url", engine.get("ollamaHost") or _OLLAMA_URL, "engine.ollamaHost")
    model = engine.get("model")
    _take(earlier, "engine_models", [model] if model else None, "engine.model")
    if engine.get("ollama_num_thread") is not None:
        earlier.dropped.append("engine.ollama_num_thread (a setting of Ollama's)")


def _take(earlier: Earlier, name: str, value: object, place: str) -> None:
    if value is None:
        return
    read_value: Callable[[object], Any] = BY_NAME[name].read
    try:
        earlier.values[name] = read_value(value)
    except ValueError as error:
        # The value itself is not repeated: it may be a key that was put in the wrong place.
        earlier.dropped.append(f"{place} (it {error})")
    else:
        earlier.taken.append(place.partition(".")[2])


def _note_secrets(document: Mapping[str, Any], earlier: Earlier) -> None:
    for place in _SECRETS:
        first, _, second = place.partition(".")
        part = document.get(first)
        if part and (not second or (isinstance(part, dict) and part.get(second))):
            earlier.dropped.append(f"{place} (a node has no credential but its key)")
    known = ("controlPlane", "node", "engine", "auth", "supabase", "cloudCredentials")
    unknown = [clean_line(name, 40) for name in document if name not in known]
    if unknown:
        more = f" and {len(unknown) - _NAMES_SHOWN} more" if len(unknown) > _NAMES_SHOWN else ""
        earlier.dropped.append(f"{', '.join(unknown[:_NAMES_SHOWN])}{more} (not known here)")


# ---------------------------------------------------------------- writing


def _write(here: Config, earlier: Earlier) -> None:
    values = {"role": Role.PROVIDER} | earlier.values
    if earlier.url is None:
        save(here.config_file, values, keep=False)
        return
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment("Settings of this node. `infernet config show` lists all, with their defaults."))
    document.add(tomlkit.comment(f"The earlier Infernet used {earlier.url}. To use that, and pin its key:"))
    document.add(tomlkit.comment(f"infernet init --url {earlier.url}"))
    document["schema_version"] = here.schema_version
    for name, value in values.items():
        document[name] = as_plain(value)
    write_private(here.config_file, tomlkit.dumps(document).encode())


def _leave(earlier: Earlier) -> Path:
    """Put what is harmless in the place of the old file. Raises ConfigError."""
    left = earlier.path.with_name(LEFT_NAME)
    harmless = {name: as_plain(value) for name, value in earlier.values.items()}
    if earlier.url is not None:
        harmless["coordinator_url"] = earlier.url
    try:
        replace_whole(left, json.dumps({"taken_over": harmless}, indent=2).encode() + b"\n", 0o600)
        _overwrite(earlier.path)
        earlier.path.unlink()
    except OSError as error:
        reason = reason_of(error)
        raise ConfigError(
            f"the key and the settings of {earlier.path} were taken over, and it cannot be removed ({reason}): remove "
            "it yourself, for it holds your key"
        ) from None
    return left


def _overwrite(path: Path) -> None:
    """What a program can do against reading the file from the disk afterwards; see `infernet.host.wiping`."""
    with path.open("r+b") as file:
        file.write(bytes(os.fstat(file.fileno()).st_size))
        file.flush()
        os.fsync(file.fileno())


def _told(earlier: Earlier, left: Path, config_file: Path) -> str:
    parts = [f"{earlier.path} of the earlier Infernet was taken over into {config_file}"]
    parts.append(f"taken: {', '.join(earlier.taken) or 'nothing'}")
    if earlier.dropped:
        parts.append(f"dropped: {', '.join(earlier.dropped)}")
    if earlier.url is not None:
        parts.append(f"its coordinator is used again after `infernet init --url {earlier.url}`, which pins its key")
    parts.append(f"no secret is left in {left}")
    return "; ".join(parts)
