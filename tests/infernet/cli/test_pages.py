"""docs/commands.md and docs/settings.md say what the program says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infernet.cli.__main__ import VERBS
from infernet.cli.pages import COMMANDS, SETTINGS_PAGE, commands_page, pages, settings_page
from infernet.settings.table import SETTINGS

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGES = dict(pages())


@pytest.mark.parametrize("name", [COMMANDS, SETTINGS_PAGE])
def test_the_page_is_made_from_the_program(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == PAGES[name], "run: python -m infernet.cli.pages docs"


def test_every_verb_and_every_setting_has_a_section() -> None:
    assert re.findall(r"^### infernet (.+)$", commands_page(), re.MULTILINE) == list(VERBS)
    assert re.findall(r"^### (.+)$", settings_page(), re.MULTILINE) == [setting.name for setting in SETTINGS]


def test_links_between_the_pages_lead_somewhere() -> None:
    headings = {
        name: {line[4:].replace(" ", "-") for line in text.splitlines() if line.startswith("### ")}
        for name, text in PAGES.items()
    }
    links = re.findall(r"\]\((\w+\.md)?#([\w-]+)\)", commands_page())
    assert links
    assert [anchor for page, anchor in links if anchor not in headings[page or COMMANDS]] == []


@pytest.mark.parametrize("name", [COMMANDS, SETTINGS_PAGE])
def test_rows_have_as_many_columns_as_their_head(name: str) -> None:
    columns = 0
    for line in PAGES[name].splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        found = len(re.split(r"(?<!\\)\|", line))
        columns = columns or found
        assert found == columns, line
