"""Fetching a file over HTTP into an unfinished one, which a later try goes on with.

The server says how large the file is before any of it is taken, and gets no more room than that. It may send elsewhere
a few times, but not to where nothing is encrypted, and it must keep a pace. A login that stands in an address is told
to the server of that address and to no other, and is written nowhere.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx
import msgspec
from msgspec import Struct

from infernet.engines.models import FetchFailed, ReportProgress

REDIRECTS_MAX: Final = 5
FILE_BYTES_MAX: Final = 2 * 1024**4
TIMEOUT: Final = httpx.Timeout(60.0, connect=20.0)
_SPARE_BYTES: Final = 64 * 1024 * 1024
# Who sends less than this in such a time, wants us to wait for ever.
_PACE_S: Final = 60.0
_PACE_BYTES: Final = 64 * 1024
SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RANGE: Final = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15})")


class Worthless(FetchFailed):
    """What has come is of no use, and is not to be gone on with."""


@dataclass(frozen=True)
class Wanted:
    """Where a file is, how it begins, and what to say when it does not."""

    url: str
    magic: bytes
    otherwise: str


class Told(Struct, frozen=True):
    """What the headers say. `start` is the byte with which the body begins."""

    start: int
    total: int
    validator: str
    sha256: str | None


class _Note(Struct, frozen=True):
    """Of an unfinished file: what it is a part of."""

    url: str
    validator: str


def open_client(proxy: httpx.Proxy | None, verify: ssl.SSLContext | bool = True) -> httpx.Client:
    """What asks, and follows nothing by itself; with a proxy of ours the environment has no say."""
    return httpx.Client(timeout=TIMEOUT, follow_redirects=False, proxy=proxy, trust_env=proxy is None, verify=verify)


# ---------------------------------------------------------------- addresses


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


def host_of(url: str) -> str:
    """Whom an address names."""
    return urlsplit(url).hostname or "the server"


def bare(url: str) -> str:
    """An address without the login that may stand in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def follow(url: str, link: str) -> str:
    """Where a link of the page at `url` leads, with its login if that is the same server. Raises FetchFailed."""
    following = urljoin(bare(url), link)
    try:
        read_url(following)
    except ValueError:
        raise FetchFailed(f"{host_of(url)} sends to an address that is none") from None
    if url.startswith("https:") and not following.startswith("https:"):
        raise FetchFailed(f"{host_of(url)} sends to an address without encryption")
    here, there = urlsplit(url), urlsplit(following)
    return there._replace(netloc=here.netloc).geturl() if _server(here) == _server(there) else following


