"""Chromium without a window, which Debian's package `chromium` brings, and pages opened in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
LATEST_MS = 30_000


def found() -> str | None:
    """Where the browser is, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A browser for many pages. Raises RuntimeError if none is installed."""
    from playwright.sync_api import sync_playwright

    path = found()
    if path is None:
        raise RuntimeError("there is no Chromium; apt-get install chromium brings it")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        try:
            yield started
        finally:
            started.close()


def opened(browser: Any, file: Path, **options: Any) -> Any:
    """A page of that file, as soon as its own script is done."""
    page = browser.new_page(**options)
    load(page, file)
    return page


def load(page: Any, file: Path) -> None:
    """Open a file in a page that is there already."""
    page.goto(file.resolve().as_uri())
    page.wait_for_selector("html[data-ready]", state="attached", timeout=LATEST_MS)
