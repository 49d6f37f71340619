"""Fetching a model file from an address that the owner names: whole and right, or not at all.

What has come so far stays beside the store's models and is gone on with, if the server still has the same file. The
size must be known before, so that disk and memory can be looked at first. The hash is compared with what the owner
says, or with what the server says of the file itself: stores of large files tell its SHA-256 as `X-Linked-ETag`. Where
nobody says it, the file is taken as it comes, and that is written down.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

import httpx
from msgspec import Struct

from infernet.engines import models, shelf, transfer
from infernet.engines.gguf import BadGguf, read_header
from infernet.engines.models import FetchFailed, ReportProgress
from infernet.engines.shelf import Origin, Voucher
from infernet.engines.transfer import Wanted, Worthless

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}")
_SPLIT: Final = re.compile(r"-\d{5}-of-\d{5}$")
_NO_GGUF: Final = "what lies at this address is no GGUF file: give the address of the file itself"


class Fetched(Struct, frozen=True):
    """A model that is here now."""

    path: Path
    origin: Origin


def name_in(url: str) -> str:
    """The name of the model at an address: that of its file. Raises ValueError."""
    file_name = PurePosixPath(unquote(urlsplit(url).path)).name
    return read_name(file_name.lower().removesuffix(".gguf"))


def read_name(text: str) -> str:
    """The name for a model. Raises ValueError with what is allowed."""
    if not _NAME.fullmatch(text):
        raise ValueError("must be lower-case letters, digits, dots, dashes and underscores, at most 127")
    if _SPLIT.search(text):
        raise ValueError("must not be a part of a model: files that are split are not supported")
    return text


def read_sha256(text: str) -> str:
    """A hash in hex digits. Raises ValueError."""
    digest = text.lower().removeprefix("sha256:")
    if not transfer.SHA256.fullmatch(digest):
        raise ValueError("must be the 64 hex digits of a SHA-256")
    return digest


def fetch(
    store: Path,
    url: str,
    name: str,
    sha256: str | None,
    progress: ReportProgress,
    check_size: Callable[[int], None] = lambda _bytes: None,
    proxy: httpx.Proxy | None = None,
) -> Fetched:
    """Have the model at `url` in the store under this name. Blocks.

    `check_size` hears how large the file is before anything of it is fetched, and raises FetchFailed to have none
    of it. Raises FetchFailed.
    """
    target = store / f"{name}.gguf"
    here = _is_here(target, url, sha256, progress)
    if here is not None:
        return here
    part = store / f".{target.name}.part"
    try:
        store.mkdir(parents=True, exist_ok=True)
        with transfer.unfinished(part) as file, transfer.open_client(proxy) as http:
            wanted = Wanted(url, b"GGUF", _NO_GGUF)
            told = transfer.complete(http, file, part, wanted, progress, check_size, by_proxy=proxy is not None)
            origin = _checked(part, url, sha256 or told.sha256, sha256 is not None)
            models.keep(part, target, bytes.fromhex(origin.sha256))
            shelf.write_origin(target, origin)
    except OSError as error:
        raise FetchFailed(models.storing_failed(store, error)) from error
    return Fetched(target, origin)


def _is_here(target: Path, url: str, sha256: str | None, progress: ReportProgress) -> Fetched | None:
    if not target.exists():
        return None
    origin = shelf.origin_of(target)
    if origin is None or (origin.sha256 != sha256 if sha256 is not None else origin.url != url):
        raise FetchFailed(
            f"there is another model {target.stem} here: give this one another name with --name, or run "
            f"`infernet model remove {target.stem}`"
        )
    models.verify(target, bytes.fromhex(origin.sha256))
    size = target.stat().st_size
    progress(size, size)
    return Fetched(target, origin)


# ---------------------------------------------------------------- what has come


def _checked(part: Path, url: str, expected: str | None, is_owners: bool) -> Origin:
    """Where the whole file is from, when it is what it should be; else it is discarded. Raises FetchFailed."""
    with part.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        if expected is not None and sha256 != expected:
            whose = "the hash you gave" if is_owners else "the hash that its server tells"
            raise Worthless(f"the file has the sha256 {sha256}, which is not {whose}: nothing was kept")
        if read_header(part).parts > 1:
            raise Worthless("this file is a part of a model, and split models are not supported: nothing was kept")
    except BadGguf as error:
        raise Worthless(f"the file {error}: nothing was kept") from None
    vouched_by = Voucher.NOBODY if expected is None else Voucher.OWNER if is_owners else Voucher.SERVER
    return Origin(url, sha256, vouched_by)
