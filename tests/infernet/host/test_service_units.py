"""infernet/host/service_units.py: units that systemd takes, whatever the paths are called."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infernet.host.service_units import MARK, Service, Unwritable, home_mark, launchd_list, system_unit, user_unit

SERVICE = Service(
    [sys.executable, "-P", "-m", "infernet.cli", "start", "--foreground"],
    {"INFERNET_HOME": "/srv/infernet"},
    (Path("/srv/infernet/config"), Path("/srv/infernet/state")),
)
ODD = Service(
    [sys.executable, "a b", "50%", "$HOME", 'say "no"', "back\\slash", "it's", "x;y", "#1", ""],
    {"INFERNET_HOME": '/srv/a b/50% "off"/$HOME/\\n'},
    (Path("/srv/a b/50%"), Path('/srv/"quoted"')),
)


def values(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)


@pytest.mark.parametrize("unit", [user_unit(SERVICE), system_unit(SERVICE)])
def test_it_is_watched_started_again_and_ended_gently(unit: str) -> None:
    for name, value in {
        "Type": "notify",
        "NotifyAccess": "main",
        "Restart": "on-failure",
        "RestartPreventExitStatus": "2",
        "WatchdogSec": "60",
        "TimeoutStopSec": "60",
        "KillMode": "mixed",
        "ExecStart": f"{sys.executable} -P -m infernet.cli start --foreground",
    }.items():
        assert values(unit, name) == [value], name


@pytest.mark.parametrize("unit", [user_unit(SERVICE), system_unit(SERVICE)])
def test_it_is_hardened_and_no_further_than_the_node_can_live_with(unit: str) -> None:
    for name, value in {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "PrivateTmp": "yes",
        "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallFilter": "@system-service",
        "RestrictNamespaces": "yes",
        "UMask": "0077",
    }.items():
        assert values(unit, name) == [value], name
    for name in ("MemoryDenyWriteExecute", "PrivateDevices", "PrivateNetwork", "ProtectClock"):
        assert values(unit, name) == [], name


def test_a_users_unit_may_write_its_own_folders_only() -> None:
    unit = user_unit(SERVICE)
    assert values(unit, "ReadWritePaths") == ["-/srv/infernet/config", "-/srv/infernet/state"]
    assert values(unit, "Environment") == ["INFERNET_HOME=/srv/infernet"]
    assert values(unit, "WantedBy") == ["default.target"]
    assert MARK.lower() in unit.splitlines()[0].lower()


def test_the_home_is_told_apart_in_the_first_lines() -> None:
    one, two = home_mark(Path("/srv/one")), home_mark(Path("/srv/two"))
    assert one != two
    marked = Service(["/bin/x"], {}, (), one)
    assert one in user_unit(marked).splitlines()[0]
    assert one in launchd_list(marked, Path("/x")).decode().splitlines()[1]


def test_the_systems_unit_is_of_a_user_of_its_own() -> None:
    unit = system_unit(SERVICE)
    assert values(unit, "User") == ["infernet"]
    assert values(unit, "Environment") == ["INFERNET_HOME=/var/lib/infernet"]
    assert values(unit, "StateDirectory") == ["infernet"]
    assert values(unit, "ReadWritePaths") == []
    assert values(unit, "CapabilityBoundingSet") == [""]
    assert values(unit, "WantedBy") == ["multi-user.target"]


@pytest.mark.parametrize(("folder", "protect"), [("/usr", "yes"), ("/home", "read-only"), ("/homes", "yes")])
def test_a_program_in_somebodys_home_can_still_be_read(folder: str, protect: str) -> None:
    assert values(system_unit(Service([f"{folder}/x/infernet"])), "ProtectHome") == [protect]


@pytest.mark.parametrize(("folder", "private"), [("/tmp/x/state", "no"), ("/tmpfs/x", "yes"), ("/var/tmp/x", "no")])
def test_files_in_the_folder_for_temporary_ones_can_be_found(folder: str, private: str) -> None:
    assert values(user_unit(Service(["/bin/x"], {}, [Path(folder)])), "PrivateTmp") == [private]


@pytest.mark.parametrize("word", ["a\nExecStartPre=/bin/evil", "a\0", "\x1b[2J", "\u2028"])
def test_what_would_end_a_line_is_refused(word: str) -> None:
    for service in (Service(["/bin/x", word]), Service(["/bin/x"], {"A": word}), Service(["/bin/x"], {}, [Path(word)])):
        with pytest.raises(Unwritable):
            user_unit(service)
    with pytest.raises(Unwritable):
        launchd_list(Service(["/bin/x", word]), Path("/x"))


@pytest.mark.parametrize("service", [SERVICE, ODD])
@pytest.mark.parametrize("kind", ["--user", "--system"])
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path, service: Service, kind: str) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "infernet.service"
    unit.write_text(user_unit(service) if kind == "--user" else system_unit(service))
    environ = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [program, "verify", "--man=no", kind, str(unit)], check=False, capture_output=True, text=True, env=environ
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_odd_words_come_to_the_program_as_they_are() -> None:
    unit = user_unit(ODD)
    (command,) = values(unit, "ExecStart")
    quoted = ['"a b"', "50%%", "$$HOME", '"say \\"no\\""', '"back\\\\slash"', '"it\'s"', '"x;y"', '"#1"', '""']
    expected = [sys.executable, *quoted]
    assert command == " ".join(expected)
    assert values(unit, "Environment") == ['"INFERNET_HOME=/srv/a b/50%% \\"off\\"/$HOME/\\\\n"']
    assert values(unit, "ReadWritePaths") == ['"-/srv/a b/50%%"', '"-/srv/\\"quoted\\""']


def test_the_list_for_launchd() -> None:
    data = launchd_list(ODD, Path("/srv/a & b/daemon.log"))
    assert MARK.lower() in data.decode().splitlines()[1].lower()
    document = plistlib.loads(data)
    assert document["ProgramArguments"] == list(ODD.command)
    assert document["EnvironmentVariables"] == ODD.environment
    assert document["KeepAlive"] == {"SuccessfulExit": False}
    assert (document["RunAtLoad"], document["Umask"]) == (True, 0o077)
    assert document["StandardErrorPath"] == "/srv/a & b/daemon.log"
