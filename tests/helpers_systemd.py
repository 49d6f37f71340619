"""Doubles of systemd's tools: scripts that keep a little state in a folder, and do what they are told to fail at."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

_SYSTEMCTL = """\
#!/bin/sh
state={state}
units=$XDG_CONFIG_HOME/systemd/user
echo "$*" >> $state/calls
[ "$1 $2 $3" = "--user --no-pager --no-ask-password" ] || {{ echo "not for a user"; exit 64; }}
shift 3
if grep -qx "$1" $state/fails; then printf 'some words\nFailed to %s: \033[31mno such thing\n' $1; exit 1; fi
case "$1" in
show)
    [ "$2" = --property=Version ] && echo Version=252.38 && exit 0
    [ -e $units/infernet.service ] && echo LoadState=loaded || echo LoadState=not-found
    [ -e $state/active ] && echo ActiveState=active || echo ActiveState=inactive
    [ -e $state/active ] && echo SubState=running || echo SubState=dead
    [ -L $units/default.target.wants/infernet.service ] && echo UnitFileState=enabled
    [ -e $state/active ] && echo MainPID=4711 || echo MainPID=0
    echo NRestarts=2; echo Result=success
    [ -e $state/active ] && echo StatusText=provider fake;;
enable)
    mkdir -p $units/default.target.wants
    ln -sf $units/infernet.service $units/default.target.wants/infernet.service;;
disable) rm -f $state/active $units/default.target.wants/infernet.service;;
start) touch $state/active;;
reset-failed) echo "Unit not loaded."; exit 1;;
esac
exit 0
"""
_JOURNALCTL = """\
#!/bin/sh
echo "$*" >> {state}/journal-calls
cat {state}/journal
exit $(cat {state}/journal-code)
"""


@dataclass
class FakeSystemd:
    """The scripts, and what was asked of them. `programs` goes in front of PATH, `config_home` is XDG_CONFIG_HOME."""

    programs: Path
    config_home: Path

    @property
    def unit(self) -> Path:
        return self.config_home / "systemd" / "user" / "infernet.service"

    @property
    def link(self) -> Path:
        return self.unit.parent / "default.target.wants" / "infernet.service"

    def calls(self) -> list[str]:
        """The verbs of systemctl so far, but for questions."""
        words = (self.programs / "calls").read_text().splitlines()
        return [line.removeprefix("--user --no-pager --no-ask-password ") for line in words if " show " not in line]

    def fail_at(self, *verbs: str) -> None:
        (self.programs / "fails").write_text("".join(f"{verb}\n" for verb in verbs))

    def set_active(self) -> None:
        (self.programs / "active").touch()

    def write_journal(self, text: str, code: int = 0) -> None:
        (self.programs / "journal").write_text(text)
        (self.programs / "journal-code").write_text(str(code))


def fake_systemd(folder: Path) -> FakeSystemd:
    """Make one."""
    fake = FakeSystemd(folder / "bin", folder / "xdg")
    fake.programs.mkdir()
    for name, text in (("systemctl", _SYSTEMCTL), ("journalctl", _JOURNALCTL)):
        program = fake.programs / name
        program.write_text(text.format(state=fake.programs))
        program.chmod(stat.S_IRWXU)
    (fake.programs / "calls").touch()
    fake.fail_at()
    fake.write_journal("")
    return fake
