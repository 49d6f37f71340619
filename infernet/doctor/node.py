"""Checks of the running node: whether there is one, whether it answers, and what it says of its links."""

from __future__ import annotations

import errno
import os
from typing import Final

import trio

import infernet
from infernet.doctor.contract import Check, Finding, Part, Situation, fail, in_thread, ok, part_of, skip, text_of, warn
from infernet.host.files import FilesError
from infernet.host.lock import running_pid
from infernet.ipc import client as ipc
from protocol.formats.text import clean_line
from protocol.records import Role

STATUS_TIMEOUT_S: Final = 3.0
_RESTART: Final = "restart it: `infernet stop`, then `infernet start`"


def _stale(situation: Situation) -> Finding:
    path = situation.here.pid_file
    try:
        if running_pid(path) is not None:
            return ok("the lock is held by the node that runs")
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return ok("no node has run here")
    except (OSError, FilesError) as error:
        return fail(f"{path} cannot be read ({_reason(error)})", f"move {path} away")
    try:
        left = os.read(file, 32).strip()
    except OSError as error:
        return fail(f"{path} cannot be read ({_reason(error)})", f"move {path} away")
    finally:
        os.close(file)
    if left:
        return warn(
            "the last node here ended without a goodbye: it was killed, or the machine went down",
            f"see the end of {situation.here.log_file}; `infernet start` takes the lock over",
        )
    return ok("the last node here ended as it should")


def _running(situation: Situation) -> Finding:
    try:
        pid = running_pid(situation.here.pid_file)
    except (OSError, FilesError) as error:
        return warn(f"it cannot be told whether a node runs ({_reason(error)})", "see the check lock.stale")
    situation.pid = pid
    if pid is None:
        return warn("no node is running", "run `infernet start`")
    return ok(f"the node runs (process {pid})")


def _answers(situation: Situation) -> Finding:
    if situation.pid is None:
        return ok("no node is running, and nothing answers in its place")
    try:
        status = ipc.call(situation.here.socket_path, "status", timeout_s=STATUS_TIMEOUT_S)
    except ipc.NotRunning:
        return fail(
            f"process {situation.pid} runs this node and is starting or ending: it does not listen to its owner",
            f"wait if it was just started or stopped; else `infernet stop --force`, then `infernet start`; "
            f"log: {situation.here.log_file}",
        )
    except ipc.IpcError as error:
        return fail(
            f"process {situation.pid} runs this node and does not answer: {error}",
            f"wait if it was just started; else `infernet stop --force`, then `infernet start`; "
            f"log: {situation.here.log_file}",
        )
    if not isinstance(status, dict):
        return fail("the running node answers in a form that this version does not know", _RESTART)
    situation.status = status
    return ok("the running node answers")


async def _version(situation: Situation) -> Finding:
    await trio.lowlevel.checkpoint()
    if situation.status is None:
        return skip("no node is running")
    running = text_of(situation.status, "version")
    if running != infernet.__version__:
        return warn(f"the running node is version {running}, this program {infernet.__version__}", _RESTART)
    return ok(f"the running node is version {running}")


async def _settings(situation: Situation) -> Finding:
    await trio.lowlevel.checkpoint()
    status, config = situation.status, situation.config
    if status is None:
        return skip("no node is running")
    pairs = {
        "role": (text_of(status, "role"), config.role.name.lower()),
        "coordinator_url": (text_of(status, "coordinator_url"), config.coordinator_url or ""),
        "key": (text_of(status, "node_id"), situation.node.hex() if situation.node is not None else ""),
    }
    changed = [name for name, (running, written) in pairs.items() if running != written]
    if changed:
        return warn(f"the running node was started with another {' and '.join(changed)}", _RESTART)
    return ok("the running node has the role, the coordinator and the key that are set")


async def _hours(situation: Situation) -> Finding:
    await trio.lowlevel.checkpoint()
    if situation.status is None:
        return skip("no node is running")
    if situation.status.get("paused") is True:
        return warn("the running node is paused, and takes no new jobs", "`infernet schedule resume` lets it go on")
    hours = part_of(situation.status, "hours")
    if not hours:
        return ok("the running node serves at any hour")
    words = clean_line(text_of(hours, "words"))
    if hours.get("open") is True:
        return ok(f"the running node is {words}")
    return ok(f"the running node is {words}, and takes no new jobs")


