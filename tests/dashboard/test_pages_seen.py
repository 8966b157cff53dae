"""Every page clicked through in headless Chromium, against a running node with an expert in place and real traffic."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

import experts as sample
from paged_node import ODD, Paged, paged_node
from puhui.dashboard.pages import PAGES
from puhui.store.tables import experts
from serving import wait_until

BUILD = Path(__file__).parents[2] / "build" / "screenshots"
TAB, ENTER, SPACE, RIGHT, LEFT = "\ue004", "\ue007", " ", "\ue014", "\ue012"
SIZES = {
    "phone": {"width": 360, "height": 780, "deviceScaleFactor": 1, "mobile": True},
    "desk": {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False},
}
WAIT_S = 20.0


class Seen:
    """The pages as a person sees them."""

    def __init__(self, browser: Any, node: Paged) -> None:
        self.browser = browser
        self.node = node

    def open(self, page: str, *, language: str = "en") -> None:
        """Opens a page in a language, as somebody who has chosen nothing else yet."""
        self.browser.get(f"{self.node.url}/{page}")
        self.browser.execute_script(
            "localStorage.clear(); localStorage.setItem('puhui-language', arguments[0]);", language
        )
        self.browser.get(f"{self.node.url}/{page}")
        self.browser.get_log("browser")

    def one(self, css: str) -> Any:
        """The first element, waited for."""
        wait_until(lambda: self.browser.find_elements("css selector", css), seconds=WAIT_S)
        return self.browser.find_element("css selector", css)

    def text(self, css: str) -> str:
        """What an element shows, read at once: pages are drawn anew under one's hands."""
        return str(
            self.browser.execute_script(
                "const e = document.querySelector(arguments[0]); return e?.checkVisibility() ? e.innerText : ''", css
            )
        )

    def wait(self, css: str, *texts: str) -> None:
        """Waits until the element shows all of the texts."""
        wait_until(lambda: all(text in self.text(css) for text in texts), seconds=WAIT_S)

    def click(self, css: str) -> None:
        """Clicks the first element, even if it was drawn anew just now."""
        self.one(css)
        self.browser.execute_script("document.querySelector(arguments[0]).click()", css)

    def press(self, *keys: str) -> Any:
        """Presses keys one after the other; the element that has the focus then."""
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)
        return self.browser.switch_to.active_element

    def tab_to(self, css: str, most: int = 40) -> Any:
        """Goes to an element by the tab key alone."""
        for _ in range(most):
            element = self.press(TAB)
            if self.browser.execute_script("return arguments[0].matches(arguments[1])", element, css):
                return element
        raise AssertionError(f"{css} cannot be reached by the keyboard")

    def size(self, name: str, *, dark: bool = False) -> None:
        """The screen's size, and its colours."""
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SIZES[name])
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def complaints(self) -> list[str]:
        """What the browser's console holds of errors."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paged]:
    with paged_node(tmp_path_factory.mktemp("node"), requests=40) as running:
        for _ in range(4):
            running.ask(f"my bank account and cash {ODD}")
        running.audited()
        yield running


@pytest.fixture
def seen(browser: Any, node: Paged) -> Iterator[Seen]:
    yield from _seen(browser, node)


@pytest.fixture
def own(browser: Any, tmp_path: Path) -> Iterator[Seen]:
    """Pages of a node that a test may change."""
    with paged_node(tmp_path, requests=12) as running:
        yield from _seen(browser, running)


def _seen(browser: Any, node: Paged) -> Iterator[Seen]:
    page = Seen(browser, node)
    page.size("desk")
    yield page
    browser.execute_script("localStorage.clear(); sessionStorage.clear();")
    browser.get("about:blank")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


FILLED = {
    "bill": ("#meter", "44"),
    "experts": ("#tasks", "Which subject is this about"),
    "live": ("#flow", "Which subject is this about"),
    "playground": ("#ask", ""),
    "keys": ("main", ""),
}


@pytest.mark.parametrize("page", PAGES)
def test_sizes_colours_and_languages(seen: Seen, page: str) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    looks = (("en", "phone", False), ("zh", "phone", True), ("en", "desk", True), ("zh", "desk", False))
    for language, size, dark in looks:
        seen.size(size, dark=dark)
        seen.open(page, language=language)
        seen.wait(*FILLED[page])
        script = seen.browser.execute_script
        assert script("return document.documentElement.scrollWidth <= innerWidth"), (language, size)
        assert script("return document.documentElement.lang") == {"en": "en", "zh": "zh-CN"}[language]
        assert bool(re.search("[\u4e00-\u9fff]", seen.text("h1"))) is (language == "zh")
        colour = script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 120) is dark
        unnamed = script(
            "return [...document.querySelectorAll('button, a, input, select, textarea, [role=img]')].filter((e) => "
            "e.checkVisibility() && !(e.innerText?.trim() || e.ariaLabel || e.labels?.length || e.title)).length"
        )
        assert unnamed == 0
        seen.browser.save_screenshot(str(BUILD / f"test-{page}-{size}-{language}.png"))
        assert seen.complaints() == []


CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data]; };
const light = (rgb) => { const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 :
  ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = (element) => { const layers = [];
  for (let e = element; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3]) layers.push(c); if (c[3] === 255) break; }
  return layers.reverse().reduce((below, c) => below.map((v, i) => v + (c[i] - v) * c[3] / 255), [255, 255, 255]); };
const poor = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !e.checkVisibility() || e.closest('svg, option, :disabled, .unseen, .skip, [aria-hidden=true]')) continue;
  const style = getComputedStyle(e), [one, other] = [light(rgba(style.color)), light(behind(e))].sort((a, b) => b - a);
  const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
  const ratio = (one + 0.05) / (other + 0.05);
  if (ratio < (large ? 3 : 4.5)) poor.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio.toFixed(2)]);
}
return poor;
"""


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read(seen: Seen, page: str, dark: bool) -> None:
    """WCAG 2.2, 1.4.3 at level AA: 4.5 to 1, and 3 to 1 for large text."""
    seen.size("desk", dark=dark)
    seen.open(page)
    seen.wait(*FILLED[page])
    assert seen.browser.execute_script(CONTRAST) == []


