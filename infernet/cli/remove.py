"""`infernet remove`: wipe this node from this machine, and say first what would be lost."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from infernet import identity
from infernet.cli.command import Failure
from infernet.cli.money import ask_as_it_is, fields_of
from infernet.cli.output import print_json, size
from infernet.cli.questions import confirm
from infernet.cli.stop import POLL_INTERVAL_S, WAIT_S_DEFAULT, end_node
from infernet.cli.wallet import vouchers
from infernet.config import Config, ConfigError, load, places
from infernet.coordinators import former
from infernet.host.files import FilesError
from infernet.host.lock import AlreadyRunning, hold_lock, running_pid
from infernet.host.packaged import forget_unpacked, is_packaged, program_file, programs_in_use, unpacked_programs
from infernet.host.wiping import OF_MODELS, OF_RECORDS, OF_SETTINGS, CannotWipe, check, size_of, strangers, wipe
from infernet.ipc.client import IpcError
from infernet.store import StoreError
from protocol.formats.amounts import format_usd
from protocol.formats.text import clean_line
from protocol.ids import npub

# With the drafts that a key is written as, one of which stays where a machine loses power in between.
_KEYS: Final = "*identity.key*"
#: A key that another was put in the place of.
_OLDER_KEYS: Final = "identity.key.*"
_UUSD_MAX: Final = 2**63
_LOCK_TIMEOUT_S: Final = 5.0
_STRANGERS_SHOWN: Final = 3

USAGE: Final = "[--yes] [--keep-config] [--keep-models] [--keep-remote] [--keep-binary] [MORE]"
DESCRIPTION: Final = """\
Wipe this node from this machine: end it if it runs, take its service away, have its coordinator forget it, and remove
its settings, its key, its records and its models. It says what goes, and asks. There is no way back: without a copy of
the key nobody gets this identity again, nor what it owns. The program itself stays; what a packaged one has unpacked
goes with the rest, unless something is to be kept.

Where money would be lost it refuses, and says how much: what the coordinator holds for this key, and each of those that
it had before, and vouchers that were not redeemed. So it does when that cannot be found out. --leave-out names a
coordinator that is gone for good; --abandon-money gives up all that would be lost."""
EXAMPLES: Final = """\
examples:
  infernet remove
  infernet remove --keep-config --keep-models     only records, peers and log: a fresh start under the same key
  infernet remove --yes --keep-remote             the coordinator is not there to be told
  infernet wallet claim                           before that, where vouchers were not redeemed
  infernet payout request 25                      before that, where there is money; wait until it is out

Exits with 0 when nothing is left of what was to go, also where nothing was there to begin with; with 1 when something
is still there, and then the same command goes on where it was."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to keep, and what to agree to in advance."""
    parser.add_argument("--yes", action="store_true", help="do not ask; end the node if it runs")
    parser.add_argument("--keep-config", action="store_true", help="keep the settings and the key")
    parser.add_argument("--keep-models", action="store_true", help="keep the models")
    parser.add_argument("--keep-remote", action="store_true", help="leave the entry at the coordinator as it is")
    parser.add_argument("--keep-binary", action="store_true", help="keep the program, which this does in any case")
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        metavar="URL",
        help="a coordinator that is gone, and is neither asked nor told; give it once for each",
    )
    parser.add_argument("--abandon-money", action="store_true", help="give up money that would be lost")


def run(arguments: argparse.Namespace) -> int:
    """Look, ask, end, wipe."""
    here = places()
    try:
        return _remove(here, arguments)
    except CannotWipe as error:
        raise Failure(str(error)) from None


