"""What a service manager is given so that it runs the node: units for systemd, and a property list for launchd.

The units are checked by `systemd-analyze verify`, and the list against launchd.plist(5); neither has been run by a real
systemd or launchd here. What is switched on is what the node can live with:

- The node reads its key, writes its state, opens sockets and starts engine processes; that is all it gets. What a node
  did under strace, with its engine, mDNS and a DHT, from start to stop, was all on these lists: system calls of the
  @system-service of systemd 252, four address families, no namespaces, no files but its own and temporary ones. No GPU
  was there.
- `MemoryDenyWriteExecute` stays off: libffi wants such memory, and GPU libraries compile at run time. `PrivateDevices`
  stays off: it would hide GPUs.
- `KillMode=mixed`: the first signal goes to the node alone, which lets jobs finish; engines end with it.
"""

from __future__ import annotations

import hashlib
import plistlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: In the first line of what is written: only such a file is replaced or removed.
MARK: Final = "written by `infernet service install`"
UNIT_NAME: Final = "infernet.service"
LAUNCHD_LABEL: Final = "infernet.node"
SYSTEM_HOME: Final = "/var/lib/infernet"

# Until the node listens and answers its owner. Its models load after that, for as long as they take, and what it is
# loading stands in its status.
START_LIMIT_S: Final = 180
# Jobs that run get 30 s after the first signal, then come the farewells.
STOP_LIMIT_S: Final = 60
RESTART_PAUSE_S: Final = 10
# Standing still for this long, the node serves nobody, and its peers have gone elsewhere.
WATCHDOG_S: Final = 60

_HARDENING: Final = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectControlGroups=yes
ProtectKernelTunables=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
LimitCORE=0
"""
# What only the system's manager can do.
_SYSTEM_HARDENING: Final = """\
CapabilityBoundingSet=
AmbientCapabilities=
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectHostname=yes
ProtectProc=invisible
RemoveIPC=yes
"""
_HOMES: Final = ("/home", "/root", "/run/user")
_TEMPORARY: Final = ("/tmp", "/var/tmp")  # noqa: S108 - nothing is put there


def home_mark(state_dir: Path) -> str:
    """What stands in the first lines of a unit for the node with this folder: there is one service, and homes may be
    several.
    """
    return f"home {hashlib.sha256(bytes(state_dir)).hexdigest()[:16]}"


class Unwritable(ValueError):
    """A path or a value that no unit can hold."""


@dataclass(frozen=True)
class Service:
    """What is to be run: the command, its environment, and the folders that it writes. `mark` is of `home_mark`."""

    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    writes: Sequence[Path] = ()
    mark: str = ""


def user_unit(service: Service) -> str:
    """The unit for the manager of one user. Raises Unwritable."""
    head = f"# {MARK.capitalize()} ({service.mark}); changes belong in `systemctl --user edit infernet`.\n"
    # What lies in the folder for temporary files of all must be found there.
    is_temporary = any(path.is_relative_to(folder) for path in service.writes for folder in _TEMPORARY)
    return _unit(service, head, network="", more=f"PrivateTmp={'no' if is_temporary else 'yes'}\n", target="default")


def system_unit(service: Service) -> str:
    """A unit for the system's manager and a user of its own. Raises Unwritable."""
    where = Path(service.command[0])
    is_in_home = any(where.is_relative_to(home) for home in _HOMES)
    more = (
        "User=infernet\nGroup=infernet\nStateDirectory=infernet\nStateDirectoryMode=0700\nPrivateTmp=yes\n"
        # A program in somebody's home must still be found there.
        f"ProtectHome={'read-only' if is_in_home else 'yes'}\n{_SYSTEM_HARDENING}"
    )
    head = "# For /etc/systemd/system/infernet.service, printed by `infernet service unit --system`.\n"
    of_system = Service(service.command, service.environment | {"INFERNET_HOME": SYSTEM_HOME}, ())
    network = "After=network-online.target\nWants=network-online.target\n"
    return _unit(of_system, head, network=network, more=more, target="multi-user")


def _unit(service: Service, head: str, *, network: str, more: str, target: str) -> str:
    environment = "".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in service.environment.items())
    writes = "".join(f"ReadWritePaths={_quoted(f'-{path}')}\n" for path in service.writes)
    # Only in a command a dollar sign stands for a variable.
    command = " ".join(_quoted(word).replace("$", "$$") for word in service.command)
    return f"""\
{head}[Unit]
Description=Infernet node
{network}StartLimitIntervalSec=600
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
{environment}Restart=on-failure
RestartSec={RESTART_PAUSE_S}
RestartPreventExitStatus=2
WatchdogSec={WATCHDOG_S}
TimeoutStartSec={START_LIMIT_S}
TimeoutStopSec={STOP_LIMIT_S}
KillMode=mixed
{writes}{more}{_HARDENING}
[Install]
WantedBy={target}.target
"""


def _quoted(word: str) -> str:
    """A word for a unit, whatever is in it but what would end its line. Raises Unwritable."""
    if not word.isprintable():
        raise Unwritable("a path or a variable with characters that cannot be printed does not fit into a unit")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped if escaped and not set(escaped) & set(" \\\"';#") else f'"{escaped}"'


def launchd_list(service: Service, log_file: Path) -> bytes:
    """The property list of a launchd agent. Raises Unwritable."""
    for word in (*service.command, *service.environment.values(), str(log_file)):
        if not word.isprintable():
            raise Unwritable("a path with characters that cannot be printed does not fit into a property list")
    document = {
        "Label": LAUNCHD_LABEL,
        "ProgramArguments": list(service.command),
        "EnvironmentVariables": dict(service.environment),
        "RunAtLoad": True,
        # After a failure only: `infernet stop` ends it until the next login.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_PAUSE_S,
        "ExitTimeOut": STOP_LIMIT_S,
        "ProcessType": "Standard",
        "Umask": 0o077,
        # Where native code speaks its last words; the node itself keeps this file small.
        "StandardOutPath": str(log_file),
        "StandardErrorPath": str(log_file),
    }
    text = plistlib.dumps(document, fmt=plistlib.FMT_XML, sort_keys=False).decode()
    declaration, _, rest = text.partition("\n")
    return f"{declaration}\n<!-- {MARK.capitalize()} ({service.mark}) -->\n{rest}".encode()