def test_the_bill(seen: Seen) -> None:
    seen.open("")
    assert seen.browser.current_url.endswith("/bill")
    total = seen.node.http.get("/puhui/v1/bill?period=all").json()["total"]
    seen.wait("#meter", f"{total['share_by_expert'] * 100:.0f} %", f"{total['by_expert']} by experts")
    assert "at most 1.0 % of requests" in seen.text("#meter")
    assert "agreement with the big model, not of truth" in seen.text("footer")
    assert "Estimated from CPU time and tokens; between" in seen.text("#amounts")
    seen.wait("#by-task", "Which subject is this about", "≤ 1.0 %")
    # By the keyboard: along the chart, to another quantity, and to the table.
    seen.tab_to("#period input")
    seen.tab_to("#quantity input")
    seen.press(RIGHT)
    seen.wait("#time .legend", "With Puhui")
    seen.tab_to("#time svg")
    seen.press(RIGHT)
    seen.wait("#time .tip", "With Puhui: ", "Big alone: ")
    seen.press(TAB, ENTER)
    seen.wait("#time table", "Requests", "Money")
    # A period without anything in it would say so; today has it all.
    seen.click("#period input[value=today]")
    seen.wait("#meter", f"{total['by_expert']} by experts")
    assert seen.complaints() == []


def test_an_expert_is_taken_out_and_put_back_by_the_keyboard(own: Seen) -> None:
    own.open("experts")
    own.wait("#tasks", "Expert in place", own.node.expert[:12], own.node.earlier[:12], "≤ 1.0 %", "a better one came")
    own.tab_to("button[data-do=demote]")
    own.press(ENTER)
    own.wait("#confirm", "Take out expert", "The ledger says that it was done by hand")
    own.press(ENTER)  # on Cancel, which comes first
    assert own.node.http.get("/puhui/state").json()["experts"] != []
    own.tab_to("button[data-do=demote]")
    own.press(ENTER)
    own.tab_to("#confirm-yes")
    own.press(ENTER)
    own.wait("#tasks", "Big model answers", "by hand (no key): taken out")
    assert own.node.http.get("/puhui/state").json()["experts"] == []
    own.click(f"tr:has([data-expert='{own.node.earlier}']) button[data-do=promote]")
    own.wait("#confirm", f"Put expert {own.node.earlier[:12]} back?")
    own.click("#confirm-yes")
    own.wait("#tasks", "Expert in place")
    (state,) = own.node.http.get("/puhui/state").json()["experts"]
    assert state["id"] == own.node.earlier
    own.click("details:last-of-type > summary")
    own.wait(".events", "Taken out", "Promoted", "by hand (no key)")
    assert own.complaints() == []


