"""`infernet service`: have the node run by systemd or launchd, from the start of the machine or the login on."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from infernet import identity
from infernet.cli.command import Failure, Misuse, self_command, warn
from infernet.cli.logs import LINES_DEFAULT, no_log, read_count, show_file
from infernet.cli.output import print_fields, print_json
from infernet.config import Config, load, places
from infernet.host import service_units
from infernet.host.files import make_private_directory
from infernet.host.firewalls import find_program
from infernet.host.lock import running_pid
from infernet.host.packaged import is_packaged, program_file, unpacked_beside
from infernet.host.service_manager import Installed, Launchd, Manager, ServiceError, State, Systemd, read_ours
from infernet.log_lines import LINE_BYTES_MAX, for_people, for_programs
from infernet.settings.table import BY_NAME

ACTIONS: Final = ("install", "uninstall", "status", "logs", "unit")

USAGE: Final = "install|uninstall|status|logs|unit [--system] [--no-start] [-f] [--lines N] [--json]"
DESCRIPTION: Final = """\
Have the node run as a service of this user: by systemd on Linux, by launchd on macOS. It is started again when it
fails, or, under systemd, when it stands still, and lets jobs finish when it is ended.

install     write the unit, enable it and start the node; again: bring it up to date. Settings come from the file
            (`infernet config set`), not from the environment. A node that runs already is left alone.
uninstall   end the service and remove its unit; key, settings and money stay
status      whether it is installed and runs; exits with 1 when it does not run
logs        what the node says: from systemd's journal, or from its log file on macOS
unit        print the unit and change nothing; --system: one for the system's systemd, which you install as root"""
EXAMPLES: Final = """\
examples:
  infernet service install
  infernet service logs -f
  infernet service unit --system | sudo tee /etc/systemd/system/infernet.service

The units pass `systemd-analyze verify` of systemd 252. Neither they nor the list for launchd were run by the real thing
in our tests: tell us if yours refuses them."""

