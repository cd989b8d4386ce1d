"""A real browser for pages: what they ask of the network, what goes wrong in them, and what a screen reader is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
CONTROLS = {"button", "checkbox", "combobox", "link", "radio", "slider", "textbox", "application"}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser, for one file of tests: its event loop would be in the way of other files'."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"pages are tested in a browser, and there is none of {', '.join(NAMES)}: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium) -> Iterator[Callable[..., Any]]:
    """Open an address with a fresh profile; in the end nothing may have failed, nor been asked of another server.

    What went wrong is in the list `visit.wrong`, from which a test takes what it expects.
    """
    wrong: list[str] = []
    contexts = []

    def open_page(url: str, **options: Any) -> Any:
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: _is_foreign(request.url, url) and wrong.append(request.url))
        page.goto(url)
        return page

    open_page.wrong = wrong
    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def unnamed_controls(page: Any) -> list[str]:
    """Return the roles of the controls that have no name for a screen reader; fails if there is no control at all."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = [(node["role"]["value"].lower(), node.get("name", {}).get("value")) for node in nodes if "role" in node]
    controls = [(role, name) for role, name in roles if role in CONTROLS]
    assert controls
    return [role for role, name in controls if not name]


def fits(page: Any) -> bool:
    """Return whether the page scrolls in one direction only."""
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def _is_foreign(url: str, page: str) -> bool:
    """Return whether a request leaves the page and the server it came from."""
    asked, home = urlsplit(url), urlsplit(page)
    return asked.scheme not in ("data", "blob") and (asked.scheme, asked.netloc) != (home.scheme, home.netloc)
