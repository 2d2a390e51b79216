"""A headless Chromium, and a page in it that notes what it must not do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

#: Of Debian, Ubuntu and Fedora, and Google's. Playwright's own download is not used: the machine may have no network.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: Why the tests of the page are skipped.
MISSING = "there is no Chromium: apt install chromium"

#: How long anything may take in the page, in milliseconds.
PATIENCE_MS = 60_000


def chromium() -> str | None:
    """The path of the browser; None: there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browsing(**environment: str) -> Iterator[Browser]:
    """The browser, started. It runs as root in containers, where its sandbox cannot."""
    with sync_playwright() as playwright:
        path = chromium()
        assert path is not None, MISSING
        variables: dict[str, str | float | bool] = {**os.environ, **environment}
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], env=variables)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page at an address, and everything that it did wrong: errors, violations of its policy, requests elsewhere."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self._address = address
        self._context = browser.new_context(**{"locale": "en", "reduced_motion": "reduce"} | options)
        self._context.set_default_timeout(PATIENCE_MS)
        self.wrongs: list[str] = []
        self.page: Page = self._context.new_page()
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.wrongs.append(f"error: {error}"))
        self.page.on("request", self._note_request)

    def _note_message(self, message: ConsoleMessage) -> None:
        # A refused request is an error in the console as well, and some tests want one.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.wrongs.append(f"{message.type}: {message.text}")

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith((self._address, "data:", f"blob:{self._address}")):
            self.wrongs.append(f"request: {request.url}")

    def close(self) -> None:
        self._context.close()
