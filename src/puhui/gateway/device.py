"""The /device page: experts in place, given to browsers, which then answer by themselves.

No path that a client sends ever reaches the file system: names are looked up, among the files of `puhui.browser`
and among those on the cards of the experts in place. A bundle's file is read, checked and packed once, off the
event loop. An expert that steps down is not given out any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Collection, Mapping
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
from puhui.gateway.assets import ALWAYS, PAGE_HEADERS, TYPES, Served, packed_file, send_file
from puhui.node.roster import Roster
from puhui.store.database import Store
from puhui.store.tables import experts

PAGE = "device.html"
WORKER = "device-worker.js"
# A bundle may hold a page about the expert: it is shown, and does nothing.
BUNDLE_HEADERS = {
    "cache-control": "public, max-age=31536000, immutable",
    "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
}
MOST_TASKS_SHOWN = 5


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
            return learning_progress(self._memory, {expert.task.group for expert in self._roster.experts})


def learning_progress(memory: Memory, served: Collection[str]) -> list[dict[str, Any]]:
    """How far learning is in the groups that are not `served` by an expert, those with the most answers first."""
    progress = {task.group: (task, state) for task, state in memory.tasks()}
    found: list[dict[str, Any]] = []
    for group, model, context, answers in memory.groups():
        task, state = progress.get(group) or (task_of_group(group, model, context), None)
        if group not in served:
            needed = max(FIRST_ATTEMPT_ROWS, state.next_rows if state is not None else 0)
            found.append({"task": task.name, "answers": answers, "needed": needed})
    return sorted(found, key=lambda row: -row["answers"])[:MOST_TASKS_SHOWN]


def device_routes(store: Store, roster: Roster, *, learns: bool = True) -> list[Route]:
    """The routes of the page and of what it reads, for `build_app`. `learns`: whether this node learns experts."""
    shelf = Shelf(store, roster)
    assets = {path.name: packed_file(path.name, path.read_bytes()) for path in FOLDER.iterdir() if path.suffix in TYPES}

    async def page(http: HttpRequest) -> Response:
        return send_file(http, PAGE, assets[PAGE], {"cache-control": "no-cache", **PAGE_HEADERS})

    async def asset(http: HttpRequest) -> Response:
        name = http.path_params["name"]
        if name not in assets or name == PAGE:
            raise HTTPException(404)
        # The worker's scope is the page, which lies above its own folder.
        scope = {"service-worker-allowed": http.url.path.removesuffix(f"/{name}")} if name == WORKER else {}
        return send_file(http, name, assets[name], {"cache-control": "no-cache", **scope})

    async def list_experts(_: HttpRequest) -> Response:
        held = [each.shown for each in await shelf.experts()]
        learning = [] if held else await shelf.learning()
        body = msgspec.json.encode({"experts": held, "learns": learns, "learning": learning})
        return Response(body, headers={"cache-control": "no-cache", **ALWAYS}, media_type="application/json")

    async def expert_file(http: HttpRequest) -> Response:
        name = http.path_params["name"]
        served = await shelf.file(http.path_params["expert"], name)
        if served is None:
            raise HTTPException(404)
        return send_file(http, name, served, BUNDLE_HEADERS)

    return [
        Route("/device", page),
        Route("/device/experts", list_experts),
        Route("/device/experts/{expert}/{name:path}", expert_file),
        Route("/device/{name}", asset),
    ]


def _read_file(held: Held, name: str) -> Served:
    return packed_file(name, _checked(held.folder, name, held.digests[name]))


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
