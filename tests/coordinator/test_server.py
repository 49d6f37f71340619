"""Home and socket: made or refused, each refusal one line that says what to do."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from coordinator import server
from coordinator.config import Config
from coordinator.identity import KEY_NAME
from coordinator.server import Broken, CannotStart, bind, prepare_home, url_of
from coordinator.store.db import Database, StoreFailed, open_database
from tests.helpers_coordinator import meet_a_failed_fsync


def test_a_home_is_made_for_its_owner_only(tmp_path: Path) -> None:
    prepare_home(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0
    prepare_home(tmp_path / "a" / "b")


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null", "/dev/null/x"])
def test_a_home_that_cannot_be_made_is_refused(home: str) -> None:
    with pytest.raises(CannotStart, match="choose another --home"):
        prepare_home(Path(home))


def test_a_home_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(CannotStart, match="cannot write to"):
        prepare_home(tmp_path)


@pytest.mark.parametrize("host", ["203.0.113.77", "no such host", "x" * 300, "a..b"])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(CannotStart, match="cannot listen on"):
        bind(host, 0)


def test_a_taken_port_is_refused() -> None:
    with bind("127.0.0.1", 0) as first, pytest.raises(CannotStart, match="choose another with --port"):
        bind("127.0.0.1", first.getsockname()[1])


@pytest.mark.anyio
async def test_a_database_whose_key_is_gone_is_served_under_no_new_one(tmp_path: Path) -> None:
    await open_database(tmp_path).close()
    with pytest.raises(CannotStart, match=r"there is no .*/coordinator\.key.* put it back"):
        await server.run(Config(home=str(tmp_path), port=0), lambda _url, _node: None)
    assert not (tmp_path / KEY_NAME).exists()


@pytest.mark.parametrize(
    ("host", "start"), [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://localhost:"), ("::1", "http://[::1]:")]
)
def test_the_url_can_be_opened_in_a_browser(host: str, start: str) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with bind(host, 0) as listener:
        assert url_of(listener) == f"{start}{listener.getsockname()[1]}"


@pytest.mark.anyio
async def test_the_server_ends_when_the_disk_fails_and_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Database] = []

    def open_and_note(home: Path) -> Database:
        opened.append(open_database(home))
        return opened[0]

    monkeypatch.setattr(server, "open_database", open_and_note)
    ready = asyncio.Event()
    config = Config(home=str(tmp_path), port=0)
    running = asyncio.create_task(server.run(config, lambda _url, _node: ready.set()))
    async with asyncio.timeout(30):
        await ready.wait()
        with pytest.raises(StoreFailed):
            await opened[0].write(meet_a_failed_fsync)
        with pytest.raises(Broken, match="start again") as broken:
            await running
    assert len(str(broken.value).splitlines()) == 1
    await open_database(tmp_path).close()
