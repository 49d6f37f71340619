"""Variables of the environment that are no settings: those nobody reads, those of the earlier program, and what
vendors of rented machines say there.

Only names are told, never values: a value may be a key that was put in the wrong place.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from infernet.settings.table import BY_NAME, SETTINGS
from protocol.constants import P2P_PORT
from protocol.formats.text import clean_line
from protocol.networks import is_globally_routable, read_ip

#: No setting, because settings are shown: the API key of the engine's server.
ENGINE_KEY_VARIABLE: Final = "INFERNET_ENGINE_KEY"
_PREFIX: Final = "INFERNET_"
# Read elsewhere: by commands, by the one-file program, by tests of it, by the coordinator, and by the network to try.
_OTHERS: Final = (
    "INFERNET_HOME",
    "INFERNET_DEBUG",
    "INFERNET_NONINTERACTIVE",
    "INFERNET_DAEMON_FOREGROUND",
    "INFERNET_PACKAGED_FILE",
    "INFERNET_BINARY_UNDER_TEST",
    ENGINE_KEY_VARIABLE,
)
_PREFIXES_OF_OTHERS: Final = ("INFERNET_COORDINATOR_", "INFERNET_DEV_")
_NAMES_SHOWN: Final = 5
_NAME_CHARACTERS_MAX: Final = 64

#: Of the earlier program, and nobody else's: what to do instead.
EARLIER: Final = {
    "INFERNET_ENGINE_BACKEND": "set INFERNET_ENGINE",
    "INFERNET_ENGINE_BIN": "there is no such engine, set INFERNET_ENGINE",
    "INFERNET_BEARER": "there are no accounts",
}
# Programs that are not ours may read these, too: they matter only where a server is looked for.
EARLIER_SERVERS: Final = {
    "VLLM_HOST": "set INFERNET_ENGINE_URL",
    "LLAMACPP_HOST": "set INFERNET_ENGINE_URL",
}
EARLIER_KEYS: Final = {
    "VLLM_API_KEY": f"set {ENGINE_KEY_VARIABLE}, and INFERNET_ENGINE_URL",
    "LLAMACPP_API_KEY": f"set {ENGINE_KEY_VARIABLE}, and INFERNET_ENGINE_URL",
}

# RunPod, Vast: the public address of a machine that has none on an interface of its own, and of a port the public one.
VENDOR_ADDRESSES: Final = ("RUNPOD_PUBLIC_IP", "PUBLIC_IPADDR")
_VENDOR_PORTS: Final = (f"RUNPOD_TCP_PORT_{P2P_PORT}", f"VAST_TCP_PORT_{P2P_PORT}")


def without_effect(
    environ: Mapping[str, str], engines: Collection[str], *, has_url: bool, has_key: bool
) -> Iterator[str]:
    """Complaints about variables that were meant for us, and that nobody reads."""
    stale = EARLIER if "openai" not in engines else EARLIER | ({} if has_url else EARLIER_SERVERS)
    if "openai" in engines and not has_key:
        stale = stale | EARLIER_KEYS
    for name, instead in stale.items():
        if environ.get(name):
            yield f"the variable {name} is of the earlier program, and has no effect: {instead}"
    strange: list[str] = []
    for name in environ:
        if not name.startswith(_PREFIX) or name.startswith(_PREFIXES_OF_OTHERS) or name in _KNOWN:
            continue
        word, shown = name.removeprefix(_PREFIX).lower(), clean_line(name, _NAME_CHARACTERS_MAX)
        if near := difflib.get_close_matches(word[:_NAME_CHARACTERS_MAX], BY_NAME, n=1, cutoff=0.8):
            yield f"unknown variable {shown} has no effect; did you mean {BY_NAME[near[0]].variable}?"
        else:
            strange.append(shown)
    if strange:
        more = f" and {len(strange) - _NAMES_SHOWN} more" if len(strange) > _NAMES_SHOWN else ""
        has, many = ("have", "s") if len(strange) > 1 else ("has", "")
        yield (
            f"unknown variable{many} {', '.join(sorted(strange)[:_NAMES_SHOWN])}{more} {has} no effect; `infernet "
            "config show` lists those there are"
        )


_KNOWN: Final = frozenset((*_OTHERS, *EARLIER, *(name for setting in SETTINGS for name in setting.variables)))


def place_of_vendor(environ: Mapping[str, str]) -> dict[str, object]:
    """Where others reach this machine, by what its vendor says; by the name of the setting, empty where nobody does.

    An address counts only with the public port of ours: beside another port it would lead nowhere, and keep from being
    published what those who dial back find out.
    """
    ip = next((ip for name in VENDOR_ADDRESSES if (ip := read_ip(environ.get(name, ""))) is not None), None)
    port = next((text for name in _VENDOR_PORTS if (text := environ.get(name, ""))), "")
    if ip is None or not is_globally_routable(ip):
        return {}
    try:
        # Read as a port to listen on is: 0, which for p2p_port is any free one, is nothing that others dial.
        told = {"address": BY_NAME["address"].read(str(ip)), "p2p_port": BY_NAME["bind_port"].read(port)}
    except ValueError:
        return {}
    return told | {"bind_port": P2P_PORT}
