"""The /device page clicked through in headless Chromium against a running node, with the network and without."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import update

import experts as sample
from puhui.evolve.traffic import group_key
from puhui.gateway.server import ServeSettings, node_app
from puhui.store.database import Store, open_store, sqlite_url
from puhui.store.tables import experts
from puhui.trust.keys import load_or_create_key
from serving import serving, wait_until

GROUP = group_key("m", "", "context", sample.SYSTEM)
OTHER = group_key("m", "", "context", "another")
BUILD = Path(__file__).parents[2] / "build"
SURE, UNSURE = "the bank balance of my account", "xyz"


class Page:
    """The page as a person sees it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def __getitem__(self, id: str) -> Any:
        return self.browser.find_element("id", id)

    def wait(self, id: str, text: str) -> None:
        """Waits until the element shows the text."""
        wait_until(lambda: text in self[id].text)

    def write(self, text: str) -> None:
        """Types the text in place of what is there."""
        wait_until(self["text"].is_enabled)
        self["text"].clear()
        self["text"].send_keys(text)

    @property
    def verdict(self) -> str:
        """`here`, `away` or `none`."""
        return str(self["answer"].get_attribute("data-verdict"))

    def complaints(self) -> list[str]:
        """What the browser's console holds of errors, but for those of requests that found no network."""
        lines = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        return [line for line in lines if "net::ERR_" not in line and "status of 404" not in line]


