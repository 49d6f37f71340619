"""Fetching a model file from an address that the owner names: whole and right, or not at all.

What has come so far stays beside the store's models and is gone on with, if the server still has the same file. The
size must be known before, so that disk and memory can be looked at first. The hash is compared with what the owner
says, or with what the server says of the file itself: stores of large files tell its SHA-256 as `X-Linked-ETag`. Where
nobody says it, the file is taken as it comes, and that is written down.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final
from urllib.parse import unquote, urljoin, urlsplit

import httpx
import msgspec
from msgspec import Struct

from infernet.engines import models, shelf
from infernet.engines.gguf import BadGguf, read_header
from infernet.engines.models import FetchFailed, ReportProgress
from infernet.engines.shelf import Origin, Voucher

REDIRECTS_MAX: Final = 5
FILE_BYTES_MAX: Final = 2 * 1024**4
_TIMEOUT: Final = httpx.Timeout(60.0, connect=20.0)
_SPARE_BYTES: Final = 64 * 1024 * 1024
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RANGE: Final = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15})")
_SPLIT: Final = re.compile(r"-\d{5}-of-\d{5}$")


class _Worthless(FetchFailed):
    """What has come is of no use, and is not to be gone on with."""


class Fetched(Struct, frozen=True):
    """A model that is here now."""

    path: Path
    origin: Origin


class _Note(Struct, frozen=True):
    """Of an unfinished file: what it is a part of."""

    url: str
    validator: str


class _Response(Struct, frozen=True):
    """What the headers say. `start` is the byte with which the body begins."""

    start: int
    total: int
    validator: str
    sha256: str | None


def read_url(text: str) -> str:
    """An address to fetch from. Raises ValueError with what is allowed."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    is_web = parts.scheme in ("http", "https") and parts.hostname and port != 0
    if not is_web or not text.isascii() or not text.isprintable() or " " in text or parts.username is not None:
        raise ValueError("must be an address like https://models.example/qwen2.5-7b-q4_k_m.gguf")
    return text


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
    if not _SHA256.fullmatch(digest):
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
        with _locked(part) as file, _cleaned(file, part):
            told = _download(file, part, url, progress, check_size, proxy)
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


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The unfinished file, for one command at a time."""
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchFailed("another command is fetching this model: wait for it") from None
        yield file


@contextmanager
def _cleaned(file: BinaryIO, part: Path) -> Iterator[None]:
    """Leave of a part only what can be gone on with."""
    try:
        yield
    except _Worthless:
        part.unlink(missing_ok=True)
        raise
    finally:
        file.flush()
        if part.exists() and part.stat().st_size == 0:
            part.unlink()
        if not part.exists():
            _note_path(part).unlink(missing_ok=True)


def _note_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.note")


def _validator_of(part: Path, url: str) -> str:
    """By what the server knows the file of which we have a part; empty when we have none of this."""
    try:
        note = msgspec.json.decode(_note_path(part).read_bytes(), type=_Note)
    except (OSError, msgspec.MsgspecError):
        return ""
    return note.validator if note.url == url else ""


# ---------------------------------------------------------------- over HTTP


def _download(
    file: BinaryIO,
    part: Path,
    url: str,
    progress: ReportProgress,
    check_size: Callable[[int], None],
    proxy: httpx.Proxy | None,
) -> _Response:
    """Complete the file. Raises FetchFailed or OSError; what has come by then stays."""
    have = file.seek(0, os.SEEK_END)
    validator = _validator_of(part, url) if have else ""
    try:
        # The last byte is fetched again, so that there is something to fetch of a file that is whole.
        start = have - 1 if validator else 0
        with (
            httpx.Client(timeout=_TIMEOUT, follow_redirects=False, proxy=proxy, trust_env=proxy is None) as http,
            _asked(http, url, start, validator) as (response, told),
        ):
            if told.start != start:
                file.truncate(0)
            check_size(told.total)
            _check_disk(part.parent, told.total - told.start)
            _note_path(part).write_bytes(msgspec.json.encode(_Note(url, told.validator)))
            file.seek(told.start)
            _write(response, file, told, progress)
    except httpx.HTTPError as error:
        raise FetchFailed(
            f"{_host(url)} cannot be reached{' through the proxy' if proxy is not None else ''}, or broke off "
            f"({type(error).__name__}): run this again, and it goes on "
            "where it was"
        ) from None
    file.flush()
    os.fsync(file.fileno())
    return told


@contextmanager
def _asked(http: httpx.Client, url: str, start: int, validator: str) -> Iterator[tuple[httpx.Response, _Response]]:
    """The answer from where the file lies, after redirects. Raises FetchFailed."""
    sha256: str | None = None
    for _ in range(REDIRECTS_MAX + 1):
        headers = {"accept-encoding": "identity"}
        if start:
            headers |= {"range": f"bytes={start}-", "if-range": validator}
        with http.stream("GET", url, headers=headers) as response:
            sha256 = sha256 or _linked_sha256(response)
            if response.is_redirect:
                url = _next_url(url, response)
                continue
            yield response, _response_of(response, url, start, sha256)
            return
    raise FetchFailed(f"{_host(url)} sends from one address to the next without end")


def _next_url(url: str, response: httpx.Response) -> str:
    following: str = urljoin(url, response.headers.get("location", ""))
    try:
        read_url(following)
    except ValueError:
        raise FetchFailed(f"{_host(url)} sends to an address that is none") from None
    if url.startswith("https:") and not following.startswith("https:"):
        raise FetchFailed(f"{_host(url)} sends to an address without encryption")
    return following


def _linked_sha256(response: httpx.Response) -> str | None:
    told: str = response.headers.get("x-linked-etag", "")
    linked = told.removeprefix("W/").strip('"').lower()
    return linked if _SHA256.fullmatch(linked) else None


def _response_of(response: httpx.Response, url: str, asked_start: int, sha256: str | None) -> _Response:
    status, headers = response.status_code, response.headers
    if status in (401, 403):
        raise FetchFailed(f"{_host(url)} gives this file only to those who are signed in: fetch it by other means")
    if status == httpx.codes.NOT_FOUND:
        raise FetchFailed(f"{_host(url)} has no such file: check the address")
    if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise _Worthless(f"{_host(url)} has another file now than when this one was begun: run this again")
    if status not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise FetchFailed(f"{_host(url)} answered with status {status}: try again later")
    if headers.get("content-encoding", "identity") != "identity":
        raise FetchFailed(f"{_host(url)} sends the file packed, so that its size is not known: try another server")
    start, total = 0, headers.get("content-length", "")
    if status == httpx.codes.PARTIAL_CONTENT:
        span = _RANGE.fullmatch(headers.get("content-range", ""))
        if span is None or int(span[1]) != asked_start:
            raise _Worthless(f"{_host(url)} sends a part of the file that was not asked for: try again")
        start, total = int(span[1]), span[2]
    if not re.fullmatch(r"\d{1,15}", total) or not 0 < int(total) <= FILE_BYTES_MAX:
        raise FetchFailed(f"{_host(url)} does not say how large the file is: try another server")
    etag: str = headers.get("etag", "")
    # A weak one does not promise the same bytes.
    validator: str = headers.get("last-modified", "") if etag.startswith("W/") or not etag else etag
    return _Response(start, int(total), validator, sha256)


def _write(response: httpx.Response, file: BinaryIO, told: _Response, progress: ReportProgress) -> None:
    done = told.start
    progress(done, told.total)
    for piece in response.iter_raw():
        if done == 0 and not b"GGUF".startswith(piece[:4]):
            raise _Worthless("what lies at this address is no GGUF file: give the address of the file itself")
        done += len(piece)
        if done > told.total:
            raise _Worthless("the server sends more than it said: nothing was kept")
        file.write(piece)
        progress(done, told.total)
    if done < told.total:
        raise FetchFailed("the connection ended early: run this again, and it goes on where it was")


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the server"


def _check_disk(store: Path, missing_bytes: int) -> None:
    free = shutil.disk_usage(store).free
    if free < missing_bytes + _SPARE_BYTES:
        raise FetchFailed(
            f"the disk of {store} has {free / 1e9:.1f} GB free, and {missing_bytes / 1e9:.1f} GB are to come: "
            "free some, or choose another folder with INFERNET_HOME"
        )


# ---------------------------------------------------------------- what has come


def _checked(part: Path, url: str, expected: str | None, is_owners: bool) -> Origin:
    """Where the whole file is from, when it is what it should be; else it is discarded. Raises FetchFailed."""
    with part.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        if expected is not None and sha256 != expected:
            whose = "the hash you gave" if is_owners else "the hash that its server tells"
            raise _Worthless(f"the file has the sha256 {sha256}, which is not {whose}: nothing was kept")
        if read_header(part).parts > 1:
            raise _Worthless("this file is a part of a model, and split models are not supported: nothing was kept")
    except BadGguf as error:
        raise _Worthless(f"the file {error}: nothing was kept") from None
    vouched_by = Voucher.NOBODY if expected is None else Voucher.OWNER if is_owners else Voucher.SERVER
    return Origin(url, sha256, vouched_by)
