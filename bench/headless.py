"""Headless Chromium, where it is installed: for `bench.browser` and for the tests of `puhui.browser`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

# It asks no host but ours, and leaves nothing behind.
QUIET = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def what_is_missing() -> str | None:
    """Why there can be no browser here; None if there can be one."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    if _program() is None or shutil.which("chromedriver") is None:
        return "no chromium and chromedriver here: `make browser`, or apt-get install chromium chromium-driver"
    return None


@contextlib.contextmanager
def chromium(*, more: Sequence[str] = ()) -> Iterator[Any]:
    """A browser with an empty profile, as selenium's WebDriver; it ends with the block."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(prefix="puhui-chromium-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = _program() or ""
        for flag in (*QUIET, *more, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.add_argument("--no-sandbox")  # Chromium has none for root
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            driver.set_script_timeout(120)
            yield driver
        finally:
            driver.quit()


def _program() -> str | None:
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)
