"""What tests with a browser share: a bundle of real text, another origin, and calls into a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import experts as sample
from puhui.browser import FOLDER
from puhui.bundles.bundle import seal
from puhui.compress.static_training import distill_static
from puhui.evolve.discovery import task_of_group
from puhui.models.static import StaticModel
from puhui.trust.keys import SigningKey, load_or_create_key

ROOT = Path(__file__).parents[1]
WORKER = """
onmessage = async ({ data: { script, url, text } }) => {
  const { load } = await import(script);
  postMessage({ ...(await load(url)).ask(text), where: self.constructor.name });
};
"""


class Bundle(NamedTuple):
    """A sealed expert: its id, its folder, its model and the key that signed it."""

    id: str
    place: Path
    model: StaticModel
    key: SigningKey


def corpus() -> dict[str, list[str]]:
    """Lines of prose, English and Chinese, by the page of the documents that they are from."""
    pages = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "README.zh.md"]
    lines = {page.stem: [line for line in page.read_text().splitlines() if len(line) > 20] for page in pages}
    return {page: found for page, found in lines.items() if len(found) >= 10}


def page_expert(folder: Path) -> Bundle:
    """An expert that says which page a line is from."""
    rows = [(line, page) for page, lines in corpus().items() for line in lines]
    model = distill_static([line for line, _ in rows], [page for _, page in rows])
    key = load_or_create_key(folder / "node.key")
    card = sample.card(task_of_group("context:0", "m", sample.SYSTEM), labels=model.labels)
    return Bundle(*seal(folder, card, model, key), model, key)


def elsewhere(folder: Path, *, runtime: Path = FOLDER) -> Starlette:
    """Another origin, as a CDN is one: our scripts at /puhui, `folder` at /files, `runtime` at /runtime."""

    def page(_: object) -> Response:
        return HTMLResponse("<!doctype html><title>a page</title>")

    def worker(_: object) -> Response:
        return Response(WORKER, media_type="text/javascript")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/worker.js", worker),
            Mount("/puhui", StaticFiles(directory=FOLDER)),
            Mount("/files", StaticFiles(directory=folder)),
            Mount("/runtime", StaticFiles(directory=runtime)),
        ],
        middleware=[Middleware(CORSMiddleware, allow_origins=["*"])],
    )


def evaluate(driver: Any, body: str, *given: object) -> Any:
    """What the body of an async function of `given` returns in the page; its error as name, message and file."""
    call = f"""
      const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);
      (async () => {{ {body} }})().then(done, (error) => done([error.name, error.message, error.file ?? null]));
    """
    return driver.execute_async_script(call, *given)


def codes(texts: list[str]) -> list[list[int]]:
    """Texts as code points: lone surrogates do not survive the way to a browser otherwise."""
    return [list(map(ord, text)) for text in texts]
