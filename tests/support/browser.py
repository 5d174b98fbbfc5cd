"""A headless Chromium for tests of the page, held to loading nothing from elsewhere and logging no error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
expect.set_options(timeout=20_000)  # milliseconds; by itself 5 s, which a busy machine does not keep
SCREENSHOTS = os.environ.get("TAYLORSEER_SCREENSHOTS")  # a folder to look at them
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)
# It must not look for its makers' hosts, and as root, as in containers, it runs only without its sandbox.
_ARGUMENTS = [
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-gpu", "--no-sandbox"),
]


@contextmanager
def running_chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


class Pages:
    """Opens pages, and lists what none of them may do."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._pages: list[Page] = []
        self.problems: list[str] = []

    def open(self, address: str, width: int = 1100, height: int = 900, script: str = "", **options: Any) -> Page:
        """The page at an address, in a window of some size.

        Args:
            address: of the page.
            width: of the window.
            height: of the window.
            script: runs before the page's own.
            options: as of Playwright's `new_page`.
        """
        page = self._browser.new_page(viewport={"width": width, "height": height}, **options)
        page.add_init_script(script)
        self._pages.append(page)
        allowed = (address, "data:", f"blob:{address}")
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda told: self.problems.append(told.text) if _is_refusal(told.text) else None)
        page.on("request", lambda sent: None if sent.url.startswith(allowed) else self.problems.append(sent.url))
        page.goto(address)
        return page

    def close(self) -> None:
        for page in self._pages:
            page.close()


def _is_refusal(text: str) -> bool:
    """Whether the browser did not load something, because the server's headers forbid it."""
    return "Content Security Policy" in text


def shoot(page: Page, name: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png", full_page=True)
