"""The whole loop on real input: a big model, a node in front of it, traffic, an expert, a bill."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import platformdirs
from rich.console import Console
from sqlalchemy import select

from puhui.bundles.bundle import open_expert
from puhui.core.errors import SettingsError, UpstreamError
from puhui.core.settings import Promise
from puhui.demo.big import NAME, encoder_folder
from puhui.demo.job import Item, Job, cloud_services, labels_of, own_requests
from puhui.demo.live import Live
from puhui.demo.load import Sent, send_all
from puhui.demo.processes import Processes, free_port, open_local
from puhui.demo.report import draw, print_result
from puhui.demo.tally import summarise, timeline
from puhui.models.encoder import CONFIG_FILE, EncoderClassifier
from puhui.models.endpoint import open_reference
from puhui.node.bill import draw_up
from puhui.store.database import open_store, sqlite_url
from puhui.store.tables import experts

CHANGED_SHARE = 1 / 3
SIDE_BY_SIDE = 300


class DemoSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `puhui demo` can be told. `big` is openai:MODEL@URL, or None for the demo's own model."""

    out: Path
    big: str | None = None
    key_env: str | None = None
    data: Path | None = None
    system: str = ""
    requests: int | None = None
    clients: int = 3
    rate: float | None = None
    drift: bool = False
    seed: int = 0
    promise: Promise = Promise()


class World:
    """The big model that stands behind the node: its base URL, its name, and (the demo's own) its changes."""

    def __init__(self, url: str, model: str, key: str | None, own: bool) -> None:
        self.url = url
        self.model = model
        self.key = key
        self._own = own

    def change(self, answers: Mapping[str, str]) -> None:
        """Makes the demo's own model give other answers from now on; an empty mapping changes it back."""
        if self._own:
            root = self.url.removesuffix("/v1")
            body = json.dumps(dict(answers)).encode()
            open_local(f"{root}/demo/world", body, timeout=10.0).close()


