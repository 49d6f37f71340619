"""The pages: served whole, no foreign address, nothing that could run text as markup."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coordinator.web import pages
from tests.helpers_coordinator import Served, serving

pytestmark = pytest.mark.anyio

FILES = sorted(path for path in pages.FOLDER.rglob("*") if path.suffix in pages.CONTENT_TYPES)


async def test_pages_and_all_that_they_name_are_served(served: Served) -> None:
    for page in ("/", "/chat"):
        answer = await served.http.get(page)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        for path in re.findall(r'(?:src|href)="(/[^"]*)"', answer.text):
            assert (await served.http.get(path)).status_code == 200, path


async def test_a_file_is_sent_again_only_when_it_changed(served: Served) -> None:
    first = await served.http.get("/static/chat.js")
    again = await served.http.get("/static/chat.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_the_page_knows_how_long_a_conversation_may_be(tmp_path: Path) -> None:
    async with serving(tmp_path, chat_prompt_bytes_max=4321) as served:
        assert 'data-prompt-bytes-max="4321"' in (await served.http.get("/chat")).text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_page_reaches_for_another_host_or_runs_text(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "@import"):
        assert word not in text, word
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|<style|\sstyle=", text), (
            "inline code is not allowed by the CSP"
        )


def test_the_chat_page_says_what_happens_to_prompts_and_what_to_do_without_a_provider() -> None:
    text = " ".join((pages.FOLDER / "chat.html").read_text("utf-8").split())
    assert "pass through the coordinator’s memory and are not stored" in text
    assert "No provider is online" in text
    assert "infernet start" in text


def test_the_chat_page_can_be_used_without_a_mouse_and_read_aloud() -> None:
    text = (pages.FOLDER / "chat.html").read_text("utf-8")
    for control in re.findall(r"<(?:textarea|select)[^>]*id=\"(\w+)\"", text):
        assert f'for="{control}"' in text, control
    assert 'aria-live="polite"' in text
    assert 'lang="en"' in text
    assert "tabindex" not in text
