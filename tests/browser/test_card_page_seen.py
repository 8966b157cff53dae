"""`card.html` in headless Chromium: it fits a phone, needs no network, and its switch shows one language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cards_made import HOSTILE, full_card
from puhui.bundles.card_page import render_card

VISIBLE = "[...document.querySelectorAll('body [lang={}]')].filter(e => e.getClientRects().length).length"


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    (tmp_path / "card.html").write_text(render_card(full_card(words=(*HOSTILE, "w" * 300))), encoding="utf-8")
    browser.get((tmp_path / "card.html").as_uri())
    return browser


def show(page: Any, script: str) -> Any:
    return page.execute_script(f"return {script}")


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_fits_the_screen(page: Any, width: int) -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    page.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert show(page, "document.documentElement.scrollWidth") <= width
    assert show(page, "performance.getEntriesByType('resource').length") == 0
    letters = "[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length)"
    assert show(page, f"Math.min(...{letters}.map(e => e.getBoundingClientRect().height))") >= 9
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_switch_shows_one_language(page: Any) -> None:
    assert show(page, VISIBLE.format("en")) > 80
    assert show(page, VISIBLE.format("zh")) == 0
    page.find_element("css selector", "label[for=zh]").click()
    assert show(page, VISIBLE.format("en")) == 0
    assert show(page, VISIBLE.format("zh")) > 80


def test_dark_is_dark(page: Any) -> None:
    def light(value: str) -> int:
        features = [{"name": "prefers-color-scheme", "value": value}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colour = show(page, "getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    assert light("light") > 700
    assert light("dark") < 100
