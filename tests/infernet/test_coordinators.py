"""infernet/coordinators.py: each coordinator of before once, and a list that is damaged is no empty one."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from infernet.coordinators import COORDINATORS_MAX, FILE_NAME, former, remember
from infernet.host.files import FilesError
from tests.helpers_records import signing_key

BANK, OTHER = signing_key("bank").node, signing_key("other").node
URL = "https://c.example"


def test_each_is_remembered_once_and_in_order(tmp_path: Path) -> None:
    assert former(tmp_path) == ()
    for url, key in ((URL, BANK), ("https://d.example", BANK), (URL, OTHER), (URL, BANK)):
        remember(tmp_path, url, key)
    found = [(one.url, one.node) for one in former(tmp_path)]
    assert found == [(URL, BANK), ("https://d.example", BANK), (URL, OTHER)]
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff",
        b"{}",
        b'[{"url": "https://c.example"}]',
        b'[{"url": "https://c.example", "key": "00"}]',
        b'[{"url": "https://c.example", "key": "zz"}]',
        b'[{"url": "ftp://x; rm", "key": "' + BANK.hex().encode() + b'"}]',
        b"[" * 300_000,
    ],
)
def test_a_damaged_list_is_refused_and_not_written_over(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(damage)
    with pytest.raises(FilesError, match="may have money"):
        former(tmp_path)
    with pytest.raises(FilesError, match="may have money"):
        remember(tmp_path, URL, BANK)
    assert (tmp_path / FILE_NAME).read_bytes() == damage


def test_the_list_is_bounded_and_none_is_dropped(tmp_path: Path) -> None:
    for number in range(COORDINATORS_MAX):
        remember(tmp_path, f"https://{number}.example", BANK)
    with pytest.raises(FilesError, match="lists 256 coordinators"):
        remember(tmp_path, URL, BANK)
    remember(tmp_path, "https://7.example", BANK)
    assert len(former(tmp_path)) == COORDINATORS_MAX