_SYSTEM_STEPS: Final = f"""\
# As root, after writing this file:
#   useradd --system --home-dir {service_units.SYSTEM_HOME} --shell /usr/sbin/nologin infernet
#   install -d -m 700 -o infernet -g infernet {service_units.SYSTEM_HOME}
#   runuser -u infernet -- env INFERNET_HOME={service_units.SYSTEM_HOME} {{command}} init
#   systemctl daemon-reload && systemctl enable --now infernet
# The user `infernet` must be able to read the program."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do."""
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument("--system", action="store_true", help="with unit: for the system's systemd instead")
    parser.add_argument("--no-start", action="store_true", help="with install: do not start it now")
    parser.add_argument("-f", "--follow", action="store_true", help="with logs: go on with the lines that come")
    parser.add_argument(
        "--lines",
        type=read_count,
        default=LINES_DEFAULT,
        metavar="N",
        help="with logs: how many to begin with (default: %(default)d)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    if arguments.system and arguments.action != "unit":
        raise Misuse(
            "the system's units are for root to write: `infernet service unit --system` prints one, and what to do"
        )
    actions = {"install": _install, "uninstall": _uninstall, "status": _status, "logs": _logs, "unit": _unit}
    try:
        return actions[arguments.action](arguments)
    except (ServiceError, service_units.Unwritable) as error:
        raise Failure(str(error)) from None


# ---------------------------------------------------------------- what is run


def manager() -> Manager:
    """The service manager of this system. Raises Failure where there is none that is known."""
    if sys.platform == "darwin":
        return Launchd(Path.home(), os.getuid())
    if sys.platform == "linux":
        config_home = os.environ.get("XDG_CONFIG_HOME", "")
        return Systemd(Path(config_home) if os.path.isabs(config_home) else Path.home() / ".config")
    raise Failure(
        "services are made for systemd (Linux) and launchd (macOS): run `infernet start` in your own way here"
    )


def service(config: Config) -> service_units.Service:
    """What the manager is to run."""
    words = ["start", "--foreground", *(["--log-to-file"] if sys.platform == "darwin" else [])]
    environment = {"INFERNET_HOME": str(config.config_dir.parent)} if os.environ.get("INFERNET_HOME") else {}
    folder = Path(service_units.__file__).resolve().parents[1]
    if not is_packaged() and str(folder) not in map(sysconfig.get_path, ("purelib", "platlib")):
        environment["PYTHONPATH"] = str(folder)
    writes = [config.config_dir, config.state_dir, config.data_dir]
    if config.socket_path.parent not in writes:
        writes.append(config.socket_path.parent)
    if is_packaged():
        # What the next version unpacks itself in.
        writes.append(unpacked_beside())
    mark = service_units.home_mark(config.state_dir)
    return service_units.Service([*_program(), *words], environment, writes, mark)


def _program() -> list[str]:
    """What a unit starts: of a packaged program its file, which stays where it is when it is replaced."""
    return [str(program_file())] if is_packaged() else self_command()


def text_for_user(config: Config) -> bytes:
    """What is written for this system's manager. Raises Unwritable."""
    if sys.platform == "darwin":
        return service_units.launchd_list(service(config), config.log_file)
    return service_units.user_unit(service(config)).encode()


def installed_for(here: Config) -> bool | None:
    """Whether the service that is installed is this node's; None when none is. Raises ServiceError or Failure."""
    data = read_ours(manager().path)
    return service_units.home_mark(here.state_dir).encode() in data if data is not None else None


def _require_ours(here: Config) -> None:
    if installed_for(here) is False:
        raise Failure(
            f"the service that is installed runs a node with another home ({manager().path}): give the command with "
            "the INFERNET_HOME of that one"
        )


# ---------------------------------------------------------------- the actions


def _unit(arguments: argparse.Namespace) -> int:
    config = places()
    if arguments.system:
        of_system = service(config)
        steps = _SYSTEM_STEPS.format(command=" ".join(_program()))
        text, path = (
            f"{service_units.system_unit(of_system)}\n{steps}\n",
            f"/etc/systemd/system/{service_units.UNIT_NAME}",
        )
    else:
        text, path = text_for_user(config).decode(), str(manager().path)
    if arguments.json:
        print_json({"path": path, "text": text})
    else:
        print(text, end="")
    return 0


def _install(arguments: argparse.Namespace) -> int:
    config = load().config
    identity.load(config.key_file)  # a service that fails at once, and again and again, helps nobody
    _require_ours(config)
    chosen = manager()
    text = text_for_user(config)
    for folder in service(config).writes:
        make_private_directory(folder)
    taken = [name for setting in BY_NAME.values() for name in setting.variables if os.environ.get(name)]
    if taken:
        warn(f"the service does not see {', '.join(taken)}: what it is to know is in the file (`infernet config set`)")
    pid = running_pid(config.pid_file)
    is_elsewhere = pid is not None and not chosen.state().is_active
    installed = chosen.install(text, start=not arguments.no_start and not is_elsewhere)
    lingers = chosen.lingers if isinstance(chosen, Systemd) else None
    if arguments.json:
        print_json(
            {
                "installed": True,
                "path": str(chosen.path),
                "changed": installed.is_changed,
                "started": installed.is_started,
                "stale": installed.is_stale,
                "running_elsewhere": pid if is_elsewhere else None,
                "lingers": lingers,
            }
        )
        return 0
    print(f"{'Written to' if installed.is_changed else 'As it was:'} {chosen.path}.")
    for line in _what_next(installed, pid if is_elsewhere else None, lingers=lingers):
        print(line)
    return 0


def _what_next(installed: Installed, elsewhere: int | None, *, lingers: bool | None) -> Iterator[str]:
    if installed.is_started:
        yield "The node runs: `infernet service status`, `infernet service logs -f`."
    if installed.is_stale:
        yield "The node goes on as it was started: `infernet stop`, then this again, for the new unit to take effect."
    if elsewhere is not None:
        yield f"A node runs already (process {elsewhere}): `infernet stop`, then this again, and the service runs it."
    if lingers is False:
        yield "It runs while you are logged in; to let it run always: sudo loginctl enable-linger $USER"


def _uninstall(arguments: argparse.Namespace) -> int:
    _require_ours(places())
    chosen = manager()
    was_there = chosen.uninstall()
    drop_ins = chosen.path.with_name(f"{chosen.path.name}.d")
    left = str(drop_ins) if drop_ins.is_dir() else None
    if arguments.json:
        print_json({"installed": False, "removed": was_there, "path": str(chosen.path), "left": left})
        return 0
    print(f"Removed {chosen.path}." if was_there else "The service is not installed; there was nothing to remove.")
    if left is not None:
        print(f"Your own changes are left: {left}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    chosen = manager()
    state = chosen.state()
    if arguments.json:
        print_json(
            {
                "installed": state.is_installed,
                "enabled": state.is_enabled,
                "active": state.is_active,
                "pid": state.pid,
                "restarts": state.restarts,
                "state": state.words,
                "path": str(chosen.path),
            }
        )
    elif not state.is_installed:
        print("The service is not installed: `infernet service install`.")
    else:
        print_fields(_fields(state, chosen.path))
    return 0 if state.is_active else 1


def _fields(state: State, path: Path) -> list[tuple[str, object]]:
    return [
        ("service", state.words),
        ("begins by itself", state.is_enabled),
        ("process", state.pid),
        ("restarts", state.restarts),
        ("unit", path),
    ]


# ---------------------------------------------------------------- logs


def _logs(arguments: argparse.Namespace) -> int:
    show = for_programs if arguments.json else for_people
    if isinstance(manager(), Launchd):
        path = places().log_file
        try:
            show_file(path, arguments.lines, show, follow=arguments.follow)
        except FileNotFoundError:
            raise Failure(no_log(path), log_file=str(path)) from None
        return 0
    program = find_program("journalctl")
    if program is None:
        raise Failure("journalctl is not here, so there is no journal to read: `infernet logs` reads the log file")
    words = [program, "--user", "--unit", service_units.UNIT_NAME, "--output=cat", "--no-pager", "--quiet"]
    words += [f"--lines={arguments.lines}", *(["--follow"] if arguments.follow else [])]
    return _journal(words, show)


def _journal(words: list[str], show: Callable[[str], str]) -> int:
    """Show what the journal says, line by line, until it ends or we are interrupted."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        is_empty = True
        try:
            for line in _lines(process):
                print(show(line), flush=True)
                is_empty = False
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise Failure(f"journalctl ended with {process.returncode}: may this user read the journal?")
    if is_empty and not manager().state().is_installed:
        raise Failure("there is no service, and the journal has nothing of one: `infernet service install`")
    if is_empty:
        warn("the journal has nothing of this service: `infernet service status` says whether it has run")
    return 0


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Lines without their ends; what is longer than one may be is cut into several."""
    assert process.stdout is not None
    while piece := process.stdout.readline(LINE_BYTES_MAX):
        yield piece.decode("utf-8", "replace").rstrip("\n")
