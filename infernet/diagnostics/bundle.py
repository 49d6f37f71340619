"""A report put together: versions, machine, settings, checks, counters and the end of the log, all of it redacted."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil

import infernet
from infernet.config import Config, ConfigError, LoadedConfig, load, places
from infernet.diagnostics import log_lines, settings_shown
from infernet.diagnostics.known_names import known_names
from infernet.diagnostics.redactor import Redactor
from infernet.doctor.examination import Result
from infernet.ipc import client as ipc
from infernet.settings.table import SETTINGS
from protocol.constants import PROTOCOL_VERSION
from protocol.records import Reachability

_T = TypeVar("_T")

STATUS_TIMEOUT_S: Final = 3.0
_CRASH_BYTES_MAX: Final = 4096
_LIBRARIES: Final = (
    *("libp2p", "trio", "httpx", "msgspec", "msgpack", "coincurve", "cryptography", "structlog", "psutil"),
    *("quart", "hypercorn", "xllamacpp"),
)
_VERSION: Final = re.compile(r"\d{1,9}(\.\d{1,9}){0,4}((a|b|rc|\.dev|\.post)\d{1,9})?")
_MACHINES: Final = frozenset({"x86_64", "amd64", "aarch64", "arm64", "armv7l", "riscv64", "ppc64le", "s390x"})
_SYSTEMS: Final = frozenset({"Linux", "Darwin"})
_DISTRIBUTIONS: Final = frozenset(
    {
        "debian", "ubuntu", "fedora", "rhel", "centos", "rocky", "almalinux", "arch", "alpine", "nixos", "gentoo",
        "opensuse-leap", "opensuse-tumbleweed", "raspbian", "linuxmint", "pop", "manjaro", "amzn", "ol", "void",
    }
)  # fmt: skip
_VARIABLES: Final = frozenset(
    {"INFERNET_HOME", "INFERNET_DEBUG", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "XDG_CONFIG_HOME"}
    | {"XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"}
    | {name for setting in SETTINGS for name in setting.variables}
)
_COUNTERS: Final = (
    *("peers", "peers_known", "records", "streams", "open_streams", "jobs_asked", "jobs_running", "jobs_waiting"),
    *("zombie_chunks", "bad_frames"),
)
_ENGINE_COUNTERS: Final = ("runs_active", "runs_total", "restarts", "slots_leaked")
_TRANSPORT_COUNTERS: Final = (
    *("connections", "streams_in", "streams_out", "handshakes_in", "handshakes_out", "handshakes_failed"),
    *("connections_refused", "streams_refused", "dials_failed", "bytes_in", "bytes_out", "handshakes_evicted"),
    *("held_bytes", "connections_cut", "bans"),
)
_SOURCES: Final = ("saved", "coordinator", "mdns", "dht")
_STATES: Final = frozenset(
    {"ready", "starting", "waiting", "stopped", "connecting", "connected"}
    | {each.name.lower() for each in Reachability}
)


def gather(results: Sequence[Result], environ: Mapping[str, str]) -> dict[str, Any]:
    """Everything, as JSON holds it. Raises nothing that depends on the machine."""
    here, loaded = _configuration(environ)
    redactor = Redactor(known_names(environ, loaded.config if loaded is not None else here))
    return {
        "versions": _versions(),
        "machine": _machine(),
        "variables_set": sorted(name for name in environ if name in _VARIABLES),
        "settings": settings_shown.shown(loaded) if loaded is not None else {},
        "checks": [_check(result, redactor) for result in results],
        "counters": _counters(here, redactor),
        "last_crash": _crash(here, redactor),
        "log": _log(here, redactor),
    }


def _configuration(environ: Mapping[str, str]) -> tuple[Config | None, LoadedConfig | None]:
    try:
        here = places(environ)
    except (ConfigError, RuntimeError):
        return None, None
    try:
        return here, load(environ=environ)
    except (ConfigError, RecursionError):
        return here, None  # the checks say so


# ---------------------------------------------------------------- the program and the machine


def _versions() -> dict[str, str]:
    versions = {"infernet": infernet.__version__, "protocol": str(PROTOCOL_VERSION)}
    versions["python"] = _version(platform.python_version())
    for name in _LIBRARIES:
        try:
            versions[name] = _version(metadata.version(name))
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _version(text: str) -> str:
    return text if _VERSION.fullmatch(text) else "another"


def _machine() -> dict[str, str]:
    """Coarse: what thousands have in common."""
    system, machine = platform.system(), platform.machine()
    release = re.match(r"\d{1,3}\.\d{1,3}", platform.release())
    return {
        "system": system if system in _SYSTEMS else "another",
        "kernel": release[0] if release else "another",
        "distribution": _distribution(),
        "machine": machine if machine in _MACHINES else "another",
        "processors": _about(os.cpu_count() or 1),
        "memory_gb": _about(round(psutil.virtual_memory().total / 1e9)),
        "as_root": "yes" if os.geteuid() == 0 else "no",
    }


def _distribution() -> str:
    try:
        fields = platform.freedesktop_os_release()
    except OSError:
        return "unknown"
    name, version = fields.get("ID", ""), fields.get("VERSION_ID", "")
    return f"{name if name in _DISTRIBUTIONS else 'another'} {version if _VERSION.fullmatch(version) else ''}".strip()


def _about(count: int) -> str:
    """The power of two at or below a count."""
    return f"{1 << max(0, count.bit_length() - 1)} or more"


# ---------------------------------------------------------------- the node


def _check(result: Result, redactor: Redactor) -> dict[str, Any]:
    finding = result.finding
    return {
        "id": result.check.id,
        "status": finding.status.value,
        "ms": result.ms,
        "found": redactor.text(finding.found) if finding.status.value in ("warn", "fail") else "",
    }


def _counters(here: Config | None, redactor: Redactor) -> dict[str, Any]:
    """What the running node counts; empty where none runs."""
    if here is None:
        return {}
    try:
        status = ipc.call(here.socket_path, "status", timeout_s=STATUS_TIMEOUT_S)
    except (ipc.IpcError, OSError):
        return {}
    if not isinstance(status, dict):
        return {}
    engine, transport, link, reached, money, discovered = (
        value if isinstance(value := status.get(name), dict) else {}
        for name in ("engine", "transport", "coordinator", "reached", "money", "discovered")
    )
    counters: dict[str, Any] = _numbers(status, _COUNTERS)
    uptime_s = status.get("uptime_s")
    if isinstance(uptime_s, (int, float)) and math.isfinite(uptime_s):
        counters["uptime_minutes"] = round(uptime_s / 60)
    counters["models"] = len(models) if isinstance(models := status.get("models"), list) else None
    counters |= {"engine": _state(engine.get("state")), "coordinator": _state(link.get("state"))}
    counters["reached"] = _state(reached.get("reachability"))
    counters |= {f"engine_{name}": value for name, value in _numbers(engine, _ENGINE_COUNTERS).items()}
    counters |= {f"transport_{name}": value for name, value in _numbers(transport, _TRANSPORT_COUNTERS).items()}
    counters |= {f"heard_from_{name}": value for name, value in _numbers(discovered, _SOURCES).items()}
    for name, text in (
        ("engine_error", engine.get("last_error")),
        ("coordinator_error", link.get("last_error")),
        ("money_trouble", money.get("trouble")),
    ):
        if isinstance(text, str) and text:
            counters[name] = redactor.text(text)
    return {name: value for name, value in counters.items() if value is not None}


def _numbers(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    return {name: value for name in names if type(value := fields.get(name)) is int}


def _state(value: Any) -> str | None:
    if value is None:
        return None
    return value if isinstance(value, str) and value in _STATES else "another"


def _crash(here: Config | None, redactor: Redactor) -> str:
    def read(path: Path) -> str:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            data = os.read(descriptor, _CRASH_BYTES_MAX)
        finally:
            os.close(descriptor)
        return redactor.text(data.decode("utf-8", "replace"))

    return _if_readable(read, here.state_dir / "crash.log", "") if here is not None else ""


def _log(here: Config | None, redactor: Redactor) -> list[str]:
    def read(path: Path) -> list[str]:
        return [log_lines.redacted(line, redactor) for line in log_lines.tail(path)]

    return _if_readable(read, here.log_file, []) if here is not None else []


def _if_readable(read: Callable[[Path], _T], path: Path, otherwise: _T) -> _T:
    try:
        return read(path)
    except OSError:
        return otherwise
