"""Checks of the machine: Python, libraries, limits, memory, clock."""

from __future__ import annotations

import importlib
import importlib.util
import resource
import sys
from datetime import UTC, datetime
from importlib import metadata
from typing import Final

import trio

from infernet.confinement.contract import describe
from infernet.confinement.profiles import available, open_to_engines, switched_off
from infernet.doctor.contract import Check, Finding, Situation, fail, in_thread, ok, skip, warn
from infernet.host.packaged import NOT_INSIDE, is_packaged
from infernet.settings.readers import EXLLAMA
from infernet.transport.contract import TransportError
from protocol.records import Role

PYTHON_MIN: Final = (3, 11)
PYTHON_END: Final = (3, 14)
# Sockets of strangers, of peers and of the engine; below the first number a node soon takes no more connections.
FILES_MIN: Final = 256
FILES_WANTED: Final = 1024
# Beside the weights an engine holds its contexts and its buffers.
MEMORY_FACTOR: Final = 1.2
# No release is older than this: a clock that says so was never set.
RELEASED_MS: Final = 1_767_225_600_000
_LIBRARIES: Final = (
    "coincurve", "cryptography", "httpx", "libp2p", "msgpack", "msgspec", "multiaddr", "psutil", "structlog",
    "tomlkit", "trio_websocket",
)  # fmt: skip
_ENGINE_LIBRARY: Final = "xllamacpp"
_LOAD_DEADLINE_S: Final = 20.0


def _python(_situation: Situation) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if not PYTHON_MIN <= sys.version_info[:2] < PYTHON_END:
        return fail(
            f"Python {version} is not supported (3.11 to 3.13 are)", "make a new environment with `python3.13 -m venv`"
        )
    return ok(f"Python {version}")


def _present(_situation: Situation) -> Finding:
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        return fail(f"not installed: {', '.join(missing)}", "install infernet again: `pip install --force-reinstall`")
    return ok(f"all {len(_LIBRARIES)} libraries are installed")


async def _libp2p(_situation: Situation) -> Finding:
    try:
        library = await trio.to_thread.run_sync(
            importlib.import_module, "infernet.transport.libp2p_library", abandon_on_cancel=True
        )
        await library.check_library()
    except (ImportError, TransportError) as error:
        return fail(str(error), "install the pinned version, or infernet again")
    return ok(f"libp2p {metadata.version('libp2p')} makes handshakes with itself")


def _engine_library(situation: Situation) -> Finding:
    config = situation.config
    if config.engine == "cluster":
        return ok("a cluster has programs of its own: `infernet cluster` says which are here")
    if config.engine in EXLLAMA and config.role is Role.PROVIDER:
        if importlib.util.find_spec(config.engine) is None:
            if is_packaged():
                fix = "or serve what is in it: `infernet config set --engine llama`"
                return fail(
                    f"the engine {config.engine} {NOT_INSIDE.partition(':')[0]}", f"use the Python package, {fix}"
                )
            return fail(
                f"the engine {config.engine} needs the library of that name, which is not installed",
                "install it as docs/engines.md says, or serve no models (`infernet config set --engine none`)",
            )
        return ok(f"{config.engine} {_version(config.engine)} is installed")
    if not config.llama_models or config.role is not Role.PROVIDER:
        return skip("this node loads no models itself")
    if importlib.util.find_spec(_ENGINE_LIBRARY) is None:
        return fail(
            f"the engine llama needs {_ENGINE_LIBRARY}, which is not installed",
            "run `pip install 'infernet[llama]'`, or serve no models (`infernet config set --engine none`)",
        )
    return ok(f"{_ENGINE_LIBRARY} {_version(_ENGINE_LIBRARY)} is installed")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of an unknown version"


def _confined(situation: Situation) -> Finding:
    config = situation.config
    if not (config.llama_models or config.engine in EXLLAMA) or config.role is not Role.PROVIDER:
        return skip("this node runs no engine in a process of its own")
    if not config.confine:
        found = f"the engine's process {describe(switched_off())}"
        return warn(found, "run `infernet config set --confine`, unless a GPU's driver needs more than is left")
    protections = available()
    if all(each.is_on for each in protections):
        if (folder := open_to_engines(config.key_file)) is not None:
            return warn(
                f"the key lies in {folder}, which the engine's process reads for its libraries, and the key with them",
                "move this node's folders elsewhere, and name the new place with INFERNET_HOME",
            )
        return ok(f"the engine's process {describe(protections)}")
    found = f"the engine's process {describe(protections)}"
    if sys.platform != "linux":
        return skip(found)
    return warn(found, "run a kernel of Linux 5.13 or later with Landlock (`lsm=landlock` at boot) and seccomp filters")


