"""The /device page: experts in place, given to browsers, which then answer by themselves.

No path that a client sends ever reaches the file system: names are looked up, among the files of `puhui.browser`
and among those on the cards of the experts in place. A bundle's file is read, checked and packed once, off the
event loop. An expert that steps down is not given out any more.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from puhui.browser import FOLDER
from puhui.bundles.bundle import CARD_FILE, SIGNATURE_FILE, Card
from puhui.core.errors import BundleError
from puhui.evolve.discovery import task_of_group
from puhui.evolve.learner import FIRST_ATTEMPT_ROWS
from puhui.evolve.memory import Memory
from puhui.node.roster import Roster
from puhui.store.database import Store
from puhui.store.tables import experts

PAGE = "device.html"
WORKER = "device-worker.js"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
}
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    # With these two the page's clock ticks in 5 µs instead of 100, and ONNX Runtime may use threads.
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "referrer-policy": "no-referrer",
}
ALWAYS = {"x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}
# A bundle may hold a page about the expert: it is shown, and does nothing.
BUNDLE_HEADERS = {
    "cache-control": "public, max-age=31536000, immutable",
    "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
}
WORTH_PACKING = 0.95
GZIP = 16  # zlib writes gzip's head where this bit is set
MOST_TASKS_SHOWN = 5


class Served(msgspec.Struct, frozen=True):
    """A file as it is sent: packed with gzip where that makes it smaller. `digest` is that of the plain file."""

    body: bytes
    digest: str
    packed: bool


class Held(msgspec.Struct, frozen=True):
    """What is known of an expert in place: its row in the list, its folder, and its files' digests by name."""

    shown: dict[str, Any]
    folder: Path
    digests: Mapping[str, str]


class Shelf:
    """The bundles of the experts in place. Its methods run on the event loop and read the disk off it."""

    def __init__(self, store: Store, roster: Roster) -> None:
        self._store = store
        self._roster = roster
        self._memory = Memory(store)
        self._held: dict[str, Held] = {}
        self._files: dict[tuple[str, str], Served] = {}
        self._packing = asyncio.Lock()
        self._counting = threading.Lock()

    async def experts(self) -> list[Held]:
        """Those in place, as the list shows them."""
        found = [await self._find(expert.id) for expert in self._roster.experts]
        return [held for held in found if held is not None]

    async def learning(self) -> list[dict[str, Any]]:
        """How far learning is in the tasks that have no expert, those with the most answers first."""
        return await asyncio.to_thread(self._read_learning)

    async def file(self, expert: str, name: str) -> Served | None:
        """A file of an expert in place; None for any other expert or name."""
        held = await self._find(expert)
        if held is None or name not in held.digests:
            return None
        async with self._packing:  # two that ask at once do not both pack it
            served = self._files.get((expert, name))
            if served is None:
                served = self._files[expert, name] = await asyncio.to_thread(_read_file, held, name)
        return served

    async def _find(self, expert: str) -> Held | None:
        if self._roster.get(expert) is None:
            self._held.pop(expert, None)
            self._files = {key: file for key, file in self._files.items() if key[0] != expert}
            return None
        if expert not in self._held:
            self._held[expert] = await asyncio.to_thread(self._read_bundle, expert)
        return self._held[expert]

    def _read_bundle(self, expert: str) -> Held:
        with self._store.begin() as connection:
            row = connection.execute(select(experts).where(experts.c.id == expert)).one()
        folder = Path(row.folder)
        card_bytes = _checked(folder, CARD_FILE, expert)
        card = msgspec.json.decode(card_bytes, type=Card)
        shown = {
            "id": expert,
            "task": card.task_name,
            "family": card.family,
            "labels": len(card.labels),
            "coverage": row.coverage,
            "risk_bound": row.risk_bound,
            "delta": row.delta,
            "bytes": card.size_bytes,
        }
        signature = hashlib.sha256(_read(folder, SIGNATURE_FILE)).hexdigest()
        return Held(shown, folder, {CARD_FILE: expert, SIGNATURE_FILE: signature, **card.files})

    def _read_learning(self) -> list[dict[str, Any]]:
        with self._counting:  # `Memory` counts what is new since the last look
            groups = self._memory.groups()
        progress = {task.group: (task, state) for task, state in self._memory.tasks()}
        served = {expert.task.group for expert in self._roster.experts}
        found: list[dict[str, Any]] = []
        for group, model, context, answers in groups:
            task, state = progress.get(group) or (task_of_group(group, model, context), None)
            if group not in served:
                needed = max(FIRST_ATTEMPT_ROWS, state.next_rows if state is not None else 0)
                found.append({"task": task.name, "answers": answers, "needed": needed})
        return sorted(found, key=lambda row: -row["answers"])[:MOST_TASKS_SHOWN]