def _remove(here: Config, arguments: argparse.Namespace) -> int:
    # The key goes last: as long as something else is left, the same command can be given again.
    folders = {here.state_dir: "records, peers and log"}
    if not arguments.keep_models:
        folders[here.data_dir] = "models"
    if not arguments.keep_config:
        folders[here.config_dir] = "settings and key"
    there = {folder: what for folder, what in folders.items() if check(folder)}
    service = _service(here)
    keeps = arguments.keep_config or arguments.keep_models or arguments.keep_binary
    unpacked = [] if keeps else _unpacked(here)
    if not there and service is None:
        _tell(Removed(), as_json=arguments.json)
        _leave(unpacked)
        return 0
    _refuse_strangers(here, there)
    config, key, trouble = _settings(here)
    losses = _losses(here, config, key, trouble, arguments)
    if not arguments.abandon_money:
        _refuse_loss(losses)
    pid = running_pid(here.pid_file)
    told: list[Remote] = []
    if key is not None and not arguments.keep_remote:
        # Where the list cannot be read, the loss is told of above; whoever gives that up has nobody told.
        with contextlib.suppress(FilesError):
            told = _coordinators(config, arguments.leave_out)
    if not arguments.yes:
        shown = there | dict.fromkeys(unpacked, "this program, unpacked")
        for line in _announcement(shown, pid, service, told, key, losses):
            print(line, file=sys.stderr)
        if not confirm("Remove all this for good?", "--yes"):
            raise Failure("nothing was removed")
    removed = Removed()
    if (pid := running_pid(here.pid_file)) is not None:
        end_node(here, pid, WAIT_S_DEFAULT, force=False, quiet=arguments.json)
        removed.stopped = pid
        # Jobs that have ended since may have earned something.
        losses = _losses(here, config, key, trouble, arguments)
        if not arguments.abandon_money:
            _refuse_loss(losses)
    removed.lost = losses
    for coordinator in told:
        removed.deregistered |= _deregister(coordinator)
    if service is not None:
        removed.service = _uninstall(service)
    if here.state_dir in there:
        with _alone(here):
            _wipe(there, removed)
    else:
        _wipe(there, removed)
    unpacked = _free(unpacked)
    removed.folders += tuple(unpacked)
    removed.left = {} if keeps else {folder: pids for folder, pids in programs_in_use().items() if pids}
    _tell(removed, as_json=arguments.json)
    _leave(unpacked)
    return 0


# ---------------------------------------------------------------- what there is


def _refuse_strangers(here: Config, there: Iterable[Path]) -> None:
    """Raises Failure where a folder holds what no node has written: its owner will not get it back."""
    ours = {here.config_dir: OF_SETTINGS, here.state_dir: OF_RECORDS, here.data_dir: OF_MODELS}
    found = [path for folder in there for path in strangers(folder, ours[folder])]
    if found:
        shown = ", ".join(clean_line(str(path), 200) for path in found[:_STRANGERS_SHOWN])
        more = f" and {len(found) - _STRANGERS_SHOWN} more" if len(found) > _STRANGERS_SHOWN else ""
        raise Failure(
            f"{shown}{more}: no node has written this, and nothing was removed; move it away, or remove it yourself"
        )


@dataclass(frozen=True)
class Loss:
    """Money that would be lost; without an amount, what cannot be found out."""

    what: str
    uusd: int | None

    def __str__(self) -> str:
        return f"{format_usd(self.uusd)} {self.what}" if self.uusd is not None else self.what


@dataclass(frozen=True)
class Remote:
    """A coordinator that this key may be known to, and how it is asked."""

    url: str
    ask: Callable[..., Any]


@dataclass
class Removed:
    """What was done."""

    folders: tuple[Path, ...] = ()
    stopped: int | None = None
    service: str | None = None
    deregistered: bool = False
    #: Folders that other processes run from.
    left: dict[Path, list[int]] = field(default_factory=dict)
    lost: tuple[Loss, ...] = ()


def _settings(here: Config) -> tuple[Config | None, str | None, str]:
    """The settings and this node's npub as far as they can be read, and why not."""
    trouble = ""
    try:
        key: str | None = npub(identity.load(here.key_file).node)
    except identity.NoIdentity:
        key = None
    except identity.IdentityError as error:
        key, trouble = None, str(error)
    try:
        return load().config, key, trouble
    except ConfigError as error:
        return None, key, str(error)