def _files(_situation: Situation) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES_WANTED:
        return ok("as many open files as a node needs are allowed")
    found = f"a process here may have {soft} open files, and a busy node needs {FILES_WANTED}"
    fix = f"run `ulimit -n {FILES_WANTED}` before `infernet start`, or set LimitNOFILE={FILES_WANTED} in its unit"
    return fail(found, fix) if soft < FILES_MIN else warn(found, fix)


def _memory(situation: Situation) -> Finding:
    assert situation.model_file is not None
    if situation.pid is not None:
        return skip("the running node holds its model already")
    needed = round(situation.model_file.stat().st_size * MEMORY_FACTOR)
    free = situation.machine.available_bytes()
    found = f"{free // 1_000_000} MB of memory are free, and the model needs about {needed // 1_000_000} MB"
    if free < needed:
        return warn(found, "end other programs, or serve a smaller model (`infernet config set --model FILE`)")
    return ok(found)


def _clock(situation: Situation) -> Finding:
    now_ms = situation.machine.wall_ms()
    if now_ms < RELEASED_MS:
        year = datetime.fromtimestamp(max(0, now_ms) / 1000, UTC).year
        return fail(f"this machine's clock says {year}, before this program was made", "run `timedatectl set-ntp true`")
    return ok("this machine's clock has been set")


CHECKS: Final = (
    Check(
        id="python.version",
        title="Python is supported",
        looks="The version of Python that runs this program.",
        remedy="Make an environment with a supported Python, and install infernet there.",
        examine=in_thread(_python),
    ),
    Check(
        id="libs.present",
        title="Libraries are installed",
        looks="Whether the libraries that a node stands on can be found.",
        remedy="Install infernet again, with its dependencies.",
        examine=in_thread(_present),
    ),
    Check(
        id="libs.libp2p",
        title="libp2p is the right one",
        looks="Whether the installed libp2p is the one this program is built on: it makes a handshake with itself.",
        remedy="Install the version that the line names.",
        examine=_libp2p,
        needs=("libs.present",),
        deadline_s=_LOAD_DEADLINE_S,
    ),
    Check(
        id="libs.engine",
        title="Engine is installed",
        looks="Whether the library that runs models is installed, on a provider.",
        remedy="`pip install 'infernet[llama]'`, or `infernet config set --engine none`.",
        examine=in_thread(_engine_library),
        needs=("config.readable",),
    ),
    Check(
        id="engine.confined",
        title="Engine is locked in",
        looks="Whether this system's kernel can keep the engine's process from files, from the network and from other "
        "programs, on a provider that runs llama, and whether the node's key lies apart from the libraries that it may "
        "read. Elsewhere than on Linux there is nothing to look at.",
        remedy="A newer kernel, or one with Landlock and seccomp filters turned on; the node runs without them, too, "
        "and a fault in llama.cpp then reaches further. A key that lies among libraries belongs elsewhere.",
        examine=in_thread(_confined),
        needs=("config.readable",),
    ),
    Check(
        id="limits.files",
        title="Enough open files",
        looks="How many files and connections one process may have open: a failure below 256, a warning below 1024.",
        remedy="`ulimit -n 1024` before `infernet start`, or `LimitNOFILE=1024` in the systemd unit.",
        examine=in_thread(_files),
    ),
    Check(
        id="memory.free",
        title="Model fits into memory",
        looks="Free memory of the machine against the size of the model's file and a fifth more. A GPU's own memory is "
        "not looked at.",
        remedy="End other programs, or serve a smaller model.",
        examine=in_thread(_memory),
        needs=("model.present", "node.running"),
    ),
    Check(
        id="clock.set",
        title="Clock has been set",
        looks="Whether the clock shows a time after this program was made. Everything a node signs is dated.",
        remedy="`timedatectl set-ntp true`.",
        examine=in_thread(_clock),
    ),
)
