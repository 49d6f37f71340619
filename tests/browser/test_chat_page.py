"""The public chat in a real browser, answered by a real model over a provider's outbound link."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.helpers_market import Coordinator, Provider
from tests.helpers_processes import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    running = Coordinator(tmp_path_factory.mktemp("coordinator"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def provider(coordinator: Coordinator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    running = Provider(tmp_path_factory.mktemp("node"), coordinator)
    yield running
    running.close()


@pytest.fixture
def page(chromium_path: str, coordinator: Coordinator) -> Iterator[Page]:
    """The chat page; a test fails when the page logs an error that is not an HTTP status."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=list(FLAGS))
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{coordinator.url}/chat")
        yield page
        assert complaints == []
        browser.close()


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox").fill(text)
    page.get_by_role("textbox").press("Enter")


def test_without_a_provider_the_page_says_so_and_what_to_do(page: Page) -> None:
    expect(page.get_by_role("heading", name="No provider is online")).to_be_visible()
    expect(page.get_by_text("infernet start", exact=False).first).to_be_visible()


@pytest.mark.model
def test_an_answer_streams_and_names_who_served(page: Page, provider: Provider) -> None:
    expect(page.get_by_role("option", name="smollm2-135m-instruct")).to_be_attached(timeout=PATIENCE_MS)
    ask(page, "What is the capital of France?")
    served = page.get_by_text(re.compile(r"Served by test provider .* \d+ tokens .* tokens/s"))
    expect(served).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text("France", exact=False).nth(1)).to_be_visible()


@pytest.mark.model
def test_what_a_model_or_a_person_writes_is_text_and_never_markup(page: Page, provider: Provider) -> None:
    ask(page, "<img src=x onerror=document.title='hacked'> Say <b>hello</b>.")
    expect(page.get_by_text("Served by test provider", exact=False)).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text("<img src=x", exact=False).first).to_be_visible()
    assert page.title() != "hacked"


@pytest.mark.model
@pytest.mark.nightly
def test_an_answer_that_goes_on_elsewhere_says_so(page: Page, tmp_path: Path) -> None:
    market = Coordinator(tmp_path / "coordinator")
    providers = [Provider(tmp_path / name, market, name) for name in ("attic", "cellar")]
    try:
        wait_until(lambda: all(each.is_linked() for each in providers), "both are linked")
        page.goto(f"{market.url}/chat")
        expect(page.get_by_role("option", name="smollm2-135m-instruct")).to_be_attached(timeout=PATIENCE_MS)
        ask(page, "Tell me a very long story about a dragon and a knight.")
        expect(page.get_by_text("Streaming…")).to_be_visible(timeout=PATIENCE_MS)
        next(each for each in providers if each.status()["jobs_running"]).kill()
        took_over = re.compile(r"(attic went away; cellar|cellar went away; attic) goes on")
        expect(page.get_by_text(took_over).first).to_be_visible(timeout=PATIENCE_MS)
        expect(page.get_by_text(re.compile("Served by (attic, then cellar|cellar, then attic)"))).to_be_visible(
            timeout=PATIENCE_MS
        )
    finally:
        for each in providers:
            each.close()
        market.close()


@pytest.mark.model
def test_when_the_provider_stops_the_page_says_so(page: Page, provider: Provider) -> None:
    expect(page.get_by_role("option", name="smollm2-135m-instruct")).to_be_attached(timeout=PATIENCE_MS)
    provider.close()
    ask(page, "Are you still there?")
    expect(page.get_by_text("No provider is online", exact=False).first).to_be_visible(timeout=PATIENCE_MS)


def test_the_page_fits_a_telephone(page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
