"""llama.cpp's programs for a model on several machines: where they are, which build they are, how they are started.

Written against llama.cpp b11434 (`common/arg.cpp`, `common/build-info.cpp.in`, `tools/rpc/rpc-server.cpp`,
`ggml/src/ggml-rpc/ggml-rpc.cpp`), and the older form of `--version` that packages before it print.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final, NamedTuple

from infernet.engines.contract import EngineUnavailable
from infernet.host.tools import ToolError, run_tool
from protocol.clusters import DEVICES_MAX, Build, Device
from protocol.formats.text import clean_line

SERVER: Final = "llama-server"
# Its name since 2026, and before.
RPC_SERVERS: Final = ("ggml-rpc-server", "rpc-server")
# It looks for GPUs before it prints anything.
VERSION_TIMEOUT_S: Final = 30.0
HOW_TO_GET: Final = (
    "build llama.cpp with -DGGML_RPC=ON, and put its programs on PATH or name this one with --llama-server "
    "(docs/engines.md)"
)
_NEW_VERSION: Final = re.compile(r"^version: \S{1,64} \(build (\d{1,9}), commit ([0-9A-Za-z]{1,64})\)", re.MULTILINE)
_OLD_VERSION: Final = re.compile(r"^version: (\d{1,9}) \(([0-9A-Za-z]{1,64})\)", re.MULTILINE)

#: What the RPC server says when it has started, line by line, and when somebody has connected.
RPC_VERSION: Final = re.compile(r"^Starting RPC server v(\d{1,6}\.\d{1,6}\.\d{1,6})")
RPC_DEVICE: Final = re.compile(r"^  (\S.{0,300}) \((\d{1,9}) MiB, (\d{1,9}) MiB free\)$")
RPC_ACCEPTED: Final = re.compile(r"^Accepted client connection")
#: What llama-server says when its model is loaded and it answers.
LISTENING: Final = re.compile(r"listening on http://127\.0\.0\.1:(\d{1,5})\b")


class BinaryMissing(EngineUnavailable):
    """A program of llama.cpp is not there, or is not what it should be."""


class Binaries(NamedTuple):
    """The programs of one installation. The RPC server is None where there is none."""

    server: Path
    rpc_server: Path | None

    @property
    def rpc(self) -> Path:
        """The RPC server. Raises BinaryMissing."""
        if self.rpc_server is None:
            raise BinaryMissing(f"there is no {RPC_SERVERS[0]} beside {self.server}: {HOW_TO_GET}")
        return self.rpc_server


def find(named: str | None) -> Binaries:
    """The llama-server that is named, or the first on PATH, and the RPC server beside it. Raises BinaryMissing."""
    if named is not None:
        server = Path(named).expanduser().absolute()
        if not (server.is_file() and os.access(server, os.X_OK)):
            raise BinaryMissing(f"--llama-server {server} is no program: {HOW_TO_GET}")
    else:
        found = shutil.which(SERVER)
        if found is None:
            raise BinaryMissing(f"there is no {SERVER} on PATH: {HOW_TO_GET}")
        server = Path(found).absolute()
    # Where the link leads, too: a program and its neighbour come from one build.
    folders = (server.parent, server.resolve().parent)
    beside = (folder / name for folder in folders for name in RPC_SERVERS)
    return Binaries(server, next((path for path in beside if path.is_file() and os.access(path, os.X_OK)), None))


def read_build(server: Path) -> Build:
    """Which build it is. Blocks for as long as the program takes. Raises BinaryMissing."""
    try:
        said = run_tool([str(server), "--version"], VERSION_TIMEOUT_S)
    except ToolError as error:
        raise BinaryMissing(f"the build of {server} cannot be told: {error}") from None
    build = parse_version(said.text)
    if build is None:
        raise BinaryMissing(f"{server} --version does not say which build of llama.cpp it is: {HOW_TO_GET}")
    return build


def check_rpc(server: Path) -> None:
    """See that it can use other machines: its help names `--rpc` where it was built so, and only there.

    Blocks for as long as the program takes. Raises BinaryMissing.
    """
    try:
        said = run_tool([str(server), "--help"], VERSION_TIMEOUT_S)
    except ToolError as error:
        raise BinaryMissing(f"whether {server} was built with RPC cannot be told: {error}") from None
    if "--rpc" not in said.text:
        raise BinaryMissing(f"{server} was built without RPC: {HOW_TO_GET}")


def parse_version(text: str) -> Build | None:
    """The build in what `--version` prints; None where it says none."""
    match = _NEW_VERSION.search(text) or _OLD_VERSION.search(text)
    return Build(int(match[1]), match[2]) if match is not None else None


def devices_of(lines: list[re.Match[str]]) -> tuple[Device, ...]:
    """The devices that an RPC server told of."""
    return tuple(
        Device(clean_line(line[1], 128), int(line[2]), min(int(line[2]), int(line[3]))) for line in lines[:DEVICES_MAX]
    )
