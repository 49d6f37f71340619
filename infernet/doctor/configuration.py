"""Checks of the configuration: where it is, whether it can be read, and what in it has no effect."""

from __future__ import annotations

import os
import shlex
import stat
from typing import Final

from infernet.config import ConfigError, load, places, why_nobody_pays
from infernet.doctor.contract import Check, Finding, Situation, fail, in_thread, ok, warn
from infernet.host.files import reason_of

# A configuration has a few hundred bytes, and is read whole.
FILE_BYTES_MAX: Final = 1024 * 1024


def _home(situation: Situation) -> Finding:
    try:
        situation.places = places(situation.environ)
    except (ConfigError, RuntimeError) as error:
        return fail(str(error), "set INFERNET_HOME to a folder of yours, or unset it")
    return ok(f"settings are in {situation.here.config_dir}, state in {situation.here.state_dir}")


def _readable(situation: Situation) -> Finding:
    path = situation.here.config_file
    try:
        if path.is_file() and path.stat().st_size > FILE_BYTES_MAX:
            return fail(
                f"{path} has more than {FILE_BYTES_MAX} bytes: it is no configuration",
                "move it away and run `infernet init`",
            )
        situation.loaded = load(environ=situation.environ)
    except ConfigError as error:
        return fail(str(error), f"mend {path} (or the variable that is named), or run `infernet init --force`")
    if not situation.loaded.has_file:
        return warn(f"there is no {path}: defaults hold", "run `infernet init`")
    return ok(f"{path} can be read")


def _known(situation: Situation) -> Finding:
    assert situation.loaded is not None
    warnings = situation.loaded.warnings
    if warnings:
        more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
        return warn(f"{warnings[0]}{more}", "`infernet config show` lists the settings there are; correct the name")
    if (unpaid := why_nobody_pays(situation.loaded.config)) is not None:
        found, _, fix = unpaid.partition(": ")
        return warn(found, fix)
    return ok("every setting and variable is one that has an effect")


def _mode(situation: Situation) -> Finding:
    path = situation.here.config_file
    try:
        status = path.stat()
    except FileNotFoundError:
        return ok("there is no file that others could change")
    except OSError as error:
        return fail(f"{path}: {reason_of(error)}", f"check the owner and mode of {path.parent}")
    if status.st_uid not in (os.getuid(), 0):
        return fail(f"{path} belongs to another user", f"run `chown {os.getuid()} {shlex.quote(str(path))}` as root")
    if status.st_mode & 0o022:
        return fail(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}: others can change what this node does",
            f"look through it, then run `chmod 600 {shlex.quote(str(path))}`",
        )
    return ok(f"only you can change {path}")


CHECKS: Final = (
    Check(
        id="config.home",
        title="Folders are known",
        looks="Where this node's files lie: below `INFERNET_HOME`, or in the XDG directories.",
        remedy="Set `INFERNET_HOME` to a folder of yours, or unset it.",
        examine=in_thread(_home),
    ),
    Check(
        id="config.readable",
        title="Configuration can be read",
        looks="Whether `config.toml`, the `INFERNET_...` variables and all values in them can be used together.",
        remedy="The line names file, setting and what is allowed. Mend it by hand or with `infernet config set`; "
        "`infernet init --force` begins anew, keeps the old file aside and leaves the key as it is.",
        examine=in_thread(_readable),
        needs=("config.home",),
    ),
    Check(
        id="config.known",
        title="Settings have an effect",
        looks="Settings and variables that nothing reads, mostly misspelt ones, and settings that contradict others.",
        remedy="Correct the name; `infernet config show` lists every setting with its variable.",
        examine=in_thread(_known),
        needs=("config.readable",),
    ),
    Check(
        id="config.mode",
        title="Configuration is yours alone",
        looks="Owner and mode of `config.toml`. Who can write it decides whom this node trusts.",
        remedy="Look through the file, then `chmod 600` it.",
        examine=in_thread(_mode),
        needs=("config.home",),
    ),
)