def _losses(
    here: Config, config: Config | None, key: str | None, trouble: str, arguments: argparse.Namespace
) -> tuple[Loss, ...]:
    """All that would be lost, as far as it can be found out; `trouble` says why it cannot."""
    losses: list[Loss] = []
    try:
        if unclaimed_uusd := vouchers(config or here)["unclaimed_uusd"]:
            losses.append(Loss("in vouchers that were not redeemed (`infernet wallet claim`)", unclaimed_uusd))
    except (StoreError, IpcError) as error:
        losses.append(Loss(f"the records of money cannot be read ({clean_line(str(error), 300)})", None))
    if arguments.keep_config:
        return tuple(losses)
    if trouble:
        losses.append(Loss(f"what this key owns cannot be found out ({clean_line(trouble, 300)})", None))
    elif key is not None:
        try:
            for coordinator in _coordinators(config, arguments.leave_out):
                losses += _held_by(coordinator)
        except FilesError as error:
            losses.append(Loss(clean_line(str(error), 500), None))
    losses += [
        Loss(f"an older key lies at {clean_line(str(path), 500)}, and nobody is asked what it owns: move it away", None)
        for path in sorted(here.config_dir.glob(_OLDER_KEYS))
    ]
    return tuple(losses)


def _coordinators(config: Config | None, leave_out: Collection[str]) -> list[Remote]:
    """The coordinator that is set, and those that were: each may hold something for this key. Raises FilesError."""
    if config is None:
        return []
    now = (config.coordinator_url, config.coordinator_key.hex() if config.coordinator_key is not None else None)
    before = [one for one in former(config.config_dir) if (one.url, one.key) != now]
    current = [(config.coordinator_url, None)] if config.coordinator_url is not None else []
    return [
        Remote(url, functools.partial(ask_as_it_is, one))
        for url, one in (*current, *((one.url, one) for one in before))
        if url not in leave_out
    ]


def _held_by(coordinator: Remote) -> Iterator[Loss]:
    from infernet.coordinator_client import CoordinatorError
    from infernet.money.client import NOT_REGISTERED

    url = coordinator.url
    try:
        wallet = fields_of(coordinator.ask("wallet"))
    except (CoordinatorError, Failure, IpcError) as error:
        if isinstance(error, Failure) and error.details.get("code") == NOT_REGISTERED:
            return  # it does not know this key
        yield Loss(f"{url} does not say what it holds ({clean_line(str(error), 300)})", None)
        return
    names = {
        "available_uusd": "available (`infernet payout request AMOUNT`)",
        "locked_uusd": "locked in leases (`infernet wallet close`)",
        "payout_pending_uusd": "on its way out, which comes back here if it fails",
    }
    for name, what in names.items():
        uusd = wallet.get(name)
        if isinstance(uusd, bool) or not isinstance(uusd, int) or not 0 <= uusd < _UUSD_MAX:
            yield Loss(f"{url} does not say in numbers what is {what}", None)
        elif uusd:
            yield Loss(f"{what} at {url}", uusd)


def _refuse_loss(losses: tuple[Loss, ...]) -> None:
    if losses:
        amounts = [loss.uusd for loss in losses if loss.uusd is not None]
        raise Failure(
            f"nothing was removed, for MONEY WOULD BE LOST: {'; '.join(map(str, losses))}. Take it out first, or give "
            "it up with --abandon-money",
            lost_uusd=sum(amounts),
            lost_is_known=len(amounts) == len(losses),
        )


def _service(here: Config) -> Path | None:
    """The unit of this node, if a service manager has one."""
    from infernet.cli.service import installed_for, manager
    from infernet.host.service_manager import ServiceError

    try:
        return manager().path if installed_for(here) else None
    except (Failure, ServiceError):
        return None  # there is no manager, or the unit is somebody else's


def _announcement(
    there: dict[Path, str],
    pid: int | None,
    service: Path | None,
    told: list[Remote],
    key: str | None,
    losses: tuple[Loss, ...],
) -> Iterator[str]:
    if pid is not None:
        yield f"The node runs (process {pid}) and is ended first."
    yield "This is removed:"
    for folder, what in there.items():
        yield f"  {clean_line(str(folder), 500)}  ({what}, {size(size_of(folder))})"
    if service is not None:
        yield f"  {clean_line(str(service), 500)}  (the service)"
    for coordinator in told:
        yield f"  the entry at {coordinator.url}"
    if key is not None and any("key" in what for what in there.values()):
        yield f"The key {key} goes with it. Without a copy nobody ever is this node again."
    for loss in losses:
        yield f"LOST: {loss}"


