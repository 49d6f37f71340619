"""How each setting is shown in a report. A setting that is not on this list shows as set or not, and no more."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from infernet.config import STARTER_MODEL, Config, LoadedConfig
from infernet.settings.readers import as_plain, split_proxy
from infernet.settings.table import SETTINGS
from protocol.networks import is_globally_routable, read_ip

Show = Callable[[Any], str]


def _is_set(value: Any) -> str:
    return "set" if value else "not set"


def _count(value: Any) -> str:
    return str(len(value))


def _plain(value: Any) -> str:
    """For what is a word of a short list, a switch or a number without meaning to others."""
    shown = as_plain(value)
    if isinstance(shown, bool):
        return "yes" if shown else "no"
    return "not set" if shown is None else str(shown)


def _hosts(value: Any) -> str:
    return ", ".join(_kind_of_host(host) for host in value) or "none"


def _kind_of_host(host: str) -> str:
    ip = read_ip(host)
    if ip is None:
        return "this machine" if host == "localhost" else "a name"
    if ip.is_unspecified:
        return f"all IPv{ip.version}"
    if ip_address(host).is_loopback:
        return "this machine"
    return f"{'a public' if is_globally_routable(ip) else 'a private'} IPv{ip.version} address"


def _url(value: Any) -> str:
    if value is None:
        return "not set"
    parts = urlsplit(value)
    scheme = parts.scheme if parts.scheme in ("http", "https") else "another scheme"
    return f"{scheme}, {_kind_of_host(parts.hostname or '')}"


def _proxy(value: Any) -> str:
    return "not set" if value is None else _kind_of_host(split_proxy(value)[0])


def _model(value: Any) -> str:
    return value if value == STARTER_MODEL else "another file"


_SHOWN: Final[dict[str, Show]] = {
    "coordinator_url": _url,
    "listen_hosts": _hosts,
    "proxy": _proxy,
    "metrics_host": _kind_of_host,
    "address": lambda value: "not set" if value is None else _kind_of_host(value),
    "model": _model,
    **dict.fromkeys(
        ("peers", "dht_peers", "allow", "models", "model_settings", "serve_hours", "cluster_workers", "gpu_split"),
        _count,
    ),
    **dict.fromkeys(
        (
            *("role", "p2p_enabled", "p2p_port", "advertise", "mdns", "allow_private", "relay", "forward", "dht"),
            *("bind_port", "metrics_port", "log_format"),
            *("dht_port", "free_for", "reports", "engine", "context_tokens", "slots", "threads", "log_level"),
            *("tensor_parallel", "cache", "confine"),
        ),
        _plain,
    ),
}


def shown(loaded: LoadedConfig) -> dict[str, dict[str, str]]:
    """Every setting: what may be shown of its value, and where it came from."""
    config: Config = loaded.config
    return {
        setting.name: {
            "value": _SHOWN.get(setting.name, _is_set)(getattr(config, setting.name)),
            "from": loaded.origins[setting.name],
        }
        for setting in SETTINGS
    }
