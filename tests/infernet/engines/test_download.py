"""Fetching a model by its address: whole and right, or not at all, from servers that do it well or badly."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from infernet.engines import models, shelf, transfer
from infernet.engines.download import Fetched, fetch, name_in, read_name, read_sha256
from infernet.engines.models import FetchFailed
from infernet.engines.shelf import Check, Voucher
from infernet.engines.transfer import read_url
from tests.helpers_gguf import model
from tests.helpers_openai_servers import Asked, OddServer, Page, Reply

pytestmark = pytest.mark.anyio

WEIGHTS = model(weights=300_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def serves(
    content: bytes = WEIGHTS, cut_after: list[int] | None = None, etag: str = '"one"', **more: str
) -> tuple[OddServer, list[Asked]]:
    """A server of one file, which knows ranges and breaks off where it is told to."""
    cuts = list(cut_after or [])
    server = OddServer()

    async def page(asked: Asked, reply: Reply) -> None:
        wanted = asked.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
        start = int(wanted) if asked.headers.get("if-range", etag) == etag else 0
        body = content[start:]
        end = cuts.pop(0) if cuts else len(body)
        headers = {"etag": etag, "content_length": str(len(body)), **more}
        if start:
            headers["content_range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        await reply.begin(206 if start else 200, **headers)
        await reply.send(body[:end])
        if end == len(body):
            await reply.end()

    server.pages["/tiny.gguf"] = page
    return server, server.asked


async def fetched(
    server: OddServer, store: Path, sha256: str | None = None, path: str = "/tiny.gguf", **options: Any
) -> Fetched | FetchFailed:
    """Fetch from a server that runs, in a thread."""
    async with server.running():
        return await again(server, store, sha256, path, **options)


async def again(
    server: OddServer,
    store: Path,
    sha256: str | None = None,
    path: str = "/tiny.gguf",
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
    check_size: Callable[[int], None] = lambda _bytes: None,
) -> Fetched | FetchFailed:
    job = partial(fetch, store, server.url + path, "tiny", sha256, progress, check_size)
    with trio.fail_after(20):
        try:
            return await trio.to_thread.run_sync(job)
        except FetchFailed as error:
            return error


def names(store: Path) -> set[str]:
    return {path.name for path in store.iterdir()}


async def test_a_file_comes_whole_with_its_note_and_nothing_else(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    server, _ = serves()
    result = await fetched(server, tmp_path, SHA256, progress=lambda done, total: told.append((done, total)))
    assert isinstance(result, Fetched)
    assert result.path.read_bytes() == WEIGHTS
    assert (result.origin.sha256, result.origin.vouched_by) == (SHA256, Voucher.OWNER)
    assert names(tmp_path) == {"tiny.gguf", "tiny.gguf.verified", "tiny.gguf.origin"}
    assert shelf.look(result.path).check is Check.VERIFIED
    assert told[0] == (0, len(WEIGHTS))
    assert told[-1] == (len(WEIGHTS), len(WEIGHTS))


async def test_what_is_here_is_not_fetched_again_and_another_does_not_replace_it(tmp_path: Path) -> None:
    server, asked = serves()
    async with server.running():
        await again(server, tmp_path)
        before = len(asked)
        assert isinstance(await again(server, tmp_path), Fetched)
        assert isinstance(await again(server, tmp_path, SHA256), Fetched)
        other = await again(server, tmp_path, "0" * 64)
        assert "there is another model tiny here" in str(other)
        assert len(asked) == before
    (tmp_path / "tiny.gguf.origin").unlink()
    assert "there is another model" in str(await fetched(server, tmp_path))


async def test_what_was_broken_off_is_gone_on_with(tmp_path: Path) -> None:
    server, asked = serves(cut_after=[100_000, 50_000])
    async with server.running():
        first = await again(server, tmp_path)
        assert "run this again" in str(first)
        assert names(tmp_path) == {".tiny.gguf.part", ".tiny.gguf.part.note"}
        await again(server, tmp_path)
        result = await again(server, tmp_path, SHA256)
    assert isinstance(result, Fetched)
    assert result.path.read_bytes() == WEIGHTS
    starts = [int(one.headers.get("range", "bytes=0-")[6:-1]) for one in asked]
    assert starts[0] == 0 < starts[1] < starts[2]
    assert names(tmp_path) == {"tiny.gguf", "tiny.gguf.verified", "tiny.gguf.origin"}


async def test_a_file_that_changed_meanwhile_is_begun_anew(tmp_path: Path) -> None:
    old, _ = serves(content=model(weights=400_000), cut_after=[200_000])
    async with old.running():
        await again(old, tmp_path)
        new, asked = serves(etag='"two"')
        old.pages = new.pages
        result = await again(old, tmp_path)
    assert isinstance(result, Fetched)
    assert result.path.read_bytes() == WEIGHTS
    assert old.asked[-1].headers["if-range"] == '"one"'
    assert asked == []


async def test_without_a_name_for_its_state_a_file_is_begun_anew(tmp_path: Path) -> None:
    server, asked = serves(cut_after=[100_000], etag='W/"weak"')
    async with server.running():
        await again(server, tmp_path)
        assert isinstance(await again(server, tmp_path), Fetched)
    assert "range" not in asked[-1].headers


@pytest.mark.parametrize("etag", ['"one"', 'W/"weak"'])
async def test_of_a_longer_file_that_is_not_gone_on_with_nothing_stays(tmp_path: Path, etag: str) -> None:
    (tmp_path / ".tiny.gguf.part").write_bytes(b"GGUF" + b"x" * (len(WEIGHTS) + 3000))
    (tmp_path / ".tiny.gguf.part.note").write_text(
        '{"url": "http://elsewhere.example/x.gguf", "validator": "\\"one\\""}'
    )
    server, asked = serves(etag=etag)
    result = await fetched(server, tmp_path)
    assert isinstance(result, Fetched)
    assert result.path.read_bytes() == WEIGHTS
    assert "range" not in asked[0].headers


async def test_a_file_that_another_program_wrote_into_is_not_kept(tmp_path: Path) -> None:
    def write(done: int, total: int | None) -> None:
        if done == total:
            with (tmp_path / ".tiny.gguf.part").open("r+b") as part:
                part.truncate(len(WEIGHTS) + 3000)

    server, _ = serves()
    assert "another program wrote into" in str(await fetched(server, tmp_path, progress=write))
    assert names(tmp_path) == set()


async def test_a_whole_part_that_was_never_checked_is_checked(tmp_path: Path) -> None:
    server, _ = serves(cut_after=[len(WEIGHTS) - 1])
    async with server.running():
        await again(server, tmp_path)
        (tmp_path / ".tiny.gguf.part").write_bytes(WEIGHTS)
        assert isinstance(await again(server, tmp_path, SHA256), Fetched)


# ---------------------------------------------------------------- hashes


@pytest.mark.parametrize("told", [f'"{SHA256}"', SHA256.upper(), f'W/"{SHA256}"'])
async def test_the_hash_that_the_server_tells_is_taken(tmp_path: Path, told: str) -> None:
    server, _ = serves(x_linked_etag=told)
    result = await fetched(server, tmp_path)
    assert isinstance(result, Fetched)
    assert result.origin.vouched_by is Voucher.SERVER


async def test_without_any_hash_what_came_is_written_down_as_that(tmp_path: Path) -> None:
    server, _ = serves(x_linked_etag='"not-a-hash"')
    result = await fetched(server, tmp_path)
    assert isinstance(result, Fetched)
    assert (result.origin.vouched_by, result.origin.sha256) == (Voucher.NOBODY, SHA256)
    assert shelf.look(result.path).check is Check.LEARNED


@pytest.mark.parametrize(
    ("given", "whose"), [("1" * 64, "the hash you gave"), (None, "the hash that its server tells")]
)
async def test_a_file_with_another_hash_is_not_kept(tmp_path: Path, given: str | None, whose: str) -> None:
    server, _ = serves(x_linked_etag=f'"{"2" * 64}"')
    assert whose in str(await fetched(server, tmp_path, given))
    assert names(tmp_path) == set()


async def test_the_owners_hash_is_above_the_servers(tmp_path: Path) -> None:
    server, _ = serves(x_linked_etag=f'"{"2" * 64}"')
    assert isinstance(await fetched(server, tmp_path, SHA256), Fetched)


# ---------------------------------------------------------------- servers that do it badly


def says(status: int = 200, body: bytes = b"", **headers: str) -> OddServer:
    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin(status, **headers)
        if body:
            await reply.send(body)
        if "content_length" not in headers or int(headers["content_length"]) == len(body):
            await reply.end()

    return OddServer({"/tiny.gguf": page})


@pytest.mark.parametrize(
    ("server", "told"),
    [
        (says(404), "no such file"),
        (says(403), "signed in"),
        (says(500), "status 500"),
        (says(416), "another file now"),
        (says(200, WEIGHTS), "does not say how large"),
        (says(200, b"", content_length="0"), "does not say how large"),
        (says(200, b"<html>", content_length="6"), "no GGUF file: give the address of the file itself"),
        (says(200, WEIGHTS, content_length=str(len(WEIGHTS)), content_encoding="gzip"), "packed"),
        (says(206, WEIGHTS, content_length=str(len(WEIGHTS)), content_range="bytes 5-9/10"), "not asked for"),
        (says(200, WEIGHTS[:50], content_length=str(10**12)), "are to come"),
        (says(302, location="http://u:p@127.0.0.1:9/"), "an address that is none"),
        (says(302, location="file:///etc/passwd"), "an address that is none"),
        (says(200, model(**{"split.count": 3}), content_length=str(len(model(**{"split.count": 3})))), "split models"),
        (says(200, b"GGUF" + bytes(50), content_length="54"), "the file has version 0"),
    ],
)
async def test_what_is_of_no_use_is_told_in_one_line_and_not_kept(tmp_path: Path, server: OddServer, told: str) -> None:
    error = str(await fetched(server, tmp_path))
    assert told in error
    assert "\n" not in error
    assert names(tmp_path) == set()


async def test_a_part_that_is_called_the_whole_is_no_model_yet(tmp_path: Path) -> None:
    server = says(206, WEIGHTS[:1000], content_length="1000", content_range=f"bytes 0-999/{len(WEIGHTS)}")
    assert "ended early: run this again" in str(await fetched(server, tmp_path))
    assert names(tmp_path) == {".tiny.gguf.part", ".tiny.gguf.part.note"}


async def test_redirects_are_followed_and_not_for_ever(tmp_path: Path) -> None:
    server, _ = serves()

    def to(location: str, **headers: str) -> Page:
        async def page(_asked: Asked, reply: Reply) -> None:
            await reply.begin(302, location=location, content_length="0", **headers)
            await reply.end()

        return page

    server.pages["/a"] = to("/b", x_linked_etag=f'"{SHA256}"')
    server.pages["/b"] = to("tiny.gguf")
    server.pages["/loop"] = to("/loop")
    result = await fetched(server, tmp_path, path="/a")
    assert isinstance(result, Fetched)
    # Told by the first, about the file that the last one sends.
    assert result.origin.vouched_by is Voucher.SERVER
    assert result.origin.url.endswith("/a")
    assert "without end" in str(await fetched(server, tmp_path / "other", path="/loop"))


async def test_what_does_not_fit_is_refused_before_a_byte_of_it_comes(tmp_path: Path) -> None:
    sizes: list[int] = []

    def too_large(file_bytes: int) -> None:
        sizes.append(file_bytes)
        raise FetchFailed("too large")

    server, _ = serves()
    assert str(await fetched(server, tmp_path, check_size=too_large)) == "too large"
    assert sizes == [len(WEIGHTS)]
    assert names(tmp_path) == set()


async def test_a_full_disk_and_a_foreign_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = serves()
    monkeypatch.setattr(transfer, "_SPARE_BYTES", 10**18)
    assert "GB free, and 0.0 GB are to come" in str(await fetched(server, tmp_path / "a"))
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be written" in str(await fetched(server, tmp_path / "file"))


async def test_two_commands_do_not_write_into_one_file(tmp_path: Path) -> None:
    server, asked = serves()
    with (tmp_path / ".tiny.gguf.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another command is fetching" in str(await fetched(server, tmp_path))
    assert asked == []


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m.gguf",
        "ftp://a/m.gguf",
        "http:///m.gguf",
        "http://u:p@a/m",
        "http://a b/m",
        "http://a/\x1b",
        "http://a:0/m",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be an address"):
        read_url(text)


def test_a_name_is_that_of_the_file() -> None:
    assert name_in("https://a.example/x/resolve/main/Qwen2.5-7B-Q4_K_M.gguf?download=true") == "qwen2.5-7b-q4_k_m"
    assert name_in("https://a.example/My-Model.GGUF") == "my-model"


@pytest.mark.parametrize("text", ["", "../x", "a/b", ".part", "A", "x" * 200, "a\x00", "m-00001-of-00003"])
def test_a_name_that_could_be_a_path_or_a_part_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        read_name(text)


def test_a_hash_is_64_hex_digits() -> None:
    assert read_sha256(f"SHA256:{'A' * 64}") == "a" * 64
    with pytest.raises(ValueError, match="64 hex digits"):
        read_sha256("a" * 63)


def test_the_note_of_a_file_is_not_believed_beyond_its_form(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(WEIGHTS)
    for nonsense in (b"", b"{}", b"\xff", b'{"url":"u","sha256":"zz","vouched_by":"--sha256"}', b"[" * 9999):
        (tmp_path / "m.gguf.origin").write_bytes(nonsense)
        assert shelf.look(path).check is Check.UNKNOWN
    assert models.marked(path) is None
