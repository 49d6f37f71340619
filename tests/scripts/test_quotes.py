"""scripts/_quotes.py: a quote is found, compared word for word, and what nobody quotes is listed."""

from __future__ import annotations

import pytest

from _quotes import complaint_about, prose_of, quotes_in, unquoted

PAGE = """# 05 Jobs

### Requirements

The provider MUST refuse an order that is
older than 60 seconds. It may say why.

* The asker MUST count
  every chunk.
* The asker MUST NOT guess: it asks.

```
The example MUST be ignored.
```

| table | MUST not count |
"""
PAGES = {"05": PAGE}

SOURCE = """
def f():
    # SPEC 05: The provider MUST refuse an order
    #   that is older than 60 seconds.
    # An ordinary comment.
    x = 1  # SPEC 05: too late on the line
    # SPEC 5: too short a number
    # SPEC 05: The asker MUST count every chunk.
"""


def test_a_quote_goes_on_in_indented_comment_lines_and_ends_with_them() -> None:
    quotes = list(quotes_in(SOURCE, "f.py"))
    assert [(quote.place, quote.page) for quote in quotes] == [
        ("f.py:3", "05"),
        ("f.py:6", None),
        ("f.py:7", None),
        ("f.py:8", "05"),
    ]
    assert quotes[0].text == "The provider MUST refuse an order that is older than 60 seconds."


def test_true_quotes_pass_across_line_breaks_and_in_lists() -> None:
    readable = [quote for quote in quotes_in(SOURCE, "f.py") if quote.page]
    assert [complaint_about(quote, PAGES) for quote in readable] == [None, None]


@pytest.mark.parametrize(
    ("comment", "complaint"),
    [
        ("# SPEC 05: The provider MUST refuse an order that is older than 61 seconds.", "does not say"),
        ("# SPEC 05: the provider MUST refuse an order", "does not say"),
        ("# SPEC 06: The provider MUST refuse an order", "no page"),
        ("# SPEC 05:", "empty"),
        ("# spec 05: The provider", "not readable"),
    ],
)
def test_every_other_quote_is_named_with_its_place(comment: str, complaint: str) -> None:
    (quote,) = quotes_in(f"\n{comment}\n", "f.py")
    said = complaint_about(quote, PAGES)
    assert said is not None
    assert said.startswith("f.py:2: ")
    assert complaint in said


def test_prose_leaves_out_code_tables_and_headings() -> None:
    assert prose_of(PAGE) == [
        "The provider MUST refuse an order that is older than 60 seconds. It may say why.",
        "The asker MUST count every chunk.",
        "The asker MUST NOT guess: it asks.",
    ]


def test_coverage_lists_the_requirements_that_no_code_quotes() -> None:
    quotes = list(quotes_in(SOURCE, "f.py"))
    assert list(unquoted(quotes, PAGES)) == [("05", "The asker MUST NOT guess: it asks.")]
