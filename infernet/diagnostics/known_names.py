"""Texts of this machine and this node that name somebody: what the redactor takes out wherever it meets it."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from infernet.config import Config
from infernet.coordinators import former
from infernet.engines.models import STARTER
from infernet.host.files import FilesError

_SECRET_VARIABLE: Final = re.compile("KEY|TOKEN|SECRET|PASS|AUTH|CRED|COOKIE|MNEMONIC|SEED", re.IGNORECASE)
# They are everybody's.
_GENERIC: Final = frozenset(
    {"root", "infernet", "nobody", "localhost", "localhost.localdomain", "/", "/root", "/nonexistent"}
)
# What variables are often set to that sound secret and are switches.
_SWITCHES: Final = frozenset({"true", "false", "yes", "no", "on", "off", "none", "null", "auto", "default"})
_PATH_VARIABLES: Final = ("HOME", "INFERNET_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME")
_USER_VARIABLES: Final = ("USER", "LOGNAME", "SUDO_USER")


def known_names(environ: Mapping[str, str], config: Config | None) -> dict[str, str]:
    """Text -> what kind of thing it names."""
    names: dict[str, str] = {}
    for name, value in environ.items():
        if _SECRET_VARIABLE.search(name) and value.lower() not in _SWITCHES:
            # Also its lines and words: a log may quote a part.
            names |= dict.fromkeys([value, *(word for word in value.split() if len(word) > 5)], "secret")
    names |= dict.fromkeys(_users(environ), "user")
    names |= dict.fromkeys(_hosts(environ), "host")
    names |= {environ[name]: "path" for name in _PATH_VARIABLES if name in environ}
    if config is not None:
        names |= _of_config(config)
    return {text: kind for text, kind in names.items() if text.strip() and text.lower() not in _GENERIC}


def _users(environ: Mapping[str, str]) -> list[str]:
    found = [environ[name] for name in _USER_VARIABLES if name in environ]
    with contextlib.suppress(KeyError):
        entry = pwd.getpwuid(os.getuid())
        found += [entry.pw_name, entry.pw_gecos.partition(",")[0]]
        found += [word for word in entry.pw_gecos.partition(",")[0].split() if len(word) > 2]
    return found


def _hosts(environ: Mapping[str, str]) -> list[str]:
    full = [socket.gethostname(), environ.get("HOSTNAME", "")]
    return full + [host.partition(".")[0] for host in full]


def _of_config(config: Config) -> dict[str, str]:
    names = {config.name: "name"}
    for folder in (config.config_dir, config.state_dir, config.data_dir):
        names[str(folder)] = "path"
    if config.address is not None:
        names[config.address] = "host"
    if config.coordinator_url is not None:
        names[urlsplit(config.coordinator_url).hostname or ""] = "host"
    with contextlib.suppress(FilesError):
        names |= {urlsplit(one.url).hostname or "": "host" for one in former(config.config_dir)}
    # What somebody runs is theirs to tell.
    for model in {config.model, *config.models} - {STARTER.name}:
        path = Path(model)
        names |= {model: "path", str(path.expanduser()): "path", path.name: "model", path.stem: "model"}
    for one in config.model_settings:
        names |= dict.fromkeys({one.name, *(one.aliases or ())} - {STARTER.name}, "model")
    return names