def run_demo(settings: DemoSettings, console: Console) -> dict[str, Any]:
    """Runs the demo, shows it on `console`, leaves its results in `settings.out` and returns them."""
    job = read_job(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    console.print(
        f"[bold]1[/bold]  The job: {job.name}, {len(job.traffic):,} requests, {len(labels_of(job.traffic))} answers."
    )
    with Processes(settings.out / "logs") as processes:
        world = start_big(settings, job, processes, console)
        port = free_port()
        node = f"http://127.0.0.1:{port}"
        folder = settings.out / "node"
        processes.start("node", _node_arguments(settings, world, port, folder), f"{node}/healthz")
        console.print(f"[bold]3[/bold]  A node in front of it: {node}/v1 (logs and results: {settings.out})")
        bodies = [_body(job, item, world.model) for item in job.traffic]
        console.print(f"[bold]4[/bold]  The traffic, {_pace(settings)}; experts are learned beside it.")
        change = _change_of_answers(job) if settings.drift else {}
        sent = _traffic(settings, world, node, bodies, change, console)
        console.print("[bold]5[/bold]  The big model is asked for everything that an expert answered.")
        said = _ask_afterwards(world, bodies, sent, change, console)
        compute = _compute_side_by_side(world, job, bodies, folder)
    result = _conclude(settings, job, sent, said, compute, folder)
    print_result(result, console)
    console.print(f"Results: {settings.out} (result.json, picture.png, requests.jsonl, node/, logs/)")
    return result


def read_job(settings: DemoSettings) -> Job:
    """The job that the settings name, with as much traffic as they say."""
    job = cloud_services(settings.seed) if settings.data is None else own_requests(settings.data, settings.system)
    return msgspec.structs.replace(job, traffic=job.traffic[: settings.requests])


def start_big(settings: DemoSettings, job: Job, processes: Processes, console: Console) -> World:
    """The big model that the settings name; the demo's own is started, and its head trained on first use."""
    if settings.big is not None:
        endpoint = open_reference(settings.big)
        if endpoint.model is None:
            raise SettingsError(f"--big is {settings.big!r}; the demo needs a model's name: openai:MODEL@URL")
        if settings.drift:
            raise SettingsError("--drift changes the demo's own big model; leave out --big")
        console.print(f"[bold]2[/bold]  The big model: {endpoint.model} at {endpoint.url}")
        return World(endpoint.url, endpoint.model, _key(settings.key_env), own=False)
    head = _head(job, console)
    port = free_port()
    arguments = ("puhui.demo.big", "--head", str(head), "--port", str(port))
    processes.start("big", arguments, f"http://127.0.0.1:{port}/healthz")
    console.print(f"[bold]2[/bold]  The big model: all-MiniLM-L6-v2 with a head, at http://127.0.0.1:{port}/v1")
    return World(f"http://127.0.0.1:{port}/v1", NAME, None, own=True)


def _head(job: Job, console: Console) -> Path:
    """The folder of the head for this job, trained on first use and kept in the user's cache."""
    if len(labels_of(job.lessons)) < 2:
        raise SettingsError(
            'the demo\'s own big model learns its head from labelled texts: give requests with a "label", or name '
            "your own model by --big openai:MODEL@URL"
        )
    digest = hashlib.sha256(msgspec.json.encode(job.lessons)).hexdigest()[:16]
    folder = Path(platformdirs.user_cache_dir("puhui", appauthor=False)) / "heads" / digest
    if (folder / CONFIG_FILE).is_file():
        return folder
    texts = [item.text for item in job.lessons]
    truths = [item.truth or "" for item in job.lessons]
    with Live(console, "training the big model's head, once", len(texts)) as live:
        model = EncoderClassifier.train_head(encoder_folder(), texts, truths, progress=lambda done, _: live.show(done))
    draft = folder.with_name(f"{digest}.{os.getpid()}")
    model.save_head(draft)
    if not folder.exists():
        draft.rename(folder)
    return folder


def _node_arguments(settings: DemoSettings, world: World, port: int, folder: Path) -> list[str]:
    promise = settings.promise
    arguments = ["puhui.cli.main", "serve", "--upstream", f"openai:{world.model}@{world.url}", "--port", str(port)]
    arguments += ["--data-dir", str(folder), "--no-access-log"]
    arguments += ["--risk", str(promise.epsilon), "--delta", str(promise.delta)]
    return arguments + (["--key-env", settings.key_env] if settings.key_env else [])


def _pace(settings: DemoSettings) -> str:
    if settings.rate is not None:
        return f"{settings.rate:g} requests a second"
    return f"from {settings.clients} clients at once, each sending its next request when it has its answer"


def _body(job: Job, item: Item, model: str) -> bytes:
    return msgspec.json.encode({"model": model, "messages": job.messages(item)})


def _change_of_answers(job: Job) -> dict[str, str]:
    """What the changed world says: a part of the answers trade places in a ring."""
    labels = labels_of(job.traffic)
    changed = labels[:: max(1, round(1 / CHANGED_SHARE))]
    return dict(zip(changed, changed[1:] + changed[:1], strict=True))


def _traffic(
    settings: DemoSettings,
    world: World,
    node: str,
    bodies: Sequence[bytes],
    change: Mapping[str, str],
    console: Console,
) -> list[Sent]:
    sent: list[Sent] = []
    half = len(bodies) // 2 if change else len(bodies)
    with Live(console, "requests", len(bodies), node=node) as live:

        def done(one: Sent, first: int) -> None:
            one.number += first
            sent.append(one)
            live.add(one)

        pace: dict[str, Any] = {"rate": settings.rate, "clients": settings.clients}
        send_all(f"{node}/v1", bodies[:half], **pace, done=lambda one: done(one, 0))
        if change:
            world.change(change)
            console.print(f"   The world changes: {len(change)} answers trade places.")
            send_all(f"{node}/v1", bodies[half:], **pace, done=lambda one: done(one, half))
    if not any(one.status == 200 for one in sent):
        reason = next((one.error for one in sent), "no request was sent")
        raise UpstreamError(f"not one request was answered: {reason}; see {settings.out / 'logs'}")
    return sent


def _ask_afterwards(
    world: World, bodies: Sequence[bytes], sent: Sequence[Sent], change: Mapping[str, str], console: Console
) -> dict[int, str | None]:
    """What the big model says to every request, by number: known where it answered, asked where an expert did."""
    said = {one.number: one.answer for one in sent if one.status == 200 and not one.by_expert}
    half = len(bodies) // 2 if change else len(bodies)
    by_expert = sorted(one.number for one in sent if one.by_expert)
    with Live(console, "asking the big model afterwards", len(by_expert)) as live:
        for numbers, answers in (
            ([number for number in by_expert if number < half], {}),
            ([number for number in by_expert if number >= half], change),
        ):
            if not numbers:
                continue
            world.change(answers)

            def done(one: Sent, numbers: list[int] = numbers) -> None:
                if one.status == 200:
                    said[numbers[one.number]] = one.answer
                live.advance()

            send_all(world.url, [bodies[number] for number in numbers], rate=None, key=world.key, clients=2, done=done)
    return said


def _compute_side_by_side(world: World, job: Job, bodies: Sequence[bytes], folder: Path) -> dict[str, float | None]:
    """CPU milliseconds of an answer, median: the same texts, one after the other, by the big model and by the expert.

    Within the traffic both are interrupted by each other, and by idle pauses after which every core is slow.
    """
    numbers = range(0, len(bodies), max(1, len(bodies) // SIDE_BY_SIDE))
    asked: list[Sent] = []
    send_all(world.url, [bodies[number] for number in numbers], rate=None, key=world.key, clients=1, done=asked.append)
    big = [one.cpu_ms for one in asked if one.status == 200 and one.cpu_ms]
    bundles = sorted((folder / "experts").glob("*/expert.json"), key=lambda path: path.stat().st_mtime)
    expert_ms = []
    if bundles:
        expert = open_expert(bundles[-1].parent)
        for number in numbers:
            started = time.thread_time()
            expert.ask(job.traffic[number].text)
            expert_ms.append((time.thread_time() - started) * 1000.0)
    return {"big": median(big) if big else None, "expert": median(expert_ms) if expert_ms else None}


def _conclude(
    settings: DemoSettings,
    job: Job,
    sent: Sequence[Sent],
    said: Mapping[int, str | None],
    compute: Mapping[str, float | None],
    folder: Path,
) -> dict[str, Any]:
    store = open_store(sqlite_url(folder / "puhui.db"))
    bill = draw_up(store, "total", currency="USD", now=time.time()).as_dict()
    with store.begin() as connection:
        rows = [dict(row) for row in connection.execute(select(experts).order_by(experts.c.created)).mappings()]
    store.close()
    result = summarise(job.traffic, sent, said, compute, bill, rows) | {"seed": settings.seed, "out": str(settings.out)}
    (settings.out / "result.json").write_text(json.dumps(result, indent=1))
    with (settings.out / "requests.jsonl").open("wb") as file:
        for one in sorted(sent, key=lambda one: one.number):
            file.write(msgspec.json.encode(msgspec.structs.asdict(one) | {"big": said.get(one.number)}) + b"\n")
    draw(timeline(sent, said), _events(sent, rows), settings.promise.epsilon, settings.out / "picture.png")
    return result


def _events(sent: Sequence[Sent], rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """At which request experts came and went."""
    times = [(row["created"], "expert in place") for row in rows]
    times += [(row["ended"], "expert demoted") for row in rows if row["status"] == "demoted"]
    return [(sum(one.at < at for one in sent), name) for at, name in times]


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    if not os.environ.get(name):
        raise SettingsError(f"--key-env names {name}, but that environment variable is not set")
    return os.environ[name]
