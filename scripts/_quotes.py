"""Quotes of the specification in the code: found, compared, and what no code quotes.

A quote is a comment that starts with `# SPEC nn:` and goes on in the comment lines below it that are indented by three
spaces. `nn` is the number of a page in specs/. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

QUOTING_FOLDERS = ("protocol", "infernet", "coordinator")

_QUOTE_START = re.compile(r"^\s*# SPEC (\d\d): *(.*)$")
_QUOTE_CONTINUED = re.compile(r"^\s*#   (\S.*)$")
# Anything that looks as if it was meant to be a quote but would not be read as one.
_QUOTE_MISSHAPEN = re.compile(r"#\s*SPEC\b", re.IGNORECASE)
_LIST_MARKER = re.compile(r"^\s*(?:[-*+]|\d+\.|>)\s+")
_SENTENCE_END = re.compile(r"(?<=[.;:!?])\s+(?=[A-Z`*])")


@dataclass(frozen=True)
class Quote:
    """Words of one specification page in one place of the code; `page` is None when the comment is misshapen."""

    place: str
    page: str | None
    text: str


def normalise(text: str) -> str:
    """Make line breaks and runs of spaces irrelevant."""
    return " ".join(text.split())


def quotes_in(source: str, name: str) -> Iterator[Quote]:
    """Every quote in the text of one source file."""
    lines = source.splitlines()
    for index, line in enumerate(lines):
        start = _QUOTE_START.match(line)
        if start is None:
            if _QUOTE_MISSHAPEN.search(line):
                yield Quote(f"{name}:{index + 1}", None, line.strip())
            continue
        parts = [start[2]]
        for following in lines[index + 1 :]:
            continued = _QUOTE_CONTINUED.match(following)
            if continued is None:
                break
            parts.append(continued[1])
        yield Quote(f"{name}:{index + 1}", start[1], normalise(" ".join(parts)))


def quotes_below(root: Path) -> list[Quote]:
    """Every quote in the packages of the checkout at `root`."""
    return [
        quote
        for folder in QUOTING_FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
        for quote in quotes_in(path.read_text("utf-8"), str(path.relative_to(root)))
    ]


def pages_in(specs: Path) -> dict[str, str]:
    """The text of every specification page by its two-digit number."""
    return {path.name[:2]: path.read_text("utf-8") for path in sorted(specs.glob("[0-9][0-9]-*.md"))}


def prose_of(page: str) -> list[str]:
    """The paragraphs and list items of a page, normalised, without code blocks, tables and headings."""
    blocks: list[list[str]] = [[]]
    in_code = False
    for line in page.splitlines():
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif in_code:
            continue
        elif not line.strip() or line.lstrip().startswith(("#", "|")):
            blocks.append([])
        elif _LIST_MARKER.match(line):
            blocks.append([_LIST_MARKER.sub("", line)])
        else:
            blocks[-1].append(line)
    return [normalise(" ".join(block)) for block in blocks if block]


def complaint_about(quote: Quote, pages: dict[str, str]) -> str | None:
    """What is wrong with a quote, or None when the page says exactly that."""
    if quote.page is None:
        return f"{quote.place}: not readable as a quote (write `# SPEC nn: words of that page`): {quote.text}"
    if quote.page not in pages:
        return f"{quote.place}: there is no page specs/{quote.page}-*.md"
    if not quote.text:
        return f"{quote.place}: the quote is empty"
    if quote.text not in normalise(pages[quote.page]) and not any(quote.text in s for s in prose_of(pages[quote.page])):
        return f"{quote.place}: specs/{quote.page} does not say: {quote.text}"
    return None


def unquoted(quotes: list[Quote], pages: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The page number and text of every sentence with MUST that no code quotes."""
    for number, page in pages.items():
        quoted = [quote.text for quote in quotes if quote.page == number]
        for block in prose_of(page):
            for sentence in _SENTENCE_END.split(block):
                if re.search(r"\bMUST\b", sentence) and not any(q in sentence or sentence in q for q in quoted):
                    yield number, sentence
