"""Pictures of every page of a node, in headless Chromium: on the store that a demo left, with real traffic.

    python -m bench.screenshots --demo-results FOLDER --out docs/pictures [--requests N] [--rate R]

FOLDER is what `puhui demo` wrote (the newest in demo-results, say), or the `node` folder in it. It is copied, so that
it stays as it is. The demo's own big model is started again, a node is put before it on that copy, and the first
requests of the demo's traffic are sent once more while the pictures are taken. Nothing on them is made up.

Each page is taken as on a desk (1200 pixels wide, light) and as on a phone (360 pixels, dark, in Chinese).
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
from rich.console import Console
from sqlalchemy import select, update

from bench.headless import chromium, what_is_missing
from puhui.dashboard.pages import PAGES
from puhui.demo.job import Job
from puhui.demo.load import send_all
from puhui.demo.processes import Processes, free_port
from puhui.demo.run import DemoSettings, read_job, start_big
from puhui.store.database import open_store, sqlite_url
from puhui.store.tables import experts

DESK = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 360, "height": 780, "deviceScaleFactor": 1, "mobile": True}
HIGHEST = {"desk": 1500, "phone": 1400}
MOST_BYTES = 150_000
KEYS: tuple[dict[str, Any], ...] = (
    {"name": "Platform team", "rules": {"scopes": ["admin"]}},
    {"name": "Support desk", "rules": {"requests_per_minute": 600, "money_per_month": 50, "keep": "redacted"}},
    {"name": "Grafana", "rules": {"scopes": ["read"]}},
)


def main() -> None:
    """Takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo-results", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/screenshots"))
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=25.0)
    given = parser.parse_args()
    if missing := what_is_missing():
        parser.error(missing)
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="puhui-pictures-") as scratch, Processes(Path(scratch) / "logs") as running:
        folder = copied(given.demo_results, Path(scratch))
        settings = DemoSettings(out=Path(scratch), requests=given.requests)
        job = read_job(settings)
        world = start_big(settings, job, running, Console(stderr=True))
        port = free_port()
        arguments = ["puhui.cli.main", "serve", "--upstream", f"openai:{world.model}@{world.url}", "--no-learn"]
        arguments += ["--port", str(port), "--data-dir", str(folder)]
        running.start("node", arguments, f"http://127.0.0.1:{port}/healthz")
        url = f"http://127.0.0.1:{port}"
        bodies = [msgspec.json.encode({"model": world.model, "messages": job.messages(item)}) for item in job.traffic]
        traffic = threading.Thread(
            target=send_all,
            args=(f"{url}/v1", bodies),
            kwargs={"rate": given.rate, "clients": 3, "done": lambda _: None},
            daemon=True,
        )
        traffic.start()
        with chromium(more=("--lang=en-GB",)) as browser:
            Camera(browser, url, given.out).take_all(job)


def copied(results: Path, scratch: Path) -> Path:
    """A copy of the demo's data folder, whose store names the bundles where they are now."""
    node = results / "node" if (results / "node").is_dir() else results
    folder = scratch / "node"
    shutil.copytree(node, folder)
    store = open_store(sqlite_url(folder / "puhui.db"), create=False)
    with store.begin() as connection:
        for row in connection.execute(select(experts.c.id, experts.c.folder)).all():
            place = folder / "experts" / Path(row.folder).name
            connection.execute(update(experts).where(experts.c.id == row.id).values(folder=str(place)))
    store.close()
    return folder


class Camera:
    """A browser that takes pictures of a node's pages."""

    def __init__(self, browser: Any, url: str, out: Path) -> None:
        self._browser = browser
        self._url = url
        self._out = out

    def take_all(self, job: Job) -> None:
        """Every page, on a desk and on a phone."""
        for page in PAGES:
            if page == "keys":
                self._make_keys(job)
            for kind in ("desk", "phone"):
                self._open(page, kind)
                if page == "live":
                    time.sleep(12.0)
                elif page == "playground":
                    self._ask(job)
                elif page == "experts":
                    self._unfold()
                time.sleep(2.0)
                self._save(page if kind == "desk" else f"{page}-phone", kind, highest=HIGHEST[kind])

    def _open(self, page: str, kind: str) -> None:
        browser = self._browser
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", DESK if kind == "desk" else PHONE)
        scheme = {"name": "prefers-color-scheme", "value": "light" if kind == "desk" else "dark"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        browser.get(f"{self._url}/{page}")
        language = "en" if kind == "desk" else "zh"
        browser.execute_script(f"localStorage.setItem('puhui-language', '{language}')")
        browser.execute_script("localStorage.setItem('puhui-period', 'all')")
        browser.get(f"{self._url}/{page}")
        time.sleep(1.5)

    def _ask(self, job: Job) -> None:
        """The first request of the job that an expert is sure of, as the node itself says."""
        for item in job.traffic:
            body = {"model": "minilm", "messages": job.messages(item)}
            reply = httpx.post(f"{self._url}/v1/chat/completions", json=body, timeout=60.0, trust_env=False).json()
            if reply["puhui"]["by"].startswith("expert:") and len(item.text) > 40:
                break
        for name, text in (("system", job.system), ("user", item.text)):
            field = self._browser.find_element("id", name)
            field.clear()
            field.send_keys(text)
        self._browser.find_element("id", "send").click()
        until = time.monotonic() + 30.0
        while len(self._browser.find_elements("css selector", ".answer dl")) < 2 and time.monotonic() < until:
            time.sleep(0.1)

    def _unfold(self) -> None:
        """The earlier expert with the most disagreements, and those of it."""
        buttons = self._browser.find_elements("css selector", "button[data-expert]")
        buttons[min(1, len(buttons) - 1)].click()
        self._browser.find_elements("css selector", "details > summary")[0].click()

    def _make_keys(self, job: Job) -> None:
        """The keys, and requests with the one that may ask, so that it has spent something."""
        headers: dict[str, str] = {}
        for wanted in KEYS:
            url = f"{self._url}/puhui/v1/keys"
            reply = httpx.post(url, json=wanted, headers=headers, timeout=30.0, trust_env=False)
            made = reply.raise_for_status().json()
            headers = headers or {"authorization": f"Bearer {made['key']}"}
            for item in job.traffic[:30] if "chat" in made["rules"]["scopes"] else ():
                body = {"model": "minilm", "messages": job.messages(item)}
                own = {"authorization": f"Bearer {made['key']}"}
                asked = httpx.post(
                    f"{self._url}/v1/chat/completions", json=body, headers=own, timeout=60.0, trust_env=False
                )
                asked.raise_for_status()
        self._browser.execute_script("sessionStorage.setItem('puhui-key', arguments[0])", headers["authorization"][7:])

    def _save(self, name: str, kind: str, *, highest: int) -> None:
        from PIL import Image

        browser, size = self._browser, dict(DESK if kind == "desk" else PHONE)
        tall = int(browser.execute_script("return document.documentElement.scrollHeight"))
        size["height"] = min(highest, max(size["height"], tall))
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_script("scrollTo(0, 0); document.querySelectorAll('textarea').forEach((e) => e.scrollTo(0, 0))")
        time.sleep(0.6)
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        place = self._out / f"{name}.png"
        picture.quantize(256, dither=Image.Dither.NONE).save(place, optimize=True)
        if place.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{place} has {place.stat().st_size:,} bytes; the most is {MOST_BYTES:,}")
        print(f"{place}  {picture.width} × {picture.height}, {place.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