# ---------------------------------------------------------------- doing it


def _uninstall(path: Path) -> str:
    from infernet.cli.service import manager
    from infernet.host.service_manager import ServiceError

    try:
        manager().uninstall()
    except ServiceError as error:
        raise Failure(f"the service cannot be taken away: {error}; no file was removed") from None
    return str(path)


def _deregister(coordinator: Remote) -> bool:
    """Have the coordinator forget this node; gives whether it knew it. Raises Failure."""
    from infernet.coordinator_client import CoordinatorError
    from infernet.money.client import NOT_REGISTERED

    try:
        answer = fields_of(coordinator.ask("remove", role=load().config.role.name.lower()))
    except (CoordinatorError, Failure) as error:
        if isinstance(error, Failure) and error.details.get("code") == NOT_REGISTERED:
            return False
        raise Failure(
            f"{error}; no file was removed: try again, or leave the entry at {coordinator.url} as it is with "
            "--keep-remote or --leave-out"
        ) from None
    return answer.get("deleted") is True


@contextlib.contextmanager
def _alone(here: Config) -> Iterator[None]:
    """Hold the lock of this node, so that none is started meanwhile. Raises AlreadyRunning."""
    # One that has just ended may hold it for a moment longer than it says.
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold_lock(here.pid_file))
                break
            except AlreadyRunning:
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_INTERVAL_S)
        yield


def _wipe(there: dict[Path, str], removed: Removed) -> None:
    for folder in there:
        wipe(folder, _KEYS)
        removed.folders += (folder,)


def _unpacked(here: Config) -> list[Path]:
    """What this program has unpacked and can go. A node that was just ended may be dying: that is waited for."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        folders = programs_in_use(running_pid(here.pid_file))
        if not any(folders.values()) or time.monotonic() > deadline:
            return [folder for folder, pids in folders.items() if not pids]
        time.sleep(POLL_INTERVAL_S)


def _free(unpacked: list[Path]) -> list[Path]:
    """Those of these folders that nothing runs from; what has just ended may take a moment to be gone."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while unpacked and time.monotonic() < deadline:
        free = unpacked_programs()
        if set(unpacked) <= set(free):
            return unpacked
        time.sleep(POLL_INTERVAL_S)
    return [folder for folder in unpacked if folder in unpacked_programs()]


def _leave(unpacked: Iterable[Path]) -> None:
    """The last thing that this process does: what it runs from goes."""
    forget_unpacked(unpacked)
    home = os.environ.get("INFERNET_HOME")
    if home:
        # Somebody else's files may lie there, too.
        with contextlib.suppress(OSError):
            Path(home).expanduser().rmdir()


def _tell(removed: Removed, *, as_json: bool) -> None:
    if as_json:
        done: dict[str, Any] = {
            "removed": [str(folder) for folder in removed.folders],
            "stopped": removed.stopped,
            "service": removed.service,
            "deregistered": removed.deregistered,
            "left": [str(folder) for folder in removed.left],
            "lost_uusd": sum(loss.uusd or 0 for loss in removed.lost),
            "lost_is_known": all(loss.uusd is not None for loss in removed.lost),
        }
        print_json(done)
        return
    if not removed.folders and removed.service is None:
        print("There is nothing of a node here.")
        return
    for folder in removed.folders:
        print(f"Removed {clean_line(str(folder), 500)}.")
    if removed.service is not None:
        print(f"Removed {clean_line(removed.service, 500)}.")
    if removed.deregistered:
        print("The coordinator has forgotten this node.")
    for folder, pids in removed.left.items():
        users = ", ".join(map(str, pids[:_STRANGERS_SHOWN]))
        print(f"Left {clean_line(str(folder), 500)}: process {users} runs from it. Remove it when that has ended.")
    if is_packaged():
        print(f"The program itself is the file {clean_line(str(program_file()), 500)}: it stays.")
    for loss in removed.lost:
        print(f"Given up: {loss}")