def _server(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port


# ---------------------------------------------------------------- asking


@contextmanager
def answered(http: httpx.Client, url: str, headers: dict[str, str]) -> Iterator[tuple[httpx.Response, str, list[str]]]:
    """The answer after redirects, where it came from, and what was told on the way of the file's hash.

    Raises FetchFailed or httpx.HTTPError.
    """
    linked: list[str] = []
    for _ in range(REDIRECTS_MAX + 1):
        with http.stream("GET", url, headers={"accept-encoding": "identity", **headers}) as response:
            linked += _linked_sha256(response)
            if not response.is_redirect:
                yield response, url, linked
                return
            url = follow(url, response.headers.get("location", ""))
    raise FetchFailed(f"{host_of(url)} sends from one address to the next without end")


def unreachable(url: str, error: httpx.HTTPError, *, by_proxy: bool) -> str:
    """Why nothing, or not all, came from a server: the beginning of a line for people."""
    if isinstance(error, httpx.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"{host_of(url)} shows a certificate that nobody here trusts (set SSL_CERT_FILE if it is right)"
    through = " through the proxy" if by_proxy else ""
    return f"{host_of(url)} cannot be reached{through}, or broke off ({type(error).__name__})"


def _linked_sha256(response: httpx.Response) -> list[str]:
    told: str = response.headers.get("x-linked-etag", "")
    linked = told.removeprefix("W/").strip('"').lower()
    return [linked] if SHA256.fullmatch(linked) else []


def check_status(response: httpx.Response, url: str) -> None:
    """Whether there is anything in the answer that we can read. Raises FetchFailed."""
    status = response.status_code
    if status in (401, 403):
        raise FetchFailed(f"{host_of(url)} gives this file only to those who are signed in: fetch it by other means")
    if status == httpx.codes.NOT_FOUND:
        raise FetchFailed(f"{host_of(url)} has no such file: check the address")
    if status not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise FetchFailed(f"{host_of(url)} answered with status {status}: try again later")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchFailed(f"{host_of(url)} sends the file packed, so that its size is not known: try another server")


# ---------------------------------------------------------------- the unfinished file


@contextmanager
def unfinished(part: Path) -> Iterator[BinaryIO]:
    """The unfinished file, for one command at a time; of it stays only what can be gone on with. Raises FetchFailed."""
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchFailed("another command is fetching this model: wait for it") from None
        if not part.exists() or not os.path.samestat(part.stat(), os.fstat(file.fileno())):
            raise FetchFailed("another command has just fetched this model: run this again")
        with _cleaned(file, part):
            yield file


@contextmanager
def _cleaned(file: BinaryIO, part: Path) -> Iterator[None]:
    try:
        yield
    except Worthless:
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
    return note.validator if note.url == bare(url) else ""


def complete(
    http: httpx.Client,
    file: BinaryIO,
    part: Path,
    wanted: Wanted,
    progress: ReportProgress,
    check_size: Callable[[int], None],
    *,
    by_proxy: bool,
) -> Told:
    """Complete the file, and leave it on the disk. Raises FetchFailed or OSError; what has come by then stays.

    `check_size` hears how large the file is before anything of it is taken, and raises FetchFailed to have none of it.
    """
    have = file.seek(0, os.SEEK_END)
    validator = _validator_of(part, wanted.url) if have else ""
    # The last byte is fetched again, so that there is something to fetch of a file that is whole.
    start = have - 1 if validator else 0
    headers = {"range": f"bytes={start}-", "if-range": validator} if start else {}
    try:
        with answered(http, wanted.url, headers) as (response, url, linked):
            told = _read_headers(response, url, start, linked[0] if linked else None)
            # What is not gone on with is another file, and may be longer.
            file.truncate(told.start)
            check_size(told.total)
            _check_disk(part.parent, told.total - told.start)
            _note_path(part).write_bytes(msgspec.json.encode(_Note(bare(wanted.url), told.validator)))
            file.seek(told.start)
            _write(response, file, told, wanted, progress)
    except httpx.HTTPError as error:
        why = unreachable(wanted.url, error, by_proxy=by_proxy)
        raise FetchFailed(f"{why}: run this again, and it goes on where it was") from None
    file.flush()
    os.fsync(file.fileno())
    if os.fstat(file.fileno()).st_size != told.total:
        raise Worthless("another program wrote into the unfinished file: nothing was kept, run this again")
    return told


def _read_headers(response: httpx.Response, url: str, asked_start: int, sha256: str | None) -> Told:
    headers = response.headers
    if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise Worthless(f"{host_of(url)} has another file now than when this one was begun: run this again")
    check_status(response, url)
    start, total = 0, headers.get("content-length", "")
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        span = _RANGE.fullmatch(headers.get("content-range", ""))
        if span is None or int(span[1]) != asked_start:
            raise Worthless(f"{host_of(url)} sends a part of the file that was not asked for: try again")
        start, total = int(span[1]), span[2]
    if not re.fullmatch(r"\d{1,15}", total) or not 0 < int(total) <= FILE_BYTES_MAX:
        raise FetchFailed(f"{host_of(url)} does not say how large the file is: try another server")
    etag: str = headers.get("etag", "")
    # A weak one does not promise the same bytes.
    validator: str = headers.get("last-modified", "") if etag.startswith("W/") or not etag else etag
    return Told(start, int(total), validator, sha256)


def _write(response: httpx.Response, file: BinaryIO, told: Told, wanted: Wanted, progress: ReportProgress) -> None:
    done = paced = told.start
    since = time.monotonic()
    progress(done, told.total)
    for piece in response.iter_raw():
        if done == 0 and not wanted.magic.startswith(piece[: len(wanted.magic)]):
            raise Worthless(wanted.otherwise)
        done += len(piece)
        if done > told.total:
            raise Worthless("the server sends more than it said: nothing was kept")
        file.write(piece)
        progress(done, told.total)
        if (now := time.monotonic()) - since > _PACE_S:
            if done - paced < _PACE_BYTES:
                raise FetchFailed("the file hardly comes any further: run this again, and it goes on where it was")
            paced, since = done, now
    if done < told.total:
        raise FetchFailed("the connection ended early: run this again, and it goes on where it was")


def _check_disk(store: Path, missing_bytes: int) -> None:
    free = shutil.disk_usage(store).free
    if free < missing_bytes + _SPARE_BYTES:
        raise FetchFailed(
            f"the disk of {store} has {free / 1e9:.1f} GB free, and {missing_bytes / 1e9:.1f} GB are to come: "
            "free some, or choose another folder with INFERNET_HOME"
        )