async def _heartbeat(situation: Situation) -> Finding:
    await trio.lowlevel.checkpoint()
    if situation.status is None:
        return skip("no node is running")
    if situation.config.coordinator_url is None:
        return skip("there is no coordinator to tell")
    if situation.config.role is Role.CLIENT:
        return skip("a client keeps no link")
    link = part_of(situation.status, "coordinator")
    if text_of(link, "state") == "connected":
        return ok("the coordinator gets this node's heartbeats")
    why = text_of(link, "last_error")
    return fail(
        "the running node has no link to its coordinator" + (f": {why}" if why else ""),
        f"put right what the line says, or {_RESTART}; log: {situation.here.log_file}",
    )


async def _peers(situation: Situation) -> Finding:
    await trio.lowlevel.checkpoint()
    if situation.status is None:
        return skip("no node is running")
    if not situation.config.p2p_enabled:
        return skip("libp2p is off here")
    link = situation.status.get("coordinator")
    if isinstance(link, dict) and text_of(link, "state") != "connected":
        return skip("not looked at: node.heartbeat comes first")
    count = situation.status.get("peers")
    if not isinstance(count, int) or count < 1:
        return warn(
            "the running node is connected to nobody",
            "have somebody's `infernet invite` and `infernet join` it, or set a coordinator (`infernet init --url`)",
        )
    return ok(f"the running node is connected to {count}")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or errno.errorcode.get(error.errno or 0, "an error")).lower()
    return "it is in the way, or belongs to another user"


CHECKS: Final = (
    Check(
        id="lock.stale",
        title="Last node ended well",
        looks="The lock file: a process id in it that nobody holds is left of a node that was killed.",
        remedy="See the end of `daemon.log`; a start takes the lock over. If it happens again and again, look for "
        "memory that ran out (`dmesg`).",
        examine=in_thread(_stale),
        needs=("home.writable",),
    ),
    Check(
        id="node.running",
        title="Node is running",
        looks="Whether a process runs this node.",
        remedy="`infernet start`.",
        examine=in_thread(_running),
        needs=("home.writable",),
    ),
    Check(
        id="ipc.answers",
        title="Running node answers",
        looks="Whether the process that runs this node answers on its socket.",
        remedy="Wait if it was just started. Else `infernet stop --force`, then `infernet start`.",
        examine=in_thread(_answers),
        needs=("node.running", "home.private"),
    ),
    Check(
        id="node.version",
        title="Running node is this version",
        looks="Whether the running node is of the version that is installed.",
        remedy="`infernet stop`, then `infernet start`.",
        examine=_version,
        needs=("ipc.answers",),
    ),
    Check(
        id="node.settings",
        title="Running node has these settings",
        looks="Whether role, coordinator and key of the running node are those that are set now. Flags of `infernet "
        "start` differ on purpose.",
        remedy="`infernet stop`, then `infernet start`.",
        examine=_settings,
        needs=("config.readable", "key.whole", "ipc.answers"),
    ),
    Check(
        id="node.hours",
        title="Node is within its hours",
        looks="Whether the running node is paused, or within the hours in which its owner lets it run jobs for others. "
        "Outside of them all is well, and no job comes.",
        remedy="Wait, or change them: `infernet schedule`; `infernet schedule resume` where it is paused.",
        examine=_hours,
        needs=("ipc.answers",),
    ),
    Check(
        id="node.heartbeat",
        title="Heartbeats arrive",
        looks="Whether the running node's link to its coordinator is up; heartbeats travel over it.",
        remedy="The line says why not. The other checks of the coordinator and of the clock may say more.",
        examine=_heartbeat,
        # Without these there can be no link, and they say why.
        needs=("config.readable", "ipc.answers", "coordinator.key", "clock.skew"),
        part=Part.NETWORK,
    ),
    Check(
        id="node.peers",
        title="Node has peers",
        looks="How many peers the running node is connected to.",
        remedy="`infernet join` with somebody's invite, or set a coordinator, which lists peers.",
        examine=_peers,
        needs=("config.readable", "ipc.answers"),
        part=Part.NETWORK,
    ),
)