def test_what_an_expert_has_seen(seen: Seen) -> None:
    seen.open("experts")
    placed = seen.node.http.get("/puhui/v1/experts").json()["tasks"][0]["versions"][0]
    seen.wait("#tasks", f"in {placed['observations']} sampled requests", f"Disagreements ({placed['disagreements']})")
    assert placed["disagreements"] > 0
    seen.one(".task svg .limit")
    seen.tab_to(".task svg")
    seen.press(RIGHT)
    seen.wait(".task .tip", "1 sampled requests", "evidence ")
    seen.click("details > summary")
    seen.wait(".says", f"my bank account and cash {ODD}", "The expert said", "money", "something else")
    seen.click(f"button[data-expert='{seen.node.earlier}']")
    seen.wait("#tasks", f"Expert {seen.node.earlier[:12]}: in 0 sampled requests", "No audited request yet.")
    assert seen.complaints() == []


def test_requests_flow(seen: Seen) -> None:
    seen.open("live")
    seen.wait("#state", "connected")
    number = len(seen.node.ask("a flight and a hotel").json()["puhui"]["by"])
    assert number > 0
    seen.wait("#flow tbody tr:first-child", seen.node.expert[:12])
    seen.wait("#now", "By experts", "An expert takes")
    seen.tab_to("#pause")
    seen.press(SPACE)
    seen.wait("#state", "paused".capitalize())
    before = seen.text("#flow")
    seen.node.ask("a train and a ticket", temperature=0.5)
    seen.browser.execute_async_script("setTimeout(arguments[0], 1500)")
    assert seen.text("#flow") == before
    seen.press(SPACE)
    seen.wait("#flow tbody tr:first-child", "(no task)")
    assert seen.browser.execute_script(
        "const c = document.getElementById('speed');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return d.some((value, index) => index % 4 === 3 && value > 0)"
    )
    assert "flight" not in seen.browser.page_source
    assert seen.complaints() == []