def configured(folder: Path) -> ServeSettings:
    return ServeSettings(
        upstream="http://127.0.0.1:9/v1",
        store=sqlite_url(folder / "puhui.db"),
        folder=folder,
        learn=False,
        access_log=False,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(configured(tmp_path).store)
    yield opened
    opened.close()


def promote(store: Store, folder: Path, group: str = GROUP) -> tuple[str, Path]:
    chosen = configured(folder)
    expert, place, _ = sample.promote(store, chosen.bundles, load_or_create_key(chosen.key), group)
    return expert, place


@contextlib.contextmanager
def opened(browser: Any, folder: Path) -> Iterator[Page]:
    """The page of a node on that folder."""
    with serving(node_app(configured(folder))) as url:
        browser.get(f"{url}/device")
        browser.get_log("browser")
        yield Page(browser)


def test_typing_gets_answers(browser: Any, store: Store, tmp_path: Path) -> None:
    expert, _ = promote(store, tmp_path)
    with opened(browser, tmp_path) as page:
        page.write(SURE)
        model = sample.model()
        for text in (SURE, "a flight and a hotel", "预订 pizza", "xyz"):
            page.write(text)
            label, confidence = model.predict_one(text)
            assert page["label"].text == label
            assert float(re.findall(r"\d\.\d{3}", page["confidence"].text)[0]) == pytest.approx(confidence, abs=6e-4)
            assert page.verdict == ("here" if confidence >= 0.5 else "away")
            assert re.fullmatch(r"[\d.]+ µs on this device", page["time"].text)
        facts = page["facts"].text
        for shown in ("90 %", "≤ 1.0 %, 95 % sure", "digests and signature", expert[:12]):
            assert shown in facts
        assert re.search(r"Over the wire\n[\d.]+ kB", facts)
        page.wait("state", "Works offline")
        page["text"].clear()
        page["text"].send_keys("a\b")
        assert (page.verdict, page["label"].text) == ("none", "…")
        assert page.browser.execute_script("return crossOriginIsolated")
        assert page.complaints() == []


def test_what_is_not_sure_would_go_to_the_big_model(
    browser: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = sample.card
    monkeypatch.setattr(sample, "card", lambda task: card(task, calibration={"threshold": 0.9}))
    promote(store, tmp_path)
    with opened(browser, tmp_path) as page:
        page.write(SURE)
        assert page.verdict == "here"
        page.write(UNSURE)
        assert page.verdict == "away"
        assert "the big model would be asked" in page["verdict"].text
        assert "needed 0.900" in page["confidence"].text


def test_no_expert_yet_then_one_then_another(browser: Any, store: Store, tmp_path: Path) -> None:
    with opened(browser, tmp_path) as page:
        page.wait("empty", "No expert is in place yet")
        assert not page["bench"].is_displayed()
        first, _ = promote(store, tmp_path)
        page.wait("facts", first[:12])
        assert not page["empty"].is_displayed()
        second, _ = promote(store, tmp_path, OTHER)
        wait_until(lambda: len(httpx.get(f"{browser.current_url}/experts").json()["experts"]) == 2)
        page.browser.refresh()
        wait_until(lambda: len(page.browser.find_elements("css selector", "#expert option")) == 2)
        page.write(SURE)
        shown = page["expert"].get_attribute("value")
        other = {first, second} - {shown}
        page["expert"].find_element("css selector", f'option[value="{other.pop()}"]').click()
        wait_until(lambda: shown[:12] not in page["facts"].text and "Checked" in page["facts"].text)
        assert page["label"].text == "money"
        assert page.complaints() == []


def test_a_damaged_bundle_is_named(browser: Any, store: Store, tmp_path: Path) -> None:
    """Damaged on its way: the node itself gives out nothing that is damaged on its disk."""
    expert, place = promote(store, tmp_path)
    app = node_app(configured(tmp_path))
    damage = True

    async def damaging(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if damage and message["type"] == "http.response.body" and message["body"]:
                message = message | {"body": b"x" * len(message["body"])}
            if damage and message["type"] == "http.response.start":
                kept = [header for header in message["headers"] if header[0] != b"content-encoding"]
                message = message | {"headers": kept}
            await send(message)

        weights = scope.get("path", "").endswith("weights.safetensors")
        await app(scope, receive, sent if weights else send)

    with serving(damaging) as url:  # type: ignore[arg-type]
        browser.get(f"{url}/device")
        page = Page(browser)
        page.wait("trouble", "weights.safetensors was changed")
        assert not page["text"].is_enabled()
        damage = False
        page["again"].click()
        page.write(SURE)
        assert page["label"].text == "money"
        assert not page["trouble"].is_displayed()
    assert (expert, place.is_dir()) == (place.name + expert[24:], True)


def test_the_network_is_cut(browser: Any, store: Store, tmp_path: Path) -> None:
    promote(store, tmp_path)
    chosen = configured(tmp_path)
    with opened(browser, tmp_path) as page:
        url = browser.current_url
        page.wait("state", "Works offline")
        page.write(SURE)
        browser.set_network_conditions(offline=True, latency=0, throughput=0)
        try:
            page.wait("state", "Offline, still answering")
            page.write("a flight and a hotel")
            assert page["label"].text == "travel"
        finally:
            browser.delete_network_conditions()
    # The node is gone now: the page opens all the same, and again after that.
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    for _ in range(2):
        browser.refresh()
        page.write(SURE)
        assert (page["label"].text, page.verdict) == ("money", "here")
        page.wait("state", "Node out of reach, still answering")
        assert "already here, " in page["facts"].text
    # And when it is back with another expert in place, the page has that one, and the other is kept no more.
    with store.begin() as connection:
        connection.execute(update(experts).values(status="demoted"))
    other, _ = promote(store, tmp_path, OTHER)
    with at_port(int(url.split(":")[2].split("/")[0]), chosen):
        browser.refresh()
        page.wait("facts", other[:12])
        page.wait("state", "Works offline")
        kept = browser.execute_async_script(
            "const done = arguments[0]; caches.open('puhui').then((cache) => cache.keys()).then((keys) => "
            "done(keys.map(({ url }) => url.split('/').at(-2))));"
        )
        assert set(kept) == {other}


@contextlib.contextmanager
def at_port(port: int, chosen: ServeSettings) -> Iterator[None]:
    """The node again, where it was before."""
    listening = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(node_app(chosen), log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10.0)
        listening.close()


def test_an_expert_that_steps_down_leaves_the_page(browser: Any, store: Store, tmp_path: Path) -> None:
    promote(store, tmp_path)
    with opened(browser, tmp_path) as page:
        page.write(SURE)
        with store.begin() as connection:
            connection.execute(update(experts).values(status="demoted"))
        wait_until(lambda: not httpx.get(browser.current_url + "/experts").json()["experts"])
        browser.refresh()
        page.wait("empty", "No expert is in place yet")


def test_languages_keyboard_and_sizes(browser: Any, store: Store, tmp_path: Path) -> None:
    promote(store, tmp_path)
    BUILD.mkdir(exist_ok=True)
    with opened(browser, tmp_path) as page:
        page.write(SURE)
        heading = browser.find_element("tag name", "h1")
        assert heading.text == "An expert, on this page"
        page["language"].click()
        wait_until(lambda: heading.text == "专家，就在这个页面里")
        assert browser.find_element("tag name", "html").get_attribute("lang") == "zh-CN"
        page.wait("verdict", "由本机回答")
        browser.refresh()
        page.wait("state", "可离线使用")  # the choice is kept
        page["language"].click()
        page.wait("language", "中文")
        reached = []
        for _ in range(2):  # from the button that was clicked
            browser.switch_to.active_element.send_keys("\ue004")  # Tab
            reached.append(browser.switch_to.active_element.get_attribute("id"))
        assert reached == ["expert", "text"]
        page.write(SURE)
        try:
            for name, width, dark in (("phone", 360, False), ("dark", 390, True), ("wide", 1200, False)):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
                assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
                colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
                assert (sum(map(int, re.findall(r"\d+", colour))) < 120) is dark
                browser.save_screenshot(str(BUILD / f"device-{name}.png"))
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_names_are_text_and_never_markup(
    browser: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task's name is the beginning of somebody's system prompt."""
    evil, card = "<img src=x onerror=document.title='caught'>", sample.card
    monkeypatch.setattr(sample, "card", lambda task: card(task, task_name=evil))
    promote(store, tmp_path)
    with opened(browser, tmp_path) as page:
        page.write(SURE)
        assert evil in page["expert"].text
        assert browser.title == "Puhui 普慧"
        assert browser.find_elements("tag name", "img") == []
