"""The pages' routes: each page is one frame around its own part, put together once, when the node starts.

Everything is a plain file of this folder: HTML, one style sheet, and modules of JavaScript that a browser reads as they
are. There is no framework, nothing to build and nothing from elsewhere, so a page works without a network beyond the
node, and its policy allows no script but these.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from puhui.gateway.assets import PAGE_HEADERS, TYPES, Served, packed_file, send_file

PAGES = ("bill", "experts", "live", "playground", "keys")
HOME = "/bill"
FOLDER = "/pages"
FRAME = "frame.html"
FRESH = {"cache-control": "no-cache"}
"""A browser asks each time whether its copy is still the same, and is told so in a hundred bytes."""


def dashboard_routes() -> list[Route]:
    """The routes of the pages and of what they use, for `node_app`. None of them holds data, so none needs a key."""
    found = {path.name: path.read_bytes() for path in files("puhui.dashboard").iterdir() if _type(path.name)}
    frame = found[FRAME].decode()
    routes = [Route("/", _home)]
    for page in PAGES:
        whole = _framed(frame, page, found[f"{page}.html"].decode())
        routes.append(_route(f"/{page}", f"{page}.html", whole.encode(), {**FRESH, **PAGE_HEADERS}))
    routes += [
        _route(f"{FOLDER}/{name}", name, content, FRESH)
        for name, content in sorted(found.items())
        if _type(name) != ".html"
    ]
    return routes


def _framed(frame: str, page: str, part: str) -> str:
    """The page: its part in the frame, with its own link in the navigation marked."""
    marked = frame.replace(f'<a href="{page}"', f'<a href="{page}" aria-current="page"')
    return marked.replace("<!-- part -->", part).replace("{page}", page)


def _route(path: str, name: str, content: bytes, headers: dict[str, str]) -> Route:
    served: Served = packed_file(name, content)

    async def send(http: HttpRequest) -> Response:
        return send_file(http, name, served, headers)

    return Route(path, send)


async def _home(_: HttpRequest) -> Response:
    return RedirectResponse(HOME, status_code=307, headers=FRESH)


def _type(name: str) -> str | None:
    """The file's type, if it is one that a browser is given."""
    return next((suffix for suffix in TYPES if name.endswith(suffix)), None)