def test_requests_of_long_ago_are_not_shown_as_of_now(own: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.time
    monkeypatch.setattr("puhui.gateway.live_feed.time.time", lambda: clock() + 70.0)
    own.open("live")
    own.wait("#flow tbody", own.node.expert[:12])
    assert own.text("#now .figure") == "0"
    assert own.complaints() == []


def test_a_node_that_does_not_learn_says_so(own: Seen) -> None:
    with own.node.store.begin() as connection:
        connection.execute(update(experts).values(status="retired"))
    wait_until(lambda: own.node.http.get("/puhui/state").json()["experts"] == [])
    own.open("experts")
    own.wait("#learning", "Not learned here", "told not to learn", "answers so far; this node does not learn")
    assert "next attempt" not in own.text("#learning")
    own.browser.get(f"{own.node.url}/device")
    own.wait("#empty", "told not to learn", "answers so far; this node does not learn")
    assert own.complaints() == []


@pytest.mark.parametrize("streamed", [False, True])
def test_the_playground(seen: Seen, streamed: bool) -> None:
    seen.open("playground")
    for name, text in (("system", sample.SYSTEM), ("user", f"my bank account and cash {ODD}"), ("model", "m")):
        field = seen.one(f"#{name}")
        field.clear()
        field.send_keys(text)
    if streamed:
        seen.click("#stream")
    seen.tab_to("#send")
    seen.press(ENTER)
    seen.wait("#answers .answer:first-child", "money", "The expert was sure enough", "confidence", "J")
    seen.wait("#answers .answer:last-child", "something else", "another answer", "Quality 1 was asked for")
    seen.wait("#answers .answer:last-child", "The expert took 1/")
    assert seen.one("#answers .answer:first-child").get_attribute("data-by") == "expert"
    # The big model in any case, by the slider; and a text that no expert knows.
    slider = seen.one("#quality")
    slider.send_keys("\ue010")  # End
    seen.wait("#quality-said", "always the big model")
    seen.click("#beside")
    seen.click("#send")
    seen.wait("#answers", "something else", "Quality 1 was asked for")
    # As much as an expert must promise: this one promises 95 %.
    slider.send_keys(LEFT)
    seen.wait("#quality-said", "an expert that promises 99 % will do")
    seen.click("#send")
    seen.wait("#answers", "something else", "No expert that promises 99 % is in place for this job")
    slider.send_keys("\ue011")  # Home
    seen.wait("#quality-said", "a proven expert will do")
    seen.one("#system").clear()
    seen.click("#send")
    seen.wait("#answers", "No expert is in place for this job")
    assert seen.complaints() == []


def test_keys_from_the_first_to_the_last(own: Seen) -> None:
    own.open("keys")
    own.wait("#open", "No keys yet")
    own.click("#new:enabled")
    own.one("#name").send_keys("Operations", ENTER)
    own.wait("#shown", "Copy it now")
    admin = own.text("#shown-key")
    assert admin.startswith("pk-puhui-")
    own.click("#shown button[value=done]")
    own.wait("#keys", "Operations", "everything (administrator)")
    assert own.text("#shown-key") == ""
    # Another, with a limit; it is changed, and then revoked.
    own.click("#new:enabled")
    own.one("#name").send_keys("Support")
    own.one("#limit-requests_per_minute").send_keys("60")
    own.one("#name").send_keys(ENTER)
    own.wait("#shown", "Copy it now")
    own.click("#shown button[value=done]")
    own.wait("#keys", "Support", "Requests a minute: 60")
    ids = {key["name"]: key["id"] for key in listed(own, admin)}
    own.click(f"[data-key='{ids['Support']}'] [data-do=change]")
    own.one("#limit-requests_per_minute").clear()
    own.one("#limit-money_per_day").send_keys("2.5")
    own.one("#key-models").send_keys(" , ")
    own.click("#edit button[type=submit]")
    own.wait("#edit-wrong", "name no models")
    assert len(own.complaints()) == 1  # that the node refused
    own.one("#key-models").clear()
    own.click("#edit button[type=submit]")
    own.wait(f"[data-key='{ids['Support']}']", "Money a day: 2.5")
    assert "Requests a minute" not in own.text(f"[data-key='{ids['Support']}']")
    own.click(f"[data-key='{ids['Support']}'] [data-do=revoke]")
    own.click("#confirm-yes")
    own.wait(f"[data-key='{ids['Support']}']", "revoked")
    states = {key["name"]: key["state"] for key in listed(own, admin)}
    assert states == {"Operations": "active", "Support": "revoked"}
    assert own.complaints() == []


def test_a_change_leaves_the_second_at_which_a_key_expires(own: Seen) -> None:
    admin, _ = made_key(own, {"name": "Operations", "rules": {"scopes": ["admin"]}})
    ends = float(int(time.time()) + 86_400)
    _, id = made_key(own, {"name": "Support", "expires": ends}, admin)
    own.open("keys")
    own.wait("#ask-key", "This node asks for a key")
    own.one("#ask-key-value").send_keys(admin, ENTER)
    own.wait("#keys", "Support")
    own.click(f"[data-key='{id}'] [data-do=change]")
    own.one("#limit-requests_per_minute").send_keys("60")
    own.click("#edit button[type=submit]")
    own.wait(f"[data-key='{id}']", "Requests a minute: 60")
    assert {key["name"]: key["expires"] for key in listed(own, admin)} == {"Operations": None, "Support": ends}
    own.click(f"[data-key='{id}'] [data-do=change]")
    own.browser.execute_script("document.getElementById('expires').value = '2099-12-31'")
    own.click("#edit button[type=submit]")
    own.wait(f"[data-key='{id}']", "2099")
    last = datetime.datetime(2099, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    assert listed(own, admin)[1]["expires"] == last.timestamp()


def made_key(own: Seen, wanted: dict[str, Any], admin: str = "") -> tuple[str, str]:
    """A key made over HTTP, and its id."""
    headers = {"authorization": f"Bearer {admin}"} if admin else {}
    made = own.node.http.post("/puhui/v1/keys", json=wanted, headers=headers).raise_for_status().json()
    return made["key"], made["id"]


def listed(own: Seen, key: str) -> list[dict[str, Any]]:
    """The node's keys, as it lists them to an administrator."""
    reply = own.node.http.get("/puhui/v1/keys", headers={"authorization": f"Bearer {key}"})
    return list(reply.raise_for_status().json()["data"])


def test_pages_ask_for_a_key_and_keep_it_in_the_tab(own: Seen) -> None:
    make = {"name": "Operations", "rules": {"scopes": ["admin"]}}
    key = own.node.http.post("/puhui/v1/keys", json=make).json()["key"]
    own.open("bill")
    own.wait("#ask-key", "This node asks for a key")
    own.one("#ask-key-value").send_keys("pk-puhui-wrong", ENTER)
    own.wait("#ask-key-why", "not one of this node")
    own.one("#ask-key-value").send_keys(key, ENTER)
    own.wait("#meter", "by experts")
    storage = "return [sessionStorage.getItem('puhui-key'), JSON.stringify(localStorage), document.cookie]"
    kept, local, cookie = own.browser.execute_script(storage)
    assert kept == key
    assert key not in local + cookie
    own.browser.get(f"{own.node.url}/experts")
    own.wait("#tasks", "Expert in place")
    own.browser.get(f"{own.node.url}/live")
    own.wait("#state", "connected")
    own.click("#key-button")
    own.wait("#ask-key", "This node asks for a key")
    assert own.browser.execute_script("return sessionStorage.getItem('puhui-key')") is None


def test_a_key_that_asks_alone_has_the_playground(own: Seen) -> None:
    """It may not see the experts: the page says what it can without them, and asks for no other key."""
    headers: dict[str, str] = {}
    for scopes in (["admin"], ["chat"]):
        make = {"name": scopes[0], "rules": {"scopes": scopes, "models": ["m"]}}
        reply = own.node.http.post("/puhui/v1/keys", json=make, headers=headers)
        key = reply.raise_for_status().json()["key"]
        headers = headers or {"authorization": f"Bearer {key}"}
    own.open("playground")
    own.browser.execute_script("sessionStorage.setItem('puhui-key', arguments[0])", key)
    own.browser.refresh()
    own.one("#model").clear()
    for name, text in (("user", "my bank account and cash"), ("model", "m")):
        own.one(f"#{name}").send_keys(text)
    own.click("#send")
    own.wait("#answers .answer:first-child", "money", "No expert is in place for this job")
    own.wait("#answers .answer:last-child", "money", "same answer")
    assert own.text("#ask-key") == ""


def test_the_language_and_the_colours_are_chosen_and_kept(seen: Seen) -> None:
    seen.browser.get(f"{seen.node.url}/bill")
    seen.browser.execute_script("localStorage.clear()")
    seen.browser.refresh()
    seen.wait("h1", "The bill")  # the browser's own language
    seen.tab_to("#theme")
    for _ in range(2):
        seen.press(ENTER)
    assert seen.browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    seen.press(TAB, ENTER)
    seen.wait("h1", "账单")
    seen.wait("#meter", "由专家回答")
    seen.browser.refresh()
    seen.wait("h1", "账单")
    assert seen.browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    focus = "const s = getComputedStyle(document.activeElement); return s.outlineStyle + s.outlineWidth"
    seen.tab_to("nav a")
    assert seen.browser.execute_script(focus) == "solid3px"


def test_names_are_text_and_never_markup(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's name is the beginning of somebody's system prompt."""
    evil = "<img src=x onerror=document.title='caught'>"
    monkeypatch.setattr(sample, "SYSTEM", evil)
    with paged_node(tmp_path, requests=0) as node:
        page = Seen(browser, node)
        for name in ("experts", "bill"):
            page.open(name)
            page.wait("main", evil if name == "experts" else "The bill")
            assert "caught" not in browser.title
            assert browser.find_elements("css selector", "main img") == []


def test_the_node_goes_away_and_comes_back(browser: Any, tmp_path: Path) -> None:
    with paged_node(tmp_path, requests=3) as node:
        page = Seen(browser, node)
        page.open("bill")
        page.wait("#meter", "by experts")
    page.wait("#trouble", "The node cannot be reached")
    assert "by experts" in page.text("#meter")  # what was known stays