def device_routes(store: Store, roster: Roster) -> list[Route]:
    """The routes of the page and of what it reads, for `build_app`."""
    shelf = Shelf(store, roster)
    assets = {path.name: _served(path.name, path.read_bytes()) for path in FOLDER.iterdir() if path.suffix in TYPES}

    async def page(http: HttpRequest) -> Response:
        return _response(http, PAGE, assets[PAGE], {"cache-control": "no-cache", **PAGE_HEADERS})

    async def asset(http: HttpRequest) -> Response:
        name = http.path_params["name"]
        if name not in assets or name == PAGE:
            raise HTTPException(404)
        # The worker's scope is the page, which lies above its own folder.
        scope = {"service-worker-allowed": http.url.path.removesuffix(f"/{name}")} if name == WORKER else {}
        return _response(http, name, assets[name], {"cache-control": "no-cache", **scope})

    async def list_experts(_: HttpRequest) -> Response:
        held = [each.shown for each in await shelf.experts()]
        body = msgspec.json.encode({"experts": held, "learning": [] if held else await shelf.learning()})
        return Response(body, headers={"cache-control": "no-cache", **ALWAYS}, media_type="application/json")

    async def expert_file(http: HttpRequest) -> Response:
        name = http.path_params["name"]
        served = await shelf.file(http.path_params["expert"], name)
        if served is None:
            raise HTTPException(404)
        return _response(http, name, served, BUNDLE_HEADERS)

    return [
        Route("/device", page),
        Route("/device/experts", list_experts),
        Route("/device/experts/{expert}/{name:path}", expert_file),
        Route("/device/{name}", asset),
    ]


def _response(http: HttpRequest, name: str, served: Served, headers: dict[str, str]) -> Response:
    """The file as the client takes it, or 304 where the client has it."""
    etag = f'W/"{served.digest[:32]}"'  # weak: packed or not, it is the same file
    headers = {**headers, **ALWAYS, "etag": etag, "vary": "accept-encoding"}
    if etag in (tag.strip() for tag in http.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    body = served.body
    if served.packed and _takes_gzip(http.headers.get("accept-encoding", "")):
        headers["content-encoding"] = "gzip"
    elif served.packed:
        body = gzip.decompress(body)  # no browser comes here
    kind = TYPES.get(Path(name).suffix, "application/octet-stream")
    return Response(body, headers={**headers, "content-type": kind})


def _takes_gzip(accepted: str) -> bool:
    parts = (part.replace(" ", "").split(";") for part in accepted.lower().split(","))
    return any(name == "gzip" and not (weight and weight[0] in ("q=0", "q=0.0")) for name, *weight in parts)


def _served(name: str, plain: bytes) -> Served:
    # Weights hold no repeats: looking for them takes 60 times as long and saves 1.5 % (5.5 s and 28 kB of 1.9 MB).
    strategy = zlib.Z_DEFAULT_STRATEGY if Path(name).suffix in TYPES else zlib.Z_HUFFMAN_ONLY
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | GZIP, zlib.DEF_MEM_LEVEL, strategy)
    packed = packer.compress(plain) + packer.flush()
    worth = len(packed) < WORTH_PACKING * len(plain)
    return Served(packed if worth else plain, hashlib.sha256(plain).hexdigest(), worth)


def _read_file(held: Held, name: str) -> Served:
    return _served(name, _checked(held.folder, name, held.digests[name]))


def _checked(folder: Path, name: str, digest: str) -> bytes:
    found = _read(folder, name)
    if hashlib.sha256(found).hexdigest() != digest:
        raise BundleError(f"{name} of the expert was changed on the node's disk, so it is not given out")
    return found


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{name} of the expert cannot be read on the node: {error.strerror or error}") from error
